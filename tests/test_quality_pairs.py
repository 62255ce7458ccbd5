"""The counting of guards: which pairs a stream gives, and what is a wrong hit or a right one."""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from loadtests.quality_pairs import ALL, Pair, Vectors, added, count, draw_pairs, main, read_pairs, sources

ANGLES = {"a": 0.0, "b": 0.1, "c": 0.3, "d": 1.5}  # radians: what is near is known


def embed(name: str, texts: Sequence[str]) -> Vectors:
    return np.array([[np.cos(ANGLES[text]), np.sin(ANGLES[text])] for text in texts], np.float32)


def rows(**classes: str) -> list[Mapping[str, str]]:
    return [{"text": text, "class": label} for text, label in classes.items()]


def test_a_text_of_a_stream_is_paired_with_the_nearest_before_it() -> None:
    pairs = draw_pairs("stream", rows(a="x", c="y", b="x"), embed)
    assert [(pair.asked, pair.stored, pair.same) for pair in pairs] == [
        ("c", "a", False),
        ("b", "a", True),
        ("b", "c", False),
    ]
    assert pairs[0].cosine == pytest.approx(np.cos(0.3))


def test_a_text_that_fits_no_intent_and_one_with_other_slots_need_answers_of_their_own() -> None:
    stream: list[Mapping[str, object]] = [
        {"text": "a", "class": "oos", "oos": 1},
        {"text": "b", "class": "oos", "oos": 1},
        {"text": "c", "class": "fly", "class_slots": "fly|to=paris"},
        {"text": "d", "class": "fly", "class_slots": "fly|to=rome"},
    ]
    assert not any(pair.same for pair in draw_pairs("stream", stream, embed))


def test_equal_texts_are_no_pair_of_the_semantic_tier() -> None:
    labelled = [{"a": "a", "b": "a", "duplicate": 1}, {"a": "a", "b": "b", "duplicate": 1}]
    (pair,) = read_pairs("pairs", labelled, embed)
    assert pair[:3] == ("a", "b", True)
    assert pair.cosine == pytest.approx(np.cos(0.1))
    assert len(draw_pairs("stream", [*rows(a="x"), *rows(a="x")], embed)) == 0


def test_a_veto_of_a_wrong_pair_is_a_gain_and_of_a_right_one_a_loss() -> None:
    counts = count(
        [
            Pair("take 5 mg", "take 50 mg", same=False, cosine=0.9),
            Pair("take 5 mg", "take 5 g", same=False, cosine=0.9),
            Pair("pay 5", "pay 6", same=True, cosine=0.9),
            Pair("pay", "pay now", same=True, cosine=0.9),
        ]
    )
    assert counts["numbers"][:6] == (2, 1, 1, 2, 1, 1)
    assert counts["units"][:6] == (2, 1, 1, 2, 0, 0)
    assert counts[ALL][:6] == (2, 2, 2, 2, 1, 1)
    assert added([counts[ALL], counts[ALL]])[:6] == (4, 4, 4, 4, 2, 2)


def test_streams_that_give_no_pairs_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    for name in ("pairs_x", "stream_y", "stream_reuters", "traffic_z"):
        (tmp_path / f"{name}.jsonl.gz").touch()
    assert [name for name, _ in sources(tmp_path, ())] == ["pairs_x", "stream_y"]
    assert [name for name, _ in sources(tmp_path, ("stream_*",))] == ["stream_reuters", "stream_y"]


def test_a_folder_without_labelled_text_is_a_clear_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [str(tmp_path)])
    assert result.exit_code == 1
    assert "has no pairs_*.jsonl.gz" in result.output


def test_a_file_that_is_not_what_its_name_says_is_a_clear_error(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "pairs_x.jsonl.gz", "wt") as file:
        file.write(json.dumps({"question": "a"}) + "\n")
    result = CliRunner().invoke(main, [str(tmp_path), "--vectors", str(tmp_path / "vectors")])
    assert result.exit_code == 1
    assert "KeyError" in result.output
    assert "Traceback" not in result.output
