"""Questions into vectors: once each, off the loop, within the deadline, and nothing doubtful through the door."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from semcache import config
from semcache.cache import embedder as embedders
from semcache.cache.embedder import PROBE_S, TRIP, Embedder, Pulse
from semcache.cache.engines import OnnxEngine, RemoteEngine
from semcache.cache.model import PreparedModel
from semcache.errors import ConfigError, EmbedderFault, StartError, TooLong
from semcache.types import Vector
from tests.fakes import Clock

LATE_S = 0.02  # a deadline that is meant to pass
D = 8


def vector_of(text: str) -> Vector:
    """One direction for each text."""
    random = np.random.default_rng(list(text.encode()))
    vector = random.standard_normal(D).astype(np.float32)
    return vector / np.linalg.norm(vector)


class ScriptedEngine:
    """Embeds at once, or holds every call until `gate` opens, or does what `act` does."""

    stamp, dimensions, limit_chars, max_wait_s = "scripted", D, 1000, 0.0

    def __init__(self, threads: int = 1, batch: int = 1) -> None:
        self.threads, self.batch = threads, batch
        self.calls: list[list[str]] = []
        self.entered = threading.Semaphore(0)  # released by each call as it begins
        self.gate = threading.Event()
        self.gate.set()
        self.act: Callable[[Sequence[str]], Any] = lambda texts: [vector_of(text) for text in texts]

    @property
    def texts(self) -> list[str]:
        return [text for call in self.calls for text in call]

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    def embed(self, texts: Sequence[str]) -> Any:
        self.calls.append(list(texts))
        self.entered.release()
        self.gate.wait()
        return self.act(texts)

    async def has_begun(self) -> None:
        await asyncio.to_thread(self.entered.acquire)


@asynccontextmanager
async def running(engine: Any, clock: Clock | None = None, **settings: Any) -> AsyncIterator[Embedder]:
    under_test = Embedder(config.Embedder(**{"deadline": 30, **settings}), engine, clock or Clock())
    await under_test.start()
    try:
        yield under_test
    finally:
        if isinstance(engine, ScriptedEngine):
            engine.gate.set()
        await under_test.close()


def same(vector: Vector) -> Vector:
    return vector


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


# -- once each


async def test_a_question_asked_again_does_not_reach_the_model() -> None:
    engine = ScriptedEngine()
    async with running(engine) as embedder:
        first = await embedder.embed("what is a monad", same)
        assert np.array_equal(await embedder.embed("what is a monad", same), first)
        assert embedder.stats()["remembered"] == 1
    assert engine.texts == ["what is a monad"]


async def test_nothing_is_remembered_when_the_operator_says_so() -> None:
    engine = ScriptedEngine()
    async with running(engine, remember=0) as embedder:
        await embedder.embed("again", same)
        await embedder.embed("again", same)
    assert engine.texts == ["again", "again"]


async def test_the_least_recently_asked_is_forgotten_first() -> None:
    engine = ScriptedEngine()
    async with running(engine, remember=2) as embedder:
        for text in ("a", "b", "a", "c", "a", "b"):
            await embedder.embed(text, same)
    assert engine.texts == ["a", "b", "c", "b"]


async def test_equal_questions_in_flight_are_embedded_once_and_each_searched_for() -> None:
    engine = ScriptedEngine()
    engine.gate.clear()
    async with running(engine) as embedder:
        asks = [asyncio.create_task(embedder.embed("hello", lambda v, n=n: (n, v[0]))) for n in range(50)]
        await engine.has_begun()
        engine.gate.set()
        assert await asyncio.gather(*asks) == [(n, vector_of("hello")[0]) for n in range(50)]
        assert embedder.stats()["joined"] == 49
    assert engine.texts == ["hello"]


# -- off the event loop


async def test_embedding_and_search_run_on_the_same_thread_which_is_not_the_loops() -> None:
    engine, threads = ScriptedEngine(), []
    engine.act = lambda texts: threads.append(threading.get_ident()) or [vector_of(t) for t in texts]
    async with running(engine) as embedder:
        searched_on = await embedder.embed("new", lambda _: threading.get_ident())
        again_on = await embedder.embed("new", lambda _: threading.get_ident())
    assert threads == [searched_on]
    assert threading.get_ident() not in (searched_on, again_on)


async def test_as_many_texts_run_at_once_as_there_are_sessions() -> None:
    engine = ScriptedEngine(threads=2)
    together = threading.Barrier(2)
    engine.act = lambda texts: together.wait() >= 0 and [vector_of(t) for t in texts]
    async with running(engine) as embedder:
        await asyncio.gather(embedder.embed("a", same), embedder.embed("b", same))


async def test_a_batch_is_collected_while_the_engine_is_busy() -> None:
    engine = ScriptedEngine(batch=4)
    engine.gate.clear()
    async with running(engine) as embedder:
        asks = [asyncio.create_task(embedder.embed("t0", same))]
        await engine.has_begun()
        asks += [asyncio.create_task(embedder.embed(f"t{n}", same)) for n in range(1, 8)]
        await until(lambda: embedder.stats()["queue_depth"] == 7)
        engine.gate.set()
        vectors = await asyncio.gather(*asks)
    assert [len(call) for call in engine.calls] == [1, 4, 3]
    assert all(np.array_equal(vector, vector_of(f"t{n}")) for n, vector in enumerate(vectors))


async def test_what_the_search_raises_is_the_callers_and_no_fault_of_the_engine() -> None:
    def search(_: Vector) -> None:
        raise LookupError("no such partition")

    async with running(ScriptedEngine()) as embedder:
        for _ in range(2):  # the second from memory
            with pytest.raises(LookupError, match="no such partition"):
                await embedder.embed("x", search)
        assert embedder.stats()["faults"] == 0


# -- within the deadline, within the queue


async def test_a_late_vector_is_a_fault_and_remembered_for_the_next() -> None:
    engine = ScriptedEngine()
    engine.gate.clear()
    async with running(engine) as embedder:
        with pytest.raises(EmbedderFault, match="deadline"):
            await embedder.embed("slow", same, deadline_s=LATE_S)
        engine.gate.set()
        assert np.array_equal(await embedder.embed("slow", same), vector_of("slow"))
        assert embedder.stats()["late"] == 1
    assert engine.texts == ["slow"]


@pytest.mark.parametrize("how", ["deadline", "cancel"])
async def test_work_that_nobody_waits_for_any_more_is_skipped(how: str) -> None:
    engine = ScriptedEngine()
    engine.gate.clear()
    async with running(engine) as embedder:
        running_ask = asyncio.create_task(embedder.embed("running", same))
        await engine.has_begun()
        given_up = asyncio.create_task(embedder.embed("given up", same, LATE_S if how == "deadline" else None))
        await until(lambda: embedder.stats()["queue_depth"] == 1)
        if how == "cancel":
            given_up.cancel()
        with pytest.raises((EmbedderFault, asyncio.CancelledError)):
            await given_up
        engine.gate.set()
        await running_ask
        await embedder.embed("next", same)
        assert embedder.stats()["skipped"] == 1
    assert engine.texts == ["running", "next"]


async def test_a_caller_who_leaves_takes_nothing_from_those_who_joined() -> None:
    engine = ScriptedEngine()
    engine.gate.clear()
    async with running(engine) as embedder:
        blocker = asyncio.create_task(embedder.embed("blocker", same))
        await engine.has_begun()
        first, second = (asyncio.create_task(embedder.embed("shared", same)) for _ in range(2))
        await until(lambda: embedder.stats()["joined"] == 1)
        first.cancel()
        engine.gate.set()
        assert np.array_equal(await second, vector_of("shared"))
        await blocker


async def test_whoever_joins_a_question_just_being_skipped_gets_it_embedded_after_all() -> None:
    engine = ScriptedEngine()
    engine.gate.clear()
    async with running(engine) as embedder:
        blocker = asyncio.create_task(embedder.embed("blocker", same))
        await engine.has_begun()
        given_up = asyncio.create_task(embedder.embed("x", same))
        behind = asyncio.create_task(embedder.embed("y", same))
        await until(lambda: embedder.stats()["queue_depth"] == 2)
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        engine.gate.set()
        engine.entered.acquire()  # holds the loop until the thread is at "y": it skipped "x", and we do not know yet
        assert np.array_equal(await embedder.embed("x", same), vector_of("x"))
        assert embedder.stats()["joined"] == 1
        await asyncio.gather(blocker, behind)
    assert engine.texts == ["blocker", "y", "x"]


async def test_a_full_queue_refuses_at_once() -> None:
    engine = ScriptedEngine()
    engine.gate.clear()
    async with running(engine, max_queue=3) as embedder:
        asks = [asyncio.create_task(embedder.embed("running", same))]
        await engine.has_begun()
        asks += [asyncio.create_task(embedder.embed(f"waiting {n}", same)) for n in range(3)]
        await until(lambda: embedder.stats()["queue_depth"] == 3)
        with pytest.raises(EmbedderFault, match="3 questions wait already"):
            await embedder.embed("one too many", same)
        engine.gate.set()
        await asyncio.gather(*asks)


async def test_a_cancel_storm_mixes_up_no_answers() -> None:
    engine = ScriptedEngine(threads=2)
    async with running(engine, remember=20) as embedder:
        asks = [asyncio.create_task(embedder.embed(f"q{n % 60}", same)) for n in range(600)]
        for number, ask in enumerate(asks):
            if number % 3 == 0:
                ask.cancel()
            if number % 50 == 0:
                await asyncio.sleep(0)
        replies = await asyncio.gather(*asks, return_exceptions=True)
        for number, reply in enumerate(replies):
            if not isinstance(reply, asyncio.CancelledError):
                assert np.array_equal(reply, vector_of(f"q{number % 60}"))
        assert sum(isinstance(reply, np.ndarray) for reply in replies) >= 400


async def test_closing_answers_those_who_wait() -> None:
    engine = ScriptedEngine()
    engine.gate.clear()
    async with running(engine) as embedder:
        ask = asyncio.create_task(embedder.embed("x", same))
        await engine.has_begun()
        closing = asyncio.create_task(embedder.close())
        with pytest.raises(EmbedderFault, match="closing"):
            await ask
        engine.gate.set()
        await closing


# -- an engine that fails


def broken(value: float) -> Vector:
    vector = vector_of("x")
    vector[3] = value
    return vector


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param([broken(np.nan)], id="nan"),
        pytest.param([broken(np.inf)], id="infinity"),
        pytest.param([np.zeros(D, np.float32)], id="zero"),
        pytest.param([vector_of("x") * np.float32(1.01)], id="too long a vector"),
        pytest.param([vector_of("x")[:-1] / np.linalg.norm(vector_of("x")[:-1])], id="a dimension short"),
        pytest.param([vector_of("x").astype(np.float64)], id="float64"),
        pytest.param([vector_of("x").reshape(1, D)], id="a matrix"),
        pytest.param([[1.0] + [0.0] * (D - 1)], id="a list"),
        pytest.param([None], id="none"),
        pytest.param([], id="too few"),
        pytest.param([vector_of("x")] * 2, id="too many"),
        pytest.param(RuntimeError("out of memory"), id="raises"),
        pytest.param(MemoryError(), id="memory"),
    ],
)
async def test_what_is_no_unit_vector_of_the_right_size_never_gets_in(reply: Any) -> None:
    def act(_: Sequence[str]) -> Any:
        if isinstance(reply, Exception):
            raise reply
        return reply

    engine, seen = ScriptedEngine(), []
    engine.act = act
    async with running(engine) as embedder:
        with pytest.raises(EmbedderFault):
            await embedder.embed("x", seen.append)
        assert embedder.stats()["faults"] == 1
        engine.act = lambda texts: [vector_of(text) for text in texts]
        assert np.array_equal(await embedder.embed("x", same), vector_of("x"))
    assert seen == []


async def test_a_dead_engine_costs_a_few_deadlines_and_then_nothing_until_it_lives_again() -> None:
    engine, clock = ScriptedEngine(), Clock()
    engine.gate.clear()
    async with running(engine, clock) as embedder:
        for number in range(TRIP):
            with pytest.raises(EmbedderFault, match="deadline"):
                await embedder.embed(f"q{number}", same, LATE_S)
        assert embedder.stats()["down"]
        with pytest.raises(EmbedderFault, match="does not answer"):
            await embedder.embed("refused at once", same)
        clock.advance(PROBE_S)
        probe = asyncio.create_task(embedder.embed("probe", same))
        await until(lambda: embedder.stats()["queue_depth"] == TRIP)
        with pytest.raises(EmbedderFault, match="does not answer"):
            await embedder.embed("one probe at a time", same)
        engine.gate.set()
        assert np.array_equal(await probe, vector_of("probe"))
        await embedder.embed("back to normal", same)
        assert not embedder.stats()["down"]


async def test_what_is_remembered_is_served_while_the_engine_hangs() -> None:
    engine = ScriptedEngine()
    async with running(engine) as embedder:
        await embedder.embed("known", same)
        engine.gate.clear()
        hanging = asyncio.create_task(embedder.embed("hangs", same))
        await until(lambda: len(engine.calls) == 2)
        assert np.array_equal(await embedder.embed("known", same), vector_of("known"))
        engine.gate.set()
        await hanging


async def test_an_engine_that_is_only_busy_is_not_taken_for_dead() -> None:
    engine = ScriptedEngine()
    async with running(engine) as embedder:
        engine.gate.clear()
        busy = asyncio.create_task(embedder.embed("first in the queue", same))
        await engine.has_begun()
        late = [asyncio.create_task(embedder.embed(f"q{n}", same, LATE_S)) for n in range(3 * TRIP)]
        await until(lambda: embedder.stats()["queue_depth"] == 3 * TRIP)
        # The engine delivers one while the others wait, then is busy with the next beyond their deadline.
        engine.act = lambda texts: engine.gate.clear() or [vector_of(text) for text in texts]
        engine.gate.set()
        await busy
        replies = await asyncio.gather(*late, return_exceptions=True)
        assert sum(isinstance(reply, EmbedderFault) for reply in replies) > TRIP
        assert not embedder.stats()["down"]


def test_a_single_vector_ends_a_run_of_misses() -> None:
    pulse = Pulse(Clock())
    for _ in range(TRIP - 1):
        pulse.miss()
    pulse.beat()
    pulse.miss()
    assert pulse.admits()


# -- texts that cannot be read whole


async def test_a_text_found_too_long_is_not_read_again() -> None:
    engine = ScriptedEngine(batch=8)
    engine.act = lambda texts: [TooLong("300 tokens") if "long" in text else vector_of(text) for text in texts]
    async with running(engine) as embedder:
        long, short, again = await asyncio.gather(
            *(embedder.embed(text, same) for text in ("long", "short", "long")), return_exceptions=True
        )
        assert isinstance(long, TooLong)
        assert isinstance(again, TooLong)
        assert np.array_equal(short, vector_of("short"))
        with pytest.raises(TooLong, match="300 tokens"):
            await embedder.embed("long", same)
    assert engine.texts.count("long") == 1


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("\ud800 half a surrogate pair", id="surrogate"),
        pytest.param("\u200b" * 1_000_000, id="zero-width"),
        pytest.param("e" + "\u0301" * 1_000_000, id="combining"),
    ],
)
async def test_text_that_is_no_text_leaves_only_the_exact_tier(text: str) -> None:
    engine = ScriptedEngine()
    async with running(engine) as embedder:
        with pytest.raises(TooLong):
            await embedder.embed(text, same)
    assert engine.calls == []


# -- the default engine, with the real model


@pytest.fixture
async def minilm(prepared_model: PreparedModel) -> AsyncIterator[Embedder]:
    settings = config.Embedder(deadline=30)
    async with running(OnnxEngine(settings, prepared_model)) as embedder:
        yield embedder


async def test_questions_that_mean_the_same_are_near(minilm: Embedder) -> None:
    asked = await minilm.embed("How do I change my password?", same)
    again = await minilm.embed("how can I change my password", same)
    other = await minilm.embed("What does shipping to Iceland cost?", same)
    assert asked @ again > 0.9
    assert asked @ other < 0.3
    assert minilm.stamp.startswith("all-MiniLM-L6-v2/53aa51172d142c89/onnx-int8")


async def test_the_window_counts_tokens_and_marks(minilm: Embedder) -> None:
    await minilm.embed(" ".join(["word"] * 254), same)  # and two marks
    with pytest.raises(TooLong, match="257 tokens; the window is 256"):
        await minilm.embed(" ".join(["word"] * 255), same)


async def test_a_vector_does_not_depend_on_what_else_is_embedded(minilm: Embedder) -> None:
    alone = await minilm.embed("is the museum open today", same)
    async with running(minilm._engine, remember=0) as crowded:
        texts = ["is the museum open today" if n == 20 else f"question number {n} " * (n % 30 + 1) for n in range(40)]
        vectors = await asyncio.gather(*(crowded.embed(text, same) for text in texts))
    assert np.array_equal(vectors[20], alone)


@pytest.mark.parametrize("text", ["what does 🦤 mean", "x" * 101, "𓀀𓀁𓀂 in the museum"])
async def test_what_the_vocabulary_lacks_is_not_compared(minilm: Embedder, text: str) -> None:
    # Any other emoji, or any other word of 101 letters, would have the same vector.
    with pytest.raises(TooLong, match="no token for"):
        await minilm.embed(text, same)


@pytest.mark.parametrize("text", ["", " ", "\x00", "\x00a\x1b[31m", "ﷺ", "e\u0301" * 40, "\u202e" + "abc", "?" * 200])
async def test_odd_text_gets_a_vector_or_too_long_and_never_a_fault(minilm: Embedder, text: str) -> None:
    try:
        vector = await minilm.embed(text, same)
    except TooLong:
        return
    assert abs(np.linalg.norm(vector) - 1) < 1e-3


def test_serving_needs_no_torch_and_little_memory(prepared_model: PreparedModel) -> None:
    script = """
import asyncio, sys
import aiohttp, faiss, numpy
from semcache import config
from semcache.cache import embedder
async def main():
    under_test = embedder.build(config.Embedder(deadline=30))
    await under_test.start()
    await asyncio.gather(*(under_test.embed(f"question {n} " * (n % 60 + 1), lambda v: v) for n in range(120)))
    await under_test.close()
asyncio.run(main())
loaded = [name for name in ("torch", "transformers", "sentence_transformers", "onnx") if name in sys.modules]
with open("/proc/self/status") as status:
    resident_kb = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
print(loaded, resident_kb // 1024)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    loaded, resident_mb = said.rsplit(maxsplit=1)
    assert loaded == "[]"
    assert int(resident_mb) < 220


def test_the_torch_engine_serves_the_same_model(prepared_model: PreparedModel) -> None:
    # In a process of its own: torch takes 10 s and half a gigabyte, and the suite is to stay without it.
    script = """
import asyncio, json
from semcache import config
from semcache.cache import embedder
from semcache.errors import TooLong
async def main():
    under_test = embedder.build(config.Embedder(engine="torch", deadline=60))
    await under_test.start()
    texts = ["How do I change my password?", "word " * 254, "word " * 255, "what does \U0001f9a4 mean"]
    replies = await asyncio.gather(*(under_test.embed(t, lambda v: v) for t in texts), return_exceptions=True)
    await under_test.close()
    print(json.dumps([str(r) if isinstance(r, TooLong) else r.tolist() for r in replies] + [under_test.stamp]))
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    near, fits, too_long, unknown, stamp = json.loads(done.stdout.splitlines()[-1])
    assert len(near) == len(fits) == 384
    assert too_long == "257 tokens; the window is 256"
    assert "no token for" in unknown
    assert stamp == "all-MiniLM-L6-v2/53aa51172d142c89/torch/384"
    session = OnnxEngine(config.Embedder(), prepared_model)
    asyncio.run(session.open())
    assert float(np.dot(session.embed(["How do I change my password?"])[0], near)) > 0.99


# -- a remote engine


class EmbeddingServer:
    """A real HTTP server with OpenAI's embeddings, or whatever `respond` makes of a request."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.respond: Callable[[web.Request, list[str]], Any] = self.good
        self.gate = asyncio.Event()
        self.gate.set()
        self.url = ""

    @staticmethod
    def rows(texts: list[str]) -> list[dict[str, Any]]:
        return [{"index": n, "embedding": (3 * vector_of(text)).tolist()} for n, text in enumerate(texts)]

    def good(self, _: web.Request, texts: list[str]) -> web.Response:
        return web.json_response({"object": "list", "data": self.rows(texts)[::-1]})  # order is by index

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append((request.headers.get("Authorization", ""), body))
        await self.gate.wait()
        reply = self.respond(request, body["input"])
        return reply if isinstance(reply, web.StreamResponse) else await reply

    @asynccontextmanager
    async def running(self) -> AsyncIterator[EmbeddingServer]:
        app = web.Application()
        app.router.add_post("/v1/embeddings", self.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        try:
            yield self
        finally:
            self.gate.set()
            await runner.cleanup()


@pytest.fixture
async def server() -> AsyncIterator[EmbeddingServer]:
    async with EmbeddingServer().running() as served:
        yield served


def remote(server: EmbeddingServer, **settings: Any) -> config.Embedder:
    return config.Embedder(engine="openai", model="some-embedder", url=server.url, deadline=5, **settings)


async def test_a_remote_model_tells_its_size_and_answers_in_order(server: EmbeddingServer) -> None:
    settings = remote(server, api_key="sk-test", batch=4)
    embedder = await asyncio.to_thread(embedders.build, settings)  # the server of this test is on our own loop
    assert (embedder.stamp, embedder.dimensions) == (f"some-embedder/remote/{D}", D)
    await embedder.start()
    texts = [f"question {n}" for n in range(10)]
    vectors = await asyncio.gather(*(embedder.embed(text, same) for text in texts))
    await embedder.close()
    assert all(np.allclose(vector, vector_of(text), atol=1e-6) for text, vector in zip(texts, vectors, strict=True))
    assert {key for key, _ in server.requests} == {"Bearer sk-test"}
    assert all(len(body["input"]) <= 4 and "dimensions" not in body for _, body in server.requests)


async def test_dimensions_that_are_set_are_asked_for_and_checked(server: EmbeddingServer) -> None:
    async with running(RemoteEngine(remote(server, dimensions=D))) as embedder:
        await embedder.embed("x", same)
    assert server.requests[0][1]["dimensions"] == D
    async with running(RemoteEngine(remote(server, dimensions=D + 1))) as embedder:
        with pytest.raises(EmbedderFault, match=f"no vector of {D + 1}"):
            await embedder.embed("x", same)


async def test_a_remote_text_is_too_long_by_its_bytes(server: EmbeddingServer) -> None:
    async with running(RemoteEngine(remote(server, dimensions=D, window=10))) as embedder:
        await embedder.embed("a" * 30, same)
        for text in ("a" * 31, "é" * 16):
            with pytest.raises(TooLong):
                await embedder.embed(text, same)
    assert len(server.requests) == 1


def one_row(**changes: Any) -> dict[str, Any]:
    return {"index": 0, "embedding": vector_of("x").tolist(), **changes}


def data(*rows: Any) -> Callable[..., web.Response]:
    return lambda *_: web.json_response({"data": list(rows)})


async def endless(request: web.Request, _: Any) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while not request.transport.is_closing():  # type: ignore[union-attr]
        await response.write(b'{"data": [' + b" " * 65_536)
    return response


@pytest.mark.parametrize(
    "respond",
    [
        pytest.param(lambda *_: web.Response(text="<html>Bad gateway</html>", content_type="text/html"), id="html"),
        pytest.param(lambda *_: web.Response(status=500, text="no"), id="500"),
        pytest.param(lambda *_: web.Response(status=307, headers={"Location": "http://127.0.0.1:1/"}), id="redirect"),
        pytest.param(lambda *_: web.json_response({"error": {"message": "overloaded"}}), id="an error with 200"),
        pytest.param(lambda *_: web.json_response([]), id="a list"),
        pytest.param(lambda *_: web.Response(body=b'{"data": [{"index": 0, "emb'), id="cut"),
        pytest.param(lambda *_: web.Response(body=b'{"data":[{"index":0,"embedding":[NaN]}]}'), id="nan"),
        pytest.param(data(), id="none"),
        pytest.param(data(one_row(), one_row(index=1)), id="one too many"),
        pytest.param(data(one_row(index=7)), id="another index"),
        pytest.param(data(one_row(index="0")), id="an index that is text"),
        pytest.param(data(one_row(embedding=[0.0] * D)), id="zero"),
        pytest.param(data(one_row(embedding=[1.0])), id="too short"),
        pytest.param(data(one_row(embedding=[1e300] * D)), id="overflow"),
        pytest.param(data(one_row(embedding="AAAA")), id="base64"),
        pytest.param(data(one_row(embedding=[None] * D)), id="nulls"),
        pytest.param(endless, id="endless"),
    ],
)
async def test_a_remote_answer_that_is_no_embedding_is_a_fault(server: EmbeddingServer, respond: Any) -> None:
    async with running(RemoteEngine(remote(server, dimensions=D))) as embedder:
        server.respond = respond
        with pytest.raises(EmbedderFault):
            await embedder.embed("x", same)
        server.respond = server.good
        assert np.allclose(await embedder.embed("x", same), vector_of("x"), atol=1e-6)


async def test_a_remote_server_that_hangs_holds_nobody_beyond_the_deadline(server: EmbeddingServer) -> None:
    server.gate.clear()
    async with running(RemoteEngine(remote(server, dimensions=D))) as embedder:
        with pytest.raises(EmbedderFault, match="deadline"):
            await embedder.embed("x", same, LATE_S)
        server.gate.set()


async def test_a_remote_server_that_is_down_stops_the_start_only_where_its_size_is_unknown() -> None:
    gone = {"engine": "openai", "url": "http://user:secret@127.0.0.1:1/v1", "model": "m"}
    with pytest.raises(StartError, match="127.0.0.1:1 does not answer.*set embedder.dimensions") as told:
        embedders.build(config.Embedder(**gone))
    assert "secret" not in told.value.message
    async with running(RemoteEngine(config.Embedder(**gone, dimensions=D))) as embedder:
        with pytest.raises(EmbedderFault, match="does not answer"):
            await embedder.embed("x", same)


def test_a_remote_engine_without_url_is_a_mistake_in_the_settings() -> None:
    with pytest.raises(ConfigError, match="embedder: engine openai needs a url"):
        config.parse("embedder: {engine: openai}")
