"""THE LIFE OF A REQUEST, between its arrival and its delivery (both in server.py), one function per phase.

    plan       RULE and KEY: everything that follows from the request's bytes alone, remembered for equal bytes
    respond    decides between:
    _look_up       LOOKUP: exact, then embed -> search -> VERIFY
    _forward       COALESCE: join a flight or lead one
    _fetch         ROUTE and FETCH: the flight's own task writes the recording
    _keep          STORE: the write gates, then the entry

What respond returns is one of two things to play: a stored answer, or a recording that is being written.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from time import monotonic, perf_counter
from typing import Protocol

from cachetools import LRUCache, TTLCache

from semcache.backends.fetch import Fetcher, UpstreamRequest
from semcache.backends.routing import Target, pick_route, rank
from semcache.cache.flight import Flight, Flights
from semcache.cache.key import derive_key, derive_scope
from semcache.cache.lookup import Embedder, Lookup
from semcache.cache.policy import Directives, Ruling, rule, tighten
from semcache.config import Config, Route
from semcache.errors import CacheFault, ClientError, SemcacheError, TooLong, UpstreamError
from semcache.types import (
    FWD,
    Ask,
    Entry,
    Finding,
    Key,
    Match,
    Outcome,
    Reason,
    Scope,
    Tenant,
    Tier,
    Unstorable,
    Vector,
    Verdict,
)
from semcache.wire import vendor_of
from semcache.wire.dialect import Dialect, Reading
from semcache.wire.recording import Recording

log = logging.getLogger(__name__)

PLAN_BODY_BYTES = 16 * 1024  # larger bodies are parsed each time: remembering them costs more memory than it saves time
PLANS = 2048  # so at most some 64 MB, for a plan also holds its context and question
MODEL_CHARS = 256  # routes of longer names are not remembered: a caller may make up a name of any length
LEARNED_S = 60.0  # how long a request whose answer could not be kept runs without waiting for others
JSON_ACK_S = 0.05  # a JSON answer waits this long for the store's word, to say `stored`; then it leaves without


class Store(Protocol):
    """What the pipeline needs to keep an answer."""

    @property
    def last_seq(self) -> int: ...

    @property
    def last_purge_seq(self) -> int: ...

    async def put(self, entry: Entry, since_seq: int) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything about a request that follows from its bytes, its tenant and its namespace."""

    ask: Ask
    dialect: Dialect
    tenant: Tenant
    scope: Scope
    key: Key
    route: Route
    ruling: Ruling  # the operator's; the caller's wishes come with each request
    targets: Sequence[Target] | SemcacheError  # an error only matters when the request must be forwarded


@dataclass(frozen=True, slots=True)
class Played:
    """A stored answer."""

    match: Match


@dataclass(frozen=True, slots=True)
class Followed:
    """A recording that is being written. Enter `flight` while following it."""

    flight: Flight[Recording]
    in_same_form: bool  # the recording is relayed as it is; else its answer is rendered in the other form at its end
    is_anothers: bool = False  # another tenant's fetch: his answer is shared, his errors and headers are not


Reply = Played | Followed


class Pipeline:
    def __init__(
        self,
        config: Config,
        lookup: Lookup,
        embedder: Embedder,
        store: Store,
        fetcher: Fetcher,
        replaces_keys: bool,
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._lookup = lookup
        self._embedder = embedder
        self._store = store
        self._fetcher = fetcher
        self._replaces_keys = replaces_keys  # callers hold our keys, which must not travel upstream
        self._clock = clock
        self.flights: Flights[Recording] = Flights()
        self._plans: LRUCache[tuple[object, ...], Plan] = LRUCache(PLANS)
        self._learned: TTLCache[bytes, Unstorable] = TTLCache(10_000, LEARNED_S, timer=monotonic)
        self._routes = lru_cache(1024)(self._route)
        self.stored = 0
        self.unstorable: Counter[Unstorable] = Counter()
        self.faults: Counter[str] = Counter()

    # RULE and KEY

    def plan(
        self, dialect: Dialect, endpoint: str, headers: Mapping[str, str], body: bytes, tenant: Tenant, namespace: str
    ) -> Plan:
        """Parse, rule and derive the key. Raises ClientError for a body that is not a request."""
        identity = (dialect.name, endpoint, tenant.id, namespace, dialect.context_headers(headers), body)
        plan = self._plans.get(identity)
        if plan is None:
            plan = self._plan(dialect, endpoint, headers, body, tenant, namespace)
            if len(body) <= PLAN_BODY_BYTES:
                self._plans[identity] = plan
        return plan

    def _plan(
        self, dialect: Dialect, endpoint: str, headers: Mapping[str, str], body: bytes, tenant: Tenant, namespace: str
    ) -> Plan:
        ask = dialect.parse(endpoint, body, headers)
        route, targets = self._find_route(ask.model, dialect.name, tenant.regions)
        ruling = rule(ask, route.cache, route.match)
        scope = derive_scope(ask, tenant, namespace, route.cache.sharing)
        key = derive_key(ask, scope, self._embedder.stamp if ruling.exact_only is None else None)
        return Plan(ask, dialect, tenant, scope, key, route, ruling, targets)

    def _find_route(
        self, model: str | None, dialect: str, regions: frozenset[str]
    ) -> tuple[Route, Sequence[Target] | SemcacheError]:
        find = self._routes if len(model or "") <= MODEL_CHARS else self._route
        return find(model, dialect, regions)

    def _route(
        self, model: str | None, dialect: str, regions: frozenset[str]
    ) -> tuple[Route, Sequence[Target] | SemcacheError]:
        """The route of a model and the backends it may use, or why there are none. No model: the catch-all route.

        Raises ClientError for a model that no route takes.
        """
        routes = self._config.routes
        route = pick_route(routes, model) if model else next((r for r in routes if "*" in r.models), routes[0])
        try:
            return route, rank(route, self._config.pools, dialect, regions)
        except SemcacheError as error:  # matters only when the request must be forwarded
            return route, error

    def targets_for_path(
        self, path: str, headers: Mapping[str, str], model: str | None, tenant: Tenant
    ) -> Sequence[Target]:
        """Where a request goes that passes through. Raises ClientError when no backend may take it.

        A vendor's paths go to backends that speak its dialect, and so does the caller's key. Only where no backend in
        the whole configuration does, as behind `--upstream`, is the path left to those there are.
        """
        dialect = vendor_of(path, headers)
        spoken = {backend.dialect for pool in self._config.pools.values() for backend in pool.backends}
        if dialect not in spoken:
            dialect = min(spoken)
        _, targets = self._find_route(model, dialect, tenant.regions)
        if isinstance(targets, SemcacheError):
            raise targets
        return targets

    # The decision

    async def respond(self, plan: Plan, asked: Directives, headers: Mapping[str, str], outcome: Outcome) -> Reply:
        """Decide how the request is answered, and say so in `outcome`.

        Raises ClientError when the request must not be forwarded (only-if-cached, a region without a backend).
        """
        ruling = tighten(plan.ruling, asked)
        match = self._lookup.find_in_memory(plan.key, ruling) if ruling.skip_lookup is None else None
        if match is not None and ruling.may_serve:  # nine of ten hits, and nothing was waited for
            return self._serve(plan, ruling, match, headers, outcome)
        finding = await self._look_up(plan, ruling, outcome)
        match = finding.match
        if match is not None and ruling.may_serve:
            return self._serve(plan, ruling, match, headers, outcome)
        outcome.reason = finding.reason if match is None else Reason.EXPLORING
        outcome.similarity = finding.best_similarity if match is None else match.similarity
        if ruling.only_if_cached:
            raise _not_cached()
        return self._forward(plan, ruling, finding, headers, outcome)

    def forward_instead(self, plan: Plan, asked: Directives, headers: Mapping[str, str], outcome: Outcome) -> Followed:
        """The stored answer turned out to be no good: forward, and let a fresh one replace it."""
        self.faults["unplayable"] += 1
        ruling = replace(tighten(plan.ruling, asked), skip_lookup=Reason.CACHE_FAULT)
        outcome.reason = Reason.CACHE_FAULT
        if ruling.only_if_cached:
            raise _not_cached()
        reply = self._forward(plan, ruling, Finding(None, Reason.CACHE_FAULT), headers, outcome)
        assert isinstance(reply, Followed)
        return reply

    def forward_alone(self, plan: Plan, asked: Directives, headers: Mapping[str, str], outcome: Outcome) -> Followed:
        """What the flight brought that this request joined is no answer to it: fetch one for it alone."""
        ruling = replace(tighten(plan.ruling, asked), may_coalesce=False)
        outcome.collapsed = False
        reply = self._forward(plan, ruling, Finding(None, outcome.reason), headers, outcome)
        assert isinstance(reply, Followed)
        return reply

    async def _look_up(self, plan: Plan, ruling: Ruling, outcome: Outcome) -> Finding:
        """LOOKUP. A fault of the cache is a finding like any other: nothing found, for that reason."""
        if ruling.skip_lookup is not None:
            return Finding(None, ruling.skip_lookup)
        if plan.key.exact in self._learned:
            return Finding(None, Reason.LEARNED)
        try:
            return await self._lookup.find(plan.ask, plan.key, ruling, outcome.phases_ms)
        except CacheFault as fault:
            self.faults[type(fault).__name__] += 1
            return Finding(None, Reason.CACHE_FAULT)

    def _serve(self, plan: Plan, ruling: Ruling, match: Match, headers: Mapping[str, str], outcome: Outcome) -> Played:
        """A HIT, or a STALE one with a refresh under way."""
        outcome.verdict = Verdict.STALE if match.is_stale else Verdict.HIT
        outcome.tier = match.tier
        outcome.similarity = match.similarity
        outcome.entry_id = match.entry.id
        outcome.ttl_left_s = match.ttl_left_s
        outcome.age_s = match.age_s
        outcome.usage = match.entry.answer.usage
        if match.is_stale:
            self._refresh(plan, ruling, match, headers)
        return Played(match)

    def _refresh(self, plan: Plan, ruling: Ruling, match: Match, headers: Mapping[str, str]) -> None:
        """RFC 5861: one refresh of a stale answer, in the words of whoever met it first.

        Where those are other words, the flight must not be found by someone who asks exactly what the entry answered.
        """
        if ruling.only_if_cached:
            return  # this caller wants nothing fetched on his behalf
        key = self._flight_key(plan.key.exact if match.tier is Tier.EXACT else b"refresh " + match.entry.key.exact)
        if ruling.may_store and not self.flights.is_under_way(key) and not isinstance(plan.targets, SemcacheError):
            self._lead(plan, ruling, None, headers, key=key, keep=True)

    # COALESCE

    def _forward(
        self, plan: Plan, ruling: Ruling, finding: Finding, headers: Mapping[str, str], outcome: Outcome
    ) -> Reply:
        reason = finding.reason or Reason.EXPLORING
        outcome.verdict = Verdict.BYPASS if FWD[reason] == "bypass" else Verdict.MISS
        may_share = ruling.may_coalesce and reason is not Reason.LEARNED
        if may_share:
            flight = self.flights.find(self._flight_key(plan.key.exact))
            if flight is not None:
                outcome.verdict = Verdict.COALESCED
                outcome.collapsed = True
                recording = flight.recording
                return Followed(
                    flight,
                    in_same_form=plan.ask.stream == recording.is_stream,
                    is_anothers=plan.tenant.id != recording.tenant,
                )
            # Look again now that we lead: while we embedded, the previous leader may have stored its answer and
            # landed. Without this a burst fetches twice. Nothing is awaited from here to `lead`.
            match = self._lookup.find_in_memory(plan.key, ruling) if ruling.skip_lookup is None else None
            if match is not None:
                outcome.reason = None
                return self._serve(plan, ruling, match, headers, outcome)
        if isinstance(plan.targets, SemcacheError):
            raise plan.targets
        key = self._flight_key(plan.key.exact) if may_share else None
        return Followed(self._lead(plan, ruling, finding.vector, headers, key), in_same_form=True)

    def _flight_key(self, exact: bytes) -> Hashable:
        """A flight that began before a purge is joined by nobody who asks after it."""
        return exact, self._store.last_purge_seq

    def _lead(
        self,
        plan: Plan,
        ruling: Ruling,
        vector: Vector | None,
        headers: Mapping[str, str],
        key: Hashable | None,
        keep: bool = False,
    ) -> Flight[Recording]:
        limit_bytes = plan.route.cache.max_answer if ruling.may_store or key is not None else 0
        recording = Recording(limit_bytes, plan.ask.stream, plan.tenant.id)
        return self.flights.lead(
            key,
            recording,
            lambda flight: self._fetch(plan, ruling, vector, headers, recording),
            keep=keep or plan.route.cache.on_client_gone == "finish",
        )

    # ROUTE and FETCH

    async def _fetch(
        self, plan: Plan, ruling: Ruling, vector: Vector | None, headers: Mapping[str, str], recording: Recording
    ) -> None:
        """The task of a flight: write the recording to its end, and keep the answer if it may be kept."""
        since_seq = self._store.last_seq  # a purge after this beats what we are about to fetch
        try:
            reading = await self._write(plan, headers, recording)
            if recording.is_stream:
                recording.finish(reading)  # the client has its end now; the flight lands when the entry is durable
                await self._keep(plan, ruling, vector, recording, reading, since_seq)
                return
            # A JSON answer waits a moment for the store's word, so that its header can say `stored`.
            patience = asyncio.get_running_loop().call_later(JSON_ACK_S, recording.finish, reading)
            try:
                recording.stored = await self._keep(plan, ruling, vector, recording, reading, since_seq)
            finally:
                patience.cancel()
            recording.finish(reading)
        except SemcacheError as error:
            recording.fail(error)
        except Exception as exc:  # the top of a task: whoever follows must get an answer
            self.faults[type(exc).__name__] += 1
            log.error("a fetch failed unexpectedly: %s", type(exc).__name__)
            recording.fail(UpstreamError("the request could not be forwarded"))
        finally:
            if not recording.is_over:  # cancelled: nobody waits, or the program stops
                recording.fail(UpstreamError("the proxy is stopping", status=503, code="stopping"))

    async def _write(self, plan: Plan, headers: Mapping[str, str], recording: Recording) -> Reading:
        assert not isinstance(plan.targets, SemcacheError)
        ask_usage = plan.ask.stream and all(target.backend.stream_usage for target in plan.targets)
        request = UpstreamRequest(
            method="POST",
            path_and_query=f"/v1/{plan.ask.endpoint}",
            headers=headers,
            body=plan.dialect.upstream_body(plan.ask, ask_usage=ask_usage),
            want_recording=True,
            pass_key=not self._replaces_keys,
        )
        reply = await self._fetcher.fetch(plan.targets, request)
        begun = perf_counter()
        try:
            cache = plan.route.cache
            scribe = plan.dialect.scribe(
                plan.ask, reply.status, reply.headers, store_tools=cache.store_tools, limit_bytes=cache.max_answer
            )
            recording.begin(reply.status, reply.headers, reply.backend)
            async for chunk in reply.chunks():
                await recording.extend(scribe.feed(chunk, int((perf_counter() - begun) * 1000)))
            frames, reading = scribe.finish(reply.whole)
            if reading.unstorable is Unstorable.INCOMPLETE and not reply.whole:
                # Delimited by the connection's end, and not at an end of its own: a cut that HTTP does not show. Half
                # an event is held back, for the error event that comes now would be read as its other half.
                raise UpstreamError(f"{reply.backend} ended its answer early", sent=True)
            await recording.extend(frames)
            return reading
        finally:
            await reply.abort()  # after a whole reply there is nothing left to abort

    # STORE

    async def _keep(
        self,
        plan: Plan,
        ruling: Ruling,
        vector: Vector | None,
        recording: Recording,
        reading: Reading,
        since_seq: int,
    ) -> bool:
        """Store the answer if every gate is open. True once it is durable."""
        why_not = reading.unstorable
        if why_not is None and (not ruling.may_store or _forbids_storing(recording.headers) or reading.answer is None):
            why_not = Unstorable.REFUSED
        if why_not is None:
            why_not = await self._store_answer(plan, ruling, vector, reading, since_seq)
        recording.unstorable = why_not
        if why_not is None:
            self._learned.pop(plan.key.exact, None)
            self.stored += 1
            return True
        self.unstorable[why_not] += 1
        if why_not in _LASTING:
            self._learned[plan.key.exact] = why_not
        return False

    async def _store_answer(
        self, plan: Plan, ruling: Ruling, vector: Vector | None, reading: Reading, since_seq: int
    ) -> Unstorable | None:
        assert reading.answer is not None
        if vector is None and ruling.exact_only is None and plan.key.partition is not None:
            vector = await self._embed(plan.ask)
        entry = Entry(
            id=os.urandom(10).hex(),
            scope=plan.scope,
            key=plan.key if vector is not None else Key(plan.key.exact, None),
            question=plan.ask.question,
            vector=vector,
            embedder=self._embedder.stamp if vector is not None else None,
            answer=reading.answer,
            created_at=self._clock(),
            ttl_s=ruling.ttl_s,
            grace_s=ruling.grace_s,
            user=plan.ask.user,
            writer=plan.tenant.id,
        )
        try:
            seq = await self._store.put(entry, since_seq)
        except CacheFault as fault:
            self.faults[type(fault).__name__] += 1
            return Unstorable.STORE_FAULT
        return Unstorable.PURGED if seq is None else None

    async def _embed(self, ask: Ask) -> Vector | None:
        """The vector of a question that was not looked up by meaning (no-cache, a refresh). None: exact tier only."""
        try:
            return await self._embedder.embed(ask.question or "", lambda vector: vector)
        except (TooLong, CacheFault):
            return None

    def stats(self) -> dict[str, float]:
        return {
            **self.flights.stats(),
            "plans": len(self._plans),
            "learned": len(self._learned),
            "stored": self.stored,
            **{f"unstorable_{reason}": count for reason, count in self.unstorable.items()},
            **{f"fault_{name}": count for name, count in self.faults.items()},
        }


# Answers to the same request will most likely be refused again for these.
_LASTING = frozenset({Unstorable.FINISH, Unstorable.TOOL_CALLS, Unstorable.TOO_LARGE, Unstorable.EMPTY})


def _not_cached() -> ClientError:
    return ClientError("nothing stored answers this, and only-if-cached was asked", status=504, code="not_cached")


def _forbids_storing(headers: Mapping[str, str]) -> bool:
    """An upstream's `Cache-Control: no-store` is obeyed. Its `no-cache` and `private` are not: they speak of shared
    HTTP caches, and vendors send them with every answer; who shares is decided by scope here.
    """
    return any("no-store" in value.lower() for name, value in headers.items() if name.lower() == "cache-control")
