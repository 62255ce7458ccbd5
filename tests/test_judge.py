"""The pair judge: what it makes of pairs, what weights it refuses, and that places may be exchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semcache.cache.judge import FEATURES, PairJudge, compare_vectors
from semcache.cache.judge_features import NAMES, Reader, Words
from semcache.errors import StartError

SHIPPED = PairJudge.load()
WORDS = Words(
    weights={"how": 0.1, "do": 0.1, "i": 0.05, "buy": 0.6, "purchas": 0.6, "ticket": 0.8, "sell": 0.6},
    unknown=1.0,
    places={"buy": 0, "purchas": 1, "sell": 2},
    vectors=np.array([[1, 0], [0.8, 0.6], [0, 1], [0, 0]], np.float32),
)


def near(cosine: float, count: int = 1) -> tuple[Any, Any]:
    """A vector, and `count` others at this cosine."""
    other = np.zeros(384, np.float32)
    other[0], other[1] = cosine, np.sqrt(1 - cosine**2)
    return np.eye(1, 384, dtype=np.float32)[0], np.tile(other, (count, 1))


def say(asked: str, *stored: str, cosine: float = 0.93, judge: PairJudge = SHIPPED) -> list[float]:
    vector, vectors = near(cosine, len(stored))
    return judge.judge(asked, vector, stored, vectors).tolist()


def features(asked: str, stored: str, cosine: float = 0.9) -> dict[str, float]:
    (row,) = Reader(WORDS).compare(asked, [stored], np.array([cosine], np.float32))
    return dict(zip(NAMES, row.tolist(), strict=True))


def weights(**changed: Any) -> dict[str, Any]:
    """A network that sums the cosine and, where it sees vectors, the first coordinate of their product."""

    def network(size: int, **linear: float) -> dict[str, Any]:
        one = np.zeros(size, np.float32)
        for place, weight in linear.items():
            one[int(place[1:])] = weight
        return {
            "mean": np.zeros(size, np.float32),
            "scale": np.ones(size, np.float32),
            "linear": one,
            "hidden": np.zeros((size, 2), np.float16),
            "shift": np.zeros(2, np.float16),
            "out": np.zeros(2, np.float16),
            "calibration": np.array([1, 0], np.float32),
        }

    about = {"format": 1, "features": FEATURES, "embedder": "mine/384", "dimensions": 384, **changed.pop("about", {})}
    parts = {f"texts_{part}": array for part, array in network(len(FEATURES), p0=1.0).items()}
    parts |= {f"vectors_{part}": array for part, array in network(len(FEATURES) + 768, p0=2.0).items()}
    return {"about": np.frombuffer(json.dumps(about).encode(), np.uint8), **parts, **changed}


def save(path: Path, arrays: dict[str, Any]) -> Path:
    np.savez(path, **arrays)
    return path


def test_the_nearer_of_two_alike_questions_is_the_more_probable() -> None:
    asked, stored = "How do I reset my password?", "How can I reset my password?"
    (low,), (high,) = say(asked, stored, cosine=0.8), say(asked, stored, cosine=0.97)
    assert 0 < low < high < 1


@pytest.mark.parametrize(
    "asked, twin, paraphrase",
    [
        (
            "How do I enable two-factor login?",
            "How do I disable two-factor login?",
            "How can I enable two-factor login?",
        ),
        ("Take 5 mg of it daily?", "Take 50 mg of it daily?", "Should I take 5 mg of it daily?"),
        ("Trains from Paris to Lyon", "Trains from Lyon to Paris", "Any trains from Paris to Lyon?"),
    ],
)
def test_a_twin_is_less_probable_than_a_paraphrase_at_the_same_cosine(asked: str, twin: str, paraphrase: str) -> None:
    changed, same = say(asked, twin, paraphrase, cosine=0.95)
    assert changed < same - 0.1


def test_guards_that_were_asked_already_need_not_be_asked_again() -> None:
    vector, vectors = near(0.95)
    asked, stored = "Can I pay by card?", ["Can I pay with a card?"]
    again = SHIPPED.judge(asked, vector, stored, vectors, guards_passed=True)
    assert again.tolist() == SHIPPED.judge(asked, vector, stored, vectors).tolist()
    twin = ["Can't I pay by card at all?"]
    assert SHIPPED.judge(asked, vector, twin, vectors) < SHIPPED.judge(asked, vector, twin, vectors, guards_passed=True)


@settings(deadline=None)  # a guard's first look at odd words takes as long as the machine is busy
@given(st.text(max_size=60), st.lists(st.text(max_size=60), max_size=8), st.floats(-1, 1))
def test_any_texts_get_a_probability_each_and_the_same_from_either_side(
    asked: str, stored: list[str], cosine: float
) -> None:
    found = say(asked, *stored, cosine=cosine)
    assert len(found) == len(stored)
    assert all(0 < each < 1 for each in found)
    for each, probability in zip(stored, found, strict=True):
        (row,) = Reader(WORDS).compare(asked, [each], np.array([cosine], np.float32))
        (back,) = Reader(WORDS).compare(each, [asked], np.array([cosine], np.float32))
        assert np.isfinite(row).all()
        assert row == pytest.approx(back, abs=1e-5)
        assert 0 < probability < 1


def test_a_pair_is_judged_alone_as_it_is_among_others() -> None:
    texts = ["how do i buy a ticket", "how to purchase a ticket", "x", "", "sell two tickets please"]
    cosines = np.linspace(0.7, 0.9, len(texts)).astype(np.float32)
    together = Reader(WORDS).compare("how do i buy tickets", texts, cosines)
    for text, cosine, row in zip(texts, cosines, together, strict=True):
        assert Reader(WORDS).compare("how do i buy tickets", [text], np.array([cosine]))[0] == pytest.approx(
            row, abs=1e-6
        )


def test_a_similar_word_meets_half_way_and_another_not() -> None:
    same = features("how do i buy tickets", "how do i buy a ticket")
    alike = features("how do i buy a ticket", "how do i purchase a ticket")
    other = features("how do i buy a ticket", "how do i sell a ticket")
    assert same["exact_most"] == pytest.approx(1)
    assert alike["exact_least"] == pytest.approx(other["exact_least"])
    assert alike["soft_least"] > other["soft_least"]
    assert 0 < alike["worst_most"] < other["worst_most"] == pytest.approx(0.6)


def test_what_one_question_lacks_is_counted() -> None:
    found = features("when is it not open at 5", "how is it open")
    assert (found["figures"], found["denials"], found["asking"]) == (1, 1, 1)
    assert found["ends"] == 0
    assert features("is it open", "is it open")["order"] == 1


def test_the_network_that_sees_vectors_is_for_its_own_embedder_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "mine.npz", weights())
    own, other = PairJudge.load(path, "mine/384"), PairJudge.load(path, "theirs/384")
    assert own.sees_vectors
    assert not other.sees_vectors
    assert own.stamp == other.stamp != SHIPPED.stamp
    assert say("a", "b", cosine=0.5, judge=other) == pytest.approx([1 / (1 + np.exp(-0.5))])
    assert say("a", "b", cosine=0.5, judge=own) == pytest.approx([1 / (1 + np.exp(-1.0))])


def test_a_network_sees_how_far_each_coordinate_is_and_their_product() -> None:
    seen = compare_vectors(np.array([0.6, 0.8], np.float32), np.array([[0.8, 0.6]], np.float32))
    assert seen == pytest.approx(np.array([[0.2, 0.2, 0.48, 0.48]]))


@pytest.mark.parametrize(
    "changed, complaint",
    [
        ({"about": {"format": 2}}, "another version"),
        ({"about": {"features": ["cosine"]}}, "another version"),
        ({"texts_linear": np.zeros(3, np.float32)}, "texts_linear has shape"),
        ({"texts_out": np.full(2, np.nan, np.float32)}, "not finite"),
        ({"about": np.frombuffer(b"{", np.uint8)}, "cannot be used"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(
    tmp_path: Path, changed: dict[str, Any], complaint: str
) -> None:
    arrays = weights(**changed) if isinstance(changed.get("about"), dict) else {**weights(), **changed}
    with pytest.raises(StartError, match=rf"match\.judge_weights: .*mine\.npz: .*{complaint}") as caught:
        PairJudge.load(save(tmp_path / "mine.npz", arrays))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("content", [None, b"", b"not an archive", b"PK\x03\x04 torn"])
def test_a_file_that_is_no_weights_is_refused_in_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "mine.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StartError, match="cannot be used"):
        PairJudge.load(path)


def test_weights_that_lack_an_array_are_refused(tmp_path: Path) -> None:
    arrays = weights()
    del arrays["texts_shift"]
    with pytest.raises(StartError, match="texts_shift"):
        PairJudge.load(save(tmp_path / "mine.npz", arrays))
