"""Embeddings through the front door: every input has an entry of its own, and only what is not known is fetched."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import orjson
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from semcache import config, wire
from semcache.planning import PLAN_ITEMS, PLANS, Planner
from semcache.types import Tenant
from semcache.wire.vectors import as_base64, as_floats, shares
from tests.fakes import ModelServer
from tests.harness import Proxy, running_proxy, until

DIMENSIONS = 8


def vector_of(item: Any) -> list[float]:
    seed = int.from_bytes(blake2b(json.dumps(item).encode(), digest_size=8).digest(), "big")
    values = np.random.default_rng(seed).standard_normal(DIMENSIONS).astype("<f4")
    return [float(value) for value in values]


class Embeds(ModelServer):
    """Answers `/v1/embeddings` and `/api/embed`. A text costs as many tokens as it has letters, a list its length."""

    def __init__(self) -> None:
        super().__init__()
        self.dropped = 0  # results left out of each answer

    @property
    def inputs(self) -> list[Any]:
        return [body["input"] for body in self.bodies]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(request.raw_path)
        body = json.loads(await request.read())
        self.bodies.append(body)
        if self.status != 200:
            return web.Response(body=self.error_body, status=self.status, content_type="application/json")
        if self.gate is not None:
            await self.gate.wait()
        given_inputs = body["input"]
        is_one = isinstance(given_inputs, str) or isinstance(given_inputs[0], int)
        inputs = [given_inputs] if is_one else given_inputs
        vectors = [vector_of(item) for item in inputs][: len(inputs) - self.dropped]
        tokens = sum(map(len, inputs))
        if request.path == "/api/embed":
            return web.json_response(
                {"model": body["model"], "embeddings": vectors, "total_duration": 5, "prompt_eval_count": tokens}
            )
        shown: list[Any] = vectors
        if body.get("encoding_format") == "base64":
            shown = [base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode() for vector in vectors]
        data = [{"object": "embedding", "index": place, "embedding": vector} for place, vector in enumerate(shown)]
        data.reverse()  # the order is told by `index`
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return web.json_response({"object": "list", "data": data, "model": "served-name", "usage": usage})


@asynccontextmanager
async def embedding(folder: Path, settings: str = "") -> AsyncIterator[tuple[Proxy, Embeds]]:
    server = Embeds()
    async with running_proxy(folder, settings, backend=server) as proxy:
        yield proxy, server


async def embed(proxy: Proxy, inputs: Any, headers: dict[str, str] | None = None, **more: Any) -> tuple[Any, str]:
    """The parsed answer of the SDK, and what Cache-Status said."""
    raw = await proxy.client.embeddings.with_raw_response.create(
        model="vectors", input=inputs, extra_headers=headers or {}, **more
    )
    return raw.parse(), raw.headers["Cache-Status"]


async def test_a_batch_of_which_half_is_known_fetches_only_the_other_half(tmp_path: Path) -> None:
    async with embedding(tmp_path) as (proxy, server):
        first, status = await embed(proxy, ["red", "green"])
        assert status == "semcache; fwd=miss; fwd-status=200; stored; detail=no-entry"
        mixed, status = await embed(proxy, ["blue", "green", "violet", "red"])
        assert status == "semcache; fwd=miss; fwd-status=200; stored; detail=partial"
        assert server.inputs == [["red", "green"], ["blue", "violet"]]
        assert [item.index for item in mixed.data] == [0, 1, 2, 3]
        expected = [vector_of(item) for item in ("blue", "green", "violet", "red")]
        assert [item.embedding for item in mixed.data] == expected
        assert (first.usage.prompt_tokens, mixed.usage.prompt_tokens, mixed.usage.total_tokens) == (8, 18, 18)
        whole, status = await embed(proxy, ["violet", "blue", "red", "green"])
        assert status == "semcache; hit; ttl=86400; detail=exact"
        assert whole.usage.prompt_tokens == 18
        assert whole.model == "served-name"
        assert server.requests == 2


async def test_one_entry_serves_both_encodings(tmp_path: Path) -> None:
    async with embedding(tmp_path) as (proxy, server):
        for encoding, text in (("float", "apple"), ("base64", "pear")):
            stored, _ = await embed(proxy, text, encoding_format=encoding)
            floats, status = await embed(proxy, text, encoding_format="float")
            packed, _ = await embed(proxy, text, encoding_format="base64")
            assert status.startswith("semcache; hit")
            assert floats.data[0].embedding == vector_of(text)
            assert np.frombuffer(base64.b64decode(packed.data[0].embedding), "<f4").tolist() == vector_of(text)
            assert stored.usage == floats.usage == packed.usage
        assert server.requests == 2


async def test_followers_in_another_encoding_get_their_own(tmp_path: Path) -> None:
    import asyncio

    async with embedding(tmp_path) as (proxy, server):
        server.gate = asyncio.Event()
        leader = asyncio.create_task(embed(proxy, ["tin", "lead"], encoding_format="base64"))
        while not server.requests:
            await asyncio.sleep(0)
        follower = asyncio.create_task(embed(proxy, ["tin", "lead"], encoding_format="float"))
        while not proxy.app.pipeline.flights.joined:
            await asyncio.sleep(0)
        server.gate.set()
        (packed, _), (floats, status) = await asyncio.gather(leader, follower)
        assert status == "semcache; fwd=miss; collapsed"
        assert floats.data[1].embedding == vector_of("lead")
        assert type(packed.data[1].embedding) is str
        assert server.requests == 1


async def test_a_text_its_tokens_and_other_dimensions_are_three_things(tmp_path: Path) -> None:
    async with embedding(tmp_path) as (proxy, server):
        await embed(proxy, "1")
        await embed(proxy, [1, 2])
        await embed(proxy, [[1, 2]])  # the same tokens as one of a batch: one entry
        await embed(proxy, ["1"], dimensions=4)
        await embed(proxy, ["1"])
        assert server.inputs == ["1", [1, 2], ["1"]]


async def test_a_batch_with_the_same_text_twice_is_whole(tmp_path: Path) -> None:
    async with embedding(tmp_path) as (proxy, server):
        await embed(proxy, ["a", "b"])
        answer, _ = await embed(proxy, ["c", "a", "c"])
        assert [item.embedding for item in answer.data] == [vector_of("c"), vector_of("a"), vector_of("c")]
        assert server.inputs[1] == ["c", "c"]


async def test_hits_may_show_what_they_cost(tmp_path: Path) -> None:
    async with embedding(tmp_path, "cache: {usage: zero}") as (proxy, _):
        first, _ = await embed(proxy, ["abc"])
        hit, _ = await embed(proxy, ["abc"])
        mixed, _ = await embed(proxy, ["abc", "defgh"])
        assert [answer.usage.prompt_tokens for answer in (first, hit, mixed)] == [3, 0, 5]


async def test_the_callers_wishes_hold_for_batches_too(tmp_path: Path) -> None:
    async with embedding(tmp_path) as (proxy, server):
        with pytest.raises(openai.APIStatusError) as caught:
            await embed(proxy, ["a", "b"], {"Cache-Control": "only-if-cached"})
        assert (caught.value.status_code, caught.value.code) == (504, "not_cached")
        assert server.requests == 0
        await embed(proxy, ["a"])
        with pytest.raises(openai.APIStatusError):
            await embed(proxy, ["a", "b"], {"Cache-Control": "only-if-cached"})
        _, status = await embed(proxy, ["a"], {"Cache-Control": "no-cache"})
        assert status == "semcache; fwd=request; fwd-status=200; stored; detail=no-cache"
        await embed(proxy, ["n"], {"Cache-Control": "no-store"})
        _, status = await embed(proxy, ["n"])
        assert status == "semcache; fwd=miss; fwd-status=200; stored; detail=no-entry"
        proxy.clock.advance(100)
        _, status = await embed(proxy, ["a"], {"Cache-Control": "max-age=50"})
        assert status == "semcache; fwd=request; fwd-status=200; stored; detail=max-age"


async def test_a_batch_is_as_stale_as_its_oldest_item(tmp_path: Path) -> None:
    async with embedding(tmp_path, "cache: {ttl: 60s, grace: 60s}") as (proxy, server):
        await embed(proxy, ["old"])
        proxy.clock.advance(50)
        await embed(proxy, ["new"])
        proxy.clock.advance(20)
        _, status = await embed(proxy, ["old", "new"])
        assert status == "semcache; hit; ttl=-10; detail=stale"
        await proxy.landed()
        _, status = await embed(proxy, ["old", "new"])
        assert status == "semcache; hit; ttl=60; detail=exact"
        assert server.requests == 3


async def test_an_answer_that_lacks_a_vector_is_relayed_and_not_stored(tmp_path: Path) -> None:
    async with embedding(tmp_path) as (proxy, server):
        server.dropped = 1
        answer, status = await embed(proxy, ["a", "b"])
        assert len(answer.data) == 1
        assert "stored" not in status
        assert proxy.app.pipeline.stored == 0


async def test_a_missing_half_that_comes_back_incomplete_is_asked_for_as_a_whole(tmp_path: Path) -> None:
    async with embedding(tmp_path) as (proxy, server):
        await embed(proxy, ["a"])
        server.dropped = 1
        await embed(proxy, ["a", "b", "c"])
        assert server.inputs == [["a"], ["b", "c"], ["a", "b", "c"]]


async def test_an_upstream_error_for_the_missing_half_reaches_the_caller(tmp_path: Path) -> None:
    async with embedding(tmp_path) as (proxy, server):
        await embed(proxy, ["a"])
        server.status = 429
        with pytest.raises(openai.RateLimitError, match="slow down"):
            await embed(proxy, ["a", "b"])


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        ([], "Invalid 'input': expected a string or a non-empty array, got an array."),
        ({"a": 1}, "Invalid 'input': expected a string or a non-empty array, got an object."),
        (
            ["a", 1],
            "Invalid 'input': expected strings, token ids, or arrays of token ids, got an array.",
        ),
        ([[]], "Invalid 'input': expected strings, token ids, or arrays of token ids, got an array."),
    ],
)
async def test_what_cannot_be_embedded_is_refused_typed(tmp_path: Path, inputs: Any, complaint: str) -> None:
    async with embedding(tmp_path) as (proxy, server):
        with pytest.raises(openai.BadRequestError) as caught:
            await embed(proxy, inputs)
        assert (caught.value.param, caught.value.body["message"]) == ("input", complaint)  # type: ignore[index]
        assert server.requests == 0


async def test_a_batch_past_the_vendors_limit_is_stored_as_one(tmp_path: Path) -> None:
    async with embedding(tmp_path) as (proxy, server):
        many = [f"text {number}" for number in range(2049)]
        await embed(proxy, many)
        answer, status = await embed(proxy, many, encoding_format="float")
        assert status.startswith("semcache; hit")
        assert answer.data[2048].embedding == vector_of("text 2048")
        assert server.requests == 1


async def test_large_batches_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    async with embedding(tmp_path) as (proxy, server):
        server.gate = asyncio.Event()
        asking = [
            asyncio.create_task(embed(proxy, [f"{batch} {number}" for number in range(2048)])) for batch in range(3)
        ]
        await until(lambda: server.requests == 3)
        server.gate.set()
        await asyncio.gather(*asking)
        await proxy.landed()
        stats = proxy.app.pipeline.stats()
        assert (stats["stored"], stats.get("unstorable_store-fault")) == (3, None)


def test_plans_of_batches_are_remembered_only_as_far_as_memory_allows() -> None:
    planner = Planner(config.build({}, "settings"), "stamp")
    address = wire.find_address("/v1/embeddings")
    assert address is not None
    for batch in range(100):
        for size in (PLAN_ITEMS, PLAN_ITEMS + 1):
            body = orjson.dumps({"model": "m", "input": [f"{batch} {item}" for item in range(size)]})
            planner.plan(address, CIMultiDict(), body, Tenant("t"), "")
    assert planner.stats()["plans"] == PLANS // PLAN_ITEMS


async def test_ollamas_embeddings_are_cached_item_by_item(tmp_path: Path) -> None:
    async with embedding(tmp_path) as (proxy, server), httpx.AsyncClient(base_url=proxy.url[:-3]) as client:

        async def ask(inputs: Any, **more: Any) -> tuple[dict[str, Any], str]:
            reply = await client.post("/api/embed", json={"model": "m", "input": inputs, **more})
            return reply.json(), reply.headers["Cache-Status"]

        await ask(["red", "green"])
        mixed, status = await ask(["blue", "red"], keep_alive="5m")
        assert "partial" in status
        assert mixed["embeddings"] == [vector_of("blue"), vector_of("red")]
        assert mixed["prompt_eval_count"] == 7
        hit, status = await ask("red")
        assert status.startswith("semcache; hit")
        assert (hit["model"], hit["embeddings"], hit["prompt_eval_count"]) == ("m", [vector_of("red")], 3)
        _, status = await ask("")
        assert status.startswith("semcache; fwd=bypass; fwd-status=200; detail=state")
        assert server.inputs == [["red", "green"], ["blue"], ""]


@given(st.integers(0, 10**9), st.lists(st.integers(0, 10**6), min_size=1, max_size=50))
def test_shares_add_up_and_keep_the_order_of_the_weights(total: int, weights: list[int]) -> None:
    found = shares(total, weights)
    assert sum(found) == total
    assert all(share >= 0 for share in found)
    for (one, small), (two, large) in zip(
        sorted(zip(weights, found, strict=True)), sorted(zip(weights, found, strict=True))[1:], strict=False
    ):
        assert one == two or small <= large


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_encodings_say_the_same_float32_values(values: list[float]) -> None:
    floats = json.loads(orjson.dumps(as_floats(as_base64(values))))
    assert floats == values
    assert as_base64(floats) == as_base64(values)
