"""Prices: what the list says of a model on a day, and what an answer comes to."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache import config
from semcache.errors import ConfigError
from semcache.types import Usage
from semcache.usage import NANO, Price, PriceList, load_prices
from semcache.usage.prices import MAX_TOKENS, counted, rates_of

MTOK = 1_000_000
PRICES = PriceList(
    prices=(
        Price(models=("small-20*", "small"), input=1.0, output=4.0),
        Price(models=("big*",), input=10.0, output=30.0, cached_input=1.0),
    )
)


def test_a_price_is_per_million_tokens_in_and_out() -> None:
    assert PRICES.cost_usd("small", Usage(MTOK, 2 * MTOK)) == pytest.approx(1 + 8)
    assert PRICES.cost_usd("small-2025-01-01", Usage(500_000, 0)) == pytest.approx(0.5)


def test_a_model_without_a_price_has_no_cost_rather_than_a_guess() -> None:
    assert PRICES.cost_usd("llama-3-8b", Usage(1, 1)) is None


def test_what_the_upstream_had_cached_of_a_prompt_costs_its_own_price_or_that_of_the_rest() -> None:
    assert PRICES.cost_usd("big", Usage(MTOK, 0, cached_tokens=MTOK // 2)) == pytest.approx(5 + 0.5)
    assert PRICES.cost_usd("small", Usage(MTOK, 0, cached_tokens=MTOK // 2)) == pytest.approx(1)


def test_a_backend_may_have_a_price_of_its_own() -> None:
    assert rates_of(config.Price(input=2, output=3, cached_input=0)).cost_nano(10, 10, 10) == 30_000


def test_the_smallest_prices_lose_nothing_to_rounding() -> None:
    rates = rates_of(Price(models=("x",), input=0.0125, output=0.000001))
    assert rates.cost_nano(2, 0, 0) == 25  # 12.5 nano-dollars each
    assert rates.cost_nano(0, 0, MTOK) == 1_000


@given(st.integers(), st.integers(), st.integers())
def test_figures_beyond_reason_never_become_money_beyond_it(prompt: int, completion: int, cached: int) -> None:
    cost = rates_of(PRICES.prices[1]).cost_nano(*counted(Usage(prompt, completion, cached)))
    assert 0 <= cost <= MAX_TOKENS * 40 * NANO // MTOK


# Days


CHANGING = PriceList.model_validate(
    {
        "prices": [
            {"models": ["m"], "input": 3, "output": 0, "from": "2027-01-01"},
            {"models": ["m"], "input": 1, "output": 0},
            {"models": ["m"], "input": 2, "output": 0, "from": "2026-06-01"},
        ]
    }
)


@pytest.mark.parametrize(
    "day, usd",
    [
        (date(2026, 5, 31), 1),
        (date(2026, 6, 1), 2),
        (date(2026, 12, 31), 2),
        (date(2027, 1, 1), 3),
        (date(2030, 1, 1), 3),
    ],
)
def test_the_newest_price_whose_day_has_come_counts(day: date, usd: float) -> None:
    price = CHANGING.find("m", day)
    assert price is not None and price.input == usd


def test_a_price_that_begins_tomorrow_leaves_todays_to_the_list_behind_it(tmp_path: Path) -> None:
    own = tmp_path / "prices.yaml"
    own.write_text("prices: [{models: [gpt-4o, gpt-4o-20*], input: 1, output: 1, from: 2099-01-01}]")
    prices = load_prices(own)
    found = [prices.find("gpt-4o", day) for day in (date(2026, 11, 1), date(2099, 1, 1))]
    assert [price and price.input for price in found] == [2.5, 1]


def test_a_newer_price_of_the_shipped_list_does_not_beat_an_operators_own() -> None:
    own = Price(models=("m",), input=7, output=7)
    assert PriceList(prices=(own,), after=CHANGING).find("m", date(2030, 1, 1)) == own


def test_a_change_that_would_never_count_is_refused_with_its_remedy(tmp_path: Path) -> None:
    own = tmp_path / "prices.yaml"
    own.write_text(
        "prices: [{models: [m-*], input: 1, output: 1}, {models: [m-1], input: 2, output: 2, from: 2027-01-01}]"
    )
    with pytest.raises(ConfigError, match=r"prices\.1: from 2027-01-01 would never count.*same `models`"):
        load_prices(own)


# The list that comes with semcache


@pytest.mark.parametrize(
    "model, input_usd",
    [
        ("gpt-4o", 2.50),
        ("gpt-4o-2024-08-06", 2.50),
        ("gpt-4o-mini", 0.15),
        ("gpt-4o-mini-2024-07-18", 0.15),
        ("claude-3-5-haiku-20241022", 0.80),
        ("claude-opus-4-5-20251101", 5.00),
        ("claude-opus-4-1-20250805", 15.00),
    ],
)
def test_a_shipped_price_belongs_to_its_model_and_not_to_a_longer_name(model: str, input_usd: float) -> None:
    price = load_prices().find(model)
    assert price is not None and price.input == input_usd


def test_every_shipped_price_says_when_it_was_looked_up() -> None:
    assert all(price.as_of for price in load_prices().prices)


@pytest.mark.parametrize("model", ["gpt-4o-audio-preview", "llama-3-8b", "gpt-4o-mini-tts", ""])
def test_a_shipped_price_is_not_stretched_to_models_it_was_not_meant_for(model: str) -> None:
    assert load_prices().find(model) is None


def test_an_operators_own_prices_come_first(tmp_path: Path) -> None:
    own = tmp_path / "prices.yaml"
    own.write_text(
        "prices:\n  - {models: [gpt-4o], input: 1, output: 2}\n  - {models: [llama-*], input: 0, output: 0}\n"
    )
    prices = load_prices(own)
    assert prices.cost_usd("gpt-4o", Usage(MTOK, MTOK)) == pytest.approx(3.0)
    assert prices.cost_usd("llama-3-8b", Usage(MTOK, MTOK)) == 0.0
    assert prices.cost_usd("gpt-4o-mini", Usage(MTOK, 0)) == pytest.approx(0.15)


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("prices: [{models: [a], input: -1, output: 0}]", "prices.0.input"),
        ("prices: [{models: [a], input: .inf, output: 0}]", "prices.0.input"),
        ("prices: [{models: [], input: 1, output: 0}]", "prices.0.models"),
        ("prices: [{models: [a], input: 1, output: 0, cached: 1}]", "prices.0.cached"),
        ("prices: {", "not valid YAML"),
        ("", "prices.yaml"),
    ],
)
def test_a_wrong_price_list_is_refused_by_name(tmp_path: Path, text: str, complaint: str) -> None:
    own = tmp_path / "prices.yaml"
    own.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        load_prices(own)


def test_a_price_list_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        load_prices(tmp_path / "nowhere.yaml")
