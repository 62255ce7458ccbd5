"""`semcache serve`: the processes of one start, their signals, and what they say to the operator."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import uvloop

from semcache.app import App
from semcache.backends.headers import new_node
from semcache.config import Config
from semcache.errors import ConfigError
from semcache.listening.listener import url_of
from semcache.listening.unix_socket import UnixSocket
from semcache.reload import what_needs_a_restart
from semcache.workers import supervise


@dataclass(frozen=True, slots=True)
class _Start:
    """What all workers have from the process that forks them."""

    config: Config
    read: Callable[[], Config] | None
    path: Path | None
    node: str
    unix_socket: UnixSocket | None


def run(config: Config, read: Callable[[], Config] | None = None, path: Path | None = None) -> None:
    """Serve until SIGTERM or SIGINT; on SIGHUP, and when the file at `path` has changed, take what `read` returns.

    Raises StartError.
    """
    _say_what_is_logged()
    server = config.server
    # The kernel shares a port among processes that bind it each, a path only among those that inherit one socket.
    unix_socket = UnixSocket(server.unix_socket, int(server.unix_socket_mode, 8)) if server.unix_socket else None
    start = _Start(config, read, path, new_node(), unix_socket)
    try:
        if server.workers > 1:
            supervise(server.workers, lambda worker: _run_worker(start, worker))
        else:
            _run_worker(start, 0)
    finally:
        if unix_socket is not None:
            unix_socket.remove()


def _run_worker(start: _Start, worker: int) -> None:
    if start.read is not None:  # a worker that is started again takes what the others have taken meanwhile
        with suppress(ConfigError):
            fresh = start.read()
            if not what_needs_a_restart(start.config, fresh):
                start = replace(start, config=fresh)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(start, worker))


async def _serve(start: _Start, worker: int) -> None:
    server = start.config.server
    app = App(start.config, worker, unix_socket=start.unix_socket, read=start.read, path=start.path, node=start.node)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, app.reloader.asked, "SIGHUP")
    await app.start()
    _say(
        f"listening on {' and '.join(app.listener.addresses)}, "
        f"metrics on {url_of('http', server.admin_host, app.admin_port)}/metrics"
    )
    await stopping.wait()
    waiting = f"; running answers get up to {server.drain:g} s" if app.listener.stats()["connections"] else ""
    _say(f"stopping{waiting}")
    await app.stop()


def _say_what_is_logged() -> None:
    """Warnings go to the operator in the form of everything else that is said to him."""
    stderr = logging.StreamHandler()
    stderr.setFormatter(logging.Formatter("semcache: %(message)s"))
    logging.getLogger("semcache").addHandler(stderr)


def _say(line: str) -> None:
    """To the operator, in one write: workers share the stream, and print() writes its line break apart."""
    sys.stderr.write(f"semcache: {line}\n")
    sys.stderr.flush()
