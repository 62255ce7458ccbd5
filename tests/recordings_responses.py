"""Answers of OpenAI's Responses, each as a stream and as the body that the vendor sends for the same: data for tests.

Streams are written out event by event as the vendor sends them, apart from the code under test; a test holds every one
against the official SDK's types.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from semcache.types import Unstorable

Json = dict[str, Any]

USAGE: Json = {
    "input_tokens": 11,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 6,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 17,
}
PLAIN_USAGE: Json = {"input_tokens": 11, "output_tokens": 6, "total_tokens": 17}

RESPONSE: Json = {
    "id": "resp_00af",
    "object": "response",
    "created_at": 1_790_000_001,
    "status": "completed",
    "background": False,
    "completed_at": 1_790_000_003,
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "max_output_tokens": None,
    "model": "tiny-2026",
    "output": [],
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "prompt_cache_retention": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 0.98,
    "truncation": "disabled",
    "usage": USAGE,
    "user": None,
    "metadata": {},
}
# What a smaller server sends: no more than the SDK's types demand.
SPARE: Json = {
    "id": "resp_7",
    "object": "response",
    "created_at": 1_790_000_001.0,
    "status": "completed",
    "model": "tiny",
    "output": [],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
}


@dataclass(frozen=True)
class Recording:
    name: str
    items: tuple[
        tuple[Json, tuple[Json, ...]], ...
    ]  # each as it is in the end, and the events from its announcement on
    why_not: Unstorable | None = None  # None: it may be stored
    store_tools: bool = False
    response: Json = field(default_factory=lambda: RESPONSE)
    padding: bool = False
    ascii: bool = False  # every other character as an escape
    named: bool = True  # with `event:` lines
    done: bool = False  # with [DONE] after the end
    asked: Json = field(default_factory=dict)  # more members of the request
    conforms: bool = True  # to the SDK's types, which demand more than the SDK itself does

    @property
    def storable(self) -> bool:
        return self.why_not is None

    @property
    def request(self) -> Json:
        return {"model": "tiny", "input": "How long does a parcel take?", **self.asked}

    @property
    def body_value(self) -> Json:
        return {**self.response, "output": [item for item, _ in self.items]}

    @property
    def body(self) -> bytes:
        return dumps(self.body_value, self.ascii)

    @property
    def events(self) -> list[Json]:
        body = self.body_value
        unfinished = {**body, "status": "in_progress", "output": []}
        unfinished |= {k: None for k in ("usage", "completed_at", "incomplete_details") if k in body}
        told: list[Json] = [
            {"type": "response.created", "response": unfinished},
            {"type": "response.in_progress", "response": unfinished},
        ]
        for index, (item, events) in enumerate(self.items):
            told += [{**event, "output_index": index} for event in events]
            told.append({"type": "response.output_item.done", "output_index": index, "item": item})
        told.append({"type": f"response.{body['status']}", "response": body})
        numbered = [{**event, "sequence_number": number} for number, event in enumerate(told)]
        if self.padding:
            return [{**e, "obfuscation": "qZ7" * (e["sequence_number"] % 4)} if "delta" in e else e for e in numbered]
        return numbered

    @property
    def stream(self) -> bytes:
        return sse(self.events, ascii_only=self.ascii, named=self.named) + (b"data: [DONE]\n\n" if self.done else b"")


def dumps(value: Any, ascii_only: bool = False) -> bytes:
    return json.dumps(value, ensure_ascii=ascii_only, separators=(",", ":")).encode()


def sse(events: Iterable[Json], *, ascii_only: bool = False, named: bool = True) -> bytes:
    framed = b""
    for event in events:
        framed += b"event: %b\n" % event["type"].encode() if named else b""
        framed += b"data: %b\n\n" % dumps(event, ascii_only)
    return framed


Item = tuple[Json, tuple[Json, ...]]


def _token(text: str, logprob: float = -0.25) -> Json:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []}


def message(*parts: tuple[Json, list[Json]], id: str = "msg_01", **more: Any) -> Item:
    """A message of parts, each with the events between its own announcement and its end."""
    item: Json = {"id": id, "type": "message", "status": "completed", "role": "assistant", **more}
    told: list[Json] = [added({**item, "content": [], "status": "in_progress"})]
    for index, (part, events) in enumerate(parts):
        at = {"item_id": id, "content_index": index}
        empty = {k: "" if k in ("text", "refusal") else [] for k in part if k != "type"}
        told.append({"type": "response.content_part.added", **at, "part": {**part, **empty}})
        told += [{**event, **at} for event in events]
        told.append({"type": "response.content_part.done", **at, "part": part})
    return {**item, "content": [part for part, _ in parts]}, tuple(told)


def added(item: Json) -> Json:
    return {"type": "response.output_item.added", "item": item}


def text(*pieces: str, probs: bool = False, annotations: Iterable[Json] = (), **more: Any) -> tuple[Json, list[Json]]:
    logprobs = [_token(piece) for piece in pieces] if probs else []
    part = {"type": "output_text", "annotations": list(annotations), "logprobs": logprobs, "text": "".join(pieces)}
    told: list[Json] = [
        {"type": "response.output_text.delta", "delta": piece, "logprobs": logprobs[number : number + 1]}
        for number, piece in enumerate(pieces)
    ]
    told += [
        {"type": "response.output_text.annotation.added", "annotation_index": number, "annotation": annotation}
        for number, annotation in enumerate(part["annotations"])
    ]
    told.append({"type": "response.output_text.done", "text": part["text"], "logprobs": logprobs})
    return {**part, **more}, told


def bare_text(*pieces: str) -> tuple[Json, list[Json]]:
    """As smaller servers write it, without log probabilities in the part."""
    part, told = text(*pieces)
    return {"type": "output_text", "text": part["text"], "annotations": []}, told


def refusal(*pieces: str) -> tuple[Json, list[Json]]:
    told: list[Json] = [{"type": "response.refusal.delta", "delta": piece} for piece in pieces]
    told.append({"type": "response.refusal.done", "refusal": "".join(pieces)})
    return {"type": "refusal", "refusal": "".join(pieces)}, told


def thoughts(*summaries: tuple[str, ...], secret: str | None = None, id: str = "rs_01") -> Item:
    parts = [{"type": "summary_text", "text": "".join(pieces)} for pieces in summaries]
    item: Json = {"id": id, "type": "reasoning", "summary": parts}
    told: list[Json] = []
    for index, pieces in enumerate(summaries):
        at = {"item_id": id, "summary_index": index}
        name = "response.reasoning_summary"
        told.append({"type": f"{name}_part.added", **at, "part": {"type": "summary_text", "text": ""}})
        told += [{"type": f"{name}_text.delta", **at, "delta": piece} for piece in pieces]
        told.append({"type": f"{name}_text.done", **at, "text": "".join(pieces)})
        told.append({"type": f"{name}_part.done", **at, "part": parts[index]})
    begun = {**item, "summary": []}
    if secret is not None:
        item["encrypted_content"], begun["encrypted_content"] = secret, secret[:3]
    return item, (added(begun), *told)


def open_thoughts(*pieces: str, id: str = "rs_02") -> Item:
    """As servers of open models show them."""
    part = {"type": "reasoning_text", "text": "".join(pieces)}
    item = {"id": id, "type": "reasoning", "status": "completed", "summary": [], "content": [part]}
    at = {"item_id": id, "content_index": 0}
    told = [
        added({**item, "content": [], "status": "in_progress"}),
        {"type": "response.content_part.added", **at, "part": {"type": "reasoning_text", "text": ""}},
        *({"type": "response.reasoning_text.delta", **at, "delta": piece} for piece in pieces),
        {"type": "response.reasoning_text.done", **at, "text": part["text"]},
        {"type": "response.content_part.done", **at, "part": part},
    ]
    return item, tuple(told)


def call(*pieces: str, id: str = "fc_01", name: str = "find_parcel", **more: Any) -> Item:
    item: Json = {
        "id": id,
        "type": "function_call",
        "status": "completed",
        "arguments": "".join(pieces),
        "call_id": f"call_{id}",
        "name": name,
        **more,
    }
    told = [
        added({**item, "arguments": "", "status": item["status"] and "in_progress"}),
        *({"type": "response.function_call_arguments.delta", "item_id": id, "delta": piece} for piece in pieces),
        {"type": "response.function_call_arguments.done", "item_id": id, "arguments": item["arguments"], "name": name},
    ]
    return item, tuple(told)


def custom_call(*pieces: str, id: str = "ctc_01") -> Item:
    item = {"id": id, "type": "custom_tool_call", "call_id": "call_x", "name": "run", "input": "".join(pieces)}
    told = [
        added({**item, "input": ""}),
        *({"type": "response.custom_tool_call_input.delta", "item_id": id, "delta": piece} for piece in pieces),
        {"type": "response.custom_tool_call_input.done", "item_id": id, "input": item["input"]},
    ]
    return item, tuple(told)


def search(id: str = "ws_01") -> Item:
    action = {"type": "search", "query": "parcel"}
    item = {"id": id, "type": "web_search_call", "status": "completed", "action": action}
    name = "response.web_search_call"
    told = [
        added({**item, "status": "in_progress"}),
        *({"type": f"{name}.{step}", "item_id": id} for step in ("in_progress", "searching", "completed")),
    ]
    return item, tuple(told)


def _without(names: str) -> Json:
    return {key: value for key, value in RESPONSE.items() if key not in names.split()}


CITED = [
    {"type": "url_citation", "start_index": 0, "end_index": 4, "url": "https://post.example/", "title": "Post"},
    {"type": "file_citation", "file_id": "file_1", "filename": "a.txt", "index": 3},
]
SCHEMA = {"format": {"type": "json_schema", "name": "Days", "strict": True, "schema": {"type": "object"}}}
FOUR = text("Four", " days", ".")
TOOLS = [{"type": "function", "name": "find_parcel", "parameters": {"type": "object"}, "strict": False}]
CUT = {"status": "incomplete", "completed_at": None, "incomplete_details": {"reason": "max_output_tokens"}}
ARGUMENTS = ('{"number":', " 12", ', "city": "Ålesund"}')

RECORDINGS = [
    Recording("text", (message(FOUR),)),
    Recording("padding", (message(FOUR),), padding=True),
    Recording("[DONE] after the end", (message(FOUR),), done=True),
    Recording("a smaller server", (message(bare_text("Four", " days.")),), response=SPARE, named=False),
    Recording("usage without details", (message(FOUR),), response={**RESPONSE, "usage": PLAIN_USAGE}, conforms=False),
    Recording("no usage", (message(FOUR),), response={**RESPONSE, "usage": None}),
    Recording("no echo", (message(FOUR),), response=_without("metadata user safety_identifier prompt_cache_key")),
    Recording(
        "echo",
        (message(FOUR),),
        response={**RESPONSE, "metadata": {"trace": "t-1"}, "user": "ann", "prompt_cache_key": "faq"},
        asked={"metadata": {"trace": "t-1"}, "user": "ann", "prompt_cache_key": "faq"},
    ),
    Recording("two parts", (message(text("Four", " days."), text(" Or", " five.")),)),
    Recording(
        "two messages",
        (message(text("Let me see."), id="msg_1", phase="commentary"), message(FOUR, id="msg_2", phase="final_answer")),
    ),
    Recording("empty pieces", (message(text("", "Four", "", " days.")),)),
    Recording("white space", (message(text("  Four", "\n\n\tdays ", " ")),)),
    Recording("other scripts", (message(text("Vier Tage – 四天 🚚", "👩🏽‍🚀 ", "\u2028")),)),
    Recording("escapes", (message(text("四天 🚚", '"\\\n\u0001')),), ascii=True),
    Recording("annotations", (message(text("Four", " days.", annotations=CITED)),)),
    Recording("log probabilities", (message(text("Four", " days", ".", probs=True)),)),
    Recording("thoughts in summary", (thoughts(("Hm, ", "parcels."), ("So",)), message(FOUR))),
    Recording("thoughts unseen", (thoughts(), message(FOUR))),
    Recording(
        "thoughts in secret", (thoughts(("Hm.",), secret="gAAAAABsecret"), message(FOUR)), asked={"store": False}
    ),
    Recording("thoughts in the open", (open_thoughts("Hm, ", "so."), message(FOUR))),
    Recording(
        "JSON asked for",
        (message(text('{"days"', ":4", "}")),),
        response={**RESPONSE, "text": SCHEMA},
        asked={"text": SCHEMA},
    ),
    Recording("members nobody knows", (message(FOUR, seal=[1.50, None]),), response={**RESPONSE, "new": {"a": 1e-05}}),
    Recording(
        "a function call",
        (call(*ARGUMENTS),),
        store_tools=True,
        response={**RESPONSE, "tools": TOOLS},
        asked={"tools": TOOLS},
    ),
    Recording(
        "thoughts, text and two calls",
        (thoughts(("Look.",)), message(text("I look.")), call("{}", id="fc_1"), call("{", "}", id="fc_2")),
        store_tools=True,
        response={**RESPONSE, "tools": TOOLS},
        asked={"tools": TOOLS},
    ),
    Recording("a call without status", (call("{}", status=None),), store_tools=True),
    Recording("a custom call", (custom_call("print(", "4)"),), store_tools=True),
    Recording("a call where none is kept", (call(*ARGUMENTS),), Unstorable.TOOL_CALLS),
    Recording("arguments that do not parse", (call('{"number":'),), Unstorable.MALFORMED, store_tools=True),
    Recording("arguments that are no object", (call("[1]"),), Unstorable.MALFORMED, store_tools=True),
    Recording("a search", (search(), message(FOUR)), Unstorable.TOOL_CALLS, store_tools=True),
    Recording("a refusal", (message(refusal("I ", "cannot.")),), Unstorable.FINISH),
    Recording("a refusal after text", (message(FOUR, refusal("No.")),), Unstorable.FINISH),
    Recording("cut", (message(FOUR, status="incomplete"),), Unstorable.FINISH, response={**RESPONSE, **CUT}),
    Recording("an item that did not end", (message(FOUR, status="in_progress"),), Unstorable.FINISH),
    Recording("nothing", (), Unstorable.EMPTY),
    Recording("thoughts alone", (thoughts(("Hm.",)),), Unstorable.EMPTY),
    Recording("blank", (message(text(" ", "\n")),), Unstorable.EMPTY),
    Recording("no content", (message(),), Unstorable.EMPTY),
]
