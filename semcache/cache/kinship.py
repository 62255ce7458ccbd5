"""KIN: which stored answers say the same, as far as semcache knows.

Answers are kin when their texts are equal, or when a comparison found them to say the same (compare.py): then the
questions they belong to are joined, transitively (a disjoint-set forest: Galler and Fischer 1964), until newer joins
take their room. A wrong join costs certainty and no more, for what it is used for (witnesses.py) is weighed by
evidence.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b

from semcache.types import Entry

KEPT_DIGESTS = 100_000  # of answers, some 150 bytes each: reading an answer takes 20 us, and a lookup asks for ten
KEPT_PARENTS = 200_000  # questions and answers that are joined to others, some 200 bytes each
LONG_BYTES = 64 * 1024  # an answer of 1 MB takes 30 ms to read, which the event loop has not: it is its own kin alone


class Kin:
    """Belongs to the event loop."""

    def __init__(self, say: Callable[[Entry], str | None], kept: int = KEPT_PARENTS) -> None:
        """`say`: the text of an entry's answer, as its dialect has it; None where it is no plain text. May raise."""
        self._say = say
        self._kept = kept
        self._digests: dict[str, bytes] = {}  # by the entry's id, the oldest first
        # The oldest join first. What is pushed out leaves its part of a tree to itself: less is known, nothing wrong.
        self._parents: OrderedDict[bytes, bytes] = OrderedDict()

    def name(self, entry: Entry) -> bytes:
        """Equal for entries whose answers are kin."""
        digest = self._digests.get(entry.id) or self._read(entry)
        key = entry.key.exact
        if key not in self._parents:
            return self._root(digest)
        root = self._root(key)
        if self._root(digest) != root:
            self.join(key, digest)
        return root

    def join(self, one: bytes, other: bytes) -> None:
        """The answers to two questions, by their exact keys, say the same."""
        first, second = self._root(one), self._root(other)
        parents = self._parents
        parents.setdefault(first, first)
        parents[second] = first
        while len(parents) > self._kept:
            parents.popitem(last=False)

    def _read(self, entry: Entry) -> bytes:
        said = None
        if entry.answer.size_bytes <= LONG_BYTES:
            said = self._say(entry)
        told = entry.key.exact if said is None else " ".join(said.split()).encode(errors="replace")
        if len(self._digests) >= KEPT_DIGESTS:
            del self._digests[next(iter(self._digests))]
        self._digests[entry.id] = digest = blake2b(told, digest_size=16).digest()
        return digest

    def _root(self, name: bytes) -> bytes:
        parents = self._parents
        while (parent := parents.get(name, name)) != name:
            parents[name] = name = parents.get(parent, parent)  # halving the path as it is walked
        return name

    def __len__(self) -> int:
        return len(self._parents)
