"""Labelled pairs: what is read from files of pairs and drawn from streams, and what is said of bad ones."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semcache.errors import ConfigError
from semcache.tuning.labelled import Drawing, Vectors, draw_pairs, load, read_pairs

# On a circle: texts are the nearer the less their angles differ.
ANGLE = {
    "lost my card": 0,
    "my card is lost": 5,
    "card got stolen": 20,
    "where is my money": 60,
    "transfer is late": 65,
}


def embed(_name: str, texts: Sequence[str]) -> Vectors:
    radians = np.radians([ANGLE[text] for text in texts])
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


STREAM = [
    {"text": "lost my card", "class": "lost"},
    {"text": "my card is lost", "class": "lost"},
    {"text": "lost my card", "class": "lost"},
    {"text": "card got stolen", "class": "stolen"},
    {"text": "where is my money", "class": "transfer"},
    {"text": "transfer is late", "class": "transfer"},
]


def as_triples(pairs: Any) -> list[tuple[str, str, bool]]:
    return [(pair.asked, pair.stored, pair.same) for pair in pairs]


def test_a_stream_gives_each_text_with_its_nearest_predecessors() -> None:
    assert as_triples(draw_pairs("s", STREAM, embed, Drawing(neighbours=1))) == [
        ("my card is lost", "lost my card", True),
        ("card got stolen", "my card is lost", False),
        ("where is my money", "card got stolen", False),
        ("transfer is late", "where is my money", True),
    ]


def test_for_training_both_kinds_are_drawn_and_no_pair_twice() -> None:
    drawn = as_triples(draw_pairs("s", STREAM, embed, Drawing(neighbours=2, same=2, different=1, across=3)))
    assert len(drawn) == len(set(drawn)) == 7
    assert ("transfer is late", "card got stolen", False) in drawn


def test_an_unanswerable_text_has_an_answer_of_its_own() -> None:
    rows = [{"text": "lost my card", "class": "x", "oos": 1}, {"text": "my card is lost", "class": "x", "oos": 1}]
    assert as_triples(draw_pairs("s", rows, embed)) == [("my card is lost", "lost my card", False)]
    rows = [{**row, "oos": 0} for row in rows]
    assert as_triples(draw_pairs("s", rows, embed)) == [("my card is lost", "lost my card", True)]


@pytest.mark.parametrize(
    "fields, same", [({}, True), ({"class": "b"}, False), ({"class": "a", "class_slots": "2"}, False)]
)
def test_slots_count_before_classes_and_classes_before_groups(fields: dict[str, str], same: bool) -> None:
    first = {"text": "lost my card", "group": "g", **({"class": "a"} if fields else {})}
    if "class_slots" in fields:
        first["class_slots"] = "1"
    (pair,) = draw_pairs("s", [first, {"text": "my card is lost", "group": "g", **fields}], embed)
    assert pair.same is same


def test_pairs_keep_their_labels_and_get_a_cosine() -> None:
    rows = [
        {"a": "lost my card", "b": "my card is lost", "duplicate": 1},
        {"a": "lost my card", "b": "transfer is late", "duplicate": 0},
        {"a": "lost my card", "b": "lost my card", "duplicate": 1},
    ]
    pairs = read_pairs("p", rows, embed)
    assert [pair.same for pair in pairs] == [True, False]
    assert [pair.cosine for pair in pairs] == pytest.approx([np.cos(np.radians(5)), np.cos(np.radians(65))], abs=1e-6)
    assert as_triples(pairs.near(0.9)) == [("lost my card", "my card is lost", True)]


@pytest.mark.parametrize("name", ["pairs_mine.jsonl", "pairs_mine.jsonl.gz", "pairs_mine.csv"])
def test_a_file_is_read_in_every_form(tmp_path: Path, name: str) -> None:
    row = {"a": "lost my card", "b": "card got stolen", "duplicate": 0}
    text = "a,b,duplicate\nlost my card,card got stolen,0\n" if name.endswith("csv") else json.dumps(row) + "\n\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    pairs = load(path, embed)
    assert pairs.name == "pairs_mine"
    assert as_triples(pairs) == [("lost my card", "card got stolen", False)]


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("", "has no rows"),
        ("{", "line 1: not JSON"),
        ("[1]", "line 1: must be an object"),
        ('{"q": 1}', "neither pairs"),
        ('{"text": "lost my card"}', "neither pairs"),
        ('{"a": "lost my card", "b": 3, "duplicate": 1}', "row 1: b must be text"),
        ('{"a": "lost my card", "b": " ", "duplicate": 1}', "row 1: b must be text"),
        ('{"a": "lost my card", "b": "card got stolen", "duplicate": "maybe"}', "duplicate must be 1 or 0"),
        ('{"text": "lost my card", "class": "x"}\n{"text": "card got stolen"}', "row 2: has no class_slots"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match="mine.*" + complaint):
        load(path, embed)


def test_a_file_that_is_not_there_or_no_gzip_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "none.jsonl", embed)
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}' * 500)[:20])
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "torn.jsonl.gz", embed)
