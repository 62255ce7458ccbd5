"""The only place that constructs: every part is made here, started in order, and stopped in the opposite one.

The ports open once the model is loaded, in a third of a second, and /readyz answers 503 until the index has caught up
with the store. Requests are served meanwhile, from what is there already, so a large store is no long outage.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from semcache import __version__, wire
from semcache.access.credentials import Introduce, NoReader, Reader, introduce_nobody
from semcache.access.doors import Doors
from semcache.access.quota import Quotas
from semcache.admin.backends import BackendCalls
from semcache.admin.keys import KeyCalls
from semcache.admin.listener import Admin
from semcache.admin.reload import reload_routes
from semcache.admin.usage import usage_routes
from semcache.admit import Admission
from semcache.answer_judge import PoolJudge
from semcache.audit.log import AuditLog, NoAudit, open_audit
from semcache.audit.record import Event
from semcache.backends.dispatch import Dispatcher
from semcache.backends.fetch import Fetcher
from semcache.backends.headers import new_node
from semcache.cache.embedder import Embedder
from semcache.config import Chain, Config
from semcache.core import Core
from semcache.delivery import Deliverer
from semcache.errors import SemcacheError
from semcache.explaining import Explaining
from semcache.feedback import FeedbackDesk
from semcache.forwarding import Forwarder
from semcache.gate import Gate
from semcache.listening.listener import Listener
from semcache.listening.unix_socket import UnixSocket
from semcache.metering import Meter
from semcache.pacing import RealTime, Timer
from semcache.passing import PassThrough
from semcache.recent_requests import RecentRequests
from semcache.reload import Reloader
from semcache.replying import Replier
from semcache.request_log import open_log
from semcache.server import Server
from semcache.telemetry import Telemetry
from semcache.types import Outcome, Tenant
from semcache.usage import Ledger, load_prices, prices_of
from semcache.usage.flushing import Flushing
from semcache.usage.rollups import UsageFile, usage_path

GC_THRESHOLD = 20_000  # objects: a request makes some hundred, nearly all freed by reference counts


class App:
    """One worker: a data plane, its admin listener, and the cache behind both."""

    def __init__(
        self,
        config: Config,
        worker: int = 0,
        embedder: Embedder | None = None,
        clock: Callable[[], float] = time.time,
        unix_socket: UnixSocket | None = None,
        timer: Timer | None = None,
        read: Callable[[], Config] | None = None,
        path: Path | None = None,
        node: str | None = None,
    ) -> None:
        """`worker`: its number among those that share the port; 0 also looks after the store they share.
        `unix_socket`: bound before the workers were forked, and theirs together; None: bound here if the settings ask.

        `read`: the configuration as it is written now, for a reload; raises ConfigError. `path`: of its file, which is
        watched.

        `node`: our name in Via, the same for all workers.

        `embedder`, `clock` (unix seconds) and `timer` are given by tests. Raises StartError when the model is not
        prepared.
        """
        self.config = config
        self._worker = worker
        self._unix_socket = unix_socket
        self._own_unix_socket: UnixSocket | None = None
        self._is_stopping = False
        self.node = node or new_node()

        # What is written down: money, acts, requests
        self._prices = load_prices(Path(config.usage.prices) if config.usage.prices else None)
        self.ledger = Ledger(
            self._prices,
            backend_prices=prices_of(config.pools),
            bills_by_fetch=True,
            embedder_seconds=self._computed_s,
            usd_per_cpu_hour=config.usage.usd_per_cpu_hour,
            clock=clock,
        )
        self.quotas = Quotas(clock)
        self.meter = Meter(self.ledger, self.quotas, clock)
        usage_file = usage_path(config)
        kept = config.usage.keep_minutes, config.usage.keep_hours
        file = UsageFile(usage_file, *kept) if usage_file is not None else None
        self.flushing = Flushing(file, self.ledger, self.quotas, config.usage.flush, clock)
        self.audit = open_audit(config.audit, config.server.region)
        self.request_log = open_log(config.server)
        recent = RecentRequests(self.request_log)
        self.telemetry = Telemetry(self.stats, self.ledger, recent)

        # Where misses go
        self.fetcher = Fetcher(node=self.node)
        self.dispatcher = Dispatcher(config.pools, self.fetcher, config.routes, record=self._record_event)
        self.judge = PoolJudge(config.pools, self.fetcher, bill=self.meter.judged)

        # The cache
        self.core = Core(
            config, worker == 0, embedder, clock, self._prices, self.judge, bill_embedding=self._bill_embedding
        )
        self.store, self.index, self.pipeline = self.core.store, self.core.index, self.core.pipeline
        planner = self.core.planner
        self.feedback = FeedbackDesk(self.store, clock)

        # Who may ask
        self.doors = Doors(config, lambda: self.config.tenants, self._record_key, clock)
        self.admission = admission = Admission(config.tenants, self.doors.keyring, self.doors.tokens, clock)
        reader, introduce = chained(config.chain, self.node, admission.find, clock)
        self.gate = Gate(admission, self.quotas, lambda: planner.residency, clock, reader=reader)

        # The data plane
        timer = timer or RealTime()
        self.deliverer = Deliverer(self.pipeline, clock, timer)
        replier = Replier(self.gate, config.server.compress_from)
        self.server = Server(
            config,
            self.gate,
            admission,
            planner,
            self.deliverer,
            Forwarder(self.dispatcher, self.meter, lambda: admission.replaces_keys, timer.now),
            PassThrough(config.server, self.gate, admission, planner, self.dispatcher, replier, introduce),
            replier,
            self.feedback,
            Observers(self.telemetry, self.audit),
            self.unready,
            introduce,
            self.node,
        )
        self.listener = Listener(self.server.handle, config.server, _error_page)

        # The operator's port
        watched = path if config.server.reload_on_change else None
        self.reloader = Reloader(config, read, self._adopt, watched, self._record_event)
        self.explaining = Explaining(
            config.routes, config.tenants, admission, planner, self.pipeline, self.core.explainer, self.store, recent
        )
        calls = [
            *reload_routes(self.reloader, self._tell_others),
            *KeyCalls(self.doors.locksmith, self.doors.keyring).routes(),
            *usage_routes(usage_file, clock),
            *BackendCalls(self.dispatcher.fleet, self._record_event).routes(),
        ]
        self.admin = Admin(
            config.server,
            self.store,
            self.telemetry,
            self.unready,
            self.stats,
            self.explaining,
            self.core,
            calls,
            self.audit,
        )

    def _adopt(self, config: Config) -> None:
        """Go by these settings from the next request on: assignments only, in one turn of the event loop."""
        self.config = config
        self.core.adopt(config)
        self.fetcher.adopt(config.pools)
        self.ledger.adopt(self._prices, prices_of(config.pools))
        self.dispatcher.adopt(config.pools, config.routes)
        self.judge.adopt(config.pools)
        self.admission.adopt(config.tenants)
        self.explaining.adopt(config.routes, config.tenants)

    def _record_event(self, event: str, facts: Mapping[str, object]) -> None:
        self.audit.record(Event(event), regions=frozenset(), **facts)

    def _computed_s(self) -> float:
        """Seconds that cores of ours were busy embedding. A remote embedder only has us wait, and sends a bill."""
        is_remote = self.config.embedder.engine == "openai"
        return 0.0 if is_remote else self.core.embedder.stats().get("seconds", 0.0)

    def _bill_embedding(self, tokens: int | None, texts: Sequence[str]) -> None:
        self.meter.embedded(self.config.embedder.model, self.config.embedder.region, tokens, texts)

    def _record_key(self, event: str, *, regions: frozenset[str], **facts: object) -> None:
        self.audit.record(Event(event), regions=regions, **facts)

    def _tell_others(self) -> None:
        if self.config.server.workers > 1:
            os.kill(os.getppid(), signal.SIGHUP)  # the parent passes it on to all of us

    def unready(self) -> Sequence[str]:
        """What is still missing; empty when requests can be answered from the cache."""
        if self._is_stopping:
            return ["stopping"]
        missing = [] if self.core.is_ready else ["the index has not caught up with the store"]
        complaint = self.audit.complaint()
        return missing if complaint is None else [*missing, complaint]

    def stats(self) -> dict[str, Mapping[str, object]]:
        return {
            **self.core.stats(),
            "learning": {**self.core.learning.stats(), **self.judge.stats()},
            "listener": self.listener.stats(),
            "delivery": self.deliverer.stats(),
            "feedback": self.feedback.stats(),
            "backends": {**self.fetcher.stats(), **self.dispatcher.stats(), "pools": self.dispatcher.fleet.pools()},
            "request_log": self.request_log.stats(),
            "usage": self.ledger.stats(),
            "usage_file": {**self.flushing.stats(), "faults": self.flushing.faults + self.meter.faults},
            "audit": self.audit.stats(),
            "keys": self.doors.stats(),
            "residency": {"refused": self.core.planner.residency.refused},
            **self.gate.stats(),
            "reload": self.reloader.stats(),
        }

    async def start(self) -> None:
        """Open the ports and load the model; the index catches up meanwhile. Raises StartError with one clear line."""
        await self.core.start()
        try:
            await self.fetcher.start()
            self.dispatcher.fleet.start()
            self.request_log.start()
            self.audit.start()
            await self.flushing.start()
            await self.doors.start()
            await self._open_ports()
        except BaseException:  # a port that is taken, say: nothing of what was started stays behind
            await self._close()
            raise
        self.audit.record(Event.START, version=__version__, worker=self._worker)
        self.core.follow()
        self.reloader.start()
        self._settling = asyncio.create_task(self._settle())

    async def _open_ports(self) -> None:
        server = self.config.server
        if server.unix_socket is not None and self._unix_socket is None:
            self._unix_socket = self._own_unix_socket = UnixSocket(server.unix_socket, int(server.unix_socket_mode, 8))
        self.port = await self.listener.start(server.host, server.port, server.workers > 1, self._unix_socket)
        admin_port = server.admin_port + self._worker if server.admin_port else 0  # each worker has its own figures
        self.admin_port = await self.admin.start(server.admin_host, admin_port)

    async def _settle(self) -> None:
        """What was built so far lives as long as the process: the collector need not walk a large index each time."""
        await self.core.caught_up()
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 20, 50)

    async def caught_up(self) -> None:
        """Wait until ready."""
        await self._settling

    async def stop(self) -> None:
        """Drain: refuse new connections, let running answers finish within `server.drain`, then close everything."""
        self._is_stopping = True
        self._settling.cancel()
        await self._close(self.config.server.drain)

    async def _close(self, drain_s: float = 0.0) -> None:
        async with AsyncExitStack() as closing:  # the last line first; one that fails skips none of the others
            closing.push_async_callback(asyncio.to_thread, self.request_log.stop)
            closing.push_async_callback(asyncio.to_thread, self.audit.stop)
            closing.callback(self.audit.record, Event.STOP)
            closing.push_async_callback(self.fetcher.close)
            closing.push_async_callback(self.dispatcher.fleet.stop)
            closing.push_async_callback(self.flushing.stop)
            closing.push_async_callback(self.gate.close)
            closing.push_async_callback(self.doors.stop)
            closing.push_async_callback(self.meter.drain)
            closing.push_async_callback(self.core.stop)
            closing.push_async_callback(self.admin.stop)
            if self._own_unix_socket is not None:
                closing.callback(self._own_unix_socket.remove)
            closing.push_async_callback(self.listener.drain, drain_s)
            closing.push_async_callback(self.reloader.stop)


def chained(
    chain: Chain | None, node: str, find: Callable[[str], Tenant | None], clock: Callable[[], float]
) -> tuple[Reader, Introduce]:
    """How we learn from other semcaches who asks, and how we tell them."""
    if chain is None:
        return NoReader(), introduce_nobody
    from semcache.access.chain import Signer, Verifier

    signer = Signer(chain, node)

    def introduce(tenant: Tenant, namespace: str, regions: frozenset[str]) -> Callable[[], str]:
        return lambda: signer.sign(replace(tenant, regions=regions), namespace, clock())

    return Verifier(chain, find) if chain.accept else NoReader(), introduce


class Observers:
    """Who is told what became of each request."""

    def __init__(self, telemetry: Telemetry, audit: AuditLog | NoAudit) -> None:
        self._telemetry = telemetry
        self._audit = audit

    def observe(self, outcome: Outcome, question: str | None = None) -> None:
        self._telemetry.observe(outcome, question)
        self._audit.observe(outcome, question)


def _error_page(path: str, error: SemcacheError) -> tuple[bytes, str]:
    return wire.error_shape(path).error_body(error, ""), "application/json"
