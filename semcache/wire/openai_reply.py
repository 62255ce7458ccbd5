"""Reading a chat completions reply as it arrives: what to relay, and whether it may be kept.

Complete is what the dialect calls complete, never what HTTP does: SDKs take a stream without its end for a whole one,
so a store that did so too would hand out half an answer for a day. A stream is whole with `[DONE]` and a finish reason
for each choice; a JSON body when it parses. Storable is less: every choice ended with `stop` and says something.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from semcache.types import Answer, Ask, Form, Unstorable, Usage
from semcache.wire.dialect import Frame, Reading, Scribe
from semcache.wire.sse import Block, Splitter

_NATURAL = frozenset({"stop"})
_NATURAL_WITH_TOOLS = frozenset({"stop", "tool_calls", "function_call"})
_NOTHING: dict[str, Any] = {}
_STATUS_FIELDS = ("status", "status_code", "statusCode", "code")  # where servers put a 5xx that they send as a 200


def start_scribe(ask: Ask, status: int, headers: Mapping[str, str], *, store_tools: bool, limit_bytes: int) -> Scribe:
    """Choose by what the reply says of itself. If that is not true, its bytes fail to read as it, and are not kept."""
    if status != 200:
        return Relay(Unstorable.STATUS)
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        return Relay(Unstorable.ENCODING)
    judge = Judge(ask.dialect, ask.traits.choices, store_tools)
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "text/event-stream":
        return StreamScribe(judge, limit_bytes)
    return JsonScribe(judge, limit_bytes)


class Relay:
    """A reply that is passed on and not read."""

    def __init__(self, reason: Unstorable) -> None:
        self._reason = reason

    def feed(self, chunk: bytes, offset_ms: int) -> Sequence[Frame]:
        return (Frame(chunk),) if chunk else ()

    def finish(self, whole: bool) -> tuple[Sequence[Frame], Reading]:
        return (), Reading(None, self._reason)


class _Choice:
    """What has been seen of one choice, in either form."""

    __slots__ = ("arguments", "ended_otherwise", "is_finished", "refused", "said_something", "uses_tools")

    def __init__(self) -> None:
        self.is_finished = False
        self.ended_otherwise = False  # than by a natural stop
        self.said_something = False  # content that is more than white space
        self.refused = False
        self.uses_tools = False
        self.arguments: dict[object, list[str]] = {}  # of each call, in pieces


class Judge:
    """Says of the choices seen whether they make a whole answer, and whether it may be kept."""

    def __init__(self, dialect: str, choices: int, store_tools: bool) -> None:
        self.dialect = dialect
        self._expected = choices
        self._store_tools = store_tools
        self._natural = _NATURAL_WITH_TOOLS if store_tools else _NATURAL
        self._choices: dict[int, _Choice] = {}
        self.usage: Usage | None = None
        self.wrong: Unstorable | None = None  # the first thing that leaves no answer at all

    def look(self, value: object, said: str) -> bool:
        """Take in a chunk (`said`: "delta") or a body ("message"). False: not as the dialect has it; see `wrong`."""
        fault = self._look(value, said)
        if fault is not None and self.wrong is None:
            self.wrong = fault
        return fault is None

    def _look(self, value: object, said: str) -> Unstorable | None:
        if type(value) is not dict:
            return Unstorable.MALFORMED
        if _is_error(value):
            return Unstorable.ERROR
        choices = value.get("choices")
        if type(choices) is not list:
            return Unstorable.MALFORMED
        for place, item in enumerate(choices):
            if type(item) is not dict:
                return Unstorable.MALFORMED
            if item.get("error"):
                return Unstorable.ERROR
            index = item.get("index", place)
            message = item.get(said)
            if message is None and said == "delta":
                message = _NOTHING  # Azure's content filter reports on text that has gone before
            if type(message) is not dict or type(index) is not int or not 0 <= index < self._expected:
                return Unstorable.MALFORMED
            choice = self._choices.get(index)
            if choice is None:
                choice = self._choices[index] = _Choice()
            finish = item.get("finish_reason")
            if finish is not None:
                choice.is_finished = True
                choice.ended_otherwise |= type(finish) is not str or finish not in self._natural
            if not _take_in(choice, message, self._store_tools):
                return Unstorable.MALFORMED
        if (usage := value.get("usage")) is not None:
            self.usage = _usage(usage) or self.usage
        return None

    def is_finished(self) -> bool:
        """Every choice asked for has come to an end, whatever end."""
        return len(self._choices) == self._expected and all(c.is_finished for c in self._choices.values())

    def forget(self) -> None:
        """The answer will not be kept, so its tool calls need not be checked, nor held for that."""
        self._store_tools = False
        for choice in self._choices.values():
            choice.arguments.clear()

    def why_not_keep(self) -> Unstorable | None:
        """Judge a whole answer: 1. something said, 2. tools allowed and sound, 3. ended by itself, all choices."""
        if not self._choices:
            return Unstorable.EMPTY
        if len(self._choices) != self._expected:
            return Unstorable.INCOMPLETE
        choices = self._choices.values()
        if any(c.uses_tools for c in choices) and not self._store_tools:
            return Unstorable.TOOL_CALLS
        if any(c.refused or c.ended_otherwise or not c.is_finished for c in choices):
            return Unstorable.FINISH
        if any(not c.said_something and not c.uses_tools for c in choices):
            return Unstorable.EMPTY
        if not all(_is_object("".join(pieces)) for c in choices for pieces in c.arguments.values()):
            return Unstorable.MALFORMED
        return None


class StreamScribe:
    """Reads server-sent events."""

    def __init__(self, judge: Judge, limit_bytes: int) -> None:
        self._judge = judge
        self._limit_bytes = limit_bytes
        self._splitter = Splitter()
        self._parts: list[bytes] = []
        self._offsets_ms: list[int] = []
        self._size_bytes = 0
        self._too_large = False
        self._done = False
        self._last_ms = 0

    def feed(self, chunk: bytes, offset_ms: int) -> Sequence[Frame]:
        self._last_ms = offset_ms
        return [self._read(block, offset_ms) for block in self._splitter.feed(chunk)]

    def finish(self, whole: bool) -> tuple[Sequence[Frame], Reading]:
        blocks, rest = self._splitter.finish()
        frames = [self._read(block, self._last_ms) for block in blocks]
        if rest:
            frames.append(Frame(rest))
        return frames, self._reading()

    def _read(self, block: Block, offset_ms: int) -> Frame:
        data = block.data
        if data is None:
            if block.too_large:
                self._let_go()
            return Frame(block.raw)
        if block.event == b"error":
            self._judge.wrong = self._judge.wrong or Unstorable.ERROR
            return Frame(block.raw)
        if self._done or block.event not in (b"", b"message"):
            # After the end nothing may come; and a replay would lose the name of an event of somebody's own.
            self._judge.wrong = self._judge.wrong or Unstorable.MALFORMED
            return Frame(block.raw)
        if data == b"[DONE]":
            self._done = True
            return Frame(block.raw)
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError:
            value = None
        if not self._judge.look(value, "delta"):
            return Frame(block.raw)
        self._keep(data, offset_ms)
        usage_only = not value["choices"] and bool(value.get("usage"))
        return Frame(block.raw, usage_only, data)

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
        if not self._done:  # with its end of its own it is whole, `whole` or not
            return Reading(None, Unstorable.INCOMPLETE, judge.usage)
        if self._too_large:
            return Reading(None, Unstorable.TOO_LARGE, judge.usage)
        why_not = judge.why_not_keep()
        if not judge.is_finished():
            nothing = why_not is Unstorable.EMPTY
            return Reading(None, Unstorable.EMPTY if nothing else Unstorable.INCOMPLETE, judge.usage)
        answer = Answer(judge.dialect, Form.STREAM, tuple(self._parts), tuple(self._offsets_ms), judge.usage)
        return Reading(answer, why_not, judge.usage)


class JsonScribe:
    """Reads one JSON body."""

    def __init__(self, judge: Judge, limit_bytes: int) -> None:
        self._judge = judge
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
        if not judge.look(value, "message"):
            return Reading(None, judge.wrong, judge.usage)
        answer = Answer(judge.dialect, Form.JSON, (body,), (self._last_ms,), judge.usage)
        return Reading(answer, judge.why_not_keep(), judge.usage)


def _is_error(value: Mapping[str, Any]) -> bool:
    if value.get("error") or value.get("object") == "error":
        return True
    for name in _STATUS_FIELDS:
        code = value.get(name)
        if type(code) is int and code >= 400:
            return True
    return False


def _take_in(choice: _Choice, message: Mapping[str, Any], keep_arguments: bool) -> bool:
    """Note what a message, or a piece of one, says. False: its content is neither text nor null."""
    content = message.get("content")
    if content is not None and type(content) is not str:
        return False
    if content and not choice.said_something:
        choice.said_something = not content.isspace()
    if message.get("refusal"):
        choice.refused = True
    if calls := message.get("tool_calls"):
        choice.uses_tools = True
        if type(calls) is not list:
            return False
        for place, call in enumerate(calls):
            if type(call) is not dict:
                return False
            if keep_arguments:
                _take_arguments(choice, call.get("index", place), call.get("function"))
    if function := message.get("function_call"):
        choice.uses_tools = True
        if keep_arguments:
            _take_arguments(choice, "function_call", function)
    return True


def _take_arguments(choice: _Choice, call: object, function: object) -> None:
    """Gather a call's arguments. A call of another kind (`custom`) has free text, and nothing to check."""
    if type(function) is not dict or type(call) not in (int, str):
        return
    arguments = function.get("arguments")
    if arguments is None:
        arguments = ""
    # "?" is no JSON, so arguments of another kind than text fail the check at the end.
    choice.arguments.setdefault(call, []).append(arguments if type(arguments) is str else "?")


def _is_object(text: str) -> bool:
    try:
        return type(orjson.loads(text)) is dict
    except orjson.JSONDecodeError:
        return False


def _usage(usage: object) -> Usage | None:
    if type(usage) is not dict:
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
    if type(prompt) is not int or type(completion) is not int:
        return None
    return Usage(prompt, completion)
