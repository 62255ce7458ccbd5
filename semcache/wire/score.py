"""Playing: a stored answer is rendered once into a score; each replay only writes its own id and time into it.

Rendering costs some microseconds an event, playing a fraction of one. So a score is worth keeping as long as its entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from typing import Literal, NamedTuple

import orjson

from semcache.types import Form

JSON = "application/json"
EVENT_STREAM = "text/event-stream; charset=utf-8"
NDJSON = "application/x-ndjson"

SHORT_BYTES = 64 * 1024  # only of answers up to this is more kept than their pieces
LONGEST_S = 600.0  # of a replay by tokens a second: the longest answer that SDKs wait for

Pace = Literal["instant", "recorded"] | float  # a number: tokens a second


class Identity(NamedTuple):
    """What a replay shows as its own: a fresh id and creation time, or the recorded ones (None)."""

    id: str | None
    created: int | None  # unix seconds


RECORDED = Identity(None, None)  # a replay under its recorded id and time


class Slot(Enum):
    """A place in a score that each replay fills."""

    ID = "id"  # a JSON string
    CREATED = "created"  # unix seconds, a JSON number
    CREATED_TEXT = "created_text"  # the same as RFC 3339 has it, a JSON string


@dataclass(frozen=True, slots=True)
class Blank:
    """A slot with what was recorded there, as JSON text."""

    slot: Slot
    recorded: bytes


class Score:
    """One answer in one form, ready to be played any number of times, to any number of readers. What it plays never
    changes.

    `offsets_ms` has one entry per event: when it arrived at the recording, milliseconds since the first byte. All are
    0 where the recording was not a stream, for then nobody knows.
    """

    __slots__ = (
        "_bounds", "_is_short", "_pieces", "_places", "_played_at", "_tokens", "content_type", "form", "offsets_ms"
    )  # fmt: skip

    def __init__(
        self,
        form: Form,
        events: Sequence[Sequence[bytes | Blank]],
        offsets_ms: Sequence[int] = (),
        *,
        content_type: str | None = None,
        tokens: int | None = None,
    ) -> None:
        """`events`: for JSON one, for STREAM one per event with its framing; each is bytes with blanks between.

        `content_type`: of the response; None for what is usual in this form, JSON or server-sent events.
        `tokens`: in the whole answer, where that is known: a replay at so many a second lasts by it.
        """
        self.form = form
        self.content_type = content_type or (JSON if form is Form.JSON else EVENT_STREAM)
        self.offsets_ms = tuple(offsets_ms) or (0,) * len(events)
        if len(self.offsets_ms) != len(events):
            raise ValueError(f"{len(events)} events but {len(self.offsets_ms)} offsets")
        self._tokens = tokens
        self._pieces: list[bytes] = []
        self._bounds: list[tuple[int, int]] = []
        self._places: dict[Slot, list[int]] = {}
        shared: dict[bytes, bytes] = {}  # the events of a stream begin alike: hold equal pieces once
        for event in events:
            start = len(self._pieces)
            for piece in event:
                if isinstance(piece, Blank):
                    self._places.setdefault(piece.slot, []).append(len(self._pieces))
                    piece = piece.recorded
                self._pieces.append(shared.setdefault(piece, piece))
            self._bounds.append((start, len(self._pieces)))
        self._is_short = sum(map(len, self._pieces)) <= SHORT_BYTES
        self._played_at: int | None = None  # the time that the last replay at once has shown

    def play(self, identity: Identity) -> list[bytes]:
        """Return the events one by one, for a replay that takes its time. A JSON answer is one event."""
        pieces = self._filled(identity)
        return [b"".join(pieces[start:end]) for start, end in self._bounds]

    def play_whole(self, identity: Identity) -> bytes:
        """Return all the events as one run of bytes, for a replay at once: cheaper to make and to send."""
        if identity.id is None or identity.created != self._played_at or not self._is_short:
            self._played_at = identity.created
            return b"".join(self._filled(identity))
        # Played in this second already: but for the id, it is the same again.
        return orjson.dumps(identity.id).join(_between_ids(self, identity.created))

    def schedule(self, pace: Pace) -> Sequence[float]:
        """When each event is due, in seconds since the first.

        An event is about a token. Where the answer's tokens are counted, the whole lasts as long as they take; but no
        longer than LONGEST_S, for a caller may name any number and a replay holds its connection.
        """
        if pace == "instant":
            return (0.0,) * len(self._bounds)
        if pace == "recorded":
            return [offset_ms / 1000 for offset_ms in self.offsets_ms]
        steps = max(len(self._bounds) - 1, 1)  # from the first event to the last
        each_s = min((self._tokens or steps) / pace, LONGEST_S) / steps
        return [number * each_s for number in range(len(self._bounds))]

    def cut_at_ids(self, created: int | None) -> list[bytes]:
        """All the events as runs of bytes, between which the id of a replay belongs."""
        pieces = self._filled(Identity(None, created))
        ends = [*self._places.get(Slot.ID, ()), len(pieces)]
        starts = [0, *(end + 1 for end in ends)]
        return [b"".join(pieces[start:end]) for start, end in zip(starts, ends, strict=False)]

    def _filled(self, identity: Identity) -> list[bytes]:
        if identity.id is None and identity.created is None:
            return self._pieces
        pieces = self._pieces.copy()
        for slot, places in self._places.items():
            text = _text(slot, identity)
            if text is not None:
                for place in places:
                    pieces[place] = text
        return pieces

    @property
    def size_bytes(self) -> int:
        """What keeping this costs, roughly: equal pieces are held once, and a place in a list is 8 bytes."""
        return sum(map(len, set(self._pieces))) + 8 * len(self._pieces) + 64 * len(self._bounds)

    def __repr__(self) -> str:
        return f"Score({self.form}, {len(self._bounds)} events, {self.size_bytes} bytes)"


@lru_cache(maxsize=128)  # the popular ones: at most 8 MB
def _between_ids(score: Score, created: int | None) -> list[bytes]:
    return score.cut_at_ids(created)


def _text(slot: Slot, identity: Identity) -> bytes | None:
    """What this replay shows in a slot; None: what was recorded there."""
    if slot is Slot.ID:
        return None if identity.id is None else orjson.dumps(identity.id)
    if identity.created is None:
        return None
    if slot is Slot.CREATED:
        return b"%d" % identity.created
    return _as_text(identity.created)


@lru_cache(maxsize=4)  # writing it takes longer than a small replay
def _as_text(created: int) -> bytes:
    return b'"%b"' % datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ").encode()
