"""How lines are tied together: each holds the hash of the one before it and, as its last field, its own.

    {"seq":7,"time":...,"event":...,FACTS,"prev":"<hash of line 6>","hash":"<SHA-256 of this line up to here>"}

A line's hash covers every byte of it before `,"hash":`, and so, through `prev`, everything before it. Its own hash is
in it, too, so that a change of the last line shows without a line after it. What no chain in a file can show: that its
end was cut off, or that somebody who may write the file made all of it anew from some line on. Against that helps a
hash of its head kept elsewhere (`semcache audit verify --head`).
"""

from __future__ import annotations

from hashlib import sha256
from typing import NamedTuple

GENESIS = "0" * 64  # what the first line of all holds as the hash before it
_HASH = b',"hash":"'
_TAIL_BYTES = len(_HASH) + 64 + len(b'"}')
_PREV = b',"prev":"'


class Head(NamedTuple):
    """The last line of a chain."""

    seq: int  # 0: there is none yet
    hash: str


BEGINNING = Head(0, GENESIS)


def seal(head: Head, middle: bytes) -> tuple[bytes, Head]:
    """The line that follows `head`, newline included, and the head that it makes."""
    seq = head.seq + 1
    text = b'{"seq":%d,%b,"prev":"%b"' % (seq, middle, head.hash.encode())
    digest = sha256(text).hexdigest()
    return b'%b,"hash":"%b"}\n' % (text, digest.encode()), Head(seq, digest)


def read_head(line: bytes) -> Head | None:
    """What a line, without its newline, makes the head; None where its hash is not that of its bytes.

    Says nothing about the line before it: `links` does.
    """
    cut = len(line) - _TAIL_BYTES
    if cut < 0 or line[cut : cut + len(_HASH)] != _HASH or line[-2:] != b'"}':
        return None
    digest = sha256(line[:cut]).hexdigest()
    if line[cut + len(_HASH) : -2] != digest.encode() or not line.startswith(b'{"seq":'):
        return None
    number = line[7 : line.find(b",", 7)]
    return Head(int(number), digest) if number.isdigit() and len(number) < 19 else None


def looks_whole(line: bytes) -> bool:
    """Whether it ends as a line does, right or not: no crash leaves a line behind that ends so and has a wrong hash."""
    return line[-2:] == b'"}' and line[-_TAIL_BYTES : -_TAIL_BYTES + len(_HASH)] == _HASH


def previous(line: bytes) -> str:
    """The hash that a line with a right hash holds of the one before it; empty where it holds none."""
    cut = len(line) - _TAIL_BYTES - len(b'"') - 64
    if cut < len(_PREV) or line[cut - len(_PREV) : cut] != _PREV:
        return ""
    return line[cut : cut + 64].decode("ascii", "replace")


def links(line: bytes, head: Head) -> bool:
    """Whether a line with a right hash names `head` as the one before it."""
    return previous(line) == head.hash
