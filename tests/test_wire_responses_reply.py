"""Which responses are whole, which may be kept, and that every byte is relayed whatever they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.types import Form, Unstorable, Usage
from semcache.wire import Frame, Reading, find_address
from tests.recordings_responses import FOUR, RECORDINGS, RESPONSE, USAGE, Recording, call, dumps, message, sse, text
from tests.replies import read_reply

ADDRESS = find_address("/v1/responses")
assert ADDRESS is not None
DIALECT = ADDRESS.dialect
SSE = {"content-type": "text/event-stream; charset=utf-8"}
JSON = {"content-type": "application/json"}
PLAIN = RECORDINGS[0]
NAMED = pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.name)


def read_frames(
    reply: bytes | Sequence[bytes], recording: Recording = PLAIN, headers: dict[str, str] = SSE, **options: Any
) -> tuple[list[Frame], Reading]:
    options["store_tools"] = recording.store_tools
    return read_reply("/v1/responses", dumps(recording.request), reply, headers, **options)


def read(*args: Any, **options: Any) -> Reading:
    return read_frames(*args, **options)[1]


def payloads(recording: Recording) -> tuple[bytes, ...]:
    return tuple(dumps(event, recording.ascii) for event in recording.events)


# Both forms of every recording


@NAMED
def test_a_stream_is_kept_event_by_event_or_there_is_a_reason(recording: Recording) -> None:
    reading = read(recording.stream, recording)
    assert reading.unstorable == recording.why_not
    assert reading.answer is not None
    assert reading.answer.form is Form.STREAM
    assert reading.answer.parts == payloads(recording)


@NAMED
def test_a_body_is_kept_as_it_is_or_there_is_a_reason(recording: Recording) -> None:
    reading = read(recording.body, recording, JSON)
    assert reading.unstorable == recording.why_not
    assert reading.answer is not None
    assert reading.answer.form is Form.JSON
    assert reading.answer.parts == (recording.body,)


def places(stream: bytes) -> list[int]:
    """Every place in the shorter streams; in the longer, whose bytes are of the same kinds, those around line ends."""
    if len(stream) < 4100:
        return list(range(len(stream) + 1))
    ends = [at for at, byte in enumerate(stream) if byte == 10]
    return sorted({min(end + near, len(stream)) for end in ends for near in range(-1, 3)} | {0})


@NAMED
def test_a_stream_cut_anywhere_is_not_kept(recording: Recording) -> None:
    end = len(recording.stream.removesuffix(b"data: [DONE]\n\n"))
    for at in places(recording.stream):
        if at < end:
            reading = read(recording.stream[:at], recording, whole=at % 2 == 0)
            assert (reading.answer, reading.unstorable) == (None, Unstorable.INCOMPLETE)


@NAMED
def test_a_body_cut_anywhere_is_not_kept(recording: Recording) -> None:
    for at in range(len(recording.body)):
        reading = read(recording.body[:at], recording, JSON, whole=False)
        assert (reading.answer, reading.unstorable) == (None, Unstorable.INCOMPLETE)


def variants(stream: bytes) -> list[bytes]:
    """The same events, written otherwise."""
    lines = stream.replace(b"\ndata: ", b"\n: between\nid: 7\ndata: ")
    halves = stream.replace(b'data: {"type"', b'data: {\ndata: "type"')  # JSON takes white space there
    return [stream, stream.replace(b"\n", b"\r\n"), b": ping\n\n" + lines, halves]


@NAMED
def test_a_stream_reads_the_same_wherever_it_is_split(recording: Recording) -> None:
    for number, stream in enumerate(variants(recording.stream)):
        frames, whole = read_frames(stream, recording)
        assert whole.answer is not None
        if number < 3:
            assert whole.answer.parts == payloads(recording)
        assert [json.loads(part) for part in whole.answer.parts] == recording.events
        for at in places(stream)[number::4]:  # each place in one of the variants
            again, split = read_frames([stream[:at], stream[at:]], recording)
            assert split.answer is not None
            assert (split.answer.parts, split.unstorable, split.usage) == (
                whole.answer.parts,
                whole.unstorable,
                whole.usage,
            )
            assert again == frames


@given(st.sampled_from(RECORDINGS), st.data())
def test_a_stream_reads_the_same_in_any_chunks(recording: Recording, data: st.DataObject) -> None:
    stream = data.draw(st.sampled_from(variants(recording.stream)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reading = read([stream[start:end] for start, end in pairwise([0, *cuts, len(stream)])], recording)
    assert reading.answer is not None
    assert [json.loads(part) for part in reading.answer.parts] == recording.events


def test_every_event_is_for_every_reader() -> None:
    frames, _ = read_frames(PLAIN.stream)
    assert [frame.payload for frame in frames] == list(payloads(PLAIN))
    assert not any(frame.usage_only for frame in frames)


def test_events_know_when_they_came() -> None:
    blocks = [block + b"\n\n" for block in PLAIN.stream.removesuffix(b"\n\n").split(b"\n\n")]
    reading = read(blocks)
    assert reading.answer is not None
    assert reading.answer.offsets_ms == tuple(range(len(blocks)))


# Usage


@pytest.mark.parametrize(
    ("figures", "usage"),
    [
        (USAGE, Usage(11, 6)),
        ({"input_tokens": 3}, Usage(3, 0)),
        ({"input_tokens": 9, "output_tokens": 1, "input_tokens_details": {"cached_tokens": 8}}, Usage(9, 1, 8)),
        ({"input_tokens": "3", "output_tokens": 4}, None),
        ({"input_tokens": 3, "output_tokens": True}, None),
        ({"output_tokens": 4}, None),
        ([], None),
        (None, None),
    ],
)
def test_the_last_event_tells_the_usage(figures: Any, usage: Usage | None) -> None:
    recording = Recording("x", (message(FOUR),), response={**RESPONSE, "usage": figures})
    for reading in (read(recording.stream), read(recording.body, PLAIN, JSON)):
        assert reading.usage == usage
        assert reading.answer is not None
        assert reading.answer.usage == usage


# Streams that are not as the vendor's

EVENTS = PLAIN.events
FAILURE = {"code": "server_error", "message": "The model has gone."}
FAILED = {"type": "response.failed", "response": {**RESPONSE, "status": "failed", "error": FAILURE}}
DELTA = {"type": "response.output_text.delta", "item_id": "msg_01", "output_index": 0, "content_index": 0, "delta": "x"}


def with_last(**members: Any) -> bytes:
    """The plain stream with members of its last response changed."""
    last = {**EVENTS[-1], "response": {**EVENTS[-1]["response"], **members}}
    return sse([*EVENTS[:-1], last])


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (b"", Unstorable.INCOMPLETE),
        (b": ping\n\n\n\n", Unstorable.INCOMPLETE),
        (b"data: [DONE]\n\n", Unstorable.INCOMPLETE),
        (sse(EVENTS[:-1]) + b"data: [DONE]\n\n", Unstorable.INCOMPLETE),
        (sse(EVENTS[:-1]) + b"data: [DONE]\n\n" + sse(EVENTS[-1:]), Unstorable.MALFORMED),
        (sse([*EVENTS[:-1], FAILED]), Unstorable.ERROR),
        (sse([*EVENTS, FAILED]), Unstorable.MALFORMED),
        (sse([*EVENTS, EVENTS[-1]]), Unstorable.MALFORMED),
        (sse([*EVENTS, DELTA]), Unstorable.MALFORMED),
        (sse([*EVENTS[:3], {"type": "error", "code": "x", "message": "gone", "param": None}]), Unstorable.ERROR),
        (sse([*EVENTS[:3], {"type": "error", "message": "gone"}, *EVENTS[3:]]), Unstorable.ERROR),
        (sse(EVENTS[:3]) + b'data: {"error": {"message": "gone"}}\n\n', Unstorable.ERROR),
        (sse(EVENTS[:3]) + b"event: error\ndata: gone\n\n", Unstorable.ERROR),
        (
            sse(EVENTS[:3]) + b'data: {"object":"error","message":"x","code":40303}\n\n' + sse(EVENTS[3:]),
            Unstorable.ERROR,
        ),
        (sse(EVENTS) + b"event: error\ndata: {}\n\n", Unstorable.ERROR),
        (sse(EVENTS[:3]) + b"data: {\n\n" + sse(EVENTS[3:]), Unstorable.MALFORMED),
        (sse(EVENTS[:3]) + b"data: []\n\n" + sse(EVENTS[3:]), Unstorable.MALFORMED),
        (sse(EVENTS[:3]) + b"data: {}\n\n" + sse(EVENTS[3:]), Unstorable.MALFORMED),
        (sse(EVENTS[:3]) + b'data: {"type":7}\n\n' + sse(EVENTS[3:]), Unstorable.MALFORMED),
        (sse(EVENTS[:3]) + b'data: {"type":"a\\nb"}\n\n' + sse(EVENTS[3:]), Unstorable.MALFORMED),
        (sse(EVENTS[:3]) + b'data: {"type":""}\n\n' + sse(EVENTS[3:]), Unstorable.MALFORMED),
        (sse(EVENTS[:3]) + b'event: other\ndata: {"type":"mine"}\n\n' + sse(EVENTS[3:]), Unstorable.MALFORMED),
        (sse([{"type": "response.completed"}]), Unstorable.MALFORMED),
        (sse([{"type": "response.completed", "response": []}]), Unstorable.MALFORMED),
        (sse([{"type": "response.created", "response": "x"}, *EVENTS[1:]]), Unstorable.MALFORMED),
        (sse([*EVENTS[:3], {**DELTA, "delta": 7}, *EVENTS[3:]]), Unstorable.MALFORMED),
        (sse([*EVENTS[:3], {**DELTA, "output_index": "0"}, *EVENTS[3:]]), Unstorable.MALFORMED),
        (sse([*EVENTS[:3], {**DELTA, "content_index": None}, *EVENTS[3:]]), Unstorable.MALFORMED),
        (sse([*EVENTS[:2], {"type": "response.output_item.added", "item": 7}, *EVENTS[3:]]), Unstorable.MALFORMED),
        (sse([*EVENTS[:2], {"type": "response.output_item.added", "item": {}}, *EVENTS[3:]]), Unstorable.MALFORMED),
        (with_last(error=FAILURE), Unstorable.ERROR),
        (with_last(status="failed"), Unstorable.ERROR),
        (with_last(status="queued"), Unstorable.INCOMPLETE),
        (with_last(status="cancelled"), Unstorable.INCOMPLETE),
        (with_last(status="someday"), Unstorable.INCOMPLETE),
        (with_last(status=None), Unstorable.INCOMPLETE),
        (with_last(status=["completed"]), Unstorable.INCOMPLETE),
        (with_last(output="Four days."), Unstorable.MALFORMED),
        (with_last(object="chat.completion"), Unstorable.MALFORMED),
    ],
)
def test_a_stream_that_is_not_as_the_vendors_leaves_no_answer(stream: bytes, why: Unstorable) -> None:
    reading = read(stream)
    assert (reading.answer, reading.unstorable) == (None, why)


ITEM = PLAIN.body_value["output"][0]


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (with_last(incomplete_details={"reason": "content_filter"}), Unstorable.FINISH),
        (with_last(output=[7]), Unstorable.MALFORMED),
        (with_last(output=[{"type": "message"}]), Unstorable.MALFORMED),
        (with_last(output=[{"type": "message", "content": ["x"]}]), Unstorable.MALFORMED),
        (with_last(output=[{"type": "message", "content": [{"type": "output_text"}]}]), Unstorable.MALFORMED),
        (with_last(output=[{"type": "message", "content": [{"type": "output_audio"}]}]), Unstorable.MALFORMED),
        (with_last(output=[{**ITEM, "content": [{**ITEM["content"][0], "text": "."}]}]), Unstorable.MALFORMED),
        (with_last(output=[ITEM, {"type": ["x"]}]), Unstorable.TOOL_CALLS),
        (with_last(output=[ITEM, {"type": "mcp_call"}]), Unstorable.TOOL_CALLS),
        (with_last(output=[ITEM, {"type": "something_new"}]), Unstorable.TOOL_CALLS),
        (with_last(output=[{**ITEM, "status": "incomplete"}]), Unstorable.FINISH),
        (with_last(output=[{**ITEM, "status": "someday"}]), Unstorable.FINISH),
        (
            sse([*EVENTS[:3], {**DELTA, "type": "response.refusal.delta", "delta": "No"}, *EVENTS[3:]]),
            Unstorable.FINISH,
        ),
        (
            sse([*EVENTS[:2], {**EVENTS[2], "output_index": 9, "item": {"type": "file_search_call"}}, *EVENTS[2:]]),
            Unstorable.TOOL_CALLS,
        ),
    ],
)
def test_a_whole_stream_may_still_not_be_kept(stream: bytes, why: Unstorable) -> None:
    reading = read(stream)
    assert reading.unstorable is why
    assert reading.answer is not None


def test_a_last_event_that_holds_the_last_piece_only_is_not_kept() -> None:
    """As a server of open models was seen to send it: the pieces are right, what is sent at the end is not."""
    for recording in (PLAIN, Recording("call", (call('{"a"', ":1}"),), store_tools=True)):
        item = recording.body_value["output"][0]
        cut = {**item, "arguments": "{}"} if "arguments" in item else {**item, "content": [text(".")[0]]}
        events = recording.events
        events[-1] = {**events[-1], "response": {**recording.body_value, "output": [cut]}}
        assert read(sse(events), recording).unstorable is Unstorable.MALFORMED


def test_a_last_event_without_items_is_kept_with_those_that_were_streamed() -> None:
    for output in ([], None):
        assert read(with_last(output=output)).unstorable is None
    events = [event for event in EVENTS[:-1] if not event["type"].endswith("item.done")]
    last = {**EVENTS[-1], "response": {**RESPONSE, "output": []}}
    assert read(sse([*events, last])).unstorable is Unstorable.EMPTY


def test_an_item_announced_before_it_is_known_is_no_fault() -> None:
    nothing = {"type": "response.output_item.added", "item": None, "output_index": 3}
    assert read(sse([*EVENTS[:2], nothing, *EVENTS[2:]])).unstorable is None


def test_events_nobody_knows_are_kept_in_order() -> None:
    new = {"type": "response.mood.changed", "mood": 1}
    reading = read(sse([*EVENTS[:4], new, *EVENTS[4:]]))
    assert reading.unstorable is None
    assert reading.answer is not None
    assert reading.answer.parts[4] == dumps(new)


def test_signs_of_life_are_relayed_and_not_kept() -> None:
    alive = {"type": "keepalive", "sequence_number": 3}
    frames, reading = read_frames(sse([*EVENTS[:4], alive, *EVENTS[4:]]))
    assert len(frames) == len(EVENTS) + 1
    assert reading.answer is not None
    assert reading.answer.parts == payloads(PLAIN)


def test_the_end_of_a_stream_counts_even_where_the_framing_does_not_tell() -> None:
    assert read(PLAIN.stream, whole=False).unstorable is None


# Bodies that are not as the vendor's


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", Unstorable.MALFORMED),
        (b"[]", Unstorable.MALFORMED),
        (b"<html>", Unstorable.MALFORMED),
        (b"{}", Unstorable.INCOMPLETE),
        (dumps({**RESPONSE, "output": {}, "x": 1}), Unstorable.EMPTY),
        (dumps({**RESPONSE, "output": "x"}), Unstorable.MALFORMED),
        (dumps({"error": {"message": "gone"}}), Unstorable.ERROR),
        (dumps({**PLAIN.body_value, "error": FAILURE}), Unstorable.ERROR),
        (dumps({**PLAIN.body_value, "status": "failed"}), Unstorable.ERROR),
        (dumps({**PLAIN.body_value, "status": "queued"}), Unstorable.INCOMPLETE),
        (dumps({**PLAIN.body_value, "status": "in_progress"}), Unstorable.INCOMPLETE),
        (dumps({**PLAIN.body_value, "object": "chat.completion"}), Unstorable.MALFORMED),
    ],
)
def test_a_body_that_is_not_as_the_vendors_is_not_kept(body: bytes, why: Unstorable) -> None:
    assert read(body, PLAIN, JSON).unstorable is why


def test_only_an_answer_with_status_200_is_read() -> None:
    for status in (201, 400, 429, 500):
        assert read(PLAIN.stream, status=status) == Reading(None, Unstorable.STATUS)


def test_an_answer_past_the_limit_is_relayed_and_held_no_more() -> None:
    long = Recording("long", (message(text(*["word "] * 500)),))
    ask = DIALECT.parse(ADDRESS, dumps(long.request), {})
    scribe: Any = DIALECT.scribe(ask, 200, SSE, store_tools=False, limit_bytes=2000)
    scribe.feed(long.stream, 0)
    assert not scribe._judge._items
    assert not scribe._judge._streamed["text"]
    _, reading = scribe.finish(True)
    assert (reading.answer, reading.unstorable) == (None, Unstorable.TOO_LARGE)
    assert reading.usage == Usage(11, 6)
    assert read(long.body, long, JSON, limit_bytes=2000).unstorable is Unstorable.TOO_LARGE


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "item", "text", "output"]), inner)
    ),
    max_leaves=8,
)


@given(st.sampled_from(EVENTS), st.data())
def test_no_event_of_any_shape_makes_the_judge_raise(event: dict[str, Any], data: st.DataObject) -> None:
    bent = {**event, data.draw(st.sampled_from(sorted(event))): data.draw(JSON_VALUES)}
    for inner in ("response", "item", "part"):
        if isinstance(bent.get(inner), dict) and bent[inner]:
            bent[inner] = {**bent[inner], data.draw(st.sampled_from(sorted(bent[inner]))): data.draw(JSON_VALUES)}
    named = b"data: %b\n\n" % dumps(bent)
    read(named + sse(EVENTS))
    if isinstance(bent.get("response"), dict):
        read(dumps(bent["response"]), PLAIN, JSON)
