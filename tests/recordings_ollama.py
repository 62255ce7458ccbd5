"""Answers in Ollama's formats, each as a stream and as the body that the server sends for the same: data for tests.

The bodies are put together here by the server's rule, apart from the code under test: the last line, with the texts,
calls and log probabilities of all lines added up.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from semcache.types import Unstorable

Json = dict[str, Any]

FIGURES: Json = {
    "total_duration": 4_883_583_458,
    "load_duration": 1_334_875,
    "prompt_eval_count": 26,
    "prompt_eval_duration": 342_546_000,
    "eval_count": 5,
    "eval_duration": 4_535_599_000,
}
STOP: Json = {"done_reason": "stop", **FIGURES}


@dataclass(frozen=True)
class Recording:
    name: str
    endpoint: Literal["chat", "generate"]
    lines: tuple[Json, ...]
    why_not: Unstorable | None = None  # None: it may be stored
    store_tools: bool = False
    ascii: bool = False  # every other character as an escape

    @property
    def request(self) -> Json:
        asked: Json = {"model": "tiny", "stream": True}
        if self.endpoint == "chat":
            return {**asked, "messages": [{"role": "user", "content": "How long does a parcel take?"}]}
        return {**asked, "prompt": "How long does a parcel take?"}

    @property
    def stream(self) -> bytes:
        return b"".join(dumps(line, self.ascii) + b"\n" for line in self.lines)

    @property
    def body(self) -> bytes:
        return dumps(added_up(self.endpoint, self.lines), self.ascii)


def dumps(value: Json, ascii_only: bool = False) -> bytes:
    return json.dumps(value, ensure_ascii=ascii_only, separators=(",", ":")).encode()


def added_up(endpoint: str, lines: tuple[Json, ...] | list[Json]) -> Json:
    """What the server sends to a client who wants no stream."""

    def said(line: Json) -> Json:
        return dict(line.get("message") or {}) if endpoint == "chat" else line

    text = "content" if endpoint == "chat" else "response"
    last = said(lines[-1])
    whole = {
        "thinking": "".join(said(line).get("thinking") or "" for line in lines),
        "tool_calls": [call for line in lines for call in said(line).get("tool_calls") or []],
    }
    message = {**last, text: "".join(said(line).get(text) or "" for line in lines)}
    message |= {key: value for key, value in whole.items() if value}
    probabilities = [token for line in lines for token in line.get("logprobs") or []]
    body = {**lines[-1], "message": message} if endpoint == "chat" else message
    return {**body, **({"logprobs": probabilities} if probabilities else {})}


def _time(number: int) -> str:
    return f"2026-03-04T05:06:07.{number:09d}Z"


def _chat(*messages: Json, end: Json = STOP, more: Json | None = None, last: Json | None = None) -> tuple[Json, ...]:
    head = {"model": "tiny", **(more or {})}
    lines = [
        {**head, "created_at": _time(number), **_line(message), "done": False}
        for number, message in enumerate(messages)
    ]
    final = {"role": "assistant", "content": "", **(last or {})}
    return (*lines, {**head, "created_at": _time(len(lines)), "message": final, "done": True, **end})


def _line(message: Json) -> Json:
    message = dict(message)
    beside = {"logprobs": message.pop("logprobs")} if "logprobs" in message else {}
    return {"message": {"role": "assistant", "content": "", **message}, **beside}


def _generate(*said: Json, end: Json = STOP, more: Json | None = None) -> tuple[Json, ...]:
    head = {"model": "tiny", **(more or {})}
    lines = [
        {**head, "created_at": _time(number), "response": "", **one, "done": False} for number, one in enumerate(said)
    ]
    return (*lines, {**head, "created_at": _time(len(lines)), "response": "", "done": True, **end})


def _texts(*pieces: str, key: str = "content") -> list[Json]:
    return [{key: piece} for piece in pieces]


def _token(text: str, **more: Any) -> Json:
    return {"token": text, "logprob": -0.25, "bytes": list(text.encode()), **more}


def _told(key: str, *pieces: str) -> list[Json]:
    return [{key: piece, "logprobs": [_token(piece)]} for piece in pieces]


def _call(name: str, arguments: Json, **more: Any) -> Json:
    return {"function": {"name": name, "arguments": arguments}, **more}


CALLS = [_call("find_parcel", {"number": 12, "city": "Ålesund"}), _call("now", {}, id="call_x1")]
TOP = [_token("Four"), _token(" days")]
NO_PROMPT_COUNT = {key: value for key, value in STOP.items() if key != "prompt_eval_count"}

RECORDINGS = [
    Recording("chat: text", "chat", _chat(*_texts("Four", " days", "."))),
    Recording("chat: text in the last line", "chat", _chat(*_texts("Four"), last={"content": " days."})),
    Recording("chat: one line only", "chat", _chat(last={"content": "Four days."})),
    Recording("chat: empty pieces", "chat", _chat(*_texts("", "Four", "", " days."))),
    Recording("chat: no figures", "chat", _chat(*_texts("Four days."), end={"done_reason": "stop"})),
    Recording("chat: the prompt was in memory", "chat", _chat(*_texts("Four days."), end=NO_PROMPT_COUNT)),
    Recording("chat: other scripts", "chat", _chat(*_texts("Vier Tage – 四天 🚚", "👩🏽‍🚀 ", "\U0001f9ff"))),
    Recording("chat: escapes", "chat", _chat(*_texts("Vier – 四天 🚚", '"\\\n\t\u0001'), end=STOP), ascii=True),
    Recording("chat: line ends of Unicode", "chat", _chat(*_texts("a\u2028b\u2029c\x85d")), ascii=True),
    Recording("chat: thoughts", "chat", _chat({"thinking": "Hm, "}, {"thinking": "so."}, *_texts("Four", " days."))),
    Recording("chat: JSON asked for", "chat", _chat(*_texts('{"days"', ":4", "}"))),
    Recording("chat: log probabilities", "chat", _chat(*_told("content", "Four", " days", "."))),
    Recording(
        "chat: log probabilities with others and marks",
        "chat",
        _chat(
            {"logprobs": [_token("<think>", top_logprobs=TOP)]}, *_told("thinking", "Hm"), *_told("content", "Four.")
        ),
    ),
    Recording(
        "chat: of a remote model", "chat", _chat(*_texts("Four."), more={"remote_model": "big", "remote_host": "x"})
    ),
    Recording("chat: members nobody knows", "chat", _chat(*_texts("Four."), end={**STOP, "seal": {"a": [1.0, None]}})),
    Recording("chat: tool calls", "chat", _chat({"tool_calls": CALLS}), store_tools=True),
    Recording(
        "chat: thoughts, text and calls one by one",
        "chat",
        _chat({"thinking": "Look."}, *_texts("I look."), {"tool_calls": CALLS[:1]}, {"tool_calls": CALLS[1:]}),
        store_tools=True,
    ),
    Recording("chat: tool calls where they are not kept", "chat", _chat({"tool_calls": CALLS}), Unstorable.TOOL_CALLS),
    Recording(
        "chat: a call without a name",
        "chat",
        _chat({"tool_calls": [_call("", {})]}),
        Unstorable.MALFORMED,
        store_tools=True,
    ),
    Recording(
        "chat: arguments in text",
        "chat",
        _chat({"tool_calls": [{"function": {"name": "now", "arguments": "{}"}}]}),
        Unstorable.MALFORMED,
        store_tools=True,
    ),
    Recording("chat: length", "chat", _chat(*_texts("Four"), end={**STOP, "done_reason": "length"}), Unstorable.FINISH),
    Recording("chat: no reason", "chat", _chat(*_texts("Four"), end=FIGURES), Unstorable.FINISH),
    Recording("chat: a new reason", "chat", _chat(*_texts("Four"), end={"done_reason": "pause"}), Unstorable.FINISH),
    Recording("chat: loaded", "chat", _chat(end={"done_reason": "load"}), Unstorable.FINISH),
    Recording("chat: nothing said", "chat", _chat(*_texts("")), Unstorable.EMPTY),
    Recording("chat: white space", "chat", _chat(*_texts(" ", "\n")), Unstorable.EMPTY),
    Recording("chat: thoughts alone", "chat", _chat({"thinking": "Hm."}), Unstorable.EMPTY),
    Recording("generate: text", "generate", _generate(*_texts("Four", " days.", key="response"))),
    Recording(
        "generate: token state",
        "generate",
        _generate(*_texts("Four", " days.", key="response"), end={**STOP, "context": [1, 29871, 3]}),
    ),
    Recording(
        "generate: thoughts", "generate", _generate({"thinking": "Hm, "}, {"thinking": "so."}, {"response": "Four."})
    ),
    Recording("generate: log probabilities", "generate", _generate(*_told("response", "Four", " days"))),
    Recording("generate: one line only", "generate", _generate(end={**STOP, "response": "Four days."})),
    Recording("generate: other scripts", "generate", _generate(*_texts("四天 ", "🚚\u2764\ufe0f", key="response"))),
    Recording(
        "generate: a call", "generate", _generate(end={**STOP, "response": "", "tool_calls": CALLS}), store_tools=True
    ),
    Recording(
        "generate: length",
        "generate",
        _generate(*_texts("Four", key="response"), end={**STOP, "done_reason": "length"}),
        Unstorable.FINISH,
    ),
    Recording("generate: unloaded", "generate", _generate(end={"done_reason": "unload"}), Unstorable.FINISH),
    Recording(
        "generate: an image",
        "generate",
        _generate({"completed": 1, "total": 2}, end={"done_reason": "stop", "image": "aGk="}),
        Unstorable.EMPTY,
    ),
]
