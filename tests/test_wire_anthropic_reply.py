"""Which of Anthropic's messages are whole, which may be kept, and that every byte is relayed whatever they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.types import Form, Unstorable, Usage
from semcache.wire import Reading
from tests.recordings_anthropic import RECORDINGS, SAID, TOTALS, USAGE, Recording, call, dumps, framed, message, text
from tests.replies import read_reply

SSE = {"content-type": "text/event-stream; charset=utf-8"}
JSON = {"content-type": "application/json"}
NAMED = pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.name)
WITH_BODY = pytest.mark.parametrize(
    "recording", [recording for recording in RECORDINGS if recording.has_body], ids=lambda recording: recording.name
)
PLAIN = RECORDINGS[0]


def read(reply: bytes | Sequence[bytes], headers: dict[str, str] = SSE, **options: Any) -> Reading:
    return read_reply("/v1/messages", dumps(PLAIN.request), reply, headers, **options)[1]


def stream(*events: Any) -> bytes:
    return b"".join(framed(event) for event in events)


def body(*content: Any, stop: Any = "end_turn", **more: Any) -> bytes:
    return dumps(
        {"id": "msg_1", "type": "message", "role": "assistant", "content": content, "stop_reason": stop, **more}
    )


# The table


@NAMED
def test_a_stream_is_kept_event_by_event_or_there_is_a_reason(recording: Recording) -> None:
    reading = read(recording.stream, store_tools=recording.store_tools)
    assert reading.unstorable == recording.why_not
    assert reading.answer is not None
    assert (reading.answer.dialect, reading.answer.form) == ("anthropic", Form.STREAM)
    parts = [json.loads(part) for part in reading.answer.parts]
    assert parts == [event for event in recording.events if event["type"] != "ping"]


@WITH_BODY
def test_a_body_is_kept_as_it_is_or_there_is_a_reason(recording: Recording) -> None:
    reading = read(recording.body, JSON, store_tools=recording.store_tools)
    assert reading.unstorable == recording.why_not
    assert reading.answer is not None
    assert reading.answer.form is Form.JSON
    assert reading.answer.parts == (recording.body,)


@NAMED
def test_a_stream_cut_at_any_byte_leaves_nothing_to_keep(recording: Recording) -> None:
    raw = recording.stream
    last = raw.rindex(b"event: message_stop")
    for cut in range(len(raw)):
        reading = read(raw[:cut], store_tools=recording.store_tools)
        assert (reading.answer, reading.unstorable) == (None, Unstorable.INCOMPLETE), raw[max(0, last - 9) : cut]


def test_a_body_cut_at_any_byte_leaves_nothing_to_keep() -> None:
    for cut in range(len(PLAIN.body)):
        assert read(PLAIN.body[:cut], JSON, whole=False).unstorable is Unstorable.INCOMPLETE
        assert read(PLAIN.body[:cut], JSON).unstorable is Unstorable.MALFORMED


@NAMED
def test_a_stream_split_at_any_byte_reads_the_same(recording: Recording) -> None:
    raw = recording.stream
    expected = read(raw, store_tools=recording.store_tools)
    assert expected.answer is not None
    for cut in range(len(raw)):
        reading = read([raw[:cut], raw[cut:]], store_tools=recording.store_tools)
        assert reading.answer is not None
        assert (reading.answer.parts, reading.unstorable, reading.usage) == (
            expected.answer.parts,
            expected.unstorable,
            expected.usage,
        )


@given(st.sampled_from(RECORDINGS), st.lists(st.integers(0, 5000)), st.sampled_from([b"\n", b"\r\n", b"\r"]))
def test_a_stream_in_many_pieces_with_any_line_ends_comments_and_split_data_reads_the_same(
    recording: Recording, cuts: list[int], line_end: bytes
) -> None:
    raw = recording.stream.replace(b'data: {"type":', b': so far so good\nid: 7\ndata:{\ndata: "type":')
    raw = raw.replace(b"\n", line_end)
    places = [0, *sorted(cut % len(raw) for cut in cuts), len(raw)]
    reading = read([raw[start:end] for start, end in pairwise(places)], store_tools=recording.store_tools)
    assert reading.unstorable == recording.why_not
    assert reading.answer is not None
    assert [json.loads(part) for part in reading.answer.parts] == [
        event for event in recording.events if event["type"] != "ping"
    ]


# What is not as the vendor has it


START, OPEN, SAY, CLOSE, STOP, END = message(text("Four days."))


@pytest.mark.parametrize(
    ("events", "why"),
    [
        pytest.param((OPEN, SAY, CLOSE, STOP, END), Unstorable.MALFORMED, id="no start"),
        pytest.param((START, START, OPEN, SAY, CLOSE, STOP, END), Unstorable.MALFORMED, id="two starts"),
        pytest.param((START, OPEN, SAY, CLOSE, STOP, END, CLOSE), Unstorable.MALFORMED, id="more after the end"),
        pytest.param((START, OPEN, SAY, STOP, END), Unstorable.INCOMPLETE, id="a block that does not end"),
        pytest.param((START, OPEN, SAY, CLOSE, END), Unstorable.INCOMPLETE, id="no stop reason"),
        pytest.param((START, END), Unstorable.INCOMPLETE, id="nothing"),
        pytest.param(message(SAID, stop=None), Unstorable.INCOMPLETE, id="a stop reason of null"),
        pytest.param((START, {**OPEN, "index": 1}, STOP, END), Unstorable.MALFORMED, id="a block left out"),
        pytest.param((START, {**OPEN, "index": False}, STOP, END), Unstorable.MALFORMED, id="an index that is none"),
        pytest.param((START, OPEN, {**SAY, "index": 1}, CLOSE, STOP, END), Unstorable.MALFORMED, id="an unknown block"),
        pytest.param((START, OPEN, {**SAY, "index": -1}, CLOSE, STOP, END), Unstorable.MALFORMED, id="from behind"),
        pytest.param((START, OPEN, CLOSE, SAY, STOP, END), Unstorable.MALFORMED, id="a delta after its block's end"),
        pytest.param((START, OPEN, CLOSE, CLOSE, STOP, END), Unstorable.MALFORMED, id="an end twice"),
        pytest.param((START, OPEN, {**SAY, "delta": "x"}, CLOSE, STOP, END), Unstorable.MALFORMED, id="no delta"),
        pytest.param((START, OPEN, {**SAY, "delta": {}}, CLOSE, STOP, END), Unstorable.MALFORMED, id="an empty delta"),
        pytest.param(
            (START, OPEN, {**SAY, "delta": {"type": "text_delta", "text": 4}}, CLOSE, STOP, END),
            Unstorable.MALFORMED,
            id="a text that is none",
        ),
        pytest.param((START, {**OPEN, "content_block": None}, STOP, END), Unstorable.MALFORMED, id="no block"),
        pytest.param(
            (START, {**OPEN, "content_block": {"type": "text"}}, STOP, END), Unstorable.MALFORMED, id="no text"
        ),
        pytest.param((START, OPEN, SAY, CLOSE, {"type": "message_delta"}, END), Unstorable.MALFORMED, id="no end"),
        pytest.param(({"type": "message_start"}, STOP, END), Unstorable.MALFORMED, id="no message"),
        pytest.param(message(SAID, start={"content": None}), Unstorable.MALFORMED, id="no content"),
        pytest.param(message(SAID, start={"content": [{"type": "text"}]}), Unstorable.MALFORMED, id="content before"),
        pytest.param(
            (START, OPEN, SAY, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
            Unstorable.ERROR,
            id="an error in the middle",
        ),
        pytest.param(
            (START, OPEN, SAY, CLOSE, STOP, {"type": "error", "error": {"type": "api_error"}}, END),
            Unstorable.ERROR,
            id="an error before the end",
        ),
    ],
)
def test_a_stream_that_is_not_as_the_vendor_has_it_is_relayed_and_not_kept(events: Any, why: Unstorable) -> None:
    reading = read(stream(*events))
    assert (reading.answer, reading.unstorable) == (None, why)


@pytest.mark.parametrize(
    "raw",
    [
        PLAIN.stream.replace(b"event: content_block_delta\n", b"", 1),  # readers pass over it
        PLAIN.stream.replace(b"event: content_block_delta\n", b"event: content_block_dilta\n", 1),
        PLAIN.stream.replace(b'"type":"text_delta"', b'"type":"text_delta', 1),
        PLAIN.stream.replace(b'data: {"type":"content_block_stop","index":0}', b"data: [7]"),
        PLAIN.stream.replace(b'"type":"content_block_stop"', b'"type":7'),
    ],
)
def test_a_stream_with_an_event_that_cannot_be_read_is_relayed_and_not_kept(raw: bytes) -> None:
    assert raw != PLAIN.stream
    assert read(raw).unstorable is Unstorable.MALFORMED


def test_pings_are_welcome_anywhere_and_kept_nowhere() -> None:
    ping = framed({"type": "ping"})
    raw = ping.join([b"", *(framed(event) for event in PLAIN.events), b""])
    assert read(raw) == read(PLAIN.stream)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"[]", Unstorable.MALFORMED),
        (b"{}", Unstorable.MALFORMED),
        (body("Four days."), Unstorable.MALFORMED),
        (body({"text": "Four days."}), Unstorable.MALFORMED),
        (body({"type": "text", "text": None}), Unstorable.MALFORMED),
        (dumps({"type": "error", "error": {"type": "api_error", "message": "no"}}), Unstorable.ERROR),
        (body({"type": "text", "text": "no"}, code=529), Unstorable.ERROR),
    ],
)
def test_a_body_that_is_no_message_is_not_kept(raw: bytes, why: Unstorable) -> None:
    reading = read(raw, JSON)
    assert (reading.answer, reading.unstorable) == (None, why)


@pytest.mark.parametrize(
    ("raw", "store_tools", "why"),
    [
        (body({"type": "text", "text": "Four days."}), False, None),
        (body({"type": "text", "text": "Four days."}, stop=None), False, Unstorable.FINISH),
        (body({"type": "text", "text": "Four days."}, stop=["end_turn"]), False, Unstorable.FINISH),
        (body(), False, Unstorable.EMPTY),
        (body({"type": "tool_use", "id": "t", "name": "f", "input": {}}, stop="tool_use"), True, None),
        (
            body({"type": "tool_use", "id": "t", "name": "f", "input": "{}"}, stop="tool_use"),
            True,
            Unstorable.MALFORMED,
        ),
        (body({"type": "tool_use", "id": "t", "name": "f"}, stop="tool_use"), True, Unstorable.MALFORMED),
        (
            body({"type": "tool_use", "id": "t", "name": "f", "input": {}}, stop="tool_use"),
            False,
            Unstorable.TOOL_CALLS,
        ),
    ],
)
def test_a_body_may_be_kept_or_there_is_a_reason(raw: bytes, store_tools: bool, why: Unstorable | None) -> None:
    reading = read(raw, JSON, store_tools=store_tools)
    assert reading.answer is not None
    assert reading.unstorable is why


def test_a_first_piece_that_is_an_object_does_not_hide_what_follows() -> None:
    raw = stream(*message(call("{}", "{}"), stop="tool_use"))
    assert read(raw, store_tools=True).unstorable is Unstorable.MALFORMED


# Figures


@pytest.mark.parametrize(
    ("usage", "totals", "told"),
    [
        (USAGE, TOTALS, Usage(21 + 1024, 15, 1024)),
        ({"input_tokens": 21, "output_tokens": 1}, {"output_tokens": 15}, Usage(21, 15)),
        ({"input_tokens": 21, "output_tokens": 1}, {**TOTALS, "input_tokens": 30}, Usage(30 + 1024, 15, 1024)),
        (USAGE, {**TOTALS, "input_tokens": None, "cache_creation_input_tokens": 7}, Usage(21 + 7 + 1024, 15, 1024)),
        ({}, {}, None),
        (None, None, None),
        ({"input_tokens": "21"}, {"output_tokens": True}, None),
    ],
)
def test_the_ledger_counts_input_however_the_vendor_came_by_it(usage: Any, totals: Any, told: Usage | None) -> None:
    reading = read(stream(*message(SAID, usage=usage, totals=totals)))
    assert reading.usage == told
    assert reading.answer is not None
    assert reading.answer.usage == told


def test_a_stream_that_broke_off_tells_what_it_had_cost_so_far() -> None:
    assert read(stream(START, OPEN, SAY)).usage == Usage(21 + 1024, 1, 1024)


# Status, encoding, size


@pytest.mark.parametrize("status", [201, 202, 206, 400, 429, 500, 529])
def test_only_a_200_is_read(status: int) -> None:
    assert read(PLAIN.stream, status=status).unstorable is Unstorable.STATUS


def test_an_answer_past_the_limit_is_relayed_and_not_held() -> None:
    assert read(PLAIN.stream, limit_bytes=200).unstorable is Unstorable.TOO_LARGE
    assert read(PLAIN.body, JSON, limit_bytes=200).unstorable is Unstorable.TOO_LARGE
