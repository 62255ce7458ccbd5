"""The turns of a conversation before its question: read as texts, and left out of a context where a route wants that.

By default they belong to the context like everything else, and must be equal. A route may want them near instead, or
only the last few of them equal (`match.context`). What is left out is said by number: a dialect knows where in a
request its turns are, and what else of the context to keep.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from semcache.types import Ask, Turn
from semcache.wire.dialect import Address
from semcache.wire.strict_json import Tree


class Omission(NamedTuple):
    """Which turns a context does without."""

    places: slice  # of `Ask.turns`
    leaves_marks: bool  # of how many they were, and whose: they are compared in another way


class Conversing(ABC):
    """A dialect whose requests may bring earlier turns."""

    def parse(self, address: Address, body: bytes, headers: Mapping[str, str]) -> Ask:
        return self._parse(address, body, headers, None)

    def context_without(self, address: Address, body: bytes, headers: Mapping[str, str], omission: Omission) -> bytes:
        """The context of a request that `parse` has read already, without some of its turns.

        It is read once more: few routes want this, and what they do not ask for costs the others nothing.
        """
        return self._parse(address, body, headers, omission).context

    @abstractmethod
    def _parse(self, address: Address, body: bytes, headers: Mapping[str, str], omission: Omission | None) -> Ask: ...


class Wording(NamedTuple):
    """How a dialect writes a turn that is nothing but a text."""

    members: frozenset[str]  # that such a turn may have; others must be empty
    kinds: frozenset[str]  # of content parts


def take_turns(messages: list[Tree], question: Tree, wording: Wording, omission: Omission | None) -> tuple[Turn, ...]:
    """Read the turns before the one that asks, and leave those out, in place, that `omission` names.

    Call it once hints are taken out and media have digests. Instructions, tools' results and whatever else stands
    between the turns is none, and stays.
    """
    turns: list[Turn] = []
    places: list[int] = []
    for place, message in enumerate(messages):
        if message is question:
            break
        role = message.get("role")
        if role == "user" or role == "assistant":
            turns.append(Turn(role, _text_of(message, wording)))
            places.append(place)
    if omission is not None:
        for place in reversed(places[omission.places]):
            if omission.leaves_marks:
                messages[place : place + 1] = [_MARKS[messages[place]["role"]]]
            else:
                del messages[place]
    return tuple(turns)


# No JSON value is written like these, so that no client can send an equal context.
_MARKS: Mapping[str, Any] = {role: orjson.Fragment(b"?" + role.encode()) for role in ("user", "assistant")}


def _text_of(message: Tree, wording: Wording) -> str | None:
    content = message.get("content")
    if len(message) == 2 and type(content) is str:  # with its role: as nearly all are
        return content
    for name, value in message.items():
        if value and name not in wording.members:
            return None
    if type(content) is str:
        return content
    if type(content) is not list:
        return None
    texts = []
    for part in content:
        kind = part.get("type") if type(part) is dict else None
        if type(kind) is not str or kind not in wording.kinds or type(part.get("text")) is not str:
            return None
        if any(value for name, value in part.items() if name not in ("type", "text")):
            return None
        texts.append(part["text"])
    return "\n".join(texts)
