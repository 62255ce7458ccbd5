"""Answers in the format of chat completions, as streams and as bodies, of OpenAI and of those who speak its dialect.

Data for tests. What the vendor's SDK makes of a stream is worked out by the SDK itself, in the tests.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from semcache.types import Form, Unstorable

Json = dict[str, Any]

HEAD: Json = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "tiny-2026"}
USAGE: Json = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
DETAILED: Json = {
    **USAGE,
    "prompt_tokens_details": {"cached_tokens": 8, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 2, "accepted_prediction_tokens": 0},
}
SIGNED: Json = {"service_tier": "default", "system_fingerprint": "fp_44709d6fcb"}
QUESTION: Json = {"role": "user", "content": "How long does a parcel take?"}


@dataclass(frozen=True)
class Recording:
    name: str
    said: tuple[Json, ...] | Json  # the chunks of a stream, or a body
    asked: tuple[tuple[str, Any], ...] = ()  # members of the request
    why_not: Unstorable | None = None  # None: it may be stored
    store_tools: bool = False
    ascii: bool = False  # every other character as an escape

    @property
    def form(self) -> Form:
        return Form.JSON if isinstance(self.said, dict) else Form.STREAM

    @property
    def request(self) -> Json:
        asked: Json = {"model": "tiny", "messages": [QUESTION], **dict(self.asked)}
        return asked if self.form is Form.JSON else {**asked, "stream": True}

    @property
    def chunks(self) -> list[Json]:
        assert not isinstance(self.said, dict)
        return list(self.said)

    @property
    def reply(self) -> bytes:
        """As it comes from the vendor."""
        if isinstance(self.said, dict):
            return self._dumps(self.said)
        return b"".join(b"data: %b\n\n" % self._dumps(chunk) for chunk in self.said) + b"data: [DONE]\n\n"

    def _dumps(self, value: Json) -> bytes:
        return json.dumps(value, ensure_ascii=self.ascii, separators=(",", ":")).encode()


def chunk(
    delta: Json | None, finish: str | None = None, index: int = 0, choice: Json | None = None, **more: Any
) -> Json:
    one = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish, **(choice or {})}
    return {**HEAD, "choices": [one], **more}


def on_each(chunks: Sequence[Json], **more: Any) -> tuple[Json, ...]:
    return tuple({**one, **more} for one in chunks)


def completion(message: Json, choice: Json | None = None, **more: Any) -> Json:
    one = {"index": 0, "message": {"role": "assistant", **message}, "logprobs": None, "finish_reason": "stop"}
    body = {**HEAD, **SIGNED, "object": "chat.completion", "choices": [{**one, **(choice or {})}], "usage": DETAILED}
    return {**body, **more}


def token(text: str, logprob: float = -0.25) -> Json:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []}


def probs(*tokens: Json, name: str = "content") -> Json:
    return {"logprobs": {"content": None, "refusal": None, name: list(tokens)}}


def call(index: int | None, arguments: str, *named: str) -> Json:
    """A piece of a tool call: with its id and name, or with more of its arguments."""
    own: Json = {} if index is None else {"index": index}
    if not named:
        return {**own, "function": {"arguments": arguments}}
    return {**own, "id": named[0], "type": "function", "function": {"name": named[1], "arguments": arguments}}


def calls(*pieces: Json) -> Json:
    return chunk({"tool_calls": list(pieces)})


TOOLS = (("tools", [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("f", "g")]),)
BEGIN = chunk({"role": "assistant", "content": "", "refusal": None})
SAID = (BEGIN, chunk({"content": "Four "}), chunk({"content": "days."}))
END = chunk({}, "stop")
TEXT = (*SAID, END)
USAGE_CHUNK: Json = {**HEAD, "choices": [], "usage": USAGE}
CALLS_END = chunk({}, "tool_calls")
NO_HEAD: Json = {"id": "", "object": "", "created": 0, "model": "", "choices": []}  # Azure's reports on a prompt
SAFE = {"hate": {"filtered": False, "severity": "safe"}}
CITED = {
    "type": "url_citation",
    "url_citation": {"start_index": 0, "end_index": 4, "title": "Rates", "url": "https://post.example"},
}

STREAMS = [
    Recording("text", TEXT),
    Recording("usage chunk", (*TEXT, USAGE_CHUNK)),
    Recording("usage null before, with details", (*on_each(TEXT, usage=None), {**USAGE_CHUNK, "usage": DETAILED})),
    Recording("usage with the end", (*SAID, {**END, "usage": USAGE})),
    Recording("usage on the way", (*on_each(TEXT, usage={**USAGE, "total_tokens": 1}), USAGE_CHUNK)),
    Recording("tier and fingerprint", (*on_each(TEXT, **SIGNED), {**USAGE_CHUNK, **SIGNED})),
    Recording("padding", on_each(TEXT, obfuscation="xYz")),
    Recording("all in one chunk", (chunk({"role": "assistant", "content": "Four days."}, "stop"),)),
    Recording("empty pieces", (BEGIN, chunk({"content": ""}), chunk({"content": "Four"}), chunk({"content": ""}), END)),
    Recording("no deltas but texts", (chunk({"content": "Four "}), chunk({"content": "days."}, "stop"))),
    Recording(
        "members of null",
        (
            chunk({"role": "assistant", "content": None, "refusal": None, "tool_calls": None, "function_call": None}),
            chunk({"role": None, "content": "Four", "reasoning_content": None, "audio": None, "tool_calls": None}),
            chunk({"content": None}, "stop"),
        ),
    ),
    Recording("role in every chunk", (*(chunk({"role": "assistant", "content": c}) for c in "ab"), END)),
    Recording("other scripts", (BEGIN, *(chunk({"content": c}) for c in ('é 😀 \u2028\x85 \\ " \n\t', "👩🏽‍🚀")), END)),
    Recording("characters as escapes", (BEGIN, chunk({"content": "四天 🚚 \x00\x1f\u2029"}), END), ascii=True),
    Recording("JSON asked for", (BEGIN, *(chunk({"content": piece}) for piece in ('{"days', '":', "4}")), END)),
    Recording("log probabilities", (
        chunk({"role": "assistant", "content": ""}, choice={"logprobs": {"content": [], "refusal": None}}),
        chunk({"content": "Four"}, choice=probs({**token("Four"), "top_logprobs": [token("Five", -3)]})),
        chunk({"content": " days"}, choice=probs(token(" days", -1e-05))),
        END,
    ), (("logprobs", True), ("top_logprobs", 1))),
    Recording("two choices in turns", (
        chunk({"role": "assistant", "content": "a"}),
        chunk({"role": "assistant", "content": "b"}, index=1),
        chunk({"content": "A"}),
        chunk({"content": "B"}, "stop", index=1),
        END,
    ), (("n", 2),)),
    Recording("two choices in one chunk", (
        {**HEAD, "choices": [{"index": i, "delta": {"role": "assistant", "content": "ab"[i]}} for i in range(2)]},
        {**HEAD, "choices": [{"index": i, "delta": {}, "finish_reason": "stop"} for i in range(2)]},
    ), (("n", 2),)),
    Recording("thoughts as reasoning_content", (
        chunk({"role": "assistant", "content": None, "reasoning_content": "Hm, "}),
        chunk({"content": None, "reasoning_content": "so."}),
        chunk({"content": "Four days.", "reasoning_content": None}),
        END,
    )),
    Recording("thoughts as reasoning, with details", (
        chunk({"role": "assistant", "content": "", "reasoning": "Hm, ",
               "reasoning_details": [{"type": "reasoning.text", "text": "Hm, ", "index": 0, "format": None}]},
              choice={"native_finish_reason": None}, provider="Post"),
        chunk({"content": "", "reasoning": "so.",
               "reasoning_details": [{"type": "reasoning.text", "text": "so.", "index": 0, "signature": "c2Vh"}]},
              choice={"native_finish_reason": None}, provider="Post"),
        chunk({"content": "Four days."}, choice={"native_finish_reason": None}, provider="Post"),
        chunk({"content": ""}, "stop", choice={"native_finish_reason": "end"}, provider="Post"),
    )),
    Recording("annotations", (BEGIN, chunk({"content": "Four"}), chunk({"annotations": [CITED]}), END)),
    Recording("Azure's reports", (
        {**NO_HEAD, "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": SAFE}]},
        *(chunk({"content": c}, choice={"content_filter_results": SAFE}) for c in ("Four ", "days.")),
        chunk({}, "stop", choice={"content_filter_results": {}}),
    )),
    Recording("Azure's late reports", (
        *TEXT,
        {**NO_HEAD, "choices": [{"index": 0, "finish_reason": None, "content_filter_offsets": {"start_offset": 0}}]},
    )),
    Recording("members nobody knows", (
        {**chunk({"role": "assistant", "content": "Four", "seal": {"a": "x", "b": [1.50]}}), "top": {"a": [None]}},
        chunk({"content": ".", "seal": {"a": "y"}}, choice={"note": {"n": 1}}),
        chunk({}, "stop", choice={"stop_reason": None, "note": {"n": 2}}),
    )),
    Recording("tool calls side by side", (
        chunk({"role": "assistant", "content": None}),
        calls(call(0, "", "call_1", "f")),
        calls(call(0, '{"city":')),
        calls(call(1, "{", "call_2", "g")),
        calls(call(0, '"Os'), call(1, '"n":1')),
        calls(call(0, 'lo"}')),
        calls(call(1, "}")),
        CALLS_END,
    ), TOOLS, store_tools=True),
    Recording("text, then a tool call at once", (*SAID, calls(call(0, '{"a":"é"}', "call_1", "f")), CALLS_END), TOOLS,
              store_tools=True),
    Recording("an empty list of calls in every delta", (
        calls(call(0, "{", "call_1", "f")), calls(call(0, "}")), chunk({"content": "", "tool_calls": []}), CALLS_END,
    ), TOOLS, store_tools=True),
    Recording("two pieces of one call in one chunk", (
        calls(call(0, "{", "call_1", "f"), call(0, '"a":1}')), CALLS_END,
    ), TOOLS, store_tools=True),
    Recording("a tool call, not allowed", (calls(call(0, "{}", "call_1", "f")), CALLS_END), TOOLS,
              Unstorable.TOOL_CALLS),
    Recording("a tool call whose arguments are cut", (calls(call(0, '{"a"', "call_1", "f")), CALLS_END), TOOLS,
              Unstorable.MALFORMED, store_tools=True),
    Recording("function_call", (
        chunk({"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ""}}),
        chunk({"function_call": {"arguments": '{"city": '}}),
        chunk({"function_call": {"arguments": '"Oslo"}'}}),
        chunk({}, "function_call"),
    ), (("functions", [{"name": "f"}]),), store_tools=True),
    Recording("refusal", (chunk({"role": "assistant", "refusal": "I "}), chunk({"refusal": "cannot."}), END),
              why_not=Unstorable.FINISH),
    Recording("refusal with log probabilities", (
        chunk({"role": "assistant", "content": None, "refusal": ""}),
        chunk({"refusal": "No"}, choice=probs(token("No"), name="refusal")),
        END,
    ), (("logprobs", True),), Unstorable.FINISH),
    Recording("speech", (
        chunk({"role": "assistant", "audio": {"id": "audio_1", "transcript": "Four "}}),
        chunk({"audio": {"transcript": "days."}}),
        chunk({"audio": {"data": "UklG"}}),
        chunk({"audio": {"data": "Rg=="}}),
        chunk({"audio": {"expires_at": 1_700_003_600}}),
        END,
    ), (("modalities", ["text", "audio"]),), Unstorable.EMPTY),
    Recording("cut by the limit", (*SAID, chunk({}, "length")), why_not=Unstorable.FINISH),
    Recording("cut by a filter", (*SAID, chunk({}, "content_filter")), why_not=Unstorable.FINISH),
    Recording("only thoughts", (chunk({"role": "assistant", "reasoning_content": "Hm."}), END),
              why_not=Unstorable.EMPTY),
]  # fmt: skip

THREE_HALVES = probs(token("\\xc3"), token("\\xa9"), token("!"))
TWO_CALLS = [call(None, '{"city": "Oslo", "days": 4}', "call_1", "f"), call(None, "{}", "call_2", "g")]
TWO = completion({"content": "a b"})
TWO["choices"].append({**TWO["choices"][0], "index": 1, "message": {"role": "assistant", "content": "c"}})

BODIES = [
    Recording("text", completion({"content": "Four days."})),
    Recording("as the vendor writes it", completion({"content": "Four days.", "refusal": None, "annotations": []})),
    Recording("white space", completion({"content": " leading,  double\n\n\tand trailing "})),
    Recording("no spaces", completion({"content": "配送には四日かかります。" * 30})),
    Recording("long", completion({"content": "word " * 5000})),
    Recording("characters as escapes", completion({"content": "四天 🚚 \x00 \u2028"}), ascii=True),
    Recording("two choices", TWO, (("n", 2),)),
    Recording("thoughts", completion({"content": "So.", "reasoning_content": "Hm, let me see."})),
    Recording("thoughts in detail", completion(
        {"content": "So.", "reasoning": "Hm.", "reasoning_details": [{"index": 0, "text": "Hm."}]}
    )),
    Recording("annotations", completion({"content": "Four", "annotations": [CITED, CITED]})),
    Recording("unknown members of a message", completion({"content": "x", "seal": {"a": [1, 2.50]}, "other": None})),
    Recording("unknown members of a choice", completion(
        {"content": "x"}, {"content_filter_results": SAFE, "stop_reason": 7}
    )),
    Recording("unknown members of a body", completion(
        {"content": "x"}, citations=["https://post.example"], x_vendor={"id": "r"}
    )),
    Recording("Azure's reports", completion(
        {"content": "x"}, {"content_filter_results": SAFE}, prompt_filter_results=[{"prompt_index": 0}]
    )),
    Recording("log probabilities", completion({"content": "Four days"}, probs(token("Four"), token(" days")))),
    Recording("log probabilities of half characters", completion({"content": "é!"}, THREE_HALVES)),
    Recording("log probabilities of nothing", completion(
        {"content": "x"}, {"logprobs": {"content": [], "refusal": None}}
    )),
    Recording("log probabilities in another form", completion(
        {"content": "x"}, {"logprobs": {"tokens": ["x"], "token_logprobs": [-0.5]}}
    )),
    Recording("tool calls", completion(
        {"content": None, "tool_calls": TWO_CALLS}, {"finish_reason": "tool_calls"}
    ), TOOLS, store_tools=True),
    Recording("log probabilities of tool calls", completion(
        {"content": None, "tool_calls": TWO_CALLS}, {"finish_reason": "tool_calls", **probs(token("{"), token("}"))}
    ), TOOLS, store_tools=True),
    Recording("a custom tool's call", completion(
        {"content": None, "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "sh", "input": "ls -l /"}}]},
        {"finish_reason": "tool_calls"},
    ), (("tools", [{"type": "custom", "custom": {"name": "sh"}}]),), store_tools=True),
    Recording("function_call", completion(
        {"content": "x", "function_call": {"name": "f", "arguments": '{"city": "Oslo"}'}},
        {"finish_reason": "function_call"},
    ), (("functions", [{"name": "f"}]),), store_tools=True),
    Recording("refusal", completion({"content": None, "refusal": "I cannot help with that."}),
              why_not=Unstorable.FINISH),
    Recording("speech", completion(
        {"content": "", "audio": {"id": "audio_1", "data": "AA==", "expires_at": 9, "transcript": "x"}}
    ), (("modalities", ["text", "audio"]),), Unstorable.EMPTY),
    Recording("cut by the limit", completion({"content": "Four"}, {"finish_reason": "length"}),
              why_not=Unstorable.FINISH),
]  # fmt: skip

RECORDINGS = [*STREAMS, *BODIES]
