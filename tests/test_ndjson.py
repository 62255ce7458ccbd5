"""The cutter of JSON lines: the same lines whatever the chunks, every byte passed on, and bounded memory."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.wire.ndjson import LineCutter, line
from semcache.wire.sse import Block


def cut(*chunks: bytes, limit_bytes: int = 1024) -> tuple[list[Block], bytes]:
    cutter = LineCutter(limit_bytes)
    blocks = [block for chunk in chunks for block in cutter.feed(chunk)]
    last, rest = cutter.finish()
    return blocks + last, rest


@pytest.mark.parametrize(
    ("stream", "lines", "rest"),
    [
        (b"", [], b""),
        (b'{"a":1}\n', [b'{"a":1}'], b""),
        (b'{"a":1}\n{"b":2}\n', [b'{"a":1}', b'{"b":2}'], b""),
        (b'{"a":1}\r\n{"b":2}\r\n', [b'{"a":1}', b'{"b":2}'], b""),
        (b'\n\r\n  \n{"a":1}\n\n\n', [b'{"a":1}'], b""),
        (b' {"a":1}\t\n', [b'{"a":1}'], b""),
        (b'{"a":1}\n{"b":2}', [b'{"a":1}', b'{"b":2}'], b""),  # the last line may lack its line feed
        (b'{"a":1}\r', [b'{"a":1}'], b""),
        (b'{"a":1}\n{"b":', [b'{"a":1}'], b'{"b":'),  # cut
        (b'{"a":1}\n12', [b'{"a":1}'], b"12"),  # of 123, for all we know
        (b'{"a":1}\n\r', [b'{"a":1}'], b"\r"),
        (b"no json\n", [b"no json"], b""),  # that is for the judge
        ('{"a":"é\u2028\x85🚚"}\n'.encode(), ['{"a":"é\u2028\x85🚚"}'.encode()], b""),
    ],
)
def test_lines_are_cut_at_line_feeds_whatever_the_chunks(stream: bytes, lines: list[bytes], rest: bytes) -> None:
    blocks, left = cut(stream)
    assert [block.data for block in blocks if block.data is not None] == lines
    assert left == rest
    assert b"".join(block.raw for block in blocks) + left == stream
    for at in range(len(stream) + 1):
        assert cut(stream[:at], stream[at:]) == (blocks, left)
    assert cut(*(stream[at : at + 1] for at in range(len(stream)))) == (blocks, left)


def test_a_line_past_the_limit_is_passed_on_and_not_read() -> None:
    long = b'{"a":"' + b"x" * 60 + b'"}\n'
    for size in range(1, len(long) + 1):
        chunks = [long[at : at + size] for at in range(0, len(long), size)]
        blocks, rest = cut(b'{"b":1}\n', *chunks, b'{"c":2}\n', limit_bytes=20)
        assert [block.data for block in blocks if block.data] == [b'{"b":1}', b'{"c":2}']
        assert any(block.too_large for block in blocks)
        assert b"".join(block.raw for block in blocks) + rest == b'{"b":1}\n' + long + b'{"c":2}\n'


def test_no_more_than_the_limit_is_held() -> None:
    cutter = LineCutter(20)
    passed_on = 0
    for number in range(1, 101):
        passed_on += sum(len(block.raw) for block in cutter.feed(b"x"))
        assert number - passed_on <= 20
    assert cutter.finish() == ([], b"")


def test_the_end_of_a_line_past_the_limit_is_no_line_of_its_own() -> None:
    blocks, rest = cut(b"x" * 30, b'{"a":1}', limit_bytes=20)
    assert all(block.data is None for block in blocks)
    assert b"".join(block.raw for block in blocks) + rest == b"x" * 30 + b'{"a":1}'


@given(st.lists(st.sampled_from([b'{"a":1}', b"\n", b"\r\n", b"\r", b" ", b'"', "é".encode(), b"x" * 30])), st.data())
def test_chunks_make_no_difference(pieces: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(pieces)
    places = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    chunks = [stream[start:end] for start, end in pairwise([0, *places, len(stream)])]
    assert cut(*chunks) == cut(stream)


def test_a_written_line_is_one_line_to_readers_of_unicode() -> None:
    text = '{"a":"1\u20282\u20293\x854"}'
    assert line(text.encode()).decode().splitlines() == ['{"a":"1\\u20282\\u20293\\u00854"}']
