"""Processes that write to a store until they are killed; see test_store_crash.py.

Run as a program it forks a writer for each line of its input (database, pipe, name, seed, separated by tabs) and prints
the writer's process id: a start in milliseconds, where importing everything anew would take most of the test.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from semcache.cache.store import SqliteStore
from semcache.errors import StoreFault
from semcache.types import Selector
from tests.entries import STAMP, make_entry


async def write_until_killed(path: Path, pipe: int, name: str, seed: int) -> None:
    """Tell the number and question of each entry once it is acknowledged, a line each."""
    store = SqliteStore(path, max_entries=10**6)
    await store.open()
    await store.follow(0, lambda changes: None, STAMP)

    async def write(worker: int) -> None:
        number = seed % 40
        while True:
            question = f"{name} {worker} {number}"
            seq = await store.put(make_entry(question, padding=(seed * 7919 + number * 613) % 3000), store.last_seq)
            os.write(pipe, f"{seq} {question}\n".encode())
            # An entry that is replaced again and again, so that deletions are cut short, too.
            await store.put(make_entry("replaced", tenant="other", padding=number % 5000), store.last_seq)
            number += 1
            if worker == 0 and number % 40 == 0:
                await tidy(erase=number % 200 == 0)

    async def tidy(*, erase: bool) -> None:
        with suppress(StoreFault):  # an erase that the other process's reading got in the way of
            await store.purge(Selector(tenant="other"), erase=erase)
            await store.compact()

    await asyncio.gather(*(write(worker) for worker in range(48)))


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the writers
    for line in sys.stdin:
        path, pipe, name, seed = line.rstrip("\n").split("\t")
        pid = os.fork()
        if pid == 0:
            try:
                asyncio.run(write_until_killed(Path(path), os.open(pipe, os.O_WRONLY), name, int(seed)))
            finally:
                os._exit(1)  # never back into the loop of the one that forks
        print(pid, flush=True)


if __name__ == "__main__":
    main()
