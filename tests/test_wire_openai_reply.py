"""Which replies are whole, which may be kept, and that every byte is relayed whatever they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from semcache.types import Form, Unstorable, Usage
from semcache.wire import Frame, Reading
from tests.replies import read_reply

JSON = {"content-type": "application/json"}
SSE = {"content-type": "text/event-stream; charset=utf-8"}
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
DONE = b"data: [DONE]\n\n"


def read(
    reply: bytes | Sequence[bytes], headers: Any = SSE, *, n: int = 1, **options: Any
) -> tuple[list[Frame], Reading]:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": headers is SSE, "n": n}
    return read_reply("/v1/chat/completions", json.dumps(body).encode(), reply, headers, **options)


def sse(*chunks: Any) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks)


def chunk(delta: Any = None, finish: Any = None, index: int = 0, **more: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": {} if delta is None else delta, "finish_reason": finish}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 5,
        "model": "m",
        "choices": [choice],
        **more,
    }


def stream(*chunks: Any, end: bytes = DONE) -> bytes:
    return sse(chunk({"role": "assistant", "content": ""}), *chunks) + end


def say(text: str = "Four days.", finish: Any = "stop", **message: Any) -> dict[str, Any]:
    return {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}


def body(*choices: Any, **more: Any) -> bytes:
    whole = {"id": "chatcmpl-1", "object": "chat.completion", "created": 5, "model": "m", "choices": choices, **more}
    return json.dumps(whole).encode()


def call(arguments: Any = '{"city":"Oslo"}', **more: Any) -> dict[str, Any]:
    return {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}, **more}


# Streams

GOOD_STREAM = stream(
    chunk({"content": "Four "}),
    chunk({"content": "days, é."}),
    chunk(finish="stop"),
    {"id": "chatcmpl-1", "choices": [], "usage": USAGE},
)


@pytest.mark.parametrize(
    ("more", "cached"),
    [
        ({"prompt_tokens_details": {"cached_tokens": 6}}, 6),  # OpenAI, vLLM
        ({"prompt_cache_hit_tokens": 5, "prompt_cache_miss_tokens": 4}, 5),  # DeepSeek
        ({"prompt_tokens_details": None}, 0),
        ({"prompt_tokens_details": {"cached_tokens": "6"}}, 0),
        ({"prompt_tokens_details": {}}, 0),
    ],
)
def test_what_the_upstream_had_cached_of_the_prompt_is_told_apart(more: dict[str, Any], cached: int) -> None:
    raw = sse({**chunk({"content": "Four"}, "stop"), "usage": {**USAGE, **more}}) + DONE
    assert read(raw)[1].usage == Usage(9, 4, cached)


def test_a_whole_stream_is_kept_without_framing_and_end() -> None:
    frames, reading = read(GOOD_STREAM)
    assert reading.unstorable is None
    assert reading.answer is not None
    assert reading.answer.form is Form.STREAM
    assert list(reading.answer.parts) == [part.removeprefix(b"data: ") for part in GOOD_STREAM.split(b"\n\n")[:-2]]
    assert reading.usage == reading.answer.usage == Usage(9, 4)
    assert [frame.payload for frame in frames] == [*reading.answer.parts, None]
    assert [frame.usage_only for frame in frames] == [False, False, False, False, True, False]


def test_parts_know_when_they_came() -> None:
    chunks = [part + b"\n\n" for part in GOOD_STREAM.split(b"\n\n")[:-1]]
    _, reading = read(chunks)
    assert reading.answer is not None
    assert reading.answer.offsets_ms == (0, 1, 2, 3, 4)


ENDED = chunk({"content": "Four days."}, "stop")
UNSTORABLE_STREAMS: list[tuple[str, bytes, Unstorable]] = [
    ("no [DONE]", stream(ENDED, end=b""), Unstorable.INCOMPLETE),
    ("[DONE] without its blank line", stream(ENDED, end=b"data: [DONE]\n"), Unstorable.INCOMPLETE),
    ("no finish reason", stream(chunk({"content": "Four"})), Unstorable.INCOMPLETE),
    ("[DONE] only", DONE, Unstorable.EMPTY),
    ("nothing", b"", Unstorable.INCOMPLETE),
    ("no choices ever", sse({"choices": [], "usage": USAGE}) + DONE, Unstorable.EMPTY),
    ("nothing said", stream(chunk(finish="stop")), Unstorable.EMPTY),
    ("white space said", stream(chunk({"content": " \n"}), chunk(finish="stop")), Unstorable.EMPTY),
    ("only thoughts", stream(chunk({"reasoning_content": "Hm."}), chunk(finish="stop")), Unstorable.EMPTY),
    ("length", stream(chunk({"content": "Four"}, "length")), Unstorable.FINISH),
    ("filtered", stream(chunk({"content": "Four"}, "content_filter")), Unstorable.FINISH),
    ("unknown reason", stream(chunk({"content": "Four"}, "tired")), Unstorable.FINISH),
    ("a reason that is no text", stream(chunk({"content": "Four"}, 7)), Unstorable.FINISH),
    ("two reasons", stream(ENDED, chunk(finish="length")), Unstorable.FINISH),
    ("refusal", stream(chunk({"refusal": "I cannot."}), chunk({"content": "x"}, "stop")), Unstorable.FINISH),
    ("tool call", stream(chunk({"tool_calls": [call()]}), chunk(finish="tool_calls")), Unstorable.TOOL_CALLS),
    ("tool call, stop", stream(chunk({"content": "x", "tool_calls": [call()]}, "stop")), Unstorable.TOOL_CALLS),
    ("function call", stream(chunk({"function_call": {"name": "f"}}, "function_call")), Unstorable.TOOL_CALLS),
    ("error instead of the end", stream(ENDED, {"error": {"message": "busy", "code": 500}}), Unstorable.ERROR),
    ("error as text", stream(ENDED, {"error": "busy"}), Unstorable.ERROR),
    ("error event", stream(ENDED, end=b'event: error\ndata: {"message":"busy"}\n\n' + DONE), Unstorable.ERROR),
    (
        "error in a choice",
        stream(chunk({"content": "x"}), {"choices": [{"index": 0, "delta": {}, "error": {"code": 502}}]}),
        Unstorable.ERROR,
    ),
    ("error object", stream(ENDED, {"object": "error", "message": "busy"}), Unstorable.ERROR),
    ("error status", stream(chunk({"content": "Sorry."}, "stop", status=500)), Unstorable.ERROR),
    ("no JSON", stream(ENDED, end=b"data: {oops\n\n" + DONE), Unstorable.MALFORMED),
    ("no object", stream(ENDED, [1]), Unstorable.MALFORMED),
    ("no choices member", stream(ENDED, {"id": "x"}), Unstorable.MALFORMED),
    ("a choice nobody asked for", stream(ENDED, chunk({"content": "x"}, "stop", 1)), Unstorable.MALFORMED),
    ("a negative choice", stream(ENDED, chunk({"content": "x"}, "stop", -1)), Unstorable.MALFORMED),
    ("choice index is text", stream(ENDED, {"choices": [{"index": "0", "delta": {}}]}), Unstorable.MALFORMED),
    ("content is a list", stream(chunk({"content": [{"text": "x"}]}, "stop")), Unstorable.MALFORMED),
    ("delta is text", stream(chunk("x", "stop")), Unstorable.MALFORMED),
    ("invalid UTF-8", stream(ENDED, end=b'data: {"choices":[],"x":"\xff"}\n\n' + DONE), Unstorable.MALFORMED),
    ("half a surrogate", stream(ENDED, end=b'data: {"choices":[],"x":"\\ud800"}\n\n' + DONE), Unstorable.MALFORMED),
    ("text after the end", stream(ENDED, end=DONE + sse(ENDED)), Unstorable.MALFORMED),
    (
        "events of another name",
        stream(ENDED, end=b'event: progress\ndata: {"choices":[]}\n\n' + DONE),
        Unstorable.MALFORMED,
    ),
    ("a JSON body", body(say()), Unstorable.INCOMPLETE),
]


@pytest.mark.parametrize(("reply", "why"), [pytest.param(r, w, id=name) for name, r, w in UNSTORABLE_STREAMS])
def test_a_stream_that_must_not_be_kept_is_relayed_and_not_kept(reply: bytes, why: Unstorable) -> None:
    _, reading = read(reply)
    assert reading.unstorable is why
    leaves_an_answer = why in (Unstorable.FINISH, Unstorable.TOOL_CALLS) or (
        b"delta" in reply and why is Unstorable.EMPTY
    )
    assert (reading.answer is not None) == leaves_an_answer


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(stream(ENDED), id="in one chunk"),
        pytest.param(b": hello\n\n" + stream(ENDED, end=b": busy\n\n" + DONE + b"\n: bye\n\n"), id="comments"),
        pytest.param(stream(ENDED).replace(b"\n", b"\r\n"), id="CRLF"),
        pytest.param(stream(ENDED).replace(b"\n", b"\r"), id="CR"),
        pytest.param(stream(ENDED).replace(b"data: ", b"data:"), id="no space"),
        pytest.param(stream(ENDED).replace(b"data: ", b"event: message\nid: 1\ndata: "), id="named message"),
        pytest.param(b"\xef\xbb\xbf" + stream(ENDED), id="byte order mark"),
        pytest.param(stream(ENDED).replace(b'", "', b'",\ndata: "'), id="data on several lines"),
        pytest.param(sse({"choices": [], "prompt_filter_results": [{}]}) + stream(ENDED), id="filter results first"),
        pytest.param(
            stream(ENDED, {"choices": [{"index": 0, "content_filter_results": {}}]}), id="filter results last"
        ),
        pytest.param(stream(chunk({"content": "Four"}, "stop", usage=USAGE)), id="usage with the finish"),
        pytest.param(stream(chunk({"content": "Four"}, "stop", code=0)), id="a code of success"),
        pytest.param(stream(chunk({"content": "Four"}, "stop", error=None)), id="no error"),
        pytest.param(
            stream(chunk({"content": "Four", "tool_calls": [], "refusal": None}, "stop")), id="empty tool calls"
        ),
    ],
)
def test_a_whole_stream_however_written_may_be_kept(reply: bytes) -> None:
    _, reading = read(reply)
    assert reading.unstorable is None
    assert reading.answer is not None


def test_a_reply_that_only_the_connection_ends_is_whole_by_its_own_end() -> None:
    assert read(GOOD_STREAM, whole=False)[1] == read(GOOD_STREAM)[1]
    without_done = GOOD_STREAM.removesuffix(b"data: [DONE]\n\n")
    assert read(without_done, whole=False)[1] == Reading(None, Unstorable.INCOMPLETE, Usage(9, 4))


def test_each_choice_asked_for_must_end() -> None:
    one, two = chunk({"content": "a"}, "stop", 0), chunk({"content": "b"}, "stop", 1)
    assert read(stream(one, two), n=2)[1].unstorable is None
    assert read(stream(one, chunk({"content": "b"}, None, 1)), n=2)[1].unstorable is Unstorable.INCOMPLETE
    assert read(stream(one), n=2)[1].unstorable is Unstorable.INCOMPLETE
    assert read(stream(one, chunk({"content": "b"}, "length", 1)), n=2)[1].unstorable is Unstorable.FINISH
    assert read(stream(one, chunk({}, "stop", 1)), n=2)[1].unstorable is Unstorable.EMPTY


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (['{"city":', '"Oslo"}'], None),
        (["{}"], None),
        (['{"city":'], Unstorable.MALFORMED),
        ([""], Unstorable.MALFORMED),
        (["[1]"], Unstorable.MALFORMED),
        (["{} {}"], Unstorable.MALFORMED),
        ([{"city": "Oslo"}], Unstorable.MALFORMED),
    ],
)
def test_tool_calls_are_kept_where_allowed_and_only_if_their_arguments_parse(
    arguments: list[Any], why: Unstorable | None
) -> None:
    first, *rest = arguments
    deltas = [chunk({"tool_calls": [call(first)]})]
    deltas += [chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}) for piece in rest]
    reply = stream(*deltas, chunk(finish="tool_calls"))
    assert read(reply, store_tools=True)[1].unstorable is why
    assert read(reply, store_tools=False)[1].unstorable is Unstorable.TOOL_CALLS


def test_a_call_of_a_custom_tool_has_no_arguments_to_parse() -> None:
    custom = {"index": 0, "id": "call_1", "type": "custom", "custom": {"name": "shell", "input": "ls"}}
    assert read(stream(chunk({"tool_calls": [custom]}, "tool_calls")), store_tools=True)[1].unstorable is None


@pytest.mark.parametrize("finish", ["length", "content_filter"])
def test_allowing_tools_allows_no_other_finish(finish: str) -> None:
    assert read(stream(chunk({"content": "x"}, finish)), store_tools=True)[1].unstorable is Unstorable.FINISH


# JSON bodies

UNSTORABLE_BODIES: list[tuple[str, bytes, Unstorable]] = [
    ("nothing", b"", Unstorable.MALFORMED),
    ("no JSON", b"<html>busy</html>", Unstorable.MALFORMED),
    ("a stream", GOOD_STREAM, Unstorable.MALFORMED),
    ("text behind", body(say()) + b"x", Unstorable.MALFORMED),
    ("a list", b"[]", Unstorable.MALFORMED),
    ("no choices member", b"{}", Unstorable.MALFORMED),
    ("no choices", body(), Unstorable.EMPTY),
    ("nothing said", body(say("")), Unstorable.EMPTY),
    ("null said", body(say(None)), Unstorable.EMPTY),  # type: ignore[arg-type]
    ("spoken only", body(say(None, audio={"id": "audio_1", "transcript": "x"})), Unstorable.EMPTY),  # type: ignore[arg-type]
    ("no message", body({"index": 0, "finish_reason": "stop"}), Unstorable.MALFORMED),
    ("length", body(say(finish="length")), Unstorable.FINISH),
    ("filtered", body(say(finish="content_filter")), Unstorable.FINISH),
    ("no reason", body(say(finish=None)), Unstorable.FINISH),
    ("unknown reason", body(say(finish="tired")), Unstorable.FINISH),
    ("refusal", body(say(refusal="I cannot.")), Unstorable.FINISH),
    ("tool calls", body(say(tool_calls=[call()], finish="tool_calls")), Unstorable.TOOL_CALLS),
    ("error", b'{"error":{"message":"busy","code":503}}', Unstorable.ERROR),
    ("error beside an apology", body(say("Sorry."), error={"code": 500}), Unstorable.ERROR),
    ("status beside an apology", body(say("Sorry."), status_code=500), Unstorable.ERROR),
    ("error object", b'{"object":"error","message":"busy"}', Unstorable.ERROR),
    ("error in the choice", body({**say(finish="error"), "error": {"code": 502}}), Unstorable.ERROR),
    ("a choice too many", body(say(), {**say(), "index": 1}), Unstorable.MALFORMED),
    ("a choice out of place", body({**say(), "index": 3}), Unstorable.MALFORMED),
]


@pytest.mark.parametrize(("reply", "why"), [pytest.param(r, w, id=name) for name, r, w in UNSTORABLE_BODIES])
def test_a_body_that_must_not_be_kept_is_relayed_and_not_kept(reply: bytes, why: Unstorable) -> None:
    _, reading = read(reply, JSON)
    assert reading.unstorable is why
    assert (reading.answer is not None) == (why in (Unstorable.FINISH, Unstorable.TOOL_CALLS, Unstorable.EMPTY))


def test_a_whole_body_is_kept_as_it_came() -> None:
    reply = b"\n \n" + body(say(), usage=USAGE)
    frames, reading = read([reply[:20], reply[20:]], JSON)
    assert reading.unstorable is None
    assert reading.answer is not None
    assert reading.answer.parts == (reply,)
    assert reading.answer.usage == Usage(9, 4)
    assert reading.answer.offsets_ms == (1,)
    assert [frame.payload for frame in frames] == [None, None]


def test_a_body_that_answers_a_stream_request_is_read_as_what_it_is() -> None:
    request = b'{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true}'
    answer = read_reply("/v1/chat/completions", request, body(say()), JSON)[1].answer
    assert answer is not None
    assert answer.form is Form.JSON


def test_fewer_choices_than_asked_for_are_not_kept() -> None:
    assert read(body(say()), JSON, n=2)[1].unstorable is Unstorable.INCOMPLETE
    assert read(body(say(), {**say(), "index": 1}), JSON, n=2)[1].unstorable is None


# Replies of any kind


@pytest.mark.parametrize("status", [201, 204, 206, 400, 401, 429, 500, 529])
@pytest.mark.parametrize(("headers", "reply"), [(SSE, GOOD_STREAM), (JSON, body(say()))])
def test_only_a_200_is_kept(status: int, headers: Any, reply: bytes) -> None:
    assert read(reply, headers, status=status)[1] == Reading(None, Unstorable.STATUS)


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip", "x"])
def test_an_encoded_reply_is_relayed_and_not_kept(coding: str) -> None:
    headers = CIMultiDict({"Content-Type": "application/json", "Content-Encoding": coding})
    assert read(b"\x1f\x8b\x08", headers)[1] == Reading(None, Unstorable.ENCODING)
    assert read(body(say()), {**JSON, "content-encoding": "Identity"})[1].unstorable is None


@pytest.mark.parametrize("step", [1, 10, 1000])
def test_an_answer_past_the_limit_is_relayed_and_not_held(step: int) -> None:
    for headers, reply in ((SSE, GOOD_STREAM), (JSON, body(say("x" * 500)))):
        chunks = [reply[at : at + step] for at in range(0, len(reply), step)]
        _, reading = read(chunks, headers, limit_bytes=200)
        assert (reading.answer, reading.unstorable) == (None, Unstorable.TOO_LARGE)


def test_an_answer_of_just_the_limit_is_kept() -> None:
    reply = body(say())
    assert read(reply, JSON, limit_bytes=len(reply))[1].unstorable is None
    assert read(reply, JSON, limit_bytes=len(reply) - 1)[1].unstorable is Unstorable.TOO_LARGE


def test_an_event_too_large_to_read_is_relayed_and_the_end_still_seen() -> None:
    reply = stream(chunk({"content": "x" * (1 << 20)}), chunk(finish="stop"))
    frames, reading = read([reply[at : at + 65536] for at in range(0, len(reply), 65536)], limit_bytes=1 << 22)
    assert reading.unstorable is Unstorable.TOO_LARGE
    assert max(len(frame.raw) for frame in frames) < (1 << 20) + 65536 + 1


def test_a_large_tool_call_is_not_held_once_the_answer_is_too_large() -> None:
    deltas = [chunk({"tool_calls": [call("x" * 100)]}) for _ in range(5)]
    assert read(stream(*deltas), store_tools=True, limit_bytes=300)[1].unstorable is Unstorable.TOO_LARGE


# Promise 1: partial answers are never kept

TOOL_STREAM = stream(chunk({"tool_calls": [call("{}")]}), chunk(finish="tool_calls"))
TWO_CHOICES = stream(chunk({"content": "a"}), chunk({"content": "b"}, "stop", 1), chunk(finish="stop"))
RECORDINGS = [
    pytest.param(GOOD_STREAM, SSE, 1, False, id="stream"),
    pytest.param(GOOD_STREAM.replace(b"\n", b"\r\n"), SSE, 1, False, id="stream with CRLF"),
    pytest.param(b": hi\n\n" + GOOD_STREAM, SSE, 1, False, id="stream with a comment"),
    pytest.param(TOOL_STREAM, SSE, 1, True, id="tool call"),
    pytest.param(TWO_CHOICES, SSE, 2, False, id="two choices"),
    pytest.param(body(say("Four days, é."), usage=USAGE), JSON, 1, False, id="body"),
    pytest.param(body(say(None, "tool_calls", tool_calls=[call()])), JSON, 1, True, id="body with a tool call"),  # type: ignore[arg-type]
    pytest.param(body(say(), {**say(), "index": 1}), JSON, 2, False, id="body with two choices"),
]


@pytest.mark.parametrize(("reply", "headers", "n", "store_tools"), RECORDINGS)
def test_a_reply_cut_at_any_byte_is_never_kept(reply: bytes, headers: Any, n: int, store_tools: bool) -> None:
    needed = len(reply.removesuffix(b"\n")) if b"\r" in reply else len(reply)  # a CR alone ends a line too
    for whole in (True, False):  # also where HTTP says that all was well
        for at in range(needed):
            _, reading = read(reply[:at], headers, n=n, store_tools=store_tools, whole=whole)
            assert reading.unstorable is not None
            assert reading.answer is None
    assert read(reply, headers, n=n, store_tools=store_tools)[1].unstorable is None


@pytest.mark.parametrize(("reply", "headers", "n", "store_tools"), RECORDINGS)
@given(cuts=st.lists(st.integers(0, 1000), max_size=8))
def test_chunks_make_no_difference(reply: bytes, headers: Any, n: int, store_tools: bool, cuts: list[int]) -> None:
    marks = [0, *sorted(min(cut, len(reply)) for cut in cuts), len(reply)]
    whole = read(reply, headers, n=n, store_tools=store_tools)[1]
    parts = read([reply[a:b] for a, b in pairwise(marks)], headers, n=n, store_tools=store_tools)[1]
    assert (parts.unstorable, parts.usage) == (whole.unstorable, whole.usage)
    assert parts.answer is not None
    assert whole.answer is not None
    assert parts.answer.parts == whole.answer.parts


@given(
    st.lists(
        st.binary(max_size=30) | st.sampled_from([b"data: ", b"\n\n", b"{}", DONE, b'{"choices":[{}]}']), max_size=8
    )
)
def test_garbage_is_relayed_and_not_kept(chunks: list[bytes]) -> None:
    for headers in (SSE, JSON, {}):
        assert read(chunks, headers)[1].unstorable is not None
