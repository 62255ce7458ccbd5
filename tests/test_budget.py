from random import Random

from hypothesis import given
from hypothesis import strategies as st

from semcache.backends.backoff import CAP_S, pause_s
from semcache.backends.budget import Budget


def test_a_fifth_of_what_was_asked_may_be_sent_again() -> None:
    budget = Budget(0.2, least_per_s=0)
    for _ in range(100):
        budget.asked(now=0.0)
    assert sum(budget.take(now=0.1) for _ in range(100)) == 20
    assert budget.stats() == {"asked": 100, "taken": 20, "refused": 80}


def test_where_everything_fails_the_load_grows_by_the_share_and_no_more() -> None:
    budget = Budget(0.2, least_per_s=0)
    sent = 0
    for number in range(10_000):
        now = number / 100
        budget.asked(now)
        sent += 1 + budget.take(now) + budget.take(now)
    assert 1.19 <= sent / 10_000 <= 1.2


def test_a_request_now_and_then_can_be_repeated() -> None:
    budget = Budget(0.2, least_per_s=1.0, window_s=10.0)
    budget.asked(now=0.0)
    assert sum(budget.take(now=0.0) for _ in range(20)) == 10


def test_a_share_of_nothing_is_nothing() -> None:
    budget = Budget(0.0)
    budget.asked(now=0.0)
    assert not budget.take(now=0.0)


def test_what_was_asked_and_taken_is_forgotten_with_the_window() -> None:
    budget = Budget(0.5, least_per_s=0, window_s=10.0)
    for _ in range(10):
        budget.asked(now=0.0)
    assert sum(budget.take(now=1.0) for _ in range(9)) == 5
    assert not budget.take(now=9.0)
    for _ in range(2):
        budget.asked(now=11.0)
    assert [budget.take(now=11.5), budget.take(now=11.5)] == [True, False]


@given(
    share=st.floats(0.01, 1),
    events=st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=200),
)
def test_no_window_holds_more_than_its_share(share: float, events: list[tuple[float, bool]]) -> None:
    budget = Budget(share, least_per_s=0.5, window_s=10.0)
    now, asked, taken = 0.0, [], []
    for passed_s, is_ask in events:
        now += passed_s
        if is_ask:
            budget.asked(now)
            asked.append(now)
        elif budget.take(now):
            taken.append(now)
        # A slice counts until the last of it is ten seconds old, so a window may be taken for half a second longer.
        recent = sum(at > now - 9.5 for at in taken)
        assert recent <= 5 + share * sum(at > now - 10.5 for at in asked) + 1e-9


def test_pauses_double_and_are_anything_from_zero_to_a_cap() -> None:
    chance = Random(1)
    longest = [max(pause_s(attempt, 0.05, chance) for _ in range(2000)) for attempt in (1, 2, 3, 9, 4000)]
    for found, limit_s in zip(longest, (0.05, 0.1, 0.2, CAP_S, CAP_S), strict=True):
        assert 0.98 * limit_s < found <= limit_s
    assert min(pause_s(5, 0.05, chance) for _ in range(2000)) < 0.01
