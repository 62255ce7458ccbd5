"""`semcache tune train-reranker`: a cross-encoder from labelled pairs, made ready to serve and measured.

The pairs are those a cache has to judge: near each other, half with the same answer and half not, and of each source as
many as of the others while it has them, so that the largest does not decide what "the same" means. Sources that are
held out are not trained on; they tell what the model is worth where it has seen nothing. Twins and harmless copies that
are made of the questions count as one more source.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from semcache import config
from semcache.cache import engines, model, reranker_engines
from semcache.cache.reranker_engines import PairEngine
from semcache.errors import ConfigError, SemcacheError
from semcache.tuning.embedding import Embedding
from semcache.tuning.figures import PRECISIONS, Figures, measure
from semcache.tuning.labelled import Drawing, Embed, LabelledPairs, Pair, load, name_of
from semcache.tuning.variants import make_variants

NEAR = 0.65  # least cosine of a pair to learn from: a little below the band in which the reranker will be asked
MET = 0.70  # and of one to be measured by
DRAWING = Drawing(neighbours=4, same=4, different=4, across=1)
MEASURED = 3000  # pairs of a source; the int8 model scores some 300 a second on a core
VARIED = 1500  # questions of each source that variants are made of
FILES = ("pairs_*", "stream_*")
LEAST_PAIRS = 500  # fewer move nothing but the head


@click.command(name="train-reranker", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the new model.")
@click.option("--only", multiple=True, metavar="NAME", help="Train on this file, such as stream_shop; * allowed.")
@click.option("--hold-out", multiple=True, metavar="NAME", help="Measure on this file, and do not train on it.")
@click.option("--start", metavar="FOLDER", help="Go on from this cross-encoder instead of the default embedder.")
@click.option("--pairs", type=click.IntRange(LEAST_PAIRS), default=40_000, show_default=True, help="To train on.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), help="To train for, at most.")
@click.option("--rate", type=float, default=3e-5, show_default=True, help="Largest learning rate.")
@click.option("--threads", type=click.IntRange(1), help="Of the training; all cores by default.")
@click.option("--seed", type=int, default=7, show_default=True)
@click.option("--vectors", type=click.Path(path_type=Path), help="Keep vectors of texts in here.")
def train_reranker(
    data: Path,
    out: Path,
    only: tuple[str, ...],
    hold_out: tuple[str, ...],
    start: str | None,
    pairs: int,
    minutes: float | None,
    rate: float,
    threads: int | None,
    seed: int,
    vectors: Path | None,
) -> None:
    """Train a cross-encoder on the labelled files in DATA, and prepare it for match.reranker.

    Read are files named pairs_NAME with "a", "b" and "duplicate" in each line, and stream_NAME with "text" and "class".
    Forty thousand pairs take about ten minutes on two idle cores. Half of them share their answer.
    """
    console = Console(stderr=True)
    try:
        with Progress(console=console) as progress:
            embedding = Embedding(lambda: engines.build(config.Embedder()), vectors, progress)
            learned, held = read_sources(data, only, hold_out, embedding.embed)
        examples = choose({**learned, "generated": generate(learned, seed)}, pairs, seed)
        if len(examples) < LEAST_PAIRS:
            raise ConfigError(
                f"{data}: has {len(examples)} pairs to train on, of those with a cosine of {NEAR} or more and as many "
                f"the same as not; {LEAST_PAIRS} are needed"
            )
        console.print(f"{len(examples):,} pairs of {', '.join(learned)}")
        seen = fit(start, examples, out, rate, minutes, threads, seed, console.print)
        reranker_engines.prepare(str(out), progress=console.print)
        engine = reranker_engines.build(str(out))
        engine.open()
        console.print(f"trained on {seen:,} pairs; to use it: match: {{reranker: {out}}}")
    except SemcacheError as error:
        sys.exit(f"semcache: {error.message}")
    with Progress(console=console) as progress:
        figures = score(held, engine, seed, progress)
    if figures:
        show(figures, Console())


def read_sources(
    data: Path, only: Sequence[str], hold_out: Sequence[str], embed: Embed
) -> tuple[Mapping[str, LabelledPairs], Mapping[str, LabelledPairs]]:
    """The sources to learn from and those held out, by name. Raises ConfigError."""
    files = {name_of(file): file for pattern in FILES for file in sorted(data.glob(f"{pattern}.json*"))}
    held = {name: file for name, file in files.items() if any(fnmatch(name, each) for each in hold_out)}
    learned = {name: file for name, file in files.items() if any(fnmatch(name, each) for each in only or FILES)}
    if not learned.keys() - held.keys():
        raise ConfigError(f"{data}: has no {' or '.join(FILES)} file to train on")
    return (
        {name: load(file, embed, DRAWING).near(NEAR) for name, file in learned.items() if name not in held},
        {name: load(file, embed).near(MET) for name, file in held.items()},
    )


def generate(sources: Mapping[str, LabelledPairs], seed: int) -> list[Pair]:
    """Twins of their questions that ask for something else, and copies that do not; see variants.py."""
    draw = random.Random(seed)
    pairs = []
    for source in sources.values():
        texts = draw.sample(list(source.texts), min(VARIED, len(source.texts)))
        pairs += [Pair(made.text, made.copy, made.same, math.nan) for made in make_variants(texts, seed, each=2)]
    return pairs


def choose(sources: Mapping[str, Iterable[Pair]], number: int, seed: int) -> list[Pair]:
    """About `number` pairs, half of them the same; fewer where the sources have no more."""
    draw = random.Random(seed)
    halves: list[tuple[list[Pair], list[Pair]]] = []
    for pairs in sources.values():
        same, different = list[Pair](), list[Pair]()
        for pair in pairs:
            (same if pair.same else different).append(pair)
        draw.shuffle(same)
        draw.shuffle(different)
        halves.append((same, different))
    most = even_share(sorted(min(map(len, each)) for each in halves), number // 2)
    chosen = []
    for same, different in halves:
        count = min(most, len(same), len(different))
        chosen += same[:count] + different[:count]
    draw.shuffle(chosen)
    return chosen


def even_share(sizes: Sequence[int], total: int) -> int:
    """The most that each may give so that all together, none more than it has, give about `total`; sizes ascend."""
    for at, size in enumerate(sizes):
        share = total // (len(sizes) - at)
        if size >= share:
            return share
        total -= size
    return max(sizes, default=0)


def fit(
    start: str | None,
    examples: Sequence[Pair],
    out: Path,
    rate: float,
    minutes: float | None,
    threads: int | None,
    seed: int,
    say: Callable[[str], None],
) -> int:
    import torch
    from transformers.utils import logging

    from semcache.tuning.reranker_network import Plan, train

    logging.set_verbosity_error()  # it tells what is new in our network, at length
    logging.disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)
    source = model.locate(start or model.DEFAULT)
    model.check_weights(start or model.DEFAULT, source)
    return train(source, examples, Plan(rate=rate, minutes=minutes or math.inf, seed=seed), out, say)


def score(
    sources: Mapping[str, LabelledPairs], engine: PairEngine, seed: int, progress: Progress
) -> dict[str, tuple[int, Figures, Figures]]:
    """For each source how many pairs were scored, the figures of the cosine, and those of the model as it serves."""
    figures = {}
    for name, pairs in sources.items():
        chosen = pairs.chosen(np.random.default_rng(seed).permutation(len(pairs))[:MEASURED])
        task = progress.add_task(f"measuring {name}", total=len(chosen))
        scores = []
        for pair in chosen:
            scores.append(engine.score(pair.asked, pair.stored))
            progress.advance(task)
        by_cosine, by_engine = (measure(chosen.same, each) for each in (chosen.cosine, np.array(scores)))
        figures[name] = (len(chosen), by_cosine, by_engine)
    return figures


def show(figures: Mapping[str, tuple[int, Figures, Figures]], console: Console) -> None:
    table = Table(title=f"pairs with cosine >= {MET:.2f} of sources that were not trained on")
    for heading in ("source", "pairs", "by", "AUC", *(f"recall at {each:.0%}" for each in PRECISIONS)):
        table.add_column(heading, justify="left" if heading in ("source", "by") else "right")
    for name, (number, cosine, reranker) in figures.items():
        for by, (area, recalls) in (("cosine", cosine), ("reranker", reranker)):
            table.add_row(
                name, f"{number:,}", by, *("-" if math.isnan(each) else f"{each:.3f}" for each in (area, *recalls))
            )
        table.add_section()
    console.print(table)
