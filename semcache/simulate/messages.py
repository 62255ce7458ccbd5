"""The form of Anthropic's Messages: content blocks, and a stream of named events that builds them up."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field

from semcache.simulate.answers import Choice, Json, Reply, count_prompt, sse, text_of
from semcache.simulate.forms import Request, Timed

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_TOOL_CHOICES = {"any": "required", "none": "none", "auto": "auto"}


class Turn(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    role: str
    content: str | list[dict[str, Any]]


class AnthropicTool(BaseModel):
    name: str
    input_schema: dict[str, Any] | None = None  # the vendor's own tools have none


class CountRequest(Request):
    messages: list[Turn] = Field(min_length=1)
    system: str | list[dict[str, Any]] | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None


class MessagesRequest(CountRequest):
    max_tokens: int = Field(ge=1)


def read_messages(body: Json) -> Sequence[Json]:
    rest = {name: value for name, value in body.items() if name != "system"}
    messages = [message for turn in body["messages"] for message in _messages(turn)]
    if body.get("system"):
        messages.insert(0, {"role": "system", "content": text_of(body["system"])})
    if "tools" in rest:
        rest["tools"] = [_chat_tool(tool) for tool in body["tools"] or []]
    if choice := body.get("tool_choice"):
        named = {"type": "function", "function": {"name": choice.get("name")}}
        rest["tool_choice"] = named if choice.get("type") == "tool" else _TOOL_CHOICES.get(choice.get("type"), "auto")
    wanted = (body.get("output_config") or {}).get("format") or {}
    if wanted.get("type") == "json_schema":
        rest["response_format"] = {"type": "json_schema", "json_schema": {"schema": wanted.get("schema")}}
    return [{**rest, "messages": messages}]


def thinks(body: Json) -> bool:
    return (body.get("thinking") or {}).get("type") in ("enabled", "adaptive")


def count_tokens(body: Json) -> bytes:
    return orjson.dumps({"input_tokens": count_prompt(read_messages(body)[0])})


def _messages(turn: Json) -> list[Json]:
    """A turn as messages of a chat: what tools gave stands in the user's turn here, and beside it there."""
    content = turn["content"]
    if turn["role"] != "user" or isinstance(content, str):
        return [turn]
    given = [block for block in content if block.get("type") == "tool_result"]
    said = [block for block in content if block.get("type") != "tool_result"]
    results = [
        {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text_of(block.get("content"))}
        for block in given
    ]
    return [*results, *([{**turn, "content": said}] if said or not given else [])]


def _chat_tool(tool: Json) -> Json:
    if tool.get("input_schema") is None:
        return tool
    return {"type": "function", "function": {"name": tool["name"], "parameters": tool["input_schema"]}}


def messages_json(reply: Reply, body: Json) -> bytes:
    message = _message(reply, whole=True)
    message["content"] = _blocks(reply, body)
    message["stop_reason"] = _stop_reason(reply.choices[0])
    return orjson.dumps(message)


def messages_events(reply: Reply, body: Json) -> Iterator[Timed]:
    choice = reply.choices[0]

    def event(kind: str, **fields: object) -> bytes:
        return sse({"type": kind, **fields}, kind)

    yield 0, event("message_start", message=_message(reply, whole=False))
    written = 0
    for index, block in enumerate(_blocks(reply, body)):
        yield written, event("content_block_start", index=index, content_block=_emptied(block))
        if index == 0:
            yield written, event("ping")
        is_thought = block["type"] == "thinking"
        for token in choice.thoughts if is_thought else choice.tokens:
            written += 1
            if delta := _delta(block, token):
                yield written, event("content_block_delta", index=index, delta=delta)
        if is_thought:
            delta = {"type": "signature_delta", "signature": block["signature"]}
            yield written, event("content_block_delta", index=index, delta=delta)
        yield written, event("content_block_stop", index=index)
    stop = {"stop_reason": _stop_reason(choice), "stop_sequence": None}
    yield written, event("message_delta", delta=stop, usage=_usage(reply, whole=True))
    yield written, event("message_stop")


def _stop_reason(choice: Choice) -> str:
    return "refusal" if choice.refusal else _STOP_REASONS.get(choice.finish, choice.finish)


def _blocks(reply: Reply, body: Json) -> list[Json]:
    choice = reply.choices[0]
    blocks: list[Json] = []
    if choice.reasoning:
        told = (body.get("thinking") or {}).get("display") != "omitted"
        signature = base64.b64encode(hashlib.blake2b(choice.reasoning.encode(), digest_size=48).digest()).decode()
        blocks.append({"type": "thinking", "thinking": choice.reasoning if told else "", "signature": signature})
    if choice.tool:
        name, arguments = choice.tool
        blocks.append({"type": "tool_use", "id": f"toolu_{reply.id}", "name": name, "input": orjson.loads(arguments)})
    else:
        blocks.append({"type": "text", "text": choice.text})
    return blocks


def _emptied(block: Json) -> Json:
    """A block as it is announced, before anything is in it."""
    match block["type"]:
        case "thinking":
            return {**block, "thinking": "", "signature": ""}
        case "tool_use":
            return {**block, "input": {}}
        case _:
            return {**block, "text": ""}


def _delta(block: Json, token: str) -> Json | None:
    """None: a thought that is not told."""
    match block["type"]:
        case "thinking":
            return {"type": "thinking_delta", "thinking": token} if block["thinking"] else None
        case "tool_use":
            return {"type": "input_json_delta", "partial_json": token}
        case _:
            return {"type": "text_delta", "text": token}


def _message(reply: Reply, *, whole: bool) -> Json:
    """The message without its content."""
    return {
        "id": f"msg_{reply.id}",
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            **_usage(reply, whole=whole),
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
            "service_tier": "standard",
        },
    }


def _usage(reply: Reply, *, whole: bool) -> Json:
    """Of the first event of a stream, or of a whole answer."""
    usage: Json = {
        "input_tokens": reply.prompt_tokens - reply.cached_tokens,  # this vendor counts those apart
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": reply.cached_tokens,
        "output_tokens": reply.completion_tokens if whole else 1,
    }
    if whole and reply.reasoning_tokens:
        usage["output_tokens_details"] = {"thinking_tokens": reply.reasoning_tokens}
    return usage
