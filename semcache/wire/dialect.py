"""The seam between wire formats and everything else: what a dialect takes and gives. Nothing here acts.

All of it is pure: bytes in, values or bytes out, no IO. The vendors' formats are in the files beside this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from semcache.errors import SemcacheError
from semcache.types import Answer, Ask, Form, Unstorable, Usage
from semcache.wire.score import Identity, Score


@dataclass(frozen=True, slots=True)
class Address:
    """Where a request was sent, and all that this says of it."""

    dialect: Dialect
    vendor: str  # whose backends may answer: "openai", "azure", "anthropic", "ollama"
    endpoint: str  # "chat/completions", however the path spells it
    target: str  # path and query as they go upstream: "/v1/chat/completions"
    model: str | None = None  # where the path names it, as Azure's do
    # The setting of `cache` that a route must have on for this to be cached. None: every route caches it.
    opt_in: Literal["transcriptions"] | None = None


class Frame(NamedTuple):
    """A piece of an upstream's reply that is relayed whole: an event with its end, or a run of body bytes."""

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


class Rendition(NamedTuple):
    """How one reader wants an answer. Equal renditions of one answer are one score."""

    form: Form
    include_usage: bool = False  # of a stream: the usage chunk that its reader asked for
    zero_usage: bool = False  # show what this reply has cost, nothing, instead of the figures recorded
    echo: tuple[tuple[str, bytes], ...] = ()  # of the reader's own request; see Ask.echo


class ErrorShape(Protocol):
    """How a vendor's SDK expects to be told of an error."""

    def error_body(self, error: SemcacheError, request_id: str) -> bytes:
        """The JSON body of an error response."""

    def error_event(self, error: SemcacheError, request_id: str) -> bytes:
        """The same inside a stream that has begun; the connection is then cut without its last chunk."""


class Dialect(ErrorShape, Protocol):
    """One endpoint's wire format, both directions."""

    def parse(self, address: Address, body: bytes, headers: Mapping[str, str]) -> Ask:
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

    def prepare(self, answer: Answer, rendition: Rendition) -> Score:
        """Render a stored answer once, up to what differs between replays. Worth keeping beside the entry.

        Raises CacheFault when the stored parts cannot be rendered; the caller then treats it as a miss.
        """

    def fresh_identity(self, now: float) -> Identity:
        """An id as the vendor makes them, never used before, and `now` in whole unix seconds."""


@runtime_checkable
class SpokenDialect(Dialect, Protocol):
    """A dialect whose answers are texts, which can be held against each other."""

    def spoken(self, answer: Answer) -> str | None:
        """All that an answer says, as one text; None where that is no plain text: it calls tools, refuses, or the like.

        Takes as long as playing it. Raises nothing.
        """


@runtime_checkable
class BatchDialect(Dialect, Protocol):
    """A dialect whose requests ask for several things at once (`Ask.items`), each with an answer of its own.

    Every item is looked up and stored by itself, so a batch of which half is known fetches only the other half.
    """

    def narrow(self, ask: Ask, wanted: Sequence[int]) -> bytes:
        """The body of a request for these items only (their positions, ascending), else as received."""

    def take_apart(self, answer: Answer, items: Sequence[Ask]) -> tuple[Answer, ...]:
        """One answer for each item, with its share of the usage; the shares add up to the whole.

        Raises CacheFault when the answer does not hold exactly one result for each.
        """

    def assemble(self, ask: Ask, items: Sequence[Answer], usage: Usage) -> Score:
        """Put the answer to a whole request together, in the encoding asked for, whatever each item was recorded in.

        Raises CacheFault as `prepare` does.
        """
