"""VERIFY: the cheapest against the most expensive, the first against the last, at least against at most.

Degrees of one quality in opposite directions are vetoed. "Less invisible" and "more visible" are content, and so is a
degree against another in the same direction: people write "better" for "best".
"""

from __future__ import annotations

from semcache.cache.polarity import are_opposite, only_in, read_polarity
from semcache.cache.words import Word, read_words


def comparison_differ(asked: str, stored: str) -> bool:
    one, other = read_polarity(asked), read_polarity(stored)
    if one.items == other.items:
        return False
    mine, theirs = only_in(one, other), only_in(other, one)
    differ = any(are_opposite(a, b) for a in mine for b in theirs if a.is_graded or b.is_graded)
    return differ and not _is_converse(read_words(asked), read_words(stored))


def _is_converse(asked: tuple[Word, ...], stored: tuple[Word, ...]) -> bool:
    """Whether what is compared changed places too: "is A cheaper than B", "is B more expensive than A"."""
    before, after = _around_than(asked)
    other_before, other_after = _around_than(stored)
    return bool(after & other_before and other_after & before and not after & other_after)


def _around_than(words: tuple[Word, ...]) -> tuple[frozenset[str], frozenset[str]]:
    """The stems before "than", and the stems after it that are not before it too."""
    stems = [word.stem for word in words]
    at = stems.index("than") if "than" in stems else len(stems)
    before = frozenset(stems[:at])
    return before, frozenset(stems[at + 1 :]) - before
