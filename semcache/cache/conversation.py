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

from collections.abc import Iterable, Sequence

from semcache.cache.follow_up import means_nothing_alone
from semcache.cache.guards import find_veto
from semcache.config import Match
from semcache.types import Ask, Reason, Turn, Vector

COMPARED_TURNS = 8
COMPARED_CHARS = 1000  # about 250 tokens, a half of the shipped model's window, and 30 ms of its time on one core


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


def compared(turns: Sequence[Turn]) -> tuple[str, ...]:
    """The texts of the turns that may be near instead of equal: the newest, oldest first."""
    texts: list[str] = []
    room = COMPARED_CHARS
    for turn in reversed(turns[-COMPARED_TURNS:]):
        if turn.text is None or len(turn.text) > room:
            break
        texts.append(turn.text)
        room -= len(turn.text)
    return tuple(reversed(texts))


def as_one_text(turns: Sequence[Turn]) -> str:
    """What is embedded for the turns that `compared` gives."""
    count = len(compared(turns))
    return "\n".join(f"{turn.role}: {turn.text}" for turn in turns[len(turns) - count :])


def find_context_objection(
    asked: Sequence[str],
    asked_vector: Vector | None,
    stored: Sequence[str],
    stored_vector: Vector | None,
    threshold: float,
    guards: Iterable[str],
) -> Reason | None:
    """Why an answer given after the turns `stored` must not be given after the turns `asked`; None when it may.

    Of each: the texts of the turns that are compared, and the vector of all of them as one text.
    """
    if not asked and not stored:
        return None
    if len(asked) != len(stored) or asked_vector is None or stored_vector is None:
        return Reason.CONTEXT
    if similarity(asked_vector, stored_vector) < threshold:
        return Reason.CONTEXT
    if any(find_veto(ours, theirs, guards) for ours, theirs in zip(asked, stored, strict=True) if ours != theirs):
        return Reason.CONTEXT
    return None


def similarity(one: Vector, other: Vector) -> float:
    """Their cosine; below any threshold where they cannot be compared."""
    return float(one @ other) if one.shape == other.shape else -1.0
