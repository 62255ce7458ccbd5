"""The cache for a program that wants no proxy: `from semcache import Cache`.

    async with Cache(store="sqlite:./answers.db") as cache:
        answer = await cache.ask("Where is my parcel?", context={"model": "small"}, fetch=ask_the_model)

A question lives the life of any request here: exact tier, semantic tier with its guards, one fetch for equal questions
at the same time, stale answers refreshed behind the scenes, faults of the cache that end in a fetch.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from multidict import MultiMapping

from semcache import config, wire
from semcache.admit import Admission
from semcache.backends.routing import Way
from semcache.cache.embedder import Embedder
from semcache.cache.model import prepare as prepare_model
from semcache.cache.policy import Directives, read_directives
from semcache.core import Core
from semcache.delivery import Deliverer, Delivery
from semcache.errors import ClientError, SemcacheError, UpstreamError
from semcache.forwarding import Source, answer_limit
from semcache.planning import PARSE_INLINE_BYTES, Plan
from semcache.types import Outcome, Reason, Selector, Tenant, Tier, Verdict
from semcache.wire.dialect import Address, Reading
from semcache.wire.plain import PlainText, write_question
from semcache.wire.recording import Recording
from semcache.wire.score import JSON

Fetch = Callable[[str], Awaitable[str]]


_ADDRESS = Address(PlainText(), vendor="program", endpoint="ask", target="ask")
_ADMISSION = Admission(())  # keys are those of the model APIs that a program calls, and pass through


class Answered(NamedTuple):
    """A text, and how it was come by."""

    text: str
    verdict: Verdict  # hit, stale, miss, coalesced or bypass
    reason: Reason | None = None  # why it is no hit
    tier: Tier | None = None  # of a hit
    similarity: float | None = None  # of a hit, or of the best candidate that was refused
    entry: str | None = None  # of a hit: the stored entry's id, for `purge`
    age_s: float | None = None  # of a hit
    phases_ms: Mapping[str, float] = MappingProxyType({})  # what was waited for: embed, search, verify


class FetchFailed(SemcacheError):
    """Carries what a fetch raised through the flight, to everyone who waited for it."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("the fetch failed")
        self.cause = cause


def raised_for(error: SemcacheError, otherwise: type[Exception]) -> Exception:
    """What to raise to whoever asked: what his library raised, else the error in the terms of that library."""
    cause = error.cause if isinstance(error, FetchFailed) else error
    return otherwise(cause.message) if isinstance(cause, SemcacheError) else cause


class _Opened(NamedTuple):
    core: Core
    deliverer: Deliverer
    loop: asyncio.AbstractEventLoop


def find_address(url: str) -> Address | None:
    """What a POST to this URL says to a model API, under whatever base; None where nothing is cached.

    The whole URL belongs to the key: another host's model is another model.
    """
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    address = wire.find_address(target)
    if address is None and "/v1/" in parts.path:
        address = wire.find_address(target[parts.path.rindex("/v1/") :])
    if address is None or address.opt_in is not None:  # uploads, which are the proxy's
        return None
    return replace(address, target=f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{target}")


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
        self._opened: _Opened | None = None

    async def __aenter__(self) -> Self:
        """Open the store and load the model, which is prepared first where it never was. Raises StartError."""
        if self._opened is not None:
            raise RuntimeError("the cache is open already")
        embedding = self.settings.embedder
        if self._embedder is None and embedding.engine == "onnx":
            await asyncio.to_thread(prepare_model, embedding.model)
        core = Core(self.settings, embedder=self._embedder, clock=self._clock)
        await core.start()
        try:
            core.follow()
            await core.caught_up()
        except BaseException:  # whoever opens it lost patience
            await core.stop()
            raise
        self._opened = _Opened(core, Deliverer(core.pipeline, self._clock), asyncio.get_running_loop())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it. Questions that are under way end in a RuntimeError, and what they fetch is cancelled."""
        core, self._opened = self._open().core, None
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
        shared, and so must `model` (which also picks the route), `tenant` and `namespace`. `user`: for `purge`, and
        whose the answer to a personal question is (`match.personal`).
        `cache_control` and `semcache_control` take what the proxy's request headers of these names take.

        Raises what `fetch` raises, ClientError for a control that cannot be read or, with `only-if-cached`, where
        nothing is stored.
        """
        asked = read_directives(cache_control, semcache_control)
        outcome = Outcome("", perf_counter())
        body = write_question(question, context, model, user)
        plan = await self._plan(_ADDRESS, {}, body, Tenant(tenant), asked.namespace or namespace)
        text = await self._text(plan, asked, _source(question, fetch), outcome)
        return Answered(
            text.decode(),
            outcome.verdict,
            outcome.reason,
            outcome.tier,
            outcome.similarity,
            outcome.entry_id,
            outcome.age_s,
            outcome.phases_ms,
        )

    async def look_up(
        self, question: str, *, context: Any = None, cache_control: str = "", **scope: Any
    ) -> Answered | None:
        """Return what is stored, None if nothing is. `scope`: as in `ask`.

        Nothing is refreshed on the way: whoever keeps answers himself asks for `max-stale=0`, and gets fresh ones.
        """
        wishes = f"only-if-cached, {cache_control}"
        try:
            return await self.ask(question, context=context, fetch=_nothing, cache_control=wishes, **scope)
        except ClientError as error:
            if error.code == "not_cached":
                return None
            raise

    async def keep(self, question: str, text: str, *, context: Any = None, **scope: Any) -> Answered:
        """Store an answer that came from elsewhere, in the place of any that is there. `scope`: as in `ask`."""

        async def given(_: str) -> str:
            return text

        return await self.ask(question, context=context, fetch=given, cache_control="no-cache", **scope)

    async def respond(self, address: Address, headers: MultiMapping[str], body: bytes, source: Source) -> Delivery:
        """Answer a model API's request as the proxy does. `headers` and `body`: as a client sends them.

        The caller's key is the tenant. What the proxy would refuse is delivered as an error in the client's dialect.
        Where `source` gets no answer it raises FetchFailed, which comes out of here or of the delivery's body.
        """
        outcome = Outcome(os.urandom(12).hex(), perf_counter(), dialect=address.vendor)
        wishes = [", ".join(headers.getall(name, ())) or None for name in ("Cache-Control", "Semcache-Control")]
        try:
            asked = read_directives(*wishes)
            plan = await self._plan(address, headers, body, _ADMISSION.identify(headers), asked.namespace)
            return await self._deliver(plan, asked, source, outcome)
        except ClientError as error:
            fields = [("Content-Type", JSON), *error.headers.items()]
            if error.status >= 500:
                fields.append(("x-should-retry", "false"))  # the SDKs retry a 5xx, and it would not help
            return Delivery(error.status, fields, address.dialect.error_body(error, outcome.request_id))

    async def purge(self, selector: Selector) -> int:
        """Remove entries; return how many. `Selector(text=...)`, `Selector(entry=...)`; `Selector()` is all."""
        return await self._open().core.store.purge(selector)

    async def settle(self) -> None:
        """Wait until what was fetched so far is kept, compared and learned from. Nobody needs to, but who measures."""
        core = self._open().core
        await core.pipeline.flights.drain()
        await core.learning.idle()
        await core.learning.flush()
        await core.bound.idle()

    def stats(self) -> Mapping[str, Mapping[str, object]]:
        return self._open().core.stats()

    def _open(self) -> _Opened:
        if self._opened is None:
            raise _not_open()
        return self._opened

    async def _plan(
        self, address: Address, headers: Mapping[str, str], body: bytes, tenant: Tenant, namespace: str
    ) -> Plan:
        opened = self._open()
        if asyncio.get_running_loop() is not opened.loop:
            raise RuntimeError("the cache was opened in another event loop: open one in each, over the same file")
        make, arguments = opened.core.planner.plan, (address, headers, body, tenant, namespace)
        is_long = len(body) > PARSE_INLINE_BYTES
        plan = await asyncio.to_thread(make, *arguments) if is_long else make(*arguments)
        return replace(plan, way=Way(()))  # no backend is needed to answer

    async def _deliver(self, plan: Plan, asked: Directives, source: Source, outcome: Outcome) -> Delivery:
        opened = self._open()

        async def write(plan: Plan, recording: Recording) -> Reading:
            if self._opened is not opened:  # closed while this was looked up
                raise FetchFailed(_not_open())
            return await source(plan, recording)

        try:
            return await opened.deliverer.respond(plan, asked, write, outcome)
        except UpstreamError as error:
            if self._opened is not opened:  # closed while this was fetched
                raise FetchFailed(_not_open()) from error
            raise

    async def _text(self, plan: Plan, asked: Directives, source: Source, outcome: Outcome) -> bytes:
        try:
            delivery = await self._deliver(plan, asked, source, outcome)
            with closing(delivery):
                return b"".join([piece async for piece in delivery.pieces()])
        except FetchFailed as failed:
            cause = failed.cause
        raise cause  # out here, where it keeps the cause it was raised with


def _source(question: str, fetch: Fetch) -> Source:
    async def write(plan: Plan, recording: Recording) -> Reading:
        try:
            text = await fetch(question)
        except Exception as exc:  # whatever it is, it is for those who asked
            raise FetchFailed(exc) from exc
        scribe = plan.dialect.scribe(plan.ask, 200, {}, store_tools=False, limit_bytes=answer_limit(plan))
        recording.begin(200, {}, "program")
        await recording.extend(scribe.feed(text.encode(), 0))
        _, reading = scribe.finish(True)
        return reading

    return write


async def _nothing(_: str) -> str:
    raise AssertionError("only-if-cached never fetches")


def _not_open() -> RuntimeError:
    return RuntimeError("the cache is not open: use `async with Cache(...) as cache`")


def _read(settings: config.Config | Mapping[str, Any] | Path | None, store: str | None) -> config.Config:
    if isinstance(settings, config.Config):
        return settings
    if isinstance(settings, Path):
        return config.load(settings, options={"store": store} if store else None)
    raw = dict(settings or {})
    cache = dict(raw.get("cache") or {})
    raw["cache"] = {**cache, "store": store or cache.get("store", "memory:")}
    return config.build(raw, "settings")
