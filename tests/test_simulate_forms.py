"""Every form of the simulated backend is what its vendor's SDK declares, field by field, and says the same thing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import cache
from typing import Any

import aiohttp
import anthropic
import numpy as np
import ollama
import openai
import pytest
from anthropic import AsyncAnthropic
from anthropic import types as anthropic_types
from ollama import AsyncClient as AsyncOllama
from openai import AsyncAzureOpenAI, AsyncOpenAI
from openai import types as openai_types
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from semcache.simulate import Simulator
from semcache.simulate.answers import question_digest, read_reference

TEXT = "Do you ship to Norway?"
TURN = [{"role": "user", "content": TEXT}]
NUMBER = {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}
CALL_TEXT = "Please track order 4711"
CALL_TURN = [{"role": "user", "content": CALL_TEXT}]

CHAT = {"model": "m", "messages": TURN}
COMPLETION = {"model": "m", "prompt": TEXT}
RESPONSES = {"model": "m", "input": TEXT}
MESSAGES = {"model": "m", "messages": TURN, "max_tokens": 500}
GENERATE = {"model": "m", "prompt": TEXT}
CHAT_TOOLS = {"tools": [{"type": "function", "function": {"name": "track_order", "parameters": NUMBER}}]}
RESPONSES_TOOLS = {"tools": [{"type": "function", "name": "track_order", "parameters": NUMBER, "strict": True}]}
MESSAGES_TOOLS = {"tools": [{"name": "track_order", "input_schema": NUMBER}]}

BEYOND_THE_TYPES = {"reasoning_content", "store"}  # sent by servers; the SDKs keep them as extra fields


@pytest.fixture
async def backend() -> AsyncIterator[Simulator]:
    async with Simulator() as simulator:
        yield simulator


@pytest.fixture
async def local(backend: Simulator) -> AsyncIterator[AsyncOllama]:
    async with AsyncOllama(host=backend.root) as sdk:
        yield sdk


@pytest.fixture
async def closed_list() -> AsyncIterator[Simulator]:
    async with Simulator(models=["llama-3", "gpt-5"]) as simulator:
        yield simulator


def openai_at(url: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=url, api_key="none", max_retries=0)


def anthropic_at(backend: Simulator) -> AsyncAnthropic:
    return AsyncAnthropic(base_url=backend.root, api_key="none", max_retries=0)


async def post(backend: Simulator, path: str, body: Any, orders: str = "") -> tuple[int, str, bytes]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"X-Simulate": orders, "Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(backend.root + path, data=raw, headers=headers) as response,
    ):
        return response.status, response.content_type, await response.read()


def sse_payloads(raw: bytes) -> list[tuple[str, bytes]]:
    """(event name, data) of each event."""
    events = []
    for block in raw.decode().strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        events.append((fields.get("event", ""), fields["data"].encode()))
    return events


def checked(declared: Any, raw: bytes) -> Any:
    """Validate strictly, and find the fields that the type does not know: one of ours would be misspelt."""
    value = adapter(declared).validate_json(raw, strict=True)
    assert unknown_fields(value) <= BEYOND_THE_TYPES
    return value


@cache
def adapter(declared: Any) -> TypeAdapter[Any]:
    return TypeAdapter(declared)  # that of all events of a Responses stream takes a tenth of a second to make


def unknown_fields(value: object) -> set[str]:
    if isinstance(value, BaseModel):
        inner = [unknown_fields(item) for item in value.__dict__.values()]
        return set(value.model_extra or {}).union(*inner)
    if isinstance(value, (list, tuple)):
        return set().union(*map(unknown_fields, value))
    return set()


# The types of the SDKs

WHOLE = [
    ("/v1/chat/completions", CHAT, ChatCompletion),
    ("/v1/chat/completions", {**CHAT, "n": 2, "logprobs": True}, ChatCompletion),
    ("/v1/chat/completions", {**CHAT, "messages": CALL_TURN, **CHAT_TOOLS}, ChatCompletion),
    ("/v1/completions", COMPLETION, openai_types.Completion),
    ("/v1/completions", {**COMPLETION, "prompt": [TEXT, "And to Chile?"], "n": 2}, openai_types.Completion),
    ("/v1/completions", {**COMPLETION, "prompt": [[1, 2], [3]], "logprobs": 1}, openai_types.Completion),
    ("/v1/responses", RESPONSES, Response),
    ("/v1/responses", {**RESPONSES, "input": TURN, "instructions": "Be brief.", "store": False}, Response),
    ("/v1/responses", {**RESPONSES, "reasoning": {"effort": "low", "summary": "auto"}}, Response),
    (
        "/v1/responses",
        {**RESPONSES, "reasoning": {"effort": "low"}, "include": ["reasoning.encrypted_content"]},
        Response,
    ),
    ("/v1/responses", {**RESPONSES, "input": CALL_TEXT, **RESPONSES_TOOLS}, Response),
    ("/v1/responses", {**RESPONSES, "max_output_tokens": 4, "previous_response_id": "resp_1"}, Response),
    ("/v1/embeddings", {"model": "m", "input": [TEXT, "b"]}, openai_types.CreateEmbeddingResponse),
    ("/v1/messages", MESSAGES, anthropic_types.Message),
    ("/v1/messages", {**MESSAGES, "thinking": {"type": "enabled", "budget_tokens": 1024}}, anthropic_types.Message),
    ("/v1/messages", {**MESSAGES, "messages": CALL_TURN, **MESSAGES_TOOLS}, anthropic_types.Message),
    ("/v1/messages/count_tokens", {"model": "m", "messages": TURN}, anthropic_types.MessageTokensCount),
    ("/api/chat", {**CHAT, "stream": False}, ollama.ChatResponse),
    ("/api/chat", {**CHAT, "messages": CALL_TURN, **CHAT_TOOLS, "stream": False}, ollama.ChatResponse),
    ("/api/chat", {"model": "m", "messages": [], "stream": False}, ollama.ChatResponse),
    ("/api/generate", {**GENERATE, "stream": False, "think": True}, ollama.GenerateResponse),
    ("/api/generate", {**GENERATE, "stream": False, "logprobs": True}, ollama.GenerateResponse),
    ("/api/generate", {"model": "m", "stream": False}, ollama.GenerateResponse),
    ("/api/embed", {"model": "m", "input": TEXT}, ollama.EmbedResponse),
    ("/api/show", {"model": "m"}, ollama.ShowResponse),
    ("/openai/deployments/m/chat/completions?api-version=2024-10-21", {"messages": TURN}, ChatCompletion),
    ("/openai/deployments/m/completions?api-version=2024-10-21", {"prompt": TEXT}, openai_types.Completion),
    (
        "/openai/deployments/m/embeddings?api-version=2024-10-21",
        {"input": TEXT},
        openai_types.CreateEmbeddingResponse,
    ),
    ("/openai/v1/responses", RESPONSES, Response),
]


@pytest.mark.parametrize("path, body, declared", WHOLE)
async def test_a_whole_answer_has_every_field_that_the_sdk_requires(
    backend: Simulator, path: str, body: dict, declared: Any
) -> None:
    status, kind, raw = await post(backend, path, body)
    assert (status, kind) == (200, "application/json")
    checked(declared, raw)


SSE_STREAMS = [
    ("/v1/chat/completions", {**CHAT, "stream_options": {"include_usage": True}}, ChatCompletionChunk),
    ("/v1/chat/completions", {**CHAT, "messages": CALL_TURN, **CHAT_TOOLS}, ChatCompletionChunk),
    ("/v1/completions", {**COMPLETION, "n": 2, "logprobs": 1}, openai_types.Completion),
    ("/v1/completions", {**COMPLETION, "stream_options": {"include_usage": True}}, openai_types.Completion),
    ("/v1/responses", RESPONSES, ResponseStreamEvent),
    ("/v1/responses", {**RESPONSES, "reasoning": {"effort": "low", "summary": "auto"}}, ResponseStreamEvent),
    ("/v1/responses", {**RESPONSES, "reasoning": {"effort": "low"}}, ResponseStreamEvent),
    ("/v1/responses", {**RESPONSES, "input": CALL_TEXT, **RESPONSES_TOOLS}, ResponseStreamEvent),
    ("/v1/responses", {**RESPONSES, "max_output_tokens": 4}, ResponseStreamEvent),
    ("/v1/messages", MESSAGES, anthropic_types.RawMessageStreamEvent),
    ("/v1/messages", {**MESSAGES, "thinking": {"type": "adaptive"}}, anthropic_types.RawMessageStreamEvent),
    (
        "/v1/messages",
        {**MESSAGES, "thinking": {"type": "adaptive", "display": "omitted"}},
        anthropic_types.RawMessageStreamEvent,
    ),
    ("/v1/messages", {**MESSAGES, "messages": CALL_TURN, **MESSAGES_TOOLS}, anthropic_types.RawMessageStreamEvent),
]


@pytest.mark.parametrize("orders", ["", "refusal", "finish=length", "reasoning"])
@pytest.mark.parametrize("path, body, declared", SSE_STREAMS)
async def test_an_event_has_every_field_that_the_sdk_requires(
    backend: Simulator, path: str, body: dict, declared: Any, orders: str
) -> None:
    status, kind, raw = await post(backend, path, {**body, "stream": True}, orders)
    assert (status, kind) == (200, "text/event-stream")
    events = sse_payloads(raw)
    is_done_marked = path in ("/v1/chat/completions", "/v1/completions")
    assert (events[-1][1] == b"[DONE]") is is_done_marked
    for name, data in events[: -1 if is_done_marked else None]:
        if name == "ping":  # not an event of the types: the SDK drops it
            assert json.loads(data) == {"type": "ping"}
            continue
        if declared is openai_types.Completion:  # its type is that of the whole answer; while it runs this is null
            data = data.replace(b'"finish_reason":null', b'"finish_reason":"stop"')
        value = checked(declared, data)
        assert name == ("" if is_done_marked else value.type)


@pytest.mark.parametrize(
    "path, body, declared",
    [
        ("/api/chat", CHAT, ollama.ChatResponse),
        ("/api/chat", {**CHAT, "think": True, "logprobs": True}, ollama.ChatResponse),
        ("/api/chat", {**CHAT, "messages": CALL_TURN, **CHAT_TOOLS}, ollama.ChatResponse),
        ("/api/chat", {"model": "m"}, ollama.ChatResponse),
        ("/api/generate", GENERATE, ollama.GenerateResponse),
        ("/api/generate", {**GENERATE, "think": True}, ollama.GenerateResponse),
        ("/api/generate", {"model": "m"}, ollama.GenerateResponse),
    ],
)
async def test_ollama_streams_lines_without_being_asked_to(
    backend: Simulator, path: str, body: dict, declared: Any
) -> None:
    status, kind, raw = await post(backend, path, body)
    assert (status, kind) == (200, "application/x-ndjson")
    lines = [checked(declared, line) for line in raw.splitlines()]
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1].done_reason == ("stop" if len(lines) > 1 else "load")
    assert all(line.model == "m" for line in lines)


async def test_the_lists_of_models_are_what_the_sdks_declare(closed_list: Simulator) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{closed_list.root}/api/tags") as response:
            tags = checked(ollama.ListResponse, await response.read())
        async with session.get(f"{closed_list.root}/api/version") as response:
            version = await response.json()
    assert [row.model for row in tags.models] == ["llama-3", "gpt-5"]
    assert version["version"].count(".") == 2
    async with openai_at(closed_list.url) as sdk:
        assert [model.id async for model in await sdk.models.list()] == ["llama-3", "gpt-5"]


# The SDKs themselves


async def test_a_question_gets_the_same_answer_in_every_dialect(backend: Simulator, local: AsyncOllama) -> None:
    """Where nothing but the question is said: Anthropic's max_tokens is a part of the context, so chat says it too."""
    azure = AsyncAzureOpenAI(azure_endpoint=backend.root, api_version="2024-10-21", api_key="none", max_retries=0)
    async with openai_at(backend.url) as sdk, openai_at(f"{backend.root}/openai/v1") as azure_v1, azure:
        chat = (await sdk.chat.completions.create(**CHAT)).choices[0].message.content
        answers = {
            (await sdk.completions.create(**COMPLETION)).choices[0].text,
            (await sdk.responses.create(**RESPONSES)).output_text,
            (await sdk.responses.create(model="m", input=TURN)).output_text,
            (await azure.chat.completions.create(**CHAT)).choices[0].message.content,
            (await azure_v1.chat.completions.create(**CHAT)).choices[0].message.content,
            (await local.chat(**CHAT)).message.content,
            (await local.generate(**GENERATE)).response,
        }
        longer = (await sdk.chat.completions.create(**CHAT, max_tokens=500)).choices[0].message.content
    async with anthropic_at(backend) as sdk:
        message = (await sdk.messages.create(**MESSAGES)).content[0].text
    assert answers == {chat}
    assert message == longer != chat
    assert read_reference(chat).question == read_reference(message).question == question_digest(TEXT)


async def test_instructions_and_system_prompts_are_one_thing(backend: Simulator, local: AsyncOllama) -> None:
    said = "Be brief."
    async with openai_at(backend.url) as sdk:
        messages = [{"role": "system", "content": said}, *TURN]
        chat = (await sdk.chat.completions.create(model="m", messages=messages)).choices[0].message.content
        responses = (await sdk.responses.create(**RESPONSES, instructions=said)).output_text
    generated = (await local.generate(**GENERATE, system=said)).response
    assert chat == responses == generated
    assert read_reference(chat).question == question_digest(TEXT)


async def test_the_prompts_of_one_legacy_request_are_answered_in_order(backend: Simulator) -> None:
    prompts = [TEXT, "And to Chile?"]
    async with openai_at(backend.url) as sdk:
        alone = [(await sdk.completions.create(model="m", prompt=prompt, n=2)).choices for prompt in prompts]
        both = await sdk.completions.create(model="m", prompt=prompts, n=2)
        texts = ["", "", "", ""]
        async for chunk in await sdk.completions.create(model="m", prompt=prompts, n=2, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].text
    assert [choice.text for choice in both.choices] == [choice.text for choices in alone for choice in choices] == texts
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"reasoning": {"effort": "high", "summary": "detailed"}},
        {"reasoning": {"effort": "high"}},
        {"input": CALL_TEXT, **RESPONSES_TOOLS},
        {"max_output_tokens": 4},
    ],
)
async def test_a_responses_stream_builds_up_what_the_json_holds(backend: Simulator, extra: dict) -> None:
    asked = {**RESPONSES, **extra}
    async with openai_at(backend.url) as sdk:
        whole = await sdk.responses.create(**asked)
        async with sdk.responses.stream(**asked) as stream:
            events = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:3]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
    ]
    built = events[-1].response
    assert events[-1].type == f"response.{whole.status}"
    own = {"id", "call_id", "created_at", "completed_at"}  # of each answer
    assert without(built.to_dict(), own) == without(whole.to_dict(), own)
    texts = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert texts == whole.output_text


def without(value: Any, names: set[str]) -> Any:
    """A nested value less the fields of these names, and less what the SDK's helpers add: its parsed fields."""
    if isinstance(value, dict):
        dropped = names | {"parsed", "parsed_arguments"}
        return {name: without(item, names) for name, item in value.items() if name not in dropped}
    return [without(item, names) for item in value] if isinstance(value, list) else value


async def test_reasoning_is_an_item_of_its_own_when_it_is_asked_for(backend: Simulator) -> None:
    async with openai_at(backend.url) as sdk:
        plain = await sdk.responses.create(**RESPONSES)
        unwanted = await sdk.responses.create(**RESPONSES, reasoning={"effort": "none"})
        silent = await sdk.responses.create(**RESPONSES, reasoning={"effort": "low"})
        told = await sdk.responses.create(
            **RESPONSES, reasoning={"effort": "low", "summary": "auto"}, include=["reasoning.encrypted_content"]
        )
    assert [item.type for item in plain.output] == [item.type for item in unwanted.output] == ["message"]
    assert [item.type for item in silent.output] == ["reasoning", "message"]
    assert silent.output[0].summary == [] and silent.output[0].encrypted_content is None
    assert told.output[0].summary[0].text and told.output[0].encrypted_content
    assert told.usage.output_tokens_details.reasoning_tokens > 0 == plain.usage.output_tokens_details.reasoning_tokens


async def test_a_response_repeats_what_was_asked_of_its_keeping(backend: Simulator) -> None:
    async with openai_at(backend.url) as sdk:
        usual = await sdk.responses.create(**RESPONSES)
        asked = await sdk.responses.create(
            **RESPONSES, store=False, previous_response_id="resp_1", metadata={"a": "b"}, temperature=0
        )
    assert usual.model_extra["store"] is True
    assert asked.model_extra["store"] is False
    assert (asked.previous_response_id, asked.metadata, asked.temperature) == ("resp_1", {"a": "b"}, 0)


@pytest.mark.parametrize("display", ["summarized", "omitted"])
async def test_thinking_comes_with_a_signature_in_both_renderings(backend: Simulator, display: str) -> None:
    asked = {**MESSAGES, "thinking": {"type": "adaptive", "display": display}}
    async with anthropic_at(backend) as sdk:
        whole = await sdk.messages.create(**asked)
        async with sdk.messages.stream(**asked) as stream:
            built = await stream.get_final_message()
    assert [block.type for block in whole.content] == ["thinking", "text"]
    assert whole.content[0].signature and bool(whole.content[0].thinking) == (display == "summarized")
    assert [block.to_dict() for block in whole.content] == [without(b.to_dict(), set()) for b in built.content]
    assert whole.usage.output_tokens == built.usage.output_tokens


async def test_a_tool_is_called_and_its_result_is_answered_in_anthropics_form(backend: Simulator) -> None:
    asked = {"model": "m", "max_tokens": 500, **MESSAGES_TOOLS}
    async with anthropic_at(backend) as sdk:
        whole = await sdk.messages.create(**asked, messages=CALL_TURN)
        async with sdk.messages.stream(**asked, messages=CALL_TURN) as stream:
            built = await stream.get_final_message()
        (call,) = whole.content
        assert (call.name, call.input, whole.stop_reason) == ("track_order", {"number": 4711}, "tool_use")
        assert built.content[0].input == call.input
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "delivered"}
        turns = [
            *CALL_TURN,
            {"role": "assistant", "content": [call.to_dict()]},
            {"role": "user", "content": [result]},
        ]
        answer = await sdk.messages.create(**asked, messages=turns)
    assert read_reference(answer.content[0].text).question == question_digest(CALL_TEXT)


async def test_a_tool_is_called_and_its_result_is_answered_in_the_form_of_responses(backend: Simulator) -> None:
    async with openai_at(backend.url) as sdk:
        whole = await sdk.responses.create(model="m", input=CALL_TEXT, **RESPONSES_TOOLS)
        (call,) = whole.output
        assert (call.name, json.loads(call.arguments)) == ("track_order", {"number": 4711})
        items = [
            *CALL_TURN,
            call.to_dict(),
            {"type": "function_call_output", "call_id": call.call_id, "output": "delivered"},
        ]
        answer = await sdk.responses.create(model="m", input=items, **RESPONSES_TOOLS)
    assert read_reference(answer.output_text).question == question_digest(CALL_TEXT)


class Verdict(BaseModel):
    answer: str
    score: int


async def test_an_answer_fits_the_schema_that_was_asked_for(backend: Simulator, local: AsyncOllama) -> None:
    async with openai_at(backend.url) as sdk:
        chat = await sdk.chat.completions.parse(**CHAT, response_format=Verdict)
        responses = await sdk.responses.parse(**RESPONSES, text_format=Verdict)
    async with anthropic_at(backend) as sdk:
        message = await sdk.messages.parse(**MESSAGES, output_format=Verdict)
    plain = await local.chat(**CHAT, format=Verdict.model_json_schema())
    answers = [
        chat.choices[0].message.parsed,
        responses.output_parsed,
        message.parsed_output,
        Verdict.model_validate_json(plain.message.content),
    ]
    assert {read_reference(answer.answer).question for answer in answers} == {question_digest(TEXT)}


@pytest.mark.parametrize("path", ["chat", "generate"])
async def test_an_ollama_stream_builds_up_what_the_json_holds(local: AsyncOllama, path: str) -> None:
    asked = {**(CHAT if path == "chat" else GENERATE), "think": True}
    ask = getattr(local, path)
    whole = await ask(**asked)
    pieces = [piece async for piece in await ask(**asked, stream=True)]

    def said(part: Any) -> tuple[str, str]:
        inner = part.message if path == "chat" else part
        return inner.content if path == "chat" else inner.response, inner.thinking or ""

    texts = [said(piece) for piece in pieces]
    assert ("".join(text for text, _ in texts), "".join(thought for _, thought in texts)) == said(whole)
    assert said(whole)[1]
    assert pieces[-1].eval_count == whole.eval_count
    short = await ask(**asked, options={"num_predict": 3})
    assert short.done_reason == "length"
    assert len(said(short)[0].split()) == 3


async def test_the_vectors_of_a_text_are_equal_in_both_encodings_and_vendors(
    backend: Simulator, local: AsyncOllama
) -> None:
    async with openai_at(backend.url) as sdk:
        packed = await sdk.embeddings.create(model="m", input=[TEXT, "b"], dimensions=64)
        plain = await sdk.embeddings.create(model="m", input=[TEXT, "b"], dimensions=64, encoding_format="float")
        tokens = await sdk.embeddings.create(model="m", input=[[1, 2], [3]])
    other = await local.embed(model="m", input=[TEXT, "b"], dimensions=64)
    rows = [row.embedding for row in plain.data]
    assert [row.embedding for row in packed.data] == pytest.approx(np.array(rows))
    assert np.array(other.embeddings) == pytest.approx(np.array(rows))
    assert np.linalg.norm(rows[0]) == pytest.approx(1, abs=1e-6)
    assert plain.usage.prompt_tokens == other.prompt_eval_count == 6
    assert len(tokens.data) == 2 and len(tokens.data[0].embedding) == 384


async def test_azure_names_the_model_in_the_path(backend: Simulator) -> None:
    version = "2024-10-21"
    async with AsyncAzureOpenAI(azure_endpoint=backend.root, api_version=version, api_key="none") as sdk:
        chat = await sdk.chat.completions.create(model="mine", messages=TURN)
        streamed = [c async for c in await sdk.chat.completions.create(model="mine", messages=TURN, stream=True)]
        vectors = await sdk.embeddings.create(model="mine", input=TEXT)
    assert chat.model == vectors.model == streamed[0].model == "mine"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert text == chat.choices[0].message.content
    assert backend.asked[0].path == "/openai/deployments/mine/chat/completions"
    status, _, raw = await post(backend, "/openai/deployments/mine/chat/completions", {"messages": TURN})
    assert (status, json.loads(raw)["error"]["code"]) == (404, "404")


# Pace


@pytest.mark.parametrize(
    "path, body",
    [
        ("/v1/completions", COMPLETION),
        ("/v1/responses", RESPONSES),
        ("/v1/messages", MESSAGES),
        ("/api/chat", CHAT),
        ("/api/generate", GENERATE),
    ],
)
async def test_a_pace_holds_in_every_dialect(backend: Simulator, path: str, body: dict) -> None:
    clock = asyncio.get_running_loop().time
    for stream in (True, False):
        began = clock()
        await post(backend, path, {**body, "stream": stream}, "ttft=20ms, rate=1000, tokens=28")
        assert clock() - began >= 0.05, f"{stream=}"  # 20 ms and 30 tokens: never earlier, on however slow a machine


async def test_ollama_tells_the_pace_that_was_set(backend: Simulator) -> None:
    _, _, raw = await post(backend, "/api/chat", CHAT, "ttft=20ms, rate=1000")
    last = json.loads(raw.splitlines()[-1])
    assert last["prompt_eval_duration"] == 20_000_000
    assert last["eval_duration"] == last["eval_count"] * 1_000_000
    assert last["total_duration"] == last["prompt_eval_duration"] + last["eval_duration"]


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
@pytest.mark.parametrize("stream", [True, False])
async def test_loading_a_model_takes_no_time(backend: Simulator, path: str, stream: bool) -> None:
    async with asyncio.timeout(10):
        _, _, raw = await post(backend, path, {"model": "m", "stream": stream}, "ttft=30s")
    assert json.loads(raw)["done_reason"] == "load"


# Errors


MALFORMED = [
    ("/v1/chat/completions", {"messages": TURN}, "model"),
    ("/v1/chat/completions", {"model": "m", "messages": []}, "messages"),
    ("/v1/chat/completions", {"model": "m", "messages": [{"content": "no role"}]}, "messages.0.role"),
    ("/v1/chat/completions", {**CHAT, "n": 0}, "n"),
    ("/v1/chat/completions", {**CHAT, "tools": [{"function": {}}]}, "tools.0.function.name"),
    ("/v1/completions", {"model": "m"}, "prompt"),
    ("/v1/completions", {"model": "m", "prompt": []}, "prompt"),
    ("/v1/completions", {**COMPLETION, "echo": True}, "echo"),
    ("/v1/responses", {"model": "m"}, "input"),
    ("/v1/responses", {**RESPONSES, "max_output_tokens": "many"}, "max_output_tokens"),
    ("/v1/embeddings", {"model": "m", "input": ""}, "input"),
    ("/v1/embeddings", {"model": "m", "input": []}, "input"),
    ("/v1/embeddings", {"model": "m", "input": "a", "encoding_format": "hex"}, "encoding_format"),
    ("/v1/messages", CHAT, "max_tokens"),
    ("/v1/messages", {**MESSAGES, "messages": [{"role": "user"}]}, "messages.0.content"),
    ("/v1/messages/count_tokens", {"model": "m"}, "messages"),
    ("/api/chat", {"messages": TURN}, "model"),
    ("/api/generate", {"model": "m", "prompt": 5}, "prompt"),
    ("/api/embed", {"model": "m"}, "input"),
    ("/api/show", {}, "model"),
    ("/v1/chat/completions", b"{", "JSON"),
    ("/v1/messages", b"[]", "object"),
    ("/api/chat", b"\xff", "JSON"),
    ("/v1/responses", b'{"model": "m", "input": "\\ud800"}', "JSON"),
]


def message_of(path: str, raw: bytes) -> str:
    """The message of an error in the form of the path's vendor, each field of which is looked at."""
    body = json.loads(raw)
    if path.startswith("/api/"):
        assert set(body) == {"error"}
        return body["error"]
    if path.startswith("/v1/messages"):
        assert set(body) == {"type", "error", "request_id"} and body["type"] == "error"
        checked(anthropic_types.ErrorResponse, raw)
        return body["error"]["message"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]["message"]


@pytest.mark.parametrize("path, body, named", MALFORMED)
async def test_a_malformed_body_is_refused_with_the_name_of_the_field(
    backend: Simulator, path: str, body: Any, named: str
) -> None:
    status, kind, raw = await post(backend, path, body)
    assert (status, kind) == (400, "application/json")
    assert named in message_of(path, raw)


async def test_an_unknown_model_raises_what_the_vendor_makes_its_sdk_raise(closed_list: Simulator) -> None:
    async with openai_at(closed_list.url) as sdk:
        assert (await sdk.chat.completions.create(model="gpt-5", messages=TURN)).choices
        for ask in (sdk.chat.completions.create(**CHAT), sdk.responses.create(**RESPONSES)):
            with pytest.raises(openai.NotFoundError) as caught:
                await ask
            assert caught.value.code == "model_not_found"
    async with anthropic_at(closed_list) as sdk:
        with pytest.raises(anthropic.NotFoundError) as caught:
            await sdk.messages.create(**MESSAGES)
        assert caught.value.body["error"]["message"] == "model: m"
    async with AsyncOllama(host=closed_list.root) as sdk:
        with pytest.raises(ollama.ResponseError, match="model 'm' not found") as missing:
            await sdk.chat(**CHAT)
    assert missing.value.status_code == 404
    status, _, raw = await post(closed_list, "/openai/deployments/m/embeddings?api-version=1", {"input": TEXT})
    assert (status, json.loads(raw)["error"]["code"]) == (404, "DeploymentNotFound")


async def test_an_ordered_error_event_raises_in_every_sdk(backend: Simulator) -> None:
    order = {"X-Simulate": "error-event"}
    async with openai_at(backend.url) as sdk:
        for ask in (sdk.chat.completions.create(**CHAT, stream=True, extra_headers=order),
                    sdk.completions.create(**COMPLETION, stream=True, extra_headers=order),
                    sdk.responses.create(**RESPONSES, stream=True, extra_headers=order)):  # fmt: skip
            with pytest.raises(openai.APIError, match="as ordered"):
                async for event in await ask:
                    if event.to_dict().get("type") == "error":  # Responses has it as an event among the others
                        raise openai.APIError(event.message, None, body=None)
    async with anthropic_at(backend) as sdk:
        with pytest.raises(anthropic.APIStatusError, match="as ordered"):
            async for _ in await sdk.messages.create(**MESSAGES, stream=True, extra_headers=order):
                pass
    async with AsyncOllama(host=backend.root, headers=order) as sdk:
        with pytest.raises(ollama.ResponseError, match="as ordered"):
            async for _ in await sdk.chat(**CHAT, stream=True):
                pass


@pytest.mark.parametrize(
    "path, body, last",
    [
        ("/v1/chat/completions", CHAT, b"[DONE]"),
        ("/v1/responses", RESPONSES, b'"response.completed"'),
        ("/v1/messages", MESSAGES, b'"message_stop"'),
        ("/api/chat", CHAT, b'"done":true'),
    ],
)
async def test_an_order_leaves_the_last_event_out(backend: Simulator, path: str, body: dict, last: bytes) -> None:
    body = {**body, "stream": True}
    whole, cut = [(await post(backend, path, body, orders))[2] for orders in ("", "no-done")]
    assert whole.count(last) == 1 and last not in cut
