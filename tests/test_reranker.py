"""Two questions read together: scored once, off the loop, in time, and nothing doubtful through the door."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import threading
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semcache.cache import model, reranker, reranker_engines
from semcache.cache.embedder import PROBE_S, TRIP
from semcache.cache.reranker import MAX_QUEUE, CrossEncoder, Rerankers
from semcache.cache.reranker_engines import OnnxPairs, TorchPairs, sigmoid
from semcache.errors import RerankerFault, StartError
from tests.fakes import Clock
from tests.networks import WINDOW, small_cross_encoder

LONG_S = 30.0
LATE_S = 0.02  # a deadline that is meant to pass


class ScriptedPairs:
    """Scores by shared words at once, or holds every call until `gate` opens, or does what `act` does."""

    stamp, limit_chars = "scripted", 1000

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self.calls: list[tuple[str, str]] = []
        self.entered = threading.Semaphore(0)  # released by each call as it begins
        self.gate = threading.Event()
        self.gate.set()
        self.act: Callable[[str, str], Any] = share_of_words

    def open(self) -> None: ...

    def score(self, asked: str, stored: str) -> Any:
        self.calls.append((asked, stored))
        self.entered.release()
        self.gate.wait()
        return self.act(asked, stored)

    async def has_begun(self) -> None:
        await asyncio.to_thread(self.entered.acquire)


def share_of_words(asked: str, stored: str) -> float:
    first, second = set(asked.split()), set(stored.split())
    return len(first & second) / len(first | second)


@asynccontextmanager
async def running(engine: Any, clock: Clock | None = None) -> AsyncIterator[CrossEncoder]:
    under_test = CrossEncoder(engine, clock or Clock())
    await under_test.start()
    try:
        yield under_test
    finally:
        if isinstance(engine, ScriptedPairs):
            engine.gate.set()
        await under_test.close()


async def test_each_pair_gets_its_score_in_the_order_asked() -> None:
    pairs = [("a b", "a b c d"), ("a b", "c d"), ("a b c", "a b c")]
    async with running(ScriptedPairs(threads=3)) as scorer:
        assert await scorer.score(pairs, LONG_S) == [0.5, 0.0, 1.0]
        assert await scorer.score([], LONG_S) == []


async def test_a_pair_is_scored_once_and_then_remembered() -> None:
    async with running(engine := ScriptedPairs()) as scorer:
        first = await scorer.score([("a b", "a")], LONG_S)
        assert await scorer.score([("a b", "a")], LONG_S) == first == [0.5]
        assert engine.calls == [("a b", "a")]
        assert scorer.stats()["remembered"] == 1


async def test_texts_that_join_to_the_same_bytes_are_different_pairs() -> None:
    async with running(engine := ScriptedPairs()) as scorer:
        await scorer.score([("ab", "c"), ("a", "bc"), ("c", "ab")], LONG_S)
        assert len(engine.calls) == 3


async def test_callers_with_the_same_pair_share_one_score() -> None:
    async with running(engine := ScriptedPairs()) as scorer:
        engine.gate.clear()
        callers = [asyncio.create_task(scorer.score([("a", "a")], LONG_S)) for _ in range(5)]
        await engine.has_begun()
        engine.gate.set()
        assert await asyncio.gather(*callers) == [[1.0]] * 5
        assert len(engine.calls) == 1
        assert scorer.stats()["joined"] == 4


async def test_a_score_that_is_late_is_a_fault_and_is_remembered_for_the_next() -> None:
    async with running(engine := ScriptedPairs()) as scorer:
        engine.gate.clear()
        with pytest.raises(RerankerFault, match="within the deadline"):
            await scorer.score([("a", "a")], LATE_S)
        engine.gate.set()
        assert await scorer.score([("a", "a")], LONG_S) == [1.0]
        assert len(engine.calls) == 1


async def test_a_pair_for_which_nobody_waits_any_more_is_skipped() -> None:
    async with running(engine := ScriptedPairs()) as scorer:
        engine.gate.clear()
        blocking = asyncio.create_task(scorer.score([("first", "first")], LONG_S))
        await engine.has_begun()
        with pytest.raises(RerankerFault):
            await scorer.score([("second", "second")], LATE_S)
        engine.gate.set()
        await blocking
        await scorer.score([("third", "third")], LONG_S)
        assert ("second", "second") not in engine.calls
        assert scorer.stats()["skipped"] == 1


def fail(asked: str, stored: str) -> float:
    raise RuntimeError("out of memory")


@pytest.mark.parametrize("act", [fail, lambda *_: math.nan, lambda *_: 1.5, lambda *_: -0.1, lambda *_: None])
async def test_what_is_no_probability_is_a_fault(act: Callable[[str, str], Any]) -> None:
    async with running(engine := ScriptedPairs()) as scorer:
        engine.act = act
        with pytest.raises(RerankerFault, match="the engine"):
            await scorer.score([("a", "b")], LONG_S)
        engine.act = share_of_words
        assert await scorer.score([("a", "b")], LONG_S) == [0.0]  # a fault is not remembered


async def test_a_dead_engine_is_asked_once_a_second() -> None:
    async with running(engine := ScriptedPairs(), clock := Clock()) as scorer:
        engine.act = fail
        for number in range(TRIP):
            with pytest.raises(RerankerFault, match="failed"):
                await scorer.score([("a", str(number))], LONG_S)
        with pytest.raises(RerankerFault, match="does not answer"):
            await scorer.score([("a", "refused")], LONG_S)
        assert scorer.stats()["down"] == 1
        engine.act = share_of_words
        clock.advance(PROBE_S)
        assert await scorer.score([("a", "a")], LONG_S) == [1.0]
        assert scorer.stats()["down"] == 0


async def test_more_pairs_than_may_wait_are_refused_at_once() -> None:
    async with running(engine := ScriptedPairs()) as scorer:
        engine.gate.clear()
        begun = asyncio.create_task(scorer.score([("the", "first")], LONG_S))
        await engine.has_begun()
        waiting = asyncio.create_task(scorer.score([(str(n), "a") for n in range(MAX_QUEUE)], LONG_S))
        await asyncio.wait([waiting], timeout=0)
        with pytest.raises(RerankerFault, match="wait already"):
            await scorer.score([("the", "first"), ("one", "more")], LONG_S)
        engine.gate.set()
        assert len(await begun) + len(await waiting) == 1 + MAX_QUEUE


@pytest.mark.parametrize("text", ["x" * 1001, "half a pair \ud800"])
async def test_what_cannot_be_read_whole_has_no_chance(text: str) -> None:
    async with running(engine := ScriptedPairs()) as scorer:
        assert await scorer.score([(text, text), ("a", "a")], LONG_S) == [0.0, 1.0]
        assert engine.calls == [("a", "a")]
        assert scorer.stats()["unreadable"] == 1


async def test_closing_answers_whoever_still_waits() -> None:
    scorer = CrossEncoder(engine := ScriptedPairs())
    await scorer.start()
    engine.gate.clear()
    waiting = asyncio.create_task(scorer.score([("a", "a")], LONG_S))
    await engine.has_begun()
    closing = asyncio.create_task(scorer.close())
    with pytest.raises(RerankerFault, match="closing"):
        await waiting
    engine.gate.set()
    await closing


async def test_stats_are_summed_over_the_rerankers_of_all_routes() -> None:
    rerankers = Rerankers({"one": CrossEncoder(ScriptedPairs()), "two": CrossEncoder(ScriptedPairs())})
    await rerankers.start()
    assert await rerankers["one"].score([("a", "a")], LONG_S) == await rerankers["two"].score([("a", "a")], LONG_S)
    assert rerankers.stats()["pairs"] == 2
    assert "scripted" in repr(rerankers)
    await rerankers.close()


def test_a_logit_of_any_size_is_a_probability() -> None:
    assert [sigmoid(x) for x in (-1e9, 0.0, 1e9)] == [0.0, 0.5, 1.0]
    assert sigmoid(1.5) == pytest.approx(1 / (1 + math.exp(-1.5)))
    assert math.isnan(sigmoid(math.nan))


# -- real networks, small and of random weights; loading torch takes some seconds, and many on a busy machine


SLOW = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_cross_encoder(tmp_path_factory.mktemp("small-cross-encoder"))


@pytest.fixture(scope="module")
def prepared(small: Path, tmp_path_factory: pytest.TempPathFactory) -> model.PreparedModel:
    """Made in this process, which has torch loaded already."""
    from semcache.cache.reranker_export import export

    def here(name: str, source: Path, weights: str, target: Path, progress: model.Progress) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch and transformers warn about themselves
            export(source, target, name, weights)

    return reranker_engines.prepare(str(small), tmp_path_factory.mktemp("rerankers"), export=here)


def original(small: Path, asked: str, stored: str) -> float:
    from sentence_transformers import CrossEncoder as Original

    return float(Original(str(small), max_length=WINDOW).predict([(asked, stored)])[0])


PAIRS = [("how do i reset my password", "reset password"), ("turn on", "turn off"), ("cancel the order", "where")]


@SLOW
def test_a_prepared_cross_encoder_scores_as_the_original_does(small: Path, prepared: model.PreparedModel) -> None:
    probes = np.load(prepared.folder / model.PROBES)
    files = (prepared.folder / model.MODEL, prepared.folder / model.TOKENIZER)
    engine = OnnxPairs(prepared.manifest, probes, *files)
    engine.open()
    for pair in PAIRS:
        assert engine.score(*pair) == pytest.approx(original(small, *pair), abs=0.1)
    assert len({round(engine.score(*pair), 3) for pair in PAIRS}) == len(PAIRS)
    assert prepared.manifest.precision in ("int8", "int7", "fp32")


@SLOW
def test_a_pair_longer_than_the_window_or_with_unknown_characters_has_no_chance(prepared: model.PreparedModel) -> None:
    probes = np.load(prepared.folder / model.PROBES)
    engine = OnnxPairs(prepared.manifest, probes, prepared.folder / model.MODEL, prepared.folder / model.TOKENIZER)
    engine.open()
    assert engine.score("password " * (WINDOW - 3), "pay") == 0.0
    assert engine.score("password " * (WINDOW - 4), "pay") > 0.0
    assert engine.score("my 密碼", "my password") == 0.0


@SLOW
def test_a_model_whose_scores_changed_is_not_started(prepared: model.PreparedModel) -> None:
    engine = OnnxPairs(
        prepared.manifest,
        1.0 - np.load(prepared.folder / model.PROBES).round(),
        prepared.folder / model.MODEL,
        prepared.folder / model.TOKENIZER,
    )
    with pytest.raises(StartError, match="gives other scores here"):
        engine.open()


@SLOW
def test_a_model_whose_graph_cannot_be_written_is_served_by_torch(small: Path, tmp_path: Path) -> None:
    from semcache.cache.reranker_export import export

    manifest = export(small, tmp_path, str(small), "0" * 64, precision="torch")
    engine = TorchPairs(model.PreparedModel(tmp_path, manifest))
    engine.open()
    for pair in PAIRS:
        assert engine.score(*pair) == pytest.approx(original(small, *pair), abs=1e-4)
    assert engine.score("password " * (WINDOW - 3), "pay") == 0.0


@SLOW
def test_an_embedder_is_refused_as_a_reranker(tmp_path: Path) -> None:
    from semcache.cache.reranker_export import export

    with pytest.raises(StartError, match="is a BertModel, not a cross-encoder"):
        export(model.locate(model.DEFAULT), tmp_path, model.DEFAULT, "0" * 64)


@SLOW
def test_a_reranker_that_was_not_prepared_says_how(small: Path, tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"not prepared in .*; run: semcache model prepare --reranker"):
        reranker_engines.load(str(small), tmp_path)


def test_serving_a_reranker_needs_no_torch() -> None:
    code = "import sys, semcache.cache.reranker; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert reranker.build([]).stats() == {}
