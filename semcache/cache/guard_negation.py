"""VERIFY: one question affirms what the other denies, or asks for the opposite.

Vetoed are a negation that only one of them has, opposites exchanged (enable and disable, before and after, men's and
women's), and a word with a prefix of denial against the word without (install, uninstall). Two that cancel each other
are content: "not independent" and "dependent".
"""

from __future__ import annotations

from semcache.cache.polarity import (
    ENDINGS,
    NEGATIONS,
    Item,
    Polarity,
    are_alike,
    are_on_one_side,
    are_opposite,
    only_in,
    read_polarity,
)
from semcache.cache.wording import is_context, other_words
from semcache.cache.words import stem


def negation_differ(asked: str, stored: str) -> bool:
    one, other = read_polarity(asked), read_polarity(stored)
    if one == other:
        return False
    mine, theirs = _exchanged(one, other)
    opposed = [
        (a.key, b.key)
        for a in mine
        for b in theirs
        if a.key != b.key and are_opposite(a, b) and not _are_both_there(a, b, mine, theirs)
    ]
    alike = cancelled = sum(are_alike(a, b) for a in mine for b in theirs)
    for left, right in ((one, other), (other, one)):
        for word, affix, base in left.affixed:
            # "in front" is not denied by "infront"
            if base in right.stems and base not in left.stems and right.stems.isdisjoint((word, affix)):
                if base not in right.negated and right.negations <= left.negations:
                    return True
                cancelled += 1
    if opposed and not is_context(asked, stored, 2, 1):
        # "not the correct amount", "the wrong amount"
        is_even = len(opposed) == abs(one.negations - other.negations) == 1 and not alike
        return not is_even or not _DENYING.isdisjoint(opposed[0])
    return _negations_differ(one, other, cancelled) and other_words(asked, stored) <= _REWORDED


_REWORDED = 2  # other words: more, and a negation is as often a way to put it as a denial


def _are_both_there(one: Item, other: Item, mine: list[Item], theirs: list[Item]) -> bool:
    """Whether each text has both of them, in other words: "pros and cons", "advantages and disadvantages"."""
    return any(are_on_one_side(other, each) for each in mine) and any(are_on_one_side(one, each) for each in theirs)


# What says that something does not work as well as a negation does: "can't log in", "trouble logging in".
_TROUBLE = frozenset(
    map(
        stem,
        "fail failure issue problem trouble error decline reject broken wrong stuck lost missing pending refuse deny "
        "impossible wait still block struggle difficulty lack bad poor poorly insufficient few only different help fix "
        "again mistake less dispute disallow forget stay same gone cancel solve".split(),
    )
)
_DENYING = frozenset(map(stem, NEGATIONS))
_ENDED = ENDINGS | frozenset(map(stem, "control overcome rid keep reduce help".split()))


def _exchanged(one: Polarity, other: Polarity) -> tuple[list[Item], list[Item]]:
    """The plain items that each has and the other lacks. Degrees are for guard_comparison.py."""
    if one.items == other.items:
        return [], []
    mine, theirs = only_in(one, other), only_in(other, one)
    return [item for item in mine if not item.is_graded], [item for item in theirs if not item.is_graded]


def _negations_differ(one: Polarity, other: Polarity, cancelled: int) -> bool:
    for left, right in ((one, other), (other, one)):
        if left.endings and not right.endings and not right.stems & _ENDED and not right.negations:
            return True
    if one.negations == other.negations:
        mine, theirs = set(one.negated) - set(other.negated), set(other.negated) - set(one.negated)
        return bool(mine & other.stems and theirs & one.stems)  # "good but not cheap", "cheap but not good"
    fewer, more = (one, other) if one.negations < other.negations else (other, one)
    explained = cancelled + len((fewer.stems - more.stems) & _TROUBLE) + max(fewer.endings - more.endings, 0)
    complaints = [verb for verb in more.complaints if verb not in fewer.claims]
    explained += max(len(complaints) - len(fewer.complaints), 0)
    # "I did not receive it, how do I cancel?", "How do I cancel?": what is denied is no part of the other question.
    explained += sum(bool(word) and word not in fewer.stems for word in more.negated)
    return more.negations - fewer.negations > explained
