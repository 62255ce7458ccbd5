"""The replay of labelled streams: what counts as a hit, as a false one, and what is left out."""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from loadtests.quality_replay import Row, Stream, Tally, false_hits, label, replay, shuffled, tally
from loadtests.quality_strategies import BARE, Run, Strategy, Sweep, of_hits, of_requests
from loadtests.quality_streams import files_of, main
from loadtests.quality_tables import BoundedLine
from semcache.types import Vector
from tests.fakes import WordsEmbedder

OPEN = {**BARE, "threshold": 0.7}


def stream(*rows: tuple[str, str], vectors: Mapping[str, Vector] | None = None) -> Stream:
    words = WordsEmbedder()
    return Stream(
        "small",
        [Row(text, label) for text, label in rows],
        vectors if vectors is not None else {text: words.vector(text) for text, _ in rows},
        words.stamp,
    )


PARCEL = "where is the parcel that I sent to my sister"
PARCELS = "where is the parcel that I sent to my brother"
LETTER = "where is the letter that I sent to my sister"


async def test_a_hit_with_the_answer_of_another_class_is_false() -> None:
    small = stream((PARCEL, "track parcel"), (PARCELS, "track parcel"), (LETTER, "track letter"))
    counted = tally(small, await replay(small, OPEN))
    assert (counted.requests, counted.exact, counted.semantic) == (3, 0, 2)
    assert (counted.false, counted.contradicted) == (1, 0)
    assert counted.hit_rate == pytest.approx(2 / 3)
    assert counted.false_of_hits == pytest.approx(1 / 2)
    assert counted.false_of_requests == pytest.approx(1 / 3)


async def test_exact_repeats_are_counted_apart_and_never_false() -> None:
    small = stream((PARCEL, "track"), (PARCEL, "track"), (PARCEL, "lost"), (PARCELS, "track"))
    counted = tally(small, await replay(small, OPEN))
    assert (counted.exact, counted.contradicted) == (2, 1)
    assert (counted.semantic, counted.false) == (1, 0)
    assert counted.semantic_rate == pytest.approx(1 / 4)


async def test_the_warm_up_fills_the_cache_and_is_not_counted() -> None:
    small = stream((PARCEL, "track"), (LETTER, "letter"), (PARCELS, "track"), (PARCEL, "track"))
    replayed = await replay(small, OPEN)
    assert tally(small, replayed).false == 1
    counted = tally(small, replayed, warm_up=2)
    assert (counted.requests, counted.exact, counted.semantic, counted.false) == (2, 1, 1, 0)


async def test_the_settings_decide() -> None:
    small = stream(("ship 5 boxes to the old harbour", "5"), ("ship 6 boxes to the old harbour", "6"))
    assert tally(small, await replay(small, OPEN)).false == 1
    vetoed = tally(small, await replay(small, {**OPEN, "guards": ["numbers"]}))
    assert (vetoed.semantic, vetoed.reasons) == (0, {"no-entry": 1, "guard-number": 1})
    assert set(vetoed.verify_ms) == {"p50", "p99"}
    assert tally(small, await replay(small, {**OPEN, "threshold": 0.999})).reasons["below-threshold"] == 1


async def test_a_false_hit_names_the_question_whose_answer_came_back() -> None:
    small = stream((PARCEL, "track"), ("who pays for the stamps", "track"), (LETTER, "letter"))
    (found,) = false_hits(small, await replay(small, OPEN))
    assert (found.asked, found.stored) == (LETTER, PARCEL)
    words = WordsEmbedder()
    assert found.similarity == pytest.approx(float(words.vector(LETTER) @ words.vector(PARCEL)), abs=1e-5)


async def test_a_false_hit_is_confirmed_where_people_called_the_classes_different() -> None:
    small = stream((PARCEL, "track"), (LETTER, "letter"))
    replayed = await replay(small, OPEN)
    assert tally(small, replayed).confirmed == 0
    known = small._replace(known_different=frozenset({frozenset(("letter", "track"))}))
    assert tally(known, replayed).confirmed == 1


async def test_a_text_that_the_model_cannot_read_leaves_the_exact_tier() -> None:
    small = stream(
        (PARCEL, "track"), ("...", "dots"), ("...", "dots"), vectors={PARCEL: WordsEmbedder().vector(PARCEL)}
    )
    counted = tally(small, await replay(small, OPEN))
    assert (counted.exact, counted.semantic) == (1, 0)
    assert counted.reasons["too-long"] == 1


def test_rows_that_fit_no_intent_share_with_their_own_text_alone_and_slots_are_part_of_the_class() -> None:
    rows: list[Mapping[str, Any]] = [
        {"text": "a", "class": "oos", "oos": 1},
        {"text": "b", "class": "oos", "oos": 1},
        {"text": "a", "class": "oos", "oos": 1},
        {"text": "c", "class": "fly", "class_slots": "fly|to=paris"},
        {"text": "d", "class": 7, "oos": 0},
    ]
    a, b, again, c, d = (row.label for row in label(rows))
    assert a == again != b
    assert (c, d) == ("fly|to=paris", "7")


def test_orders_are_shuffles_of_the_same_rows_and_stay_the_same() -> None:
    small = stream(*((str(n), str(n)) for n in range(50)), vectors={})
    assert shuffled(small, 0) == small
    assert shuffled(small, 1) == shuffled(small, 1) != shuffled(small, 2)
    assert sorted(shuffled(small, 1).rows) == sorted(small.rows)


def counted(hits: int, false: int, requests: int = 1000) -> Tally:
    return Tally(requests, 0, hits, false, 0, 0, 0, {}, {})


def test_a_sweep_finds_the_setting_with_the_most_hits_within_the_limit_and_replays_few() -> None:
    asked: list[float] = []

    def replay(match: Mapping[str, Any]) -> Run:
        asked.append(match["threshold"])
        loosened = round((0.99 - match["threshold"]) * 100)
        tally = counted(hits=100 + 20 * loosened, false=loosened)
        return Run(tally, tally, ())

    sweep = Sweep(Strategy("threshold", {}, "threshold", [round(0.99 - 0.01 * n, 2) for n in range(30)]), replay)
    found = sweep.best(of_hits, 0.02)  # 0.02 of 100 + 20 n is n at 3.3
    assert found is not None
    assert (found.value, found.run.whole.false) == (0.96, 3)
    looser = sweep.best(of_requests, 0.01)
    assert looser is not None and looser.value == 0.89
    assert len(asked) == len(set(asked)) < 15


def test_a_sweep_finds_nothing_where_even_the_strictest_setting_is_wrong() -> None:
    tally = counted(hits=100, false=50)
    assert Sweep(Strategy("s", {}, "x", [0.9, 0.8]), lambda match: Run(tally, tally, ())).best(of_hits, 0.01) is None


def test_a_bound_is_broken_when_chance_does_not_explain_what_was_seen() -> None:
    assert BoundedLine(0, 0.01, counted(hits=100, false=2), None, None).is_kept  # 2 of 100: 0.6 % to 7 %
    assert not BoundedLine(0, 0.01, counted(hits=1000, false=20), None, None).is_kept  # 1.3 % to 3.1 %
    many_exact = counted(hits=1000, false=20)._replace(exact=9000)
    assert not BoundedLine(0, 0.01, many_exact, None, None).is_kept  # the bound is on the semantic hits
    assert BoundedLine(0, 0.01, counted(hits=0, false=0), None, None).is_kept


def test_all_streams_are_replayed_but_those_without_answers_unless_asked_for(tmp_path: Path) -> None:
    for name in ("a", "b", "reuters", "qqp", "qqp_zipf", "qqp_known_different"):
        (tmp_path / f"stream_{name}.jsonl.gz").touch()

    def names(*only: str) -> list[str]:
        return [file.name.removesuffix(".jsonl.gz") for file in files_of(tmp_path, only)]

    assert names() == ["stream_a", "stream_b", "stream_qqp_zipf"]
    assert names("b", "stream_reuters") == ["stream_b", "stream_reuters"]


def test_the_command_replays_a_file_with_the_real_model(tmp_path: Path) -> None:
    asked = [
        ("how do I renew my library card", "renew"),
        ("how can I renew my library card", "renew"),
        ("how can I return a book to the library", "return"),
        ("how do I renew my library card", "renew"),
    ]
    with gzip.open(tmp_path / "stream_library.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": text, "class": label}) + "\n" for text, label in asked)
    report = tmp_path / "report.json"
    arguments = [str(tmp_path), "--orders", "1", "--jobs", "1", "--examples", "1", "--json", str(report)]
    result = CliRunner().invoke(main, [*arguments, "--vectors", str(tmp_path / "vectors")])
    assert result.exit_code == 0, result.output
    assert "library" in result.output
    best = json.loads(report.read_text())["streams"]["library"]["threshold_by_hits"]
    assert (best["requests"], best["exact"], best["semantic"], best["false"]) == (4, 1, 1, 0)


def test_a_folder_without_streams_and_a_file_that_is_none_are_clear_errors(tmp_path: Path) -> None:
    empty = CliRunner().invoke(main, [str(tmp_path)])
    assert (empty.exit_code, "has no stream_*.jsonl.gz" in empty.output) == (1, True)
    with gzip.open(tmp_path / "stream_x.jsonl.gz", "wt") as file:
        file.write(json.dumps({"question": "a"}) + "\n")
    other = CliRunner().invoke(main, [str(tmp_path), "--vectors", str(tmp_path / "vectors")])
    assert (other.exit_code, "KeyError" in other.output) == (1, True)
    assert "Traceback" not in other.output
