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
PORT, EDGE_PORT, NEAR_PORT = 8000, 8001, 8002
SECRET = "a secret of all nodes"
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
        order = sorted(REGIONS, key=lambda other: other != region)
        more = {"routes": [{"pools": order}], "chain": {"secret": SECRET, "accept": True}}
        return self._serve(region, PORT, self._gpus() | more, folder, stack)

    def edge(self, folder: Path, stack: ExitStack) -> None:
        """A semcache in eu, in front of those in eu and us. One of its routes is bound to eu, whoever asks."""
        inner = {
            place: {
                "connect": "300ms",
                "backends": [{"url": f"http://{self.network[place].address}:{PORT}", "region": place, "chain": True}],
            }
            for place in ("eu", "us")
        }
        routes = [{"models": ["bound"], "regions": ["eu"]}, {"pools": ["eu", "us"]}]
        settings = {"pools": inner, "routes": routes, "chain": {"secret": SECRET}}
        self._serve("eu", EDGE_PORT, settings, folder, stack).wait_for_line(r"listening on http://")
        self.until(lambda: self._is_ready("eu", EDGE_PORT))

    def nearest(self, folder: Path, stack: ExitStack) -> None:
        """A proxy in eu that is to find out who is near; what is written first is not."""
        settings = self._gpus() | {"routes": [{"pools": ["ap", "us", "eu"], "order": "nearest"}]}
        self._serve("eu", NEAR_PORT, settings, folder, stack).wait_for_line(r"listening on http://")
        self.until(lambda: self._is_ready("eu", NEAR_PORT))

    def _gpus(self) -> dict[str, Any]:
        return {
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
            }
        }

    def _serve(
        self, region: str, port: int, settings: dict[str, Any], folder: Path, stack: ExitStack
    ) -> children.Child:
        host = self.network[region]
        settings = settings | {
            "server": {"host": host.address, "port": port, "admin_port": 0, "region": region, "request_log": "off"},
            "cache": {"store": "memory:"},
            "match": {"mode": "off"},
            "tenants": [
                {"name": "clinic", "keys": [EU_ONLY], "regions": ["eu"]},
                {"name": "game", "keys": [ANYWHERE]},
            ],
        }
        file = folder / f"{region}-{port}.yaml"
        file.write_text(json.dumps(settings))  # JSON is YAML
        child = children.Child(
            [*host.prefix, *children.SEMCACHE, "serve", "-c", str(file)], folder / f"{region}-{port}.log"
        )
        stack.callback(child.stop)
        return child

    def ask(
        self, region: str, key: str, question: str, port: int = PORT, model: str = "m"
    ) -> tuple[int, dict[str, Any]]:
        """Ask a region's proxy. Return the status and the body."""
        url = f"http://{self.network[region].address}:{port}/v1/chat/completions"
        body = {"model": model, "messages": [{"role": "user", "content": question}]}
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

    def _is_ready(self, region: str, port: int = PORT) -> bool:
        try:
            return self._fetch("GET", f"http://{self.network[region].address}:{port}/readyz")[0] == 200
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


def test_what_an_edge_binds_stays_bound_behind_the_next_semcache(world: World, tmp_path: Path) -> None:
    # The semcache behind it could reach GPUs in three regions, and another one beside it is in us.
    with ExitStack() as stack:
        world.edge(tmp_path, stack)
        by_its_tenant, by_its_route = (EU_ONLY, "m"), (ANYWHERE, "bound")
        for key, model in (by_its_tenant, by_its_route):
            status, answer = world.ask("eu", key, "Before the partition?", EDGE_PORT, model)
            assert (status, answer["system_fingerprint"][:2]) == (200, "eu")
        before = world.asked_of("us"), world.asked_of("ap")
        world.cut_off("eu")
        try:
            for key, model in (by_its_tenant, by_its_route):
                status, answer = world.ask("eu", key, "Where is the patient?", EDGE_PORT, model)
                assert status in (502, 503, 504), answer
                assert answer["error"]["message"]
            assert (world.asked_of("us"), world.asked_of("ap")) == before
            status, answer = world.ask("eu", ANYWHERE, "Where is the treasure?", EDGE_PORT)
            assert status == 200 and not answer["system_fingerprint"].startswith("eu")
        finally:
            world.join("eu")
        world.until(lambda: world.ask("eu", EU_ONLY, "After the partition?", EDGE_PORT)[0] == 200)


def test_the_nearest_pool_is_found_by_measuring(world: World, tmp_path: Path) -> None:
    away = [world.network[name] for name in BACKENDS if not name.startswith("eu")]
    with ExitStack() as stack:
        for host in away:
            try:
                host.delay(40)
            except namespaces.Forbidden as why:
                pytest.skip(str(why))
            stack.callback(host.delay, 0)
        world.nearest(tmp_path, stack)

        def is_near() -> bool:
            status, answer = world.ask("eu", ANYWHERE, "Who is near?", NEAR_PORT)
            return status == 200 and answer["system_fingerprint"].startswith("eu")

        world.until(is_near)
        assert all(is_near() for _ in range(5))


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
