"""`semcache tune`: which setting keeps false hits below what you allow, told from labels. Nothing here serves.

Exit status: 0 done, also where the evidence is too thin to recommend anything; 1 could not; 2 a file, a setting or an
argument is wrong.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from semcache import config
from semcache.commands.shared import FILE, examples, screen, speaks_plainly
from semcache.errors import ConfigError, SemcacheError

if TYPE_CHECKING:
    from semcache.cache.engines import Engine
    from semcache.tuning.label import Labelled
    from semcache.tuning.stored import Evidence, Near
    from semcache.tuning.studies import Bench, Study

R = TypeVar("R")

BOUNDS = (0.005, 0.01, 0.02, 0.05)


# Commands that take a second to load are loaded when they are asked for.
TRAINING = {"train-reranker": "semcache.tuning.train_reranker:train_reranker"}


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *TRAINING})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in TRAINING:
            return super().get_command(ctx, cmd_name)
        module, _, name = TRAINING[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def tune() -> None:
    """Find the setting of `match` that suits your questions: from labels, from evidence, or by labelling a few."""


def _common(command: Callable[..., R]) -> Callable[..., R]:
    for option in reversed(
        (
            click.option("-c", "--config", "settings_file", type=FILE, help="Configuration: models, guards, routes."),
            click.option("--route", type=click.IntRange(0), default=0, help="By its place there; the first is 0."),
            click.option(
                "--target",
                type=click.FloatRange(0, 0.5, min_open=True),
                default=0.01,
                show_default=True,
                help="Share of hits by meaning that may be false.",
            ),
            click.option("--reranker", metavar="NAME", help="Try this one: a hub name or a folder. 4 ms a pair."),
            click.option("--vectors", type=click.Path(file_okay=False, path_type=Path), help="Keep vectors in here."),
            click.option("--json", "json_file", type=FILE, help="Write the figures here, too."),
            click.option("--html", "page", type=FILE, help="Write a page with charts, too; it needs no network."),
        )
    ):
        command = option(command)
    return command


@tune.command(
    epilog=examples(
        "semcache tune run labels.jsonl",
        "semcache tune run questions.csv --target 0.005 --html tune.html",
        "semcache tune run stream.jsonl.gz -c config/semcache.yaml --route 1 --vectors ./vectors",
    )
)
@click.argument("files", nargs=-1, required=True, type=FILE)
@_common
@click.option("--rows", type=click.IntRange(1), help="Read so many rows of each file, from the first on.")
@click.option(
    "--bound-rows",
    type=click.IntRange(0),
    default=20_000,
    show_default=True,
    help="Of a stream, for error bounds; 0: none.",
)
@speaks_plainly
def run(files: tuple[Path, ...], rows: int | None, bound_rows: int, **common: Any) -> None:
    """Draw curves of hits against false hits from labelled FILES, and recommend a setting.

    A file is JSON Lines (also .gz) or CSV, and holds one of two things. Pairs: "a", "b" and "duplicate", 1 where the
    answer to the one serves the other. Or a stream: "text" and "group" (or "class"), in order of time, equal where the
    answers are; it is replayed through the decision that the proxy makes, and under error bounds (match.max_error).
    """
    from semcache.tuning.studies import study_file

    with _bench(common, bound_rows) as bench:
        studies = [study_file(file, bench, rows) for file in files]
    _report(studies, common)


@contextmanager
def _bench(common: dict[str, Any], bound_rows: int = 0) -> Iterator[Bench]:
    """What labels are tried on, by the options of the command; with progress bars meanwhile."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from semcache.cache.judge import PairJudge
    from semcache.inprocess import Cache
    from semcache.tuning.embedding import Embedding
    from semcache.tuning.studies import Bench

    settings = config.load(common["settings_file"])
    place = common["route"]
    if place >= len(settings.routes):
        raise ConfigError(f"--route: there are {len(settings.routes)} routes, the first is 0")
    route = settings.routes[place]
    if common["reranker"]:
        route = route.model_copy(update={"match": route.match.model_copy(update={"reranker": common["reranker"]})})
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        embedding = Embedding(_engine(settings), common["vectors"], progress)
        weights = route.match.judge_weights
        bench = Bench(
            route=route,
            embedding=embedding,
            judge=PairJudge.load(None if weights is None else Path(weights), embedding.stamp),
            reranker=_reranker(route.match.reranker),
            open_cache=Cache,
            progress=progress,
            target=common["target"],
            bounds=sorted({*BOUNDS, common["target"]}) if bound_rows else (),
            bound_rows=bound_rows,
        )
        yield bench


def _engine(settings: config.Config) -> Callable[[], Engine]:
    from semcache.cache import engines
    from semcache.cache.model import prepare as prepare_model

    if settings.embedder.engine == "onnx":
        prepare_model(settings.embedder.model, progress=lambda line: click.echo(f"semcache: {line}", err=True))
    return lambda: engines.build(settings.embedder)


def _reranker(name: str | None) -> Callable[[str, str], float] | None:
    if name is None:
        return None
    from semcache.cache import reranker_engines

    engine = reranker_engines.build(name)
    engine.open()
    return lambda asked, stored: engine.score(asked, stored) if _is_short(asked, stored, engine.limit_chars) else 0.0


def _is_short(asked: str, stored: str, limit_chars: int) -> bool:
    return len(asked) + len(stored) <= limit_chars


def _report(studies: Sequence[Study], common: dict[str, Any]) -> None:
    from semcache.tuning.page import write_page
    from semcache.tuning.report import report
    from semcache.tuning.screen import show

    found = report(studies, {"target": common["target"], "route": common["route"]}, time.time())
    show(found, screen())
    if common["json_file"]:
        _write(common["json_file"], json.dumps(found, indent=1) + "\n")
    if common["page"]:
        _write(common["page"], write_page(found))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise SemcacheError(f"{path}: cannot be written: {exc.strerror or exc}") from exc


@tune.command(
    epilog=examples("semcache tune evidence -c config/semcache.yaml", "semcache tune evidence --html tune.html")
)
@_common
@speaks_plainly
def evidence(**common: Any) -> None:
    """The same from what the proxy has seen: fresh answers that were held against stored ones.

    Reads the store of the configuration, also while a server runs. There is evidence where a route was in shadow mode,
    or has an error bound, or `match: {learn: always}`. For its hit rate over all requests see: semcache shadow.
    """
    from semcache.tuning.studies import study_cases

    settings = config.load(common["settings_file"])

    with _bench(common) as bench:
        found = asyncio.run(_read_evidence(settings, bench.embedding.stamp, common["route"]))
        if not len(found.cases.pairs):
            raise SemcacheError(
                f"no answers were compared on route {common['route']} yet, or their questions are stored no more: "
                "set match: {mode: shadow} for it, and let traffic come"
            )
        study = study_cases("evidence", "evidence", found.cases, bench, found.notes)
    _report([study], common)


async def _read_evidence(settings: config.Config, embedder: str, route: int) -> Evidence:
    from semcache.tuning.stored import open_existing, read_evidence

    store = open_existing(settings)
    await store.open()
    try:
        return await read_evidence(store, embedder, route)
    finally:
        await store.close()


@tune.command(
    epilog=examples(
        "semcache tune label labels.jsonl -c config/semcache.yaml",
        "semcache tune label labels.jsonl --near 0.85 && semcache tune run labels.jsonl",
    )
)
@click.argument("file", type=FILE)
@click.option("-c", "--config", "settings_file", type=FILE, help="Configuration: the store and the embedder.")
@click.option("--near", type=click.FloatRange(0, 1), default=0.80, show_default=True, help="Least cosine of a pair.")
@click.option("--seed", type=int, default=1, show_default=True, help="Which pairs come first.")
@speaks_plainly
def label(file: Path, settings_file: Path | None, near: float, seed: int) -> None:
    """Show pairs of stored questions that are near each other, and append what you say of them to FILE.

    Each stored question is shown with the nearest that was stored before it, in an order drawn by chance. FILE is made
    readable by you alone, and is what `semcache tune run` reads. Some hundred labels tell little, and a thousand much.
    """
    from rich.console import Console

    from semcache import wire
    from semcache.tuning.label import KEYS, Labels
    from semcache.tuning.label import label as ask

    settings = config.load(settings_file)
    console = Console()
    labels = Labels(file)
    console.print(KEYS, highlight=False)
    count = asyncio.run(_label(settings, near, seed, lambda pairs: ask(pairs, labels, console, _ask_key, wire.say)))
    click.echo(f"{count.same} with the same answer, {count.different} with another: added to {file}")


def _ask_key() -> str:
    try:
        return str(click.prompt("", prompt_suffix="> ", default="", show_default=False))
    except click.Abort:  # Ctrl-C, or the end of the input
        return "q"


async def _label(
    settings: config.Config, near: float, seed: int, ask: Callable[[AsyncIterator[Near]], Awaitable[Labelled]]
) -> Labelled:
    from semcache.tuning.stored import find_near, open_existing, read_near

    engine = _engine(settings)()
    store = open_existing(settings)
    await store.open()

    async def pairs() -> AsyncIterator[Near]:
        for numbers in found:
            pair = await read_near(store, numbers)
            if pair is not None:
                yield pair

    try:
        found = await find_near(store, engine.stamp, near, seed)
        if not found:
            raise SemcacheError(f"no two stored questions have a cosine of {near} or more: try a lower --near")
        return await ask(pairs())
    finally:
        await store.close()


@tune.command(
    epilog=examples(
        "semcache tune train labels.jsonl -o judge.npz",
        "semcache tune train shop.jsonl.gz support.csv more/ -o judge.npz --leave-out support",
    )
)
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=FILE, help="Write the weights here; without it they are only measured.")
@click.option(
    "--only", multiple=True, metavar="NAME", help="Of folders, these files, without their endings; * allowed."
)
@click.option("--leave-out", multiple=True, metavar="NAME", help="Do not learn from this file; * allowed.")
@click.option("--seed", type=int, default=7, show_default=True, help="Of all that is drawn by chance.")
@click.option("-c", "--config", "settings_file", type=FILE, help="Configuration: the embedder.")
@click.option("--vectors", type=click.Path(file_okay=False, path_type=Path), help="Keep vectors in here.")
@click.option("--json", "json_file", type=FILE, help="Write the figures here, too.")
@speaks_plainly
def train(
    data: tuple[Path, ...],
    output: Path | None,
    only: tuple[str, ...],
    leave_out: tuple[str, ...],
    seed: int,
    settings_file: Path | None,
    vectors: Path | None,
    json_file: Path | None,
) -> None:
    """Train the pair judge's weights from labelled DATA, files or folders, as `semcache tune run` reads them.

    Shown is how well it judges what it was not trained on: each file by all others, or, with fewer than three files,
    parts of them. These figures choose what it looks at: cosine and guards, words too, or vectors too. To use the
    weights, set match.judge_weights to the file and match.judge to the least probability of a hit.
    """
    from semcache.tuning.train_screen import find_files, run_training

    settings = config.load(settings_file)
    files = find_files(data, only, leave_out)
    console = screen()
    run_training(files, settings, _engine(settings), output, seed, vectors, json_file, console)
