"""Judging an Anthropic message: is it whole, and may it be kept?

A stream is whole with `message_stop`, a stop reason, and an end for each block; a JSON body when it parses. Storable is
less: it ended by itself and says something. How the bytes come in is scribes.py's matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from semcache.types import Ask, Unstorable, Usage
from semcache.wire.dialect import Scribe
from semcache.wire.scribes import Took, is_error, is_object, start_scribe

_NATURAL = frozenset({"end_turn", "stop_sequence"})

# What a block holds that the vendor's own tools have left: it is of its moment, and its container may be gone.
_OF_HOSTED_TOOLS = ("tool_use", "tool_result", "container_upload", "mcp_tool_listing")  # as the type ends

_INPUT_TOKENS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")  # all are input, once each

_PIECES = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


def scribe(ask: Ask, status: int, headers: Mapping[str, str], *, store_tools: bool, limit_bytes: int) -> Scribe:
    return start_scribe(Judge(store_tools), ask.dialect, status, headers, limit_bytes=limit_bytes)


class _Block:
    """What has been seen of one content block, in either form."""

    __slots__ = ("arguments", "has_input", "is_open", "kind", "said_something")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.is_open = True
        self.said_something = False  # text that is more than white space
        self.has_input = False  # a tool's arguments stand in the block itself, as an object
        self.arguments: list[str] = []  # the same in pieces, which then replace what stands there

    def has_sound_arguments(self) -> bool:
        text = "".join(self.arguments)
        return is_object(text) if text else self.has_input


class Judge:
    """Says of the events or the body seen whether they make a whole answer, and whether it may be kept."""

    def __init__(self, store_tools: bool) -> None:
        self._store_tools = store_tools
        self._blocks: list[_Block] = []
        self._stop: object = None
        self._tokens: dict[str, int] = {}
        self._has_begun = False
        self._has_ended = False
        self.wrong: Unstorable | None = None
        self._takes: Mapping[bytes, Callable[[dict[str, Any]], bool]] = {
            b"message_start": self._begin,
            b"content_block_start": self._start_block,
            b"content_block_delta": self._add_to_block,
            b"content_block_stop": self._stop_block,
            b"message_delta": self._change_message,
            b"message_stop": self._end,
        }

    @property
    def usage(self) -> Usage | None:
        if not self._tokens:
            return None
        tokens = self._tokens.get
        # What was written into the vendor's prompt cache counts as plain input: its surcharge has no place in a Usage.
        prompt = sum(tokens(name, 0) for name in _INPUT_TOKENS)
        return Usage(prompt, tokens("output_tokens", 0), tokens("cache_read_input_tokens", 0))

    def take_event(self, name: bytes, data: bytes) -> Took:
        if name == b"ping":
            return Took.SIGNAL
        if name == b"error":
            return self._object(Unstorable.ERROR)
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError:
            return self._object(Unstorable.MALFORMED)
        if type(value) is dict and is_error(value):
            return self._object(Unstorable.ERROR)
        # A replay takes an event's name from its data. Readers go by the name, and pass over an event without one.
        if type(value) is not dict or type(kind := value.get("type")) is not str or kind.encode() != name:
            return self._object(Unstorable.MALFORMED)
        if self._has_ended or not (self._has_begun or name == b"message_start"):
            return self._object(Unstorable.MALFORMED)
        take = self._takes.get(name)
        if take is not None and not take(value):
            return self._object(Unstorable.MALFORMED)
        return Took.CONTENT  # the vendor announces that kinds of events will be added: those are kept too

    def take_body(self, value: Any) -> bool:
        if type(value) is not dict:
            self._object(Unstorable.MALFORMED)
            return False
        if is_error(value):
            self._object(Unstorable.ERROR)
            return False
        content = value.get("content")
        if type(content) is not list or not all(self._take_block(block) for block in content):
            self._object(Unstorable.MALFORMED)
            return False
        for block in self._blocks:
            block.is_open = False
        self._stop = value.get("stop_reason")
        self._count(value.get("usage"))
        return True

    def has_ended(self) -> bool:
        return self._has_ended

    def is_finished(self) -> bool:
        """There is a stop reason, whatever it is, and every block has come to its end."""
        return self._stop is not None and not any(block.is_open for block in self._blocks)

    def forget(self) -> None:
        """The answer will not be kept, so its tool calls need not be checked, nor held for that."""
        self._store_tools = False
        for block in self._blocks:
            block.arguments.clear()

    def why_not_keep(self) -> Unstorable | None:
        """Judge a whole answer: 1. tools allowed, 2. ended by itself, 3. something said, 4. tools' arguments sound."""
        calls = [block for block in self._blocks if block.kind == "tool_use"]
        if (calls and not self._store_tools) or any(_is_hosted(block.kind) for block in self._blocks):
            return Unstorable.TOOL_CALLS
        if not (type(self._stop) is str and (self._stop in _NATURAL or (calls and self._stop == "tool_use"))):
            return Unstorable.FINISH
        if not calls and not any(block.said_something for block in self._blocks):
            return Unstorable.EMPTY
        return None if all(block.has_sound_arguments() for block in calls) else Unstorable.MALFORMED

    def _object(self, fault: Unstorable) -> Took:
        self.wrong = self.wrong or fault
        return Took.FOREIGN

    # One for each kind of event. False: not as the vendor has it

    def _begin(self, event: dict[str, Any]) -> bool:
        message = event.get("message")
        if self._has_begun or type(message) is not dict or message.get("content") != []:
            return False
        self._has_begun = True
        self._count(message.get("usage"))
        return True

    def _start_block(self, event: dict[str, Any]) -> bool:
        # Readers append the block, and later find it by its index.
        index = event.get("index")
        return type(index) is int and index == len(self._blocks) and self._take_block(event.get("content_block"))

    def _add_to_block(self, event: dict[str, Any]) -> bool:
        block, delta = self._block(event), event.get("delta")
        if block is None or type(delta) is not dict or type(kind := delta.get("type")) is not str:
            return False
        member = _PIECES.get(kind)
        if member is None:
            return True  # all there is to it is in a replay, and none of it is judged
        piece = delta.get(member)
        if type(piece) is not str:
            return False
        if member == "text":
            block.said_something = block.said_something or (piece != "" and not piece.isspace())
        elif member == "partial_json" and self._store_tools:
            block.arguments.append(piece)
        return True

    def _stop_block(self, event: dict[str, Any]) -> bool:
        block = self._block(event)
        if block is None:
            return False
        block.is_open = False
        return True

    def _change_message(self, event: dict[str, Any]) -> bool:
        delta = event.get("delta")
        if type(delta) is not dict:
            return False
        self._stop = delta.get("stop_reason")  # of several the last counts, as it does to readers
        self._count(event.get("usage"))
        return True

    def _end(self, event: dict[str, Any]) -> bool:
        self._has_ended = True
        return True

    def _block(self, event: dict[str, Any]) -> _Block | None:
        """The open block that an event is about."""
        index = event.get("index")
        if type(index) is not int or not 0 <= index < len(self._blocks):
            return None
        block = self._blocks[index]
        return block if block.is_open else None

    def _take_block(self, value: Any) -> bool:
        """Take in a block of a body, or as much as the start of one says."""
        if type(value) is not dict or type(kind := value.get("type")) is not str:
            return False
        block = _Block(kind)
        if kind == "text":
            text = value.get("text")
            if type(text) is not str:
                return False
            block.said_something = text != "" and not text.isspace()
        block.has_input = type(value.get("input")) is dict
        self._blocks.append(block)
        return True

    def _count(self, usage: object) -> None:
        """Figures are totals so far: a later one replaces an earlier, and one that is left out stands."""
        if type(usage) is dict:
            for name in (*_INPUT_TOKENS, "output_tokens"):
                if type(count := usage.get(name)) is int:
                    self._tokens[name] = count


def _is_hosted(kind: str) -> bool:
    return kind != "tool_use" and kind.endswith(_OF_HOSTED_TOOLS)
