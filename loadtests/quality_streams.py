"""`python -m loadtests.quality_streams DATA`: what the cache's decisions are worth on labelled streams.

DATA is a folder with `stream_NAME.jsonl.gz`: `text` and `class` in each line, and where answers depend on them
`class_slots`. Each stream is asked, in order, of a cache that starts empty (quality_replay.py), under every strategy:

- a fixed similarity threshold alone, the measure for all others, and with each further part of the decision. What a
  strategy leaves open, such as the threshold, is chosen on the stream itself, for it and for the reference alike: the
  setting with the most hits of which at most LIMIT are false;
- an error bound (match.max_error), which is given nothing but the bound: on several orders of arrival, after a warm-up.

Two rates, always both: false hits of hits, which is what a reader of cached answers suffers, and of requests.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from fnmatch import fnmatch
from functools import lru_cache, partial
from multiprocessing import get_context
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.progress import Progress

from loadtests.quality_pairs import LEFT_OUT, VECTORS
from loadtests.quality_replay import (
    FalseHit,
    Replayed,
    Settings,
    Stream,
    Tally,
    false_hits,
    load_stream,
    replay,
    shuffled,
    tally,
)
from loadtests.quality_tables import BoundedLine, Line, show_bounded, show_examples, show_strategies
from semcache import config
from semcache.cache.engines import cores
from semcache.errors import ConfigError, SemcacheError

ROWS, QUICK_ROWS = 12_000, 3_000  # of each stream
ORDERS, QUICK_ORDERS = 3, 1  # of arrival: the file's own, and shuffles of all rows
WARM_UP = 500  # requests from which a bounded cache may learn before it is judged
LIMIT = 0.01  # of hits: what every strategy is tuned to
THRESHOLDS = tuple(round(0.99 - 0.01 * step, 2) for step in range(30))  # strictest first
CHANCES = (0.995, 0.99, 0.985, 0.98, 0.97, 0.96, 0.95, 0.94, 0.92, 0.9, 0.87, 0.84, 0.8, 0.75, 0.7, 0.6, 0.5)
STRIDE = 4  # places of a grid
FLOOR = 0.7  # cosine, where something else than the threshold decides
BOUNDS = (0.005, 0.01, 0.02, 0.05)
WIDTH = 175  # of a table in a file
TAKEN_ALL_THE_SAME = "stream_qqp_zipf"  # of the streams that give no new pairs, the one with repeats


Rate = Callable[[Tally], float]


class Strategy(NamedTuple):
    """Settings of `match`, one of which is swept to find the best."""

    name: str
    match: Settings
    swept: str
    grid: Sequence[float]  # strictest first

    def at(self, value: float) -> Settings:
        return {**self.match, self.swept: value}


# A similarity and nothing else: no guard, nor any rule about what a question is of.
BARE = {
    name: value for name, value in {"guards": [], "time_bound": "serve"}.items() if name in config.Match.model_fields
}
REFERENCE = Strategy("threshold", BARE, "threshold", THRESHOLDS)
STRATEGIES = (
    Strategy("+ guards", {}, "threshold", THRESHOLDS),
    Strategy("+ guards + judge", {"threshold": FLOOR}, "judge", CHANCES),
)
BOUNDED = Strategy("error bound", {}, "max_error", BOUNDS)


of_hits: Rate = attrgetter("false_of_hits")
of_requests: Rate = attrgetter("false_of_requests")


class Case(NamedTuple):
    """A stream in one order of arrival, by what it takes to load it: cases travel between processes."""

    file: Path
    rows: int
    vectors: Path
    order: int = 0

    @property
    def name(self) -> str:
        return self.file.name.removesuffix(".jsonl.gz").removeprefix("stream_")

    def load(self) -> Stream:
        return shuffled(_load(self.file, self.rows, self.vectors), self.order)


_load = lru_cache(maxsize=8)(load_stream)


class Run(NamedTuple):
    """A replay's counts, of all requests and of those after the warm-up, and its false hits."""

    whole: Tally
    warm: Tally
    false_hits: Sequence[FalseHit]


def run(case: Case, match: Settings) -> Run:
    stream = case.load()
    replayed: Replayed = asyncio.run(replay(stream, match))
    return Run(tally(stream, replayed), tally(stream, replayed, WARM_UP), false_hits(stream, replayed))


def whole(run: Run) -> Tally:
    return run.whole


def warm(run: Run) -> Tally:
    return run.warm


class Found(NamedTuple):
    value: float  # of what was swept
    run: Run


class Sweep:
    """The replays of one case under one strategy, each made once."""

    def __init__(self, strategy: Strategy, replay: Callable[[Settings], Run]) -> None:
        self._strategy = strategy
        self._replay = replay
        self._runs: dict[float, Run] = {}

    def at(self, value: float) -> Run:
        if value not in self._runs:
            self._runs[value] = self._replay(self._strategy.at(value))
        return self._runs[value]

    def best(self, rate: Rate, limit: float, part: Callable[[Run], Tally] = whole) -> Found | None:
        """The run with the most hits among those whose `rate` is within the limit; None where there is none.

        The looser the setting, the more hits and the more of them false, though few hits make that an uneven line. So
        the grid is walked in strides from its strict end until it is far off, and then searched where it turned.
        """

        def is_within(place: int) -> bool:
            return rate(part(self.at(self._strategy.grid[place]))) <= limit

        last, strides = 0, range(0, len(self._strategy.grid), STRIDE)
        for place in strides:
            if is_within(place):
                last = place
            elif place - last > 2 * STRIDE:
                break
        strict, loose = last, min(last + STRIDE, len(self._strategy.grid))
        while loose - strict > 1:
            middle = (strict + loose) // 2
            strict, loose = (middle, loose) if is_within(middle) else (strict, middle)
        within = [Found(value, run) for value, run in self._runs.items() if rate(part(run)) <= limit]
        return max(within, key=lambda found: (part(found.run).hits, found.value), default=None)


class Bounded(NamedTuple):
    order: int
    bound: float
    run: Run
    fixed: Found | None  # the best threshold whose hits were no more often false, on the same order


class Study(NamedTuple):
    """All that was found on one stream."""

    by_hits: Found | None  # the best fixed threshold with at most LIMIT of hits false
    by_requests: Found | None  # ... of requests
    strategies: Mapping[str, Found | None]
    bounded: Sequence[Bounded]


class Plan(NamedTuple):
    """What is tried on each stream."""

    strategies: Sequence[Strategy]
    bounded: Strategy | None
    orders: int  # of arrival, for the error bound


def study(case: Case, plan: Plan, make: Callable[[Case, Settings], Run]) -> Study:
    """`make` replays, in whatever process."""
    fixed = Sweep(REFERENCE, partial(make, case))
    by_hits = fixed.best(of_hits, LIMIT)
    by_requests = fixed.best(of_requests, LIMIT)
    found = {strategy.name: Sweep(strategy, partial(make, case)).best(of_hits, LIMIT) for strategy in plan.strategies}
    if plan.bounded is None:
        return Study(by_hits, by_requests, found, ())
    bounded = []
    for order in range(plan.orders):
        arriving = case._replace(order=order)
        sweep = Sweep(REFERENCE, partial(make, arriving)) if order else fixed
        for bound in plan.bounded.grid:
            run = make(arriving, plan.bounded.at(bound))
            bounded.append(Bounded(order, bound, run, _no_more_often_false(sweep, run)))
    return Study(by_hits, by_requests, found, bounded)


def _no_more_often_false(sweep: Sweep, run: Run) -> Found | None:
    return sweep.best(of_hits, run.warm.false_of_hits, warm)


def study_all(cases: Sequence[Case], plan: Plan, jobs: int) -> dict[str, Study]:
    """The studies of all streams: a thread for each decides what to replay, `jobs` processes replay."""
    with (
        Progress(console=Console(stderr=True)) as progress,
        ProcessPoolExecutor(jobs, get_context("spawn")) as processes,  # a fork of many threads may hang
        ThreadPoolExecutor(len(cases)) as threads,
    ):

        def follow(case: Case) -> Study:
            # How many replays a sweep needs shows on the way: five for a halving, a few more for another limit.
            about = 9 + 5 * len(plan.strategies) + (2 * plan.orders * len(BOUNDS) if plan.bounded else 0)
            task = progress.add_task(case.name, total=about)

            def make(case: Case, match: Settings) -> Run:
                made = processes.submit(run, case, match).result()
                progress.advance(task)
                return made

            found = study(case, plan, make)
            progress.update(task, total=progress.tasks[task].completed)
            return found

        return dict(zip((case.name for case in cases), threads.map(follow, cases), strict=True))


def files_of(data: Path, only: Sequence[str]) -> list[Path]:
    """The streams to replay: `only` names some of them, with or without `stream_`; * allowed."""
    wanted = [name.removeprefix("stream_") for name in only]
    files = []
    for file in sorted(data.glob("stream_*.jsonl.gz")):
        name = file.name.removesuffix(".jsonl.gz")
        if wanted:
            is_taken = any(fnmatch(name.removeprefix("stream_"), pattern) for pattern in wanted)
        else:
            is_taken = name == TAKEN_ALL_THE_SAME or not any(fnmatch(name, pattern) for pattern in LEFT_OUT)
        if is_taken:
            files.append(file)
    return files


def refused(match: Settings) -> str | None:
    """Why this version does not take the settings; None where it does."""
    try:
        config.build({"match": dict(match)}, "settings")
    except ConfigError as error:
        return error.message
    return None


def lines_of(found: Study) -> list[Line]:
    lines = [
        _line("threshold, by hits", "threshold", found.by_hits),
        _line("threshold, by requests", "threshold", found.by_requests),
    ]
    for strategy in STRATEGIES:
        if strategy.name in found.strategies:
            lines.append(_line(strategy.name, strategy.swept, found.strategies[strategy.name]))
    return lines


def _line(name: str, swept: str, found: Found | None) -> Line:
    return Line(name, f"{swept} {found.value:g}" if found else "none", found.run.whole if found else None)


def bounded_lines_of(found: Study) -> list[BoundedLine]:
    return [
        BoundedLine(
            each.order,
            each.bound,
            each.run.warm,
            each.fixed.value if each.fixed else None,
            each.fixed.run.warm if each.fixed else None,
        )
        for each in found.bounded
    ]


def as_json(studies: Mapping[str, Study]) -> dict[str, Any]:
    def plain(found: Found | None, part: Callable[[Run], Tally] = whole) -> dict[str, Any] | None:
        return {"value": found.value, **part(found.run).as_json()} if found else None

    return {
        "limit": LIMIT,
        "warm_up": WARM_UP,
        "streams": {
            name: {
                "threshold_by_hits": plain(found.by_hits),
                "threshold_by_requests": plain(found.by_requests),
                "strategies": {strategy: plain(best) for strategy, best in found.strategies.items()},
                "bounded": [
                    {
                        "order": each.order,
                        "bound": each.bound,
                        "is_within": line.is_kept,
                        **each.run.warm.as_json(),
                        "threshold": plain(each.fixed, warm),
                    }
                    for each, line in zip(found.bounded, bounded_lines_of(found), strict=True)
                ],
            }
            for name, found in studies.items()
        },
    }


def show(studies: Mapping[str, Study], examples: int, console: Console) -> None:
    show_strategies({name: lines_of(found) for name, found in studies.items()}, LIMIT, console)
    if any(found.bounded for found in studies.values()):
        show_bounded({name: bounded_lines_of(found) for name, found in studies.items()}, WARM_UP, console)
    for name, found in studies.items() if examples else ():
        for strategy, best in found.strategies.items():
            if best:
                show_examples(f"{name}, {strategy} {best.value:g}", best.run.false_hits, examples, console)
        for each in found.bounded:
            if each.order == 0:
                show_examples(f"{name}, error bound {each.bound:g}", each.run.false_hits, examples, console)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--only", multiple=True, metavar="NAME", help="This stream, such as banking77; * allowed; repeatable.")
@click.option("--rows", type=click.IntRange(1), help=f"The first so many of each stream.  [default: {ROWS}]")
@click.option("--orders", type=click.IntRange(1), help=f"Orders of arrival for the error bound.  [default: {ORDERS}]")
@click.option("--quick", is_flag=True, help=f"{QUICK_ROWS} rows and {QUICK_ORDERS} order: minutes.")
@click.option("--set", "more", multiple=True, metavar="KEY=VALUE", help="Of match, but for the reference; repeatable.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write everything here too.")
@click.option(
    "--examples", type=click.IntRange(0), default=0, metavar="N", help="Show N false hits of each best setting."
)
@click.option("--jobs", type=click.IntRange(1), default=cores(), show_default=True, help="Replays at the same time.")
@click.option("--vectors", type=click.Path(path_type=Path), default=VECTORS, help="Where vectors are kept.")
def main(
    data: Path,
    only: tuple[str, ...],
    rows: int | None,
    orders: int | None,
    quick: bool,
    more: tuple[str, ...],
    json_path: Path | None,
    examples: int,
    jobs: int,
    vectors: Path,
) -> None:
    """Replay the labelled streams in the folder DATA through the cache, under every strategy.

    Read are stream_NAME.jsonl.gz, with "text" and "class", or "class_slots", in each line.
    """
    rows = rows or (QUICK_ROWS if quick else ROWS)
    orders = orders or (QUICK_ORDERS if quick else ORDERS)
    cases = [Case(file, rows, vectors) for file in files_of(data, only)]
    if not cases:
        sys.exit(f"loadtests.quality_streams: {data} has no stream_*.jsonl.gz to replay")
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    known = {}
    for strategy in (*STRATEGIES, BOUNDED):
        given = strategy._replace(match={**strategy.match, **dict(map(_setting, more))})
        if why := refused(given.at(given.grid[0])):
            console.print(f"left out: {strategy.name}: {why}", highlight=False, markup=False)
        else:
            known[strategy.name] = given
    bounded = known.pop(BOUNDED.name, None)
    try:
        for case in cases:
            case.load()  # so that what is missing is embedded here, with a bar, and not by each process
        studies = study_all(cases, Plan(list(known.values()), bounded, orders), jobs)
    except SemcacheError as error:
        sys.exit(f"loadtests.quality_streams: {error.message}")
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"loadtests.quality_streams: {data}: {type(error).__name__}: {error}")
    show(studies, examples, console)
    if json_path:
        json_path.write_text(json.dumps(as_json(studies), indent=1) + "\n")


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


if __name__ == "__main__":
    main(prog_name="python -m loadtests.quality_streams")
