"""RULE: what the operator and the caller allow for one request, decided before anything is looked up.

The operator's route sets the limits; the caller's `Cache-Control` (RFC 9111) and `Semcache-Control` (a Structured
Field dictionary, RFC 9651) may only make matching stricter and lifetimes shorter, never looser or longer.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import http_sf

from semcache.cache.agent_loop import is_agent_step
from semcache.cache.bound import Limits
from semcache.cache.conversation import loses_its_meaning
from semcache.cache.guards import GUARDS
from semcache.cache.personal import Personal, find_personal
from semcache.cache.time_bound import is_time_bound
from semcache.cache.witnesses import WITNESSES
from semcache.config import Cache, Match
from semcache.errors import ClientError
from semcache.types import Ask, Reason

BOUND_FLOOR = 0.60  # cosine: on labelled streams, no bound up to 5 % ever let anything pass below 0.65
SHADOW_FLOOR = 0.70  # cosine: the lowest threshold that is reported on


@dataclass(frozen=True, slots=True)
class Directives:
    """What the caller asked of the cache. The defaults ask for nothing."""

    no_cache: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    max_age_s: float | None = None
    max_stale_s: float | None = None
    namespace: str = ""
    similarity: float | None = None
    exact_only: bool = False
    ttl_s: float | None = None
    replay: Literal["instant", "recorded"] | float | None = None  # a number: tokens a second


@dataclass(frozen=True, slots=True)
class Rerank:
    """How a cross-encoder is asked; see `match.reranker` and what follows it in config.py."""

    model: str
    least: float  # the probability of a hit
    sure_from: float  # cosine: nearer candidates are not shown to it
    deadline_s: float  # for all candidates of a question


@dataclass(frozen=True, slots=True)
class Ruling:
    """What may be done with one request."""

    skip_lookup: Reason | None  # set: no lookup at all, and why
    exact_only: Reason | None  # set: no semantic tier, and why
    may_serve: bool  # False: look up, then forward all the same, to compare
    may_store: bool
    may_coalesce: bool
    only_if_cached: bool
    threshold: float  # cosine
    neighbours: int  # that may be proposed
    guards: tuple[str, ...]
    ttl_s: float
    grace_s: float
    max_age_s: float | None  # of a stored answer; None: any
    max_stale_s: float | None  # None: the whole grace
    # The least cosine of the turns before the question, where they need not be equal; None: they are.
    context_threshold: float | None = None
    # Where answers are shared, and not at once: how many tenants must vouch for one, and who asks. See provenance.py.
    min_uses: int = 1
    asker: str = ""
    personal: Personal | None = None  # set: the answer is for one person, and so is the exact key
    keeps_personal: bool = False  # what was stored for one person is not given to those who ask nearly the same
    learn_from: float = 1.0  # cosine: candidates from here on are judged, though they may not be served
    judge: float | None = None  # the least probability that the pair judge must give; None: it is not asked
    limits: Limits | None = None  # set: the error bound decides, in the place of the threshold
    rerank: Rerank | None = None  # set: a cross-encoder has the last word on candidates in its band
    regions: frozenset[str] = frozenset()  # answers made elsewhere are not given; empty: any
    may_embed: bool = True  # False: the embedder is outside the regions, and may see neither question nor answer
    stale_if_error_s: float = 0.0  # past ttl, where no backend gives a fresh answer

    @property
    def asks_all_guards(self) -> bool:
        return len(self.guards) == len(GUARDS)

    @property
    def floor(self) -> float:
        """What is further away is not looked at. A caller's wish for nearer ones silences no witness of the bound."""
        return min(self.threshold, self.learn_from, 1.0 if self.limits is None else BOUND_FLOOR)

    @property
    def searched(self) -> int:
        """How many neighbours are searched for: those that may be proposed, and witnesses."""
        return self.neighbours if self.limits is None else max(self.neighbours, WITNESSES)

    @property
    def compares_turns(self) -> bool:
        return self.context_threshold is not None


NOTHING_ASKED = Directives()


def rule(ask: Ask, cache: Cache, match: Match) -> Ruling:
    """What the operator's route allows for this request, before the caller has a say."""
    traits = ask.traits
    skip = Reason.DISABLED if match.mode == "off" else Reason.STATE if traits.is_stateful else None
    is_bound = match.time_bound == "exact" and ask.question is not None and is_time_bound(ask.question)
    longest_s = cache.time_bound_ttl if is_bound else math.inf
    personal = _why_personal(ask) if match.personal != "serve" else None
    if personal is not None and match.personal == "private" and not ask.user:
        skip = skip or Reason.PERSONAL
    storable = skip is None and not traits.has_hosted_tools and (cache.store_tools or not traits.has_tools)
    return Ruling(
        skip_lookup=skip,
        exact_only=_exact_only(ask, match)
        or (Reason.PERSONAL if personal else Reason.TIME_BOUND if is_bound else None),
        may_serve=match.mode == "serve",
        may_store=storable,
        may_coalesce=storable and match.mode == "serve",
        only_if_cached=False,
        threshold=_threshold(match),
        neighbours=match.neighbours,
        guards=match.guards,
        ttl_s=min(cache.ttl, longest_s),
        grace_s=min(cache.grace, longest_s),
        max_age_s=None,
        max_stale_s=None,
        context_threshold=match.context_threshold if match.context == "similar" and ask.turns else None,
        personal=personal,
        keeps_personal=match.personal != "serve",
        learn_from=SHADOW_FLOOR if match.mode == "shadow" else 1.0,
        judge=match.judge if match.max_error is None else None,  # the bound has asked it already
        limits=_limits(match),
        rerank=_rerank(match),
        stale_if_error_s=min(cache.stale_if_error, longest_s),
    )


def _threshold(match: Match) -> float:
    """The cosine below which nothing is served, before the caller has a say: low where others decide."""
    if match.max_error is not None:
        return BOUND_FLOOR
    return match.threshold if match.reranker is None else match.reranker_band[0]


def _rerank(match: Match) -> Rerank | None:
    if match.reranker is None:
        return None
    sure_from = max(match.reranker_band[1], match.threshold)  # never less strict than without it
    return Rerank(match.reranker, match.reranker_min, sure_from, match.reranker_deadline)


def _limits(match: Match) -> Limits | None:
    if match.max_error is None:
        return None
    # In shadow mode every request is forwarded to learn, and none has to be chosen for it.
    return Limits(match.max_error, match.explore if match.mode == "serve" else 0.0, match.explore_usd)


def tighten(ruling: Ruling, asked: Directives) -> Ruling:
    """The ruling with the caller's wishes, as far as they are stricter."""
    return ruling if asked is NOTHING_ASKED else _tighten(ruling, asked)


@lru_cache(maxsize=1024)
def _tighten(ruling: Ruling, asked: Directives) -> Ruling:
    fresh_only = asked.no_cache or asked.no_store
    skip = ruling.skip_lookup or (Reason.NO_STORE if asked.no_store else Reason.NO_CACHE if asked.no_cache else None)
    return replace(
        ruling,
        skip_lookup=skip,
        exact_only=ruling.exact_only or (Reason.EXACT_ONLY if asked.exact_only else None),
        may_store=ruling.may_store and not asked.no_store,
        # A caller who wants a fresh answer must not get one that was under way before he asked.
        may_coalesce=ruling.may_coalesce and not fresh_only,
        only_if_cached=asked.only_if_cached,
        # Nothing is fetched for this caller, so nothing can be learned.
        limits=replace(ruling.limits, explore=0.0) if ruling.limits and asked.only_if_cached else ruling.limits,
        threshold=max(ruling.threshold, asked.similarity or 0.0),
        ttl_s=ruling.ttl_s if asked.ttl_s is None else min(ruling.ttl_s, asked.ttl_s),
        max_age_s=asked.max_age_s,
        max_stale_s=asked.max_stale_s,
    )


def _exact_only(ask: Ask, match: Match) -> Reason | None:
    """Requests whose meaning is more than their question's text leave only the exact tier.

    1. A running agent loop: the question is old, the work is in what the tools brought.
    2. Tools: a near question may need another call.
    3. Images, audio, files: equal words about another picture.
    4. Several choices, or more temperature than the operator lets the cache hide: variety was asked for.
    5. Words that mean nothing without turns which are not there, or need not be equal.
    """
    traits = ask.traits
    if traits.has_tool_results or (ask.question is not None and is_agent_step(ask.question, ask.turns)):
        return Reason.AGENT
    if traits.has_tools:
        return Reason.TOOLS
    if traits.has_media:
        return Reason.MEDIA
    if traits.choices > 1 or (traits.temperature or 0.0) > match.max_temperature:
        return Reason.SAMPLING
    if ask.question is None or not ask.question.strip():
        return Reason.EXACT_ONLY
    if loses_its_meaning(ask, match):
        return Reason.FOLLOW_UP
    return None


_READ_CHARS = 8000  # of what the user said, the latest first: a millisecond or two


def _why_personal(ask: Ask) -> Personal | None:
    """What makes a request personal: the question, or what the user said before it. "Yes" may ask for a balance."""
    said = [ask.question, *(turn.text for turn in reversed(ask.turns) if turn.role == "user")]
    read = 0
    for text in filter(None, said):
        if read >= _READ_CHARS:
            break
        read += len(text)
        if found := find_personal(text):
            return found
    return None


@lru_cache(maxsize=1024)  # services send the same few header values with every request
def read_directives(cache_control: str | None, semcache_control: str | None) -> Directives:
    """Read both headers. Unknown Cache-Control directives are ignored as RFC 9111 section 5.2.3 asks; errors in our own
    field are a ClientError (400), since a caller who wrote it relies on it."""
    if cache_control is None and semcache_control is None:
        return NOTHING_ASKED
    standard = _read_cache_control(cache_control or "")
    return replace(standard, **_read_semcache_control(semcache_control or ""))


def _read_cache_control(value: str) -> Directives:
    found: dict[str, str] = {}
    for part in value.split(","):
        name, _, argument = part.partition("=")
        found[name.strip().lower()] = argument.strip().strip('"')
    asked = Directives(
        no_cache="no-cache" in found,
        no_store="no-store" in found,
        only_if_cached="only-if-cached" in found,
        max_age_s=_delta(found["max-age"]) if "max-age" in found else None,
        # `max-stale` without a number accepts any staleness: as much as the operator's grace.
        max_stale_s=_delta(found["max-stale"]) if found.get("max-stale") else None,
    )
    return NOTHING_ASKED if asked == NOTHING_ASKED else asked


def _delta(text: str) -> float:
    """Seconds; what is not a number is taken as 0, the strictest reading."""
    return float(text) if re.fullmatch(r"\d{1,10}", text) else 0.0


_NAMESPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _read_semcache_control(value: str) -> dict[str, Any]:
    if not value:
        return {}
    try:
        members: Any = http_sf.parse(value.encode("latin-1"), tltype="dictionary")
    except (ValueError, UnicodeEncodeError) as exc:
        raise _malformed("it is not a Structured Field dictionary such as `namespace=docs, similarity=0.95`") from exc
    asked: dict[str, Any] = {}
    for name, (item, _parameters) in members.items():
        match name:
            case "namespace" if _NAMESPACE.fullmatch(str(item)):
                asked["namespace"] = str(item)
            case "similarity" if _is_number(item) and 0 <= item <= 1:
                asked["similarity"] = float(item)
            case "tier" if str(item) in ("exact", "semantic"):
                asked["exact_only"] = str(item) == "exact"
            case "ttl" if _is_number(item) and item >= 0:
                asked["ttl_s"] = float(item)
            case "replay" if str(item) in ("instant", "recorded") or (_is_number(item) and item > 0):
                asked["replay"] = float(item) if _is_number(item) else str(item)
            case "namespace" | "similarity" | "tier" | "ttl" | "replay":
                raise _malformed(f"the value of `{name}` is not allowed")
            case _:
                raise _malformed(
                    "it knows namespace, similarity (0 to 1), tier (exact or semantic), ttl (seconds) "
                    "and replay (instant, recorded or tokens a second)"
                )
    return asked


def _is_number(item: object) -> bool:
    return (not isinstance(item, bool) and isinstance(item, (int, float))) or type(item).__name__ == "Decimal"


def _malformed(why: str) -> ClientError:
    return ClientError(f"Semcache-Control: {why}", param="Semcache-Control", code="invalid_semcache_control")
