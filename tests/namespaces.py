"""Several hosts on one machine: network namespaces, joined by a switch, whose cables can be pulled.

A namespace has its own interfaces, addresses and routes, so a host here reaches another over the network only, and a
pulled cable looks as it does in a data centre: nothing is refused, nothing comes back. It takes root; without it,
`unshare -Urn .venv/bin/python -m pytest tests/test_namespaces.py` makes one where the kernel lets users do so.

Each namespace is held by a `cat` that ends when its input does. However the test ends, nothing is left.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
SUBNET = "10.77.0"
PROGRAMS = ("unshare", "nsenter", "ip", "cat")


class Forbidden(Exception):
    """This machine does not let us make networks; the message says why."""


class Host:
    """One namespace. `address`: where the others reach what listens there on 0.0.0.0 or on this address."""

    def __init__(self, name: str, address: str, namespace: Namespace, switch: Namespace) -> None:
        self.name = name
        self.address = address
        self._namespace = namespace
        self._switch = switch

    @property
    def prefix(self) -> list[str]:
        """Put before a command, it runs on this host."""
        return self._namespace.prefix

    def call(self, function: Callable[[], T]) -> T:
        """Call it on this host: the sockets it opens are this host's, for a thread may be in a network of its own."""
        results: list[T] = []
        failures: list[BaseException] = []

        def run() -> None:
            try:
                self._namespace.enter()
                results.append(function())
            except BaseException as failure:
                failures.append(failure)

        thread = threading.Thread(target=run, name=f"on {self.name}")
        thread.start()
        thread.join()
        if failures:
            raise failures[0]
        return results[0]

    def unplug(self) -> None:
        self._switch.ip("link", "set", self.name, "down")

    def plug(self) -> None:
        self._switch.ip("link", "set", self.name, "up")

    def delay(self, milliseconds: int) -> None:
        """Let what leaves this host arrive so much later. Raises Forbidden where the kernel has no `netem`."""
        done = subprocess.run(
            [*self.prefix, "tc", "qdisc", "replace", "dev", "eth0", "root", "netem", "delay", f"{milliseconds}ms"],
            check=False,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise Forbidden(f"no delays on this machine: tc says {done.stderr.strip()}")


class Namespace:
    def __init__(self, holder: subprocess.Popen[bytes]) -> None:
        self._path = f"/proc/{holder.pid}/ns/net"

    @property
    def prefix(self) -> list[str]:
        return ["nsenter", f"--net={self._path}"]

    @property
    def path(self) -> str:
        return self._path

    def ip(self, *words: str) -> None:
        _run([*self.prefix, "ip", *words])

    def enter(self) -> None:
        """Of the calling thread."""
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(descriptor)


@contextmanager
def hosts(*names: str) -> Iterator[dict[str, Host]]:
    """So many hosts, every one reachable from every other. Raises Forbidden."""
    for program in PROGRAMS:
        if shutil.which(program) is None:
            raise Forbidden(f"{program} is not installed")
    with ExitStack() as stack:
        switch = stack.enter_context(_namespace())
        switch.ip("link", "add", "bridge0", "type", "bridge")
        switch.ip("link", "set", "bridge0", "up")
        made = {}
        for number, name in enumerate(names, start=1):
            namespace = stack.enter_context(_namespace())
            # Both ends are made at the switch, and one is moved: its name here is the host's, at most 15 letters.
            switch.ip("link", "add", name, "type", "veth", "peer", "name", "eth0")
            switch.ip("link", "set", "eth0", "netns", namespace.path.split("/")[2])
            switch.ip("link", "set", name, "master", "bridge0", "up")
            address = f"{SUBNET}.{number}"
            namespace.ip("link", "set", "lo", "up")
            namespace.ip("address", "add", f"{address}/24", "dev", "eth0")
            namespace.ip("link", "set", "eth0", "up")
            made[name] = Host(name, address, namespace, switch)
        yield made


@contextmanager
def _namespace() -> Iterator[Namespace]:
    holder = subprocess.Popen(
        ["unshare", "--net", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert holder.stdin is not None and holder.stdout is not None and holder.stderr is not None
    try:
        # What comes back proves that `cat` runs, and so that the namespace is there.
        try:
            holder.stdin.write(b"?")
            holder.stdin.flush()
        except BrokenPipeError:
            pass
        if not holder.stdout.read(1):
            raise Forbidden(f"no networks on this machine: {holder.stderr.read().decode().strip()}")
        yield Namespace(holder)
    finally:
        holder.stdin.close()
        holder.wait()
        holder.stdout.close()
        holder.stderr.close()


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise Forbidden(f"no networks on this machine: {done.stderr.strip() or command}")
