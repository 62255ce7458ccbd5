"""CONTEXT: how the turns before a question count, where a route does not want all of them equal (`match.context`).

    equal      they belong to the context, like all else
    last: N    the last N belong to it; older ones do not count
    similar    they may be other words for the same: their vectors must be near, and no guard may object to any of them

For `similar` only the newest turns are compared, as many as the embedder reads well. Older ones must be equal, and so
must their number and who spoke: turns are held against each other one by one, and one more of them may have changed
everything. A turn that is more than a text can only be equal.

The exact tier is as everywhere: a request that is equal in all of its turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from semcache.cache.follow_up import means_nothing_alone
from semcache.cache.guards import find_veto
from semcache.config import Match
from semcache.types import Ask, Entry, Reason, Turn, Vector

T = TypeVar("T")


class Embedder(Protocol):
    async def embed(self, text: str, then: Callable[[Vector], T]) -> T: ...


class Ruling(Protocol):
    """Of what is allowed for a request, what concerns its turns; see policy.py."""

    @property
    def context_threshold(self) -> float | None: ...

    @property
    def compares_turns(self) -> bool: ...

    @property
    def guards(self) -> tuple[str, ...]: ...


COMPARED_TURNS = 8
COMPARED_CHARS = 800  # about 200 tokens of the 256 that the shipped model reads, and 20 ms of its time


def loses_its_meaning(ask: Ask, match: Match) -> bool:
    """Whether the question means nothing without turns that need not be equal, or that are not there.

    Where they are equal, follow-ups may be near: "and in Rome?" and "what about Rome?" after the same turns.
    """
    if ask.question is None or (ask.turns and match.context == "equal"):
        return False
    return means_nothing_alone(ask.question) or _answers_a_question(ask.question, ask.turns)


def _answers_a_question(text: str, turns: Sequence[Turn]) -> bool:
    """“Which city?” “San Jose”: what the assistant asked for, and no question in return."""
    if not turns or turns[-1].role != "assistant" or turns[-1].text is None:
        return False
    return turns[-1].text.rstrip().endswith(("?", "？", "؟")) and not text.rstrip().endswith(("?", "？", "؟"))


def turns_left_out(turns: Sequence[Turn], match: Match) -> slice | None:
    """Which turns the context of the semantic tier does without; None where it is whole."""
    if match.context == "equal" or not turns:
        return None
    if isinstance(match.context, int):
        return slice(0, len(turns) - match.context) if len(turns) > match.context else None
    count = len(compared(turns))
    return slice(len(turns) - count, len(turns)) if count else None


def compared(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns that may be near instead of equal: the newest, oldest first."""
    room = COMPARED_CHARS
    count = 0
    for turn in reversed(turns[-COMPARED_TURNS:]):
        if turn.text is None or len(turn.text) > room:
            break
        room -= len(turn.text)
        count += 1
    return tuple(turns[len(turns) - count :])


class Past(NamedTuple):
    """What was said before a question, as far as it is compared."""

    texts: tuple[str, ...] = ()
    vector: Vector | None = None  # of all of them as one text


NO_PAST = Past()


async def read_past(ask: Ask, ruling: Ruling, embedder: Embedder) -> Past:
    """Raises TooLong where the turns are longer than the embedder reads, and what an embedder raises."""
    turns = compared(ask.turns) if ruling.compares_turns else ()
    if not turns:
        return NO_PAST
    text = "\n".join(f"{turn.role}: {turn.text}" for turn in turns)
    return Past(tuple(turn.text or "" for turn in turns), await embedder.embed(text, lambda vector: vector))


def find_context_objection(past: Past, entry: Entry, ruling: Ruling) -> Reason | None:
    """Why an answer must not be given after these turns, that was given after those of `entry`; None when it may."""
    if not ruling.compares_turns or (past.texts == entry.turns and past.vector is None):
        return None
    is_near = past_similarity(past, entry) >= (ruling.context_threshold or 0.0)  # which NaN is not
    if not is_near or len(past.texts) != len(entry.turns):
        return Reason.CONTEXT
    pairs = zip(past.texts, entry.turns, strict=True)
    vetoed = any(ours != theirs and find_veto(ours, theirs, ruling.guards) for ours, theirs in pairs)
    return Reason.CONTEXT if vetoed else None


def past_similarity(past: Past, entry: Entry) -> float:
    """The cosine of the turns; below any threshold where they cannot be compared."""
    one, other = past.vector, entry.turns_vector
    return float(one @ other) if one is not None and other is not None and one.shape == other.shape else -1.0
