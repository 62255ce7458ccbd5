"""The cache for a program that wants no proxy: `from semcache import Cache`.

    async with Cache(store="sqlite:./answers.db") as cache:
        answer = await cache.ask("Where is my parcel?", context={"model": "small"}, fetch=ask_the_model)

A question lives the life of any request here: exact tier, semantic tier with its guards, one fetch for equal questions
at the same time, stale answers refreshed behind the scenes, faults of the cache that end in a fetch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, NamedTuple, Self

from semcache import config
from semcache.cache.embedder import Embedder
from semcache.cache.flight import Flight
from semcache.cache.model import prepare as prepare_model
from semcache.cache.policy import Directives, read_directives
from semcache.core import Core
from semcache.errors import ClientError, SemcacheError
from semcache.forwarding import Source, answer_limit
from semcache.pipeline import Followed, Played
from semcache.planning import Plan
from semcache.types import Outcome, Reason, Selector, Tenant, Tier, Verdict
from semcache.wire.dialect import Address, Reading
from semcache.wire.plain import PlainText, write_question
from semcache.wire.recording import Recording

Fetch = Callable[[str], Awaitable[str]]

_ADDRESS = Address(PlainText(), vendor="program", endpoint="ask", target="ask")


class Answered(NamedTuple):
    """A text, and how it was come by."""

    text: str
    verdict: Verdict  # hit, stale, miss, coalesced or bypass
    reason: Reason | None = None  # why it is no hit
    tier: Tier | None = None  # of a hit
    similarity: float | None = None  # of a hit, or of the best candidate that was refused
    entry: str | None = None  # of a hit: the stored entry's id, for `purge`
    age_s: float | None = None  # of a hit


class _FetchFailed(SemcacheError):
    """Carries what `fetch` raised through the flight, to everyone who waited for it."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("the fetch failed")
        self.cause = cause


class Cache:
    """One cache, for one event loop. Any number may share a SQLite file, in any number of processes."""

    def __init__(
        self,
        settings: config.Config | Mapping[str, Any] | Path | None = None,
        *,
        store: str | None = None,
        embedder: Embedder | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`settings`: as in the proxy's file (`cache`, `match`, `embedder`, `routes`), or that file's path.

        `store`: `sqlite:PATH` or `memory:`, over the settings; where neither names one, the answers live in memory.
        `embedder` and `clock` (unix seconds) are given by tests. Raises ConfigError.
        """
        self.settings = _read(settings, store)
        self._embedder = embedder
        self._clock = clock
        self._core: Core | None = None

    async def __aenter__(self) -> Self:
        """Open the store and load the model, which is prepared first where it never was. Raises StartError."""
        embedding = self.settings.embedder
        if self._embedder is None and embedding.engine == "onnx":
            await asyncio.to_thread(prepare_model, embedding.model)
        core = Core(self.settings, embedder=self._embedder, clock=self._clock)
        await core.start()
        core.follow()
        await core.caught_up()
        self._core = core
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        core, self._core = self._open(), None
        await core.stop()

    async def ask(
        self,
        question: str,
        *,
        fetch: Fetch,
        context: Any = None,
        model: str = "",
        tenant: str = "",
        namespace: str = "",
        user: str | None = None,
        cache_control: str | None = None,
        semcache_control: str | None = None,
    ) -> Answered:
        """Return the answer that is stored for this question, or one that means the same, else what `fetch` brings.

        `context`: everything else that decides the answer, as a JSON value: it must be equal for an answer to be
        shared, and so must `model` (which also picks the route), `tenant` and `namespace`. `user`: for `purge` alone.
        `cache_control` and `semcache_control` take what the proxy's request headers of these names take.

        Raises what `fetch` raises, ClientError for a control that cannot be read or, with `only-if-cached`, where
        nothing is stored.
        """
        asked = read_directives(cache_control, semcache_control)
        plan = self._plan(question, context, model, tenant, asked.namespace or namespace, user)
        return await self._answer(plan, asked, _source(question, fetch))

    async def look_up(self, question: str, *, context: Any = None, **scope: Any) -> Answered | None:
        """Return what is stored, None if nothing is. `scope`: as in `ask`."""
        try:
            return await self.ask(question, context=context, fetch=_nothing, cache_control="only-if-cached", **scope)
        except ClientError as error:
            if error.code == "not_cached":
                return None
            raise

    async def keep(self, question: str, text: str, *, context: Any = None, **scope: Any) -> Answered:
        """Store an answer that came from elsewhere, in the place of any that is there. `scope`: as in `ask`."""

        async def given(_: str) -> str:
            return text

        return await self.ask(question, context=context, fetch=given, cache_control="no-cache", **scope)

    async def purge(self, selector: Selector) -> int:
        """Remove entries; return how many. `Selector(text=...)`, `Selector(entry=...)`; `Selector()` is all."""
        return await self._open().store.purge(selector)

    def stats(self) -> Mapping[str, Mapping[str, object]]:
        return self._open().stats()

    def _open(self) -> Core:
        if self._core is None:
            raise RuntimeError("the cache is not open: use `async with Cache(...) as cache`")
        return self._core

    def _plan(self, question: str, context: Any, model: str, tenant: str, namespace: str, user: str | None) -> Plan:
        body = write_question(question, context, model, user)
        plan = self._open().planner.plan(_ADDRESS, {}, body, Tenant(tenant), namespace)
        return replace(plan, targets=())  # no backend is needed to answer

    async def _answer(self, plan: Plan, asked: Directives, source: Source) -> Answered:
        outcome = Outcome("", perf_counter())
        reply = await self._open().pipeline.respond(plan, asked, source, outcome)
        if isinstance(reply, Played):
            text = reply.match.entry.answer.parts[0]
        else:
            assert isinstance(reply, Followed)  # a question is no batch
            text = await _follow(reply.flight)
        return Answered(
            text.decode(),
            outcome.verdict,
            outcome.reason,
            outcome.tier,
            outcome.similarity,
            outcome.entry_id,
            outcome.age_s,
        )


def _source(question: str, fetch: Fetch) -> Source:
    async def write(plan: Plan, recording: Recording) -> Reading:
        try:
            text = await fetch(question)
        except Exception as exc:  # whatever it is, it is for those who asked
            raise _FetchFailed(exc) from exc
        scribe = plan.dialect.scribe(plan.ask, 200, {}, store_tools=False, limit_bytes=answer_limit(plan))
        recording.begin(200, {}, "program")
        await recording.extend(scribe.feed(text.encode(), 0))
        _, reading = scribe.finish(True)
        return reading

    return write


async def _follow(flight: Flight[Recording]) -> bytes:
    with flight, flight.recording.join() as follower:
        try:
            return b"".join([piece async for piece in follower.pieces(include_usage=True)])
        except _FetchFailed as failed:
            raise failed.cause from None


async def _nothing(_: str) -> str:
    raise AssertionError("only-if-cached never fetches")


def _read(settings: config.Config | Mapping[str, Any] | Path | None, store: str | None) -> config.Config:
    if isinstance(settings, config.Config):
        return settings
    if isinstance(settings, Path):
        return config.load(settings, options={"store": store} if store else None)
    raw = dict(settings or {})
    cache = dict(raw.get("cache") or {})
    raw["cache"] = {**cache, "store": store or cache.get("store", "memory:")}
    return config.build(raw, "settings")
