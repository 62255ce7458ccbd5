"""Server-sent events by bytes, after the WHATWG specification (HTML, section 9.2.6), however the network split them.

Two readers at once: the relay wants the bytes as they came, a block at a time, and the scribe wants what they say.
So every block carries both, and the raw bytes of all blocks, joined, are the input.
"""

from __future__ import annotations

import re
from typing import NamedTuple

LIMIT_BYTES = 1024 * 1024  # an event larger than this is passed on in pieces and not read: memory stays bounded


class Block(NamedTuple):
    """Lines up to and with the blank line that ends them: an event, comments, or nothing at all."""

    raw: bytes
    data: bytes | None  # None: no event to dispatch (comments only, or a blank line more than needed)
    event: bytes = b""  # empty: "message", as nearly always
    too_large: bool = False  # a piece of an event past the limit: relayed, not read


_EOL = rb"(?:\r\n|\n|\r(?!\n))"
_END = re.compile(_EOL + _EOL)  # the end of a line, and the blank line after it
_END_WITHOUT_CR = re.compile(rb"\n\n")  # the same where no CR occurs: many times faster
_BLANK = re.compile(_EOL)
_BOM = b"\xef\xbb\xbf"


class Splitter:
    """Cuts a byte stream into blocks. How the input is chunked makes no difference to the blocks.

    Except in one way: an event past `limit_bytes` comes out in pieces, and where those are cut is up to the chunks.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._held = bytearray()  # the block that is not complete yet
        self._searched = 0  # bytes of it that hold no terminator
        self._first = True  # a byte order mark may stand before the first block
        self._too_large = False  # inside an event whose beginning has been passed on

    def feed(self, chunk: bytes) -> list[Block]:
        """Return the blocks that are complete with this chunk."""
        # Nearly every chunk is one event of one line, whole.
        if not self._held and len(chunk) <= self._limit_bytes and _is_one_line(chunk):
            self._first = False
            return [Block(chunk, chunk[6:-2])]
        self._held += chunk
        return self._blocks(ended=False)

    def finish(self) -> tuple[list[Block], bytes]:
        """No more input: the blocks that only its end completes, and an incomplete block's bytes.

        The specification drops an event without its blank line; so do SDKs.
        """
        blocks = self._blocks(ended=True)
        rest = bytes(self._held)
        self._held.clear()
        return blocks, rest

    def _blocks(self, *, ended: bool) -> list[Block]:
        held, blocks, start = self._held, [], 0
        ending = _END if b"\r" in held else _END_WITHOUT_CR
        while start < len(held):
            end = self._end_of_block(start, ending, ended)
            if end is None:
                break
            blocks.append(self._read(bytes(held[start:end])))
            start, self._searched = end, 0
        if start:
            del held[:start]
        if self._too_large or len(held) > self._limit_bytes:
            blocks += self._pass_on()
        return blocks

    def _end_of_block(self, start: int, ending: re.Pattern[bytes], ended: bool) -> int | None:
        held = self._held
        found = None if self._too_large else _BLANK.match(held, start)
        if found is None:
            # A terminator has up to four bytes, so its first three may lie in what was searched before.
            found = ending.search(held, max(start, self._searched - 3))
        if found is None:
            self._searched = len(held) - start
            return None
        if found.end() == len(held) and held[-1:] == b"\r" and not ended:
            return None  # a line feed may follow, and belongs to this line end: the next byte tells
        return found.end()

    def _read(self, raw: bytes) -> Block:
        if self._too_large:
            self._too_large = False
            return Block(raw, None, too_large=True)
        if len(raw) > self._limit_bytes:
            return Block(raw, None, too_large=True)
        text = raw
        if self._first:
            self._first = False
            text = raw.removeprefix(_BOM)
        return _parse(raw, text)

    def _pass_on(self) -> list[Block]:
        """Let go of an event's beginning. Three bytes stay, for they may be the beginning of its terminator."""
        self._too_large, self._first = True, False
        piece = bytes(self._held[:-3])
        del self._held[:-3]
        self._searched = 0
        return [Block(piece, None, too_large=True)] if piece else []


def _is_one_line(event: bytes) -> bool:
    """Whether this is `data: ...` and a blank line, and nothing else."""
    return (
        event.startswith(b"data: ")
        and event.endswith(b"\n\n")
        and event.find(b"\n") == len(event) - 2
        and b"\r" not in event
    )


def _parse(raw: bytes, text: bytes) -> Block:
    if _is_one_line(text):
        return Block(raw, text[6:-2])
    data: list[bytes] = []
    event = b""
    for line in text.splitlines():  # of bytes: ends lines at CR, LF and CRLF, and nowhere else
        name, _, value = line.partition(b":")  # a comment has an empty name, and no field is called that
        value = value.removeprefix(b" ")
        if name == b"data":
            data.append(value)
        elif name == b"event":
            event = value
    return Block(raw, b"\n".join(data) if data else None, event)
