"""The names that the guard `entities` knows by heart: other spellings, names that are also words, and kinds of things.

Most names need no table: a word that is not in the dictionary, or only with a capital, is a name. In words_kinds.txt
stands what the dictionary cannot tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import NamedTuple


class Name(NamedTuple):
    id: str  # its first spelling
    kind: str
    is_sure: bool  # False: also an ordinary word, which speaks only when it is exchanged for another of its kind


def _load() -> Mapping[str, tuple[Name, ...]]:
    found: dict[str, tuple[Name, ...]] = {}
    text = resources.files("semcache.cache").joinpath("words_kinds.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        kind, colon, names = line.partition(":")
        if not colon or line.startswith("#"):
            continue
        for entry in names.split(";"):
            spellings = [spelling.strip() for spelling in entry.split(",")]
            name = Name(spellings[0], kind, kind.isupper())
            for spelling in spellings:
                found[spelling] = (*found.get(spelling, ()), name)
    return found


# A spelling in lower case -> what it may be the name of.
SPELLINGS = _load()
BEGINNINGS = frozenset(spelling.split()[0] for spelling in SPELLINGS)
LONGEST = max(len(spelling.split()) for spelling in SPELLINGS)  # words
