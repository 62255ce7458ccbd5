"""What a store knows that can be tuned with: its questions by partition, and its evidence about pairs of them."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from semcache import config
from semcache.cache.store import SqliteStore, open_store
from semcache.cache.store_evidence import KEEP_ROWS
from semcache.errors import ConfigError
from semcache.tuning.cases import Cases
from semcache.tuning.labelled import LabelledPairs, Vectors
from semcache.types import Change, Entry, Observation, Occasion, Posting, Vector


class Question(NamedTuple):
    seq: int
    vector: Vector


@dataclass(frozen=True, slots=True)
class Evidence:
    cases: Cases
    notes: Sequence[str]


def open_existing(settings: config.Config) -> SqliteStore:
    """The store of the configuration; not yet open. Raises ConfigError where there is none to read."""
    scheme, _, path = settings.cache.store.partition(":")
    if scheme == "sqlite" and not Path(path).exists():
        raise ConfigError(f"cache.store: {path} does not exist: name the configuration of the server with -c")
    if scheme != "sqlite":
        raise ConfigError("cache.store: only a store in a file (sqlite:PATH) can be read from outside of its server")
    return open_store(settings.cache)


async def read_postings(store: SqliteStore, embedder: str) -> list[Posting]:
    """All that is stored now and has a vector of this embedder, in order of its numbers."""
    postings: dict[int, Posting] = {}

    def apply(changes: Sequence[Change]) -> None:
        for change in changes:
            if change.added is not None and change.added.vector is not None:
                postings[change.added.seq] = change.added
            for seq in change.removed:
                postings.pop(seq, None)

    await store.follow(0, apply, embedder)
    return list(postings.values())


async def read_evidence(store: SqliteStore, embedder: str, route: int) -> Evidence:
    """What comparing fresh answers with stored ones has shown on a route, where both questions are stored still.

    Feedback is left out: people complain of what was wrong, and do not praise what was right.
    """
    known = await store.observations(KEEP_ROWS)
    known = [each for each in reversed(known) if each.route == route and each.occasion is not Occasion.FEEDBACK]
    by_key = {posting.exact: posting for posting in await read_postings(store, embedder)}
    usable = [each for each in known if each.asked in by_key and each.entry_key in by_key]
    keys = list(dict.fromkeys(key for each in usable for key in (each.asked, each.entry_key)))
    entries = [await store.peek(by_key[key].seq) for key in keys]
    place = {key: number for number, key in enumerate(keys)}
    texts = ["" if entry is None or entry.question is None else entry.question for entry in entries]
    usable = [each for each in usable if texts[place[each.asked]] and texts[place[each.entry_key]]]
    notes = []
    if len(usable) < len(known):
        gone = len(known) - len(usable)
        notes.append(f"{gone:,} of {len(known):,} comparisons are left out: their questions are stored no more.")
    if usable:
        by_occasion = Counter(str(each.occasion) for each in usable)
        notes.append("Compared on " + ", ".join(f"{name} {count:,}" for name, count in by_occasion.most_common()) + ".")
    vectors = np.array([by_key[key].vector for key in keys], np.float32).reshape(len(keys), -1)
    return Evidence(_cases(usable, place, texts, vectors), notes)


def _cases(
    observations: Sequence[Observation], place: dict[bytes, int], texts: Sequence[str], vectors: Vectors
) -> Cases:
    """One case for each request, its candidates nearest first."""
    requests: dict[tuple[bytes, float], int] = {}
    case = [requests.setdefault((each.asked, each.at), len(requests)) for each in observations]
    order = sorted(range(len(observations)), key=lambda number: (case[number], -observations[number].similarity))
    ordered = [observations[number] for number in order]
    pairs = LabelledPairs(
        "evidence",
        texts,
        vectors,
        np.array([place[each.asked] for each in ordered], np.int64),
        np.array([place[each.entry_key] for each in ordered], np.int64),
        np.array([each.same for each in ordered], bool),
        np.array([each.similarity for each in ordered], np.float32),
    )
    weight = np.array([1 / each.share for each in ordered], np.float64)
    return Cases(pairs, np.array([case[number] for number in order], np.int64), weight, True)


class Near(NamedTuple):
    """Two stored questions of one partition that are near each other. The one that came later asks."""

    asked: Entry
    stored: Entry
    cosine: float


async def find_near(store: SqliteStore, embedder: str, least: float, seed: int) -> list[tuple[int, int, float]]:
    """For each stored question the nearest of those stored before it, where that is at least so near, in an order drawn
    by `seed`: the candidates that would decide, if each were asked anew. Numbers of entries: later, earlier, cosine."""
    partitions: dict[bytes, list[Question]] = defaultdict(list)
    for posting in await read_postings(store, embedder):
        if posting.partition is not None and posting.vector is not None:
            partitions[posting.partition].append(Question(posting.seq, posting.vector))
    found = await asyncio.to_thread(_near, [group for group in partitions.values() if len(group) > 1], least)
    return [found[place] for place in np.random.default_rng(seed).permutation(len(found))]


def _near(partitions: Sequence[Sequence[Question]], least: float) -> list[tuple[int, int, float]]:
    from semcache.tuning.neighbours import find_neighbours

    found = []
    for group in partitions:
        near = find_neighbours(range(len(group)), np.stack([each.vector for each in group]), kept=1)
        for later, (earlier, cosine) in enumerate(zip(near.places[:, 0], near.cosines[:, 0], strict=True)):
            if earlier >= 0 and cosine >= least:
                found.append((group[later].seq, group[earlier].seq, float(cosine)))
    return found


async def read_near(store: SqliteStore, numbers: tuple[int, int, float]) -> Near | None:
    """None: one of them has left meanwhile, or they ask the same."""
    later, earlier, cosine = numbers
    asked, stored = await store.peek(later), await store.peek(earlier)
    if (
        asked is None
        or stored is None
        or not asked.question
        or not stored.question
        or asked.question == stored.question
    ):
        return None
    return Near(asked, stored, cosine)
