"""Whether a question asks how the asker's own affairs stand: "what is my balance", "where is my parcel".

Its answer is one person's, whoever else asks the same. Not so of "how do I change my address", "can I cancel my order",
"what happens if my card is stolen": there the way is asked for, and it is the same for everybody. The line drawn here
is narrow: balances, amounts, statuses, dates and details of what is mine. "Why is my card not working" is on the far
side of it, for help pages answer that.

The phrases are in personal_phrases.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from semcache.cache.personal_phrases import ABROAD, BARE, GENERAL, MY_AFFAIRS, THINGS, WHAT_I_HAVE

# Of a longer text the beginning and the end are read, where people put what they ask; between lies a document.
_ENDS = 300


def asks_for_own_state(question: str) -> bool:
    """Costs microseconds, whatever the length."""
    text = question if len(question) <= 2 * _ENDS else f"{question[:_ENDS]}\n{question[-_ENDS:]}"
    text = text.lower().replace("\u2019", "'")
    words = frozenset(_WORD.findall(text))
    if words.isdisjoint(_OWN):  # most questions of the world
        return len(words) <= _FEW and _BARE.fullmatch(text) is not None
    readings = [reading for reading in _READINGS if not words.isdisjoint(reading.own)]
    sentences = _SENTENCE_END.split(_QUOTED.sub(" ", text))
    return any(reading.is_state(sentence) for sentence in sentences for reading in readings)


class _Reading(NamedTuple):
    """A way to ask how one's own affairs stand."""

    own: frozenset[str]  # words for oneself: one of them is there
    hint: re.Pattern[str]  # a quick look for what `asked` needs
    asked: re.Pattern[str]
    general: re.Pattern[str]  # the way is asked for, or the rules are: one answer for everybody

    def is_state(self, sentence: str) -> bool:
        return (
            self.hint.search(sentence) is not None
            and self.asked.search(sentence) is not None
            and self.general.search(sentence) is None
        )


def _read(own: str, phrases: str, general: str, hint: str = "") -> _Reading:
    return _Reading(frozenset(own.split()), re.compile(hint), _one_of(phrases), _one_of(general))


def _one_of(phrases: str) -> re.Pattern[str]:
    """A pattern of one phrase a line, with whole words at both ends. `{thing}` stands for one of THINGS."""
    return re.compile(rf"\b(?:{'|'.join(map(_fill, _lines(phrases)))})(?!\w)")


def _fill(phrase: str) -> str:
    return re.sub(r"\{([a-z]+)\}", lambda found: f"(?:{_fill('|'.join(_lines(THINGS[found[1]])))})", phrase)


def _lines(text: str) -> Sequence[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


_WORD = re.compile(r"\w+")
_FEW = 6  # words of a message that says nothing but what it wants
_QUOTED = re.compile(r"```.*?```|`[^`]*`|\"[^\"]*\"|[“„«][^”“»]*[”“»]|(?<!\w)'[^'\n]*'(?!\w)|https?://\S+", re.DOTALL)
_SENTENCE_END = re.compile(r"[.?!;\n]+")

_BARE = re.compile(rf"\W*{_one_of(BARE).pattern}\W*")
_READINGS = (
    _read("my", MY_AFFAIRS, GENERAL, hint=_fill(r"{topic}")),
    _read("i me", WHAT_I_HAVE, GENERAL, hint=r"how |what |who |when |where |why |am i|do i|i been|was i|were i"),
    *(_read(own, phrases, general) for own, phrases, general in ABROAD),
)
_OWN = frozenset[str]().union(*(reading.own for reading in _READINGS))
