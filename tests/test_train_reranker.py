"""Training a cross-encoder: balanced pairs in, a model that tells them apart out."""

from __future__ import annotations

import json
import math
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.progress import Progress

from semcache.cache import model
from semcache.cache.reranker_engines import OnnxPairs
from semcache.tuning import train_reranker
from semcache.tuning.figures import measure
from semcache.tuning.labelled import LabelledPairs, Pair, Vectors
from semcache.tuning.train_reranker import choose, even_share, generate, read_sources, score
from tests.networks import small_cross_encoder, small_embedder

SLOW = pytest.mark.timeout(240)  # loading torch takes some seconds, and many on a busy machine


def pairs_of(name: str, same: int, different: int) -> LabelledPairs:
    number = same + different
    texts = [f"{name} {each}" for each in range(2 * number)]
    asked, stored = np.arange(number), np.arange(number, 2 * number)
    vectors = np.eye(1, dtype=np.float32).repeat(2 * number, 0)
    return LabelledPairs(name, texts, vectors, asked, stored, np.arange(number) < same, np.ones(number, np.float32))


@pytest.mark.parametrize(
    "sizes, total, most", [([10, 10], 8, 4), ([2, 10], 8, 6), ([1, 2, 3], 100, 3), ([], 5, 0), ([0, 5], 4, 4)]
)
def test_a_small_source_gives_all_and_the_others_make_up_for_it(sizes: list[int], total: int, most: int) -> None:
    assert even_share(sizes, total) == most
    assert sum(min(size, most) for size in sizes) == min(total, sum(sizes))


def test_examples_are_half_the_same_in_each_source() -> None:
    sources = {"large": pairs_of("large", 500, 300), "small": pairs_of("small", 5, 100)}
    examples = choose(sources, 100, seed=1)
    assert len(examples) == 100
    assert sum(each.same for each in examples) == 50
    assert sum(each.asked.startswith("small") for each in examples) == 10
    assert choose(sources, 100, seed=1) == examples != choose(sources, 100, seed=2)


def test_generated_pairs_are_of_both_kinds() -> None:
    source = pairs_of("can I move order 12 to Monday, number", 5, 5)
    made = generate({"shop": source}, seed=1)
    assert {pair.same for pair in made} == {True, False}
    assert all(pair.asked in source.texts and pair.stored != pair.asked for pair in made)


def test_a_source_held_out_is_measured_and_not_learned_from(tmp_path: Path) -> None:
    row = json.dumps({"a": "one", "b": "two", "duplicate": 1})
    for name in ("pairs_one", "pairs_two"):
        (tmp_path / f"{name}.jsonl").write_text(row)

    def embed(name: str, texts: object) -> Vectors:
        return np.ones((2, 1), np.float32)

    learned, held = read_sources(tmp_path, (), ("*_two",), embed)
    assert (list(learned), list(held)) == (["pairs_one"], ["pairs_two"])
    (figures,) = score(held, Constant(), 1, Progress(disable=True)).values()
    assert figures[0] == 1


class Constant:
    stamp, limit_chars, threads = "constant", 100, 1

    def open(self) -> None: ...

    def score(self, asked: str, stored: str) -> float:
        return 0.5


@SLOW
def test_a_trained_network_tells_apart_what_it_was_shown(tmp_path: Path) -> None:
    """The rule: an order that is to be cancelled is another matter."""
    from semcache.tuning.reranker_network import Plan, train

    start = small_cross_encoder(tmp_path)
    draw = random.Random(7)
    examples = []
    for _ in range(1200):
        asked, stored = (" ".join(draw.choices(("where is my", "the parcel", "order", "pay"), k=2)) for _ in range(2))
        same = draw.random() < 0.5
        examples.append(Pair(asked if same else f"cancel {asked}", stored, same, 0.9))
    said: list[str] = []
    seen = train(start, examples, Plan(rate=2e-3, batch=16), tmp_path / "trained", said.append)
    assert seen == len(examples)
    scores = score_all(tmp_path / "trained", examples[:400])
    area, _ = measure(np.array([each.same for each in examples[:400]]), scores)
    assert area > 0.9
    assert "loss" in said[-1]


def score_all(folder: Path, examples: list[Pair]) -> np.ndarray:
    from sentence_transformers import CrossEncoder

    return np.array(CrossEncoder(str(folder)).predict([(each.asked, each.stored) for each in examples]))


@SLOW
def test_what_is_made_of_an_embedder_begins_with_its_cosine_and_is_served_as_it_was_trained(tmp_path: Path) -> None:
    from semcache.cache.pair_network import SCALE, ZERO
    from semcache.cache.reranker_export import export
    from semcache.tuning.reranker_network import Plan, train

    (tmp_path / "start").mkdir()
    start = small_embedder(tmp_path / "start")
    train(start, [Pair("pay", "where", False, 0.9)], Plan(minutes=1e-9), tmp_path / "new", print)
    equal, other = [Pair(text, text, True, 1.0) for text in ("how do i pay", "off")], Pair("on", "parcel", False, 0.1)
    *same, different = score_all(tmp_path / "new", [*equal, other])
    assert same == pytest.approx([1 / (1 + math.exp(-SCALE * (1 - ZERO)))] * 2, abs=0.05)
    assert different < min(same)

    target = tmp_path / "prepared"
    target.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about itself
        manifest = export(tmp_path / "new", target, "new", "0" * 64)
    assert manifest.precision in ("int8", "int7", "fp32")
    assert manifest.window == Plan().window
    engine = OnnxPairs(manifest, np.load(target / model.PROBES), target / model.MODEL, target / model.TOKENIZER)
    engine.open()
    assert [engine.score("off", "off"), engine.score("on", "parcel")] == pytest.approx([same[1], different], abs=0.1)


@SLOW
def test_a_training_that_runs_out_of_minutes_leaves_a_usable_model(tmp_path: Path) -> None:
    from semcache.tuning.reranker_network import Plan, train

    start = small_cross_encoder(tmp_path)
    examples = [Pair("how do i pay", "where is my parcel", False, 0.9)] * 1000
    assert train(start, examples, Plan(minutes=1e-9), tmp_path / "trained", print) == 0
    assert model.check_weights("trained", tmp_path / "trained")
    assert len(score_all(tmp_path / "trained", examples[:2])) == 2


def test_too_few_pairs_are_told_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "pairs_shop.jsonl").write_text('{"a": "one", "b": "two", "duplicate": 1}')
    result = CliRunner().invoke(train_reranker.train_reranker, [str(tmp_path), "--out", str(tmp_path / "new")])
    assert result.exit_code == 1
    assert "500 are needed" in result.output
    assert not (tmp_path / "new").exists()


def test_a_folder_without_labelled_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "stream_shop.jsonl").write_text('{"question": "where is it?"}')
    result = CliRunner().invoke(train_reranker.train_reranker, [str(tmp_path), "--out", str(tmp_path / "new")])
    assert result.exit_code != 0
    assert "stream_shop.jsonl: has neither pairs" in result.output
    (tmp_path / "stream_shop.jsonl").unlink()
    result = CliRunner().invoke(train_reranker.train_reranker, [str(tmp_path), "--out", str(tmp_path / "new")])
    assert "has no pairs_* or stream_* file to train on" in result.output
