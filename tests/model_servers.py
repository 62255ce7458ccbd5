"""Real model servers that can be killed and frozen: `transformers serve`, with the tiny model of tests/e2e."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from semcache.children import Child
from tests.e2e import environments, model_server

MODEL = model_server.MODEL


class ModelServer:
    """One server as a process. It comes back on its port, with the model loaded."""

    def __init__(self, number: int, folder: Path, packages: Path) -> None:
        self.number = number
        self._folder = folder
        self._packages = packages
        self._logs: list[Path] = []
        self._port = 0
        self._child: Child | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def answered(self) -> int:
        """Chat requests that it answered, as its own logs tell, over all its lives."""
        line = '"POST /v1/chat/completions HTTP/1.1" 200'
        return sum(len(re.findall(line, log.read_text(errors="replace"))) for log in self._logs)

    def start(self) -> None:
        """Begin to start; `wait` until it listens."""
        self._logs.append(self._folder / f"server-{self.number}-{len(self._logs)}.log")
        # One thread: the model is so small that others would only wait for a core.
        command = model_server.command(self._folder, self._packages, self._port, threads=1)
        self._child = Child(command, self._logs[-1])

    def wait(self) -> None:
        """Raises StartError."""
        assert self._child is not None
        found = self._child.wait_for_line(model_server.RUNNING)
        self._port = int(found[1].rpartition(":")[2])

    def kill(self) -> None:
        assert self._child is not None
        self._child.kill()

    def freeze(self) -> None:
        assert self._child is not None
        self._child.freeze()

    def thaw(self) -> None:
        assert self._child is not None
        self._child.thaw()

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()


@contextmanager
def model_servers(count: int, folder: Path) -> Iterator[Sequence[ModelServer]]:
    """So many servers that listen. What they need more is installed beside the project's packages, once."""
    packages = environments.more_packages("serve", print)
    model_server.make_model(folder / MODEL)
    with ExitStack() as stack:
        servers = [ModelServer(number, folder, packages) for number in range(count)]
        for server in servers:
            stack.callback(server.stop)
            server.start()
        for server in servers:
            server.wait()
        yield servers
