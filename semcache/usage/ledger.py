"""Tokens and money: what was paid for, what the cache spared, and what the cache itself has cost.

Two kinds of facts come in, and they do not overlap. *Answered*: a request has its answer, and who produced it. What
the store replayed or another request's fetch shared was avoided. *Fetched*: an upstream was asked and has ended. That
is billed, once, whoever waited for it, and also where nobody did. So billed comes from fetches alone, and avoided from
answers alone.

A model without a price counts its tokens and no money. What is saved is what was avoided less what the cache has cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import NamedTuple

from semcache.types import Outcome, Usage, Verdict
from semcache.usage.prices import NANO, Priced, PriceList, Rates, counted, rates_of

MAX_MODELS = 100  # told apart in totals; the rest together are OTHER: a label must have few values
MAX_NAMES = 10_000  # tenants, and as many keys: without `tenants` in the configuration, callers make them up
MAX_LABEL = 100  # characters
MAX_WAITING = 60  # minutes that wait for a file that cannot be written; older ones are then added up into one
OTHER = "other"
MINUTE_S = 60


class Source(StrEnum):
    """Who produced what a row counts."""

    FORWARDED = "forwarded"  # a request that a backend answered; its tokens are counted as FETCHED
    FETCHED = "fetched"  # a backend: these tokens are billed
    REPLAYED = "replayed"  # the store
    SHARED = "shared"  # another request's fetch
    OWN = "own"  # the cache: what it cost beyond what upstreams bill


class Purpose(StrEnum):
    """What an upstream was asked for."""

    REQUEST = "request"  # somebody's question
    REFRESH = "refresh"  # a stale answer was served, and this renews it
    EXPLORE = "explore"  # a hit that was held back, to see whether it would have been right
    SHADOW = "shadow"  # mode shadow: forwarded as without a cache
    JUDGE = "judge"  # whether two answers say the same
    EMBEDDING = "embedding"  # the vector of a question, from a remote model
    HEDGE = "hedge"  # the second try of a slow request, the one that was not used


# Asked for by the cache and by nobody else. A hedge is not: it is the price of speed, with a cache or without.
OWN_PURPOSES = frozenset({Purpose.REFRESH, Purpose.EXPLORE, Purpose.JUDGE, Purpose.EMBEDDING})

SOURCE: Mapping[Verdict, Source] = {
    Verdict.MISS: Source.FORWARDED,
    Verdict.BYPASS: Source.FORWARDED,
    Verdict.HIT: Source.REPLAYED,
    Verdict.STALE: Source.REPLAYED,
    Verdict.COALESCED: Source.SHARED,
}


class Fetched(NamedTuple):
    """An upstream was asked, and has ended: whole, cut off, or left by everybody."""

    tenant: str
    key: str  # public id of the virtual key; empty: another way in
    model: str  # as it was asked for
    backend: str
    region: str | None
    usage: Usage
    purpose: Purpose = Purpose.REQUEST
    price: Priced | None = None  # the backend's own; None: the price list's


class Facets(NamedTuple):
    """What the sums are told apart by, beside time."""

    tenant: str
    key: str
    model: str
    backend: str
    region: str
    source: Source
    purpose: Purpose


@dataclass(slots=True)
class Spent:
    """Running totals. `requests` of FETCHED are fetches."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of the prompts: billed as the upstream's own cache is
    completion_tokens: int = 0
    nano_usd: int = 0
    estimated: int = 0  # requests whose tokens were counted here, for the upstream told nothing
    unpriced: int = 0  # requests whose model has no price: their money is missing

    @property
    def usd(self) -> float:
        return self.nano_usd / NANO

    def add(self, other: Spent) -> None:
        self.requests += other.requests
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens
        self.completion_tokens += other.completion_tokens
        self.nano_usd += other.nano_usd
        self.estimated += other.estimated
        self.unpriced += other.unpriced


@dataclass(slots=True)
class _Account:
    """Where what comes in under one name is counted, and at what price."""

    facets: Facets
    row: Spent  # of this minute, for the file
    total: Spent  # since the start, for metrics
    price: Priced | None
    rates: Rates | None

    def count(self, usage: Usage) -> int | None:
        """Count an answer's tokens; return its price in nano-dollars, None where there is none."""
        prompt, cached, completion = counted(usage)
        nano = None if self.rates is None else self.rates.cost_nano(prompt, cached, completion)
        for spent in (self.row, self.total):
            spent.prompt_tokens += prompt
            spent.cached_tokens += cached
            spent.completion_tokens += completion
            if nano is None:
                spent.unpriced += 1
            else:
                spent.nano_usd += nano
            if usage.is_estimated:
                spent.estimated += 1
        self.total.requests += 1
        return nano


Rows = dict[Facets, Spent]
Minute = tuple[int, Rows]  # its first second, and what is to be added there


class Ledger:
    """Adds up what each request has cost, or would have. Fed on the event loop; read by metrics, and by a file."""

    def __init__(
        self,
        prices: PriceList,
        *,
        backend_prices: PriceList | None = None,
        bills_by_fetch: bool = False,
        embedder_seconds: Callable[[], float] = lambda: 0.0,
        usd_per_cpu_hour: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`backend_prices`: what replays avoid until a fetch tells; see `prices_of`. `bills_by_fetch`: every fetch is
        told by `fetched`; else a forwarded request stands for the one it needed. `embedder_seconds`: that its threads
        have computed so far. `clock`: unix seconds.
        """
        self._prices = prices
        self._backend_prices = backend_prices or PriceList(prices=())
        self._bills_by_fetch = bills_by_fetch
        self._embedder_seconds = embedder_seconds
        self._nano_per_cpu_s = usd_per_cpu_hour / 3600 * NANO
        self._embedded_nano = 0  # of what was computed so far, that is in the rows
        self._clock = clock
        self._names: dict[str, set[str]] = {"tenant": set(), "key": set(), "model": set()}
        self._rates: dict[str, Rates | None] = {}  # by model, of one day
        # By model, of the backend that was billed last; None: the list's. What a replay avoids is what that would bill.
        self._own_prices: dict[str, Priced | None] = {}
        self._day = -1
        self._minute = 0
        self._rows: Rows = {}
        self._accounts: dict[tuple[object, ...], _Account] = {}  # what `_open` found in this minute
        self._waiting: list[Minute] = []
        # By model, of which there are at most MAX_MODELS and OTHER, and by Source: FETCHED, REPLAYED and SHARED.
        self.totals: dict[tuple[str, str], Spent] = {}
        self._own_nano = 0  # of fetches that the cache asked for

    def observe(self, outcome: Outcome) -> None:
        """Count an answered request. What upstreams refused, or we, is none."""
        source = SOURCE.get(outcome.verdict)
        if source is None:
            return
        usage = outcome.usage
        self._keep_time()
        name = (outcome.tenant, outcome.key, outcome.model, outcome.backend, outcome.region, source)
        account = self._accounts.get(name)
        price = self._own_prices.get(outcome.model)
        if account is None or account.price is not price:
            if outcome.model not in self._own_prices:
                price = self._backend_prices.find(outcome.model)
            # A name becomes a label only once an upstream has answered to it: so nobody can fill the list of names.
            is_answered = usage is not None or outcome.status < 400
            account = self._open(name, Purpose.REQUEST, is_answered, price)
            if account.facets.model != OTHER:
                self._own_prices[outcome.model] = price
        account.row.requests += 1
        if usage is None:
            return
        if source is not Source.FORWARDED:
            account.count(usage)
        elif not self._bills_by_fetch:
            self.fetched(
                Fetched(outcome.tenant, outcome.key, outcome.model, outcome.backend or "", outcome.region, usage)
            )

    def fetched(self, fetch: Fetched) -> int | None:
        """Count what an upstream bills, and return it in nano-dollars; None: this model has no price."""
        self._keep_time()
        name = (fetch.tenant, fetch.key, fetch.model, fetch.backend, fetch.region, Source.FETCHED, fetch.purpose)
        account = self._accounts.get(name)
        if account is None or account.price is not fetch.price:
            account = self._open(name, fetch.purpose, True, fetch.price)
        if account.facets.model != OTHER and self._own_prices.get(fetch.model) is not fetch.price:
            self._own_prices[fetch.model] = fetch.price
        account.row.requests += 1
        nano = account.count(fetch.usage)
        if nano and fetch.purpose in OWN_PURPOSES:
            self._own_nano += nano
        return nano

    def adopt(self, prices: PriceList, backend_prices: PriceList) -> None:
        """Other prices, from the next request on."""
        self._prices, self._backend_prices = prices, backend_prices
        self._rates.clear()
        self._own_prices.clear()
        self._accounts.clear()

    def stats(self) -> dict[str, float]:
        """Totals over all models, since the start of this process."""
        billed = _sum(spent for (_, source), spent in self.totals.items() if source == Source.FETCHED)
        avoided = _sum(spent for (_, source), spent in self.totals.items() if source != Source.FETCHED)
        own_nano = self._own_nano + self._computed_nano()
        return {
            "billed_prompt_tokens": billed.prompt_tokens,
            "billed_cached_tokens": billed.cached_tokens,
            "billed_completion_tokens": billed.completion_tokens,
            "billed_usd": billed.usd,
            "avoided_prompt_tokens": avoided.prompt_tokens,
            "avoided_completion_tokens": avoided.completion_tokens,
            "avoided_usd": avoided.usd,
            "own_usd": own_nano / NANO,
            "saved_usd": (avoided.nano_usd - own_nano) / NANO,
            "estimated_requests": billed.estimated + avoided.estimated,
            "unpriced_requests": billed.unpriced + avoided.unpriced,
        }

    # For the file

    def take(self) -> list[Minute]:
        """What came in since the last `take`. Whoever takes it writes it, or gives it back."""
        self._count_embedding()
        self._close_minute()
        taken, self._waiting = self._waiting, []
        return taken

    def give_back(self, minutes: list[Minute]) -> None:
        """It could not be written. Where too much waits, times become coarse; sums never do."""
        self._waiting = minutes + self._waiting
        while len(self._waiting) > MAX_WAITING:
            (start, rows), (_, more) = self._waiting[:2]
            for facets, spent in more.items():
                rows.setdefault(facets, Spent()).add(spent)
            self._waiting[:2] = [(start, rows)]

    def _keep_time(self) -> None:
        now = self._clock()
        if not self._minute <= now < self._minute + MINUTE_S:  # also where the clock was set back
            self._close_minute()
            self._minute = int(now // MINUTE_S) * MINUTE_S
            day = self._minute // 86400
            if day != self._day:  # new prices may count
                self._day = day
                self._rates.clear()

    def _close_minute(self) -> None:
        self._accounts.clear()
        if self._rows:
            self._waiting.append((self._minute, self._rows))
            self._rows = {}

    def _count_embedding(self) -> None:
        """The embedder's time is nobody's in particular: rows without a tenant."""
        computed = self._computed_nano()
        if computed > self._embedded_nano:
            self._keep_time()
            facets = Facets("", "", "", "", "", Source.OWN, Purpose.EMBEDDING)
            self._rows.setdefault(facets, Spent()).nano_usd += computed - self._embedded_nano
            self._embedded_nano = computed

    def _computed_nano(self) -> int:
        return round(self._embedder_seconds() * self._nano_per_cpu_s)

    def _open(self, name: tuple[object, ...], purpose: Purpose, is_answered: bool, price: Priced | None) -> _Account:
        tenant, key, model, backend, region, source = name[:6]
        facets = Facets(
            self._label("tenant", str(tenant), MAX_NAMES, is_answered),
            self._label("key", str(key), MAX_NAMES, is_answered),
            self._label("model", str(model), MAX_MODELS, is_answered),
            str(backend or ""),
            str(region or ""),
            Source(str(source)),
            purpose,
        )
        # A forwarded request has no tokens: those are its fetch's.
        total = (
            Spent() if source is Source.FORWARDED else self.totals.setdefault((facets.model, facets.source), Spent())
        )
        rates = self._rates_of(str(model)) if price is None else rates_of(price)
        account = _Account(facets, self._rows.setdefault(facets, Spent()), total, price, rates)
        if OTHER not in facets[:3]:  # so the accounts are as few as the names
            self._accounts[name] = account
        return account

    def _label(self, kind: str, name: str, most: int, is_answered: bool) -> str:
        known = self._names[kind]
        if name in known or not name:
            return name
        if is_answered and len(known) < most and len(name) <= MAX_LABEL:
            known.add(name)
            return name
        return OTHER

    def _rates_of(self, model: str) -> Rates | None:
        """Today's rates of the price list."""
        try:
            return self._rates[model]
        except KeyError:
            price = self._prices.find(model, datetime.fromtimestamp(self._minute, UTC).date())
            rates = None if price is None else rates_of(price)
            if len(self._rates) < 10 * MAX_MODELS:
                self._rates[model] = rates
            return rates


def _sum(parts: Iterable[Spent]) -> Spent:
    total = Spent()
    for part in parts:
        total.add(part)
    return total
