"""Reading replies for any dialect: every byte is relayed, what is kept is bounded, and the judge has the say."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.types import Answer, Form, Unstorable, Usage
from semcache.wire import Frame, Reading
from semcache.wire.scribes import JsonScribe, Relay, StreamScribe, Took, is_error, start_scribe
from semcache.wire.sse import Block, Splitter


class Counting:
    """A judge of a made-up dialect: words, pings, a count of the words, and `end`."""

    def __init__(self, why_not: Unstorable | None = None) -> None:
        self._why_not = why_not
        self._words = 0
        self._ended = False
        self.wrong: Unstorable | None = None
        self.usage: Usage | None = None
        self.forgot = False

    def take_event(self, name: bytes, data: bytes) -> Took:
        if name == b"ping":
            return Took.SIGNAL
        if data == b"end":
            self._ended = True
            return Took.SIGNAL
        if data.startswith(b"count"):
            self.usage = Usage(1, self._words)
            return Took.USAGE
        if not data.startswith(b"word"):
            self.wrong = self.wrong or Unstorable.MALFORMED
            return Took.FOREIGN
        self._words += 1
        return Took.CONTENT

    def take_body(self, value: Any) -> bool:
        if value != {"words": 2}:
            self.wrong = Unstorable.ERROR
            return False
        self.usage = Usage(1, 2)
        return True

    def has_ended(self) -> bool:
        return self._ended

    def is_finished(self) -> bool:
        return self._words >= 2

    def why_not_keep(self) -> Unstorable | None:
        return Unstorable.EMPTY if not self._words and self.usage is None else self._why_not

    def forget(self) -> None:
        self.forgot = True


STREAM = b": hello\n\ndata: word one\n\nevent: ping\ndata: x\n\ndata: word\ndata: two\n\ndata: count 2\n\ndata: end\n\n"
KEPT = (b"word one", b"word\ntwo", b"count 2")


def read(judge: Counting, *chunks: bytes, limit_bytes: int = 1000) -> tuple[list[Frame], Reading]:
    scribe = StreamScribe(judge, "made-up", limit_bytes, Splitter())
    frames = [frame for number, chunk in enumerate(chunks) for frame in scribe.feed(chunk, 10 * number)]
    last, reading = scribe.finish(True)
    return [*frames, *last], reading


def test_a_stream_keeps_its_content_and_relays_everything() -> None:
    frames, reading = read(Counting(), STREAM)
    assert reading == Reading(Answer("made-up", Form.STREAM, KEPT, (0, 0, 0), Usage(1, 2)), None, Usage(1, 2))
    assert b"".join(frame.raw for frame in frames) == STREAM
    assert [frame.payload for frame in frames] == [None, b"word one", None, b"word\ntwo", b"count 2", None]
    assert [frame.usage_only for frame in frames] == [False, False, False, False, True, False]


@given(st.lists(st.integers(0, len(STREAM)), max_size=6))
def test_chunks_make_no_difference_but_in_time(cuts: list[int]) -> None:
    marks = [0, *sorted(cuts), len(STREAM)]
    frames, reading = read(Counting(), *(STREAM[start:end] for start, end in pairwise(marks)))
    assert b"".join(frame.raw for frame in frames) == STREAM
    assert reading.answer is not None
    assert reading.answer.parts == KEPT
    assert list(reading.answer.offsets_ms) == sorted(reading.answer.offsets_ms)


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (STREAM.replace(b"data: end\n\n", b""), Unstorable.INCOMPLETE),
        (STREAM.removesuffix(b"\n"), Unstorable.INCOMPLETE),
        (STREAM.replace(b"data: word one\n\n", b""), Unstorable.INCOMPLETE),
        (b"data: end\n\n", Unstorable.EMPTY),
        (b"data: oops\n\n" + STREAM, Unstorable.MALFORMED),
        (b"", Unstorable.INCOMPLETE),
    ],
)
def test_a_stream_that_is_not_whole_has_no_answer(stream: bytes, why: Unstorable) -> None:
    frames, reading = read(Counting(), stream)
    assert (reading.answer, reading.unstorable) == (None, why)
    assert b"".join(frame.raw for frame in frames) == stream


def test_a_whole_answer_that_must_not_be_kept_may_be_played_to_those_who_wait() -> None:
    reading = read(Counting(Unstorable.FINISH), STREAM)[1]
    assert reading.unstorable is Unstorable.FINISH
    assert reading.answer is not None


@pytest.mark.parametrize("limit_bytes", [0, 10, sum(map(len, KEPT)) - 1])
def test_past_its_limit_a_stream_is_read_and_not_held(limit_bytes: int) -> None:
    judge = Counting()
    frames, reading = read(judge, STREAM, limit_bytes=limit_bytes)
    assert reading == Reading(None, Unstorable.TOO_LARGE, Usage(1, 2))
    assert judge.forgot
    assert b"".join(frame.raw for frame in frames) == STREAM


def test_at_its_limit_a_stream_is_kept() -> None:
    judge = Counting()
    assert read(judge, STREAM, limit_bytes=sum(map(len, KEPT)))[1].unstorable is None
    assert not judge.forgot


def test_a_body_is_judged_when_it_is_whole() -> None:
    scribe = JsonScribe(Counting(), "made-up", 100)
    assert [scribe.feed(b'{"words":', 5), scribe.feed(b"", 6), scribe.feed(b" 2}", 7)] == [
        (Frame(b'{"words":'),),
        (),
        (Frame(b" 2}"),),
    ]
    body = Answer("made-up", Form.JSON, (b'{"words": 2}',), (7,), Usage(1, 2))
    assert scribe.finish(True) == ((), Reading(body, None, Usage(1, 2)))


@pytest.mark.parametrize(
    ("body", "whole", "why"),
    [
        (b'{"words": ', True, Unstorable.MALFORMED),
        (b'{"words": ', False, Unstorable.INCOMPLETE),
        (b"", False, Unstorable.INCOMPLETE),
        (b'{"words": 3}', True, Unstorable.ERROR),
        (b'{"words": 2}' + b" " * 100, True, Unstorable.TOO_LARGE),
        (b'{"words": NaN}', True, Unstorable.MALFORMED),
        (b"[" * 5000, True, Unstorable.MALFORMED),
    ],
)
def test_a_body_that_is_not_whole_has_no_answer(body: bytes, whole: bool, why: Unstorable) -> None:
    scribe = JsonScribe(Counting(), "made-up", 100 if why is Unstorable.TOO_LARGE else 10_000)
    assert scribe.feed(body, 0) == ((Frame(body),) if body else ())
    reading = scribe.finish(whole)[1]
    assert (reading.answer, reading.unstorable) == (None, why)


@pytest.mark.parametrize(
    ("status", "headers", "kind"),
    [
        (200, {"content-type": "text/event-stream"}, StreamScribe),
        (200, {"content-type": "Text/Event-Stream; charset=utf-8"}, StreamScribe),
        (200, {"content-type": "application/json"}, JsonScribe),
        (200, {}, JsonScribe),
        (200, {"content-encoding": "identity"}, JsonScribe),
        (200, {"content-encoding": " Identity "}, JsonScribe),
        (200, {"content-encoding": ""}, JsonScribe),
        (200, {"content-encoding": "gzip"}, Relay),
        (201, {"content-type": "application/json"}, Relay),
        (206, {"content-type": "text/event-stream"}, Relay),
        (500, {"content-type": "application/json"}, Relay),
    ],
)
def test_what_a_reply_says_of_itself_decides_how_it_is_read(status: int, headers: dict[str, str], kind: type) -> None:
    assert type(start_scribe(Counting(), "made-up", status, headers, limit_bytes=9)) is kind


class Lines:
    """A stream of a dialect that has no events: a block a line."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, chunk: bytes) -> list[Block]:
        *lines, self._held = (self._held + chunk).split(b"\n")
        return [Block(line + b"\n", line) for line in lines]

    def finish(self) -> tuple[list[Block], bytes]:
        return [], self._held


def test_a_dialect_says_how_its_streams_are_cut() -> None:
    lines = {"application/x-ndjson": Lines}
    scribe = start_scribe(Counting(), "d", 200, {"content-type": "application/x-ndjson"}, limit_bytes=99, streams=lines)
    frames = [*scribe.feed(b"word a\nwo", 0), *scribe.feed(b"rd b\nend\n", 4)]
    assert [frame.raw for frame in frames] == [b"word a\n", b"word b\n", b"end\n"]
    answer = scribe.finish(True)[1].answer
    assert answer is not None
    assert (answer.parts, answer.offsets_ms) == ((b"word a", b"word b"), (0, 4))
    other = start_scribe(Counting(), "d", 200, {"content-type": "text/event-stream"}, limit_bytes=9, streams=lines)
    assert type(other) is JsonScribe


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"error": {"message": "busy"}}, True),
        ({"error": "busy"}, True),
        ({"error": None}, False),
        ({"error": {}}, False),
        ({"object": "error", "message": "busy"}, True),
        ({"type": "error"}, True),
        ({"status": 500}, True),
        ({"status_code": 429}, True),
        ({"statusCode": 400}, True),
        ({"code": 503}, True),
        ({"status": "completed"}, False),
        ({"status": 200}, False),
        ({"code": 0}, False),
        ({"code": True}, False),
        ({}, False),
    ],
)
def test_an_error_is_known_though_its_status_is_200(value: dict[str, Any], expected: bool) -> None:
    assert is_error(value) is expected
