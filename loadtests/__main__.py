"""`python -m loadtests`: play a scenario or a file against a semcache started for it, or against any base URL."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import click
import httpx
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loadtests.driver import Driver, Result, Run
from loadtests.report import as_text, summarize, write_html, write_json
from loadtests.scenarios import SCENARIOS, Scenario
from loadtests.workload import Workload, arriving, from_file, poisson, trace, with_streams
from semcache import children
from semcache.commands.shadow_screen import show
from semcache.errors import SemcacheError
from semcache.learning import FLUSH_S

FILE = click.Path(dir_okay=False, exists=True, path_type=Path)
COMPARED_S = 120.0  # how long the report waits for answers that are not compared yet
LISTED = "\n".join(f"  {scenario.name:8} {scenario.shows}" for scenario in SCENARIOS.values())


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=f"""\b
Scenarios:
{LISTED}

\b
Examples:
  python -m loadtests
  python -m loadtests --scenario burst --threshold 0.93
  python -m loadtests --file questions.jsonl.gz --rate 40 --limit 5000
  python -m loadtests --shadow --file questions.jsonl.gz --rate 25 --limit 3000
  python -m loadtests --file questions.jsonl --trace arrivals.csv --speed 10
  python -m loadtests --url http://127.0.0.1:8080/v1 --model llama-3 --concurrency 8""",
)
@click.option("--scenario", type=click.Choice(list(SCENARIOS)), default="minute", show_default=True)
@click.option(
    "--file", type=FILE, help="JSON Lines (.gz) with `text` and `group` or `class`, in place of the questions."
)
@click.option("--group-field", help="The field that says which texts one answer serves.")
@click.option("--limit", type=click.IntRange(1), help="At most so many requests.")
@click.option("--trace", "trace_file", type=FILE, help="Arrivals from a CSV or JSON Lines file: t, t_s or t_ms.")
@click.option("--speed", type=float, default=1.0, show_default=True, help="Play arrivals so many times as fast.")
@click.option("--rate", type=float, help="Arrivals by chance, so many a second.")
@click.option("--concurrency", type=click.IntRange(1), help="No arrivals: so many requests in flight, always.")
@click.option("--streams", type=click.FloatRange(0, 1), help="Share of the requests that ask for a stream.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--threshold", type=float, help="Least cosine of a semantic hit, for the proxy started here.")
@click.option("--shadow", is_flag=True, help="Run the proxy started here in shadow mode, and show its report.")
@click.option("--url", help="A running server, with /v1, in place of those started here.")
@click.option("--model", default="simulated-small", show_default=True)
@click.option("--api-key", envvar="LOADTEST_API_KEY", default="load-test", help="Or $LOADTEST_API_KEY.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("var/loadtests"), show_default=True
)
def main(
    scenario: str,
    file: Path | None,
    group_field: str | None,
    limit: int | None,
    trace_file: Path | None,
    speed: float,
    rate: float | None,
    concurrency: int | None,
    streams: float | None,
    seed: int,
    threshold: float | None,
    shadow: bool,
    url: str | None,
    model: str,
    api_key: str,
    out: Path,
) -> None:
    """Play questions against semcache and report hit rate, false hits and latency, as JSON and as a page."""
    console = Console()
    chosen = SCENARIOS[scenario]
    try:
        workload = from_file(file, group_field=group_field) if file else chosen.build(seed)
        if streams is not None or file:
            workload = with_streams(workload, 0.5 if streams is None else streams, seed=seed)
        if limit:
            workload = replace(workload, requests=workload.requests[:limit])
        timed = _timed(workload, trace_file, speed, rate, seed)
        if timed is not None:
            workload = timed
        if concurrency is None and timed is None:
            # A file without times has no pace of its own.
            concurrency = chosen.concurrency or (None if any(r.at_s for r in workload.requests) else 16)
        with _server(chosen, url, threshold, shadow) as (base_url, about, admin):
            run = _play(console, workload, base_url, model, api_key, concurrency, shadow)
            if shadow and admin is not None:
                _show_shadow(admin, console)
    except SemcacheError as error:
        console.print(f"loadtests: {error.message}", markup=False, highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("\nstopped: nothing is reported")
        sys.exit(130)
    pace = f"{concurrency} in flight" if concurrency else f"arrivals over {workload.span_s:.0f} s"
    name = file.name if file else chosen.name
    summary = summarize(run, {"scenario": name, **about, "pace": pace, "seed": seed})
    stem = f"{name.split('.')[0]}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    out.mkdir(parents=True, exist_ok=True)
    write_json(summary, out / f"{stem}.json")
    write_html(summary, run, out / f"{stem}.html")
    console.print(as_text(summary), markup=False, highlight=False, soft_wrap=True)
    console.print(f"report: {out / stem}.html and .json", highlight=False, soft_wrap=True)
    sys.exit(1 if summary["errors"] or summary["answers_of_another_question_without_a_hit"] else 0)


def _timed(workload: Workload, trace_file: Path | None, speed: float, rate: float | None, seed: int) -> Workload | None:
    """The workload with the arrivals that were asked for; None when none were."""
    if trace_file is not None:
        return arriving(workload, trace(trace_file, speed=speed))
    if rate is not None:
        return arriving(workload, poisson(rate, seed=seed))
    if speed != 1.0:
        return arriving(workload, [(request.at_s or 0.0) / speed for request in workload.requests])
    return None


@contextlib.contextmanager
def _server(
    scenario: Scenario, url: str | None, threshold: float | None, shadow: bool
) -> Iterator[tuple[str, dict[str, str], str | None]]:
    """The base URL to ask, what to say of it, and the admin URL. Servers started here are fresh and gone afterwards."""
    if url is not None:
        yield url, {"server": url}, None
        return
    options = [] if threshold is None else ["--threshold", str(threshold)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(children.ended_by_signals())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="semcache-loadtest-")))
        backend, upstream = children.start_simulator(folder, ttft=scenario.ttft, rate=scenario.tokens_per_s)
        stack.callback(backend.stop)
        if shadow:
            file = folder / "shadow.yaml"
            file.write_text("match: {mode: shadow}\n", encoding="utf-8")
            options += ["-c", str(file)]
        proxy, address, metrics = children.start_proxy(folder, upstream, *options)
        stack.callback(proxy.stop)
        about = {"backend": f"simulated, {scenario.ttft} to the first token, {scenario.tokens_per_s:g} tokens/s"}
        told = {**about, "threshold": "as configured" if threshold is None else str(threshold)}
        yield f"{address}/v1", told, metrics.removesuffix("/metrics")


def _show_shadow(admin: str, console: Console) -> None:
    """The report of shadow mode, once all answers have been compared."""
    with httpx.Client(base_url=admin, timeout=60) as client:
        until = time.monotonic() + COMPARED_S
        while client.get("/stats").json()["learning"]["waiting"] and time.monotonic() < until:
            time.sleep(0.5)
        time.sleep(2 * FLUSH_S)  # the last comparison, and what it showed
        show(client.get("/shadow").json(), console)


def _play(
    console: Console,
    workload: Workload,
    base_url: str,
    model: str,
    api_key: str,
    concurrency: int | None,
    same_answers: bool,
) -> Run:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(workload.name, total=len(workload.requests))

        def advance(_: Result) -> None:
            progress.advance(bar)

        driver = Driver(base_url, model=model, api_key=api_key, on_result=advance, same_answers=same_answers)
        playing = driver.open_loop(workload) if concurrency is None else driver.closed_loop(workload, concurrency)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(playing)


if __name__ == "__main__":
    main(prog_name="python -m loadtests")
