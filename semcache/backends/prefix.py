"""Which beginnings of prompts a backend has read lately, and so may still hold in its KV cache.

A prompt is cut into chunks, and each chunk's hash covers all chunks before it: equal hashes mean equal beginnings, and
the number of leading hashes that are known is the length of the longest common beginning. Model servers name their KV
blocks the same way (vLLM's automatic prefix caching). What they evict they do not tell, so this is a guess: an LRU of
its own size, which drops the end of a prompt before its beginning, as they do.
"""

from __future__ import annotations

import re
from collections import OrderedDict

# Of one prompt: 1 MB in chunks of 512 bytes, longer than nearly all models can read. What comes after tells two prompts
# apart that agree for so long, which no choice of a backend needs.
MOST_CHUNKS = 2048


# Where the part of a JSON body begins that a model reads. What may stand before it (temperature, user, metadata)
# differs between requests whose prompts begin alike.
_READ = re.compile(rb'"(?:messages|system|instructions|tools|input|prompt)"\s*:')


def prompt_of(body: bytes, model: str | None) -> bytes:
    """What to hash of a request: its model, for each has KV blocks of its own, and the body from where it is read."""
    found = _READ.search(body)
    return (model or "").encode() + b"\0" + (body[found.start() :] if found else body)


def chain(prompt: bytes, chunk: int) -> tuple[int, ...]:
    """A 64-bit hash for each whole chunk, of it and all before it; at most MOST_CHUNKS.

    The hashes are Python's own: keyed by a secret of this process, so that no caller can write a prompt that passes for
    another's, and worth nothing in any other process.
    """
    hashes = []
    so_far = 0
    for end in range(chunk, min(len(prompt), chunk * MOST_CHUNKS) + 1, chunk):
        so_far = hash((so_far, prompt[end - chunk : end]))
        hashes.append(so_far)
    return tuple(hashes)


class PrefixMap:
    """The chunks of one backend: at most `remember`, those used longest ago are forgotten first.

    A chunk is never known without all chunks before it: a prompt is inserted from its end, so that each of its chunks
    is younger than those that follow it, and goes later.
    """

    def __init__(self, remember: int) -> None:
        self._remember = remember
        self._chunks: OrderedDict[int, None] = OrderedDict()  # oldest first

    def match(self, chunks: tuple[int, ...]) -> int:
        """How many leading chunks are known."""
        known = self._chunks
        # As known chunks have no gap before them, a binary search finds where they end.
        least, most = 0, len(chunks)
        place = 0  # most backends do not know even the first
        while least < most:
            if chunks[place] in known:
                least = place + 1
            else:
                most = place
            place = (least + most) // 2
        return least

    def insert(self, chunks: tuple[int, ...]) -> None:
        """A prompt was sent there: it will have been read by the time another could use it."""
        known = self._chunks
        for chunk in reversed(chunks[: self._remember]):
            known[chunk] = None
            known.move_to_end(chunk)
        while len(known) > self._remember:
            known.popitem(last=False)

    def forget(self) -> None:
        """The backend was started anew, and its KV cache with it."""
        self._chunks.clear()

    def __len__(self) -> int:
        return len(self._chunks)

    def __repr__(self) -> str:
        return f"PrefixMap({len(self._chunks)} of {self._remember})"
