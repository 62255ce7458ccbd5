"""Three regions as hosts on a network of their own: what a partition may cost, and what it may never do."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from semcache import children
from tests import namespaces

REGIONS = ("eu", "us", "ap")
BACKENDS = ("eu-gpu-1", "eu-gpu-2", "us-gpu", "ap-gpu")
PORT = 8000
EU_ONLY, ANYWHERE = "key-of-a-clinic", "key-of-a-game"


@pytest.fixture(scope="module")
def network() -> Iterator[dict[str, namespaces.Host]]:
    with ExitStack() as stack:
        try:
            made = stack.enter_context(namespaces.hosts("client", *REGIONS, *BACKENDS))
        except namespaces.Forbidden as why:
            pytest.skip(str(why))
        yield made


def test_hosts_reach_each_other_and_only_by_their_cables(network: dict[str, namespaces.Host]) -> None:
    client, other = network["client"], network["us"]
    with other.call(lambda: socket.create_server((other.address, 9000))):
        assert client.call(lambda: _connects(other.address, 9000))
        other.unplug()
        assert not client.call(lambda: _connects(other.address, 9000))
        other.plug()
        assert _in_time(lambda: client.call(lambda: _connects(other.address, 9000)))


def test_hosts_share_no_loopback(network: dict[str, namespaces.Host]) -> None:
    with (
        network["eu"].call(lambda: socket.create_server(("127.0.0.1", 9000))),
        network["us"].call(lambda: socket.create_server(("127.0.0.1", 9000))),
    ):
        assert not network["ap"].call(lambda: _connects("127.0.0.1", 9000))


def test_a_delay_is_felt_on_the_way(network: dict[str, namespaces.Host]) -> None:
    client, other = network["client"], network["ap"]
    try:
        other.delay(60)
    except namespaces.Forbidden as why:
        pytest.skip(str(why))
    try:
        with other.call(lambda: socket.create_server((other.address, 9000))):
            begun = time.monotonic()
            assert client.call(lambda: _connects(other.address, 9000))
            assert time.monotonic() - begun >= 0.06
    finally:
        other.delay(0)


class World:
    """A backend on every GPU host, and a proxy in every region that prefers its own."""

    def __init__(self, network: dict[str, namespaces.Host], folder: Path, stack: ExitStack) -> None:
        self.network = network
        for name in BACKENDS:
            command = [*children.SEMCACHE, "simulate", "--port", str(PORT), "--ttft", "0", "--rate", "0"]
            host = network[name]
            child = children.Child([*host.prefix, *command, "--host", host.address, "--name", name], folder / name)
            stack.callback(child.stop)
            child.wait_for_line(r"http://\S+/v1")
        starting = [self._proxy(region, folder, stack) for region in REGIONS]
        for region, child in zip(REGIONS, starting, strict=True):
            child.wait_for_line(r"listening on http://")
            self.until(lambda region=region: self._is_ready(region))

    def _proxy(self, region: str, folder: Path, stack: ExitStack) -> children.Child:
        host = self.network[region]
        order = sorted(REGIONS, key=lambda other: other != region)
        settings = {
            "server": {"host": host.address, "port": PORT, "admin_port": 0, "region": region, "request_log": "off"},
            "cache": {"store": "memory:"},
            "match": {"mode": "off"},
            "pools": {
                place: {
                    "connect": "300ms",
                    "first_byte": "1s",
                    "health": {"interval": "300ms", "timeout": "200ms"},
                    "backends": [
                        {"url": f"http://{self.network[name].address}:{PORT}/v1", "region": place}
                        for name in BACKENDS
                        if name.startswith(place)
                    ],
                }
                for place in REGIONS
            },
            "routes": [{"pools": order}],
            "tenants": [
                {"name": "clinic", "keys": [EU_ONLY], "regions": ["eu"]},
                {"name": "game", "keys": [ANYWHERE]},
            ],
        }
        file = folder / f"{region}.yaml"
        file.write_text(json.dumps(settings))  # JSON is YAML
        child = children.Child([*host.prefix, *children.SEMCACHE, "serve", "-c", str(file)], folder / f"{region}.log")
        stack.callback(child.stop)
        return child

    def ask(self, region: str, key: str, question: str) -> tuple[int, dict[str, Any]]:
        """Ask a region's proxy. Return the status and the body."""
        url = f"http://{self.network[region].address}:{PORT}/v1/chat/completions"
        body = {"model": "m", "messages": [{"role": "user", "content": question}]}
        return self._fetch("POST", url, headers={"Authorization": f"Bearer {key}"}, json=body)

    def asked_of(self, region: str) -> int:
        """How many questions reached the backends of a region, as they themselves tell."""
        names = [name for name in BACKENDS if name.startswith(region)]
        urls = [f"http://{self.network[name].address}:{PORT}/simulate/stats" for name in names]
        paths = [self._fetch("GET", url)[1]["by_path"] for url in urls]
        return sum(by_path.get("/v1/chat/completions", 0) for by_path in paths)

    def cut_off(self, region: str) -> None:
        for name in BACKENDS:
            if name.startswith(region):
                self.network[name].unplug()

    def join(self, region: str) -> None:
        for name in BACKENDS:
            if name.startswith(region):
                self.network[name].plug()

    def until(self, holds: Any) -> None:
        assert self.network["client"].call(lambda: _in_time(holds))

    def _is_ready(self, region: str) -> bool:
        try:
            return self._fetch("GET", f"http://{self.network[region].address}:{PORT}/readyz")[0] == 200
        except aiohttp.ClientError:
            return False

    def _fetch(self, method: str, url: str, **more: Any) -> tuple[int, dict[str, Any]]:
        async def fetch() -> tuple[int, dict[str, Any]]:
            timeout = aiohttp.ClientTimeout(total=20)
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.request(method, url, **more) as reply,
            ):
                return reply.status, await reply.json(content_type=None)

        return self.network["client"].call(lambda: asyncio.run(fetch()))


@pytest.fixture(scope="module")
def world(network: dict[str, namespaces.Host], tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(network, tmp_path_factory.mktemp("world"), stack)


def test_each_region_is_served_by_its_own_gpus(world: World) -> None:
    for region in REGIONS:
        status, answer = world.ask(region, ANYWHERE, f"Who answers in {region}?")
        assert (status, answer["system_fingerprint"][:2]) == (200, region)


def test_a_partition_refuses_an_eu_tenant_and_nothing_reaches_another_region(world: World) -> None:
    assert world.ask("eu", EU_ONLY, "Before the partition?")[0] == 200
    before = world.asked_of("us"), world.asked_of("ap")
    world.cut_off("eu")
    try:
        for number in range(5):
            status, answer = world.ask("eu", EU_ONLY, f"Where is patient {number}?")
            assert status in (502, 503, 504), answer
            assert answer["error"]["message"]
        assert (world.asked_of("us"), world.asked_of("ap")) == before
        # Whoever is bound to no region goes on elsewhere, at the same moment.
        status, answer = world.ask("eu", ANYWHERE, "Where is the treasure?")
        assert status == 200 and not answer["system_fingerprint"].startswith("eu")
    finally:
        world.join("eu")
    world.until(lambda: world.ask("eu", EU_ONLY, "After the partition?")[0] == 200)


@pytest.mark.parametrize("region", ["us", "ap"])
def test_a_node_outside_refuses_an_eu_tenant_though_its_backends_are_reached(world: World, region: str) -> None:
    before = [world.asked_of(place) for place in REGIONS]
    status, answer = world.ask(region, EU_ONLY, "May I ask here?")
    assert status == 403 and "eu" in answer["error"]["message"]
    assert [world.asked_of(place) for place in REGIONS] == before


def _connects(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=0.5).close()
    except OSError:
        return False
    return True


def _in_time(holds: Any, patience_s: float = 20.0) -> bool:
    deadline = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > deadline:
            return False
    return True
