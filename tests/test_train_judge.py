"""`semcache tune train`: what is learned, that it is measured on what was not seen, and what is said of too little."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from semcache.cache.judge import COSINES, FEATURES, PairJudge
from semcache.cache.judge_features import NAMES
from semcache.commands.tune import tune
from semcache.errors import ConfigError
from semcache.tuning.judge_examples import GENERATED, Example, make_examples
from semcache.tuning.labelled import LabelledPairs, Vectors, read_pairs
from semcache.tuning.train_judge import Training, calibrate, fit, train, train_without_each
from semcache.tuning.train_screen import find_files

THINGS = "ticket parcel invoice password card loan refund flight hotel kettle lamp bike".split()
ASKING = ["how do i get a {}", "where can i get a {}", "help me to get a {}", "i want to have a {}"]


def embed(_name: str, texts: Sequence[str]) -> Vectors:
    """All texts near each other, each a little off in its own direction."""
    drawn = []
    for text in texts:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
        drawn.append(np.random.default_rng(seed).normal(size=16) * 0.1 + np.eye(16)[0])
    vectors = np.array(drawn, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def source(name: str, things: Sequence[str], seed: int) -> LabelledPairs:
    """The answer is the same where the thing is."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(300):
        one, other = draw.choice(things, 2)
        other = one if draw.random() < 0.5 else other
        asked, stored = (ASKING[place] for place in draw.integers(0, len(ASKING), 2))
        rows.append({"a": asked.format(one), "b": stored.format(other), "duplicate": int(one == other)})
    return read_pairs(name, rows, embed)


SOURCES = [source(f"shop {part}", THINGS[part * 4 : part * 4 + 4], part) for part in range(3)]


def test_what_tells_in_every_source_is_found_and_serves() -> None:
    trained = train(SOURCES, embed, Training(seed=1))
    assert trained.view == "words"
    for figures in trained.unseen.values():  # of things that the judge never saw
        assert figures["words"].area > 0.95 > 0.7 > figures["cosine"].area
    judge = PairJudge(trained.arrays)
    asked, same, other = "how do i get a sofa", "where can i get a sofa", "where can i get a rug"
    vectors = np.tile(embed("", [asked]), (2, 1))
    right, wrong = judge.judge(asked, vectors[0], [same, other], vectors)
    assert right > 0.5 > wrong


def test_the_same_seed_gives_the_same_weights_and_another_source_others() -> None:
    plan = Training(seed=3, views=("signs",), generated=False)
    stamps = [
        {name: PairJudge(arrays).stamp for name, arrays in train_without_each(SOURCES, embed, plan).items()}
        for _ in range(2)
    ]
    assert stamps[0] == stamps[1]
    assert len(set(stamps[0].values())) == len(SOURCES)


def test_a_source_left_out_takes_what_was_made_of_its_texts_along() -> None:
    examples = make_examples(SOURCES, embed, seed=1, generated=True, vectors=False, report=lambda line: None)
    made = {len(each.same) for each in examples.all if each.name == GENERATED}
    left = {len(each.same) for each in examples.without("shop 1") if each.name == GENERATED}
    assert 0 < left.pop() < made.pop()
    assert [each.name for each in examples.without("shop 1")] == ["shop 0", "shop 2", GENERATED]


def test_one_source_is_measured_by_parts_of_it() -> None:
    trained = train([source("shop", THINGS, 4)], embed, Training(seed=1, generated=False))
    (figures,) = trained.unseen.values()
    assert figures["words"].area > 0.85 > figures["cosine"].area


def test_weights_that_see_vectors_judge_other_embedders_too() -> None:
    plan = Training(seed=1, views=("words", "vectors"), embedder="mine", generated=False)
    trained = train(SOURCES, embed, plan)
    assert {"words", "vectors"} <= trained.unseen["shop 0"].keys()
    assert PairJudge(trained.arrays, "mine").sees_vectors == (trained.view == "vectors")
    assert not PairJudge(trained.arrays, "another").sees_vectors


def test_too_few_pairs_are_an_error() -> None:
    few = SOURCES[0].chosen(np.arange(50))
    with pytest.raises(ConfigError, match="at least 200 pairs"):
        train([few], embed, Training())


def example(name: str, rows: Any, same: Any) -> Example:
    count = len(rows)
    return Example(name, rows, same, np.arange(count), rows[:, 0], np.ones(count, bool))


def test_what_speaks_against_is_never_learned_to_speak_for() -> None:
    rows = np.random.default_rng(1).random((400, len(FEATURES))).astype(np.float32)
    same = rows[:, -1] > 0.5  # in this data, guards that veto are a good sign
    network = fit([example("odd", rows, same)], seed=1)
    guards = slice(len(NAMES), None)
    assert (network.linear[guards] <= 0).all()
    assert (network.hidden[guards] <= 0).all()
    assert (network.linear[:COSINES] >= 0).all()
    assert (network.out >= 0).all()


def test_calibrated_odds_are_those_of_what_was_unseen() -> None:
    draw = np.random.default_rng(2)
    odds = draw.normal(0, 3, 20_000).astype(np.float32)
    same = draw.random(20_000) < 1 / (1 + np.exp(-(0.5 * odds - 1)))
    rows = np.zeros((20_000, len(FEATURES)), np.float32)
    assert calibrate([example("s", rows, same)], {"s": odds}) == pytest.approx([0.5, -1], abs=0.1)


def test_folders_give_their_labelled_files_and_files_are_taken_as_named(tmp_path: Path) -> None:
    for name in ("pairs_a.jsonl", "stream_b.jsonl.gz", "stream_c.csv", "notes.txt", "mine.jsonl"):
        (tmp_path / name).touch()
    mine = tmp_path / "mine.jsonl"
    assert [file.name for file in find_files([tmp_path, mine], (), ())] == [
        "pairs_a.jsonl",
        "stream_b.jsonl.gz",
        "stream_c.csv",
        "mine.jsonl",
    ]
    assert [file.name for file in find_files([tmp_path, mine], ("stream_*",), ("*_c",))] == [
        "stream_b.jsonl.gz",
        "mine.jsonl",
    ]
    with pytest.raises(ConfigError, match="no file to learn from"):
        find_files([tmp_path], ("none",), ())


def test_the_command_says_plainly_what_is_wrong(tmp_path: Path) -> None:
    bad = tmp_path / "mine.jsonl"
    bad.write_text(json.dumps({"a": "x", "b": "y", "duplicate": 7}))
    result = CliRunner().invoke(tune, ["train", str(bad)])
    assert (result.exit_code, result.output.strip()) == (2, "semcache: mine: row 1: duplicate must be 1 or 0, not 7")
