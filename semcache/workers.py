"""Several processes on one port: the kernel spreads connections over them (SO_REUSEPORT), the store joins them.

Each worker is a whole proxy with its own event loop, embedder and index; all follow the same store, so what one learns
the others know within a tenth of a second. The parent only starts them, restarts those that die, and passes signals on.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from semcache.errors import SemcacheError, StartError

_STOPPING = (signal.SIGTERM, signal.SIGINT)

RESTART_PAUSE_S = 1.0  # so that a worker that cannot start does not spin
STARTING_S = 5.0  # a worker that fails within this has never served: the fault is in the settings, not in the moment


def supervise(count: int, work: Callable[[int], None]) -> None:
    """Run `work(number)` in `count` child processes until SIGTERM or SIGINT; return when all have ended.

    Raises StartError when a worker cannot start.
    """
    children: dict[int, int] = {}  # process id -> worker number
    stopping = False

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        tell(signal.SIGTERM)

    def pass_on(number: int, _: FrameType | None) -> None:
        tell(number)

    def tell(number: int) -> None:
        for pid in tuple(children):
            with suppress(ProcessLookupError):  # it has ended, and we were about to note that
                os.kill(pid, number)

    for number in _STOPPING:
        signal.signal(number, stop)
    signal.signal(signal.SIGHUP, pass_on)  # each reads the configuration again

    def start(worker: int) -> None:
        # A signal between the fork and the note of it would miss the new child.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        try:
            if not stopping:  # one that was told before has just been heard
                children[_fork(worker, work)] = worker
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)

    for worker in range(count):
        start(worker)
    started = time.monotonic()
    failed = False
    while children:
        pid, status = os.wait()
        worker = children.pop(pid)
        if stopping:
            continue
        if time.monotonic() - started < STARTING_S and os.waitstatus_to_exitcode(status) > 0:
            failed = True
            stop(signal.SIGTERM, None)
            continue
        print(f"semcache: worker {worker} ended with status {status}; starting it again", file=sys.stderr, flush=True)
        time.sleep(RESTART_PAUSE_S)
        start(worker)
    if failed:
        raise StartError("a worker could not start; its own message is above")


def _fork(worker: int, work: Callable[[int], None]) -> int:
    """Before any thread or event loop exists in the parent, so that forking is safe."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        for number in _STOPPING:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it serves: what it would read it is about to read anyhow
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        work(worker)
        status = 0
    except SemcacheError as error:
        print(f"semcache: {error.message}", file=sys.stderr, flush=True)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)  # never back into the parent's code
