"""Tokens and money: who is billed for what, and what the price list says."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from semcache import config
from semcache.types import Outcome, Usage, Verdict
from semcache.usage import MAX_MODELS, OTHER, Fetched, Ledger, Price, PriceList, Purpose, Source, Spent, prices_of
from semcache.usage.ledger import MAX_NAMES, MAX_WAITING, Facets
from tests.fakes import Clock

PRICES = PriceList(
    prices=(
        Price(models=("small-20*", "small"), input=1.0, output=4.0),
        Price(models=("big*",), input=10.0, output=30.0),
    )
)
MTOK = 1_000_000


def answered(verdict: Verdict, model: str = "small", prompt: int = MTOK, completion: int = 2 * MTOK) -> Outcome:
    return Outcome("r", 0.0, verdict=verdict, model=model, usage=Usage(prompt, completion))


def test_misses_and_bypasses_are_billed_and_all_else_is_avoided() -> None:
    ledger = Ledger(PRICES)
    for verdict in Verdict:
        ledger.observe(answered(verdict))
    assert {source: spent.requests for (_, source), spent in ledger.totals.items()} == {
        Source.FETCHED: 2,
        Source.REPLAYED: 2,
        Source.SHARED: 1,
    }
    stats = ledger.stats()
    assert stats["billed_usd"] == pytest.approx(2 * 9)
    assert stats["avoided_usd"] == pytest.approx(3 * 9)
    assert (stats["billed_prompt_tokens"], stats["avoided_completion_tokens"]) == (2 * MTOK, 6 * MTOK)


def test_a_request_without_known_tokens_is_not_counted() -> None:
    ledger = Ledger(PRICES)
    ledger.observe(Outcome("r", 0.0, verdict=Verdict.MISS, model="small"))
    assert ledger.totals == {}


def test_tokens_of_models_without_a_price_are_counted_and_named_as_such() -> None:
    ledger = Ledger(PRICES)
    ledger.observe(answered(Verdict.HIT, model="llama-3-8b"))
    stats = ledger.stats()
    assert (stats["avoided_prompt_tokens"], stats["avoided_usd"], stats["unpriced_requests"]) == (MTOK, 0, 1)


def test_more_models_than_a_label_may_have_are_counted_together_at_their_own_prices() -> None:
    ledger = Ledger(PRICES)
    for number in range(MAX_MODELS + 50):
        ledger.observe(answered(Verdict.MISS, model=f"big-{number}", prompt=MTOK, completion=0))
    assert len({model for model, _ in ledger.totals}) == MAX_MODELS + 1
    other = ledger.totals[OTHER, Source.FETCHED]
    assert (other.requests, other.usd) == (50, 500.0)


def test_a_name_too_long_for_a_label_is_not_one() -> None:
    ledger = Ledger(PRICES)
    ledger.observe(answered(Verdict.MISS, model="big" + "x" * 1000))
    assert set(ledger.totals) == {(OTHER, Source.FETCHED)}


# Billed by fetches, avoided by answers


def a_ledger(**more: Any) -> tuple[Ledger, Clock]:
    clock = Clock(datetime(2026, 11, 20, 10, 0, tzinfo=UTC).timestamp())
    return Ledger(PRICES, bills_by_fetch=True, clock=clock, **more), clock


def fetched(purpose: Purpose = Purpose.REQUEST, model: str = "small", **more: Any) -> Fetched:
    return Fetched("shop", "k1", model, "gpu-1", "eu", Usage(MTOK, 0), purpose, **more)


def rows_of(ledger: Ledger) -> dict[Facets, Spent]:
    return {facets: spent for _, rows in ledger.take() for facets, spent in rows.items()}


def test_a_burst_of_equal_questions_is_billed_once_and_avoided_for_all_the_others() -> None:
    ledger, _ = a_ledger()
    ledger.observe(answered(Verdict.MISS))
    for _ in range(49):
        ledger.observe(answered(Verdict.COALESCED))
    ledger.fetched(fetched()._replace(usage=Usage(MTOK, 2 * MTOK)))
    stats = ledger.stats()
    assert (stats["billed_usd"], stats["avoided_usd"]) == (9, 49 * 9)


def test_a_fetch_that_nobody_waited_for_is_billed_all_the_same() -> None:
    ledger, _ = a_ledger()
    ledger.observe(answered(Verdict.STALE, prompt=MTOK, completion=0))
    assert ledger.fetched(fetched(Purpose.REFRESH)) == 1_000_000_000
    stats = ledger.stats()
    assert (stats["billed_usd"], stats["avoided_usd"], stats["own_usd"], stats["saved_usd"]) == (1, 1, 1, 0)


@pytest.mark.parametrize(
    "purpose, is_own",
    [
        (Purpose.REQUEST, False),
        (Purpose.HEDGE, False),  # the price of speed, cache or not
        (Purpose.SHADOW, False),  # forwarded as without a cache
        (Purpose.REFRESH, True),
        (Purpose.EXPLORE, True),
        (Purpose.JUDGE, True),
        (Purpose.EMBEDDING, True),
    ],
)
def test_what_the_cache_asked_for_itself_is_its_own_cost(purpose: Purpose, is_own: bool) -> None:
    ledger, _ = a_ledger()
    ledger.fetched(fetched(purpose))
    stats = ledger.stats()
    assert (stats["billed_usd"], stats["own_usd"], stats["saved_usd"]) == (1, float(is_own), -float(is_own))


def test_the_embedders_time_is_the_caches_own_cost() -> None:
    seconds = Clock(0)
    ledger, _ = a_ledger(embedder_seconds=seconds, usd_per_cpu_hour=0.04)
    nano = []
    for step in (1, 0, 3600):
        seconds.advance(step)
        nano.append(sum(spent.nano_usd for spent in rows_of(ledger).values()))
    assert nano == [11_111, 0, 40_011_111 - 11_111]
    assert ledger.stats()["own_usd"] == pytest.approx(0.040011111)


def test_a_backends_own_price_is_what_it_bills_and_what_its_replays_avoid() -> None:
    ledger, _ = a_ledger()
    own = config.Price(input=0.5, output=0)
    ledger.observe(answered(Verdict.HIT, model="llama", completion=0))
    assert ledger.fetched(fetched(model="llama", price=own)) == 500_000_000
    ledger.observe(answered(Verdict.HIT, model="llama", completion=0))
    stats = ledger.stats()
    assert (stats["avoided_usd"], stats["unpriced_requests"]) == (0.5, 1)  # the first came before anything was known


def test_a_replay_avoids_the_price_of_a_backend_that_names_its_model_before_anything_was_fetched() -> None:
    pools = config.build(
        {
            "pools": {
                "gpu": {
                    "backends": [
                        {"url": "http://a/v1", "models": ["llama*"], "price": {"input": 0.5, "output": 0}},
                        {"url": "http://b/v1", "price": {"input": 9, "output": 9}},  # of which models nobody says
                    ]
                }
            }
        }
    ).pools
    ledger, _ = a_ledger(backend_prices=prices_of(pools))
    for model in ("llama", "small"):
        ledger.observe(answered(Verdict.HIT, model=model, completion=0))
    assert ledger.stats()["avoided_usd"] == 0.5 + 1


def test_prices_of_a_reload_count_from_the_next_request_on() -> None:
    ledger, _ = a_ledger()
    costs = [ledger.fetched(fetched())]
    ledger.adopt(PriceList(prices=(Price(models=("small",), input=3, output=0),)), PriceList(prices=()))
    costs.append(ledger.fetched(fetched()))
    assert costs == [1_000_000_000, 3_000_000_000]


def test_a_price_change_counts_from_its_day() -> None:
    prices = PriceList(
        prices=(
            Price(models=("m",), input=1, output=0),
            Price.model_validate({"models": ["m"], "input": 2, "output": 0, "from": "2026-11-21"}),
        )
    )
    clock = Clock(datetime(2026, 11, 20, 23, 59, 59, tzinfo=UTC).timestamp())
    ledger = Ledger(prices, bills_by_fetch=True, clock=clock)
    assert ledger.fetched(fetched(model="m")) == 1_000_000_000
    clock.advance(1)
    assert ledger.fetched(fetched(model="m")) == 2_000_000_000


def test_estimated_figures_are_marked() -> None:
    ledger, _ = a_ledger()
    ledger.fetched(fetched()._replace(usage=Usage(10, 10, is_estimated=True)))
    ledger.fetched(fetched())
    assert ledger.stats()["estimated_requests"] == 1


# Rows for the file


def test_rows_tell_minute_tenant_key_model_backend_region_source_and_purpose_apart() -> None:
    ledger, clock = a_ledger()
    outcome = answered(Verdict.MISS)
    outcome.tenant, outcome.key, outcome.backend, outcome.region = "shop", "k1", "gpu-1", "eu"
    ledger.observe(outcome)
    ledger.fetched(fetched(Purpose.EXPLORE))
    clock.advance(60)
    ledger.observe(outcome)
    (first, rows), (second, later) = ledger.take()
    assert second - first == 60
    assert {(facets.source, facets.purpose) for facets in rows} == {
        (Source.FORWARDED, Purpose.REQUEST),
        (Source.FETCHED, Purpose.EXPLORE),
    }
    assert all(facets[:5] == ("shop", "k1", "small", "gpu-1", "eu") for facets in (*rows, *later))
    assert [(spent.requests, spent.prompt_tokens) for spent in later.values()] == [(1, 0)]  # its tokens: the fetch's
    assert ledger.take() == []


def test_what_could_not_be_written_comes_again_and_too_much_of_it_grows_coarse_but_loses_nothing() -> None:
    ledger, clock = a_ledger()
    for _ in range(3 * MAX_WAITING):
        ledger.fetched(fetched())
        clock.advance(60)
        ledger.give_back(ledger.take())
    minutes = ledger.take()
    assert len(minutes) == MAX_WAITING
    assert sum(spent.requests for _, rows in minutes for spent in rows.values()) == 3 * MAX_WAITING


def test_a_clock_that_is_set_back_opens_an_earlier_minute() -> None:
    ledger, clock = a_ledger()
    for step in (0, -7200, 7200):
        clock.advance(step)
        ledger.fetched(fetched())
    starts = [start for start, _ in ledger.take()]
    assert [start - starts[0] for start in starts] == [0, -7200, 0]


def test_callers_who_make_up_names_fill_no_list() -> None:
    ledger, _ = a_ledger()
    for number in range(MAX_NAMES + 10):
        outcome = Outcome("r", 0.0, verdict=Verdict.MISS, model=f"no-such-{number}", status=404, tenant="shop")
        ledger.observe(outcome)
    assert {facets.model for facets in rows_of(ledger)} == {OTHER}
    ledger.observe(answered(Verdict.HIT, model="small"))
    assert {facets.model for facets in rows_of(ledger)} == {"small"}


def test_more_tenants_than_are_told_apart_are_counted_together() -> None:
    ledger, _ = a_ledger()
    for number in range(MAX_NAMES + 10):
        ledger.fetched(fetched()._replace(tenant=f"key-{number}"))
    by_tenant = {facets.tenant: spent.requests for facets, spent in rows_of(ledger).items()}
    assert len(by_tenant) == MAX_NAMES + 1 and by_tenant[OTHER] == 10
