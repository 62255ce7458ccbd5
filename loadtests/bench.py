"""`python -m loadtests.bench`: how near the proxy comes to the limits of this machine, as ratios of one run.

What is measured has core 0, load and upstream have core 1. Each figure is the median of rounds in which both sides take
turns, since the machine's speed changes more between minutes than between rounds. The limits are in bare.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from loadtests import bench_rules
from loadtests.bench_pieces import (
    CHAT,
    DRIVEN_FROM,
    SERVED_ON,
    Caller,
    Load,
    Wrk,
    chat,
    has_mapped,
    header,
    in_dialects,
    median_ms,
    near_questions,
    pinned,
    plan_ms,
    resident_mb,
    start_bare,
    stored_questions,
)
from semcache import children, config
from semcache.errors import SemcacheError, StartError
from semcache.simulate.answers import DONE, openai_events, openai_json, write_reply
from semcache.types import Entry, Key

ANSWER_WORDS = 80  # about 900 bytes of JSON
THRESHOLD = 0.90
LOOKUPS = 1000  # a round
LOOKUP_GOAL_MS = 2.0
BUILD_S = 60.0  # how long the first start may take to build its index
SAMPLES = 300  # requests, one at a time, for a median
EXACT_ONLY = ("Semcache-Control: tier=exact",)
PARTS = ("exact", "rules", "dialects", "conversation", "semantic", "miss", "rest", "restart")

console = Console(width=118)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the result. `bare` and `semcache` in the unit; `shown` is what the goal is about."""

    what: str
    unit: str
    bare: float | None
    semcache: float
    shown: float
    goal: float
    is_floor: bool  # the goal is a least, not a most
    shown_as: str = "ratio"

    @property
    def is_met(self) -> bool:
        return self.shown >= self.goal if self.is_floor else self.shown <= self.goal


def ratio(what: str, bare: float, semcache: float, goal: float) -> Row:
    return Row(what, "/s", bare, semcache, semcache / bare, goal, is_floor=True)


def added_ms(what: str, bare: float, semcache: float, goal: float) -> Row:
    return Row(what, "ms", bare, semcache, semcache - bare, goal, is_floor=False, shown_as="added ms")


def at_most(what: str, unit: str, value: float, goal: float) -> Row:
    return Row(what, unit, None, value, value, goal, is_floor=False, shown_as=unit)


class Bench:
    """The servers of one run and what is measured with them."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack, rounds: int, seconds: float) -> None:
        self._folder = folder
        self._stack = stack
        self._rounds = rounds
        self._seconds = seconds
        self._wrk = Wrk(folder, seconds)
        self._numbers = iter(
            range(1_000_000, 2**62, 1_000_000)
        )  # each run of numbered requests has a million of its own
        body = json.loads(chat("What is the answer to all questions?"))
        reply = write_reply(body, {"tokens": str(ANSWER_WORDS)}, 1, time.time())
        files = folder / "answer.json", folder / "answer.sse"
        files[0].write_bytes(openai_json(reply, body))
        # With its usage at the end, as upstreams send it to a proxy that asks for it: else the proxy counts tokens.
        told = {**body, "stream": True, "stream_options": {"include_usage": True}}
        files[1].write_bytes(b"".join(event for _, event in openai_events(reply, told)) + DONE)
        self._origin = self._bare(DRIVEN_FROM, "answer", *map(str, files))
        _, self.proxy = self._start_proxy("main")

    def _bare(self, core: int, *arguments: str) -> str:
        child, url = start_bare(self._folder, core, *arguments)
        self._stack.callback(child.stop)
        return url

    def _start_proxy(self, name: str) -> tuple[children.Child, str]:
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        child, url, _ = children.start_proxy(folder, f"{self._origin}/v1", prefix=pinned(SERVED_ON))
        self._stack.callback(child.stop)
        return child, url

    def _turns(self, *sides: Callable[[], float]) -> list[float]:
        """The median of each side, over rounds in which all take their turn."""
        rounds = [[side() for side in sides] for _ in range(self._rounds)]
        return [median(column) for column in zip(*rounds, strict=True)]

    def exact(self) -> Iterator[Row]:
        """The same bytes from the store and from a server that does nothing else."""
        question = "What does an exact hit cost?"
        bodies = {stream: chat(question, stream=stream) for stream in (False, True)}
        replies = {stream: self._hit(body, "exact") for stream, body in bodies.items()}
        files = self._folder / "hit.json", self._folder / "hit.sse"
        for file, stream in zip(files, (False, True), strict=True):
            file.write_bytes(replies[stream])
        bare = self._bare(SERVED_ON, "answer", *map(str, files))
        goals = {False: (0.55, 0.25), True: (0.55, 0.25)}
        for stream, name in ((False, "exact hit, JSON"), (True, "exact hit, replayed stream")):
            body = bodies[stream]
            rates = self._turns(lambda b=body: self._rate(bare, b), lambda b=body: self._rate(self.proxy, b))
            yield ratio(f"{name}, 32 connections", *rates, goals[stream][0])
            times = self._turns(
                lambda b=body: median_ms(bare, [b] * SAMPLES), lambda b=body: median_ms(self.proxy, [b] * SAMPLES)
            )
            yield added_ms(f"{name}, first byte, 1 connection, p50", *times, goals[stream][1])

    def rules(self) -> Iterator[Row]:
        """What routing, admission, guardrails, ledger and audit cost a hit and a miss, all of them on at once."""
        child, ruled, headers = self._start_by_rules("ruled", mode="serve")
        question = "What does an exact hit cost under rules?"
        bodies = {stream: chat(question, stream=stream) for stream in (False, True)}
        files = self._folder / "ruled.json", self._folder / "ruled.sse"
        for file, stream in zip(files, (False, True), strict=True):
            file.write_bytes(self._hit(bodies[stream], "exact", ruled, headers=headers))
        bare = self._bare(SERVED_ON, "answer", *map(str, files))
        for stream, name in ((False, "exact hit under rules, JSON"), (True, "exact hit under rules, replayed stream")):
            rates = self._turns(
                lambda b=bodies[stream]: self._rate(bare, b), lambda b=bodies[stream]: self._rate(ruled, b, headers)
            )
            yield ratio(f"{name}, 32 connections", *rates, 0.5)
        child.stop()

        forward = self._bare(SERVED_ON, "forward", f"{self._origin}/v1/chat/completions")
        _, plain, _ = self._start_by_rules("off-plain", has_rules=False)
        _, ruled, headers = self._start_by_rules("off-ruled", has_guardrails=False)
        _, guarded, guarded_headers = self._start_by_rules("off-guarded")
        for stream, name in ((False, "miss, JSON"), (True, "miss, stream")):
            bare_ms, plain_ms, ruled_ms, guarded_ms = self._turns(
                lambda s=stream: median_ms(forward, self._numbered_bodies(s)),
                lambda s=stream: median_ms(plain, self._numbered_bodies(s)),
                lambda s=stream: median_ms(ruled, self._numbered_bodies(s), headers),
                lambda s=stream: median_ms(guarded, self._numbered_bodies(s), guarded_headers),
            )
            yield added_ms(f"{name}, what rules but guardrails add to the same proxy, p50", plain_ms, ruled_ms, 0.15)
            yield added_ms(f"{name} under all rules, against a bare reverse proxy, p50", bare_ms, guarded_ms, 1.0)

    def _start_by_rules(
        self, name: str, *, has_rules: bool = True, has_guardrails: bool = True, mode: str = "off"
    ) -> tuple[children.Child, str, list[str]]:
        """`mode`: off caches nothing."""
        started = bench_rules.start(
            self._folder / name,
            self._origin,
            pinned(SERVED_ON),
            has_rules=has_rules,
            has_guardrails=has_guardrails,
            mode=mode,
        )
        self._stack.callback(started[0].stop)
        return started

    def dialects(self) -> Iterator[Row]:
        """An exact hit in every dialect against one in chat's: the same question and text, in other bytes."""
        folder = self._folder / "dialects"
        folder.mkdir()
        simulator, upstream = children.start_simulator(folder, ttft="0ms", rate=100_000, prefix=pinned(DRIVEN_FROM))
        self._stack.callback(simulator.stop)
        child, proxy, _ = children.start_proxy(folder, upstream, prefix=pinned(SERVED_ON))
        self._stack.callback(child.stop)
        for stream in (False, True):
            asked = in_dialects("What does a hit cost in each dialect?", stream=stream)
            sizes = {name: len(self._hit(body, "exact", proxy, path)) for name, (path, body) in asked.items()}
            sides = [
                lambda path=path, body=body: self._good(self._wrk.same(proxy, body, path=path))
                for path, body in asked.values()
            ]
            chat_rate, *rates = self._turns(*sides)
            for name, rate in zip(list(asked)[1:], rates, strict=True):
                form = "stream" if stream else "JSON"
                size = f"{sizes[name]:,} bytes, chat {sizes['chat']:,}"
                yield ratio(f"exact hit, {form}, {name} against chat ({size})", chat_rate, rate, 0.9)

    def conversation(self) -> Iterator[Row]:
        """A conversation of a megabyte: parsed, ruled, its key derived. On a thread of its own when it is served."""
        for name in ("chat", "responses", "messages"):
            yield at_most(f"plan of a 1 MB conversation, {name}", "ms", plan_ms(name, self._rounds * 20), 15.0)

    def semantic(self) -> Iterator[Row]:
        """Questions that were never asked, each near to a stored one, against the model alone."""
        stored = stored_questions()
        with Caller(self.proxy) as caller:
            for question in stored:
                caller.ask(chat(question))
        per_round = round(self._seconds * 900) + SAMPLES  # more than one core embeds
        console.print("  finding questions near to stored ones ...", style="dim")
        questions = near_questions(per_round * self._rounds, THRESHOLD)
        fresh = iter(questions)
        texts = self._folder / "texts.txt"  # the model alone reads the same questions
        texts.write_text("\n".join(questions[:2000]))
        alone: list[dict[str, float]] = []
        verdicts: Counter[str] = Counter()

        def embed() -> float:
            command = [*pinned(SERVED_ON), sys.executable, "-m", "loadtests.bare", "embed", str(texts)]
            done = subprocess.run([*command, str(self._seconds)], capture_output=True, text=True, check=True)
            alone.append(json.loads(done.stdout))
            return alone[-1]["texts_per_s"]

        def ask_many() -> float:
            load = self._wrk.lines(self.proxy, [next(fresh) for _ in range(per_round - SAMPLES)])
            verdicts.update(load.verdicts)
            # Those that missed the embedder's deadline were forwarded: answered, but not what is measured here.
            return self._good(load) * load.verdicts.get("semantic", 0) / sum(load.verdicts.values())

        def ask_one() -> float:
            return median_ms(self.proxy, [chat(next(fresh)) for _ in range(SAMPLES)])

        rate_alone, rate, one = self._turns(embed, ask_many, ask_one)
        share = verdicts["semantic"] / verdicts.total()
        yield ratio(f"semantic hit, 32 connections ({share:.1%} of replies)", rate_alone, rate, 0.85)
        # The model is fastest in batches of equal length; the proxy takes one text at a time, so that a vector does not
        # depend on its neighbours (docs/decisions.md). This row leaves that choice out.
        one_by_one = 1000 / median(row["one_ms"] for row in alone)
        yield ratio("the same against the model, one text at a time", one_by_one, rate, 0.85)
        yield added_ms("semantic hit, 1 connection, p50", median(row["one_ms"] for row in alone), one, 1.0)

    def miss(self) -> Iterator[Row]:
        """Forwarding and keeping, against forwarding alone."""
        bare = self._bare(SERVED_ON, "forward", f"{self._origin}/v1/chat/completions")
        question = "What does miss number @ cost?"
        rates = self._turns(
            lambda: self._good(self._wrk.numbered(bare, question, next(self._numbers))),
            lambda: self._good(self._wrk.numbered(self.proxy, question, next(self._numbers), EXACT_ONLY)),
        )
        yield ratio("miss, exact tier only, 32 connections", *rates, 0.6)
        for stream, name in ((False, "miss, JSON"), (True, "miss, stream")):
            times = self._turns(
                lambda s=stream: median_ms(bare, self._numbered_bodies(s)),
                lambda s=stream: median_ms(self.proxy, self._numbered_bodies(s), EXACT_ONLY),
            )
            yield added_ms(f"{name}, first byte, 1 connection, p50", *times, 1.0)

    def rest(self) -> Iterator[Row]:
        """A second start on an empty store, and what it holds when nothing is asked."""
        times, sizes = [], []
        for number in range(self._rounds):
            began = time.monotonic()
            child, _ = self._start_proxy(f"rest-{number}")
            times.append(time.monotonic() - began)
            sizes.append(resident_mb(child.pid))
            if has_mapped(child.pid, "libtorch"):
                raise StartError("the serving process has loaded torch")
            child.stop()
        yield at_most("start until ready, model prepared", "s", median(times), 2.0)
        yield at_most("resident at rest (torch is not loaded)", "MB", median(sizes), 250.0)

    def restart(self, entries: int) -> Iterator[Row]:
        """The same with a full store, and lookups in its one partition."""
        child, url = self._start_proxy("full")
        with Caller(url) as caller:
            caller.ask(chat("Is this the first of many?"))
            caller.ask(chat("Is this the first of many?"))
        child.stop()
        store = self._folder / "full" / "cache.db"
        began = time.monotonic()
        asyncio.run(_fill(store, entries))
        console.print(f"  {entries:,} entries stored in {time.monotonic() - began:.0f} s", style="dim")
        began = time.monotonic()
        child, url = self._start_proxy("full")  # this one builds the index in the background, and leaves its snapshot
        console.print(f"  first start with them, no snapshot: {time.monotonic() - began:.1f} s", style="dim")
        while (
            median(_search_times(url, next(self._numbers), 50)) > LOOKUP_GOAL_MS and time.monotonic() - began < BUILD_S
        ):
            pass  # asking is the only way to see from outside that the faster index has taken over
        console.print(f"  lookups fast after {time.monotonic() - began:.1f} s", style="dim")
        child.stop()
        times, lookups = [], []
        for number in range(self._rounds):
            began = time.monotonic()
            child, url = self._start_proxy("full")
            times.append(time.monotonic() - began)
            resident = resident_mb(child.pid)
            lookups += _search_times(url, number * LOOKUPS, LOOKUPS)
            child.stop()
        yield at_most(f"restart with {entries:,} entries until ready", "s", median(times), 5.0)
        yield at_most(
            f"lookup among {entries:,}, p99 (Server-Timing: search)",
            "ms",
            float(np.percentile(lookups, 99)),
            LOOKUP_GOAL_MS,
        )
        console.print(f"  lookup p50 {median(lookups):.2f} ms; resident {resident:.0f} MB", style="dim")

    def _hit(self, body: bytes, detail: str, proxy: str = "", path: str = CHAT, headers: Sequence[str] = ()) -> bytes:
        """The body of a hit on this request. Raises StartError when it does not become one."""
        with Caller(proxy or self.proxy) as caller:
            for _ in range(50):
                _, head, answer = caller.ask(body, headers, path)
                if f"detail={detail}" in header(head, "Cache-Status") and "hit" in header(head, "Cache-Status"):
                    return answer if b"chunked" not in head.lower() else _unchunked(answer)
        raise StartError(f"no {detail} hit after 50 equal requests: {header(head, 'Cache-Status')}")

    def _rate(self, url: str, body: bytes, headers: Sequence[str] = ()) -> float:
        return self._good(self._wrk.same(url, body, headers))

    def _good(self, load: Load) -> float:
        if load.bad:
            raise StartError(f"requests failed: {load}")
        return load.per_s

    def _numbered_bodies(self, stream: bool) -> list[bytes]:
        first = next(self._numbers)
        return [chat(f"What does miss number {first + place} cost?", stream=stream) for place in range(SAMPLES)]


def _unchunked(body: bytes) -> bytes:
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        whole += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    return whole


def _search_times(url: str, first: int, count: int) -> list[float]:
    """Milliseconds of the search phase of questions never asked before, as the proxy itself timed them."""
    times = []
    with Caller(url) as caller:
        for number in range(first, first + count):
            _, head, _ = caller.ask(chat(f"question of {number} words that nobody asked"))
            timing = header(head, "Server-Timing")
            found = re.search(r"search;dur=([0-9.]+)", timing)
            if found:  # else its embedding was late, and nothing was searched
                times.append(float(found[1]))
    if not times:
        raise StartError("no question was looked up by meaning")
    return times


async def _fill(path: Path, count: int) -> None:
    """Put entries into a store that holds one already: of its scope and partition, with vectors in clusters."""
    from semcache.cache.store import open_store

    store = open_store(config.Cache(store=f"sqlite:{path}"))
    await store.open()
    try:
        first = await store.read(store.last_seq)
        if first is None or first.vector is None:
            raise StartError("the first entry has no vector")
        rng = np.random.default_rng(1)
        centres = rng.standard_normal((max(1, count // 50), len(first.vector))).astype(np.float32)
        for start in range(0, count, 1000):
            size = min(1000, count - start)
            noise = rng.standard_normal((size, len(first.vector))).astype(np.float32)
            vectors = centres[rng.integers(len(centres), size=size)] + 0.4 * noise
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            await asyncio.gather(*(store.put(_alike(first, v, start + n), 0) for n, v in enumerate(vectors)))
    finally:
        await store.close()


def _alike(entry: Entry, vector: np.ndarray, number: int) -> Entry:
    key = Key(exact=os.urandom(32), partition=entry.key.partition)
    return replace(entry, id=f"{number:020x}", key=key, question=f"question number {number}", vector=vector, seq=0)


def show(rows: list[Row]) -> None:
    table = Table(title="\nsemcache against the limits of this machine", title_justify="left", header_style="dim")
    for name in ("what", "bare", "semcache", "", "goal", ""):
        table.add_column(name, justify="left" if name == "what" else "right")
    for row in rows:
        bare = "" if row.bare is None else _figure(row.bare, row.unit)
        sign = ">=" if row.is_floor else "<="
        shown = (
            f"{row.shown:.2f}"
            if row.shown_as == "ratio"
            else f"{row.shown:+.2f} ms"
            if row.shown_as == "added ms"
            else ""
        )
        verdict = "[green]met[/]" if row.is_met else "[red]missed[/]"
        goal = f"{sign} {row.goal:g}" + ("" if row.shown_as == "ratio" else f" {row.unit}")
        table.add_row(row.what, bare, _figure(row.semcache, row.unit), shown, goal, verdict)
    console.print(table)


def _figure(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}" if unit in ("/s", "MB") else f"{value:.2f} {unit}"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="Some parts; may be given again.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--seconds", type=float, default=4.0, show_default=True, help="Of load in each turn.")
@click.option("--entries", type=click.IntRange(1), default=100_000, show_default=True, help="In the restart part.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("var/bench.json"), show_default=True
)
def main(only: tuple[str, ...], rounds: int, seconds: float, entries: int, out: Path) -> None:
    """Measure semcache against bare servers and the bare model. Takes some minutes."""
    os.sched_setaffinity(0, {DRIVEN_FROM})
    rows: list[Row] = []
    try:
        with children.ended_by_signals(), contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="semcache-bench-")))
            bench = Bench(folder, stack, rounds, seconds)
            parts: dict[str, Callable[[], Iterator[Row]]] = {
                "exact": bench.exact,
                "rules": bench.rules,
                "dialects": bench.dialects,
                "conversation": bench.conversation,
                "semantic": bench.semantic,
                "miss": bench.miss,
                "rest": bench.rest,
                "restart": lambda: bench.restart(entries),
            }
            for name, part in parts.items():
                if not only or name in only:
                    console.print(f"[bold]{name}[/]")
                    for row in part():
                        console.print(f"  {row.what}: {_figure(row.semcache, row.unit)}", highlight=False)
                        rows.append(row)
    except SemcacheError as error:
        console.print(f"bench: {error.message}", markup=False, highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if rows:
            show(rows)
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps([{**asdict(row), "is_met": row.is_met} for row in rows], indent=2) + "\n")
            console.print(f"figures: {out}", highlight=False)


if __name__ == "__main__":
    main(prog_name="python -m loadtests.bench")
