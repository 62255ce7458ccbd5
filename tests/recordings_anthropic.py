"""Anthropic's messages as the vendor streams them: data for tests, each with what may become of it.

The body that belongs to a stream is what the vendor's own SDK makes of its bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import anthropic
import httpx2

from semcache.types import Unstorable

Json = dict[str, Any]

QUESTION = "How long does a parcel take?"
USAGE: Json = {
    "input_tokens": 21,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 1024,
    "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
    "output_tokens": 1,
    "service_tier": "standard",
}
TOTALS: Json = {
    "input_tokens": 21,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 1024,
    "output_tokens": 15,
}


@dataclass(frozen=True)
class Recording:
    name: str
    events: tuple[Json, ...]
    why_not: Unstorable | None = None  # None: it may be stored
    store_tools: bool = False
    is_beta: bool = False  # told by the beta endpoint only
    has_body: bool = True  # False: nobody can say what body would belong to it
    ascii: bool = False  # every other character as an escape
    padding: str = ""  # the vendor's: spaces before the last brace

    @property
    def request(self) -> Json:
        return {"model": "claude", "max_tokens": 99, "messages": [{"role": "user", "content": QUESTION}]}

    @cached_property
    def stream(self) -> bytes:
        return b"".join(framed(event, self.ascii, self.padding) for event in self.events)

    @cached_property
    def body(self) -> bytes:
        return dumps(added_up(self.stream, self.is_beta), self.ascii)


def dumps(value: Any, ascii_only: bool = False) -> bytes:
    return json.dumps(value, ensure_ascii=ascii_only, separators=(",", ":")).encode()


def framed(event: Json, ascii_only: bool = False, padding: str = "") -> bytes:
    data = dumps(event, ascii_only)
    return b"event: %b\ndata: %b%b}\n\n" % (event["type"].encode(), data[:-1], padding.encode())


def added_up(stream: bytes, is_beta: bool = False) -> Json:
    """What the vendor's SDK makes of a stream's bytes."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=stream, headers={"content-type": "text/event-stream"})

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    with anthropic.Anthropic(api_key="k", base_url="http://vendor.example", http_client=http, max_retries=0) as client:
        messages: Any = client.beta.messages if is_beta else client.messages
        asked = [{"role": "user", "content": QUESTION}]
        with messages.stream(model="claude", max_tokens=99, messages=asked) as reader:
            made = reader.get_final_message().to_dict(mode="json", warnings=False)
    return {name: value for name, value in made.items() if name != "parsed_output"}


def _block(index: int, start: Json, *deltas: Json) -> Iterable[Json]:
    yield {"type": "content_block_start", "index": index, "content_block": start}
    for delta in deltas:
        yield {"type": "content_block_delta", "index": index, "delta": delta}
    yield {"type": "content_block_stop", "index": index}


def text(*pieces: str, **more: Any) -> tuple[Json, ...]:
    return ({"type": "text", "text": "", **more}, *({"type": "text_delta", "text": piece} for piece in pieces))


def thought(*pieces: str, signature: str = "EqQBCgIYAhIM/+==") -> tuple[Json, ...]:
    return (
        {"type": "thinking", "thinking": "", "signature": ""},
        *({"type": "thinking_delta", "thinking": piece} for piece in pieces),
        {"type": "signature_delta", "signature": signature},
    )


def call(*pieces: str, kind: str = "tool_use", number: int = 1, **more: Any) -> tuple[Json, ...]:
    start = {"type": kind, "id": f"toolu_{number}", "name": "track", "input": {}, **more}
    return (start, *({"type": "input_json_delta", "partial_json": piece} for piece in pieces))


def citation(start: int, end: int) -> Json:
    return {
        "type": "citations_delta",
        "citation": {
            "type": "char_location",
            "cited_text": "Parcels take four days.",
            "document_index": 0,
            "document_title": None,
            "start_char_index": start,
            "end_char_index": end,
        },
    }


def message(
    *blocks: tuple[Json, ...],
    stop: Any = "end_turn",
    usage: Json = USAGE,
    totals: Json = TOTALS,
    start: Json | None = None,
    delta: Json | None = None,
    end: Json | None = None,
) -> tuple[Json, ...]:
    """The events of one message. `start`, `delta` and `end`: more members of the message, its delta, and beside it."""
    head = {
        "model": "claude-2026",
        "id": "msg_01Vendor",
        "type": "message",
        "role": "assistant",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
        **(start or {}),
    }
    how = {"stop_reason": stop, "stop_sequence": None, **(delta or {})}
    return (
        {"type": "message_start", "message": head},
        *(event for index, block in enumerate(blocks) for event in _block(index, *block)),
        {"type": "message_delta", "delta": how, "usage": totals, **(end or {})},
        {"type": "message_stop"},
    )


def _after(event: str, extra: Json, events: tuple[Json, ...]) -> tuple[Json, ...]:
    """The events, with one more after the first of a type."""
    place = [each["type"] for each in events].index(event) + 1
    return (*events[:place], extra, *events[place:])


SAID = text("Four", " days", ".")
ARGUMENTS = ("", '{"parcel": ', '"A-1\\u00e9", "days": 4.0', ', "where": [{"city": "Oslo"}]}')
SEARCHED = ({"type": "web_search_tool_result", "tool_use_id": "toolu_1", "content": []},)
RAN = {
    "type": "code_execution_tool_result",
    "tool_use_id": "toolu_1",
    "content": {"type": "code_execution_result", "stdout": "4", "stderr": "", "return_code": 0, "content": []},
}
FALLBACK = {
    "type": "fallback",
    "from": {"model": "claude-2026"},
    "to": {"model": "claude-2025"},
    "trigger": {"type": "refusal", "category": None},
}

RECORDINGS = [
    Recording("text", message(SAID)),
    Recording("a ping, as the vendor sends it", _after("content_block_start", {"type": "ping"}, message(SAID))),
    Recording("padding", message(SAID), padding=" " * 11),
    Recording("two texts", message(text("Four days."), text("To Oslo ", "five."))),
    Recording("thoughts", message(thought("Parcels,", " hm."), SAID)),
    Recording("thoughts withheld", message(thought(), SAID)),
    Recording("thoughts redacted", message(({"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3p"},), SAID)),
    Recording("thoughts between texts", message(SAID, thought("So."), SAID)),
    Recording("citations", message((*text("Four", " days.", citations=[]), citation(0, 23), citation(30, 53)))),
    Recording(
        "citations before the text",
        message(text("I read: "), (text()[0], citation(0, 23), {"type": "text_delta", "text": "four."})),
    ),
    Recording("a call", message(SAID, call(*ARGUMENTS), stop="tool_use"), store_tools=True),
    Recording("a call, not allowed", message(SAID, call(*ARGUMENTS), stop="tool_use"), Unstorable.TOOL_CALLS),
    Recording(
        "calls without arguments",
        message(call("", caller={"type": "direct"}), call(number=2), stop="tool_use"),
        store_tools=True,
    ),
    Recording("thoughts and a call", message(thought("Look."), call(*ARGUMENTS), stop="tool_use"), store_tools=True),
    Recording(
        "a call that is not JSON",
        message(call('{"parcel": ', "oops"), stop="tool_use"),
        Unstorable.MALFORMED,
        store_tools=True,
        has_body=False,
    ),
    Recording(
        "a call that is no object",
        message(call("[1]"), stop="tool_use"),
        Unstorable.MALFORMED,
        store_tools=True,
        has_body=False,
    ),
    Recording("a call announced and not made", message(SAID, stop="tool_use"), Unstorable.FINISH, store_tools=True),
    Recording("other scripts", message(text("四天 🚚", "\u2764\ufe0f é ", '\u2028 \\ " \n\t'))),
    Recording("other scripts as escapes", message(text("四天 🚚", "\u2764\ufe0f é ", '\u2028 \\ " \n\t')), ascii=True),
    Recording("empty pieces", message(text("", "Four", "", " days.", ""))),
    Recording("a text and an empty one", message(SAID, text())),
    Recording("an object in words", message(text('{"days"', ': 4, "express"', ": false}"))),
    Recording("a stop sequence", message(SAID, stop="stop_sequence", delta={"stop_sequence": "\n\nCustomer:"})),
    Recording(
        "figures in detail",
        message(
            SAID,
            usage={**USAGE, "inference_geo": "eu", "cache_creation": None},
            totals={
                **TOTALS,
                "output_tokens_details": {"thinking_tokens": 9},
                "server_tool_use": {"web_search_requests": 0, "web_fetch_requests": 0},
            },
        ),
    ),
    Recording(
        "few figures", message(SAID, usage={"input_tokens": 21, "output_tokens": 1}, totals={"output_tokens": 15})
    ),
    Recording(
        "figures put right", message(SAID, totals={**TOTALS, "input_tokens": 2095, "cache_read_input_tokens": None})
    ),
    Recording(
        "how it stopped, twice",
        _after(
            "content_block_stop",
            {
                "type": "message_delta",
                "delta": {"stop_reason": None, "stop_sequence": None},
                "usage": {"output_tokens": 7},
            },
            message(SAID),
        ),
    ),
    Recording(
        "context management",
        message(SAID, end={"context_management": {"applied_edits": [{"type": "clear_thinking_20251015"}]}}),
        is_beta=True,
    ),
    Recording(
        "figures of each iteration",
        message(SAID, totals={**TOTALS, "iterations": [{"type": "message", "input_tokens": 21, "output_tokens": 15}]}),
        is_beta=True,
    ),
    Recording("another model took over", message(text("I"), (FALLBACK,), SAID), is_beta=True),
    Recording(
        "input changed",
        message(
            SAID, start={"input_transformations": []}, end={"input_transformations": [{"type": "thinking_dropped"}]}
        ),
        is_beta=True,
    ),
    Recording("diagnostics", message(SAID, start={"diagnostics": {"cache_miss_reason": None}})),
    Recording(
        "unknown members",
        tuple(
            {**event, "new": [1, 2.50]}
            for event in message(text("Four", " days.", mood="calm"), start={"region": {"name": "eu"}})
        ),
    ),
    Recording(
        "an unknown event",
        _after("content_block_stop", {"type": "content_note", "note": {"index": 0, "code": "x"}}, message(SAID)),
    ),
    Recording("an unknown block", message(({"type": "drawing", "strokes": [1, 2]},), SAID)),
    Recording(
        "an unknown delta",
        message((*SAID, {"type": "mood_delta", "mood": "calm"})),
        has_body=False,
    ),
    Recording("cut for length", message(SAID, stop="max_tokens"), Unstorable.FINISH),
    Recording(
        "cut for length in a call", message(call('{"par'), stop="max_tokens"), Unstorable.TOOL_CALLS, has_body=False
    ),
    Recording(
        "a refusal",
        message(
            SAID,
            stop="refusal",
            delta={"stop_details": {"type": "refusal", "category": "cyber", "explanation": "No."}},
        ),
        Unstorable.FINISH,
    ),
    Recording("a refusal at once", message(stop="refusal"), Unstorable.FINISH),
    Recording("the context window's end", message(SAID, stop="model_context_window_exceeded"), Unstorable.FINISH),
    Recording("a new stop reason", message(SAID, stop="tired"), Unstorable.FINISH),
    Recording(
        "a pause in the vendor's search",
        message(call('{"query":', '"Oslo"}', kind="server_tool_use"), stop="pause_turn"),
        Unstorable.TOOL_CALLS,
        store_tools=True,
    ),
    Recording(
        "searched by the vendor",
        message(call('{"query":"Oslo"}', kind="server_tool_use"), SEARCHED, SAID),
        Unstorable.TOOL_CALLS,
        store_tools=True,
    ),
    Recording(
        "a container of the vendor's",
        message(
            call("{}", kind="server_tool_use"),
            (RAN,),
            SAID,
            delta={"container": {"id": "container_1", "expires_at": "2026-08-01T00:00:00Z"}},
        ),
        Unstorable.TOOL_CALLS,
        store_tools=True,
    ),
    Recording(
        "an MCP server called by the vendor",
        message(call("{}", kind="mcp_tool_use", server_name="post"), SAID),
        Unstorable.TOOL_CALLS,
        store_tools=True,
        is_beta=True,
    ),
    Recording(
        "a summary instead of an answer",
        message(
            ({"type": "compaction", "content": None}, {"type": "compaction_delta", "content": "They spoke."}),
            stop="compaction",
        ),
        Unstorable.FINISH,
        is_beta=True,
    ),
    Recording("white space", message(text(" \n", "\t")), Unstorable.EMPTY),
    Recording("nothing", message(), Unstorable.EMPTY),
    Recording("thoughts alone", message(thought("Hm.")), Unstorable.EMPTY),
]
