"""Programs that a demo, a load test or a benchmark starts, waits for, and never leaves behind.

A child runs in a session of its own, so that Ctrl-C reaches only the parent, which then stops its children in order.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from semcache.errors import StartError

POLL_S = 0.02
SEMCACHE = (sys.executable, "-m", "semcache")  # this program, as a command
START_S = 60.0  # long enough for a cold disk; a child that fails ends the wait at once
STOP_S = 15.0  # then it is killed


class Child:
    """One running program. What it prints goes to the file `log`; a failure to start is told in its own last line."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.command = command
        self.log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.pid = self._process.pid

    def wait_for_line(self, pattern: str) -> re.Match[str]:
        """Wait until something is printed that matches. Raises StartError."""
        for _ in self._while_starting(f"did not print {pattern!r}"):
            found = re.search(pattern, self.log.read_text(errors="replace"))
            if found:
                return found
        raise AssertionError("the loop above returns or raises")

    def wait_until_ready(self, url: str) -> None:
        """Wait until a GET of this URL gives 200. Raises StartError."""
        for _ in self._while_starting(f"{url} was not ready"):
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1):
                return

    def _while_starting(self, complaint: str) -> Iterator[None]:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            yield
            if self._process.poll() is not None:
                lines = self.log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                raise StartError(f"{self._name} ended: {lines[-1].removeprefix('semcache: ')}")
            time.sleep(POLL_S)
        raise StartError(f"{self._name}: {complaint} within {START_S:g} s; its output is in {self.log}")

    @property
    def _name(self) -> str:
        """The program and its command, for messages: `semcache serve`."""
        words = list(self.command)
        words = words[words.index("-m") + 1 :] if "-m" in words else words
        return " ".join(words[:2])

    def kill(self) -> None:
        """As a machine that loses its power."""
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """As a machine that hangs: its connections stay open, and nothing comes."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def wait(self) -> int:
        """Return its exit status once it has ended."""
        return self._process.wait()

    def stop(self) -> None:
        """SIGTERM, and after STOP_S the end of patience."""
        if self._process.poll() is None:
            self._process.terminate()
            self.thaw()  # a frozen one would not hear it
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def start_simulator(
    folder: Path,
    *options: str,
    ttft: str,
    rate: float,
    port: int = 0,
    name: str = "simulate",
    prefix: Sequence[str] = (),
) -> tuple[Child, str]:
    """Return the child and its base URL, with /v1.

    `name`: of its log. `prefix`: put before the command, as `taskset -c 1`.
    """
    arguments = ["simulate", "--port", str(port), "--ttft", ttft, "--rate", str(rate), *options]
    child = Child([*prefix, *SEMCACHE, *arguments], folder / f"{name}.log")
    with _stopped_on_failure(child):
        return child, child.wait_for_line(r"(http://\S+/v1)")[1]


def start_proxy(
    folder: Path, upstream: str, *options: str, port: int = 0, prefix: Sequence[str] = ()
) -> tuple[Child, str, str]:
    """Return the child, its base URL without /v1, and the URL of its metrics; it is ready to answer from its cache."""
    arguments = ["serve", "--upstream", upstream, "--port", str(port), "--admin-port", "0"]
    store = [] if "--store" in options else ["--store", f"sqlite:{folder / 'cache.db'}"]
    child = Child([*prefix, *SEMCACHE, *arguments, *store, *options], folder / "serve.log")
    with _stopped_on_failure(child):
        found = child.wait_for_line(r"listening on (http://[^\s,]+), metrics on (http://\S+)")
        child.wait_until_ready(f"{found[1]}/readyz")
    return child, found[1], found[2]


@contextlib.contextmanager
def _stopped_on_failure(child: Child) -> Iterator[None]:
    try:
        yield
    except BaseException:
        child.stop()
        raise


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end the block as Ctrl-C does, so that its `finally` can stop the children."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGINT)  # asyncio turns this one into a cancellation

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
