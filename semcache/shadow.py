"""SHADOW: what each threshold would have done, counted from requests that were looked up and forwarded all the same.

Of each request one candidate decides: the nearest. At every threshold up to its similarity the request would have been
a hit, above it a miss, and whether that hit had been false is known once the fresh answer is held against the stored
one. So a count for each hundredth of similarity is all there is to keep: sums from the top give every threshold, hours
and workers add up, and nothing personal is in it.

Two limits. In shadow mode every answer is stored, so there is a little more to hit than there would be. And answers of
which nobody can tell whether they say the same are left out of the false-hit rate; the report shows how many.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from semcache.cache.store_evidence import HOUR_S, ShadowCount, ShadowKey
from semcache.config import Route
from semcache.types import FWD, Considered, Finding, Reason, Tier

THRESHOLDS = tuple(range(70, 100))  # hundredths; lookups in shadow mode judge down to the least of them
TARGET = 0.01  # false hits among hits, where neither the caller nor the route says another
Z = 1.959964  # of a normal distribution: 95 % within


class Strategy(StrEnum):
    """What decides about a hit."""

    EXACT = "exact"  # an equal request is stored: a hit at any threshold
    THRESHOLD = "threshold"  # the nearest candidate, whatever guards say
    GUARDS = "guards"  # the nearest to which nothing objects, as the route is configured


CURVES = (Strategy.THRESHOLD, Strategy.GUARDS)
NOTHING_NEAR = -1  # the bucket of requests for which no candidate decides
# No answer of theirs could have been served, whatever it says.
_UNSERVABLE = frozenset({Reason.EXPIRED, Reason.MAX_AGE, Reason.UNPROVEN, Reason.NO_ENTRY, Reason.CACHE_FAULT})


@dataclass(frozen=True, slots=True)
class ShadowRequest:
    """One request, as it is counted: once for each way of deciding, with the place of the candidate that decides."""

    counted: tuple[tuple[ShadowKey, int | None], ...]

    def decided_by(self, place: int) -> list[ShadowKey]:
        return [key for key, decider in self.counted if decider == place]


def was_looked_up(finding: Finding) -> bool:
    """Whether the cache would have had a say: not for what was bypassed, refreshed, or asked to be fresh."""
    return finding.match is not None or (finding.reason is not None and FWD[finding.reason] in ("miss", "stale"))


def shadow_request(finding: Finding, eligible: Sequence[bool], hour: int, route: int, setting: str) -> ShadowRequest:
    """How a request is counted that was looked up. `eligible`: for each candidate, whether nothing objects to it but
    its similarity."""
    match = finding.match
    if match is not None and match.tier is Tier.EXACT:
        return ShadowRequest(((ShadowKey(hour, route, setting, Strategy.EXACT, 100), 0),))
    by_nearness = sorted(range(len(finding.considered)), key=lambda place: -finding.considered[place].similarity)
    nearest = (place for place in by_nearness if finding.considered[place].objection not in _UNSERVABLE)
    unvetoed = (place for place in by_nearness if eligible[place])
    deciders = {Strategy.THRESHOLD: next(nearest, None), Strategy.GUARDS: next(unvetoed, None)}
    return ShadowRequest(
        tuple(
            (ShadowKey(hour, route, setting, strategy, _bucket(finding.considered, place)), place)
            for strategy, place in deciders.items()
        )
    )


def _bucket(considered: Sequence[Considered], place: int | None) -> int:
    if place is None:
        return NOTHING_NEAR
    # A millionth: a cosine is a float32, and 0.93 of a candidate is the 0.93 of a threshold.
    return max(NOTHING_NEAR, min(100, math.floor(considered[place].similarity * 100 + 1e-4)))


# The report


def shadow_report(
    counts: Iterable[tuple[ShadowKey, ShadowCount]],
    routes: Sequence[Route],
    only: int | None = None,
    target: float | None = None,
) -> Mapping[str, Any]:
    """What shadow mode has counted so far, by route; only that at place `only`, if given. Plain values, for JSON.

    `target`: of false hits among hits, for the recommendation; by default the route's max_error, or else TARGET.
    """
    by_route: dict[int, list[tuple[ShadowKey, ShadowCount]]] = defaultdict(list)
    for key, count in counts:
        by_route[key.route].append((key, count))
    reports = [
        _route_report(place, route, by_route.get(place, []), target or route.match.max_error or TARGET)
        for place, route in enumerate(routes)
        if only in (None, place) and (by_route.get(place) or route.match.mode == "shadow")
    ]
    return {"routes": reports}


def _route_report(
    place: int, route: Route, counts: Sequence[tuple[ShadowKey, ShadowCount]], target: float
) -> Mapping[str, Any]:
    # Guards, models or the embedder may have been changed meanwhile: what counts is what was counted last.
    latest = max(counts, key=lambda each: each[0].hour)[0].setting if counts else None
    current = [(key, count) for key, count in counts if key.setting == latest]
    buckets: dict[str, dict[int, ShadowCount]] = defaultdict(lambda: defaultdict(ShadowCount))
    for key, count in current:
        buckets[key.strategy][key.bucket].add(count)
    exact = buckets[Strategy.EXACT].get(100, ShadowCount())
    requests = exact.requests + sum(count.requests for count in buckets[Strategy.GUARDS].values())
    curves = {strategy.value: _curve(buckets[strategy], exact, requests) for strategy in CURVES}
    hours = [key.hour for key, _ in current]
    return {
        "route": place,
        "models": list(route.models),
        "mode": route.match.mode,
        "threshold": route.match.threshold,
        "max_error": route.match.max_error,
        "guards": list(route.match.guards),
        "since": min(hours) * HOUR_S if hours else None,
        "until": (max(hours) + 1) * HOUR_S if hours else None,
        "requests": requests,
        "left_out": sum(count.requests for key, count in counts if key.setting != latest and _is_once(key)),
        "exact": {
            "hits": exact.requests,
            "hit_rate": _share(exact.requests, requests),
            "compared": exact.same + exact.different,
            # Equal requests, and still another answer: how much the model varies by itself.
            "different_rate": _share(exact.different, exact.same + exact.different),
        },
        "curves": curves,
        "recommendation": _for(route, recommend(curves[Strategy.GUARDS.value], target)),
    }


def _for(route: Route, found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where an error bound is set, no threshold is asked: the lines to paste are those that let it decide."""
    if route.match.max_error is None:
        return found
    return {**found, "yaml": f"match:\n  mode: serve\n  max_error: {route.match.max_error:g}"}


def _is_once(key: ShadowKey) -> bool:
    """Every request is counted once under one of these two."""
    return key.strategy in (Strategy.EXACT, Strategy.GUARDS)


def _curve(buckets: Mapping[int, ShadowCount], exact: ShadowCount, requests: int) -> list[Mapping[str, Any]]:
    """One row for each threshold, ascending. What is saved includes exact hits; what is false is of semantic ones."""
    rows: list[Mapping[str, Any]] = []
    semantic = ShadowCount()
    for bucket in sorted((bucket for bucket in buckets if bucket >= 100), reverse=True):
        semantic.add(buckets[bucket])
    for threshold in reversed(THRESHOLDS):
        semantic.add(buckets.get(threshold, ShadowCount()))
        compared = semantic.same + semantic.different
        low, high = wilson(semantic.different, compared)
        rows.append(
            {
                "threshold": threshold / 100,
                "hits": exact.requests + semantic.requests,
                "hit_rate": _share(exact.requests + semantic.requests, requests),
                "semantic_hits": semantic.requests,
                "compared": compared,
                "not_compared": _share(semantic.requests - compared, semantic.requests),
                "false": semantic.different,
                "false_rate": _share(semantic.different, compared),
                "false_low": low,
                "false_high": high,
                "tokens": sum(each.prompt_tokens + each.completion_tokens for each in (exact, semantic)),
                "usd": exact.usd + semantic.usd,
                "unpriced": exact.unpriced + semantic.unpriced,
                "fetch_s": exact.fetch_s + semantic.fetch_s,
            }
        )
    return rows[::-1]


def recommend(curve: Sequence[Mapping[str, Any]], target: float) -> Mapping[str, Any]:
    """The lowest threshold whose false-hit rate is at most `target`, at 95 % confidence; or what is missing for one.

    Thresholds with enough evidence are tried from the strictest down, up to the first that fails: trying all of them
    and taking the best would be right less often than it says (fixed sequence testing, as in learn-then-test).
    """
    least = _least_compared(0.0, target)
    chosen: Mapping[str, Any] | None = None
    enough = [row for row in reversed(curve) if row["compared"] >= least]
    for row in enough:
        if row["false_high"] > target:
            break
        if chosen is None or row["compared"] > chosen["compared"]:  # a lower one without more evidence is a guess
            chosen = row
    if chosen is not None:
        lines = ["match:", "  mode: serve", f"  threshold: {chosen['threshold']:.2f}"]
        return {"target": target, "threshold": chosen["threshold"], "row": chosen, "yaml": "\n".join(lines)}
    best = min(curve, key=lambda row: (row["false_rate"] if row["compared"] else 1.0, -row["compared"]), default=None)
    if best is None or not best["compared"]:
        return {"target": target, "threshold": None, "more": math.ceil(least), "row": None}
    rate = best["false_rate"]
    # A rate near the target cannot be told from it by any amount of evidence worth waiting for.
    more = _least_compared(rate, target) - best["compared"] if rate < 0.8 * target else None
    return {"target": target, "threshold": None, "more": None if more is None else max(1, math.ceil(more)), "row": best}


def _least_compared(rate: float, target: float) -> float:
    """How many comparisons with this share of false ones bring Wilson's upper bound down to the target."""
    low, high = 1.0, 1e9
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if wilson(rate * middle, middle)[1] <= target else (middle, high)
    return high


def wilson(found: float, of: float) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score; all of 0 to 1 where nothing was looked at."""
    if not of:
        return 0.0, 1.0
    share = found / of
    spread = Z * math.sqrt(share * (1 - share) / of + Z * Z / (4 * of * of))
    middle, scale = share + Z * Z / (2 * of), 1 + Z * Z / of
    # Rounded, for floats leave a trace of nothing: 1.7e-16.
    return max(0.0, round((middle - spread) / scale, 12)), min(1.0, round((middle + spread) / scale, 12))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
