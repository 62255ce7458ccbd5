"""COMPARE: does a fresh answer say what a stored one says? Doubt is no evidence.

Three steps, each only where the one before left a doubt: the texts (equal but for blanks, or JSON that says the same),
then the vectors of both, then a judge model, which is asked elsewhere. Here are the first two.

Vectors see topics, not details, so where both answers are short the guards have a say as well: another number, date or
direction is another answer. In long answers the same details stand in other words and places, and an objection only
raises doubt. The cuts were chosen on labelled pairs; `python -m loadtests.quality_answers` prints how they do.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import orjson

from semcache.cache.guards import find_veto
from semcache.errors import TooLong
from semcache.types import Vector

SHORT_CHARS = 200  # up to a sentence or two: a detail that differs is the answer
PIECE_CHARS = 600  # embedded at once, some 15 ms: a question that comes meanwhile waits for one piece at most
MOST_PIECES = 12  # a longer answer is not compared by its vector: 7,000 characters are 0.2 s of the embedder already

_DETAILS = ("numbers", "units", "dates")
_DIRECTIONS = ("comparison", "negation", "roles", "code")
_NAMES = ("entities",)  # they also object to "Paris" and "it is Paris", so they only raise doubt

_FENCED = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+|\n+")
_WORD = re.compile(r"[^\W_]+")
_POLARITY = {"yes": True, "yeah": True, "correct": True, "true": True, "no": False, "nope": False, "false": False}


class Cuts(NamedTuple):
    """Cosines of two answers. From `alike` on they say the same, below `differ` they do not, between is doubt."""

    alike: float
    differ: float


class Texts(NamedTuple):
    """Two answers whose texts alone do not tell: what of them is to be embedded."""

    fresh: str
    stored: str


def compare_texts(fresh: str, stored: str) -> bool | Texts:
    """Whether they say the same, as far as their texts tell; else what is left to be compared."""
    fresh, stored = _unfenced(fresh), _unfenced(stored)
    one, other = _plain(fresh), _plain(stored)
    if one == other:
        return True
    trees = _tree(fresh), _tree(stored)
    if trees[0] is None or trees[1] is None:
        return Texts(one, other)
    return _compare_trees(*trees)


def compare_vectors(texts: Texts, similarity: float, cuts: Cuts) -> bool | None:
    """Whether two answers of this similarity say the same; None: there is no telling.

    Some tens of microseconds, and more for long answers: not for the event loop.
    """
    fresh, stored = texts
    polarity = _polarity(fresh), _polarity(stored)
    if None not in polarity and polarity[0] != polarity[1]:
        return False
    is_short = max(len(fresh), len(stored)) <= SHORT_CHARS
    if is_short and find_veto(fresh, stored, (*_DETAILS, *_DIRECTIONS)) is not None:
        return False
    if similarity < cuts.differ:
        return None if _contains(fresh, stored) else False
    if find_veto(fresh, stored, _NAMES if is_short else _DETAILS) is not None:
        return None
    return True if similarity >= cuts.alike else None  # NaN is a doubt, too


async def embed_answer(text: str, embed: Callable[[str], Awaitable[Vector]]) -> Vector | None:
    """One vector for an answer of any length, piece by piece; None: the model cannot read it, or it is too long.

    Raises what `embed` raises but TooLong.
    """
    pieces = pieces_of(text)
    if not pieces:
        return None
    try:
        return joined([await embed(piece) for piece in pieces])
    except TooLong:
        return None


def pieces_of(text: str) -> list[str] | None:
    """Cut an answer into pieces that a model reads at once, at the ends of sentences; None: it is too long."""
    if len(text) > PIECE_CHARS * MOST_PIECES:
        return None
    pieces = list(_cut(text))
    return pieces if len(pieces) <= MOST_PIECES else None


def joined(vectors: Sequence[Vector]) -> Vector:
    """One vector for all the pieces of an answer, of unit length; zeros where they cancel each other out.

    Cutting answers of 300 characters in two so, the least similar paraphrases came out as near as uncut (0.86).
    """
    total = np.sum(vectors, axis=0)
    length = float(np.linalg.norm(total))
    return np.asarray(total / length if length else total, np.float32)


def _unfenced(text: str) -> str:
    fenced = _FENCED.fullmatch(text.strip())
    return (fenced[1] if fenced else text).strip()


def _plain(text: str) -> str:
    """The text without what is no part of what it says: how blanks and accents are spelt."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _tree(text: str) -> object:
    """The JSON object or array that the text is; None where it is none."""
    if not text.startswith(("{", "[")):
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _compare_trees(fresh: object, stored: object) -> bool | Texts:
    """Members in any order. All but texts must be equal; texts that differ are compared as texts are."""
    one, other = dict(_leaves(fresh, ())), dict(_leaves(stored, ()))
    if one.keys() != other.keys():
        return False
    differing = [(one[path], other[path]) for path in sorted(one, key=str) if one[path] != other[path]]
    if not differing:
        return True
    if not all(isinstance(value, str) and " " in value.strip() for pair in differing for value in pair):
        return False  # a number, a flag, or one word: a label is another label
    return Texts(". ".join(str(a) for a, _ in differing), ". ".join(str(b) for _, b in differing))


def _leaves(tree: object, path: tuple[object, ...]) -> Iterator[tuple[tuple[object, ...], object]]:
    if isinstance(tree, dict):
        yield (*path, "{}"), None  # an empty object is there, too
        for key, value in tree.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(tree, list):
        yield (*path, "[]"), len(tree)
        for place, value in enumerate(tree):
            yield from _leaves(value, (*path, place))
    elif isinstance(tree, str):
        yield path, _plain(tree)
    else:
        yield path, (type(tree).__name__, tree)  # else 1, 1.0 and true are equal


def _polarity(text: str) -> bool | None:
    """Yes or no, where the answer begins so."""
    first = _WORD.match(text)
    return _POLARITY.get(first[0].lower()) if first else None


def _contains(one: str, other: str) -> bool:
    """Whether one is said within the other, word by word: "Paris" in "The capital is Paris."."""
    words = [f" {' '.join(_WORD.findall(text.lower()))} " for text in (one, other)]
    shorter, longer = sorted(words, key=len)
    return shorter.strip() != "" and shorter in longer


def _cut(text: str) -> Iterator[str]:
    piece = ""
    for sentence in _SENTENCE_END.split(text):
        while len(sentence) > PIECE_CHARS:  # a table, or a script without blanks
            if piece:
                yield piece
                piece = ""
            yield sentence[:PIECE_CHARS]
            sentence = sentence[PIECE_CHARS:]
        if piece and len(piece) + 1 + len(sentence) > PIECE_CHARS:
            yield piece
            piece = ""
        piece = f"{piece} {sentence}".strip()
    if piece:
        yield piece
