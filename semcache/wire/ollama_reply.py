"""Judging Ollama's answers, of `/api/chat` and `/api/generate` alike: is one whole, and may it be kept?

A reply is whole with the line that says `done`; a JSON body is that one line. Storable is less: `done_reason` is
`stop`, and something was said. Where the reason is missing nobody knows whether the answer was cut: servers before May
2024 never gave one, and later ones leave it out when the connection to the model broke. Such an answer is not kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from semcache.types import Ask, Unstorable, Usage
from semcache.wire import ndjson
from semcache.wire.dialect import Scribe
from semcache.wire.scribes import Took, is_error, start_scribe

_STREAMS = dict.fromkeys(ndjson.MEDIA_TYPES, ndjson.LineCutter)
_NOTHING: Mapping[str, Any] = {}


class Layout(NamedTuple):
    """Where an endpoint puts what the model says: the text, `thinking` and `tool_calls` beside each other."""

    message: str | None  # the member that holds them; None: they lie at the top
    text: str


CHAT = Layout("message", "content")
GENERATE = Layout(None, "response")


def scribe(
    layout: Layout, ask: Ask, status: int, headers: Mapping[str, str], *, store_tools: bool, limit_bytes: int
) -> Scribe:
    judge = Judge(layout, store_tools)
    return start_scribe(judge, ask.dialect, status, headers, limit_bytes=limit_bytes, streams=_STREAMS)


class Judge:
    """Says of the lines seen whether they make a whole answer, and whether it may be kept."""

    def __init__(self, layout: Layout, store_tools: bool) -> None:
        self._layout = layout
        self._store_tools = store_tools
        self._done = False
        self._ended_naturally = False
        self._said_something = False  # text that is more than white space; thoughts alone are no answer
        self._uses_tools = False
        self._tools_are_sound = True
        self.usage: Usage | None = None
        self.wrong: Unstorable | None = None

    def take_event(self, name: bytes, data: bytes) -> Took:
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError:
            return self._object(Unstorable.MALFORMED)
        if self._done:  # after the end nothing may come
            return self._object(Unstorable.MALFORMED)
        fault = self._look(value)
        return Took.CONTENT if fault is None else self._object(fault)

    def take_body(self, value: Any) -> bool:
        fault = self._look(value)
        if fault is None and not self._done:
            fault = Unstorable.INCOMPLETE
        if fault is not None:
            self._object(fault)
        return fault is None

    def has_ended(self) -> bool:
        return self._done

    def is_finished(self) -> bool:
        return self._done

    def forget(self) -> None:
        """Nothing is held: calls come whole, and are checked as they come."""

    def why_not_keep(self) -> Unstorable | None:
        """Judge a whole answer: 1. tools allowed and sound, 2. ended by itself, 3. something said."""
        if self._uses_tools and not self._store_tools:
            return Unstorable.TOOL_CALLS
        if not self._ended_naturally:
            return Unstorable.FINISH
        if not self._said_something and not self._uses_tools:
            return Unstorable.EMPTY
        return None if self._tools_are_sound else Unstorable.MALFORMED

    def _object(self, fault: Unstorable) -> Took:
        self.wrong = self.wrong or fault
        return Took.FOREIGN

    def _look(self, value: object) -> Unstorable | None:
        if type(value) is not dict:
            return Unstorable.MALFORMED
        if is_error(value):
            return Unstorable.ERROR
        done = value.get("done")
        said = self._said_in(value, done is True)
        if type(done) is not bool or said is None or not self._take_in(said):
            return Unstorable.MALFORMED
        if done:
            self._done = True
            self._ended_naturally = value.get("done_reason") == "stop"
            self.usage = _usage(value)
        return None

    def _said_in(self, value: Mapping[str, Any], done: bool) -> Mapping[str, Any] | None:
        """The object that holds what was said. None where it is not as it should be."""
        name = self._layout.message
        if name is None:
            return value
        said = value.get(name)
        if said is None and done:
            return _NOTHING  # old servers ended with a line of figures alone
        return said if type(said) is dict else None

    def _take_in(self, said: Mapping[str, Any]) -> bool:
        """Note what a line says. False: its texts are no texts, its calls no list of calls."""
        text, thinking, calls = said.get(self._layout.text), said.get("thinking"), said.get("tool_calls")
        if not (text is None or type(text) is str) or not (thinking is None or type(thinking) is str):
            return False
        if text and not self._said_something:
            self._said_something = not text.isspace()
        if calls:
            if type(calls) is not list:
                return False
            self._uses_tools = True
            self._tools_are_sound &= all(map(_is_call, calls))
        return True


def _is_call(call: object) -> bool:
    """Whether this names a function and gives it an object of arguments. In this format they are no text in JSON."""
    function = call.get("function") if type(call) is dict else None
    return (
        type(function) is dict
        and type(function.get("name")) is str
        and bool(function["name"])
        and type(function.get("arguments")) is dict
    )


def _usage(value: Mapping[str, Any]) -> Usage | None:
    """The figures of a last line. A prompt that was read in an earlier call is left out by some servers."""
    prompt, completion = value.get("prompt_eval_count", 0), value.get("eval_count")
    if type(prompt) is not int or type(completion) is not int:
        return None
    return Usage(prompt, completion)
