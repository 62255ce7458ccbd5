"""Bodies that are packed: how they are unpacked within bounds, and how answers are packed for who accepts it."""

from __future__ import annotations

import gzip
import random
import sys
import zlib
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from semcache.errors import ClientError
from semcache.listening import encoding
from semcache.listening.encoding import (
    FREE_BYTES,
    MAX_MEMBERS,
    MAX_RATIO,
    SLICE_BYTES,
    Coding,
    Decoder,
    choose_coding,
    coding_of,
    encode,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CODINGS: list[Coding] = ["gzip", "zstd"]
NOISE = random.Random(7).randbytes(300_000)
PACKERS = {"gzip": gzip.compress, "zstd": zstd.compress}  # not ours: what others send has to be read


def decode(coding: Coding, *pieces: bytes, limit_bytes: int = 1 << 30) -> bytes:
    decoder = Decoder(coding, limit_bytes)
    slices = [piece for data in pieces for piece in decoder.feed(data)]
    decoder.finish()
    assert all(0 < len(piece) <= SLICE_BYTES for piece in slices)
    return b"".join(slices)


def status_of(coding: Coding, *pieces: bytes, limit_bytes: int = 1 << 30) -> int:
    with pytest.raises(ClientError) as caught:
        decode(coding, *pieces, limit_bytes=limit_bytes)
    return caught.value.status


# Requests


@given(
    st.lists(st.one_of(st.binary(), st.integers(0, 300_000).map(lambda n: NOISE[:n])), min_size=1, max_size=4),
    st.sampled_from(CODINGS),
    st.lists(st.integers(0, 400_000), max_size=6),
)
@example([NOISE[:SLICE_BYTES]], "gzip", [])  # exactly a slice: the end comes without a byte more
@example([b"a" * SLICE_BYTES * 2, b""], "zstd", [10])
def test_what_was_packed_in_any_number_of_parts_and_sent_in_any_pieces_comes_out(
    parts: list[bytes], coding: Coding, cuts: list[int]
) -> None:
    packed = b"".join(PACKERS[coding](part) for part in parts)
    ends = [0, *sorted(min(cut, len(packed)) for cut in cuts), len(packed)]
    pieces = [packed[start:end] for start, end in pairwise(ends)]
    assert decode(coding, *pieces) == b"".join(parts)


@given(st.binary(min_size=1, max_size=2000), st.sampled_from(CODINGS), st.data())
def test_a_part_of_it_is_a_400_wherever_it_is_cut(body: bytes, coding: Coding, data: st.DataObject) -> None:
    packed = PACKERS[coding](body)
    assert status_of(coding, packed[: data.draw(st.integers(0, len(packed) - 1))]) == 400


@given(st.binary(min_size=1, max_size=400), st.sampled_from(CODINGS))
@settings(max_examples=300)
def test_any_bytes_are_unpacked_or_refused_and_nothing_else(data: bytes, coding: Coding) -> None:
    with suppress(ClientError):
        decode(coding, data)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize(
    "data", [b"", b'{"model": "m"}', b"\0" * 100, zlib.compress(b"{}")], ids=["nothing", "plain", "zeros", "zlib"]
)
def test_what_is_not_packed_as_it_says_is_a_400(coding: Coding, data: bytes) -> None:
    assert status_of(coding, data) == 400


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("rest", [b"\0", b"{}", b"garbage that is longer than any header of a part could be"])
def test_garbage_behind_the_end_is_a_400_in_the_same_piece_or_the_next(coding: Coding, rest: bytes) -> None:
    packed = PACKERS[coding](b"{}")
    assert status_of(coding, packed + rest) == 400
    assert status_of(coding, packed, rest) == 400


def test_a_damaged_checksum_is_a_400() -> None:
    packed = bytearray(gzip.compress(b"Where is my parcel?"))
    packed[-8] ^= 1
    assert status_of("gzip", bytes(packed)) == 400


@pytest.mark.parametrize("coding", CODINGS)
def test_a_bomb_ends_at_the_limit_and_is_never_held(coding: Coding) -> None:
    bomb = PACKERS[coding](b"\0" * (50 << 20))
    assert len(bomb) < 60_000
    decoder = Decoder(coding, 32 << 20)
    decoded = 0
    with pytest.raises(ClientError) as caught:
        for piece in decoder.feed(bomb):
            decoded += len(piece)
    assert caught.value.status == 413
    assert decoded <= max(FREE_BYTES, MAX_RATIO * len(bomb))


@pytest.mark.parametrize("coding", CODINGS)
def test_the_limit_is_of_what_comes_out(coding: Coding) -> None:
    packed = PACKERS[coding](NOISE)
    assert decode(coding, packed, limit_bytes=len(NOISE)) == NOISE
    assert status_of(coding, packed, limit_bytes=len(NOISE) - 1) == 413


@pytest.mark.parametrize("coding", CODINGS)
def test_a_short_body_may_be_packed_however_well_it_can_be(coding: Coding) -> None:
    body = b"a" * FREE_BYTES
    assert decode(coding, PACKERS[coding](body)) == body
    assert status_of(coding, PACKERS[coding](body + b"a")) == 413


@pytest.mark.parametrize("coding", CODINGS)
def test_empty_parts_without_end_are_refused(coding: Coding) -> None:
    assert decode(coding, PACKERS[coding](b"") * MAX_MEMBERS) == b""
    assert status_of(coding, PACKERS[coding](b"") * (MAX_MEMBERS + 1)) == 400


def test_a_frame_that_wants_more_memory_than_a_sender_may_ask_for_is_a_400() -> None:
    options = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.content_size_flag: 0}
    packing = zstd.ZstdCompressor(options=options)
    packed = packing.compress(NOISE) + packing.flush()
    assert status_of("zstd", packed) == 400


@pytest.mark.parametrize(
    "values, coding",
    [
        ([], None),
        ([""], None),
        (["identity"], None),
        (["identity, identity"], None),
        (["gzip"], "gzip"),
        ([" GZip "], "gzip"),
        (["x-gzip"], "gzip"),
        (["identity, gzip"], "gzip"),
        (["zstd"], "zstd"),
        (["gzip, gzip"], 415),
        (["gzip", "gzip"], 415),
        (["gzip, zstd"], 415),
        (["deflate"], 415),
        (["br"], 415),
        (["gzip;q=1"], 415),
    ],
)
def test_one_known_coding_is_understood_and_any_other_is_a_415_that_names_them(
    values: list[str], coding: Coding | int | None
) -> None:
    if not isinstance(coding, int):
        assert coding_of(values) == coding
        return
    with pytest.raises(ClientError) as caught:
        coding_of(values)
    assert (caught.value.status, caught.value.headers) == (coding, {"Accept-Encoding": "gzip, zstd"})


# Answers


@pytest.mark.parametrize(
    "accepts, coding",
    [
        ("gzip", "gzip"),
        ("zstd", "zstd"),
        ("gzip, deflate", "gzip"),  # httpx, and so the SDKs for Python
        ("gzip, deflate, br, zstd", "zstd"),  # browsers
        ("gzip,deflate", "gzip"),  # the SDKs for Node
        ("x-gzip", "gzip"),
        ("GZIP;Q=0.5", "gzip"),
        ("gzip;q=1.0, zstd;q=0.5", "gzip"),
        ("zstd;q=0, gzip", "gzip"),
        ("gzip;q=0", None),
        ("gzip;q=0.000", None),
        ("identity", None),
        ("identity, gzip", "gzip"),
        ("identity;q=1, gzip;q=0.5", None),
        ("identity;q=0.5, gzip;q=1", "gzip"),
        ("identity;q=0, gzip", "gzip"),
        ("identity;q=0", None),  # nothing that we could send instead
        ("*", "zstd"),
        ("gzip, *", "gzip"),  # what is named is surely understood
        ("*;q=0", None),
        ("*;q=0, gzip", "gzip"),
        ("zstd;q=0, *", "gzip"),
        ("gzip;q=0.2, *;q=0.1", "gzip"),
        ("br, deflate", None),
        ("", None),
        (", ,", None),
        ("gzip;q=2", None),
        ("gzip;q=x", None),
        ("gzip;level=1", None),
        ("gzip zstd", None),
    ],
)
def test_an_answer_is_packed_as_the_client_accepts_it(accepts: str, coding: Coding | None) -> None:
    assert choose_coding(accepts, 1000, 1000) == coding


@pytest.mark.parametrize(
    "accepts, coding", [("gzip", None), ("*", None), ("gzip, *;q=0", "gzip"), ("identity;q=0, zstd", "zstd")]
)
def test_a_small_answer_is_packed_only_for_who_refuses_it_plain(accepts: str, coding: Coding | None) -> None:
    assert choose_coding(accepts, 999, 1000) == coding
    assert choose_coding(accepts, 10**9, None) is None


@given(
    st.dictionaries(st.sampled_from(["gzip", "zstd", "identity", "*", "br"]), st.integers(0, 1000)),
    st.integers(0, 2000),
)
def test_the_coding_is_the_one_that_the_client_weighs_most(weights: dict[str, int], size: int) -> None:
    accepts = ", ".join(f"{name};q={weight / 1000:.3f}" for name, weight in weights.items())
    coding = choose_coding(accepts, size, 1000)
    of = {name: weights.get(name, weights.get("*", 0)) for name in CODINGS}
    is_wanted = max(of.values()) > 0 and max(of.values()) >= weights.get("identity", 0)
    has_to_be = weights.get("identity", weights.get("*")) == 0
    if coding is not None:
        assert of[coding] == max(of.values())
    assert (coding is not None) == (is_wanted and (size >= 1000 or has_to_be))


@given(st.text())
def test_any_header_is_understood_or_ignored(accepts: str) -> None:
    assert choose_coding(accepts, 1000, 1000) in (None, "gzip", "zstd")


@given(st.binary(), st.sampled_from(CODINGS))
def test_what_is_packed_here_is_unpacked_by_others(body: bytes, coding: Coding) -> None:
    packed = encode(coding, body)
    assert (gzip.decompress(packed) if coding == "gzip" else zstd.decompress(packed)) == body
    assert encoding.encode(coding, body) == packed
