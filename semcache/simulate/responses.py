"""The form of OpenAI's Responses: output items, and a stream of typed, numbered events that builds them up.

Nothing is kept: `store` and `previous_response_id` are repeated in the answer and have no other effect.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import orjson
from pydantic import Field

from semcache.simulate.answers import Choice, Json, Reply, call_id, sse, text_of
from semcache.simulate.forms import Request, Timed

# Fields that the answer repeats, with what the API fills in where the request says nothing.
_REPEATED: Json = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "safety_identifier": None,
    "store": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponsesRequest(Request):
    input: str | list[dict[str, Any]] = Field(min_length=1)
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    include: list[str] | None = None
    store: bool | None = None


def read_responses(body: Json) -> Sequence[Json]:
    rest = {name: value for name, value in body.items() if name not in ("input", "instructions", "max_output_tokens")}
    given = body["input"]
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    messages = [message for item in items for message in _messages(item)]
    if body.get("instructions"):
        messages.insert(0, {"role": "system", "content": body["instructions"]})
    if body.get("max_output_tokens"):
        rest["max_tokens"] = body["max_output_tokens"]
    if "tools" in rest:
        rest["tools"] = [_chat_tool(tool) for tool in body["tools"] or []]
    choice = body.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "function":
        rest["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    wanted = (body.get("text") or {}).get("format") or {}
    if wanted.get("type") in ("json_object", "json_schema"):
        rest["response_format"] = {"type": wanted["type"], "json_schema": {"schema": wanted.get("schema")}}
    return [{**rest, "messages": messages}]


def thinks(body: Json) -> bool:
    return bool(body.get("reasoning")) and body["reasoning"].get("effort") != "none"


def _messages(item: Json) -> list[Json]:
    """An input item as messages of a chat."""
    match item.get("type", "message"):
        case "message":
            return [{"role": item.get("role", "user"), "content": item.get("content")}]
        case "function_call_output":
            return [{"role": "tool", "tool_call_id": item.get("call_id"), "content": text_of(item.get("output"))}]
        case _:  # calls, reasoning and the like are the model's own part of the conversation
            return [{"role": "assistant", "item": item}]


def _chat_tool(tool: Json) -> Json:
    if tool.get("type") != "function" or not isinstance(tool.get("name"), str):
        return tool  # one of the vendor's own: nothing here calls it
    return {"type": "function", "function": {"name": tool["name"], "parameters": tool.get("parameters")}}


def responses_json(reply: Reply, body: Json) -> bytes:
    return orjson.dumps(_response(reply, body, _final_status(reply), _items(reply, body)))


def responses_events(reply: Reply, body: Json) -> Iterator[Timed]:
    numbers = itertools.count()

    def event(kind: str, **fields: object) -> bytes:
        return sse({"type": kind, "sequence_number": next(numbers), **fields}, kind)

    yield 0, event("response.created", response=_response(reply, body, "in_progress", []))
    yield 0, event("response.in_progress", response=_response(reply, body, "in_progress", []))
    choice = reply.choices[0]
    items = _items(reply, body)
    written = 0
    for output_index, item in enumerate(items):
        place = {"item_id": item["id"], "output_index": output_index}
        yield written, event("response.output_item.added", output_index=output_index, item=_emptied(item))
        if item["type"] == "reasoning":
            if not item["summary"]:  # thought about, and not told
                written += len(choice.thoughts)
            for index, part in enumerate(item["summary"]):
                place["summary_index"] = index
                yield written, event("response.reasoning_summary_part.added", **place, part={**part, "text": ""})
                for token in choice.thoughts:
                    written += 1
                    yield written, event("response.reasoning_summary_text.delta", **place, delta=token)
                yield written, event("response.reasoning_summary_text.done", **place, text=part["text"])
                yield written, event("response.reasoning_summary_part.done", **place, part=part)
        elif item["type"] == "function_call":
            for token in choice.tokens:
                written += 1
                yield written, event("response.function_call_arguments.delta", **place, delta=token)
            yield written, event("response.function_call_arguments.done", **place, arguments=item["arguments"])
        else:
            part = item["content"][0]
            field = "refusal" if choice.refusal else "text"
            kind = "response.refusal" if choice.refusal else "response.output_text"
            extra: Json = {} if choice.refusal else {"logprobs": []}
            place["content_index"] = 0
            yield written, event("response.content_part.added", **place, part={**part, field: ""})
            for token in choice.tokens:
                written += 1
                yield written, event(f"{kind}.delta", **place, delta=token, **extra)
            yield written, event(f"{kind}.done", **place, **{field: part[field]}, **extra)
            yield written, event("response.content_part.done", **place, part=part)
        yield written, event("response.output_item.done", output_index=output_index, item=item)
    status = _final_status(reply)
    yield written, event(f"response.{status}", response=_response(reply, body, status, items))


def _final_status(reply: Reply) -> str:
    return "incomplete" if reply.choices[0].finish in _INCOMPLETE else "completed"


def _items(reply: Reply, body: Json) -> list[Json]:
    choice = reply.choices[0]
    spoken = _call(choice, reply) if choice.tool else _message(choice, reply)
    return [*([_reasoning(choice, reply, body)] if choice.reasoning else []), spoken]


def _message(choice: Choice, reply: Reply) -> Json:
    part: Json = {"type": "output_text", "annotations": [], "logprobs": [], "text": choice.text}
    if choice.refusal:
        part = {"type": "refusal", "refusal": choice.text}
    return {
        "id": f"msg_{reply.id}",
        "type": "message",
        "status": _final_status(reply),
        "content": [part],
        "role": "assistant",
    }


def _call(choice: Choice, reply: Reply) -> Json:
    assert choice.tool is not None
    return {
        "id": f"fc_{reply.id}",
        "type": "function_call",
        "status": "completed",
        "arguments": choice.tool[1],
        "call_id": call_id(reply.id),
        "name": choice.tool[0],
    }


def _reasoning(choice: Choice, reply: Reply, body: Json) -> Json:
    """Told as a summary when one was asked for, and carried in a sealed form when that was."""
    asked = body.get("reasoning") or {}
    told = asked.get("summary") or asked.get("generate_summary") or not asked
    item: Json = {"id": f"rs_{reply.id}", "type": "reasoning"}
    item["summary"] = [{"type": "summary_text", "text": choice.reasoning}] if told else []
    if "reasoning.encrypted_content" in (body.get("include") or []):
        sealed = hashlib.blake2b(f"{reply.id}\0{choice.reasoning}".encode()).digest()
        item["encrypted_content"] = base64.b64encode(sealed).decode()
    return item


def _emptied(item: Json) -> Json:
    """An item as it is announced, before anything is in it."""
    match item["type"]:
        case "reasoning":
            return {**item, "summary": []}
        case "function_call":
            return {**item, "status": "in_progress", "arguments": ""}
        case _:
            return {**item, "status": "in_progress", "content": []}


def _response(reply: Reply, body: Json, status: str, output: Sequence[Json]) -> Json:
    asked = body.get("reasoning") or {}
    reason = _INCOMPLETE.get(reply.choices[0].finish) if status == "incomplete" else None
    conversation = body.get("conversation")
    response: Json = {
        "id": f"resp_{reply.id}",
        "object": "response",
        "created_at": reply.created,
        "status": status,
        "completed_at": int(reply.created + reply.duration_s) if status == "completed" else None,
        "error": None,
        "incomplete_details": {"reason": reason} if reason else None,
        "model": reply.model,
        "output": output,
        "reasoning": {"effort": asked.get("effort"), "summary": asked.get("summary")},
        "service_tier": "default",
        "text": {"format": {"type": "text"}, "verbosity": "medium", **(body.get("text") or {})},
        "tools": [_told_tool(tool) for tool in body.get("tools") or []],
        "usage": None if status == "in_progress" else _usage(reply),
    }
    for name, usual in _REPEATED.items():
        response[name] = usual if body.get(name) is None else body[name]
    if conversation is not None:
        response["conversation"] = {"id": conversation} if isinstance(conversation, str) else conversation
    return response


def _told_tool(tool: Json) -> Json:
    return {"strict": True, "parameters": None, **tool} if tool.get("type") == "function" else tool


def _usage(reply: Reply) -> Json:
    return {
        "input_tokens": reply.prompt_tokens,
        "input_tokens_details": {"cached_tokens": reply.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": reply.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reply.reasoning_tokens},
        "total_tokens": reply.prompt_tokens + reply.completion_tokens,
    }
