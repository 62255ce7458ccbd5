"""Streams of JSON lines by bytes, however the network split them.

A line ends with a line feed, with or without a carriage return before it; JSON holds neither inside a text. As in
sse.py every block carries its raw bytes, and those of all blocks, joined, are the input.
"""

from __future__ import annotations

import orjson

from semcache.wire.sse import LIMIT_BYTES, Block

MEDIA_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl")  # Ollama says the first

_SPACE = b" \t\r\n"

# Line ends to readers that split decoded text by Unicode's rules, as httpx does for Ollama's own client. JSON may hold
# them as they are, and nowhere but inside a string, where an escape says the same.
_UNICODE_LINE_ENDS = tuple((end.encode(), b"\\u%04x" % ord(end)) for end in "\x85\u2028\u2029")


class LineCutter:
    """Cuts a byte stream into lines. How the input is chunked makes no difference to them.

    Except in one way: a line past `limit_bytes` comes out in pieces, and where those are cut is up to the chunks.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._held = bytearray()  # the line that is not complete yet
        self._searched = 0  # bytes of it that hold no line feed
        self._too_large = False  # inside a line whose beginning has been passed on

    def feed(self, chunk: bytes) -> list[Block]:
        """Return the lines that are complete with this chunk."""
        held, blocks, start = self._held, [], 0
        held += chunk
        while (end := held.find(b"\n", max(start, self._searched))) >= 0:
            blocks.append(self._read(bytes(held[start : end + 1])))
            start = end + 1
            self._searched = start
        del held[:start]
        self._searched = len(held)
        if held and (self._too_large or len(held) > self._limit_bytes):
            self._too_large = True
            blocks.append(Block(bytes(held), None, too_large=True))
            held.clear()
            self._searched = 0
        return blocks

    def finish(self) -> tuple[list[Block], bytes]:
        """No more input: the last line, where only its line feed is missing, or the bytes of a line that was cut.

        An object is no JSON before its closing brace, so the two cannot be confused.
        """
        rest = bytes(self._held)
        self._held.clear()
        self._searched = 0
        if not self._too_large and _is_object(rest):
            return [Block(rest, rest.strip(_SPACE))], b""
        return [], rest

    def _read(self, raw: bytes) -> Block:
        if self._too_large or len(raw) > self._limit_bytes:
            self._too_large = False
            return Block(raw, None, too_large=True)
        return Block(raw, raw.strip(_SPACE) or None)


def line(text: bytes) -> bytes:
    """Write a JSON text as a line that every reader takes for one."""
    for end, escape in _UNICODE_LINE_ENDS:
        text = text.replace(end, escape)
    return text + b"\n"


def _is_object(text: bytes) -> bool:
    try:
        return type(orjson.loads(text)) is dict
    except orjson.JSONDecodeError:
        return False
