"""What a question affirms and what it denies: its words that have an opposite, and its negations.

A negation turns the word after it: "not independent" is read as the opposite of "independent", and so is "less
independent". Where that word has no opposite in the table, the negation itself is what counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from semcache.cache.opposites import Side, Sort, degrees, particles, sides
from semcache.cache.remember import remember
from semcache.cache.words import COMMA, MARKS, STOP, Word, read_words, stem


class Item(NamedTuple):
    """A word with an opposite."""

    key: str  # as in opposites.sides()
    is_turned: bool  # by "not" or "less"
    is_graded: bool  # "cheaper", "most expensive", "first": of a degree, and not the plain quality
    beside: tuple[str, str] | None = None  # of a small word: the stems before and after it

    @property
    def sides(self) -> tuple[Side, ...]:
        return sides()[self.key]


class Polarity(NamedTuple):
    items: dict[Item, int]  # how often each
    stems: frozenset[str]
    affixed: tuple[tuple[str, str, str], ...]  # stems with an affix of denial: the stem, the affix, the rest
    negations: int
    negated: tuple[str, ...]  # the stem that each negation stands before, "" where that cannot be told
    complaints: tuple[str, ...]  # "can" of "I can't", "know" of "I don't know": wishes as much as denials
    endings: int  # "stop smoking"
    claims: frozenset[str]  # "can" of "I can", which "I can't" denies


def only_in(one: Polarity, other: Polarity) -> list[Item]:
    """The items that the one has more often."""
    return [item for item, times in one.items.items() if times > other.items.get(item, 0)]


@lru_cache(maxsize=8192)  # the same few words meet again and again
def are_opposite(one: Item, other: Item) -> bool:
    """Whether they say opposite things: "enable" and "disable", "not wet" and "wet", "up" and "down" in one place."""
    if one.beside and other.beside and not _are_together(one.beside, other.beside):
        return False
    turned = one.is_turned != other.is_turned
    return any(
        (a.side != b.side) if not turned else (a.side == b.side and a.is_pair)
        for a in one.sides
        for b in other.sides
        if a.axis == b.axis
    )


def _are_together(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Whether two small words stand before the same word, or after it where nothing follows."""
    has_next = one[1] and other[1]
    return one[1] == other[1] if has_next else bool(one[0]) and one[0] == other[0]


def are_on_one_side(one: Item, other: Item) -> bool:
    """Whether they can stand for each other: "advantages" and "pros"."""
    return one.is_turned == other.is_turned and any(
        a.axis == b.axis and a.side == b.side for a in one.sides for b in other.sides
    )


@lru_cache(maxsize=8192)
def are_alike(one: Item, other: Item) -> bool:
    """Whether one is the opposite of the other, turned: "dependent" and "not independent"."""
    return one.is_turned != other.is_turned and any(
        a.side != b.side and a.is_pair for a in one.sides for b in other.sides if a.axis == b.axis
    )


NEGATIONS = frozenset(
    "not no never without nobody none nothing nowhere neither incapable hardly barely excluding except unless "
    "yet".split()
)
_NARROWING = frozenset("without no except excluding nobody none".split())  # they leave something out
# "stop smoking", "avoid paying": negations where something that is done follows.
ENDINGS = frozenset(map(stem, "stop quit avoid prevent cease".split()))
_LOOK_AHEAD = 3  # words between a negation and what it denies, or a verb and its particle
_PASSED_OVER = frozenset(
    "a an the be been being is am are was were to so very really too that any able have has had yet "
    "ever even do does did of".split()
)
# After "won't" stands who does it, not what is denied: "won't my card work".
_DOERS = frozenset("i you we they it he she my your the this these those his her our their there".split())
_MORE = {"more": False, "most": False, "less": True, "least": True}  # whether it turns the quality after it

_CLAIMING = frozenset("can could should know sure certain understand remember recall able have".split())
_FIXED = frozenset(map(stem, "fact general order case addition particular".split()))  # "in fact" is no place

# "I don't know how to", "I'm not sure whether": the question is the same without.
_KNOWING = frozenset("know sure certain understand remember recall able have".split())
_SEEKING = frozenset("find see locate".split())
_ASKING = frozenset("how what where why when if whether who which".split())
_NO_DENIAL = frozenset("problem matter worries doubt idea clue".split())  # "no matter what"


@remember
def read_polarity(text: str) -> Polarity:
    words = read_words(text)
    items: list[Item] = []
    negated: list[str] = []
    complaints: list[str] = []
    negations = endings = 0
    turned_at = -1  # the place that the last negation turns
    for place, word in enumerate(words):
        if not _matters(word):
            continue
        if word.text in NEGATIONS and _denies(words, place):
            negations += 1
            complaint = _read_complaint(words, place)
            if complaint:
                complaints.append(complaint)
            turned_at = _next(words, place, _DOERS)
            is_told = turned_at >= 0 and word.text not in _NARROWING and not _is_inverted(words, place)
            negated.append(words[turned_at].stem if is_told else "")
        elif word.stem in ENDINGS and _ends(words, place):
            endings += 1
        items.extend(_read_items(words, place, turned_at == place))
    claims = {claim for place in range(len(words)) for claim in _claims(words, place)}
    return Polarity(
        dict(Counter(items)),  # a Counter is slow to compare
        frozenset(word.stem for word in words),
        tuple(found for word in words for found in _affixes(word)),
        negations,
        tuple(negated),
        tuple(complaints),
        endings,
        frozenset(claims),
    )


def _read_items(words: tuple[Word, ...], place: int, is_turned: bool) -> Iterator[Item]:
    word = words[place]
    before = words[place - 1] if place else STOP
    if _is_sort(word.stem, Sort.GRADED) and before.text in _MORE:
        yield Item(word.stem, is_turned != _MORE[before.text], is_graded=True)
        return
    if word.text in _MORE and place + 1 < len(words) and _is_sort(words[place + 1].stem, Sort.GRADED):
        return  # read with the quality
    if word.text in degrees():
        yield Item(degrees()[word.text], is_turned, is_graded=True)
    key = word.stem
    if key in particles():
        particle = _particle(words, place)
        if particle:
            key = f"{key} {words[particle].stem}"
    if key not in sides():
        return
    beside = None
    if _is_sort(key, Sort.PLACED):
        after = _next(words, place, frozenset())
        beside = (before.stem, words[after].stem if after >= 0 else "")
        if after == place + 1 and words[after].text == "no":  # "with no stop"
            return
        if not _FIXED.isdisjoint(beside) or _is_choice(words, place):
            return
    yield Item(key, is_turned, _is_sort(key, Sort.RANK), beside)


_SUFFIX = "less"
_PREFIXES = ("un", "non", "dis", "in", "im", "ir", "il", "de", "mis", "anti")
_SHORTEST = 3  # letters of a stem that an affix is taken from


@lru_cache(maxsize=16384)
def _affixes(word: Word) -> tuple[tuple[str, str, str], ...]:
    found = {(prefix, word.stem.removeprefix(prefix)) for prefix in _PREFIXES if word.stem.startswith(prefix)}
    # The rest may have another stem than it leaves of the whole: nonflammable.
    found |= {(prefix, stem(word.text.removeprefix(prefix))) for prefix in _PREFIXES if word.text.startswith(prefix)}
    if word.stem.endswith(_SUFFIX):
        found.add((_SUFFIX, word.stem.removesuffix(_SUFFIX)))
    return tuple((word.stem, affix, rest) for affix, rest in sorted(found) if len(rest) >= _SHORTEST)


@lru_cache(maxsize=16384)
def _matters(word: Word) -> bool:
    """Whether it can be an item, a negation or an ending. Most words are none of these."""
    tables = (sides(), particles(), ENDINGS)
    return word.text in NEGATIONS or word.text in degrees() or any(word.stem in table for table in tables)


@lru_cache(maxsize=4096)
def _is_sort(key: str, sort: Sort) -> bool:
    return any(side.sort is sort for side in sides().get(key, ()))


def _particle(words: tuple[Word, ...], place: int) -> int:
    """The place of the particle of a verb at `place`, 0 without one."""
    wanted = particles()[words[place].stem]
    for at in range(place + 1, min(place + 2 + _LOOK_AHEAD, len(words))):
        if words[at] in MARKS:
            return 0
        if words[at].stem in wanted and not _is_choice(words, at):
            return at
    return 0


def _is_choice(words: tuple[Word, ...], place: int) -> bool:
    """Whether the word is one of two, as in "on or off": it leaves open which."""
    either, other = words[place + 1 : place + 3], words[max(place - 2, 0) : place]
    return any(
        len(pair) == 2 and pair[joint].text == "or" and _is_sort(pair[1 - joint].stem, Sort.PLACED)
        for pair, joint in ((either, 0), (other, 1))
    )


def _next(words: tuple[Word, ...], place: int, barred: frozenset[str]) -> int:
    """The place of the next word that says something, -1 where the clause ends or a barred word stands before it."""
    for at in range(place + 1, min(place + 2 + _LOOK_AHEAD, len(words))):
        if words[at] in MARKS or words[at].text in barred:
            break
        if words[at].text not in _PASSED_OVER and words[at].text not in _DOERS:
            return at
    return -1


def _ends(words: tuple[Word, ...], place: int) -> bool:
    return place + 1 < len(words) and len(words[place + 1].text) > 4 and words[place + 1].text.endswith("ing")


def _is_inverted(words: tuple[Word, ...], place: int) -> bool:
    """Whether who does it comes next, and then what is denied: "why don't cats bark?"."""
    return place >= 1 and words[place].text == "not" and (place == 1 or words[place - 2].text in _ASKING)


def _read_complaint(words: tuple[Word, ...], place: int) -> str:
    """The verb of "I can't", "I'm unable", "I don't know", "I shouldn't have been": said to get help with it."""
    before = [word.text for word in words[max(place - 2, 0) : place]]
    after = words[place + 1].text if place + 1 < len(words) else ""
    if after in _SEEKING and before[-1:] == ["can"]:
        return "can"
    if "i" not in before:
        return ""
    if before[-1] in ("can", "could"):
        return "can"
    if before[-1] == "should":
        return "should"
    return after if after in _KNOWING else ""


def _claims(words: tuple[Word, ...], place: int) -> Iterator[str]:
    """The verb of "I can", "I know", "I was able", "I should"."""
    if words[place].text != "i":
        return
    following = [word.text for word in words[place + 1 : place + 3]]
    if "not" not in following:
        yield from ("can" if text == "could" else text for text in following if text in _CLAIMING)


def _denies(words: tuple[Word, ...], place: int) -> bool:
    """Whether the negation at `place` denies anything.

    1. "no." before a number, and "No, I want": nothing in this clause.
    2. "no matter", "no idea where", "not only".
    3. "whether or not", "why or why not", "if not, why".
    4. "isn't it?" at the end.
    """
    text = words[place].text
    before = words[place - 1].text if place else ""
    after = [each.text for each in words[place + 1 : place + 4]]
    is_last = not after or after[0] in (STOP.text, COMMA.text)
    if text == "no":
        return not is_last and not after[0][0].isdigit() and after[0] not in _NO_DENIAL
    if text == "yet":  # "I have yet to receive it"
        return bool(after) and after[0] == "to"
    if text != "not":
        return True
    if after and after[0] in ("only", "just"):
        return False
    if before in ("or", "if", "why") and (is_last or after[0] in _ASKING or after[0] == "then"):
        return False
    if before == "or" and "whether" in {each.text for each in words[:place]}:
        return False
    is_tag = place > 2 and words[place - 2] in MARKS and len(after) == 1 and after[0] in _DOERS
    return not is_tag
