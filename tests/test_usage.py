"""Tokens and money: who is billed for what, and what the price list says."""

from __future__ import annotations

from pathlib import Path

import pytest

from semcache.errors import ConfigError
from semcache.types import Outcome, Usage, Verdict
from semcache.usage import MAX_MODELS, OTHER, Ledger, Price, PriceList, Source, load_prices

PRICES = PriceList(
    prices=(
        Price(models=("small-20*", "small"), input=1.0, output=4.0),
        Price(models=("big*",), input=10.0, output=30.0),
    )
)
MTOK = 1_000_000


def answered(verdict: Verdict, model: str = "small", prompt: int = MTOK, completion: int = 2 * MTOK) -> Outcome:
    return Outcome("r", 0.0, verdict=verdict, model=model, usage=Usage(prompt, completion))


def test_a_price_is_per_million_tokens_in_and_out() -> None:
    assert PRICES.cost_usd("small", Usage(MTOK, 2 * MTOK)) == pytest.approx(1 + 8)
    assert PRICES.cost_usd("small-2025-01-01", Usage(500_000, 0)) == pytest.approx(0.5)


def test_a_model_without_a_price_has_no_cost_rather_than_a_guess() -> None:
    assert PRICES.cost_usd("llama-3-8b", Usage(1, 1)) is None


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
    assert (other.requests, other.usd) == (50, pytest.approx(500.0))


def test_a_name_too_long_for_a_label_is_not_one() -> None:
    ledger = Ledger(PRICES)
    ledger.observe(answered(Verdict.MISS, model="big" + "x" * 1000))
    assert set(ledger.totals) == {(OTHER, Source.FETCHED)}


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
