"""What playing takes in any dialect: blanks where each replay writes, usage set to nothing, texts in pieces."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import orjson

from semcache.errors import CacheFault
from semcache.types import Answer, Form
from semcache.wire.score import Blank, Slot
from semcache.wire.strict_json import Number, decode, encode, spans

Event = list[bytes | Blank]

_MAX_PIECES = 512  # per text: a longer answer comes in larger pieces
_PIECE = re.compile(r"\s*\S{1,16}|\s+")  # about a word; 16 for scripts without spaces

# A blank's place in a text that is being encoded: bytes that JSON never holds, with the number of the blank between.
_MARK = re.compile(rb"\x00(\d+)\x00")


@contextmanager
def rendering(answer: Answer, form: Form) -> Iterator[None]:
    """Raises CacheFault for whatever goes wrong with parts that are not what a scribe lets through."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as exc:
        raise CacheFault(f"a stored {answer.form} answer cannot be played as {form}: {type(exc).__name__}") from exc


def tokens_in(answer: Answer) -> int | None:
    """How many tokens were said; see `Score`."""
    return answer.usage.completion_tokens if answer.usage else None


def with_blanks(body: bytes, slots: Mapping[str, Slot], replaced: Mapping[str, bytes] | None = None) -> Event:
    """Cut a JSON object at its members in `slots`, and put other values (JSON text) for those in `replaced`.

    Every other byte stays as it was written. A member that is not there is not put in. Raises ValueError.
    """
    text = body.decode()
    members = spans(text)
    changed: dict[str, bytes | Slot] = {**(replaced or {}), **slots}
    event: Event = []
    at = 0
    for start, end, by in sorted(((*members[key], by) for key, by in changed.items() if key in members), key=_start):
        recorded = text[start:end].encode()
        event += [text[at:start].encode(), Blank(by, recorded) if isinstance(by, Slot) else by]
        at = end
    event.append(text[at:].encode())
    return event


def _start(change: tuple[int, int, bytes | Slot]) -> int:
    return change[0]


class Blanks:
    """Writes trees in which values are blanks, at any depth: `blanks.at(Slot.ID, value)` goes where the value stood."""

    def __init__(self) -> None:
        self._blanks: list[Blank] = []

    def at(self, slot: Slot, recorded: Any) -> orjson.Fragment:
        self._blanks.append(Blank(slot, encode(recorded)))
        return orjson.Fragment(b"\x00%d\x00" % (len(self._blanks) - 1))

    def write(self, tree: Any, before: bytes = b"", after: bytes = b"") -> Event:
        """Encode a tree that holds fragments from `at`, with its framing around it."""
        pieces = _MARK.split(before + encode(tree) + after)
        return [self._blanks[int(piece)] if number % 2 else piece for number, piece in enumerate(pieces)]


def zeroed(usage: Any) -> Any:
    """Usage figures, nested ones too, all set to 0; what is no number stays."""
    kind = type(usage)
    if kind is Number:
        return Number("0")
    if kind is dict:
        return {key: zeroed(value) for key, value in usage.items()}
    if kind is list:
        return [zeroed(value) for value in usage]
    return usage


def zeroed_member(body: bytes, name: str) -> Mapping[str, bytes]:
    """For `with_blanks`: the member of that name with its figures set to 0. Nothing where it is not there, or null."""
    text = body.decode()
    start, end = spans(text).get(name, (0, 0))
    usage = decode(text[start:end]) if end else None
    return {name: encode(zeroed(usage))} if usage else {}


def words(text: str) -> list[str]:
    """Cut a text into pieces as a stream would have them, about a word each. Joined they are the text."""
    pieces = _PIECE.findall(text)
    each = -(-len(pieces) // _MAX_PIECES)
    return pieces if each <= 1 else ["".join(pieces[at : at + each]) for at in range(0, len(pieces), each)]
