"""VERIFY: the same words, asked for something else: who and when, where and why, how and how many.

What a question asks for is read from its question words, and from what says the same in other words ("what time", the
reason, the price). People ask for one thing in many ways, so other kinds alone are no reason: the rest of the words
must be the same. And wishes are let pass however they are put: "How do I", "Can I", "What do I do to",
"Reset my password".
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from itertools import product
from typing import NamedTuple

from semcache.cache.remember import remember
from semcache.cache.words import MARKS, STOP, Word, read_words, stem


class Kind(Enum):
    WHO = "who"
    WHEN = "when"
    WHERE = "where"
    WHY = "why"
    HOW = "how"
    HOW_MANY = "how many"
    HOW_MUCH = "how much"
    HOW_LONG = "how long"
    HOW_OFTEN = "how often"
    HOW_FAR = "how far"
    HOW_OLD = "how old"
    DEGREE = "how good"
    WHAT = "what"
    WHICH = "which"
    WHETHER = "whether"


class Question(NamedTuple):
    kinds: frozenset[Kind]
    rest: frozenset[str]  # the stems of what is asked about
    degree: str  # of "how tall", "how old"
    is_way: bool  # it is about what is done on some page or form, which is a way as much as a place


def question_differ(asked: str, stored: str) -> bool:
    one, other = read_question(asked), read_question(stored)
    mine, theirs = one.kinds - other.kinds, other.kinds - one.kinds
    if one.degree and other.degree and one.degree != other.degree:
        return one.rest - {one.degree} == other.rest - {other.degree}
    if not mine or not theirs:
        return False
    is_exchanged = one.rest == other.rest
    if not is_exchanged and (one.kinds & other.kinds or not _share_half(one.rest, other.rest)):
        return False
    is_way = one.is_way and other.is_way
    return not any(_agree(a, b, is_exchanged, is_way) for a, b in product(mine, theirs))


def _share_half(one: frozenset[str], other: frozenset[str]) -> bool:
    return 2 * len(one & other) >= len(one | other)


# Kinds that name what they ask for. Any other can stand for one of these: "what" for "who", "whether" for "where".
_SHARP = frozenset(
    {
        Kind.WHO,
        Kind.WHEN,
        Kind.WHERE,
        Kind.WHY,
        Kind.HOW_MANY,
        Kind.HOW_OFTEN,
        Kind.HOW_FAR,
        Kind.HOW_OLD,
        Kind.HOW_LONG,
    }
)


def _pairs(*pairs: tuple[Kind, Kind]) -> frozenset[frozenset[Kind]]:
    return frozenset(map(frozenset, pairs))


# Asked for in each other's words, even where nothing else differs.
_ALIKE = _pairs(
    (Kind.HOW, Kind.WHAT),  # "What can I do to", "What is the way to"
    (Kind.HOW, Kind.WHETHER),  # "Can I pay by card?"
    (Kind.WHAT, Kind.WHETHER),  # "Is there a limit?"
    (Kind.HOW_MUCH, Kind.WHETHER),  # "Is there a fee?"
    (Kind.HOW_MUCH, Kind.WHAT),
    (Kind.HOW_MANY, Kind.HOW_MUCH),
    (Kind.HOW_MANY, Kind.WHAT),  # "What is an inch in centimetres?"
    (Kind.HOW_LONG, Kind.WHAT),
    (Kind.HOW_LONG, Kind.HOW_MANY),
    (Kind.DEGREE, Kind.WHETHER),
    (Kind.DEGREE, Kind.WHAT),
    (Kind.HOW_OLD, Kind.WHAT),
    (Kind.WHAT, Kind.WHEN),
    (Kind.WHAT, Kind.WHERE),
    (Kind.WHAT, Kind.WHY),
    (Kind.WHO, Kind.WHICH),
    # "Which" asks for the things themselves, and not how many there are.
    *((Kind.WHICH, kind) for kind in (Kind.WHAT, Kind.HOW, Kind.WHETHER, Kind.HOW_MUCH, Kind.WHEN, Kind.WHERE)),
)
# Alike where the wording differs too: "When will it come", "How long does it take to come".
_RELATED = _pairs(
    (Kind.WHEN, Kind.HOW_LONG), (Kind.WHEN, Kind.HOW_OFTEN), (Kind.HOW_FAR, Kind.HOW_LONG), (Kind.HOW_FAR, Kind.WHERE)
)  # fmt: skip


def _agree(one: Kind, other: Kind, is_exchanged: bool, is_way: bool) -> bool:
    pair = frozenset({one, other})
    if pair in _ALIKE:
        return True
    if pair == {Kind.HOW, Kind.WHERE}:  # "Where do I change my PIN?", "How do I change my PIN?"
        return is_way or not is_exchanged
    if is_exchanged:
        return False
    return pair in _RELATED or not pair <= _SHARP


_AUXILIARIES = frozenset(
    "is are am was were do does did can could will would shall should may might must has have had".split()
)
# What changes with the kind of a question, and not with what it is about.
_FORMAL = _AUXILIARIES | frozenset(
    "what which who whose whom when where why how be been being a an the of to for i you my me we it this there at in "
    "please many much long often old far time times reason number exactly actually know tell wonder".split()
)
_WAYS = frozenset(
    map(
        stem,
        "find see locate view access check look change update edit modify set reset add remove delete cancel verify "
        "activate enable disable configure link connect top register subscribe unsubscribe sign log apply request "
        "submit order report block unblock lock unlock upload download upgrade switch".split(),
    )
)
_OF_TIME = frozenset(map(stem, "time date day year month hour week".split()))
_REASONS = frozenset(map(stem, "reason cause purpose".split()))
_PRICES = frozenset(map(stem, "price cost fee fare".split()))
# A question word after these is asked, though it stands inside a sentence.
_LEADING = frozenset(
    map(
        stem,
        "know tell ask wonder explain find out see and or but so sure understand remember say figure learn about idea "
        "me please hi hello hey check at for in on from since".split(),
    )
)
_HOW = {
    "many": Kind.HOW_MANY,
    "much": Kind.HOW_MUCH,
    "long": Kind.HOW_LONG,
    "soon": Kind.HOW_LONG,
    "quickly": Kind.HOW_LONG,
    "fast": Kind.HOW_LONG,
    "often": Kind.HOW_OFTEN,
    "frequently": Kind.HOW_OFTEN,
    "far": Kind.HOW_FAR,
    "old": Kind.HOW_OLD,
    "come": Kind.WHY,
}
_DEGREES = frozenset(
    "good bad big tall high large heavy deep wide strong hard difficult easy safe deadly effective important accurate "
    "likely dangerous expensive".split()
)
_SAME_DEGREE = {"high": "tall", "large": "big", "difficult": "hard", "bad": "good", "deadly": "danger", "far": "far"}
_PLAIN = {"who": Kind.WHO, "whose": Kind.WHO, "whom": Kind.WHO, "when": Kind.WHEN, "where": Kind.WHERE}


@remember
def read_question(text: str) -> Question:
    words = read_words(text)
    found = {_read_kind(words, place) for place in range(len(words))}
    if Kind.WHETHER in found and any(word.stem in _REASONS for word in words):
        found.add(Kind.WHY)  # "Is there a reason"
    kinds = frozenset(kind for kind in found if kind)
    if len(kinds) > 1:
        kinds -= {Kind.WHETHER}  # "Do you know when it opens?"
    return Question(
        kinds=kinds,
        rest=frozenset(word.stem for word in words if word not in MARKS and word.text not in _FORMAL),
        degree=next(
            filter(None, (_read_degree(words, place) for place, word in enumerate(words) if word.text == "how")), ""
        ),
        is_way=any(word.stem in _WAYS for word in words),
    )


def _read_degree(words: Sequence[Word], place: int) -> str:
    """The stem of the quality after the "how" at `place`."""
    if place + 1 == len(words):
        return ""
    word = words[place + 1]
    return _SAME_DEGREE.get(word.text, word.stem) if word.text in _DEGREES or word.text in ("old", "far") else ""


def _read_kind(words: Sequence[Word], place: int) -> Kind | None:
    """What the word at `place` asks for, None when it asks nothing."""
    text = words[place].text
    if text == "how":
        return _read_how([word.text for word in words[place + 1 : place + 3]])
    if text == "why":
        # "Is it worth it? Why?", "and why": that an answer gives its reasons goes without saying
        is_added = words[0].text in _AUXILIARIES and (place + 1 == len(words) or words[place + 1] in MARKS)
        return None if is_added and (words[place - 1] in MARKS or words[place - 1].text in ("and", "or")) else Kind.WHY
    is_asked = place == 0 or words[place - 1] in MARKS or words[place - 1].stem in _LEADING
    if text in ("what", "which") and is_asked:
        kind = _read_what([word.stem for word in words[place + 1 : place + 6]])
        return Kind.WHICH if kind is Kind.WHAT and text == "which" else kind
    if text in _PLAIN and is_asked:
        return _PLAIN[text]
    if text in _AUXILIARIES and (place == 0 or words[place - 1] is STOP):
        return Kind.WHETHER
    return None


def _read_how(after: Sequence[str]) -> Kind:
    if not after:
        return Kind.HOW
    if after[0] in _DEGREES:
        return Kind.DEGREE
    counted = after[1] if len(after) > 1 else ""
    if after[0] == "many" and counted == "times":
        return Kind.HOW_OFTEN
    if after[0] in ("many", "much") and stem(counted) in _OF_TIME | {"minut", "second"}:
        return Kind.HOW_LONG
    return _HOW.get(after[0], Kind.HOW)


def _read_what(after: Sequence[str]) -> Kind:
    if not after:
        return Kind.WHAT
    if after[0] in _OF_TIME:
        return Kind.WHEN
    if after[0] == stem("person"):
        return Kind.WHO
    if not _REASONS.isdisjoint(after):
        return Kind.WHY
    if after[0] == stem("be") and not _PRICES.isdisjoint(after):
        return Kind.HOW_MUCH
    return Kind.HOW_MANY if "number" in after else Kind.WHAT
