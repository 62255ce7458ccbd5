"""KIN: which stored answers say the same, as far as semcache knows.

Answers are kin when their texts are equal, or when a comparison found them to say the same (compare.py): then the
questions they belong to are joined, for good and transitively (a disjoint-set forest: Galler and Fischer 1964). A wrong
join costs certainty and no more, for what it is used for (witnesses.py) is weighed by evidence.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

from cachetools import LRUCache

from semcache.types import Entry

KEPT_DIGESTS = 100_000  # of answers, some 150 bytes each: reading an answer takes 20 us, and a lookup asks for ten


class Kin:
    """Belongs to the event loop."""

    def __init__(self, say: Callable[[Entry], str | None]) -> None:
        """`say`: the text of an entry's answer, as its dialect has it; None where it is no plain text."""
        self._say = say
        self._digests: LRUCache[str, bytes] = LRUCache(KEPT_DIGESTS)
        self._parents: dict[bytes, bytes] = {}

    def name(self, entry: Entry) -> bytes:
        """Equal for entries whose answers are kin."""
        digest = self._digests.get(entry.id)
        if digest is None:
            text = self._say(entry)
            said = entry.key.exact if text is None else " ".join(text.split()).encode(errors="replace")
            self._digests[entry.id] = digest = blake2b(said, digest_size=16).digest()
        key = entry.key.exact
        if key not in self._parents:
            return self._root(digest)
        self.join(key, digest)
        return self._root(key)

    def join(self, one: bytes, other: bytes) -> None:
        """The answers to two questions, by their exact keys, say the same."""
        first, second = self._root(one), self._root(other)
        self._parents.setdefault(first, first)
        self._parents[second] = first

    def _root(self, name: bytes) -> bytes:
        parents = self._parents
        while (parent := parents.get(name, name)) != name:
            parents[name] = name = parents.get(parent, parent)  # halving the path as it is walked
        return name

    def __len__(self) -> int:
        return len(self._parents)
