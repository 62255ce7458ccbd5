"""Judging a response: is it whole, and may it be kept?

A stream is whole with `response.completed` or `response.incomplete`, whose response object is the answer; a JSON body
when it parses and its status says the same. Storable is less: completed, something said, and nothing in it that the
vendor's own tools have brought. How the bytes come in is scribes.py's matter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from semcache.types import Ask, Unstorable, Usage
from semcache.wire.dialect import Scribe
from semcache.wire.scribes import Took, is_error, is_object, start_scribe, usage_in

_ENDINGS = frozenset({"response.completed", "response.incomplete"})
_WHOLE = frozenset({"completed", "incomplete"})  # any other status is of a response that is not there yet, or never
_TYPE = re.compile(r"[\w.\-]{1,128}", re.ASCII)  # a replay writes it as the event's name, one line of its own

_PINGS = frozenset({"keepalive", "ping"})

_DELTAS: Mapping[str, str] = {  # event -> the kind of text it carries a piece of
    "response.output_text.delta": "text",
    "response.function_call_arguments.delta": "arguments",
}
_CALLS = frozenset({"function_call", "custom_tool_call"})  # what the caller carries out; any other call is never kept
_SPEAKING = frozenset({"message", "reasoning"})


def scribe(ask: Ask, status: int, headers: Mapping[str, str], *, store_tools: bool, limit_bytes: int) -> Scribe:
    return start_scribe(Judge(store_tools), ask.dialect, status, headers, limit_bytes=limit_bytes)


class Judge:
    """Follows the events up to the one that holds the whole response, and judges that."""

    def __init__(self, store_tools: bool) -> None:
        self._store_tools = store_tools
        self._holds = True  # what takes room: the items, and the pieces of their texts
        self._closed = False  # by [DONE], which some servers send after the last event
        self._response: Mapping[str, Any] | None = None
        self._has_ended = False
        self._items: dict[int, Any] = {}  # as they were done, by output index
        self._kinds: set[object] = set()  # of all items announced
        self._refused = False
        self._streamed: dict[str, dict[tuple[int, int], list[str]]] = {"text": {}, "arguments": {}}
        self.usage: Usage | None = None
        self.wrong: Unstorable | None = None

    def take_event(self, name: bytes, data: bytes) -> Took:
        if name == b"error":
            return self._object(Unstorable.ERROR)
        if data == b"[DONE]" and name in (b"", b"message"):
            self._closed = True
            return Took.SIGNAL
        if self._has_ended or self._closed:
            return self._object(Unstorable.MALFORMED)  # after the end nothing may come
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            return self._object(Unstorable.MALFORMED)
        fault = self._look(name, event)
        if fault is not None:
            return self._object(fault)
        return Took.SIGNAL if event["type"] in _PINGS else Took.CONTENT

    def take_body(self, value: Any) -> bool:
        fault = self._take_response(value)
        if fault is not None:
            self._object(fault)
        return fault is None

    def _object(self, fault: Unstorable) -> Took:
        self.wrong = self.wrong or fault
        return Took.FOREIGN

    def _look(self, name: bytes, event: object) -> Unstorable | None:
        if type(event) is not dict:
            return Unstorable.MALFORMED
        if is_error(event):
            return Unstorable.ERROR
        kind = event.get("type")
        if type(kind) is not str or _TYPE.fullmatch(kind) is None:
            return Unstorable.MALFORMED
        if name not in (b"", b"message", kind.encode()):
            return Unstorable.MALFORMED  # a replay would lose the name
        if kind in _ENDINGS:
            return self._take_response(event.get("response"))
        if kind.startswith("response.refusal."):
            self._refused = True
        elif (text := _DELTAS.get(kind)) is not None:
            return self._take_delta(self._streamed[text], event)
        elif "response" in event:  # created, queued, in_progress, failed, and what may come to be
            response = event["response"]
            if type(response) is not dict:
                return Unstorable.MALFORMED
            if kind == "response.failed" or is_error(response):
                return Unstorable.ERROR
        elif "item" in event:
            return self._take_item(kind, event)
        return None

    def _take_delta(self, streamed: dict[tuple[int, int], list[str]], event: Mapping[str, Any]) -> Unstorable | None:
        delta, item, part = event.get("delta"), event.get("output_index"), event.get("content_index", 0)
        if type(delta) is not str or type(item) is not int or type(part) is not int:
            return Unstorable.MALFORMED
        if self._holds:
            streamed.setdefault((item, part), []).append(delta)
        return None

    def _take_item(self, kind: str, event: Mapping[str, Any]) -> Unstorable | None:
        item, index = event["item"], event.get("output_index")
        if item is None:
            return None  # some servers announce an item before they know what it will be
        if type(item) is not dict or type(index) is not int:
            return Unstorable.MALFORMED
        self._kinds.add(_hashable(item.get("type")))
        if kind == "response.output_item.done" and self._holds:
            self._items[index] = item
        return None

    def _take_response(self, response: object) -> Unstorable | None:
        """Take in the whole response, of a body or of a stream's last event."""
        if type(response) is not dict:
            return Unstorable.MALFORMED
        if is_error(response) or response.get("status") == "failed":
            return Unstorable.ERROR
        if type(response.get("output") or []) is not list or response.get("object", "response") != "response":
            return Unstorable.MALFORMED
        if _hashable(response.get("status")) not in _WHOLE:
            return Unstorable.INCOMPLETE
        self._has_ended = True
        self._response = response
        self.usage = usage_in(response.get("usage"), "input_tokens", "output_tokens")
        return None

    def has_ended(self) -> bool:
        return self._has_ended

    def is_finished(self) -> bool:
        return self._has_ended

    def forget(self) -> None:
        self._holds = False
        self._items.clear()
        self._streamed = {"text": {}, "arguments": {}}

    def why_not_keep(self) -> Unstorable | None:
        """Judge a whole answer: 1. something there, 2. tools allowed, 3. ended by itself, 4. sound, 5. not blank."""
        response = self._response or {}
        output = response.get("output") or [self._items[index] for index in sorted(self._items)]
        if not output:
            return Unstorable.EMPTY
        seen = _Seen()
        for item in output:
            if not seen.take_item(item):
                return Unstorable.MALFORMED
        kinds = self._kinds | seen.kinds
        if not kinds <= (_SPEAKING | _CALLS if self._store_tools else _SPEAKING):
            return Unstorable.TOOL_CALLS
        ended = response.get("status") == "completed" and response.get("incomplete_details") is None
        if not ended or seen.is_unfinished or seen.refused or self._refused:
            return Unstorable.FINISH
        if not (self._agrees("text", seen.texts) and self._agrees("arguments", seen.arguments)):
            return Unstorable.MALFORMED
        if not all(map(is_object, seen.arguments)):
            return Unstorable.MALFORMED
        if not kinds & _CALLS and not "".join(seen.texts).strip():
            return Unstorable.EMPTY
        return None

    def _agrees(self, kind: str, final: list[str]) -> bool:
        """Whether what was streamed piece by piece is what the response holds in the end.

        There are servers whose last event holds the last piece only. A stream and a body made of that would differ.
        """
        streamed = self._streamed[kind]
        return not streamed or "".join("".join(streamed[at]) for at in sorted(streamed)) == "".join(final)


class _Seen:
    """What the items of a whole response hold."""

    def __init__(self) -> None:
        self.kinds: set[object] = set()
        self.texts: list[str] = []
        self.arguments: list[str] = []  # of function calls
        self.refused = False
        self.is_unfinished = False  # some item has not come to its own end

    def take_item(self, item: object) -> bool:
        """False: not as the dialect has it."""
        if type(item) is not dict:
            return False
        kind = _hashable(item.get("type"))
        self.kinds.add(kind)
        self.is_unfinished |= item.get("status") not in (None, "completed")
        if kind == "function_call":
            arguments = item.get("arguments")
            self.arguments.append(arguments if type(arguments) is str else "?")  # "?" is no JSON, so it fails later
        if kind == "custom_tool_call":
            return type(item.get("input")) is str
        if kind == "message":
            content = item.get("content")
            return type(content) is list and all(map(self._take_part, content))
        return True

    def _take_part(self, part: object) -> bool:
        if type(part) is not dict:
            return False
        if part.get("type") == "refusal":
            self.refused = True
            return True
        text = part.get("text")
        if part.get("type") != "output_text" or type(text) is not str:
            return False
        self.texts.append(text)
        return True


def _hashable(value: object) -> object:
    """For looking up what should be a text and may be anything."""
    return value if type(value) is str else None
