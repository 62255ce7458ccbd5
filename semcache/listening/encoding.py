"""Content codings: bodies that arrive packed, within bounds, and answers that leave packed where the client takes them.

gzip is what gateways and exporters send; zstd is what newer SDKs and command-line clients send. `deflate` is not
understood: two formats go by that name, and no client of a model API sends either.
"""

from __future__ import annotations

import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, Protocol

from semcache.errors import ClientError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Coding = Literal["gzip", "zstd"]

ACCEPTED = "gzip, zstd"  # for bodies of requests, told with each 415

SLICE_BYTES = 64 * 1024  # decoded at a time: 0.2 ms
FREE_BYTES = 1024 * 1024  # decoded without regard to the ratio: a short text said a thousand times packs very well
MAX_RATIO = 100  # beyond that: JSON packs to a third or a tenth, base64 hardly at all
MAX_MEMBERS = (
    1000  # of one body; bgzip, which makes the most, makes 513 of 32 MiB. An empty one costs time and no bytes
)
WINDOW_LOG = 23  # 8 MB, all that RFC 9659 lets a sender of zstd ask of us; the format itself goes up to 2 GB

GZIP_LEVEL = 1  # 16 KB: 132 µs for 7.8 KB; level 6 takes 453 µs for 7.1 KB
ZSTD_LEVEL = 3  # 16 KB: 101 µs for 7.4 KB


def coding_of(values: Iterable[str]) -> Coding | None:
    """How a request's body is packed, from its Content-Encoding fields; None: not at all.

    Raises ClientError: 415, naming what is understood, for any other coding and for more than one.
    """
    names = [name for value in values for part in value.split(",") if (name := part.strip().lower())]
    codings = [name for name in names if name != "identity"]
    if not codings:
        return None
    coding = _NAMES.get(codings[0])
    if coding is None or len(codings) > 1:
        raise ClientError(
            "this Content-Encoding is not understood: send the request body plain, or in gzip or zstd once",
            status=415,
            code="unsupported_encoding",
            headers={"Accept-Encoding": ACCEPTED},
        )
    return coding


_NAMES: dict[str, Coding] = {"gzip": "gzip", "x-gzip": "gzip", "zstd": "zstd"}  # x-gzip: RFC 9110 section 8.4.1.3


class _Member(Protocol):
    """One gzip member or zstd frame. What it gives short of the size asked for is all there is until more comes in."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes:
        """What came behind the end."""

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Inflating:
    """zlib's decompressor, made to keep what it has not read yet, as zstd's does."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)  # 16: gzip, with its checksum

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        rest = self._inflate.unconsumed_tail
        return self._inflate.decompress(rest + data if rest else data, max_length)


def _open_frame() -> _Member:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG})


_OPEN: dict[Coding, Callable[[], _Member]] = {"gzip": _Inflating, "zstd": _open_frame}


class Decoder:
    """Unpacks one body, a slice at a time, and holds no more of it than that.

    `limit_bytes`: of the decoded body.
    """

    def __init__(self, coding: Coding, limit_bytes: int) -> None:
        self._coding = coding
        self._open = _OPEN[coding]
        self._member = self._open()
        self._members = 1
        self._limit_bytes = limit_bytes
        self._received = 0
        self._decoded = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what `data` brings, in slices of at most SLICE_BYTES. The caller lets others run in between.

        Raises ClientError: 413 too large, or packed beyond belief; 400 not what it says it is.
        """
        self._received += len(data)
        while data:
            if self._member.eof:  # bodies may be put together from several packed parts
                self._next_member()
            while True:
                piece = self._decompress(data)
                data = b""
                if piece:
                    self._count(len(piece))
                    yield piece
                if self._member.eof or len(piece) < SLICE_BYTES:
                    break
            if self._member.eof:
                data = self._member.unused_data

    def finish(self) -> None:
        """The body has ended. Raises ClientError when its last part has not."""
        if not self._member.eof:
            raise ClientError(f"the request body's {self._coding} is cut short", code="bad_encoding")

    def _decompress(self, data: bytes) -> bytes:
        try:
            return self._member.decompress(data, SLICE_BYTES)
        except (zlib.error, zstd.ZstdError) as exc:
            raise ClientError(f"the request body is not {self._coding}, or damaged", code="bad_encoding") from exc

    def _next_member(self) -> None:
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise ClientError("the request body is packed in too many parts", code="bad_encoding")
        self._member = self._open()

    def _count(self, decoded_bytes: int) -> None:
        self._decoded += decoded_bytes
        if self._decoded > self._limit_bytes:
            raise ClientError(
                f"the request body, unpacked, is larger than {self._limit_bytes} bytes",
                status=413,
                code="request_too_large",
            )
        if self._decoded > max(FREE_BYTES, MAX_RATIO * self._received):
            raise ClientError(
                f"the request body is packed to less than 1/{MAX_RATIO} of its size",
                status=413,
                code="request_too_large",
            )


# Answers

_WEIGHTED = re.compile(r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*(?:;\s*q\s*=\s*([01](?:\.\d{0,3})?)\s*)?", re.IGNORECASE)


def choose_coding(accept_encoding: str, size_bytes: int, from_bytes: int | None) -> Coding | None:
    """How to pack an answer of this size for a client that accepts this; None: as it is.

    `from_bytes`: smaller answers are packed only for who refuses them plain; None: no answer is packed.
    A client that accepts nothing we can send gets the answer plain (RFC 9110 section 12.5.3 leaves it to us).
    """
    if from_bytes is None:
        return None
    weights = _weights(accept_encoding)
    others = weights.get("*", 0.0)
    plain_is_refused = weights.get("identity", weights.get("*")) == 0
    if size_bytes < from_bytes and not plain_is_refused:
        return None
    # Of equals the one that is named, then the quicker one.
    ranked = [(weights.get(name, others), name in weights, name == "zstd", name) for name in _OPEN]
    weight, _, _, best = max(ranked)
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else None


def encode(coding: Coding, body: bytes) -> bytes:
    """Pack a complete body. Takes 3 ms for 256 KB."""
    if coding == "zstd":
        return zstd.compress(body, ZSTD_LEVEL)
    packing = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return packing.compress(body) + packing.flush()


def _weights(accept_encoding: str) -> dict[str, float]:
    """Coding -> weight. What is no such list accepts nothing: a client that cannot be understood gets plain answers."""
    weights: dict[str, float] = {}
    for member in accept_encoding.split(","):
        if not member.strip():
            continue
        found = _WEIGHTED.fullmatch(member)
        weight = float(found[2] or 1) if found else 2.0
        if found is None or weight > 1:
            return {}
        name = found[1].lower()
        weights.setdefault(_NAMES.get(name, name), weight)
    return weights
