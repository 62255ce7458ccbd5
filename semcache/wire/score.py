"""Playing: a stored answer is rendered once into a score; each replay only writes its own id and time into it.

Rendering costs some microseconds an event, playing a fraction of one. So a score is worth keeping as long as its entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import orjson

from semcache.types import Form


class Identity(NamedTuple):
    """What a replay shows as its own: a fresh id and creation time, or the recorded ones (None)."""

    id: str | None
    created: int | None  # unix seconds


class Slot(Enum):
    """A place in a score that each replay fills."""

    ID = "id"
    CREATED = "created"


@dataclass(frozen=True, slots=True)
class Blank:
    """A slot with what was recorded there, as JSON text."""

    slot: Slot
    recorded: bytes


class Score:
    """One answer in one form, ready to be played any number of times, to any number of readers. Never changes.

    `offsets_ms` has one entry per event: when it arrived at the recording, milliseconds since the first byte. All are
    0 where the recording was not a stream, for then nobody knows.
    """

    __slots__ = ("_bounds", "_created_at", "_id_at", "_pieces", "form", "offsets_ms")

    def __init__(self, form: Form, events: Sequence[Sequence[bytes | Blank]], offsets_ms: Sequence[int] = ()) -> None:
        """`events`: for JSON one, for STREAM one per event with its framing; each is bytes with blanks between."""
        self.form = form
        self.offsets_ms = tuple(offsets_ms) or (0,) * len(events)
        if len(self.offsets_ms) != len(events):
            raise ValueError(f"{len(events)} events but {len(self.offsets_ms)} offsets")
        self._pieces: list[bytes] = []
        self._bounds: list[tuple[int, int]] = []
        self._id_at: list[int] = []
        self._created_at: list[int] = []
        shared: dict[bytes, bytes] = {}  # the events of a stream begin alike: hold equal pieces once
        for event in events:
            start = len(self._pieces)
            for piece in event:
                if isinstance(piece, Blank):
                    (self._id_at if piece.slot is Slot.ID else self._created_at).append(len(self._pieces))
                    piece = piece.recorded
                self._pieces.append(shared.setdefault(piece, piece))
            self._bounds.append((start, len(self._pieces)))

    def play(self, identity: Identity) -> list[bytes]:
        """Return the events one by one, for a replay that takes its time. A JSON answer is one event."""
        pieces = self._filled(identity)
        return [b"".join(pieces[start:end]) for start, end in self._bounds]

    def play_whole(self, identity: Identity) -> bytes:
        """Return all the events as one run of bytes, for a replay at once: cheaper to make and to send."""
        return b"".join(self._filled(identity))

    def _filled(self, identity: Identity) -> list[bytes]:
        pieces = self._pieces
        if identity.id is not None:
            pieces = pieces.copy()
            text = orjson.dumps(identity.id)
            for place in self._id_at:
                pieces[place] = text
        if identity.created is not None:
            if pieces is self._pieces:
                pieces = pieces.copy()
            text = b"%d" % identity.created
            for place in self._created_at:
                pieces[place] = text
        return pieces

    @property
    def size_bytes(self) -> int:
        """What keeping this costs, roughly: equal pieces are held once, and a place in a list is 8 bytes."""
        return sum(map(len, set(self._pieces))) + 8 * len(self._pieces) + 64 * len(self._bounds)

    def __repr__(self) -> str:
        return f"Score({self.form}, {len(self._bounds)} events, {self.size_bytes} bytes)"
