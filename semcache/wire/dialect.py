"""The seam between wire formats and everything else: what a dialect takes and gives. Nothing here acts.

All of it is pure: bytes in, values or bytes out, no IO. The vendors' formats are in the files beside this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from semcache.errors import SemcacheError
from semcache.types import Answer, Ask, Form, Unstorable, Usage
from semcache.wire.score import Identity, Score


class Frame(NamedTuple):
    """A piece of an upstream's reply that is relayed whole: an SSE event with its end, or a run of body bytes."""

    raw: bytes
    usage_only: bool = False  # the usage chunk: for those only who asked for it
    payload: bytes | None = None  # the data of a content event; None for [DONE], comments and what is not understood


@dataclass(frozen=True, slots=True)
class Reading:
    """What a finished reply turned out to be.

    `answer` is set when the reply is whole and may be played to others of the same request (followers who want the
    other form); `unstorable` says why it must not be kept all the same, None when it may. So an answer that ended with
    `length` has both; a reply that was cut, is an error, is not understood or is too large to hold has no answer.
    """

    answer: Answer | None
    unstorable: Unstorable | None
    usage: Usage | None = None


class Scribe(Protocol):
    """Reads one upstream reply as it arrives. Made by `Dialect.scribe`; fed every byte, in order."""

    def feed(self, chunk: bytes, offset_ms: int) -> Sequence[Frame]:
        """Return the frames this chunk completes; their raw bytes, joined over all calls and `finish`, equal the input.

        `offset_ms`: since the first byte of the reply. Never raises: what is not understood is relayed as it is.
        At most 1 MiB is held back, and at most `limit_bytes` kept.
        """

    def finish(self, whole: bool) -> tuple[Sequence[Frame], Reading]:
        """No more bytes will come: what was held back, and the reading.

        `whole`: the HTTP framing has proved that nothing is missing. False where the end of the connection was the
        end of the reply, so that only the dialect can tell; a reply whose framing broke never comes here.
        """


class ErrorShape(Protocol):
    """How a vendor's SDK expects to be told of an error."""

    def error_body(self, error: SemcacheError, request_id: str) -> bytes:
        """The JSON body of an error response."""

    def error_event(self, error: SemcacheError, request_id: str) -> bytes:
        """The same inside a stream that has begun; the connection is then cut without its last chunk."""


class Dialect(ErrorShape, Protocol):
    """One wire format of one vendor, both directions."""

    @property
    def name(self) -> str: ...

    def parse(self, endpoint: str, body: bytes, headers: Mapping[str, str]) -> Ask:
        """Read a request strictly: UTF-8 JSON, no duplicate keys, no NaN. Raises ClientError (400).

        `headers` is case-insensitive (a multidict), or has lower-case names.
        """

    def context_headers(self, headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        """The headers that change what is asked, as they enter the context: equal ones give an equal Ask."""

    def upstream_body(self, ask: Ask, *, ask_usage: bool) -> bytes:
        """The body to send upstream: as received, but that a stream is asked for its usage when `ask_usage`."""

    def scribe(
        self, ask: Ask, status: int, headers: Mapping[str, str], *, store_tools: bool, limit_bytes: int
    ) -> Scribe:
        """Start reading a reply. `headers`: of the reply, case-insensitive or lower-case."""

    def prepare(self, answer: Answer, form: Form, *, include_usage: bool) -> Score:
        """Render a stored answer once, up to what differs between replays. Worth keeping beside the entry.

        Raises CacheFault when the stored parts cannot be rendered; the caller then treats it as a miss.
        """

    def fresh_identity(self, now: float) -> Identity:
        """An id as the vendor makes them, never used before, and `now` in whole unix seconds."""
