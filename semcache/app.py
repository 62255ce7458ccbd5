"""The only place that constructs: every part is made here, started in order, and stopped in the opposite one.

The ports open once the model is loaded, in a third of a second, and /readyz answers 503 until the index has caught up
with the store. Requests are served meanwhile, from what is there already, so a large store is no long outage.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import uvloop

from semcache import wire
from semcache.admin import Admin
from semcache.admit import Admission
from semcache.backends.fetch import Fetcher
from semcache.cache import embedder as embedders
from semcache.cache.embedder import Embedder
from semcache.cache.index import Index
from semcache.cache.lookup import Lookup
from semcache.cache.store import open_store
from semcache.cache.upkeep import Upkeep
from semcache.config import Config
from semcache.errors import CacheFault, SemcacheError, StoreFault
from semcache.listener import Listener, url_of
from semcache.pipeline import Pipeline
from semcache.planning import Planner
from semcache.request_log import open_log
from semcache.server import Server
from semcache.telemetry import Telemetry
from semcache.unix_socket import UnixSocket
from semcache.usage import Ledger, load_prices
from semcache.workers import supervise

log = logging.getLogger(__name__)

CATCH_UP_PAUSE_S = 1.0
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
    ) -> None:
        """`worker`: its number among those that share the port; 0 also looks after the store they share.
        `unix_socket`: bound before the workers were forked, and theirs together; None: bound here if the settings ask.

        `embedder` and `clock` (unix seconds) are given by tests. Raises StartError when the model is not prepared.
        """
        self.config = config
        self._worker = worker
        self._unix_socket = unix_socket
        self._own_unix_socket: UnixSocket | None = None
        self._unready = ["the index has not caught up with the store"]
        self._following: asyncio.Task[None] | None = None
        self.store = open_store(config.cache, clock)
        self.embedder = embedder or embedders.build(config.embedder)
        self.index = Index(self.embedder.dimensions, self.embedder.stamp, snapshot_folder(config))
        self.fetcher = Fetcher()
        self.request_log = open_log(config.server)
        self.ledger = Ledger(load_prices())
        self.telemetry = Telemetry(self.stats, self.ledger, self.request_log)
        admission = Admission(config.tenants)
        self.planner = Planner(config, self.embedder.stamp)
        lookup = Lookup(self.index, self.store, self.embedder, clock)
        self.pipeline = Pipeline(lookup, self.embedder, self.store, clock)
        self.server = Server(
            config, admission, self.planner, self.pipeline, self.fetcher, self.telemetry, self.unready, clock
        )
        self.listener = Listener(self.server.handle, config.server, _error_page)
        self.admin = Admin(config.server, self.store, self.telemetry, self.unready, self.stats)
        self.upkeep = Upkeep(self.store, self._save_snapshot, leads=worker == 0, clock=clock)
        self.store.on_erase = self._forget_snapshot

    def unready(self) -> Sequence[str]:
        """What is still missing; empty when requests can be answered from the cache."""
        return self._unready

    def stats(self) -> dict[str, Mapping[str, object]]:
        return {
            "pipeline": {**self.planner.stats(), **self.pipeline.stats()},
            "embedder": self.embedder.stats(),
            "index": self.index.stats(),
            "store": self.store.stats(),
            "listener": self.listener.stats(),
            "backends": self.fetcher.stats(),
            "upkeep": self.upkeep.stats(),
            "request_log": self.request_log.stats(),
            "usage": self.ledger.stats(),
        }

    async def start(self) -> None:
        """Open the ports and load the model; the index catches up meanwhile. Raises StartError with one clear line."""
        server = self.config.server
        await self.fetcher.start()
        await self.store.open()
        self.request_log.start()
        await self.embedder.start()
        self.index.start()
        if server.unix_socket is not None and self._unix_socket is None:
            self._unix_socket = self._own_unix_socket = UnixSocket(server.unix_socket, int(server.unix_socket_mode, 8))
        self.port = await self.listener.start(server.host, server.port, server.workers > 1, self._unix_socket)
        admin_port = server.admin_port + self._worker if server.admin_port else 0  # each worker has its own figures
        self.admin_port = await self.admin.start(server.admin_host, admin_port)
        self.upkeep.start()
        self._following = asyncio.create_task(self._catch_up())

    async def _catch_up(self) -> None:
        """Take the snapshot if it proves itself, then follow the store's changes, for good."""
        store, index = self.store, self.index
        await asyncio.to_thread(index.load_snapshot, store.id, store.last_seq, store.floor_seq)
        while True:
            try:
                await store.follow(index.position, index.apply, self.embedder.stamp)
                break
            except StoreFault as fault:  # another program holds the file, say: without its changes nothing is served
                log.warning("the index cannot catch up with the store, and tries again: %s", fault)
                await asyncio.sleep(CATCH_UP_PAUSE_S)
        # What was built so far lives as long as the process: the collector need not walk a large index again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 20, 50)
        self._unready = []

    async def caught_up(self) -> None:
        """Wait until ready."""
        if self._following is not None:
            await self._following

    async def stop(self) -> None:
        """Drain: refuse new connections, let running answers finish within `server.drain`, then close everything."""
        self._unready = ["stopping"]
        await self.listener.drain(self.config.server.drain)
        if self._own_unix_socket is not None:
            self._own_unix_socket.remove()
        self.pipeline.flights.cancel()
        await self.pipeline.flights.drain()
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self.upkeep.stop()
        await self.admin.stop()
        await self.fetcher.close()
        await self.embedder.close()
        try:
            await asyncio.to_thread(self._save_snapshot)
        except CacheFault as fault:  # a full disk: the next start follows the store from further back
            log.warning("the index was not saved: %s", fault)
        await asyncio.to_thread(self.index.close)
        await self.store.close()
        await asyncio.to_thread(self.request_log.stop)

    async def _forget_snapshot(self) -> None:
        """After an erase nothing may be left of what was erased, in the index's file neither."""
        await asyncio.to_thread(self.index.discard_snapshot)

    def _save_snapshot(self) -> None:
        if self._worker == 0:
            self.index.save_snapshot(self.store.id)


def _error_page(path: str, error: SemcacheError) -> tuple[bytes, str]:
    return wire.error_shape(path).error_body(error, ""), "application/json"


def snapshot_folder(config: Config) -> Path | None:
    """Where the index is saved: beside the database. Workers share what the first one saves."""
    scheme, _, path = config.cache.store.partition(":")
    return Path(f"{path}.index") if scheme == "sqlite" and path else None


def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT. Raises StartError."""
    server = config.server
    # The kernel shares a port among processes that bind it each, a path only among those that inherit one socket.
    unix_socket = UnixSocket(server.unix_socket, int(server.unix_socket_mode, 8)) if server.unix_socket else None
    try:
        if server.workers > 1:
            supervise(server.workers, lambda worker: _run_worker(config, worker, unix_socket))
        else:
            _run_worker(config, 0, unix_socket)
    finally:
        if unix_socket is not None:
            unix_socket.remove()


def _run_worker(config: Config, worker: int, unix_socket: UnixSocket | None) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, worker, unix_socket))


async def _serve(config: Config, worker: int, unix_socket: UnixSocket | None) -> None:
    app = App(config, worker, unix_socket=unix_socket)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await app.start()
    _say(
        f"listening on {' and '.join(app.listener.addresses)}, "
        f"metrics on {url_of('http', config.server.admin_host, app.admin_port)}/metrics"
    )
    await stopping.wait()
    waiting = f"; running answers get up to {config.server.drain:g} s" if app.listener.stats()["connections"] else ""
    _say(f"stopping{waiting}")
    await app.stop()


def _say(line: str) -> None:
    """To the operator, in one write: workers share the stream, and print() writes its line break apart."""
    sys.stderr.write(f"semcache: {line}\n")
    sys.stderr.flush()
