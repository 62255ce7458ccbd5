"""Reading an upstream's reply as it arrives, in any dialect: what to relay, what to keep, and whether it may be kept.

Complete is what the dialect calls complete, never what HTTP does: SDKs take a stream without its end for a whole one,
so a store that did so too would hand out half an answer for a day. What the dialect calls so is said by its judge; the
scribes here cut the bytes, hold what may be kept, and ask it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, Protocol

import orjson

from semcache.types import Answer, Form, Unstorable, Usage
from semcache.wire.dialect import Frame, Reading, Scribe
from semcache.wire.sse import Block, Splitter


class Took(Enum):
    """What an event of a stream is, to the one who relays and records it."""

    CONTENT = "content"  # part of the answer: kept
    USAGE = "usage"  # the same, but relayed to those only who asked for usage
    SIGNAL = "signal"  # of the connection: pings, the terminal mark. Relayed, and made anew in a replay
    FOREIGN = "foreign"  # not as the dialect has it: relayed, and the judge says what is `wrong`


class Judge(Protocol):
    """Says what a reply's events or body tell. Pure; one for each reply."""

    @property
    def wrong(self) -> Unstorable | None:
        """The first thing seen that leaves no answer at all."""

    @property
    def usage(self) -> Usage | None: ...

    def take_event(self, name: bytes, data: bytes) -> Took:
        """Take in an event of a stream: its name (b"" where there is none) and its data. Never raises."""

    def take_body(self, value: Any) -> bool:
        """Take in a whole JSON body. False: not as the dialect has it; see `wrong`. Never raises."""

    def has_ended(self) -> bool:
        """The stream's terminal event has been seen."""

    def is_finished(self) -> bool:
        """Everything that was asked for has come to an end, whatever end."""

    def why_not_keep(self) -> Unstorable | None:
        """Judge a whole answer."""

    def forget(self) -> None:
        """The answer will not be kept: hold nothing that was only held to judge it."""


class BodyJudge:
    """Of an endpoint without streams. A body that is as it should be is whole, and may be kept."""

    def __init__(self, read: Callable[[Mapping[str, Any]], Unstorable | Usage | None]) -> None:
        """`read` says of a body that is no error what is wrong with it, or else its usage, if it tells any."""
        self._read = read
        self.usage: Usage | None = None
        self.wrong: Unstorable | None = None

    def take_event(self, name: bytes, data: bytes) -> Took:
        self.wrong = Unstorable.MALFORMED
        return Took.FOREIGN

    def take_body(self, value: Any) -> bool:
        found = self._look(value)
        if isinstance(found, Unstorable):
            self.wrong = found
        else:
            self.usage = found
        return self.wrong is None

    def _look(self, value: Any) -> Unstorable | Usage | None:
        if type(value) is not dict:
            return Unstorable.MALFORMED
        return Unstorable.ERROR if is_error(value) else self._read(value)

    def has_ended(self) -> bool:
        return True

    def is_finished(self) -> bool:
        return True

    def why_not_keep(self) -> Unstorable | None:
        return None

    def forget(self) -> None:
        """Nothing is held."""


class Cutter(Protocol):
    """Cuts a byte stream into blocks, joined equal to the input: `sse.Splitter`, or lines."""

    def feed(self, chunk: bytes) -> list[Block]: ...

    def finish(self) -> tuple[list[Block], bytes]: ...


_SSE: Mapping[str, Callable[[], Cutter]] = {"text/event-stream": Splitter}


def start_scribe(
    judge: Judge,
    dialect: str,
    status: int,
    headers: Mapping[str, str],
    *,
    limit_bytes: int,
    streams: Mapping[str, Callable[[], Cutter]] = _SSE,
) -> Scribe:
    """Choose by what the reply says of itself. If that is not true, its bytes fail to read as it, and are not kept.

    `dialect`: written into the answer. `streams`: media type -> how its streams are cut; any other is read as JSON.
    """
    if status != 200:
        return Relay(Unstorable.STATUS)
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        return Relay(Unstorable.ENCODING)
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type in streams:
        return StreamScribe(judge, dialect, limit_bytes, streams[media_type]())
    return JsonScribe(judge, dialect, limit_bytes)


class Relay:
    """A reply that is passed on and not read."""

    def __init__(self, reason: Unstorable) -> None:
        self._reason = reason

    def feed(self, chunk: bytes, offset_ms: int) -> Sequence[Frame]:
        return (Frame(chunk),) if chunk else ()

    def finish(self, whole: bool) -> tuple[Sequence[Frame], Reading]:
        return (), Reading(None, self._reason)


class StreamScribe:
    """Reads a stream of events."""

    def __init__(self, judge: Judge, dialect: str, limit_bytes: int, cutter: Cutter) -> None:
        self._judge = judge
        self._dialect = dialect
        self._limit_bytes = limit_bytes
        self._cutter = cutter
        self._parts: list[bytes] = []
        self._offsets_ms: list[int] = []
        self._size_bytes = 0
        self._too_large = False
        self._last_ms = 0

    def feed(self, chunk: bytes, offset_ms: int) -> Sequence[Frame]:
        self._last_ms = offset_ms
        return [self._read(block, offset_ms) for block in self._cutter.feed(chunk)]

    def finish(self, whole: bool) -> tuple[Sequence[Frame], Reading]:
        blocks, rest = self._cutter.finish()
        frames = [self._read(block, self._last_ms) for block in blocks]
        if rest:
            frames.append(Frame(rest))
        return frames, self._reading()

    def _read(self, block: Block, offset_ms: int) -> Frame:
        if block.data is None:
            if block.too_large:
                self._let_go()
            return Frame(block.raw)
        took = self._judge.take_event(block.event, block.data)
        if took is Took.SIGNAL or took is Took.FOREIGN:
            return Frame(block.raw)
        self._keep(block.data, offset_ms)
        return Frame(block.raw, took is Took.USAGE, block.data)

    def _keep(self, data: bytes, offset_ms: int) -> None:
        if self._too_large:
            return
        self._size_bytes += len(data)
        if self._size_bytes > self._limit_bytes:
            self._let_go()
            return
        self._parts.append(data)
        self._offsets_ms.append(offset_ms)

    def _let_go(self) -> None:
        """Too large to keep: go on reading for the relay's sake, and hold nothing."""
        self._too_large = True
        self._judge.forget()
        self._parts.clear()
        self._offsets_ms.clear()

    def _reading(self) -> Reading:
        judge = self._judge
        if judge.wrong is not None:
            return Reading(None, judge.wrong, judge.usage)
        if not judge.has_ended():  # with its end of its own it is whole, whatever the framing says
            return Reading(None, Unstorable.INCOMPLETE, judge.usage)
        if self._too_large:
            return Reading(None, Unstorable.TOO_LARGE, judge.usage)
        why_not = judge.why_not_keep()
        if not judge.is_finished():
            nothing = why_not is Unstorable.EMPTY
            return Reading(None, Unstorable.EMPTY if nothing else Unstorable.INCOMPLETE, judge.usage)
        answer = Answer(self._dialect, Form.STREAM, tuple(self._parts), tuple(self._offsets_ms), judge.usage)
        return Reading(answer, why_not, judge.usage)


class JsonScribe:
    """Reads one JSON body."""

    def __init__(self, judge: Judge, dialect: str, limit_bytes: int) -> None:
        self._judge = judge
        self._dialect = dialect
        self._limit_bytes = limit_bytes
        self._chunks: list[bytes] = []
        self._size_bytes = 0
        self._last_ms = 0

    def feed(self, chunk: bytes, offset_ms: int) -> Sequence[Frame]:
        if not chunk:
            return ()
        self._last_ms = offset_ms
        self._size_bytes += len(chunk)
        if self._size_bytes <= self._limit_bytes:
            self._chunks.append(chunk)
        else:
            self._chunks.clear()
        return (Frame(chunk),)

    def finish(self, whole: bool) -> tuple[Sequence[Frame], Reading]:
        return (), self._reading(whole)

    def _reading(self, whole: bool) -> Reading:
        judge = self._judge
        if self._size_bytes > self._limit_bytes:
            return Reading(None, Unstorable.TOO_LARGE)
        body = b"".join(self._chunks)
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            return Reading(None, Unstorable.MALFORMED if whole else Unstorable.INCOMPLETE)
        if not judge.take_body(value):
            return Reading(None, judge.wrong, judge.usage)
        answer = Answer(self._dialect, Form.JSON, (body,), (self._last_ms,), judge.usage)
        return Reading(answer, judge.why_not_keep(), judge.usage)


_STATUS_FIELDS = ("status", "status_code", "statusCode", "code")  # where servers put a 5xx that they send as a 200


def is_error(value: Mapping[str, Any]) -> bool:
    """Whether an object is an error in spite of its status 200, in the ways that servers are known to say so."""
    if value.get("error") or value.get("object") == "error" or value.get("type") == "error":
        return True
    for name in _STATUS_FIELDS:
        code = value.get(name)
        if type(code) is int and code >= 400:
            return True
    return False


def is_object(text: str | bytes) -> bool:
    """Whether this is a whole JSON object, as the arguments of a call have to be."""
    try:
        return type(orjson.loads(text)) is dict
    except orjson.JSONDecodeError:
        return False


def usage_in(told: object, prompt: str, completion: str) -> Usage | None:
    """The figures that a vendor tells under these names. None where they are no whole numbers."""
    if type(told) is not dict:
        return None
    counts = told.get(prompt), told.get(completion) or 0
    if type(counts[0]) is not int or type(counts[1]) is not int:
        return None
    return Usage(counts[0], counts[1], _cached(told, prompt))


def _cached(told: Mapping[str, Any], prompt: str) -> int:
    """Of the prompt, in the upstream's own cache: in OpenAI's form, which most servers share, or in DeepSeek's."""
    details = told.get(f"{prompt}_details")
    cached = details.get("cached_tokens") if type(details) is dict else told.get("prompt_cache_hit_tokens")
    return cached if type(cached) is int else 0
