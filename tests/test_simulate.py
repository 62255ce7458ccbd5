"""The simulated backend speaks the vendors' wire forms: their own SDKs are the judges."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import numpy as np
import pytest
from anthropic import AsyncAnthropic
from openai import APIError, AsyncOpenAI, RateLimitError

from semcache.errors import StartError
from semcache.simulate import Simulator
from semcache.simulate.answers import question_digest, read_reference, write_reply

QUESTION = [{"role": "user", "content": "Do you ship to Norway?"}]
TRACK_ORDER = {
    "type": "function",
    "function": {
        "name": "track_order",
        "parameters": {"type": "object", "properties": {"number": {"type": "integer"}, "note": {"type": "string"}}},
    },
}


@pytest.fixture
async def backend() -> AsyncIterator[Simulator]:
    async with Simulator() as simulator:
        yield simulator


@pytest.fixture
async def client(backend: Simulator) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=backend.url, api_key="none", max_retries=0) as sdk:
        yield sdk


async def post(backend: Simulator, body: dict, orders: str = "", path: str = "/chat/completions") -> bytes:
    async with (
        aiohttp.ClientSession() as session,
        session.post(backend.url + path, json=body, headers={"X-Simulate": orders}) as response,
    ):
        return await response.read()


async def test_an_answer_names_its_question_and_its_context(client: AsyncOpenAI) -> None:
    async def reference(**fields: object) -> tuple[str, str]:
        reply = await client.chat.completions.create(**{"model": "m", "messages": QUESTION, **fields})
        found = read_reference(reply.choices[0].message.content)
        assert found is not None
        return found

    plain = await reference()
    assert plain[0] == question_digest(" Do you ship to Norway? ")
    assert await reference(user="someone") == plain
    assert (await reference(temperature=0.5))[1] != plain[1]
    with_system = await reference(messages=[{"role": "system", "content": "Be brief."}, *QUESTION])
    assert with_system[0] == plain[0] and with_system[1] != plain[1]


async def test_a_stream_says_what_the_json_says(client: AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model="m", messages=QUESTION, n=2)
    stream = await client.chat.completions.create(
        model="m", messages=QUESTION, n=2, stream=True, stream_options={"include_usage": True}
    )
    texts, finishes, roles, usage = ["", ""], [None, None], 0, None
    async for chunk in stream:
        usage = chunk.usage or usage
        assert chunk.system_fingerprint == whole.system_fingerprint
        for choice in chunk.choices:
            roles += choice.delta.role == "assistant"
            texts[choice.index] += choice.delta.content or ""
            finishes[choice.index] = choice.finish_reason or finishes[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert texts[0] != texts[1]
    assert finishes == ["stop", "stop"] and roles == 2
    assert usage == whole.usage


async def test_usage_chunk_comes_only_when_asked_for(backend: Simulator) -> None:
    plain = await post(backend, {"model": "m", "messages": QUESTION, "stream": True})
    assert b"usage" not in plain
    assert plain.endswith(b"data: [DONE]\n\n")


async def test_logprobs_cover_every_token(client: AsyncOpenAI) -> None:
    reply = await client.chat.completions.create(model="m", messages=QUESTION, logprobs=True)
    choice = reply.choices[0]
    assert "".join(item.token for item in choice.logprobs.content) == choice.message.content


async def test_max_tokens_finishes_with_length(client: AsyncOpenAI) -> None:
    reply = await client.chat.completions.create(model="m", messages=QUESTION, max_tokens=5)
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 5


@pytest.mark.parametrize(
    "question, choice, called",
    [
        ("Please track order 4711", "auto", True),
        ("Where is my parcel?", "auto", False),
        ("Where is my parcel?", "required", True),
        ("Please track order 4711", "none", False),
    ],
)
async def test_a_declared_tool_is_called_when_the_question_asks_for_it(
    client: AsyncOpenAI, question: str, choice: str, called: bool
) -> None:
    asked = {"model": "m", "messages": [{"role": "user", "content": question}], "tools": [TRACK_ORDER]}
    whole = await client.chat.completions.create(**asked, tool_choice=choice)
    assert (whole.choices[0].finish_reason == "tool_calls") is called
    if not called:
        return
    arguments = whole.choices[0].message.tool_calls[0].function.arguments
    assert json.loads(arguments) == {"number": 4711 if "4711" in question else 0, "note": question}
    pieces = ""
    async for chunk in await client.chat.completions.create(**asked, tool_choice=choice, stream=True):
        for call in chunk.choices[0].delta.tool_calls or []:
            pieces += call.function.arguments
    assert pieces == arguments


async def test_anthropic_form_in_both_renderings(backend: Simulator) -> None:
    base_url = backend.url.removesuffix("/v1")
    asked = {"model": "m", "messages": QUESTION, "max_tokens": 500}
    async with AsyncAnthropic(base_url=base_url, api_key="none", max_retries=0) as sdk:
        whole = await sdk.messages.create(**asked)
        async with sdk.messages.stream(**asked) as stream:
            streamed = await stream.get_final_message()
    assert whole.content[0].text == streamed.content[0].text
    assert whole.stop_reason == streamed.stop_reason == "end_turn"
    assert whole.usage.output_tokens == streamed.usage.output_tokens


async def test_embeddings_are_unit_vectors_that_share_what_the_words_share(client: AsyncOpenAI) -> None:
    texts = ["where is my parcel", "where is my parcel now", "cancel the subscription"]
    rows = (await client.embeddings.create(model="m", input=texts, dimensions=64)).data
    near, same, far = (np.array(row.embedding) for row in rows)
    assert near.shape == (64,)
    assert np.linalg.norm(near) == pytest.approx(1, abs=1e-6)
    assert near @ same > 0.7 > near @ far
    again = await client.embeddings.create(model="m", input=texts[0], dimensions=64, encoding_format="float")
    assert np.allclose(again.data[0].embedding, near)


async def test_models_are_listed_and_other_paths_are_not_found(backend: Simulator, client: AsyncOpenAI) -> None:
    assert [model.id async for model in await client.models.list()] == ["simulated-small", "simulated-large"]
    assert json.loads(await post(backend, {}, path="/audio/speech"))["error"]["type"] == "not_found_error"


async def test_an_ordered_status_is_an_error_of_that_kind(client: AsyncOpenAI) -> None:
    with pytest.raises(RateLimitError) as caught:
        await client.chat.completions.create(model="m", messages=QUESTION, extra_headers={"X-Simulate": "status=429"})
    assert caught.value.response.headers["retry-after"] == "1"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cut_body_ends_after_so_many_bytes(backend: Simulator, stream: bool) -> None:
    async with aiohttp.ClientSession() as session:
        body = {"model": "m", "messages": QUESTION, "stream": stream}
        async with session.post(
            backend.url + "/chat/completions", json=body, headers={"X-Simulate": "cut=17"}
        ) as response:
            got = b""
            with pytest.raises(aiohttp.ClientPayloadError):
                async for chunk in response.content.iter_any():
                    got += chunk
    assert len(got) == 17
    assert backend.counters.cancelled == 0


async def test_ordered_faults_show_on_the_wire(backend: Simulator) -> None:
    asked = {"model": "m", "messages": QUESTION}
    streamed = {**asked, "stream": True}
    assert b"[DONE]" not in await post(backend, streamed, "no-done")
    failed = await post(backend, streamed, "error-event")
    assert failed.count(b"data: ") == 5 and b'"error"' in failed and b"[DONE]" not in failed
    assert json.loads(await post(backend, asked, "finish=content_filter"))["choices"][0]["finish_reason"] == (
        "content_filter"
    )
    assert json.loads(await post(backend, asked, "refusal"))["choices"][0]["message"]["content"] is None
    assert json.loads(await post(backend, asked, "reasoning"))["choices"][0]["message"]["reasoning_content"]
    assert "error" in json.loads(await post(backend, asked, "error-200"))
    assert (await post(backend, asked, "garbage")).startswith(b"<html>")
    assert json.loads(await post(backend, asked, "tokens=300"))["usage"]["completion_tokens"] == 302


async def test_error_events_raise_in_the_sdk(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="m", messages=QUESTION, stream=True, extra_headers={"X-Simulate": "error-event"}
    )
    with pytest.raises(APIError, match="as ordered"):
        async for _ in stream:
            pass


async def test_a_caller_that_leaves_is_counted(backend: Simulator) -> None:
    async with aiohttp.ClientSession() as session:
        body = {"model": "m", "messages": QUESTION, "stream": True}
        response = await session.post(
            backend.url + "/chat/completions", json=body, headers={"X-Simulate": "hang=headers"}
        )
        assert backend.counters.active == 1
        response.close()
        async with asyncio.timeout(5):
            await backend.until_idle()
        async with session.get(backend.url.removesuffix("/v1") + "/simulate/stats") as stats:
            counted = await stats.json()
    assert counted["cancelled"] == 1
    assert counted["by_path"] == {"/v1/chat/completions": 1}
    assert backend.asked[0].headers["X-Simulate"] == "hang=headers"


async def test_a_pace_delays_the_first_token_and_spreads_the_rest(backend: Simulator) -> None:
    body = {"model": "m", "messages": QUESTION, "stream": True}
    clock = asyncio.get_running_loop().time
    began = clock()
    assert (await post(backend, body, "ttft=20ms, rate=1000, tokens=28")).endswith(b"[DONE]\n\n")
    assert clock() - began >= 0.05  # 20 ms and 30 tokens: never earlier, on however slow a machine


async def test_a_taken_port_is_one_clear_line(backend: Simulator) -> None:
    taken = int(backend.url.split(":")[2].split("/")[0])
    with pytest.raises(StartError, match=f"cannot listen on 127.0.0.1:{taken}"):
        await Simulator().start(taken)


def test_an_answer_that_is_ordered_to_be_about_something_says_the_same_in_other_words() -> None:
    bodies: list[Any] = [{"messages": [{"role": "user", "content": f"question {n}"}]} for n in range(20)]
    texts = {write_reply(body, {"about": "cancel_order"}, 1, 0.0).choices[0].text for body in bodies}
    other = write_reply(bodies[0], {"about": "change_order"}, 1, 0.0).choices[0].text
    references = {read_reference(text) for text in texts}
    assert len(texts) > 1 and len(references) == 1
    assert read_reference(other) not in references
