"""What a reply says about itself: `Cache-Status` (RFC 9211) and `Server-Timing`, made from an Outcome; and what the
semcaches behind us have said in theirs.

Nothing else in the program writes these two. Parameters are built from enum members and numbers only, so no text of a
request can get into a header.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import floor
from typing import Any, NamedTuple

import http_sf

from semcache.types import FWD, Outcome, Reason, Tier, Verdict

# Made once: this runs for every reply, and a lookup costs a twentieth of putting the text together.
_FORWARDED = {reason: f"semcache; fwd={token}" for reason, token in FWD.items()}
_DETAIL = {reason: f"; detail={reason.value}" for reason in Reason}
_COLLAPSED = {reason: f"{forwarded}; collapsed" for reason, forwarded in _FORWARDED.items()}


def cache_status(outcome: Outcome) -> str:
    """Return our member of `Cache-Status`, to be put after those of the caches upstream. Empty: send none.

    Empty for what we refused ourselves: no cache, ours included, took part in a 401. Call it when the status line is
    ready to go out; `stored` is said only if it is true by then.
    """
    verdict, reason = outcome.verdict, outcome.reason
    if verdict is Verdict.HIT or verdict is Verdict.STALE:
        return f"semcache; hit; ttl={floor(outcome.ttl_left_s or 0)}; detail={_how_it_matched(outcome)}"
    if verdict is Verdict.REFUSED:
        return ""
    if reason is None:
        reason = Reason.NO_ENTRY if verdict is not Verdict.BYPASS else Reason.ENDPOINT
    if outcome.collapsed:
        return _COLLAPSED[reason]  # `fwd-status` belongs to the request that was forwarded
    status = "" if outcome.fwd_status is None else f"; fwd-status={outcome.fwd_status}"
    stored = "; stored" if outcome.stored else ""
    return f"{_FORWARDED[reason]}{status}{stored}{_DETAIL[reason]}"


def _how_it_matched(outcome: Outcome) -> str:
    if outcome.verdict is Verdict.STALE:
        return "stale"
    if outcome.tier is Tier.SEMANTIC and outcome.similarity is not None:
        return f"semantic/{outcome.similarity:.3f}"
    return "exact"


class Replayed(NamedTuple):
    """An upstream's answer that no model made now: a semcache behind us had it stored."""

    age_s: float
    is_exact: bool  # stored for the same question; else for one that meant the same, or past its ttl


def replayed_before(headers: Mapping[str, str]) -> Replayed | None:
    """What a semcache behind us says of an answer it had stored. None: nobody had, or nobody that says so.

    Kept here as new it would outlive its ttl, and one for another question would be taken for this one's own.
    `headers`: of the upstream's reply, case-insensitive.
    """
    written = [value for name, value in headers.items() if name.lower() == "cache-status"]
    if not written:
        return None
    try:
        members: Any = http_sf.parse(", ".join(written).encode("latin-1"), tltype="list")
        told = [parameters for name, parameters in members if str(name) == "semcache" and parameters.get("hit") is True]
    except (ValueError, TypeError, AttributeError):  # not a list of caches; some other program's
        return None
    if not told:
        return None
    age = headers.get("Age", "")
    is_exact = all(str(parameters.get("detail")) == Tier.EXACT for parameters in told)
    return Replayed(float(age) if age.isascii() and age.isdigit() and len(age) < 10 else 0.0, is_exact)


def server_timing(outcome: Outcome) -> str:
    """Return the phases so far, in the order they ended, in milliseconds: `embed;dur=1.9, fetch;dur=812`, or ""."""
    # Three digits tell enough. Outside these bounds they would be written with an exponent, which few parsers take.
    return ", ".join(
        [
            f"{phase};dur={ms:.3g}" if 0.001 <= ms < 999 else f"{phase};dur={max(ms, 0):.0f}"
            for phase, ms in outcome.phases_ms.items()
        ]
    )
