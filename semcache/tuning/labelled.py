"""Labelled pairs: of two questions, does the answer stored for the one serve the other?

Two kinds of files are read, JSON Lines (also as .gz) or CSV with a header:

1. Pairs: `a`, `b` and `duplicate` (1: the answer serves, 0: it does not).
2. A stream: `text` and what its right answer is: `class_slots`, or else `class`, or else `group`. Equal labels have
   equal answers; a row with `oos` fits no label and has an answer of its own. Its pairs are those that a cache would
   look at: each text with the texts nearest to it among those before it. More can be drawn for training.

Pairs of equal texts are left out: they are hits of the exact tier.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from semcache.errors import ConfigError

Vectors = npt.NDArray[np.float32]  # shape (n, d), of unit length; zeros for a text that the model cannot read
Places = npt.NDArray[np.integer[Any]]
Embed = Callable[[str, Sequence[str]], Vectors]  # the source's name, its texts -> a vector for each
Row = Mapping[str, Any]

NEIGHBOURS = 4  # of a text in a stream: what match.neighbours looks at by default
BLOCK = 1024  # texts compared with all others at once: 80 MB for 20,000 texts
ENDINGS = (".gz", ".jsonl", ".json", ".csv")


class Pair(NamedTuple):
    asked: str
    stored: str
    same: bool  # whether the stored answer is right for the asked question
    cosine: float


class Drawing(NamedTuple):
    """How many pairs a stream gives for each of its texts."""

    neighbours: int = NEIGHBOURS  # its nearest predecessors, whatever they are labelled: what a cache meets
    same: int = 0  # its nearest predecessors with its label
    different: int = 0  # ... with another
    across: int = 0  # predecessors with its label, drawn at random: other words for the same
    seed: int = 7


@dataclass(frozen=True, slots=True)
class LabelledPairs:
    """The pairs of one source, as places in its texts. Iterating gives each as a Pair."""

    name: str
    texts: Sequence[str]
    vectors: Vectors  # (texts, d)
    asked: Places  # (pairs,)
    stored: Places  # (pairs,)
    same: npt.NDArray[np.bool_]  # (pairs,)
    cosine: npt.NDArray[np.float32]  # (pairs,)

    def __len__(self) -> int:
        return len(self.same)

    def __iter__(self) -> Iterator[Pair]:
        for asked, stored, same, cosine in zip(self.asked, self.stored, self.same, self.cosine, strict=True):
            yield Pair(self.texts[asked], self.texts[stored], bool(same), float(cosine))

    def chosen(self, mask: npt.NDArray[Any]) -> LabelledPairs:
        """The pairs that `mask`, booleans or places, names."""
        return LabelledPairs(
            self.name,
            self.texts,
            self.vectors,
            self.asked[mask],
            self.stored[mask],
            self.same[mask],
            self.cosine[mask],
        )

    def near(self, least: float) -> LabelledPairs:
        """The pairs that a cache with this threshold would look at."""
        return self.chosen(self.cosine >= least)


def load(path: Path, embed: Embed, drawing: Drawing = Drawing()) -> LabelledPairs:
    """Raises ConfigError, which names the file, the line and what is wrong with it."""
    rows = read_rows(path)
    name = name_of(path)
    return read_pairs(name, rows, embed) if are_pairs(path, rows) else draw_pairs(name, rows, embed, drawing)


def are_pairs(path: Path, rows: Sequence[Row]) -> bool:
    """Whether the rows of a file are pairs; else they are a stream. Raises ConfigError where they are neither."""
    if {"a", "b", "duplicate"} <= rows[0].keys():
        return True
    if "text" in rows[0] and not {"class", "class_slots", "group"}.isdisjoint(rows[0]):
        return False
    raise ConfigError(
        f"{path}: has neither pairs (a, b, duplicate) nor a stream (text, and class_slots, class or group), "
        f"but: {', '.join(map(str, rows[0]))}"
    )


def name_of(path: Path) -> str:
    """`pairs_paws` for folder/pairs_paws.jsonl.gz."""
    name = path.name
    for ending in ENDINGS:
        name = name.removesuffix(ending)
    return name


def read_rows(path: Path) -> list[Row]:
    """At least one row. Raises ConfigError."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            text = file.read().decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read: {exc}") from exc
    is_csv = path.name.removesuffix(".gz").endswith(".csv")
    rows: list[Row] = list(csv.DictReader(io.StringIO(text)) if is_csv else _read_json_lines(path, text))
    if not rows:
        raise ConfigError(f"{path}: has no rows")
    return rows


def _read_json_lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() would split inside of JSON texts
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as exc:
            raise ConfigError(f"{path}: line {number}: not JSON: {exc}") from exc
        if not isinstance(row, dict):
            raise ConfigError(f"{path}: line {number}: must be an object such as {{...}}, not {type(row).__name__}")
        yield row


def read_pairs(name: str, rows: Sequence[Row], embed: Embed) -> LabelledPairs:
    """The labelled pairs, in the file's order."""
    labelled = []
    for number, row in enumerate(rows, start=1):
        asked, stored = (_text(name, number, row, field) for field in ("a", "b"))
        if asked != stored:
            labelled.append((asked, stored, _flag(name, number, row, "duplicate")))
    texts = sorted({text for asked, stored, _ in labelled for text in (asked, stored)})
    place = {text: number for number, text in enumerate(texts)}
    triples = [(place[asked], place[stored], same) for asked, stored, same in labelled]
    return _collect(name, texts, embed(name, texts), triples)


def read_stream(name: str, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Each text with what its right answer is called, in order. Raises ConfigError."""
    return [(_text(name, number, row, "text"), label_of(name, number, row)) for number, row in enumerate(rows, start=1)]


def draw_pairs(name: str, rows: Sequence[Row], embed: Embed, drawing: Drawing = Drawing()) -> LabelledPairs:
    """Each text of a stream with predecessors, no pair twice. A text that comes again counts where it came first."""
    labels: dict[str, str] = {}
    for text, called in read_stream(name, rows):
        labels.setdefault(text, called)
    texts = list(labels)
    ids: dict[str, int] = {}
    label = np.array([ids.setdefault(each, len(ids)) for each in labels.values()], np.int32)
    vectors = embed(name, texts)
    random = np.random.default_rng(drawing.seed)
    triples: list[tuple[int, int, bool]] = []
    for start in range(0, len(texts), BLOCK):
        block = vectors[start : start + BLOCK] @ vectors[: start + BLOCK].T  # (block, all until its end)
        for at, cosines in enumerate(block):
            asked = start + at
            alike = label[:asked] == label[asked]
            others = _choose(cosines[:asked], alike, drawing, random)
            triples.extend((asked, int(other), bool(alike[other])) for other in others)
    return _collect(name, texts, vectors, triples)


def _choose(cosines: Vectors, alike: npt.NDArray[np.bool_], drawing: Drawing, random: np.random.Generator) -> list[int]:
    """Places among the predecessors, the nearest first."""
    same, different = np.flatnonzero(alike), np.flatnonzero(~alike)
    chosen = dict.fromkeys(_nearest(cosines, np.arange(len(cosines)), drawing.neighbours))
    chosen |= dict.fromkeys(_nearest(cosines, same, drawing.same))
    chosen |= dict.fromkeys(_nearest(cosines, different, drawing.different))
    if drawing.across and len(same):
        chosen |= dict.fromkeys(random.choice(same, min(drawing.across, len(same)), replace=False).tolist())
    return list(chosen)


def _nearest(cosines: Vectors, places: Places, number: int) -> list[int]:
    if number == 0 or len(places) == 0:
        return []
    among = cosines[places]
    if len(among) > number:  # sorting all of a long stream for each of its texts takes minutes
        places = places[np.argpartition(-among, number)[:number]]
    return sorted(places.tolist(), key=lambda place: (-cosines[place], place))


def label_of(name: str, number: int, row: Row) -> str:
    """What the right answer to a row of a stream is called. Raises ConfigError."""
    if row.get("oos") and _flag(name, number, row, "oos"):
        return f"row {number}"
    for field in ("class_slots", "class", "group"):  # with slots, another city or date is another answer
        if row.get(field) is not None:
            return f"{field} {row[field]}"
    raise ConfigError(f"{name}: row {number}: has no class_slots, class or group")


def _collect(name: str, texts: Sequence[str], vectors: Vectors, triples: list[tuple[int, int, bool]]) -> LabelledPairs:
    columns = np.array(triples, np.int32).reshape(-1, 3)
    asked, stored = columns[:, 0], columns[:, 1]
    cosine = np.einsum("ij,ij->i", vectors[asked], vectors[stored]) if len(columns) else np.zeros(0, np.float32)
    return LabelledPairs(name, texts, vectors, asked, stored, columns[:, 2].astype(bool), cosine)


def _text(name: str, number: int, row: Row, field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{name}: row {number}: {field} must be text, not {value!r}")
    return value


_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def _flag(name: str, number: int, row: Row, field: str) -> bool:
    value = row.get(field)
    flag = _FLAGS.get(str(value).strip().lower())
    if flag is None:
        raise ConfigError(f"{name}: row {number}: {field} must be 1 or 0, not {value!r}")
    return flag
