"""What replies say about themselves, read back by a structured-field parser that is not ours."""

from __future__ import annotations

import http_sf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from semcache.status_headers import Replayed, cache_status, replayed_before, server_timing
from semcache.types import FWD, Outcome, Reason, Tier, Verdict


def an_outcome(**fields: object) -> Outcome:
    return Outcome("request-1", 0.0, **fields)  # type: ignore[arg-type]


DESIGN = [
    (
        {"verdict": Verdict.HIT, "tier": Tier.SEMANTIC, "similarity": 0.964, "ttl_left_s": 3412.0},
        "semcache; hit; ttl=3412; detail=semantic/0.964",
    ),
    (
        {"verdict": Verdict.HIT, "tier": Tier.EXACT, "similarity": 1.0, "ttl_left_s": 86400.0},
        "semcache; hit; ttl=86400; detail=exact",
    ),
    (
        {"verdict": Verdict.MISS, "reason": Reason.NO_ENTRY, "fwd_status": 200, "stored": True},
        "semcache; fwd=miss; fwd-status=200; stored; detail=no-entry",
    ),
    (
        {"verdict": Verdict.MISS, "reason": Reason.GUARD_NUMBER, "fwd_status": 200},
        "semcache; fwd=miss; fwd-status=200; detail=guard-number",
    ),
    (
        {"verdict": Verdict.COALESCED, "reason": Reason.NO_ENTRY, "collapsed": True, "fwd_status": 200},
        "semcache; fwd=miss; collapsed",
    ),
    (
        {"verdict": Verdict.STALE, "tier": Tier.SEMANTIC, "similarity": 0.97, "ttl_left_s": -40.0},
        "semcache; hit; ttl=-40; detail=stale",
    ),
    ({"verdict": Verdict.BYPASS, "reason": Reason.ENDPOINT}, "semcache; fwd=bypass; detail=endpoint"),
]


@pytest.mark.parametrize("fields, header", DESIGN, ids=[header for _, header in DESIGN])
def test_headers_are_written_as_the_design_shows_them(fields: dict[str, object], header: str) -> None:
    assert cache_status(an_outcome(**fields)) == header


@pytest.mark.parametrize("verdict", [v for v in Verdict if v is not Verdict.REFUSED])
@pytest.mark.parametrize("reason", [None, *Reason])
def test_every_verdict_and_reason_makes_one_valid_list_member(verdict: Verdict, reason: Reason | None) -> None:
    outcome = an_outcome(verdict=verdict, reason=reason, fwd_status=200, ttl_left_s=12.7)
    (member,) = http_sf.parse(cache_status(outcome).encode(), tltype="list")
    name, parameters = member
    assert name == "semcache"
    assert ("hit" in parameters) != ("fwd" in parameters)
    if "fwd" in parameters and reason is not None:
        assert parameters["fwd"] == FWD[reason]
        assert parameters["detail"] == reason.value


def test_what_we_refused_ourselves_has_no_cache_status() -> None:
    assert cache_status(an_outcome(verdict=Verdict.REFUSED)) == ""


def test_freshness_is_rounded_towards_staleness() -> None:
    assert "ttl=0;" in cache_status(an_outcome(verdict=Verdict.HIT, tier=Tier.EXACT, ttl_left_s=0.9))
    assert "ttl=-1;" in cache_status(an_outcome(verdict=Verdict.STALE, tier=Tier.EXACT, ttl_left_s=-0.2))


def test_phases_are_told_in_order_and_in_milliseconds() -> None:
    timing = server_timing(an_outcome(phases_ms={"embed": 1.9, "search": 0.2, "fetch": 812.0}))
    assert timing == "embed;dur=1.9, search;dur=0.2, fetch;dur=812"


@pytest.mark.parametrize(
    "ms, shown",
    [
        (0.0, "0"),
        (-0.004, "0"),
        (0.00001, "0"),
        (0.0123, "0.0123"),
        (99.96, "100"),
        (998.9, "999"),
        (1234567.8, "1234568"),
    ],
)
def test_durations_are_never_negative_and_never_have_an_exponent(ms: float, shown: str) -> None:
    assert server_timing(an_outcome(phases_ms={"fetch": ms})) == f"fetch;dur={shown}"


def test_a_request_without_phases_has_an_empty_server_timing() -> None:
    assert server_timing(an_outcome()) == ""


def said(*lines: str, age: str | None = None) -> CIMultiDict[str]:
    fields = [("Cache-Status", line) for line in lines]
    return CIMultiDict([*fields, ("age", age)] if age is not None else fields)


EXACT = "semcache; hit; ttl=100; detail=exact"
FORWARDED = "semcache; fwd=miss; fwd-status=200; stored; detail=no-entry"


@pytest.mark.parametrize(
    "headers, expected",
    [
        (said(EXACT, age="3600"), Replayed(3600.0, True)),
        (said("semcache; hit; ttl=100; detail=semantic/0.950", age="7"), Replayed(7.0, False)),
        (said("semcache; hit; ttl=-4; detail=stale", age="90000"), Replayed(90000.0, False)),
        (said(f"{EXACT}, {FORWARDED}", age="5"), Replayed(5.0, True)),  # the last of three has it
        (said(EXACT, FORWARDED, age="5"), Replayed(5.0, True)),
        (said(FORWARDED), None),
        (said("semcache; fwd=miss; collapsed"), None),
        (said("ExampleCache; hit; ttl=30", age="5"), None),  # what its answers are to a question, nobody knows
        (said('"my, cache; semcache"; hit', FORWARDED), None),
        (said(), None),
    ],
)
def test_an_answer_that_a_semcache_behind_us_had_stored_is_known(
    headers: CIMultiDict[str], expected: Replayed | None
) -> None:
    assert replayed_before(headers) == expected


@pytest.mark.parametrize("age", ["", "-5", "1.5", "soon", "9" * 40, "\u0663"])
def test_an_age_that_is_none_is_taken_for_zero(age: str) -> None:
    assert replayed_before(said(EXACT, age=age)) == Replayed(0.0, True)


@given(st.text(max_size=40) | st.sampled_from(["semcache; hit; detail=;", "semcache;;hit", "(semcache);hit", "\x80"]))
def test_what_is_no_cache_status_says_nothing(text: str) -> None:
    found = replayed_before(said(text))
    assert found is None or "semcache" in text


@pytest.mark.parametrize(
    "fields",
    [
        {"verdict": Verdict.HIT, "tier": Tier.EXACT, "ttl_left_s": 10.0},
        {"verdict": Verdict.HIT, "tier": Tier.SEMANTIC, "similarity": 0.97, "ttl_left_s": 10.0},
        {"verdict": Verdict.STALE, "tier": Tier.EXACT, "ttl_left_s": -10.0},
    ],
)
def test_what_we_write_of_a_hit_is_read_as_one(fields: dict[str, object]) -> None:
    found = replayed_before(said(cache_status(an_outcome(**fields)), age="1"))
    assert found == Replayed(1.0, fields["tier"] is Tier.EXACT and fields["verdict"] is Verdict.HIT)
