"""Ranking: all backends, best first, by chance where they are alike, and nothing that is read is changed."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field
from random import Random
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from semcache.backends.balance import Asked, Balance, expected_s, queue, rank
from semcache.backends.prefix import PrefixMap
from semcache.config import Pool, Prefix

BALANCES = get_args(Balance)
NEVER_EXPLORE = Prefix(explore=0)
CHUNKS = tuple(range(100, 110))
PLAIN = Asked(100)


@dataclass(eq=False)
class Backend:
    name: str = ""
    in_flight: int = 0
    tokens: int = 0
    weight: float = 1.0
    allowed: float = 1.0
    seconds: float | None = 0.5
    knows: int = 0  # leading chunks of CHUNKS
    prefixes: PrefixMap = field(init=False)

    def __post_init__(self) -> None:
        self.prefixes = PrefixMap(1000)
        self.prefixes.insert(CHUNKS[: self.knows])

    def share(self, now: float) -> float:
        return self.allowed

    def ttft_s(self, now: float) -> float | None:
        return self.seconds


BACKENDS = st.builds(
    Backend,
    in_flight=st.integers(0, 50),
    tokens=st.integers(0, 10_000),
    weight=st.floats(0.1, 10),
    allowed=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    seconds=st.none() | st.floats(0, 10),
    knows=st.integers(0, len(CHUNKS)),
)


def ranked(
    balance: Balance, loads: list[Backend], asked: Asked = PLAIN, prefix: Prefix = NEVER_EXPLORE, seed: int = 1
) -> list[Backend]:
    return list(rank(balance, loads, asked, prefix, 0.0, Random(seed)))


def firsts(
    balance: Balance, loads: list[Backend], asked: Asked = PLAIN, prefix: Prefix = NEVER_EXPLORE
) -> Counter[str]:
    """Whom 2,000 requests that change nothing would go to."""
    chance = Random(2)
    return Counter(next(rank(balance, loads, asked, prefix, 0.0, chance)).name for _ in range(2000))


def test_every_balance_of_the_settings_is_ranked() -> None:
    assert Pool.model_fields["balance"].annotation == Balance


@pytest.mark.parametrize("balance", BALANCES)
@given(loads=st.lists(BACKENDS, max_size=8), seed=st.integers(), chunks=st.sampled_from([(), CHUNKS]))
def test_all_backends_are_ranked_once_and_none_is_changed(
    balance: Balance, loads: list[Backend], seed: int, chunks: tuple[int, ...]
) -> None:
    before = deepcopy([vars(load) | {"prefixes": load.prefixes.match(CHUNKS)} for load in loads])
    order = ranked(balance, loads, Asked(10, chunks), Prefix(explore=0.5), seed)
    assert Counter(map(id, order)) == Counter(map(id, loads))
    assert [vars(load) | {"prefixes": load.prefixes.match(CHUNKS)} for load in loads] == before


@pytest.mark.parametrize("balance", BALANCES)
@given(loads=st.lists(BACKENDS, max_size=8), seed=st.integers())
@example(loads=[Backend(allowed=0, seconds=0), Backend()], seed=1)  # no time at all, times no end of a queue
def test_a_backend_that_may_get_nothing_yet_comes_after_all_that_may(
    balance: Balance, loads: list[Backend], seed: int
) -> None:
    shares = [load.allowed > 0 for load in ranked(balance, loads, Asked(10, CHUNKS), Prefix(), seed)]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("balance", BALANCES)
def test_backends_that_are_alike_are_taken_by_chance(balance: Balance) -> None:
    counts = firsts(balance, [Backend(name) for name in "abcd"], Asked(100, CHUNKS))
    assert len(counts) == 4 and min(counts.values()) > 400


@pytest.mark.parametrize("balance", BALANCES)
def test_a_backend_that_starts_slowly_gets_less(balance: Balance) -> None:
    busy = {"in_flight": 4, "tokens": 4000}
    counts = firsts(balance, [Backend("old", **busy), Backend("new", allowed=0.1, **busy)], Asked(100, CHUNKS))
    assert counts["new"] < 400


# least-load


def test_the_shortest_queue_is_first_and_the_longest_last() -> None:
    loads = [Backend("b", in_flight=2), Backend("c", in_flight=3), Backend("a", in_flight=1)]
    assert [load.name for load in ranked("least-load", loads)] == ["a", "b", "c"]


def test_prompts_that_wait_to_be_read_count_too() -> None:
    loads = [Backend("long", in_flight=2, tokens=60_000), Backend("short", in_flight=3, tokens=300)]
    assert ranked("least-load", loads)[0].name == "short"
    assert queue(2, 60_000) > queue(3, 300)


def test_twice_the_weight_bears_twice_the_load() -> None:
    assert (
        ranked("least-load", [Backend("light", in_flight=3), Backend("heavy", in_flight=6, weight=2)])[0].name
        == "heavy"
    )
    assert (
        ranked("least-load", [Backend("light", in_flight=3), Backend("heavy", in_flight=9, weight=2)])[0].name
        == "light"
    )
    assert ranked("least-load", [Backend("light"), Backend("heavy", weight=2)])[0].name == "heavy"


# weighted


def test_requests_are_drawn_in_proportion_to_the_weights() -> None:
    counts = firsts("weighted", [Backend("a", weight=1), Backend("b", weight=3, in_flight=99), Backend("c", weight=6)])
    assert counts["a"] == pytest.approx(200, abs=60)
    assert counts["b"] == pytest.approx(600, abs=90)
    assert counts["c"] == pytest.approx(1200, abs=90)


# latency


def test_of_two_the_one_expected_to_answer_first_is_taken() -> None:
    slow_but_idle = Backend("slow", seconds=4.0)
    assert ranked("latency", [slow_but_idle, Backend("quick", seconds=0.2, in_flight=5)])[0].name == "quick"
    assert ranked("latency", [slow_but_idle, Backend("quick", seconds=0.2, in_flight=50)])[0].name == "slow"


def test_of_many_the_better_half_gets_three_quarters() -> None:
    loads = [Backend("quick", seconds=0.1) for _ in range(50)] + [Backend("slow", seconds=0.4) for _ in range(50)]
    assert firsts("latency", loads)["quick"] == pytest.approx(1500, abs=100)


def test_a_backend_nobody_has_tried_is_tried_once() -> None:
    known = Backend("known", seconds=0.1)
    assert ranked("latency", [known, Backend("new", seconds=None)])[0].name == "new"
    assert ranked("latency", [known, Backend("new", seconds=None, in_flight=1)])[0].name == "known"


def test_a_burst_at_the_start_is_spread_over_backends_nobody_knows() -> None:
    loads = [Backend("one", seconds=None, in_flight=3), Backend("other", seconds=None, in_flight=2)]
    assert ranked("latency", loads)[0].name == "other"


def test_the_first_token_is_expected_after_the_queue_and_the_prompt() -> None:
    load = Backend(seconds=0.5, in_flight=1, tokens=2000)
    assert expected_s(load, Asked(4000), 0.0) == pytest.approx(0.5 * (2 + 6))
    assert expected_s(Backend(seconds=None), Asked(4000), 0.0) is None


# prefix


def test_the_longest_match_is_first() -> None:
    loads = [Backend("none"), Backend("all", knows=10, in_flight=3), Backend("half", knows=5)]
    assert [load.name for load in ranked("prefix", loads, Asked(100, CHUNKS))] == ["all", "half", "none"]


def test_of_equal_matches_a_much_lighter_load_is_first() -> None:
    loads = [Backend("busy", knows=5, in_flight=20), Backend("idle", knows=5, in_flight=1), Backend("none")]
    assert ranked("prefix", loads, Asked(100, CHUNKS))[0].name == "idle"


def test_what_two_backends_know_is_asked_of_one_of_them_while_their_loads_are_alike() -> None:
    """Asked of both in turn, each would keep a copy, in the place of what only one of them has."""
    loads = [Backend("one", knows=5, in_flight=3), Backend("two", knows=5, in_flight=3)]
    first = ranked("prefix", loads, Asked(100, CHUNKS))[0]
    for in_flight in range(7):
        first.in_flight = in_flight
        assert ranked("prefix", loads, Asked(100, CHUNKS), seed=in_flight)[0] is first


def test_what_nobody_knows_goes_where_the_fewest_are_remembered() -> None:
    loads = [Backend("full", knows=10), Backend("roomy", knows=2)]
    assert ranked("prefix", loads, Asked(100, (7, 8, 9)))[0].name == "roomy"


@pytest.mark.parametrize("chunks", [(), (7, 8, 9)], ids=["short", "unknown"])
def test_a_prompt_that_no_backend_knows_goes_by_load(chunks: tuple[int, ...]) -> None:
    loads = [Backend("busy", knows=5, in_flight=3), Backend("idle", in_flight=1)]
    assert ranked("prefix", loads, Asked(100, chunks))[0].name == "idle"


@pytest.mark.parametrize(
    "here, least, escapes",
    [
        (8, 0, False),  # at the absolute limit
        (9, 0, True),  # over both: any number is more than 1.5 times nothing
        (29, 20, False),  # over the absolute limit alone
        (31, 20, True),  # over both
        (14, 8, False),  # over the ratio alone
    ],
)
def test_the_best_match_is_left_when_it_has_too_much_by_both_limits(here: int, least: int, escapes: bool) -> None:
    settings = Prefix(imbalance=8, imbalance_ratio=1.5, explore=0)
    loads = [Backend("match", knows=10, in_flight=here), Backend("idle", in_flight=least)]
    assert (ranked("prefix", loads, Asked(100, CHUNKS), settings)[0].name == "idle") is escapes


def test_the_next_best_match_is_tried_before_one_that_knows_nothing() -> None:
    loads = [Backend("full", knows=10, in_flight=50), Backend("half", knows=5, in_flight=5), Backend("idle")]
    assert [load.name for load in ranked("prefix", loads, Asked(100, CHUNKS))] == ["half", "idle", "full"]


def test_the_limits_are_those_of_the_weight() -> None:
    loads = [Backend("match", knows=10, in_flight=25, weight=4), Backend("idle", in_flight=5)]
    assert ranked("prefix", loads, Asked(100, CHUNKS))[0].name == "match", "5 for each unit of weight would be 20"


def test_one_in_a_hundred_goes_by_load_alone() -> None:
    loads = [Backend("match", knows=10, in_flight=3), Backend("idle")]
    assert 5 <= firsts("prefix", loads, Asked(100, CHUNKS), Prefix(explore=0.01))["idle"] <= 45


@given(loads=st.lists(BACKENDS, min_size=1, max_size=8), imbalance=st.integers(0, 20), ratio=st.floats(1, 4))
def test_nobody_who_has_too_much_is_asked_before_the_least_loaded(
    loads: list[Backend], imbalance: int, ratio: float
) -> None:
    for load in loads:
        load.weight, load.allowed = 1.0, 1.0
    settings = Prefix(imbalance=imbalance, imbalance_ratio=ratio, explore=0)
    least = min(load.in_flight for load in loads)
    first = ranked("prefix", loads, Asked(100, CHUNKS), settings)[0]
    assert first.in_flight <= least + imbalance or first.in_flight <= least * ratio
