"""The event splitter: the WHATWG rules, whatever the chunks, and bounded memory."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.wire.sse import Block, Splitter


def split(*chunks: bytes, limit_bytes: int = 1024) -> tuple[list[Block], bytes]:
    splitter = Splitter(limit_bytes)
    blocks = [block for chunk in chunks for block in splitter.feed(chunk)]
    last, rest = splitter.finish()
    return blocks + last, rest


def events(blocks: Iterable[Block]) -> list[tuple[bytes, bytes]]:
    return [(block.event, block.data) for block in blocks if block.data is not None]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\n\n", [(b"", b"a")]),
        (b"data:a\n\n", [(b"", b"a")]),
        (b"data:  a\n\n", [(b"", b" a")]),  # only one space belongs to the field
        (b"data: a\r\n\r\n", [(b"", b"a")]),
        (b"data: a\r\r", [(b"", b"a")]),
        (b"data: a\n\r\n", [(b"", b"a")]),
        (b"data: a\r\n\n", [(b"", b"a")]),
        (b"data: a\ndata: b\n\n", [(b"", b"a\nb")]),
        (b"data: a\rdata: b\r\ndata: c\n\n", [(b"", b"a\nb\nc")]),
        (b"data\n\n", [(b"", b"")]),
        (b"data:\n\n", [(b"", b"")]),
        (b"data\ndata\n\n", [(b"", b"\n")]),
        (b"event: ping\ndata: a\n\n", [(b"ping", b"a")]),
        (b"data: a\nevent:ping\n\n", [(b"ping", b"a")]),
        (b"event: a\nevent: b\ndata: x\n\n", [(b"b", b"x")]),
        (b"event: ping\n\n", []),  # no data, nothing to dispatch
        (b"event: ping\n\ndata: a\n\n", [(b"", b"a")]),  # and the name is forgotten
        (b": comment\n\n", []),
        (b": comment\ndata: a\n\n", [(b"", b"a")]),
        (b"id: 7\nretry: 100\ndata: a\n\n", [(b"", b"a")]),
        (b"Data: a\n\n", []),  # field names are lower-case
        (b" data: a\n\n", []),
        (b"data : a\n\n", []),
        (b"\n\n\ndata: a\n\n\n\ndata: b\n\n", [(b"", b"a"), (b"", b"b")]),
        (b"\xef\xbb\xbfdata: a\n\n", [(b"", b"a")]),
        (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [(b"", b"a")]),  # only at the beginning
        (b"data: \xe2\x82\xac\n\n", [(b"", "€".encode())]),
        (b"data: a\x0bb\x0cc\xc2\x85d\xe2\x80\xa8e\n\n", [(b"", "a\vb\fc\x85d\u2028e".encode())]),  # no line ends
        (b"data: a\n\ndata: b\n", [(b"", b"a")]),  # an event without its blank line is dropped
        (b"data: a:b: c\n\n", [(b"", b"a:b: c")]),
    ],
)
def test_events_are_read_as_the_specification_says(stream: bytes, expected: list[tuple[bytes, bytes]]) -> None:
    blocks, rest = split(stream)
    assert events(blocks) == expected
    assert b"".join(block.raw for block in blocks) + rest == stream
    for at in range(len(stream) + 1):
        assert split(stream[:at], stream[at:]) == (blocks, rest)
    assert split(*(stream[at : at + 1] for at in range(len(stream)))) == (blocks, rest)


def by_the_book(stream: bytes) -> list[tuple[bytes, bytes]]:
    """The specification's own algorithm, line by line over the whole stream."""
    lines = re.split(rb"\r\n|\r|\n", stream.removeprefix(b"\xef\xbb\xbf"))[:-1]
    found, data, event = [], b"", b""
    for line in lines:
        if not line:
            if data:
                found.append((event, data[:-1]))
            data, event = b"", b""
            continue
        name, _, value = line.partition(b":")
        value = value[1:] if value[:1] == b" " else value
        if name == b"data":
            data += value + b"\n"
        elif name == b"event":
            event = value
    return found


pieces = st.sampled_from(
    [
        b"data: ",
        b"data:",
        b"data",
        b"event: x",
        b": c",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"a",
        b" ",
        b"\xe2\x82\xac",
        b"\xef\xbb\xbf",
    ]
)
streams = st.lists(pieces, max_size=14).map(b"".join)


@given(streams, st.lists(st.integers(0, 60), max_size=6))
def test_chunking_changes_nothing(stream: bytes, cuts: list[int]) -> None:
    whole = split(stream)
    marks = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    assert split(*(stream[a:b] for a, b in pairwise(marks))) == whole
    assert b"".join(block.raw for block in whole[0]) + whole[1] == stream
    assert events(whole[0]) == by_the_book(stream)


def test_an_event_comes_out_with_the_byte_that_completes_it() -> None:
    splitter = Splitter()
    assert splitter.feed(b"data: a\n") == []
    assert [block.data for block in splitter.feed(b"\n")] == [b"a"]


def test_a_return_at_the_end_of_a_chunk_waits_for_its_line_feed() -> None:
    splitter = Splitter()
    assert splitter.feed(b"data: a\r\n\r") == []
    assert [block.raw for block in splitter.feed(b"\ndata: b\r\n\r\n")] == [b"data: a\r\n\r\n", b"data: b\r\n\r\n"]


@pytest.mark.parametrize("step", [1, 7, 40, 1000])
@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
def test_an_event_past_the_limit_passes_in_pieces_and_is_not_held(step: int, end: bytes) -> None:
    stream = b"data: a" + end + b"data: " + b"x" * 500 + end + b"data: b" + end
    splitter = Splitter(limit_bytes=100)
    blocks, most = [], 0
    for at in range(0, len(stream), step):
        blocks += splitter.feed(stream[at : at + step])
        most = max(most, at + step - sum(len(block.raw) for block in blocks))
    blocks += splitter.finish()[0]
    assert b"".join(block.raw for block in blocks) == stream
    assert [block.data for block in blocks if not block.too_large] == [b"a", b"b"]
    assert most <= 100 + step
    assert any(block.too_large for block in blocks)


def test_an_event_of_just_the_limit_is_read() -> None:
    stream = b"data: " + b"x" * 92 + b"\n\n"
    for at in range(len(stream)):
        blocks, _ = split(stream[:at], stream[at:], limit_bytes=100)
        assert [block.data for block in blocks] == [b"x" * 92]
        assert all(block.too_large for block in split(stream[:at], stream[at:], limit_bytes=99)[0])


def test_a_megabyte_byte_by_byte_is_searched_once() -> None:
    splitter = Splitter(limit_bytes=200_000)
    for _ in range(100_000):  # quadratic searching would take minutes here
        assert splitter.feed(b"x") == []
