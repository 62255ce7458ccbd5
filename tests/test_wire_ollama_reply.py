"""Which of Ollama's answers are whole, which may be kept, and that every byte is relayed whatever they are."""

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
from tests.recordings_ollama import RECORDINGS, Recording, dumps
from tests.replies import read_reply

LINES = {"content-type": "application/x-ndjson"}
JSON = {"content-type": "application/json; charset=utf-8"}
PLAIN = RECORDINGS[0]
NAMED = pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.name)


def read(
    reply: bytes | Sequence[bytes], recording: Recording = PLAIN, headers: dict[str, str] = LINES, **options: Any
) -> Reading:
    options["store_tools"] = recording.store_tools
    return read_reply(f"/api/{recording.endpoint}", dumps(recording.request), reply, headers, **options)[1]


@NAMED
def test_a_stream_is_kept_line_by_line_or_there_is_a_reason(recording: Recording) -> None:
    reading = read(recording.stream, recording)
    assert reading.unstorable == recording.why_not
    assert reading.answer is not None
    assert reading.answer.form is Form.STREAM
    assert list(reading.answer.parts) == recording.stream.splitlines()


@NAMED
def test_a_body_is_kept_as_it_is_or_there_is_a_reason(recording: Recording) -> None:
    reading = read(recording.body, recording, JSON)
    assert reading.unstorable == recording.why_not
    assert reading.answer is not None
    assert reading.answer.form is Form.JSON
    assert reading.answer.parts == (recording.body,)


@NAMED
def test_a_stream_cut_anywhere_is_not_kept(recording: Recording) -> None:
    for at in range(len(recording.stream) - 1):  # only the last line feed may be missing
        for whole in (True, False):
            reading = read(recording.stream[:at], recording, whole=whole)
            assert reading.answer is None
            assert reading.unstorable is Unstorable.INCOMPLETE


@NAMED
def test_a_body_cut_anywhere_is_not_kept(recording: Recording) -> None:
    for at in range(len(recording.body)):
        assert read(recording.body[:at], recording, JSON, whole=False).answer is None


@NAMED
def test_a_stream_reads_the_same_wherever_it_is_split(recording: Recording) -> None:
    for stream in (recording.stream, recording.stream.replace(b"\n", b"\r\n"), recording.stream[:-1]):
        whole = read(stream, recording)
        for at in range(len(stream) + 1):
            split = read([stream[:at], stream[at:]], recording)
            assert split.answer is not None and whole.answer is not None
            assert (split.answer.parts, split.unstorable, split.usage) == (
                whole.answer.parts,
                whole.unstorable,
                whole.usage,
            )


@given(st.sampled_from(RECORDINGS), st.data())
def test_a_stream_reads_the_same_in_any_chunks(recording: Recording, data: st.DataObject) -> None:
    stream = recording.stream
    places = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reading = read([stream[start:end] for start, end in pairwise([0, *places, len(stream)])], recording)
    assert reading.answer is not None
    assert list(reading.answer.parts) == stream.splitlines()


def test_lines_know_when_they_came() -> None:
    reading = read(PLAIN.stream.splitlines(keepends=True))
    assert reading.answer is not None
    assert reading.answer.offsets_ms == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("figures", "usage"),
    [
        ({"prompt_eval_count": 26, "eval_count": 5}, Usage(26, 5)),
        ({"eval_count": 5}, Usage(0, 5)),
        ({"prompt_eval_count": 26}, None),
        ({"prompt_eval_count": "26", "eval_count": 5}, None),
        ({"eval_count": True}, None),
        ({}, None),
    ],
)
def test_the_last_line_tells_the_usage(figures: dict[str, Any], usage: Usage | None) -> None:
    line = {"model": "tiny", "message": {"role": "assistant", "content": "Four."}, "done": True, "done_reason": "stop"}
    for headers in (LINES, JSON):
        reading = read(dumps({**line, **figures}) + b"\n", headers=headers)
        assert reading.usage == usage
        assert reading.answer is not None and reading.answer.usage == usage


FOUR = {"model": "tiny", "message": {"role": "assistant", "content": "Four"}, "done": False}
END = {"model": "tiny", "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"}


def lines(*values: Any) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (b"", Unstorable.INCOMPLETE),
        (b"\n\n", Unstorable.INCOMPLETE),
        (lines(FOUR), Unstorable.INCOMPLETE),
        (lines(FOUR, {"error": "the model runner has gone"}), Unstorable.ERROR),
        (lines(FOUR, {"error": "the model runner has gone"}, END), Unstorable.ERROR),
        (lines({"error": {"message": "in somebody else's form"}}), Unstorable.ERROR),
        (lines(FOUR, END, FOUR), Unstorable.MALFORMED),
        (lines(FOUR, END, END), Unstorable.MALFORMED),
        (lines(FOUR, END) + b"<html>\n", Unstorable.MALFORMED),
        (lines(FOUR, [], END), Unstorable.MALFORMED),
        (lines({**FOUR, "message": None}, END), Unstorable.MALFORMED),
        (lines({**FOUR, "message": "Four"}, END), Unstorable.MALFORMED),
        (lines({**FOUR, "message": {"content": ["Four"]}}, END), Unstorable.MALFORMED),
        (lines({**FOUR, "message": {"content": "Four", "thinking": 4}}, END), Unstorable.MALFORMED),
        (lines({**FOUR, "message": {"content": "Four", "tool_calls": {"a": 1}}}, END), Unstorable.MALFORMED),
        (lines({**FOUR, "done": None}, END), Unstorable.MALFORMED),
        (lines({**FOUR, "done": 0}, {**END, "done": 1}), Unstorable.MALFORMED),
        (lines({"model": "tiny", "response": "of the other endpoint", "done": False}, END), Unstorable.MALFORMED),
        (b"data: " + lines(FOUR) + lines(END), Unstorable.MALFORMED),
    ],
)
def test_what_is_no_whole_answer_is_relayed_and_not_kept(stream: bytes, why: Unstorable) -> None:
    reading = read(stream)
    assert (reading.answer, reading.unstorable) == (None, why)
    assert read([stream[at : at + 1] for at in range(len(stream))]) == reading


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (FOUR, Unstorable.INCOMPLETE),  # not done
        ({"error": "model 'tiny' not found"}, Unstorable.ERROR),
        ({"object": "error", "message": "as others say it"}, Unstorable.ERROR),
        ([], Unstorable.MALFORMED),
        ({}, Unstorable.MALFORMED),
        ({"model": "tiny", "_debug_info": {"rendered_template": "x"}, "done": False}, Unstorable.MALFORMED),
    ],
)
def test_a_body_that_is_no_answer_is_not_kept(body: Any, why: Unstorable) -> None:
    reading = read(json.dumps(body).encode(), headers=JSON)
    assert (reading.answer, reading.unstorable) == (None, why)


def test_a_line_that_began_after_the_end_changes_nothing() -> None:
    assert read(lines(FOUR, END) + b"<html>").unstorable is None


def test_old_servers_end_with_a_line_of_figures_alone() -> None:
    reading = read(lines(FOUR, {"model": "tiny", "done": True, "done_reason": "stop", "eval_count": 2}))
    assert reading.unstorable is None
    assert reading.usage == Usage(0, 2)


@pytest.mark.parametrize("status", [201, 400, 404, 429, 500, 503])
def test_another_status_is_not_kept(status: int) -> None:
    assert read(PLAIN.stream, status=status) == Reading(None, Unstorable.STATUS)


def test_a_packed_stream_is_not_kept() -> None:
    assert read(PLAIN.stream, headers={**LINES, "content-encoding": "gzip"}).unstorable is Unstorable.ENCODING


def test_a_stream_that_says_it_is_a_body_is_not_kept() -> None:
    assert read(PLAIN.stream, headers=JSON).unstorable is Unstorable.MALFORMED


@pytest.mark.parametrize(
    "media_type", ["application/x-ndjson", "application/ndjson; charset=utf-8", "Application/JSONL"]
)
def test_streams_go_by_several_names(media_type: str) -> None:
    assert read(PLAIN.stream, headers={"content-type": media_type}).unstorable is None


def test_an_answer_past_the_limit_is_not_kept() -> None:
    size = sum(map(len, PLAIN.stream.splitlines()))
    assert read(PLAIN.stream, limit_bytes=size).unstorable is None
    assert read(PLAIN.stream, limit_bytes=size - 1) == Reading(None, Unstorable.TOO_LARGE, Usage(26, 5))
    assert read(PLAIN.body, headers=JSON, limit_bytes=len(PLAIN.body) - 1).unstorable is Unstorable.TOO_LARGE


def test_a_line_too_large_to_read_leaves_no_answer() -> None:
    long = {**FOUR, "message": {"role": "assistant", "content": "x" * (1 << 20)}}
    stream = lines(long, FOUR, END)
    chunks = [stream[at : at + 65536] for at in range(0, len(stream), 65536)]
    assert read(chunks, limit_bytes=1 << 24) == Reading(None, Unstorable.TOO_LARGE)


@given(st.binary(max_size=200), st.sampled_from([LINES, JSON]))
def test_nothing_raises(reply: bytes, headers: dict[str, str]) -> None:
    assert read(reply, headers=headers).answer is None
