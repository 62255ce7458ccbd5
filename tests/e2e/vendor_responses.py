"""OpenAI's Responses: the object and the typed events, numbered and padded as the vendor sends them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from json import dumps
from typing import Any

from openai import BaseModel
from openai.types import responses as kinds
from openai.types.responses.response import IncompleteDetails
from openai.types.responses.response_reasoning_item import Summary
from openai.types.responses.response_reasoning_summary_part_added_event import Part as AddedPart
from openai.types.responses.response_reasoning_summary_part_done_event import Part as DonePart
from openai.types.responses.response_text_delta_event import Logprob
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails, ResponseUsage

from tests.e2e.answers import Asked, Said, Tool
from tests.e2e.vendor_openai import in_pieces, sse, text_of

_PADDING = "aZ9kQ2mX7vB4"


def read(body: Mapping[str, Any]) -> Asked:
    given = body.get("input") or ""
    items: list[dict[str, Any]] = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
    users = [text_of(item["content"]) for item in items if item.get("role") == "user"]
    form = (body.get("text") or {}).get("format") or {}
    schema = form.get("schema") if form.get("type") == "json_schema" else None
    return Asked(
        question=users[-1] if users else "",
        tools=[
            Tool(tool["name"], tool.get("parameters") or {})
            for tool in body.get("tools") or ()
            if tool["type"] == "function"
        ],
        has_tool_result=any(item.get("type") == "function_call_output" for item in items),
        schema={} if form.get("type") == "json_object" else schema,
        max_tokens=body.get("max_output_tokens"),
        thinks=bool(body.get("reasoning")),
    )


def whole(body: Mapping[str, Any], said: Said, number: int) -> kinds.Response:
    return _response(body, said, number, output=_items(body, said, number), done=True)


def stream(body: Mapping[str, Any], said: Said, number: int) -> Iterator[bytes]:
    """Every event that the vendor sends, in its order."""
    sequence = iter(range(1 << 30))
    pads = (body.get("stream_options") or {}).get("include_obfuscation", True)

    def event(kind: type[BaseModel], name: str, /, **fields: Any) -> bytes:
        made = kind(type=name, sequence_number=next(sequence), **fields)
        tree = made.model_dump(mode="json", exclude_unset=True, by_alias=True)
        if pads and name.endswith(".delta"):
            tree["obfuscation"] = _PADDING[: 1 + len(str(tree)) % 12]
        return sse(dumps(tree, ensure_ascii=False), name)

    empty = _response(body, said, number, output=[], done=False)
    yield event(kinds.ResponseCreatedEvent, "response.created", response=empty)
    yield event(kinds.ResponseInProgressEvent, "response.in_progress", response=empty)
    items = _items(body, said, number)
    for index, item in enumerate(items):
        at: dict[str, Any] = {"output_index": index}
        added = item.model_copy(update=_BEFORE[item.type])
        yield event(kinds.ResponseOutputItemAddedEvent, "response.output_item.added", item=added, **at)
        at["item_id"] = item.id
        if isinstance(item, kinds.ResponseReasoningItem):
            at["summary_index"] = 0
            name = "response.reasoning_summary"
            yield event(
                kinds.ResponseReasoningSummaryPartAddedEvent,
                f"{name}_part.added",
                part=AddedPart(type="summary_text", text=""),
                **at,
            )
            for piece in said.thoughts:
                yield event(kinds.ResponseReasoningSummaryTextDeltaEvent, f"{name}_text.delta", delta=piece, **at)
            yield event(kinds.ResponseReasoningSummaryTextDoneEvent, f"{name}_text.done", text=said.thought, **at)
            yield event(
                kinds.ResponseReasoningSummaryPartDoneEvent,
                f"{name}_part.done",
                part=DonePart(type="summary_text", text=said.thought),
                **at,
            )
        elif isinstance(item, kinds.ResponseFunctionToolCall):
            name = "response.function_call_arguments"
            for piece in in_pieces(item.arguments):
                yield event(kinds.ResponseFunctionCallArgumentsDeltaEvent, f"{name}.delta", delta=piece, **at)
            yield event(
                kinds.ResponseFunctionCallArgumentsDoneEvent,
                f"{name}.done",
                arguments=item.arguments,
                name=item.name,  # the vendor sends it, the SDK's type does not know it yet
                **at,
            )
        else:
            at["content_index"] = 0
            part = item.content[0]
            before = part.model_copy(update={"refusal" if said.is_refusal else "text": ""})
            yield event(kinds.ResponseContentPartAddedEvent, "response.content_part.added", part=before, **at)
            for piece in said.pieces:
                if said.is_refusal:
                    yield event(kinds.ResponseRefusalDeltaEvent, "response.refusal.delta", delta=piece, **at)
                    continue
                logprobs = [Logprob(token=piece, logprob=-0.125, top_logprobs=[])] if _wants_logprobs(body) else []
                yield event(
                    kinds.ResponseTextDeltaEvent, "response.output_text.delta", delta=piece, logprobs=logprobs, **at
                )
            if said.is_refusal:
                yield event(kinds.ResponseRefusalDoneEvent, "response.refusal.done", refusal=said.text, **at)
            else:
                yield event(kinds.ResponseTextDoneEvent, "response.output_text.done", text=said.text, logprobs=[], **at)
            yield event(kinds.ResponseContentPartDoneEvent, "response.content_part.done", part=part, **at)
        yield event(kinds.ResponseOutputItemDoneEvent, "response.output_item.done", item=item, output_index=index)
    final = _response(body, said, number, output=items, done=True)
    if said.is_cut:
        yield event(kinds.ResponseIncompleteEvent, "response.incomplete", response=final)
    else:
        yield event(kinds.ResponseCompletedEvent, "response.completed", response=final)


# What an item still lacks when it is announced.
_BEFORE: Mapping[str, Mapping[str, Any]] = {
    "reasoning": {"summary": []},
    "function_call": {"arguments": "", "status": "in_progress"},
    "message": {"content": [], "status": "in_progress"},
}


def _items(body: Mapping[str, Any], said: Said, number: int) -> list[Any]:
    items: list[Any] = []
    if said.thoughts:
        secret = {}
        if "reasoning.encrypted_content" in (body.get("include") or ()):
            secret = {"encrypted_content": f"gAAAAAB{number:06d}"}
        summary = [Summary(type="summary_text", text=said.thought)]
        items.append(kinds.ResponseReasoningItem(id=f"rs_{number:06d}", type="reasoning", summary=summary, **secret))
    if said.call:
        items.append(
            kinds.ResponseFunctionToolCall(
                id=f"fc_{number:06d}",
                type="function_call",
                status="completed",
                arguments=dumps(said.arguments),
                call_id=f"call_{number:06d}",
                name=said.call.name,
            )
        )
        return items
    part: Any
    if said.is_refusal:
        part = kinds.ResponseOutputRefusal(type="refusal", refusal=said.text)
    else:
        part = kinds.ResponseOutputText(type="output_text", annotations=[], logprobs=[], text=said.text)
    items.append(
        kinds.ResponseOutputMessage(
            id=f"msg_{number:06d}",
            type="message",
            status="incomplete" if said.is_cut else "completed",
            content=[part],
            role="assistant",
        )
    )
    return items


def _response(body: Mapping[str, Any], said: Said, number: int, *, output: Sequence[Any], done: bool) -> kinds.Response:
    """The object as it is at the beginning and at the end: the request's settings come back with their defaults."""
    asked = len(dumps(body.get("input"))) // 4
    usage = ResponseUsage(
        input_tokens=asked,
        input_tokens_details=InputTokensDetails(cached_tokens=0, cache_write_tokens=0),
        output_tokens=said.tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=len(said.thoughts)),
        total_tokens=asked + said.tokens,
    )
    now = int(time.time())
    ends: dict[str, Any] = {"status": "in_progress"}
    if done:
        ends = {"status": "incomplete"} if said.is_cut else {"status": "completed", "completed_at": now}
    return kinds.Response(
        id=f"resp_{number:06d}",
        object="response",
        created_at=now,
        background=body.get("background", False),
        error=None,
        incomplete_details=IncompleteDetails(reason="max_output_tokens") if done and said.is_cut else None,
        instructions=body.get("instructions"),
        max_output_tokens=body.get("max_output_tokens"),
        model=body["model"],
        output=list(output),
        parallel_tool_calls=body.get("parallel_tool_calls", True),
        previous_response_id=body.get("previous_response_id"),
        reasoning={"effort": None, "summary": None, **(body.get("reasoning") or {})},
        service_tier="default" if done else "auto",
        store=body.get("store", True),
        temperature=body.get("temperature", 1.0),
        text={"format": {"type": "text"}, "verbosity": "medium", **(body.get("text") or {})},
        tool_choice=body.get("tool_choice", "auto"),
        tools=body.get("tools") or [],
        top_logprobs=body.get("top_logprobs", 0),
        top_p=body.get("top_p", 1.0),
        truncation=body.get("truncation", "disabled"),
        usage=usage if done else None,
        user=body.get("user"),
        metadata=body.get("metadata") or {},
        **ends,
    )


def _wants_logprobs(body: Mapping[str, Any]) -> bool:
    return "message.output_text.logprobs" in (body.get("include") or ())
