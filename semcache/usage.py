"""Tokens and money: what was paid for, and what the cache spared.

A request is counted by who produced its answer. *Fetched*: a backend, for this request: billed. *Replayed*: the store.
*Shared*: another request's fetch. The last two are what was avoided. Money is tokens times a price list; a model that
is not on the list counts its tokens and no money, so the figures are never guesses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from semcache.errors import ConfigError
from semcache.types import Outcome, Usage, Verdict

MAX_MODELS = 100  # told apart in totals; the rest together are OTHER: a label must have few values
MAX_LABEL = 100  # characters
OTHER = "other"


class Source(StrEnum):
    """Who produced the answer whose tokens are counted."""

    FETCHED = "fetched"  # a backend: these tokens are billed
    REPLAYED = "replayed"  # the store
    SHARED = "shared"  # another request's fetch


SOURCE: Mapping[Verdict, Source] = {
    Verdict.MISS: Source.FETCHED,
    Verdict.BYPASS: Source.FETCHED,
    Verdict.HIT: Source.REPLAYED,
    Verdict.STALE: Source.REPLAYED,
    Verdict.COALESCED: Source.SHARED,
}

UsdPerMtok = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Price(BaseModel):
    """US dollars per million tokens, for every model that one of the globs fits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[str, ...] = Field(min_length=1)
    input: UsdPerMtok
    output: UsdPerMtok
    as_of: str = ""  # when somebody last looked


class PriceList(BaseModel):
    """Prices in the order they are tried: the first that fits a model's name counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prices: tuple[Price, ...]

    def find(self, model: str) -> Price | None:
        return next((price for price in self.prices if any(fnmatchcase(model, glob) for glob in price.models)), None)

    def cost_usd(self, model: str, usage: Usage) -> float | None:
        """Return the price of an answer in US dollars; None: this model has no price here."""
        price = self.find(model)
        return None if price is None else _cost_usd(price, usage)


def load_prices(own: Path | None = None) -> PriceList:
    """Read the list that comes with semcache, with the operator's `own` prices tried before it. Raises ConfigError."""
    shipped = files("semcache").joinpath("prices.yaml")
    listed = _read(shipped.read_text(encoding="utf-8"), "semcache/prices.yaml")
    if own is None:
        return listed
    try:
        text = own.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{own}: cannot be read: {exc}") from exc
    return PriceList(prices=_read(text, str(own)).prices + listed.prices)


def _read(text: str, name: str) -> PriceList:
    try:
        return PriceList.model_validate(YAML(typ="safe", pure=True).load(text))
    except YAMLError as exc:
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(exc).split())}") from exc
    except ValidationError as exc:
        lines = [f"{name}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors(include_url=False)]
        raise ConfigError("\n".join(lines)) from exc


def _cost_usd(price: Price, usage: Usage) -> float:
    return (usage.prompt_tokens * price.input + usage.completion_tokens * price.output) / 1e6


@dataclass(slots=True)
class Spent:
    """Running totals since the start."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    unpriced: int = 0  # requests whose model has no price: their money is missing in `usd`


@dataclass(frozen=True, slots=True)
class _Account:
    """Where the tokens of one model and one verdict are counted, and at what price."""

    spent: Spent
    price: Price | None

    def add(self, usage: Usage) -> None:
        spent = self.spent
        spent.requests += 1
        spent.prompt_tokens += usage.prompt_tokens
        spent.completion_tokens += usage.completion_tokens
        if self.price is None:
            spent.unpriced += 1
        else:
            spent.usd += _cost_usd(self.price, usage)


class Ledger:
    """Adds up what each answered request cost, or would have. Fed on the event loop, read by metrics and reports."""

    def __init__(self, prices: PriceList) -> None:
        self._prices = prices
        self._models: set[str] = set()
        self._accounts: dict[tuple[str, Verdict], _Account] = {}  # what `_open` found before
        # By model, of which there are at most MAX_MODELS and OTHER, and by Source.
        self.totals: dict[tuple[str, str], Spent] = {}

    def observe(self, outcome: Outcome) -> None:
        """Count a request, if tokens are known: without an upstream's word there is nothing to count.

        Fetches that no request waited for (refreshes of stale answers) have no outcome, and are not in the totals.
        """
        if outcome.usage is None or outcome.verdict not in SOURCE:
            return
        account = self._accounts.get((outcome.model, outcome.verdict))
        (account or self._open(outcome.model, outcome.verdict)).add(outcome.usage)

    def _open(self, model: str, verdict: Verdict) -> _Account:
        total = (self._label(model), SOURCE[verdict])
        account = _Account(self.totals.setdefault(total, Spent()), self._prices.find(model))
        if total[0] != OTHER:  # so the accounts are as few as the models
            self._accounts[model, verdict] = account
        return account

    def _label(self, model: str) -> str:
        """The model's name, bounded. Only names that an upstream has answered get here, so nobody can fill the list."""
        if model in self._models:
            return model
        if len(self._models) < MAX_MODELS and len(model) <= MAX_LABEL:
            self._models.add(model)
            return model
        return OTHER

    def stats(self) -> dict[str, float]:
        """Totals over all models."""
        billed = _sum([spent for (_, source), spent in self.totals.items() if source == Source.FETCHED])
        avoided = _sum([spent for (_, source), spent in self.totals.items() if source != Source.FETCHED])
        return {
            "billed_prompt_tokens": billed.prompt_tokens,
            "billed_completion_tokens": billed.completion_tokens,
            "billed_usd": billed.usd,
            "avoided_prompt_tokens": avoided.prompt_tokens,
            "avoided_completion_tokens": avoided.completion_tokens,
            "avoided_usd": avoided.usd,
            "unpriced_requests": billed.unpriced + avoided.unpriced,
        }


def _sum(parts: Sequence[Spent]) -> Spent:
    return Spent(
        sum(part.requests for part in parts),
        sum(part.prompt_tokens for part in parts),
        sum(part.completion_tokens for part in parts),
        sum(part.usd for part in parts),
        sum(part.unpriced for part in parts),
    )
