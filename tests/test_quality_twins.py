"""The benchmark of twins: its frames are sound, its pairs are drawn alike each time, and the guards know them."""

import random
from collections import Counter

import pytest

from loadtests.quality_twins import make_rewrites, make_twins, read_frames, vetoes

# Things that are told apart by the embedder, and by guards only where a table has both.
BY_VECTOR = {"animal", "plant", "sport", "dish", "metal", "profession", "program", "organ", "thing"}


def test_every_frame_has_what_its_kind_changes_and_words_for_every_slot() -> None:
    frames, words = read_frames()
    assert len(frames) >= 250
    twins = make_twins(frames, words, 40, random.Random(1))
    assert all("{" not in pair.asked + pair.stored and "|" not in pair.asked + pair.stored for pair in twins)
    assert all(pair.asked != pair.stored for pair in twins)
    assert twins == make_twins(frames, words, 40, random.Random(1))


@pytest.mark.parametrize("seed", [1, 2])
def test_a_twin_is_vetoed_whatever_its_cosine(seed: int) -> None:
    frames, words = read_frames()
    missed = [pair for pair in make_twins(frames, words, 12, random.Random(seed)) if not vetoes(pair)]
    assert Counter(pair.kind for pair in missed).keys() <= BY_VECTOR | {"opposite"}
    assert sum(pair.kind == "opposite" for pair in missed) <= 1


def test_hardly_a_harmless_rewrite_is_vetoed() -> None:
    frames, words = read_frames()
    rewrites = make_rewrites(frames, words, 30, random.Random(1))
    assert len(rewrites) >= 200
    assert sum(bool(vetoes(pair)) for pair in rewrites) <= len(rewrites) // 50
