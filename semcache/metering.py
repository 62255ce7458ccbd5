"""METERING: what each fetch is billed, told once, when it ends: whoever waited for it, and whether it came whole.

So money and tokens are counted where they are spent. A hit, and whoever joins another's fetch, spends nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from semcache.access.quota import Quotas, Reservation
from semcache.backends.target import Target
from semcache.config import Limits
from semcache.planning import Plan
from semcache.status_headers import replayed_before
from semcache.types import Usage
from semcache.usage import Fetched, Ledger, Purpose
from semcache.usage.estimates import complete, count_tokens
from semcache.wire.dialect import Reading
from semcache.wire.recording import Recording

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Tab:
    """What a request may spend, and whether something was fetched for it."""

    reservation: Reservation
    subjects: Sequence[tuple[str, Limits]] = ()
    is_fetching: bool = False


class Meter:
    """Belongs to the event loop. Raises nothing: an answer is not lost for want of its bill."""

    def __init__(self, ledger: Ledger, quotas: Quotas, clock: Callable[[], float] = time.time) -> None:
        """`clock`: unix seconds."""
        self._ledger = ledger
        self._quotas = quotas
        self._clock = clock
        self._counting: set[asyncio.Task[None]] = set()
        self.faults = 0

    def not_fetched(self, tab: Tab) -> None:
        """No backend gave an answer."""
        self._settle(tab, None, None)

    def fetched(
        self,
        plan: Plan,
        target: Target,
        recording: Recording,
        reading: Reading | None,
        pieces: Sequence[bytes],
        tab: Tab,
    ) -> None:
        """A fetch has ended. `reading`: what it turned out to be; None where it broke off or everybody left. `pieces`:
        what came of it."""
        if replayed_before(recording.headers) is not None:
            self._settle(tab, None, None)  # a semcache behind us had it stored: no model was asked
            return
        if recording.status >= 400 or not recording.status:
            self._settle(tab, None, None)  # an upstream bills no errors
            return
        told = reading.usage if reading is not None else None
        if told is not None:
            self._bill(plan, target, recording, told, tab)
            return
        task = asyncio.ensure_future(self._estimate(plan, target, recording, reading is None, pieces, tab))
        self._counting.add(task)
        task.add_done_callback(self._counting.discard)

    def lost(self, plan: Plan, target: Target, model: str | None, tab: Tab, purpose: Purpose = Purpose.HEDGE) -> None:
        """A backend was asked, and left before its answer: for a faster one, or because nobody waited any more. What it
        had written by then nobody knows, so only the prompt is counted."""
        task = asyncio.ensure_future(self._bill_lost(plan, target, model or plan.ask.model, tab, purpose))
        self._counting.add(task)
        task.add_done_callback(self._counting.discard)

    async def _bill_lost(self, plan: Plan, target: Target, model: str, tab: Tab, purpose: Purpose) -> None:
        try:
            usage = await complete(None, plan.ask, (), was_cut=True)
        except Exception as exc:
            self._fault(exc)
            return
        self._settle(tab, usage, self._count(_fetch(plan, target, model, purpose, usage)))

    def judged(self, plan: Plan, target: Target, model: str, usage: Usage) -> None:
        """A judge model was asked about this tenant's answers. It is the operator's wish, and no limit counts it."""
        self._count(_fetch(plan, target, model, Purpose.JUDGE, usage))

    def embedded(self, model: str, region: str | None, told_tokens: int | None, texts: Sequence[str]) -> None:
        """A remote model made vectors: of whose questions, nobody knows. `told_tokens`: None, where it did not say."""
        tokens = sum(map(count_tokens, texts)) if told_tokens is None else told_tokens
        usage = Usage(tokens, 0, is_estimated=told_tokens is None)
        self._count(Fetched("", "", model, "embedder", region, usage, Purpose.EMBEDDING))

    async def drain(self) -> None:
        """Wait until everything that has ended is counted."""
        await asyncio.gather(*self._counting, return_exceptions=True)

    async def _estimate(
        self, plan: Plan, target: Target, recording: Recording, was_cut: bool, pieces: Sequence[bytes], tab: Tab
    ) -> None:
        try:
            usage = await complete(None, plan.ask, pieces, was_cut)
        except Exception as exc:
            self._fault(exc)
            self._settle(tab, None, None)
            return
        self._bill(plan, target, recording, usage, tab)

    def _bill(self, plan: Plan, target: Target, recording: Recording, usage: Usage, tab: Tab) -> None:
        model = recording.model or plan.ask.model
        nano_usd = self._count(_fetch(plan, target, model, Purpose(recording.purpose), usage))
        self._settle(tab, usage, nano_usd)

    def _count(self, fetch: Fetched) -> int | None:
        try:
            return self._ledger.fetched(fetch)
        except Exception as exc:
            self._fault(exc)
            return None

    def _fault(self, exc: Exception) -> None:
        self.faults += 1
        log.error("a fetch could not be counted: %s", type(exc).__name__)

    def _settle(self, tab: Tab, usage: Usage | None, nano_usd: int | None) -> None:
        if not tab.subjects:
            return
        if not tab.reservation.is_settled:
            self._quotas.settle(tab.reservation, usage, nano_usd, self._clock())
        elif usage is not None:  # one request can have two fetches, and its reservation is for the first
            self._quotas.charge(tab.subjects, usage, nano_usd, self._clock())

    def stats(self) -> dict[str, float]:
        return {"faults": self.faults}


def _fetch(plan: Plan, target: Target, model: str, purpose: Purpose, usage: Usage) -> Fetched:
    return Fetched(
        tenant=plan.tenant.id,
        key=plan.tenant.key,
        model=model,
        backend=target.name,
        region=target.backend.region,
        usage=usage,
        purpose=purpose,
        price=target.backend.price,
    )
