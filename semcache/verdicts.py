"""The client's side of Cache-Status: what the headers of a reply say became of a request.

Read by the demo and the load tests, which see the proxy as any client does: over HTTP, and by what it says of itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from semcache.types import Tier, Verdict

_TIERS = {"exact": Tier.EXACT, "semantic": Tier.SEMANTIC}  # a stale hit does not say how it matched


class Seen(NamedTuple):
    """What a reply's headers tell. `detail` is the reason as written: "no-entry", "guard-number", ..."""

    verdict: Verdict
    tier: Tier | None = None  # of a hit
    similarity: float | None = None  # of a semantic hit, where it is said
    detail: str = ""
    entry: str | None = None  # the stored entry that answered

    @property
    def is_from_store(self) -> bool:
        return self.verdict in (Verdict.HIT, Verdict.STALE)


def read_verdict(status: int, headers: Mapping[str, str]) -> Seen:
    """Read the member `semcache` of Cache-Status, the last one. `headers` must be case-insensitive.

    A reply without that member is REFUSED when it is an error, as our own are, and else BYPASS: no cache took part.
    """
    member = headers.get("Cache-Status", "").rsplit(",", 1)[-1]
    name, *rest = (part.strip() for part in member.split(";"))
    if name != "semcache":
        return Seen(Verdict.REFUSED if status >= 400 else Verdict.BYPASS)
    parameters = {key: value for key, _, value in (part.partition("=") for part in rest)}
    kind, _, similarity = parameters.get("detail", "").partition("/")
    entry = headers.get("Semcache-Entry")
    if "hit" in parameters:
        verdict = Verdict.STALE if parameters.get("ttl", "").startswith("-") or kind == "stale" else Verdict.HIT
        tier = _TIERS.get(kind)
        return Seen(verdict, tier, float(similarity) if similarity else None, kind, entry)
    if "collapsed" in parameters and parameters["collapsed"] != "?0":
        return Seen(Verdict.COALESCED, detail=kind)
    return Seen(Verdict.BYPASS if parameters.get("fwd") == "bypass" else Verdict.MISS, detail=kind)
