"""A labelled stream replayed through the cache, question by question, and what came of it counted.

The cache is the one that programs use (semcache.inprocess), with its tiers, index, guards and store. Only the vectors
are known beforehand, from the same model, and a second passes for each question.

A semantic hit is false when the answer that came back is not that of the question's class. An exact hit never is: some
streams hold equal texts under two classes, which no cache can tell apart. Those are counted by themselves.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import Progress

from loadtests.quality_pairs import Embedding, Vectors, read_rows
from loadtests.report import wilson
from semcache import config
from semcache.cache.engines import OnnxEngine
from semcache.inprocess import Answered, Cache
from semcache.tuning.bounded import KnownVectors
from semcache.types import Reason, Tier, Vector, Verdict

Settings = Mapping[str, Any]  # the section `match` of a configuration

BEGUN_AT = 1_800_000_000.0  # unix seconds: any will do
SEED = 7  # of what an error bound explores
STEP_S = 1.0  # between two questions: 12,000 of them take a seventh of the day that answers live by default


class Row(NamedTuple):
    text: str
    label: str  # rows of equal labels may share an answer


class Stream(NamedTuple):
    name: str
    rows: Sequence[Row]
    vectors: Mapping[str, Vector]  # of each text that the model can read
    stamp: str
    known_different: frozenset[frozenset[str]] = frozenset()  # pairs of labels that people called different


class FalseHit(NamedTuple):
    asked: str
    stored: str
    similarity: float


class Replayed(NamedTuple):
    """What became of each row, in order, and what it took. Small enough to be handed between processes."""

    hits: Sequence[Tier | None]
    answers: Sequence[str]
    similarities: Sequence[float | None]
    reasons: Sequence[Reason | None]
    verify_ms: Sequence[float | None]  # guards, judge and the rest; None: there was nothing to decide


class Tally(NamedTuple):
    """What a replay comes to, from its `warm_up`-th request on."""

    requests: int
    exact: int
    semantic: int
    false: int  # semantic hits with the answer of another class
    confirmed: int  # of them, those between classes that people called different
    contradicted: int  # exact hits with the answer of another class: equal texts that were labelled twice
    explored: int  # would-be hits that were forwarded to compare: misses here
    reasons: Mapping[str, int]  # of what was no hit
    verify_ms: Mapping[str, float]  # p50, p99 of the lookups that had more to judge than a similarity

    @property
    def hits(self) -> int:
        return self.exact + self.semantic

    @property
    def hit_rate(self) -> float:
        return self.hits / max(self.requests, 1)

    @property
    def semantic_rate(self) -> float:
        return self.semantic / max(self.requests, 1)

    @property
    def false_of_hits(self) -> float:
        return self.false / max(self.hits, 1)

    @property
    def false_of_semantic(self) -> float:
        return self.false / max(self.semantic, 1)

    @property
    def false_of_requests(self) -> float:
        return self.false / max(self.requests, 1)

    def as_json(self) -> dict[str, Any]:
        return {
            **self._asdict(),
            "hit_rate": self.hit_rate,
            "semantic_rate": self.semantic_rate,
            "false_of_hits": _share(self.false, self.hits),
            "false_of_semantic": _share(self.false, self.semantic),
            "false_of_requests": _share(self.false, self.requests),
        }


def _share(events: int, trials: int) -> dict[str, Any]:
    return {"value": events / max(trials, 1), "95%": wilson(events, trials)}


def label(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Each row with the class whose answer is right for it.

    What fits no intent has an answer of its own; with slots, another city or date is another answer.
    """
    return [
        Row(row["text"], f"alone: {row['text']}" if row.get("oos") else str(row.get("class_slots", row["class"])))
        for row in rows
    ]


def load_stream(file: Path, rows: int, vectors: Path) -> Stream:
    """The first rows of a file. All its texts are embedded at once, and the vectors kept for the next time."""
    name = file.name.removesuffix(".jsonl.gz")
    read = read_rows(file)
    texts = list(dict.fromkeys(row["text"] for row in read))
    with Progress(console=Console(stderr=True)) as progress:
        known = Embedding(vectors, progress).embed(name, texts)
    different = file.with_name("stream_qqp_known_different.jsonl.gz")
    called = read_rows(different) if name.startswith("stream_qqp") and different.exists() else []
    return Stream(
        name,
        label(read)[:rows],
        by_text(texts, known),
        OnnxEngine(config.Embedder()).stamp,
        frozenset(frozenset((str(row["class_a"]), str(row["class_b"]))) for row in called),
    )


def by_text(texts: Sequence[str], vectors: Vectors) -> dict[str, Vector]:
    return {text: vector for text, vector in zip(texts, vectors, strict=True) if vector.any()}


def shuffled(stream: Stream, order: int) -> Stream:
    """The rows in another order of arrival: 0 is the file's own, any other number seeds a shuffle of all of them."""
    rows = list(stream.rows)
    if order:
        random.Random(order).shuffle(rows)
    return stream._replace(rows=rows)


def _known_vectors(stream: Stream) -> KnownVectors:
    texts = list(dict.fromkeys((*stream.vectors, *(row.text for row in stream.rows))))
    unreadable = np.zeros_like(next(iter(stream.vectors.values())))
    return KnownVectors(texts, np.stack([stream.vectors.get(text, unreadable) for text in texts]), stream.stamp)


async def replay(stream: Stream, match: Settings) -> Replayed:
    """Ask the rows in order of a cache that is empty at first."""
    # Time passes a thousand times faster than upkeep believes a clock.
    logging.getLogger("semcache.cache.upkeep").setLevel(logging.CRITICAL)
    random.seed(SEED)
    now = BEGUN_AT
    answers: list[Answered] = []
    embedder: Any = _known_vectors(stream)  # stands in for one that has a model
    cache = Cache({"match": dict(match)}, store="memory:", embedder=embedder, clock=lambda: now)
    async with cache:
        for row in stream.rows:
            now += STEP_S
            answers.append(await cache.ask(row.text, fetch=_brings(row.label)))
            await cache.settle()  # as if the second had really passed
    return Replayed(
        [answer.tier if answer.verdict in (Verdict.HIT, Verdict.STALE) else None for answer in answers],
        [answer.text for answer in answers],
        [answer.similarity for answer in answers],
        [answer.reason for answer in answers],
        [answer.phases_ms.get("verify") for answer in answers],
    )


def _brings(answer: str) -> Callable[[str], Any]:
    async def fetch(_: str) -> str:
        return answer

    return fetch


def tally(stream: Stream, replayed: Replayed, warm_up: int = 0) -> Tally:
    count: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for row, tier, answer, reason in list(
        zip(stream.rows, replayed.hits, replayed.answers, replayed.reasons, strict=True)
    )[warm_up:]:
        count["requests"] += 1
        if tier is None:
            reasons[str(reason)] += 1
            continue
        count[str(tier)] += 1
        if answer != row.label and tier is Tier.EXACT:
            count["contradicted"] += 1
        elif answer != row.label:
            count["false"] += 1
            count["confirmed"] += frozenset((row.label, answer)) in stream.known_different
    verify_ms = [
        ms
        for ms, reason in list(zip(replayed.verify_ms, replayed.reasons, strict=True))[warm_up:]
        if ms is not None and reason is not Reason.BELOW_THRESHOLD
    ]
    return Tally(
        requests=count["requests"],
        exact=count[Tier.EXACT],
        semantic=count[Tier.SEMANTIC],
        false=count["false"],
        confirmed=count["confirmed"],
        contradicted=count["contradicted"],
        explored=reasons[Reason.EXPLORING],
        reasons=dict(reasons.most_common()),
        verify_ms=dict(zip(("p50", "p99"), np.percentile(verify_ms, (50, 99)).round(3).tolist(), strict=True))
        if verify_ms
        else {},
    )


def false_hits(stream: Stream, replayed: Replayed, warm_up: int = 0) -> list[FalseHit]:
    """The false semantic hits, nearest first, each with the stored question that was taken for the same.

    A hit tells its answer and its similarity; the question is the earlier one of that answer that is as near as that.
    """
    earlier: dict[str, list[str]] = {}
    found = []
    for number, (row, tier, answer, similarity) in enumerate(
        zip(stream.rows, replayed.hits, replayed.answers, replayed.similarities, strict=True)
    ):
        if tier is Tier.SEMANTIC and answer != row.label and similarity is not None and number >= warm_up:
            stored = _as_near(stream.vectors, row.text, earlier.get(answer, ()), similarity)
            found.append(FalseHit(row.text, stored, similarity))
        earlier.setdefault(row.label, []).append(row.text)
    return sorted(found, key=lambda hit: -hit.similarity)


def _as_near(vectors: Mapping[str, Vector], asked: str, texts: Collection[str], similarity: float) -> str:
    readable = [text for text in texts if text in vectors]
    return min(readable, key=lambda text: abs(float(vectors[asked] @ vectors[text]) - similarity), default="?")
