"""How well backends are chosen: on a simulated clock, by the functions that the proxy itself calls.

    python -m loadtests.bench_routing                          all parts, about three minutes
    python -m loadtests.bench_routing --data FOLDER            with a recorded hour of chats, if FOLDER has it
    python -m loadtests.bench_routing --part prefix --seed 2   one part, other dice

speeds: a thousand backends of unequal speed that nobody told the proxy; the 99th percentile of the time to the first
token, against round robin with the same requests. prefix: tokens of prompts that a KV cache held, against an oracle
that ranks in the same way and knows every KV cache; and how uneven that makes the load. rank: what choosing costs.
failover: one of three real processes is killed, and one frozen, under load; `python -m loadtests.failover -o FOLDER`
draws it. A figure that misses its goal ends the run with status 1.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import inf
from pathlib import Path
from random import Random
from timeit import repeat
from typing import get_args

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from loadtests import failover
from loadtests.routing_sim import Choose, Known, Model, Played, Request, Seen, SeenPlainly, Server, play
from loadtests.routing_workloads import TRACE, TRACE_BLOCK_TOKENS, chats, held_by_one, recorded, strangers
from semcache.backends.balance import Asked, Balance, rank
from semcache.backends.fleet import CHECK_S
from semcache.backends.prefix import chain
from semcache.config import Prefix

SPREAD = 0.5  # sigma of the log-normal speeds: one backend in six is slower than 0.53 or quicker than 1.45
DEFAULTS = Prefix()
ORACLE = Prefix(explore=0)  # it knows what it would explore for


@dataclass(frozen=True, slots=True)
class Goal:
    what: str
    value: float
    limit: float
    is_floor: bool = False  # the limit is a least, not a most

    @property
    def is_met(self) -> bool:
        return self.value >= self.limit if self.is_floor else self.value <= self.limit


@dataclass(frozen=True, slots=True)
class Result:
    """One table. All rows have the same keys."""

    title: str
    rows: Sequence[Mapping[str, str | float]]
    goals: Sequence[Goal] = ()


def ranked(balance: Balance, loads: Sequence[Seen | Known], settings: Prefix, seed: int) -> Callable[..., Seen | Known]:
    chance = Random(seed)

    def first(request: Request, now: float) -> Seen | Known:
        asked = Asked(request.prompt_tokens, request.chunks)
        return next(rank(balance, loads, asked, settings, now, chance))

    return first


def choose_by(balance: Balance, servers: Sequence[Server], seed: int, settings: Prefix = DEFAULTS) -> Choose:
    """As the proxy does, with what it can see."""
    of = {id(server.seen): server for server in servers}
    first = ranked(balance, [server.seen for server in servers], settings, seed)
    return lambda request, now: of[id(first(request, now))]


def choose_knowing(servers: Sequence[Server], seed: int) -> Choose:
    first = ranked("prefix", [Known(server) for server in servers], ORACLE, seed)
    return lambda request, now: first(request, now).server


def choose_in_turn(servers: Sequence[Server]) -> Choose:
    turns = itertools.cycle(servers)
    return lambda request, now: next(turns)


# A thousand backends of unequal speed


def unequal(count: int, seed: int, seen: type[Seen] = Seen, is_told: bool = False) -> list[Server]:
    """`is_told`: their weights are their true speeds."""
    speeds = np.random.default_rng(seed).lognormal(-(SPREAD**2) / 2, SPREAD, count).tolist()  # 1 on average
    return [Server(Model(), speed, seen(speed if is_told else 1.0, remember=1)) for speed in speeds]


def speeds(seed: int, data: Path | None) -> Iterator[Result]:
    count = 1000
    for load, has_all in ((0.3, False), (0.6, True), (0.8, False)):
        requests = strangers(30_000, count, load, Model(), seed)
        ways: dict[str, tuple[list[Server], Callable[[list[Server]], Choose]]] = {
            "round robin": (unequal(count, seed), choose_in_turn),
            "latency": (unequal(count, seed), lambda servers: choose_by("latency", servers, seed)),
            "latency, of plain times": (
                unequal(count, seed, SeenPlainly),
                lambda servers: choose_by("latency", servers, seed),
            ),
        }
        if has_all:  # these two look at every backend: 30,000 times a thousand
            ways["least-load"] = unequal(count, seed), lambda servers: choose_by("least-load", servers, seed)
            ways["weighted, told the speeds"] = (
                unequal(count, seed, is_told=True),
                lambda servers: choose_by("weighted", servers, seed),
            )
        found = {name: play(requests, servers, way(servers), 1000) for name, (servers, way) in ways.items()}
        base_s = found["round robin"].ttft_s(0.99)
        yield Result(
            f"{count:,} backends of unequal speed, {load:.0%} of what they can read, {len(requests):,} requests",
            [
                {
                    "balance": name,
                    "p50 s": played.ttft_s(0.5),
                    "p99 s": played.ttft_s(0.99),
                    "p99 / round robin": played.ttft_s(0.99) / base_s,
                }
                for name, played in found.items()
            ],
            [Goal("p99 of latency / round robin", found["latency"].ttft_s(0.99) / base_s, 0.6)],
        )


# KV caches


def prefix(seed: int, data: Path | None) -> Iterator[Result]:
    chatting = chats(20_000, 60.0, seed)
    yield against_oracle("50 tenants that chat", chatting, 16, Model(), seed)
    yield how_much_to_remember("the same chats", chatting, 16, Model(kv_tokens=40_000), seed)
    if data is None or not (data / TRACE).exists():
        click.echo(f"prefix: no {TRACE} (--data FOLDER): without the recorded hour", err=True)
        return
    hour = recorded(data / TRACE, faster=1.6)  # eight such servers are then nearly busy
    model = Model(block_tokens=TRACE_BLOCK_TOKENS)
    yield against_oracle("a recorded hour of chats", hour, 8, model, seed)
    yield how_much_to_remember("the same hour", hour, 8, model, seed)


def caching(count: int, model: Model, remember: int = DEFAULTS.remember) -> list[Server]:
    return [Server(model, 1.0, Seen(1.0, remember)) for _ in range(count)]


def against_oracle(name: str, requests: Sequence[Request], count: int, model: Model, seed: int) -> Result:
    ways: dict[str, Callable[[list[Server]], Choose]] = {
        "round robin": choose_in_turn,
        "least-load": lambda servers: choose_by("least-load", servers, seed),
        "prefix": lambda servers: choose_by("prefix", servers, seed),
        "oracle": lambda servers: choose_knowing(servers, seed),
    }
    found: dict[str, Played] = {}
    for way, choose in ways.items():
        servers = caching(count, model)
        found[way] = play(requests, servers, choose(servers))
    ours, oracle = found["prefix"], found["oracle"]
    return Result(
        f"{name}: {len(requests):,} requests, {count} backends of {model.kv_tokens:,} tokens of KV cache;"
        f" one as large as all would hold {held_by_one(requests, model, count):.3f}",
        [{"balance": way, **caches_of(played)} for way, played in found.items()],
        [
            Goal("prefix hits / oracle's", ours.cached_share() / oracle.cached_share(), 0.9, is_floor=True),
            Goal("load imbalance / oracle's", ours.imbalance() / oracle.imbalance(), 1.3),
        ],
    )


def how_much_to_remember(name: str, requests: Sequence[Request], count: int, model: Model, seed: int) -> Result:
    blocks = model.kv_tokens // model.block_tokens
    rows: list[dict[str, str | float]] = []
    for remember in (blocks // 4, blocks // 2, blocks, blocks * 4, DEFAULTS.remember):
        servers = caching(count, model, remember)
        played = play(requests, servers, choose_by("prefix", servers, seed))
        rows.append({"remembered / held": remember / blocks, **caches_of(played)})
    servers = caching(count, model)
    rows.append({"remembered / held": "oracle", **caches_of(play(requests, servers, choose_knowing(servers, seed)))})
    return Result(f"{name}, {count} backends of {model.kv_tokens:,} tokens of KV cache", rows)


def caches_of(played: Played) -> dict[str, float]:
    return {
        "cached share": played.cached_share(),
        "imbalance": played.imbalance(),
        "p50 s": played.ttft_s(0.5),
        "p99 s": played.ttft_s(0.99),
    }


# What choosing costs


def cost(seed: int, data: Path | None) -> Iterator[Result]:
    chance = Random(seed)
    asked = Asked(4000, chain(chance.randbytes(16_000), DEFAULTS.chunk))
    rows = [cost_among(count, asked, chance) for count in (3, 16, 100, 1000)]
    yield Result(
        "rank, to its first backend, for a prompt of 16 KB",
        rows,
        [Goal("us among 3 backends, the slowest way", max(list(rows[0].values())[1:]), 20)],
    )
    sizes = (2_000, 16_000, 1_000_000)
    yield Result(
        f"prompts, in chunks of {DEFAULTS.chunk} bytes", [cost_of_prompt(chance.randbytes(size)) for size in sizes]
    )


def cost_among(count: int, asked: Asked, chance: Random) -> dict[str, float]:
    loads = []
    for _ in range(count):
        seen = Seen(1.0, DEFAULTS.remember)
        seen.in_flight = chance.randrange(8)
        seen.pace.observe(chance.random(), 0.0)
        seen.prefixes.insert(asked.chunks[: chance.randrange(len(asked.chunks))])
        loads.append(seen)

    def first(balance: Balance) -> None:
        next(rank(balance, loads, asked, DEFAULTS, 1.0, chance))

    rounds = max(5, 2000 // count)
    return {"backends": count} | {f"{way} us": best_us(partial(first, way), rounds) for way in get_args(Balance)}


def cost_of_prompt(prompt: bytes) -> dict[str, float]:
    known = Seen(1.0, DEFAULTS.remember).prefixes
    chunks = chain(prompt, DEFAULTS.chunk)
    rounds = max(5, 2_000_000 // len(prompt))
    return {
        "bytes": len(prompt),
        "chain us": best_us(lambda: chain(prompt, DEFAULTS.chunk), rounds),
        "insert us": best_us(lambda: known.insert(chunks), rounds),
        "match us": best_us(lambda: known.match(chunks), rounds),
    }


def best_us(act: Callable[[], object], rounds: int) -> float:
    return min(repeat(act, number=rounds, repeat=20)) / rounds * 1e6


def failing(_: int, __: Path | None) -> Iterator[Result]:
    """A real proxy before three simulated backends, of which one is killed and one frozen while requests come."""
    played = failover.run()
    rows = []
    goals = []
    for one in played.findings:
        off_s, back_s = one.off_after_s or 0.0, inf if one.back_after_s is None else one.back_after_s
        row = {"errors": one.errors, "streams cut": one.cut_streams, "off after s": off_s, "back after s": back_s}
        rows.append({"fault": f"{one.backend} {one.fault.kind}", **row, "longest wait s": one.slowest_s})
        name = one.fault.kind
        goals.append(Goal(f"{name}: requests failed", one.errors, 0))
        goals.append(Goal(f"{name}: seconds until the last request to it", off_s, failover.OFF_WITHIN_S))
        goals.append(Goal(f"{name}: seconds until it served again", back_s, CHECK_S))
    yield Result(f"{len(played.requests):,} requests at {failover.RATE} a second, real processes", rows, goals)


PARTS: Mapping[str, Callable[[int, Path | None], Iterator[Result]]] = {
    "speeds": speeds,
    "prefix": prefix,
    "rank": cost,
    "failover": failing,
}


def show(result: Result, console: Console) -> None:
    table = Table(title=result.title, title_justify="left")
    for name in result.rows[0]:
        table.add_column(name, justify="left" if isinstance(result.rows[0][name], str) else "right")
    for row in result.rows:
        table.add_row(*(value if isinstance(value, str) else _figure(value) for value in row.values()))
    console.print(table)
    for goal in result.goals:
        sign = ">=" if goal.is_floor else "<="
        console.print(
            f"  {goal.what}: {goal.value:.3f}, goal {sign} {goal.limit:g}: {'met' if goal.is_met else 'MISSED'}"
        )
    console.print()


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or isinstance(value, int) else f"{value:.3g}"


@click.command(help=__doc__.split("\n\n")[0], epilog="\b\n" + "\n\n".join(__doc__.split("\n\n")[1:]))
@click.option("--part", "parts", type=click.Choice([*PARTS]), multiple=True, help="One part alone; may be repeated.")
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), help=f"The folder with {TRACE}.")
@click.option("--seed", default=1, show_default=True, help="Of speeds, requests and every chance.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line a table.")
def main(parts: tuple[str, ...], data: Path | None, seed: int, as_json: bool) -> None:
    console = Console()
    missed = 0
    for part in parts or PARTS:
        for result in PARTS[part](seed, data):
            missed += sum(not goal.is_met for goal in result.goals)
            if as_json:
                goals = [asdict(goal) | {"is_met": goal.is_met} for goal in result.goals]
                click.echo(json.dumps({"part": part, "seed": seed} | asdict(result) | {"goals": goals}))
            else:
                show(result, console)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
