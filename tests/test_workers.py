"""The parent of several workers: started, and stopped by signals that come whenever they like."""

from __future__ import annotations

import asyncio
import sys

# The first worker has the parent stop while that is still starting the others.
PROGRAM = """
import os, signal, time
from semcache.workers import supervise

def work(worker):
    if worker == 0:
        os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(60)

supervise(40, work)
"""


async def test_a_stop_that_comes_while_workers_are_started_stops_all_of_them() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM)
    async with asyncio.timeout(30):
        assert await process.wait() == 0
