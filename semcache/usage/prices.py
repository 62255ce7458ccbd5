"""What a model's tokens cost: a list of dated prices, and the arithmetic, which is exact.

Money is whole nano-dollars from here on: sums of integers do not depend on the order in which workers add them. A model
that is not on the list has no price, and nobody guesses one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Annotated, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from semcache.config import Pool
from semcache.errors import ConfigError
from semcache.types import Usage

NANO = 1_000_000_000  # nano-dollars in a dollar
# More than any model takes or makes in one request. What an upstream tells beyond it is damage, and must not become
# money, nor burst the 64 bits of a sum on disk.
MAX_TOKENS = 100_000_000

UsdPerMtok = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class Priced(Protocol):
    """US dollars per million tokens. A line of a price list is one, and a backend's own `price`."""

    @property
    def input(self) -> float: ...
    @property
    def output(self) -> float: ...
    @property
    def cached_input(self) -> float | None: ...


class Rates(NamedTuple):
    """A price in whole pico-dollars a token."""

    input: int
    output: int
    cached_input: int

    def cost_nano(self, prompt: int, cached: int, completion: int) -> int:
        """`cached`: of the prompt. See `counted`."""
        pico = (prompt - cached) * self.input + cached * self.cached_input + completion * self.output
        return (pico + 500) // 1000


def rates_of(price: Priced) -> Rates:
    cached = price.input if price.cached_input is None else price.cached_input
    return Rates(*(round(usd_per_mtok * 1e6) for usd_per_mtok in (price.input, price.output, cached)))


def counted(usage: Usage) -> tuple[int, int, int]:
    """Tokens of the prompt, those of it that the upstream had cached, and of the answer, within reason."""
    prompt, cached, completion = usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens
    if 0 <= cached <= prompt <= MAX_TOKENS and 0 <= completion <= MAX_TOKENS:  # all but always
        return prompt, cached, completion
    prompt = min(max(prompt, 0), MAX_TOKENS)
    return prompt, min(max(cached, 0), prompt), min(max(completion, 0), MAX_TOKENS)


class Price(BaseModel):
    """US dollars per million tokens, for every model that one of the globs fits."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    models: tuple[str, ...] = Field(min_length=1)
    input: UsdPerMtok
    output: UsdPerMtok
    cached_input: UsdPerMtok | None = None  # of prompts that the upstream had in its own cache; null: as input
    since: date | None = Field(default=None, alias="from")  # the day (UTC) from which it counts; null: always did
    as_of: str = ""  # when somebody last looked

    def fits(self, model: str) -> bool:
        return any(fnmatchcase(model, glob) for glob in self.models)

    def counts_on(self, day: date) -> bool:
        return self.since is None or self.since <= day


class PriceList(BaseModel):
    """Prices in the order they are tried: the first that fits a model's name counts.

    Lines for the same `models` are one price through time: of those whose day has come the newest counts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prices: tuple[Price, ...]
    after: PriceList | None = None  # asked for what is not in this one

    def find(self, model: str, day: date | None = None) -> Price | None:
        """The price on a day; by default today's, as it is today in UTC."""
        day = day or datetime.now(UTC).date()
        first = next((price for price in self.prices if price.counts_on(day) and price.fits(model)), None)
        if first is None:
            return None if self.after is None else self.after.find(model, day)
        same = [price for price in self.prices if price.models == first.models and price.counts_on(day)]
        return max(same, key=lambda price: price.since or date.min)

    def cost_usd(self, model: str, usage: Usage) -> float | None:
        """Return today's price of an answer in US dollars; None: this model has no price here."""
        price = self.find(model)
        return None if price is None else rates_of(price).cost_nano(*counted(usage)) / NANO


def prices_of(pools: Mapping[str, Pool]) -> PriceList:
    """Prices of the configuration's own backends, of those that name the models they serve."""
    return PriceList(
        prices=tuple(
            Price(
                models=tuple(backend.models),
                input=backend.price.input,
                output=backend.price.output,
                cached_input=backend.price.cached_input,
            )
            for pool in pools.values()
            for backend in pool.backends
            if backend.price is not None and backend.models and not isinstance(backend.models, str)
        )
    )


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
    return PriceList(prices=_read(text, str(own)).prices, after=listed)


def _read(text: str, name: str) -> PriceList:
    try:
        found = PriceList.model_validate(YAML(typ="safe", pure=True).load(text))
    except YAMLError as exc:
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(exc).split())}") from exc
    except ValidationError as exc:
        lines = [f"{name}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in exc.errors(include_url=False)]
        raise ConfigError("\n".join(lines)) from exc
    complaints = [f"{name}: {complaint}" for complaint in _never_counting(found.prices)]
    if complaints:
        raise ConfigError("\n".join(complaints))
    return found


def _never_counting(prices: Sequence[Price]) -> Iterator[str]:
    """A price change that was written where it will never be read: somebody would wait for its day in vain."""
    for place, price in enumerate(prices):
        if price.since is None:
            continue
        hiding = next((n for n, other in enumerate(prices[:place]) if _hides(other, price)), None)
        if hiding is not None:
            yield (
                f"prices.{place}: from {price.since} would never count, for prices.{hiding} fits the same models and "
                f"comes first: give both the same `models`, or put this line before that one"
            )


def _hides(earlier: Price, later: Price) -> bool:
    if earlier.models == later.models or (earlier.since or date.min) > (later.since or date.min):
        return False
    return all(earlier.fits(glob) for glob in later.models)
