"""Whether anything ever crosses a tenant or a region: a million requests, while backends fail and settings change.

    python -m loadtests.residency                        10^6 requests of 50 tenants in 3 regions
    python -m loadtests.residency --requests 20000       a short run
    python -m loadtests.residency --seed 7 --json        other dice, one JSON object

Five nodes take them: one in each region, one whose store and one whose embedder and request log lie elsewhere. Each is
the real gate, planner, pipeline, store (in memory), dispatcher and delivery, without sockets: a fetcher that is given
to the dispatcher stands for every backend, looks where each request was sent, and fails as told. What may meet is
written down when a request is made (residency_world.py), and held against what arrived at backends, at embedders, in
logs, and in answers. A crossing ends the run with status 1. Interrupted, it shows what was counted so far.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

import click
import uvloop
from multidict import CIMultiDictProxy
from rich.console import Console
from rich.table import Table

from loadtests.residency_world import (
    MADE,
    REGIONS,
    TENANTS,
    Asked,
    Backends,
    Embedder,
    Findings,
    make_request,
    regions_of,
    settings,
)
from semcache import wire
from semcache.access.quota import Quotas
from semcache.admit import Admission
from semcache.backends.dispatch import Dispatcher
from semcache.cache.policy import read_directives
from semcache.config import parse
from semcache.core import Core
from semcache.delivery import Deliverer
from semcache.errors import OutOfRegion, SemcacheError
from semcache.forwarding import Forwarder
from semcache.gate import Gate
from semcache.metering import Meter
from semcache.request_log import RequestLog
from semcache.types import Outcome, Verdict
from semcache.usage import Ledger, load_prices

WORKERS = 64  # requests at once
STEP_S = 0.01  # that pass with each request: a million are three hours
FAULT_EVERY = 100  # requests: then a backend falls ill or gets well
RELOAD_EVERY = 5000
AT_HOME = 0.8  # of requests go to a node where their tenant may be
CROWD, CROWDED = 3, 0.05  # equal requests at once, and how often
LOGGED = 10  # of so many requests one is logged


@dataclass(frozen=True, slots=True)
class Places:
    """Where a node and its parts are."""

    here: str
    store: str
    embedder: str
    log: str


PLACES = (
    *(Places(place, place, place, place) for place in REGIONS),
    Places("eu", "us", "eu", "eu"),
    Places("eu", "eu", "us", "ap"),
)


class Time:
    """Unix seconds and monotonic ones, which pass as requests come."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Node:
    """One proxy, from the gate to the delivery. In the order of Server._answer; what is left out is reading a body."""

    def __init__(self, places: Places, findings: Findings, backends: Backends, time: Time, folder: Path) -> None:
        self.places = places
        self._findings = findings
        self.variant = 0
        config = parse(json.dumps(self._settings()))
        prices = load_prices(None)
        ledger, quotas = Ledger(prices, clock=time), Quotas(time)
        self.core = Core(config, embedder=Embedder(places.embedder, findings), clock=time, prices=prices)  # type: ignore[arg-type]
        self.dispatcher = Dispatcher(
            config.pools,
            backends,  # type: ignore[arg-type]
            config.routes,
            clock=time,
            wall=time,
            chance=Random(f"{places}"),
            sleep=lambda seconds: asyncio.sleep(0),
        )
        self._admission = Admission(config.tenants, clock=time)
        self._gate = Gate(self._admission, quotas, lambda: self.core.planner.residency, time, time)
        self._forwarder = Forwarder(self.dispatcher, Meter(ledger, quotas, time), lambda: True)
        self._deliverer = Deliverer(self.core.pipeline, time)
        self.log_path = folder / f"{places.here}-{places.store}-{places.log}.log"
        self.log = RequestLog(str(self.log_path), region=config.server.request_log_region)
        self._address = wire.find_address("/v1/chat/completions")

    def _settings(self) -> dict[str, Any]:
        places = self.places
        return settings(places.here, self.variant, store=places.store, embedder=places.embedder, log=places.log)

    async def start(self) -> None:
        await self.core.start()
        self.core.follow()
        await self.core.caught_up()
        self.log.start()

    async def stop(self) -> None:
        await self.core.stop()
        await asyncio.to_thread(self.log.stop)

    def reload(self) -> None:
        """As App._adopt does."""
        self.variant = 1 - self.variant
        config = parse(json.dumps(self._settings()))
        self.core.adopt(config)
        self.dispatcher.adopt(config.pools, config.routes)
        self._admission.adopt(config.tenants)

    async def answer(self, asked: Asked, outcome: Outcome) -> bytes:
        """The body, as far as it came. Raises SemcacheError for a refusal."""
        headers = CIMultiDictProxy(asked.headers)
        tenant = await self._gate.identify(headers, outcome)
        directives = read_directives(headers.get("Cache-Control"), None)
        outcome.namespace = self._admission.namespace(tenant, "")
        assert self._address is not None
        plan = self.core.planner.plan(self._address, headers, asked.body, tenant, outcome.namespace)
        outcome.regions, outcome.model = plan.regions, plan.ask.model
        tab = await self._gate.let_in(plan, outcome)
        source = partial(self._forwarder.write, headers, tab)
        delivery = await self._deliverer.respond(plan, directives, source, outcome)
        body = b""
        try:
            if delivery.status != 200:
                outcome.error = f"status {delivery.status}"
            async for piece in delivery.pieces():
                body += piece
        except SemcacheError:
            outcome.truncated = True
        finally:
            delivery.close()
            self._gate.settle(tab)
        return body


class Run:
    def __init__(self, requests: int, seed: int, folder: Path) -> None:
        self._requests = requests
        self._chance = Random(seed)
        self.findings = Findings()
        self.backends = Backends(self.findings)
        self._time = Time()
        self.nodes = [Node(places, self.findings, self.backends, self._time, folder) for places in PLACES]
        self._numbers = count()
        self.ends: Counter[str] = Counter()  # of requests: verdict, or why there was none
        self.answers = 0  # whose origin was looked at
        self.reloads = 0
        self.overtaken = 0  # requests that were made before a reload and would have come after it
        self.took_s = 0.0

    def stop(self) -> None:
        """Ask nothing more: what was counted so far is the result."""
        self._requests = 0

    async def go(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self.stop)
        for node in self.nodes:
            await node.start()
        begun = perf_counter()
        try:
            await asyncio.gather(*(self._work() for _ in range(WORKERS)))
            for node in self.nodes:
                await node.core.pipeline.flights.drain()
                await node.core.learning.idle()
        finally:
            self.took_s = perf_counter() - begun
            for node in self.nodes:
                await node.stop()
        for node in self.nodes:
            self._read_log(node)

    async def _work(self) -> None:
        while (number := next(self._numbers)) < self._requests:
            self._time.now += STEP_S
            if number % FAULT_EVERY == 0:
                self.backends.change(self._chance)
            if number % RELOAD_EVERY == RELOAD_EVERY - 1:
                self._chance.choice(self.nodes).reload()
                self.reloads += 1
            await self._ask_someone(number)

    async def _ask_someone(self, number: int) -> None:
        tenant, node = self._chance.randrange(TENANTS), self._chance.choice(self.nodes)
        if self._chance.random() < AT_HOME:
            bound = {node.variant: regions_of(tenant, node.variant) for node in self.nodes}
            homes = [each for each in self.nodes if not (to := bound[each.variant]) or each.places.here in to]
            node = self._chance.choice(homes or self.nodes)
        asked = make_request(self._chance, tenant, node.variant)
        crowd = CROWD if self._chance.random() < CROWDED else 1  # equal requests at once: one leads, the rest follow
        await asyncio.gather(*(self._ask(number, node, asked, node.variant) for _ in range(crowd)))

    async def _ask(self, number: int, node: Node, asked: Asked, variant: int) -> None:
        if node.variant != variant:  # a reload came between: what it may meet was decided by other settings
            self.overtaken += 1
            return
        mark = "none" if asked.allowed is None else "+".join(sorted(asked.allowed)) or "any"
        outcome = Outcome(f"{number}.{mark}", perf_counter())
        try:
            body = await node.answer(asked, outcome)
        except SemcacheError as error:
            outcome.verdict = Verdict.REFUSED
            if isinstance(error, OutOfRegion):
                outcome.regions = error.regions
            self.ends[f"refused: {error.code or type(error).__name__}"] += 1
            if number % LOGGED == 0:
                node.log.write(outcome)
            return
        tier = f", {outcome.tier}" if outcome.tier is not None else ""
        end = "cut off" if outcome.truncated else outcome.error or f"{outcome.verdict}{tier}"
        self.ends[end] += 1
        if number % LOGGED == 0:
            node.log.write(outcome)
        self._look_at(asked, node, body, is_whole=end not in ("cut off", outcome.error))
        if (outcome.stored or outcome.tier is not None) and not may_be(asked, node.places.store):
            self.findings.crossed("a store outside the regions took part", f"{asked.tenant} {asked.allowed} {end}")

    def _look_at(self, asked: Asked, node: Node, body: bytes, is_whole: bool) -> None:
        """At whose answer this is, and where it was made."""
        crossed = self.findings.crossed
        if not may_be(asked, node.places.here) and is_whole:
            crossed("a node outside answered", f"{asked.tenant} {asked.allowed} at {node.places.here}")
        made = MADE.findall(body)
        if is_whole and not made:
            crossed("an answer without its origin", body[:200].decode(errors="replace"))
        for writer, place, topic in made:
            of_tenant, of_place = asked.may_get(writer.decode(), place.decode())
            if not of_tenant:
                crossed("an answer was made for another tenant", f"{asked.tenant} {asked.route} got {writer!r}")
            if not of_place:
                crossed("an answer was made outside the regions", f"{asked.tenant} {asked.allowed} got {place!r}")
            if int(topic) != asked.topic:
                crossed("an answer was about something else", f"{asked.topic} got {topic!r}")
        self.answers += bool(made)

    def _read_log(self, node: Node) -> None:
        lines = node.log_path.read_bytes().splitlines() if node.log_path.exists() else []
        for line in lines:
            mark = json.loads(line)["request_id"].partition(".")[2]
            if mark not in ("any", "none") and node.places.log not in mark.split("+"):
                self.findings.crossed("a log outside the regions has a line", line.decode())
        self.ends["(log lines)"] += len(lines)

    def report(self) -> dict[str, Any]:
        nodes = self.nodes
        dispatched = Counter[str]()
        for node in nodes:
            dispatched.update({name: int(value) for name, value in node.dispatcher.stats().items()})
        ends = {name: number for name, number in sorted(self.ends.items()) if name != "(log lines)"}
        return {
            "requests": sum(ends.values()),
            "tenants": TENANTS,
            "nodes": len(nodes),
            "seconds": round(self.took_s, 1),
            "requests_per_s": round(sum(ends.values()) / self.took_s),
            "ends": ends,
            "reached backends": dict(self.findings.received),
            "faults of backends": dict(self.findings.faults),
            "failovers": dispatched["failovers"],
            "hedges": dispatched["hedges"],
            "overflows": dispatched["overflows"],
            "reloads": self.reloads,
            "left out, as a reload came first": self.overtaken,
            "answers looked at": self.answers,
            "texts embedded": self.findings.embedded,
            "log lines read": self.ends["(log lines)"],
            "log lines withheld": sum(int(node.log.stats()["lines_withheld"]) for node in nodes),
            "crossings": sum(self.findings.crossings.values()),
            "crossed": dict(self.findings.crossings),
            "examples": self.findings.examples,
        }


def may_be(asked: Asked, place: str) -> bool:
    return asked.allowed is not None and (not asked.allowed or place in asked.allowed)


def run(requests: int, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        it = Run(requests, seed, Path(folder))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(it.go())
        return it.report()


def show(report: dict[str, Any], seed: int, console: Console) -> None:
    title = f"{report['requests']:,} requests of {TENANTS} tenants in {len(REGIONS)} regions, seed {seed}"
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    table.add_column("count", justify="right")
    for name, value in report.items():
        if isinstance(value, dict):
            for each, number in value.items():
                table.add_row(f"{name}: {each}", f"{number:,}")
        elif not isinstance(value, list):
            table.add_row(name, f"{value:,}")
    console.print(table)
    for example in report["examples"]:
        console.print(f"  {example}", markup=False)


@click.command(help=__doc__.split("\n\n")[0], epilog="\b\n" + "\n\n".join(__doc__.split("\n\n")[1:]))
@click.option("--requests", default=1_000_000, show_default=True, help="How many.")
@click.option("--seed", default=1, show_default=True, help="Of requests, faults and reloads.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def main(requests: int, seed: int, as_json: bool) -> None:
    logging.disable(logging.WARNING)  # of backends that fall ill: thousands
    report = run(requests, seed)
    if as_json:
        click.echo(json.dumps({"seed": seed} | report))
    else:
        show(report, seed, Console())
    sys.exit(1 if report["crossings"] else 0)


if __name__ == "__main__":
    main()
