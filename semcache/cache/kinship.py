"""KIN: which stored answers say the same, as far as semcache knows.

Answers are kin when their texts are equal, or when a comparison found them to say the same (compare.py). The first such
comparison joins a question that is new, and later its answer's text, to a tree (a forest of disjoint sets: Galler and
Fischer 1964). Trees are never joined to each other: with two comparisons for each question, of which one in 200 is
wrong, nine of ten strangers were kin after 12,000 questions; so it is one in 500, however long it goes on.

A wrong join costs certainty and no more, for what it is used for (witnesses.py) is weighed by evidence.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b

from semcache.errors import CacheFault
from semcache.types import Entry

KEPT_DIGESTS = 100_000  # of answers, some 150 bytes each: reading an answer takes 20 us, and a lookup asks for ten
KEPT_PARENTS = 200_000  # questions and answers that are joined to others, some 200 bytes each
LONG_BYTES = 64 * 1024  # an answer of 1 MB takes 30 ms to read, which the event loop has not: it is its own kin alone


class Kin:
    """Belongs to the event loop."""

    def __init__(self, say: Callable[[Entry], str | None], kept: int = KEPT_PARENTS) -> None:
        """`say`: the text of an entry's answer, as its dialect has it; None where it is no plain text. May raise
        CacheFault: then it is its own kin alone.
        """
        self._say = say
        self._kept = kept
        self._digests: OrderedDict[str, bytes] = OrderedDict()  # by the entry's id, the oldest first
        # The oldest first. What is pushed out leaves its part of a tree to itself: less is known, nothing wrong.
        self._parents: OrderedDict[bytes, bytes] = OrderedDict()

    def name(self, entry: Entry) -> bytes:
        """Equal for entries whose answers are kin."""
        digest = self._digests.get(entry.id) or self._read(entry)
        if digest not in self._parents:
            key = entry.key.exact
            if key not in self._parents:
                return digest
            self._attach(digest, self._root(key))
        return self._root(digest)

    def join(self, stored: bytes, asked: bytes) -> None:
        """The answer to what was asked says the same as a stored one; both by the exact keys of their questions."""
        if asked == stored or asked in self._parents:
            return
        root = self._root(stored)
        self._parents.setdefault(root, root)
        self._attach(asked, root)

    def _attach(self, name: bytes, root: bytes) -> None:
        self._parents[name] = root
        while len(self._parents) > self._kept:
            self._parents.popitem(last=False)

    def _read(self, entry: Entry) -> bytes:
        said = None
        if entry.answer.size_bytes <= LONG_BYTES:
            with suppress(CacheFault):  # one that cannot be played would else be in the way of all that are near it
                said = self._say(entry)
        told = entry.key.exact if said is None else " ".join(said.split()).encode(errors="replace")
        if len(self._digests) >= KEPT_DIGESTS:
            self._digests.popitem(last=False)  # of a plain dict, finding the first takes 60 us once many have left
        self._digests[entry.id] = digest = blake2b(told, digest_size=16).digest()
        return digest

    def _root(self, name: bytes) -> bytes:
        parents = self._parents
        while (parent := parents.get(name, name)) != name:
            parents[name] = name = parents.get(parent, parent)  # halving the path as it is walked
        return name

    def __len__(self) -> int:
        return len(self._parents)
