"""What the operator allows and the caller may ask. Stricter is granted, looser never."""

from dataclasses import replace

import pytest

from semcache.cache.policy import NOTHING_ASKED, Ruling, read_directives, rule, tighten
from semcache.config import Cache, Match
from semcache.errors import ClientError
from semcache.types import FWD, Ask, Reason, Traits

PATH = "/v1/chat/completions"
ASK = Ask("openai", "chat/completions", PATH, "m", "Where is the parcel?", b"{}", False, False, None, Traits(), b"")


def ruling(ask: Ask = ASK, cache: Cache = Cache(), match: Match = Match()) -> Ruling:
    return rule(ask, cache, match)


def asked(cache_control: str | None = None, semcache_control: str | None = None) -> Ruling:
    return tighten(ruling(), read_directives(cache_control, semcache_control))


@pytest.mark.parametrize(
    ("traits", "reason"),
    [
        (Traits(), None),
        (Traits(has_tools=True), Reason.TOOLS),
        (Traits(has_tools=True, has_tool_results=True), Reason.AGENT),
        (Traits(has_media=True), Reason.MEDIA),
        (Traits(choices=2), Reason.SAMPLING),
        (Traits(temperature=1.0), None),
        (Traits(temperature=1.1), Reason.SAMPLING),
    ],
)
def test_some_requests_are_left_only_the_exact_tier(traits: Traits, reason: Reason | None) -> None:
    assert ruling(replace(ASK, traits=traits)).exact_only is reason


def test_a_question_of_nothing_has_no_meaning_to_compare() -> None:
    assert ruling(replace(ASK, question="  ")).exact_only is Reason.EXACT_ONLY
    assert ruling(replace(ASK, question=None)).exact_only is Reason.EXACT_ONLY


def test_answers_to_requests_with_tools_are_kept_only_where_the_route_says_so() -> None:
    ask = replace(ASK, traits=Traits(has_tools=True))
    assert not ruling(ask).may_store
    assert not ruling(ask).may_coalesce
    assert ruling(ask, Cache(store_tools=True)).may_store


def test_what_a_vendors_own_tools_bring_is_never_kept() -> None:
    searches = replace(ASK, traits=Traits(has_tools=True, has_hosted_tools=True))
    ruled = ruling(searches, Cache(store_tools=True))
    assert (ruled.may_store, ruled.may_coalesce) == (False, False)


def test_what_reads_or_leaves_something_at_the_upstream_is_neither_looked_up_nor_kept() -> None:
    ruled = ruling(replace(ASK, traits=Traits(is_stateful=True)))
    assert (ruled.skip_lookup, ruled.may_store, ruled.may_coalesce) == (Reason.STATE, False, False)
    assert FWD[Reason.STATE] == "bypass"


def test_mode_off_takes_no_part() -> None:
    off = ruling(match=Match(mode="off"))
    assert (off.skip_lookup, off.may_store, off.may_coalesce) == (Reason.DISABLED, False, False)


def test_shadow_mode_looks_and_stores_and_never_serves() -> None:
    shadow = ruling(match=Match(mode="shadow"))
    assert (shadow.skip_lookup, shadow.may_serve, shadow.may_store) == (None, False, True)


def test_no_store_leaves_no_trace_and_no_cache_stores() -> None:
    assert (asked("no-store").skip_lookup, asked("no-store").may_store) == (Reason.NO_STORE, False)
    assert (asked("no-cache").skip_lookup, asked("no-cache").may_store) == (Reason.NO_CACHE, True)
    assert not asked("no-cache").may_coalesce, "the fetch in flight may be older than the wish"


@pytest.mark.parametrize(
    ("header", "field", "value"),
    [
        ("max-age=60", "max_age_s", 60.0),
        ("MAX-AGE=60, foo, bar=baz", "max_age_s", 60.0),
        ("max-age=soon", "max_age_s", 0.0),
        ("max-stale=5", "max_stale_s", 5.0),
        ("max-stale", "max_stale_s", None),
        ("only-if-cached", "only_if_cached", True),
    ],
)
def test_standard_directives(header: str, field: str, value: object) -> None:
    assert getattr(asked(header), field) == value


@pytest.mark.parametrize(
    ("wish", "granted"), [("similarity=0.95", 0.95), ("similarity=0.5", 0.90), ("similarity=1", 1.0)]
)
def test_a_caller_may_match_more_strictly_and_never_more_loosely(wish: str, granted: float) -> None:
    assert asked(None, wish).threshold == pytest.approx(granted)


@pytest.mark.parametrize(("wish", "granted"), [("ttl=60", 60.0), ("ttl=999999999", 86400.0), ("ttl=0", 0.0)])
def test_a_caller_may_shorten_the_ttl_and_never_lengthen_it(wish: str, granted: float) -> None:
    assert asked(None, wish).ttl_s == granted


def test_the_exact_tier_can_be_asked_for() -> None:
    assert asked(None, "tier=exact").exact_only is Reason.EXACT_ONLY
    assert asked(None, "tier=semantic").exact_only is None


@pytest.mark.parametrize(
    ("wish", "pace"),
    [
        ("replay=instant", "instant"),
        ("replay=recorded", "recorded"),
        ("replay=60", 60.0),
        ("replay=2.5", 2.5),
        ("ttl=5, replay=60", 60.0),
        ("ttl=5", None),
    ],
)
def test_a_caller_may_choose_the_pace_of_a_replay(wish: str, pace: object) -> None:
    assert read_directives(None, wish).replay == pace


@pytest.mark.parametrize(
    "wish",
    ["similarity=2", "similarity=high", "ttl=-1", "tier=fuzzy", "namespace=", "namespace=(a b)", "colour=blue", "a=b=c",
     "replay", "replay=slow", "replay=0", "replay=-1", "replay=?0", "replay=()",
     "similarity", "namespace=\"a b\"", "\u00e9"],
)  # fmt: skip
def test_a_malformed_wish_is_a_clear_400(wish: str) -> None:
    with pytest.raises(ClientError, match="Semcache-Control") as caught:
        read_directives(None, wish)
    assert caught.value.status == 400


def test_a_request_without_wishes_costs_nothing() -> None:
    assert read_directives(None, None) is NOTHING_ASKED
    unchanged = ruling()
    assert tighten(unchanged, NOTHING_ASKED) is unchanged


def test_a_question_about_now_is_answered_by_its_equal_alone_and_for_a_short_time() -> None:
    ruled = ruling(replace(ASK, question="What is the weather today?"))
    assert ruled.exact_only is Reason.TIME_BOUND
    assert (ruled.ttl_s, ruled.grace_s) == (600, 600)
    assert ruling(replace(ASK, question="What is the weather today?"), Cache(ttl=60, grace=30)).ttl_s == 60


def test_a_route_may_serve_questions_about_now_as_any_other() -> None:
    ruled = ruling(replace(ASK, question="What is the weather today?"), match=Match(time_bound="serve"))
    assert (ruled.exact_only, ruled.ttl_s) == (None, Cache().ttl)
