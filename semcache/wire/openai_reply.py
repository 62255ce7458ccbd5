"""Judging a completion, a chat's or a text's: is it whole, and may it be kept?

A stream is whole with `[DONE]` and a finish reason for each choice; a JSON body when it parses. Storable is less: every
choice ended with `stop` and says something. How the bytes come in is scribes.py's matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from semcache.types import Form, Unstorable, Usage
from semcache.wire.scribes import Took, is_error, is_object, usage_in

_NATURAL = frozenset({"stop"})
_NATURAL_WITH_TOOLS = frozenset({"stop", "tool_calls", "function_call"})


class Choice:
    """What has been seen of one choice, in either form."""

    __slots__ = ("arguments", "ended_otherwise", "is_finished", "refused", "said_something", "uses_tools")

    def __init__(self) -> None:
        self.is_finished = False
        self.ended_otherwise = False  # than by a natural stop
        self.said_something = False  # content that is more than white space
        self.refused = False
        self.uses_tools = False
        self.arguments: dict[object, list[str]] = {}  # of each call, in pieces


# Notes what one choice of a reply in this form says; the last: whether calls' arguments are wanted.
# False: it is not as the endpoint has it.
TakeIn = Callable[[Choice, Mapping[str, Any], Form, bool], bool]


class Judge:
    """Says of the choices seen whether they make a whole answer, and whether it may be kept."""

    def __init__(self, take_in: TakeIn, choices: int, store_tools: bool = False) -> None:
        self._take_in = take_in
        self._expected = choices
        self._store_tools = store_tools
        self._natural = _NATURAL_WITH_TOOLS if store_tools else _NATURAL
        self._choices: dict[int, Choice] = {}
        self._done = False
        self.usage: Usage | None = None
        self.wrong: Unstorable | None = None

    def take_event(self, name: bytes, data: bytes) -> Took:
        if name == b"error":
            return self._object(Unstorable.ERROR)
        if self._done or name not in (b"", b"message"):
            # After the end nothing may come; and a replay would lose the name of an event of somebody's own.
            return self._object(Unstorable.MALFORMED)
        if data == b"[DONE]":
            self._done = True
            return Took.SIGNAL
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError:
            return self._object(Unstorable.MALFORMED)
        fault = self._look(value, Form.STREAM)
        if fault is not None:
            return self._object(fault)
        return Took.USAGE if not value["choices"] and value.get("usage") else Took.CONTENT

    def take_body(self, value: Any) -> bool:
        fault = self._look(value, Form.JSON)
        if fault is not None:
            self._object(fault)
        return fault is None

    def _object(self, fault: Unstorable) -> Took:
        self.wrong = self.wrong or fault
        return Took.FOREIGN

    def _look(self, value: object, form: Form) -> Unstorable | None:
        if type(value) is not dict:
            return Unstorable.MALFORMED
        if is_error(value):
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
            if type(index) is not int or not 0 <= index < self._expected:
                return Unstorable.MALFORMED
            choice = self._choices.get(index)
            if choice is None:
                choice = self._choices[index] = Choice()
            finish = item.get("finish_reason")
            if finish is not None:
                choice.is_finished = True
                choice.ended_otherwise |= type(finish) is not str or finish not in self._natural
            if not self._take_in(choice, item, form, self._store_tools):
                return Unstorable.MALFORMED
        if (usage := value.get("usage")) is not None:
            self.usage = usage_in(usage, "prompt_tokens", "completion_tokens") or self.usage
        return None

    def has_ended(self) -> bool:
        return self._done

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
        if not all(is_object("".join(pieces)) for c in choices for pieces in c.arguments.values()):
            return Unstorable.MALFORMED
        return None


def take_message(choice: Choice, item: Mapping[str, Any], form: Form, keep_arguments: bool) -> bool:
    """Of a chat: a message, or a delta of one."""
    message = item.get("message" if form is Form.JSON else "delta")
    if message is None and form is Form.STREAM:
        return True  # Azure's content filter reports on text that has gone before
    if type(message) is not dict:
        return False
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


def _take_arguments(choice: Choice, call: object, function: object) -> None:
    """Gather a call's arguments. A call of another kind (`custom`) has free text, and nothing to check."""
    if type(function) is not dict or type(call) not in (int, str):
        return
    arguments = function.get("arguments")
    if arguments is None:
        arguments = ""
    # "?" is no JSON, so arguments of another kind than text fail the check at the end.
    choice.arguments.setdefault(call, []).append(arguments if type(arguments) is str else "?")
