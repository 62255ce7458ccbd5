"""Dialects: what a request asks, what an answer says, and how a stored answer is played again.

All of it is pure: bytes in, values or bytes out, no IO. A dialect is one file with one class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from semcache.errors import SemcacheError
from semcache.types import Answer, Ask, Form, Unstorable, Usage


class Frame(NamedTuple):
    """A piece of an upstream's reply that is relayed whole: an SSE event with its terminator, or a run of body bytes."""

    raw: bytes
    usage_only: bool = False  # the usage chunk: for those only who asked for it
    payload: bytes | None = None  # the data of a content event; None for [DONE], comments and what is not understood


@dataclass(frozen=True, slots=True)
class Reading:
    """What a finished reply turned out to be.

    `answer` is set when the reply is whole and may be played to others of the same request (followers who want the
    other form); `unstorable` says why it must not be kept all the same, None when it may.
    """

    answer: Answer | None
    unstorable: Unstorable | None
    usage: Usage | None = None


class Scribe(Protocol):
    """Reads one upstream reply as it arrives. Made by `Dialect.scribe`; fed every byte, in order."""

    def feed(self, chunk: bytes, offset_ms: int) -> Sequence[Frame]:
        """Return the frames this chunk completes; their raw bytes, joined over all calls and `rest`, equal the input.

        `offset_ms`: since the first byte of the reply.
        """

    def finish(self, whole: bool) -> tuple[Sequence[Frame], Reading]:
        """No more bytes will come: what was held back, and the reading. `whole`: the HTTP framing ended as it should."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a replay shows as its own: a fresh id and creation time, or the recorded ones (None)."""

    id: str | None
    created: int | None  # unix seconds


class Dialect(Protocol):
    """One wire format of one vendor, both directions."""

    name: str

    def parse(self, endpoint: str, body: bytes, headers: Mapping[str, str]) -> Ask:
        """Read a request strictly: UTF-8 JSON, no duplicate keys, no NaN. Raises ClientError (400)."""

    def upstream_body(self, ask: Ask, *, ask_usage: bool) -> bytes:
        """The body to send upstream: as received, but that a stream is asked for its usage when `ask_usage`."""

    def scribe(self, ask: Ask, status: int, headers: Mapping[str, str], *, store_tools: bool, limit_bytes: int) -> Scribe: ...

    def play(self, answer: Answer, form: Form, identity: Identity, *, include_usage: bool) -> Sequence[bytes]:
        """Render a stored answer: for JSON one body, for STREAM one bytes per event, `[DONE]` included.

        Raises CacheFault when the stored parts cannot be rendered; the caller then treats it as a miss.
        """

    def fresh_identity(self, now: float) -> Identity: ...

    def error_body(self, error: SemcacheError, request_id: str) -> bytes:
        """The error as the vendor's SDK expects it."""

    def error_event(self, error: SemcacheError, request_id: str) -> bytes:
        """The same inside a stream that has begun; the connection is then cut without its last chunk."""
