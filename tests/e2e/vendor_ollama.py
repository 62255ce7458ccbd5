"""Ollama's native API, built from the SDK's own types: one JSON object, or one a line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from json import dumps
from typing import Any

import ollama

from tests.e2e.answers import Asked, Said, Tool
from tests.e2e.vendor_openai import DIMENSIONS, inputs_of, vector


def read(body: Mapping[str, Any]) -> Asked:
    messages = body.get("messages") or [{"role": "user", "content": body.get("prompt", "")}]
    users = [message["content"] for message in messages if message["role"] == "user"]
    form = body.get("format")
    return Asked(
        question=users[-1] if users else "",
        tools=[
            Tool(tool["function"]["name"], tool["function"].get("parameters") or {}) for tool in body.get("tools") or ()
        ],
        has_tool_result=messages[-1]["role"] == "tool",
        schema={} if form == "json" else form or None,
        max_tokens=(body.get("options") or {}).get("num_predict"),
        thinks=bool(body.get("think")),
    )


def chat(body: Mapping[str, Any], said: Said) -> dict[str, Any]:
    message = ollama.Message(role="assistant", content=said.text)
    if said.thoughts:
        message.thinking = said.thought
    if said.call:
        message.tool_calls = [_call(said)]
    return _plain(ollama.ChatResponse(message=message, **_head(body), **_end(body, said)))


def chat_stream(body: Mapping[str, Any], said: Said) -> Iterator[bytes]:
    def line(message: ollama.Message, **end: Any) -> bytes:
        made = ollama.ChatResponse(message=message, **_head(body), **(end or {"done": False}))
        return dumps(_plain(made), ensure_ascii=False).encode() + b"\n"

    for piece in said.thoughts:
        yield line(ollama.Message(role="assistant", content="", thinking=piece))
    for piece in said.pieces:
        yield line(ollama.Message(role="assistant", content=piece))
    if said.call:
        yield line(ollama.Message(role="assistant", content="", tool_calls=[_call(said)]))
    yield line(ollama.Message(role="assistant", content=""), **_end(body, said))


def generate(body: Mapping[str, Any], said: Said) -> dict[str, Any]:
    thinking = {"thinking": said.thought} if said.thoughts else {}
    return _plain(
        ollama.GenerateResponse(response=said.text, context=[1, 2, 3], **thinking, **_head(body), **_end(body, said))
    )


def generate_stream(body: Mapping[str, Any], said: Said) -> Iterator[bytes]:
    def line(text: str, **more: Any) -> bytes:
        made = ollama.GenerateResponse(response=text, **_head(body), **more)
        return dumps(_plain(made), ensure_ascii=False).encode() + b"\n"

    for piece in said.thoughts:
        yield line("", thinking=piece, done=False)
    for piece in said.pieces:
        yield line(piece, done=False)
    yield line("", context=[1, 2, 3], **_end(body, said))


def embed(body: Mapping[str, Any], number: int) -> dict[str, Any]:
    inputs = inputs_of(body)
    return _plain(
        ollama.EmbedResponse(
            model=body["model"],
            embeddings=[vector(text, number, body.get("dimensions") or DIMENSIONS) for text in inputs],
            total_duration=14143917,
            load_duration=1019500,
            prompt_eval_count=sum(max(1, len(text) // 4) for text in inputs),
        )
    )


def tags() -> dict[str, Any]:
    details = ollama.ListResponse.Model(model="llama3.2", modified_at=datetime.now(UTC), digest="a80c4f17acd5", size=1)
    return {"models": [{"name": "llama3.2", **details.model_dump(mode="json", exclude_none=True)}]}


def error(message: str) -> dict[str, Any]:
    return {"error": message}


def _call(said: Said) -> ollama.Message.ToolCall:
    assert said.call is not None
    function = ollama.Message.ToolCall.Function(name=said.call.name, arguments=said.arguments or {})
    return ollama.Message.ToolCall(function=function)


def _head(body: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": body["model"], "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z")}


def _end(body: Mapping[str, Any], said: Said) -> dict[str, Any]:
    return {
        "done": True,
        "done_reason": "length" if said.is_cut else "stop",
        "total_duration": 4883583458,
        "load_duration": 1334875,
        "prompt_eval_count": len(dumps(body.get("messages") or body.get("prompt"))) // 4,
        "prompt_eval_duration": 342546000,
        "eval_count": said.tokens,
        "eval_duration": 4535599000,
    }


def _plain(made: Any) -> dict[str, Any]:
    return dict(made.model_dump(mode="json", exclude_unset=True, exclude_none=True))
