"""Anthropic's messages, built from the SDK's own types: text, thinking with its signature, tool use, and the events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from json import dumps
from typing import Any

from anthropic import types as kinds
from anthropic.types.raw_message_delta_event import Delta
from pydantic import BaseModel

from tests.e2e.answers import Asked, Said, Tool
from tests.e2e.vendor_openai import in_pieces, sse, text_of

_ERRORS = {  # as the vendor's page on errors has them
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def read(body: Mapping[str, Any]) -> Asked:
    users = [message for message in body["messages"] if message["role"] == "user"]
    texts = [text for text in (text_of(_texts(message["content"])) for message in users) if text]
    form = (body.get("output_config") or {}).get("format") or body.get("output_format") or {}
    return Asked(
        question=texts[-1] if texts else "",
        tools=[Tool(tool["name"], tool["input_schema"]) for tool in body.get("tools") or () if "input_schema" in tool],
        has_tool_result=any(_is_result(part) for part in _parts(users[-1]["content"])),
        schema=form.get("schema"),
        max_tokens=body.get("max_tokens"),
        thinks=(body.get("thinking") or {}).get("type") in ("enabled", "adaptive"),
    )


def _parts(content: Any) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _texts(content: Any) -> list[Any]:
    return [part for part in _parts(content) if part["type"] == "text"]


def _is_result(part: Mapping[str, Any]) -> bool:
    return part["type"] == "tool_result"


def whole(body: Mapping[str, Any], said: Said, number: int) -> kinds.Message:
    return kinds.Message(
        id=f"msg_{number:06d}",
        type="message",
        role="assistant",
        model=body["model"],
        content=_blocks(said, number),
        stop_reason=_stop(said),
        stop_sequence=None,
        usage=_usage(body, said.tokens),
    )


def stream(body: Mapping[str, Any], said: Said, number: int) -> Iterator[bytes]:
    """Every event that the vendor sends, in its order; the ping comes where it first comes from the vendor."""

    def event(made: BaseModel) -> bytes:
        tree = made.model_dump(mode="json", exclude_unset=True)
        return sse(dumps(tree, ensure_ascii=False), tree["type"])

    before = whole(body, said, number).model_copy(update={"content": [], "stop_reason": None, "usage": _usage(body, 1)})
    yield event(kinds.RawMessageStartEvent(type="message_start", message=before))
    for index, block in enumerate(_blocks(said, number)):
        empty = block.model_copy(update={name: type(getattr(block, name))() for name in _FILLED[block.type]})
        yield event(kinds.RawContentBlockStartEvent(type="content_block_start", index=index, content_block=empty))
        if index == 0:
            yield sse('{"type": "ping"}', "ping")
        for delta in _deltas(said, block):
            yield event(kinds.RawContentBlockDeltaEvent(type="content_block_delta", index=index, delta=delta))
        yield event(kinds.RawContentBlockStopEvent(type="content_block_stop", index=index))
    yield event(
        kinds.RawMessageDeltaEvent(
            type="message_delta",
            delta=Delta(stop_reason=_stop(said), stop_sequence=None),
            usage=kinds.MessageDeltaUsage(
                input_tokens=_usage(body, 0).input_tokens,
                cache_creation_input_tokens=0,
                cache_read_input_tokens=0,
                output_tokens=said.tokens,
            ),
        )
    )
    yield event(kinds.RawMessageStopEvent(type="message_stop"))


# What of a block arrives in its deltas.
_FILLED = {"thinking": ("thinking", "signature"), "text": ("text",), "tool_use": ("input",)}


def _deltas(said: Said, block: Any) -> Iterator[Any]:
    if isinstance(block, kinds.ThinkingBlock):
        for piece in said.thoughts:
            yield kinds.ThinkingDelta(type="thinking_delta", thinking=piece)
        yield kinds.SignatureDelta(type="signature_delta", signature=block.signature)
    elif isinstance(block, kinds.ToolUseBlock):
        yield kinds.InputJSONDelta(type="input_json_delta", partial_json="")
        for piece in in_pieces(dumps(block.input)):
            yield kinds.InputJSONDelta(type="input_json_delta", partial_json=piece)
    else:
        for piece in in_pieces(block.text, 9):
            yield kinds.TextDelta(type="text_delta", text=piece)


def _blocks(said: Said, number: int) -> list[Any]:
    blocks: list[Any] = []
    if said.thoughts:
        signature = f"EqQBCgIYAhIM{number:06d}/+=="
        blocks.append(kinds.ThinkingBlock(type="thinking", thinking=said.thought, signature=signature))
    if said.call:
        blocks.append(kinds.TextBlock(type="text", text=f"Let me look that up, call {number}."))
        blocks.append(
            kinds.ToolUseBlock(type="tool_use", id=f"toolu_{number:06d}", name=said.call.name, input=said.arguments)  # type: ignore[arg-type]
        )
    else:
        blocks.append(kinds.TextBlock(type="text", text=said.text))
    return blocks


def _stop(said: Said) -> Any:
    if said.is_refusal:
        return "refusal"
    return "tool_use" if said.call else "max_tokens" if said.is_cut else "end_turn"


def _usage(body: Mapping[str, Any], tokens: int) -> kinds.Usage:
    return kinds.Usage(
        input_tokens=count(body).input_tokens,
        cache_creation_input_tokens=0,
        cache_read_input_tokens=0,
        cache_creation=kinds.CacheCreation(ephemeral_5m_input_tokens=0, ephemeral_1h_input_tokens=0),
        output_tokens=tokens,
        service_tier="standard",
    )


def count(body: Mapping[str, Any]) -> kinds.MessageTokensCount:
    return kinds.MessageTokensCount(input_tokens=len(dumps([body.get("system"), body["messages"]])) // 4)


def error(status: int, message: str, number: int) -> dict[str, Any]:
    kind = _ERRORS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": f"req_{number:06d}"}
