"""`python -m loadtests.quality_streams DATA`: what the cache's decisions are worth on labelled streams.

DATA is a folder with `stream_NAME.jsonl.gz`: `text` and `class` in each line, and where answers depend on them
`class_slots`. Each stream is asked, in order, of a cache that starts empty (quality_replay.py), under every strategy
(quality_strategies.py): a fixed similarity threshold alone, which is the measure for all others, that with each further
part of the decision, and an error bound (match.max_error) on several orders of arrival after a warm-up.

The judge is the one that comes with semcache, whose few weights are from these sources among others: a fair test of it
is the table of pairs, or `--train`.

Two rates, always both: false hits of hits, which is what a reader of cached answers suffers, and of requests.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from fnmatch import fnmatch
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from loadtests.quality_pairs import LEFT_OUT, VECTORS
from loadtests.quality_replay import Settings, Tally, replay
from loadtests.quality_strategies import (
    BOUNDED,
    BOUNDS,
    JUDGED,
    LIMIT,
    RERANKED,
    STRATEGIES,
    WARM_UP,
    Case,
    Found,
    Plan,
    Run,
    Study,
    run,
    study,
    warm,
    whole,
)
from loadtests.quality_tables import BoundedLine, Line, show_bounded, show_examples, show_strategies
from semcache.cache.engines import cores
from semcache.errors import SemcacheError

ROWS, QUICK_ROWS = 12_000, 3_000  # of each stream
ORDERS, QUICK_ORDERS = 3, 1  # of arrival: the file's own, and shuffles of all rows
WIDTH = 175  # of a table in a file
TAKEN_ALL_THE_SAME = "stream_qqp_zipf"  # of the streams that give no new pairs, the one with repeats


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

            made: dict[tuple[int, str], Run] = {}  # two tables ask for some of the same

            def make(case: Case, match: Settings) -> Run:
                wanted = (case.order, repr(sorted(match.items())))
                if wanted not in made:
                    made[wanted] = processes.submit(run, case, match).result()
                progress.advance(task)
                return made[wanted]

            found = study(case, plan, make)
            progress.update(task, total=progress.tasks[task].completed)
            if not progress.console.is_terminal:  # a log shows no bars before the end
                progress.console.print(f"{case.name}: done")
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


def train_without(case: Case, console: Console) -> Case:
    """The case with a judge that never saw its stream, trained once and kept beside the vectors.

    Where that fails, the shipped judge judges, which may have seen it; the table is then said to be no fair test.
    """
    weights = case.vectors / f"judge-without-{case.name}.npz"
    if not weights.exists():
        console.print(f"training a judge without {case.name}", highlight=False)
        command = [sys.executable, "-m", "semcache", "tune", "train", str(case.file.parent)]
        command += ["--leave-out", f"stream_{case.name}", "-o", str(weights)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode or not weights.exists():
            why = (ended.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
            console.print(f"no judge without {case.name}, so the shipped one: {why}", highlight=False, markup=False)
            return case
    return case._replace(judge_weights=weights)


def refused(match: Settings, case: Case) -> str | None:
    """Why this version does not take the settings, or cannot start with them; None where it does."""
    nothing = case.load()._replace(rows=())
    try:
        asyncio.run(replay(nothing, match))
    except SemcacheError as error:
        return error.message
    return None


def lines_of(found: Study) -> list[Line]:
    lines = [
        _line("threshold, by hits", "threshold", found.by_hits),
        _line("threshold, by requests", "threshold", found.by_requests),
    ]
    for strategy in (*STRATEGIES, RERANKED):
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
@click.option("--train", is_flag=True, help="Train a judge without each stream first, some minutes each.")
@click.option("--reranker", is_flag=True, help="With the cross-encoder, too: milliseconds a pair, so an hour or more.")
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
    reranker: bool,
    train: bool,
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
    try:
        for case in cases:
            case.load()  # so that what is missing is embedded here, with a bar, and not by each process
        for strategy in (*STRATEGIES, *([RERANKED] if reranker else []), BOUNDED):
            given = strategy._replace(match={**strategy.match, **dict(map(_setting, more))})
            if why := refused(given.at(given.grid[0]), cases[0]):
                console.print(f"left out: {strategy.name}: {why}", highlight=False, markup=False)
            else:
                known[strategy.name] = given
        if train and any(strategy.swept in JUDGED for strategy in known.values()):
            cases = [train_without(case, console) for case in cases]
        bounded = known.pop(BOUNDED.name, None)
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
