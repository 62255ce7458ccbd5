"""A made-up day in the ledger: `python -m loadtests.usage_day FILE`, then `semcache usage` with `usage.path: FILE`.

Three tenants ask through the day as offices do; a share of the questions comes again and is replayed, some arrive
together and share a fetch, stale answers are refreshed, some hits are held back to explore, an upstream breaks streams
off. All of it goes through the real ledger into a real file, on a clock of its own: a day takes about a second.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from math import cos, pi
from pathlib import Path
from typing import Any

from semcache.access.quota import Quotas
from semcache.config import Price
from semcache.types import Outcome, Usage, Verdict
from semcache.usage import Fetched, Ledger, PriceList, Purpose, load_prices
from semcache.usage import Price as UsagePrice
from semcache.usage.flushing import Flushing
from semcache.usage.rollups import UsageFile

START = datetime(2026, 11, 20, tzinfo=UTC).timestamp()
EMBEDDING_S = 0.003  # of a question on one thread
MODELS = {"gpt-4o-mini": ("openai", "us"), "claude-sonnet-4-5": ("anthropic", "us"), "llama-3-8b": ("gpu-1", "eu")}
GPU_PRICE = Price(input=0.05, output=0.2)  # what its operator writes for a machine of his own
TENANTS = {"shop": ("web", 6.0, 0.45), "bank": ("chat", 2.0, 0.2), "school": ("lab", 3.0, 0.6)}  # a minute; repeated


class Day:
    """Its clock, and everything that is to be counted."""

    def __init__(self, path: Path, seed: int = 1, start: float = START) -> None:
        self.now = start
        self._random = random.Random(seed)
        self.embedded_s = 0.0
        self.ledger = Ledger(
            load_prices(),
            backend_prices=PriceList(prices=(UsagePrice(models=("llama-*",), **GPU_PRICE.model_dump()),)),
            bills_by_fetch=True,
            embedder_seconds=lambda: self.embedded_s,
            usd_per_cpu_hour=0.04,
            clock=lambda: self.now,
        )
        clock: Callable[[], float] = lambda: self.now  # noqa: E731
        self.flushing = Flushing(UsageFile(path, 172_800, 7_776_000), self.ledger, Quotas(clock), 1.0, clock)
        self.billed_nano = 0

    async def play(self) -> None:
        await self.flushing.start()
        for minute in range(24 * 60):
            busy = 0.15 + 0.85 * max(0.0, -cos(2 * pi * (minute / 1440 - 1 / 24)))  # offices: most at one o'clock
            for tenant, (key, rate, repeated) in TENANTS.items():
                for _ in range(int(rate * busy + self._random.random())):
                    self._ask(tenant, key, repeated)
            if minute % 10 == 9:
                await self.flushing.flush()
            self.now += 60
        self.now -= 1  # still that day
        await self.flushing.stop()

    def _ask(self, tenant: str, key: str, repeated: float) -> None:
        chance = self._random
        model = chance.choices(list(MODELS), (6, 2, 3))[0]
        backend, region = MODELS[model]
        prompt, completion = chance.randrange(60, 2500), chance.randrange(40, 700)
        usage = Usage(prompt, completion, prompt // 2 if prompt > 1024 else 0)
        self.embedded_s += EMBEDDING_S

        def answer(verdict: Verdict) -> None:
            told: dict[str, Any] = {"tenant": tenant, "key": key, "model": model, "status": 200, "usage": usage}
            if verdict is Verdict.MISS:
                told |= {"backend": backend, "region": region}
            self.ledger.observe(Outcome("r", 0.0, verdict=verdict, **told))

        def fetch(purpose: Purpose, spent: Usage = usage) -> None:
            price = GPU_PRICE if backend == "gpu-1" else None
            nano = self.ledger.fetched(Fetched(tenant, key, model, backend, region, spent, purpose, price))
            self.billed_nano += nano or 0

        came = chance.random()
        if came < repeated * 0.9:
            answer(Verdict.HIT)
        elif came < repeated * 0.95:
            answer(Verdict.STALE)
            fetch(Purpose.REFRESH)
        elif came < repeated:
            answer(Verdict.COALESCED)
        elif came < repeated + 0.01:
            answer(Verdict.MISS)
            fetch(Purpose.EXPLORE)
        else:
            answer(Verdict.MISS)
            broken = came > 0.99
            fetch(Purpose.REQUEST, Usage(prompt, completion // 3, 0, is_estimated=True) if broken else usage)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m loadtests.usage_day FILE\n\n{__doc__}")
    path = Path(sys.argv[1])
    asyncio.run(Day(path).play())
    print(f"a day from {datetime.fromtimestamp(START, UTC):%Y-%m-%d} is in {path}")


if __name__ == "__main__":
    main()
