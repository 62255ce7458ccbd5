"""Whatever the configuration and whatever fails: of a bound request nothing is met outside its regions, nor by others.

A scenario is two configurations, between which a reload goes to and fro, and a sequence of requests and faults, all of
them random. The proxy is the real one on a real socket, and so are the model servers. What may meet is decided when a
request is made, from what is configured, and held against what reached servers, embedder and logs, and against whose
answers came back. The counts are shown by `pytest tests/test_residency.py -s`.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import aiohttp
import uvloop
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from loadtests.residency_world import CANARY, MADE, Embedder, Findings
from semcache import config
from semcache.app import App
from tests.fakes import Clock
from tests.residency_sites import PLACES, Site

REGIONS = ("eu", "us", "ap")
SITES = ("eu-1", "eu-2", "us-1", "us-2", "ap-1", "nowhere-1")
POOLS = ("near", "far", "spare")
TENANTS, ROUTES, TOPICS = 4, 3, 2
EVERYWHERE = frozenset(PLACES)
SHARINGS = ("tenant", "namespace", "all")
EXAMPLES = 12


class Route(NamedTuple):
    regions: tuple[str, ...]
    sharing: str
    min_uses: int
    ways: tuple[tuple[str, ...], ...]  # pools in order; several: arms of a split
    is_hedged: bool
    is_shadow: bool


class Rules(NamedTuple):
    """What a reload may change."""

    bound: tuple[frozenset[str], ...]  # by tenant
    routes: tuple[Route, ...]
    pools: tuple[tuple[str, ...], ...]  # sites


class Node(NamedTuple):
    """What a reload may not: where the node and its parts are; None: nobody says."""

    here: str | None
    store: str | None
    embedder: str | None
    log: str | None
    audit: str | None


class Request(NamedTuple):
    tenant: int
    route: int
    topic: int
    kind: str  # chat, stream, embeddings, images, list
    at_once: int
    is_across: bool  # a reload comes while it is under way


class Fault(NamedTuple):
    site: str
    mode: str


class Reload(NamedTuple):
    pass


class Later(NamedTuple):
    """Answers that are stored have become stale, and may still be given where no backend answers."""


Step = Request | Fault | Reload | Later


@dataclass(frozen=True)
class Scenario:
    node: Node
    rules: tuple[Rules, Rules]
    steps: Sequence[Step]


bounds = st.frozensets(st.sampled_from(REGIONS), max_size=2)
routes = st.builds(
    Route,
    st.sampled_from([(), (), (), ("eu",), ("us",), ("eu", "us")]),
    st.sampled_from(SHARINGS),
    st.sampled_from([1, 1, 2]),
    st.lists(st.permutations(POOLS).map(lambda names: tuple(names[:2])), min_size=0, max_size=2).map(tuple),
    st.booleans(),
    st.integers(0, 4).map(lambda chance: chance == 0),
)
rules = st.builds(
    Rules,
    st.tuples(*[bounds] * TENANTS),
    st.tuples(*[routes] * ROUTES),
    st.tuples(*[st.permutations(SITES).map(lambda names: tuple(names[:4]))] * len(POOLS)),
)
somewhere = st.sampled_from([None, None, "eu", "us"])
nodes = st.builds(Node, st.sampled_from([None, "eu", "eu", "us"]), somewhere, somewhere, somewhere, somewhere)
asking = st.builds(
    Request,
    st.integers(0, TENANTS - 1),
    st.integers(0, ROUTES - 1),
    st.integers(0, TOPICS - 1),
    st.sampled_from(["chat", "chat", "chat", "stream", "embeddings", "images", "list"]),
    st.sampled_from([1, 1, 3]),
    st.integers(0, 5).map(lambda chance: chance == 0),
)
failing = st.builds(
    Fault, st.sampled_from(SITES), st.sampled_from(["up", "up", "dead", "dead", "error", "busy", "cut", "frozen"])
)
IN_TWENTY = [asking] * 15 + [failing] * 3 + [st.builds(Reload), st.builds(Later)]
steps = st.lists(st.integers(0, 19).flatmap(IN_TWENTY.__getitem__), min_size=40, max_size=50)
scenarios = st.builds(Scenario, nodes, st.tuples(rules, rules), steps)


def test_nothing_of_a_bound_request_is_met_outside_its_regions_nor_by_others() -> None:
    counts: Counter[str] = Counter()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stack = AsyncExitStack()
        sites = {name: runner.run(stack.enter_async_context(Site(name).running())) for name in SITES}

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            phases=(Phase.explicit, Phase.reuse, Phase.generate),  # smaller ones take as long, each
            suppress_health_check=list(HealthCheck),
        )
        @given(scenarios)
        def holds(scenario: Scenario) -> None:
            with TemporaryDirectory() as folder:
                play = Play(scenario, sites, Path(folder))
                runner.run(play.through())
            counts.update(play.counts)
            assert not play.findings.crossings, play.findings.examples

        try:
            holds()
        finally:
            runner.run(stack.aclose())
    print("\n" + "\n".join(f"{count:8,}  {name}" for name, count in sorted(counts.items())))
    assert counts["answered: hit"] and counts["refused: region_not_allowed"] and counts["backends: dead"]


def _union(places: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset().union(*places)


def _mark(places: frozenset[str]) -> str:
    return "any" if places == EVERYWHERE else "+".join(sorted(places)) or "none"


class Play:
    """One scenario."""

    def __init__(self, scenario: Scenario, sites: Mapping[str, Site], folder: Path) -> None:
        self._scenario = scenario
        self._sites = sites
        self._folder = folder
        self._now = 0  # which of the two rules are in force
        self.findings = Findings()
        self.counts: Counter[str] = Counter(scenarios=1)
        self._numbers = iter(range(10_000))

    async def through(self) -> None:
        for site in self._sites.values():
            site.findings, site.mode = self.findings, "up"
        node, clock = self._scenario.node, Clock()
        where = node.embedder or node.here
        embedder = Embedder(where, self.findings)
        app = App(self._read(), embedder=embedder, clock=clock, read=self._read)  # type: ignore[arg-type]
        await app.start()
        await app.caught_up()
        self._url = f"http://127.0.0.1:{app.port}/v1"
        try:
            async with aiohttp.ClientSession() as self._http:
                for step in self._scenario.steps:
                    await self._take(step, app, clock)
            await app.pipeline.flights.drain()
            await app.core.learning.idle()
        finally:
            await app.stop()
        self._read_logs()
        self.counts["texts embedded"] += self.findings.embedded
        self.counts.update({f"backends: {mode}": count for mode, count in self.findings.faults.items()})
        self.counts.update({f"reached: {place}": count for place, count in self.findings.received.items()})

    async def _take(self, step: Step, app: App, clock: Clock) -> None:
        match step:
            case Fault(site, mode):
                self._sites[site].mode = mode
            case Later():
                clock.advance(120)
            case Reload():
                await self._reload(app)
            case Request():
                asks = [asyncio.create_task(self._ask(step)) for _ in range(step.at_once)]
                if step.is_across:
                    await asyncio.sleep(0)
                    await self._reload(app)
                await asyncio.gather(*asks)

    async def _reload(self, app: App) -> None:
        self._now = 1 - self._now
        await app.reloader.reload("a test")
        self.counts["reloads"] += 1

    # What may meet

    def _allowed(self, request: Request, rules: Rules) -> frozenset[str] | None:
        """Empty: anywhere; None: nowhere, as tenant and route exclude each other."""
        # What names no model takes the first route there is.
        route = frozenset(rules.routes[0 if request.kind == "list" else request.route].regions)
        bound = rules.bound[request.tenant]
        return (bound & route or None) if bound and route else bound or route

    def _in_force(self, request: Request) -> Sequence[Rules]:
        """A request goes by the settings it arrived under, and one that meets a reload may have arrived on either
        side."""
        return self._scenario.rules if request.is_across else (self._scenario.rules[self._now],)

    def _places(self, request: Request) -> frozenset[str]:
        """Where it may be met, under any of these settings."""
        found = [self._allowed(request, rules) for rules in self._in_force(request)]
        return _union(frozenset() if it is None else it or EVERYWHERE for it in found)

    def _logs(self, request: Request) -> frozenset[str]:
        """Where a line may tell of it: one that may be met nowhere is its tenant's, still."""
        found = [(self._allowed(request, rules), rules.bound[request.tenant]) for rules in self._in_force(request)]
        return _union((bound if allowed is None else allowed) or EVERYWHERE for allowed, bound in found)

    def _may_share(self, request: Request, writer: int) -> bool:
        sharing = {rules.routes[request.route].sharing for rules in self._in_force(request)}
        same_space = writer % 2 == request.tenant % 2
        return writer == request.tenant or "all" in sharing or ("namespace" in sharing and same_space)

    # Asking

    async def _ask(self, request: Request) -> None:
        places = self._places(request)
        mark = _mark(places)
        name = f"t{request.tenant:02d}"
        headers = {
            "Authorization": f"Bearer sk-{name}",
            CANARY: f"{name}|{mark}",
            "X-Request-Id": f"{next(self._numbers)}.{_mark(self._logs(request))}",
        }
        path, body = self._body(request, f"[{name} {mark}]")
        self.counts["requests"] += 1
        try:
            sent: dict[str, Any] = {} if request.kind == "list" else {"json": body}
            method = "GET" if request.kind == "list" else "POST"
            async with self._http.request(method, f"{self._url}/{path}", headers=headers, **sent) as reply:
                answer = await reply.read()
        except aiohttp.ClientPayloadError:
            self.counts["cut off"] += 1
            return
        here = self._scenario.node.here
        if reply.status != 200:
            self._look_at_refusal(reply.status, answer, path)
            return
        cache_status = reply.headers.get("Cache-Status", "")
        self.counts["answered: hit" if "; hit" in cache_status else "answered: fetched"] += 1
        if here is not None and here not in places:
            self.findings.crossed("a node outside answered", f"{request} at {here}")
        store = self._scenario.node.store or here
        if ("; hit" in cache_status or "stored" in cache_status) and store is not None and store not in places:
            self.findings.crossed("a store outside took part", f"{request} {cache_status}")
        self._look_at_answer(request, answer, places)

    def _body(self, request: Request, whose: str) -> tuple[str, dict[str, Any]]:
        body: dict[str, Any] = {"model": f"r{request.route}-model"}
        # Every other question is the same for all, so that tenants could meet; the others say whose they are.
        question = f"How does subject {request.topic} work, at all?" + (f" {whose}" if request.topic % 2 else "")
        if request.kind == "list":
            return "models", {}
        if request.kind == "embeddings":
            return "embeddings", body | {"input": [f"subject {request.topic} {whose}", "subject 9 of all"]}
        body["messages"] = [{"role": "user", "content": question}]
        if request.kind == "images":  # what no dialect here understands, and passes through
            return "images/generations", body
        return "chat/completions", body | {"stream": request.kind == "stream"}

    def _look_at_refusal(self, status: int, answer: bytes, path: str) -> None:
        """It says what is wrong, in the caller's dialect; a region is kept with 403."""
        error = json.loads(answer)["error"]
        assert error["message"], answer
        assert status in (403, 404, 500, 502, 503, 504), (status, path, answer)
        if status == 403:
            assert error["code"] == "region_not_allowed", answer
        self.counts[f"refused: {error['code'] or status}"] += 1

    def _look_at_answer(self, request: Request, answer: bytes, places: frozenset[str]) -> None:
        if request.kind == "list":
            return
        if request.kind == "embeddings":
            vectors = [item["embedding"] for item in json.loads(answer)["data"]]
            made = [(int(writer), PLACES[int(place)]) for writer, place, _ in vectors]
        else:
            made = [(int(writer[1:]), place.decode()) for writer, place, _ in MADE.findall(answer)]
        assert made, answer
        for writer, place in made:
            if not self._may_share(request, writer):
                self.findings.crossed("an answer was made for another tenant", f"{request} got one of {writer}")
            if place not in places:
                self.findings.crossed("an answer was made outside the regions", f"{request} got one of {place}")

    # What was written down

    def _read_logs(self) -> None:
        node = self._scenario.node
        for name, place in (("requests", node.log or node.here), ("audit", node.audit or node.here)):
            path = self._folder / name
            for line in path.read_bytes().splitlines() if path.exists() else ():
                mark = (json.loads(line).get("request_id") or "").partition(".")[2]
                self.counts[f"lines: {name}"] += 1
                if mark not in ("", "any") and place is not None and place not in mark.split("+"):
                    self.findings.crossed(f"a log outside has a line ({name})", line.decode())

    # The configuration

    def _read(self) -> config.Config:
        node, rules = self._scenario.node, self._scenario.rules[self._now]
        settings = {
            "server": {
                "region": node.here,
                "request_log": f"{self._folder}/requests",
                "request_log_region": node.log,
                "drain": "2s",
            },
            "cache": {"region": node.store, "ttl": "1m", "grace": "30s", "stale_if_error": "1h"},
            "embedder": {"engine": "openai", "url": "http://embedder.example/v1", "region": node.embedder},
            "audit": {"path": f"{self._folder}/audit", "region": node.audit},
            "match": {"guards": []},
            "pools": {
                name: {
                    "connect": "300ms",
                    "first_byte": "200ms",
                    "queue": {"deadline": "100ms"},
                    "health": {"failures": 3, "open": "100ms", "interval": "50ms"},
                    "backends": [
                        {"url": self._sites[site].url}
                        | ({} if site.startswith("nowhere") else {"region": site.partition("-")[0]})
                        for site in sites
                    ],
                }
                for name, sites in zip(POOLS, rules.pools, strict=True)
            },
            "routes": [self._route(number, route) for number, route in enumerate(rules.routes)],
            "tenants": [
                {
                    "name": f"t{tenant:02d}",
                    "keys": [f"sk-t{tenant:02d}"],
                    "regions": sorted(bound),
                    "namespaces": [f"space-{tenant % 2}"],
                }
                for tenant, bound in enumerate(rules.bound)
            ],
        }
        options = {"port": 0, "admin_port": 0, "store": "memory:"}
        return config.parse(json.dumps(settings), {}, options=options)

    def _route(self, number: int, route: Route) -> dict[str, Any]:
        written: dict[str, Any] = {
            "models": [f"r{number}-*"],
            "regions": list(route.regions),
            "cache": {"sharing": route.sharing, "min_uses": route.min_uses},
            "order": "nearest" if number % 2 else "written",
        }
        if route.is_hedged:
            written["hedge"] = {"after": "5ms", "budget": 1}
        if route.is_shadow:
            written["match"] = {"mode": "shadow"}
        if len(route.ways) == 1:
            (first, second) = route.ways[0]
            written["pools"] = [first, {"pool": second, "model": "another"}]
        elif route.ways:
            arms = enumerate(route.ways)
            written["split"] = [{"name": f"arm-{place}", "weight": 1, "pools": list(way)} for place, way in arms]
            written["sticky"] = "request"
        return written
