"""`semcache tune`: curves from labels, what may be recommended, and what is said of files that cannot be read."""

from __future__ import annotations

import asyncio
import io
import json
import random
import re
import stat
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from ruamel.yaml import YAML

from semcache import Cache
from semcache.cache.model import PreparedModel
from semcache.cache.store import open_store
from semcache.cli import main
from semcache.config import Match, parse
from semcache.shadow import wilson
from semcache.tuning.bounded import KnownVectors, play_bound, settings_of
from semcache.tuning.cases import Cases, sweep_cases
from semcache.tuning.curves import Count, Point, needed, recommend
from semcache.tuning.label import Labelled, Labels, label
from semcache.tuning.labelled import LabelledPairs
from semcache.tuning.neighbours import find_neighbours
from semcache.tuning.playing import EXACT, FALSE, MISS, RIGHT, number_stream, play
from semcache.tuning.stored import Near, find_near, read_evidence, read_near
from semcache.tuning.strategies import THRESHOLDS, Strategy, Words, read_questions
from semcache.types import Entry, How, Key, Observation, Occasion, Tier, Verdict
from tests.entries import NOW, digest, make_entry
from tests.fakes import WordsEmbedder

TOPICS = ("parcel", "invoice", "password", "delivery address", "voucher", "refund", "account", "newsletter")
FRAMES = (
    "Where can I find my {}?",
    "Where do I find my {}?",
    "How can I change the {} that I have?",
    "How do I change the {} that I have?",
    "Please tell me what happened with the {}",
    "Please tell me what has happened with the {}",
    "Is there a way to cancel the {} within 14 days?",
    "Is there a way to cancel the {} within 30 days?",
)


def stream_rows(number: int, seed: int = 1) -> list[tuple[str, str]]:
    """Questions that come again, in other words, and twins that differ in a number."""
    draw = random.Random(seed)
    rows = []
    for _ in range(number):
        frame, topic = draw.randrange(len(FRAMES)), draw.choice(TOPICS)
        rows.append((FRAMES[frame].format(topic), f"{frame if frame >= 6 else frame // 2} {topic}"))
    return rows


def vectors_of(texts: Sequence[str]) -> Any:
    embedder = WordsEmbedder()
    return np.stack([embedder.vector(text) for text in texts])


def strategy(name: Any, texts: Sequence[str], vectors: Any, match: Match = Match(), **more: Any) -> Strategy:
    route = parse("{}").routes[0]
    return Strategy(name, THRESHOLDS, Words(read_questions(texts, vectors, route.cache, match), match, **more))


# A stream, played


async def ask_the_cache(rows: Sequence[tuple[str, str]], match: dict[str, Any], vectors: Any) -> list[int]:
    """What becomes of each row in the real cache."""
    texts = list(dict.fromkeys(text for text, _ in rows))
    outcomes = []
    embedder: Any = KnownVectors(texts, vectors, "words")
    async with Cache({"match": match}, embedder=embedder) as cache:
        for text, label in rows:

            async def fetch(_: str, label: str = label) -> str:
                return label

            reply = await cache.ask(text, fetch=fetch)
            await cache.settle()
            if reply.verdict is not Verdict.HIT:
                outcomes.append(MISS)
            elif reply.tier is Tier.EXACT:
                outcomes.append(EXACT)
            else:
                outcomes.append(RIGHT if reply.text == label else FALSE)
    return outcomes


@pytest.mark.parametrize("threshold", [0.95, 0.85, 0.7])
@pytest.mark.parametrize("kept", [64, 3])
async def test_a_stream_is_played_as_the_cache_would_serve_it_hit_by_hit(threshold: float, kept: int) -> None:
    rows = [*stream_rows(120), ("What is my balance today?", "mine"), ("What is my balance today", "mine too")]
    stream = number_stream("s", rows)
    vectors = vectors_of(stream.texts)
    near = find_neighbours(stream.text_of, vectors, kept=kept)  # of 3, most are not stored: then all are searched
    guarded, bare = (strategy(name, stream.texts, vectors) for name in ("+ guards", "threshold"))
    assert play(stream, near, guarded, threshold, 4).tolist() == await ask_the_cache(
        rows, {"threshold": threshold}, vectors
    )
    alone = {"threshold": threshold, "guards": [], "personal": "serve", "time_bound": "serve"}
    assert play(stream, near, bare, threshold, 4).tolist() == await ask_the_cache(rows, alone, vectors)


def test_twins_are_false_hits_of_the_threshold_alone_and_none_with_guards() -> None:
    stream = number_stream("s", stream_rows(300))
    vectors = vectors_of(stream.texts)
    near = find_neighbours(stream.text_of, vectors)
    bare = play(stream, near, strategy("threshold", stream.texts, vectors), 0.75, 4)
    guarded = play(stream, near, strategy("+ guards", stream.texts, vectors), 0.75, 4)
    assert (bare == FALSE).sum() > 0
    assert (guarded == FALSE).sum() < (bare == FALSE).sum()
    assert (guarded == RIGHT).sum() > 0


class ByTopic:
    """A judge that believes questions which end alike."""

    def judge(self, asked: str, vector: Any, stored: Sequence[str], vectors: Any) -> Any:
        return np.array([0.97 if each[-12:] == asked[-12:] else 0.2 for each in stored], np.float32)


def test_the_judge_decides_in_the_place_of_the_threshold() -> None:
    texts = (
        "What does a large parcel cost?",
        "What does a really large parcel cost?",
        "What does a large letter cost?",
    )
    stream = number_stream("s", list(zip(texts, "aab", strict=True)))
    vectors = vectors_of(stream.texts)
    near = find_neighbours(stream.text_of, vectors)
    judged = strategy("+ judge", stream.texts, vectors, judge=ByTopic())
    assert play(stream, near, judged, 0.96, 4).tolist() == [MISS, RIGHT, MISS]
    assert play(stream, near, judged, 0.98, 4).tolist() == [MISS, MISS, MISS]
    assert judged.lines(0.96) == {"threshold": 0.7, "judge": 0.96}


def test_the_reranker_is_asked_within_its_band_alone() -> None:
    asked: list[tuple[str, str]] = []

    def rerank(one: str, other: str) -> float:
        asked.append((one, other))
        return 0.95

    texts = ["Where is my parcel?", "Where exactly is my parcel?", "When does the shop open on Sundays?"]
    vectors = vectors_of(texts)
    reranked = strategy("+ reranker", texts, vectors, Match(reranker_band=(0.8, 0.99)), reranker=rerank)
    assert reranked.number(1, 0, 0.995) == 1.0
    assert not asked
    assert reranked.number(1, 0, 0.9) == reranked.number(1, 0, 0.9) == 0.95
    assert len(asked) == 1
    assert reranked.floor(0.9) == 0.8


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 5))
def test_neighbours_are_the_nearest_texts_that_came_before(rows: int, kept: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    asked = draw.integers(0, 12, rows)
    text_of = number_stream("s", [(str(each), "") for each in asked]).text_of
    vectors = draw.standard_normal((max(text_of) + 1, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    near = find_neighbours(text_of, vectors, kept)
    for row, text in enumerate(text_of):
        before = sorted(set(text_of[:row]), key=lambda other: -float(vectors[text] @ vectors[other]))[:kept]
        assert [place for place in near.places[row].tolist() if place >= 0] == before


def test_an_error_bound_is_played_through_the_real_cache() -> None:
    stream = number_stream("s", stream_rows(700))
    played = play_bound(stream, vectors_of(stream.texts), "words", Match(), 0.05, Cache)
    assert len(played.outcomes) == 700
    assert played.whole.of == 200
    assert EXACT in played.outcomes
    assert settings_of(Match(threshold=0.8), 0.05)["match"]["max_error"] == 0.05


# Pairs and cases


def cases_of(*pairs: tuple[int, float, bool], weight: float = 1.0, is_traffic: bool = True) -> Cases:
    """Each: the case, the cosine, whether the answer is right."""
    number = len(pairs)
    texts = [f"question {place} of many" for place in range(2 * number)]
    labelled = LabelledPairs(
        "p",
        texts,
        np.ones((2 * number, 1), np.float32),
        np.arange(number) * 2,
        np.arange(number) * 2 + 1,
        np.array([same for _, _, same in pairs]),
        np.array([cosine for _, cosine, _ in pairs], np.float32),
    )
    return Cases(labelled, np.array([case for case, _, _ in pairs]), np.full(number, weight), is_traffic)


def at(points: Sequence[Point], setting: float) -> Count:
    return next(point.whole for point in points if point.setting == setting)


def test_of_a_case_the_nearest_that_passes_is_served() -> None:
    cases = cases_of((0, 0.95, False), (0, 0.90, True), (1, 0.85, True), (2, 0.72, False))
    points = sweep_cases(cases, strategy("threshold", cases.pairs.texts, cases.pairs.vectors))
    strict, loose = at(points, 0.9), at(points, 0.8)
    assert (strict.of, strict.served, strict.false) == (3, 1, 1)
    assert (loose.served, loose.false) == (2, 1)


def test_of_pairs_it_counts_which_of_the_right_ones_are_served() -> None:
    cases = cases_of((0, 0.95, True), (1, 0.92, False), (2, 0.75, True), is_traffic=False)
    count = at(sweep_cases(cases, strategy("threshold", cases.pairs.texts, cases.pairs.vectors)), 0.9)
    assert (count.of, count.gained, count.served, count.false) == (2, 1, 2, 1)


def test_observations_that_stand_for_many_do_not_tell_as_much_as_many() -> None:
    cases = cases_of(*((place, 0.95, True) for place in range(30)), weight=20.0)
    count = at(sweep_cases(cases, strategy("threshold", cases.pairs.texts, cases.pairs.vectors)), 0.9)
    assert (count.served, count.seen) == (600, 30)
    assert count.interval == wilson(0, 30)


# What is recommended


def point(setting: float, first: tuple[int, int], second: tuple[int, int]) -> Point:
    """Halves as (served, false), each of 10,000 requests."""
    halves = [Count(10_000, served, 0, served, false, served) for served, false in (first, second)]
    whole = Count(*(sum(column) for column in zip(*halves, strict=True)))
    return Point(setting, whole, (halves[0], halves[1]))


def test_the_loosest_setting_that_both_halves_support_is_recommended_with_the_interval_of_the_second() -> None:
    points = [point(0.95, (1000, 0), (1000, 1)), point(0.9, (2000, 4), (2100, 5)), point(0.8, (4000, 200), (4000, 210))]
    found = recommend({"+ guards": points}, 0.01)
    assert (found.strategy, found.setting) == ("+ guards", 0.9)
    assert found.checked is not None
    assert found.checked.interval == wilson(5, 2100)


def test_a_setting_that_only_the_first_half_supports_is_not_recommended() -> None:
    points = [point(0.95, (1000, 0), (1000, 1)), point(0.9, (2000, 4), (2100, 60))]
    assert recommend({"+ guards": points}, 0.01).setting == 0.95
    assert recommend({"+ guards": points[1:]}, 0.01).strategy is None


def test_the_strategy_that_serves_most_is_taken() -> None:
    curves = {"+ guards": [point(0.9, (2000, 4), (2000, 4))], "+ judge": [point(0.97, (3000, 6), (3000, 6))]}
    assert recommend(curves, 0.01).strategy == "+ judge"


def test_thin_evidence_gives_no_setting_but_says_how_much_more_would() -> None:
    found = recommend({"+ guards": [point(0.9, (100, 0), (100, 0))]}, 0.01)
    assert found.strategy is None
    assert found.more is not None
    enough = 101 + found.more // 2
    assert recommend({"+ guards": [point(0.9, (enough, 0), (enough, 0))]}, 0.01).setting == 0.9


def test_where_all_settings_are_too_often_wrong_no_amount_of_evidence_is_asked_for() -> None:
    found = recommend({"+ guards": [point(0.9, (2000, 100), (2000, 90))]}, 0.01)
    assert (found.strategy, found.more, found.best) == (None, None, ("+ guards", 0.9))


@given(st.floats(0.001, 0.3), st.floats(0, 0.9))
def test_the_number_needed_is_where_the_interval_meets_the_target(target: float, share: float) -> None:
    number = needed(share * target, target)
    assert wilson(share * target * number, number)[1] == pytest.approx(target, rel=1e-6)


# What a store knows


async def a_store(path: Path) -> Any:
    store = open_store(parse(f"cache: {{store: 'sqlite:{path}'}}").cache)
    await store.open()
    return store


def embedded(question: str) -> Entry:
    vector, key = WordsEmbedder().vector(question), Key(digest(question), b"p" * 32)
    return replace(make_entry(question), vector=vector, embedder="words", key=key)


def observed(asked: Entry, stored: Entry, **fields: Any) -> Observation:
    plain = Observation(
        group=b"g" * 16,
        route=0,
        asked=asked.key.exact,
        entry_key=stored.key.exact,
        entry_id=stored.id,
        similarity=0.9,
        features=(),
        probability=None,
        same=True,
        how=How.EQUAL,
        occasion=Occasion.SHADOW,
        share=1.0,
        is_proposed=True,
        at=NOW,
    )
    return replace(plain, **fields)


async def test_evidence_becomes_cases_of_the_route_with_the_nearest_candidate_first(tmp_path: Path) -> None:
    store = await a_store(tmp_path / "s.db")
    large, larger, letter = map(embedded, ("What is a large parcel?", "What is a larger parcel?", "What is a letter?"))
    for entry in (large, larger, letter):
        await store.put(entry, store.last_purge_seq)
    gone = embedded("What has left already?")
    await store.observe(
        [
            observed(letter, large, similarity=0.75, same=False),
            observed(letter, larger, similarity=0.80, same=False),
            observed(larger, large, similarity=0.95, share=0.1, occasion=Occasion.EXPLORE, at=NOW + 1),
            observed(larger, gone),
            observed(larger, large, route=1),
            observed(larger, large, occasion=Occasion.FEEDBACK, same=False),
        ]
    )
    found = await read_evidence(store, "words", 0)
    await store.close()
    assert [(pair.asked, pair.stored, pair.same) for pair in found.cases.pairs] == [
        ("What is a letter?", "What is a larger parcel?", False),
        ("What is a letter?", "What is a large parcel?", False),
        ("What is a larger parcel?", "What is a large parcel?", True),
    ]
    assert found.cases.case.tolist() == [0, 0, 1]
    assert found.cases.weight.tolist() == [1, 1, 10]
    assert found.notes[0].startswith("1 of 4 comparisons are left out")


async def test_near_questions_of_a_store_are_found_within_their_partition(tmp_path: Path) -> None:
    store = await a_store(tmp_path / "s.db")
    texts = ("What does a large parcel cost?", "What does a really large parcel cost?", "Who runs the shop?")
    for entry in map(embedded, texts):
        await store.put(entry, store.last_purge_seq)
    elsewhere = replace(embedded("What does the large parcel cost?"), key=Key(digest("other"), b"q" * 32))
    await store.put(elsewhere, store.last_purge_seq)
    (numbers,) = await find_near(store, "words", 0.7, seed=1)
    near = await read_near(store, numbers)
    await store.close()
    assert near is not None
    assert (near.asked.question, near.stored.question) == (texts[1], texts[0])


# Labelling


async def said_to(keys: str, file: Path) -> tuple[Labelled, str]:
    """Label three pairs with these keys; return the count and what was on the screen."""
    large, larger, letter = map(embedded, ("What is a large parcel?", "What is a larger parcel?", "What is a letter?"))

    async def pairs() -> AsyncIterator[Near]:
        for one, other in ((larger, large), (letter, larger), (letter, large)):
            yield Near(one, other, 0.9)

    console = Console(file=io.StringIO(), width=100)
    typed = iter(keys)
    count = await label(pairs(), Labels(file), console, lambda: next(typed), lambda entry: f"said of {entry.question}")
    screen: Any = console.file
    return count, screen.getvalue()


async def test_labels_are_appended_one_by_one_for_the_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "labels.jsonl"
    count, screen = await said_to("y?anq", file)
    assert count == (1, 1)
    assert "said of What is a letter?" in screen
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["a"], row["b"], row["duplicate"]) for row in rows] == [
        ("What is a larger parcel?", "What is a large parcel?", 1),
        ("What is a letter?", "What is a larger parcel?", 0),
    ]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again, _ = await said_to("y", file)  # the third: the others are labelled already
    assert again == (1, 0)
    assert len(file.read_text().splitlines()) == 3


# The commands


def tune(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, ["tune", *map(str, arguments)])


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_stream_gets_a_table_figures_and_a_page_that_needs_no_network(
    tmp_path: Path, prepared_model: PreparedModel
) -> None:
    file = write_rows(tmp_path / "shop.jsonl", [{"text": text, "group": label} for text, label in stream_rows(600)])
    done = tune("run", file, "--html", tmp_path / "t.html", "--json", tmp_path / "t.json", "--vectors", tmp_path / "v")
    assert done.exit_code == 0, done.output
    assert "shop: 600 rows" in done.output
    assert "there is not enough evidence" in done.output
    (study,) = json.loads((tmp_path / "t.json").read_text())["studies"]
    assert {"threshold", "+ guards"} <= study["curves"].keys()
    assert [each["max_error"] for each in study["bounds"]] == [0.005, 0.01, 0.02, 0.05]
    assert study["recommendation"]["yaml"] is None
    assert study["recommendation"]["more"] > 0
    page = (tmp_path / "t.html").read_text()
    assert re.findall(r"""(?:src|href|url|@import|<script|<link)[\s=("']""", page) == []
    assert "http" not in page
    assert page.count("<svg") == 2 + len(study["curves"])
    assert len(list((tmp_path / "v").iterdir())) == 1
    assert tune("run", file, "--vectors", tmp_path / "v", "--bound-rows", "0").exit_code == 0


def test_enough_pairs_get_a_setting_to_paste(tmp_path: Path, prepared_model: PreparedModel) -> None:
    rows = []
    for number in range(500):  # one wording, so all are near; a name that is no name tells them apart
        thing = f"a {TOPICS[number % len(TOPICS)]} of kind {chr(97 + number % 26)}{chr(97 + number // 26)}"
        rows.append({"a": f"How do I order {thing}?", "b": f"How can I order {thing}?", "duplicate": 1})
    rows.append({"a": "equal", "b": "equal", "duplicate": 1})
    done = tune("run", write_rows(tmp_path / "p.jsonl", rows), "--target", "0.05", "--json", tmp_path / "t.json")
    assert done.exit_code == 0, done.output
    (study,) = json.loads((tmp_path / "t.json").read_text())["studies"]
    assert study["notes"] == ["1 pairs of equal texts are left out: they are hits of the exact tier."]
    found = study["recommendation"]
    lines = YAML(typ="safe").load(found["yaml"])
    assert parse(found["yaml"]).match.model_dump().items() >= lines["match"].items()
    low, high = found["checked"]["false_of_by_meaning"]["95%"]
    assert low == 0 < high <= 0.05
    assert "On the half that had no say in this" in done.output


def test_a_file_that_cannot_be_read_is_named_with_the_line(tmp_path: Path, prepared_model: PreparedModel) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"a": "x", "b": "y", "duplicate": 1}\n{"a": "x",\n')
    odd = write_rows(
        tmp_path / "odd.jsonl", [{"a": "x", "b": "y", "duplicate": 1}, {"a": "x", "b": "z", "duplicate": 7}]
    )
    other = write_rows(tmp_path / "other.jsonl", [{"question": "x"}])
    for file, words in (
        (broken, "line 2: not JSON"),
        (odd, "row 2: duplicate must be 1 or 0, not 7"),
        (other, "has neither pairs"),
        (tmp_path / "none.jsonl", "cannot be read"),
    ):
        done = tune("run", file)
        assert (done.exit_code, words in done.output) == (2, True), done.output


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path, prepared_model: PreparedModel) -> None:
    settings = tmp_path / "c.yaml"
    settings.write_text(f"cache: {{store: 'sqlite:{tmp_path}/none.db'}}\n")
    for command in (("evidence",), ("label", tmp_path / "labels.jsonl")):
        done = tune(*command, "-c", settings)
        assert (done.exit_code, "does not exist" in done.output) == (2, True), done.output
    assert not (tmp_path / "none.db").exists()
    done = tune("run", settings, "--route", "4")
    assert (done.exit_code, "there are 1 routes" in done.output) == (2, True)


@pytest.mark.parametrize("command", ["run", "evidence", "label"])
def test_each_command_has_an_example(command: str) -> None:
    done = tune(command, "--help")
    assert done.exit_code == 0
    assert f"Examples:\n    semcache tune {command}" in done.output


SAID = (
    "You find it on the first page, below your name.",
    "Open the settings, choose what you want to have changed, and confirm it with your password.",
    "It is with our partners now, who will write to you as soon as there is any news from the depot.",
)


async def shadowed(path: Path) -> Path:
    """A configuration whose store has seen a stream in shadow mode."""
    file = path / "c.yaml"
    file.write_text(f"cache: {{store: 'sqlite:{path}/s.db'}}\nmatch: {{mode: shadow, personal: serve}}\n")
    async with Cache(file) as cache:
        for text, named in stream_rows(80):

            async def fetch(_: str, named: str = named) -> str:
                frame, _, topic = named.partition(" ")
                return f"About the {topic}. {SAID[int(frame) % 3]}"

            await cache.ask(text, fetch=fetch)
            await cache.settle()
    return file


async def test_evidence_of_shadow_mode_gets_a_report(tmp_path: Path, prepared_model: PreparedModel) -> None:
    settings = await shadowed(tmp_path)
    done = await asyncio.to_thread(tune, "evidence", "-c", settings, "--json", tmp_path / "t.json")
    assert done.exit_code == 0, done.output
    assert "Compared on shadow" in done.output
    (study,) = json.loads((tmp_path / "t.json").read_text())["studies"]
    assert study["kind"] == "evidence"
    loosest = study["curves"]["+ guards"]["points"][-1]
    assert 0 < loosest["by_meaning"] <= loosest["of"] == study["requests"] <= 80
    assert study["recommendation"]["strategy"] is None
    assert study["recommendation"]["more"] > 0
    done = await asyncio.to_thread(tune, "evidence", "-c", settings, "--route", "1")
    assert done.exit_code == 2


async def test_what_was_labelled_at_the_terminal_can_be_tuned_with(
    tmp_path: Path, prepared_model: PreparedModel
) -> None:
    settings, file = await shadowed(tmp_path), tmp_path / "labels.jsonl"

    def typed(keys: str) -> Any:
        command = ["tune", "label", str(file), "-c", str(settings), "--near", "0.7"]
        return CliRunner().invoke(main, command, input="\n".join(keys) + "\n")

    done = await asyncio.to_thread(typed, "aynyq")
    assert done.exit_code == 0, done.output
    assert "About the" in done.output
    assert "2 with the same answer, 1 with another" in done.output
    done = await asyncio.to_thread(tune, "run", file)
    assert done.exit_code == 0, done.output
    assert "labels: 3 pairs" in done.output
