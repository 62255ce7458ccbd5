"""From a file of labels to a study: its curves, and the setting that they support."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from semcache.cache.engines import cores
from semcache.config import Route
from semcache.tuning import bounded
from semcache.tuning.bounded import Open, Played
from semcache.tuning.cases import Cases, each_alone, sweep_cases
from semcache.tuning.curves import Point, Recommendation, recommend
from semcache.tuning.embedding import Embedding
from semcache.tuning.labelled import Row, are_pairs, name_of, read_pairs, read_rows, read_stream
from semcache.tuning.neighbours import Neighbours, find_neighbours
from semcache.tuning.playing import Stream, number_stream, sweep
from semcache.tuning.strategies import RECOMMENDED, Judge, Strategy, Words, choose_strategies, read_questions

BOUND_ROWS = 20_000  # of a stream that are played under error bounds: at some 2 ms a request


@dataclass(frozen=True)
class Bench:
    """What labels are tried on: the route as it is configured, and its models."""

    route: Route
    embedding: Embedding
    judge: Judge | None
    reranker: Callable[[str, str], float] | None  # the probability for (asked, stored); milliseconds a pair
    open_cache: Open
    progress: Progress
    target: float
    bounds: Sequence[float] = bounded.BOUNDS  # empty: none are played
    bound_rows: int = BOUND_ROWS

    def words(self, texts: Sequence[str], vectors: np.ndarray) -> Words:
        questions = read_questions(texts, vectors, self.route.cache, self.route.match)
        return Words(questions, self.route.match, self.judge, self.reranker)


@dataclass(frozen=True, slots=True)
class Study:
    name: str
    kind: str  # "stream", "pairs", "evidence"
    size: int  # rows, pairs or requests
    curves: Mapping[str, Sequence[Point]]
    strategies: Mapping[str, Strategy]
    recommendation: Recommendation
    bounds: Sequence[Played] = ()
    bound_rows: int = 0
    notes: Sequence[str] = field(default_factory=list)

    def lines(self, strategy: str, setting: float) -> dict[str, Any]:
        return self.strategies[strategy].lines(setting)


def study_file(path: Path, bench: Bench, limit: int | None = None) -> Study:
    """`limit`: rows that are read, from the first on. Raises ConfigError, which names the file and the line."""
    rows = read_rows(path)
    find = study_pairs if are_pairs(path, rows) else study_stream
    return find(name_of(path), rows[:limit], bench)


def study_pairs(name: str, rows: Sequence[Row], bench: Bench) -> Study:
    pairs = read_pairs(name, rows, bench.embedding.embed)
    equal = len(rows) - len(pairs)
    notes = [f"{equal:,} pairs of equal texts are left out: they are hits of the exact tier."] if equal else []
    return study_cases(name, "pairs", each_alone(pairs), bench, notes)


def study_cases(name: str, kind: str, cases: Cases, bench: Bench, notes: Sequence[str]) -> Study:
    words = bench.words(cases.pairs.texts, cases.pairs.vectors)
    strategies = choose_strategies(words)
    curves: dict[str, list[Point]] = {}
    for strategy in strategies:
        if strategy.name == "+ reranker":
            pairs = cases.pairs
            score_ahead(name, strategy, zip(pairs.asked, pairs.stored, pairs.cosine, strict=True), bench)
        task = bench.progress.add_task(f"{name}: {strategy.name}", total=len(cases.pairs))
        curves[strategy.name] = sweep_cases(cases, strategy, partial(bench.progress.advance, task))
        bench.progress.remove_task(task)
    size = len(np.unique(cases.case))
    return _study(name, kind, size, strategies, curves, bench, notes=notes)


def study_stream(name: str, rows: Sequence[Row], bench: Bench) -> Study:
    stream = number_stream(name, read_stream(name, rows))
    vectors = bench.embedding.embed(name, stream.texts)
    progress = bench.progress
    task = progress.add_task(f"{name}: neighbours", total=len(stream.text_of))
    near = find_neighbours(stream.text_of, vectors, advance=partial(progress.advance, task))
    progress.remove_task(task)
    strategies = choose_strategies(bench.words(stream.texts, vectors))
    curves: dict[str, list[Point]] = {}
    looked_at = bench.route.match.neighbours
    for strategy in strategies:
        if strategy.name == "+ reranker":
            score_ahead(name, strategy, _met(stream, near, looked_at), bench)
        task = progress.add_task(f"{name}: {strategy.name}", total=len(strategy.grid))
        curves[strategy.name] = sweep(stream, near, strategy, looked_at, partial(progress.advance, task))
        progress.remove_task(task)
    played = []
    first = number_stream(name, [(stream.texts[text], str(label)) for text, label in _rows(stream, bench.bound_rows)])
    if bench.bounds:
        task = progress.add_task(f"{name}: error bounds", total=len(bench.bounds))
        some = vectors[: len(first.texts)]
        for each in bounded.play_bounds(
            first, some, bench.embedding.stamp, bench.route.match, bench.bounds, bench.open_cache
        ):
            played.append(each)
            progress.advance(task)
        progress.remove_task(task)
    size = len(stream.text_of)
    return _study(name, "stream", size, strategies, curves, bench, played, len(first.text_of))


def _met(stream: Stream, near: Neighbours, looked_at: int) -> Iterator[tuple[int, int, float]]:
    """The pairs that a cache meets which has stored everything: most of those that any will."""
    for text, places, cosines in zip(stream.text_of, near.places, near.cosines, strict=True):
        for place, cosine in zip(places[:looked_at].tolist(), cosines[:looked_at].tolist(), strict=True):
            if place >= 0 and place != text:
                yield text, place, cosine


def score_ahead(name: str, strategy: Strategy, pairs: Iterable[tuple[int, int, float]], bench: Bench) -> None:
    """A cross-encoder takes milliseconds a pair, so all cores do their share before anything is played."""
    floor = strategy.floor(strategy.grid[-1])
    wanted = {(int(asked), int(stored)): float(cosine) for asked, stored, cosine in pairs if cosine >= floor}
    task = bench.progress.add_task(f"{name}: reranking", total=len(wanted))
    with ThreadPoolExecutor(cores()) as threads:
        for _ in threads.map(lambda pair: strategy.number(pair[0], pair[1], wanted[pair]), wanted):
            bench.progress.advance(task)
    bench.progress.remove_task(task)


def _rows(stream: Stream, limit: int) -> list[tuple[int, int]]:
    return list(zip(stream.text_of[:limit], stream.labels[:limit], strict=True))


def _study(
    name: str,
    kind: str,
    size: int,
    strategies: Sequence[Strategy],
    curves: Mapping[str, Sequence[Point]],
    bench: Bench,
    played: Sequence[Played] = (),
    bound_rows: int = 0,
    notes: Sequence[str] = (),
) -> Study:
    tried: dict[str, Sequence[Point]] = {name: curves[name] for name in RECOMMENDED if name in curves}
    return Study(
        name,
        kind,
        size,
        curves,
        {strategy.name: strategy for strategy in strategies},
        recommend(tried, bench.target),
        played,
        bound_rows,
        list(notes),
    )
