"""VERIFY: the same words in other roles: from EUR to USD and from USD to EUR, who sued whom, to savings or from it.

Two things are looked at. What stands after "from" in one question and after "to" in the other; and two parts that
changed places around a word between them ("Does A follow B?", "Does B follow A?"). A passive is read as the active it
stands for, so "Is B followed by A?" says what "Does A follow B?" says. What is the same both ways is content: "A and
B", "A or B", the difference between them, the distance from one to the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from semcache.cache.polarity import are_opposite, only_in, read_polarity
from semcache.cache.remember import remember
from semcache.cache.words import COMMA, MARKS, STOP, Word, read_words, stem


class Part(NamedTuple):
    """A word that carries meaning."""

    stem: str
    is_participle: bool
    clause: int
    is_listed: bool  # beside "and", "or" or a comma


Order = tuple[Part, ...]


class Roles(NamedTuple):
    order: Order  # what carries meaning, in the order of the active voice
    stems: frozenset[str]  # of the order
    sequence: tuple[str, ...]  # the same as they stand
    sources: frozenset[str]  # what stands after "from"
    targets: frozenset[str]  # what stands after "to"
    is_symmetric: bool  # it asks for something that is the same both ways
    is_undirected: bool  # its "from" and "to" are no way between two ends


def roles_differ(asked: str, stored: str) -> bool:
    one, other = read_roles(asked), read_roles(stored)
    if one == other:
        return False
    if not (one.is_undirected or other.is_undirected) and (_goes_back(one, other) or _goes_back(other, one)):
        return True
    if one.is_symmetric or other.is_symmetric:
        return False
    common = one.stems & other.stems
    if max(len(one.stems), len(other.stems)) - len(common) > _STRANGE:
        return False
    if [stem for stem in one.sequence if stem in common] == [stem for stem in other.sequence if stem in common]:
        return False
    return _swapped(one.order, other.order) and not _is_converse(asked, stored)


def _stems(words: str) -> frozenset[str]:
    return frozenset(map(stem, words.split()))


_SYMMETRIC = _stems(
    "difference differ different distance similar similarity similarities same equal equivalent compare comparison "
    "relation relationship between far vs versus marry meet gap"
)
# "the distance to", "different to"; and a scholarship to a place comes from there.
_UNDIRECTED = _stems("distance far gap difference differ different unsubscribe immune scholarship")
# What joins two parts without giving either a role.
_JOINING = _stems("and or be as plus also both either nor not")
# Beside these, two names in a row are a start and an end: "flights Paris London", "EUR USD exchange rate".
_WAYS = _stems(
    "flight flights fly train bus ferry drive trip travel journey route taxi ticket shipping translate translation "
    "convert conversion converter exchange swap transfer migrate"
)
_UNSAID = _stems(
    "a an the do can could will would shall should may might must have please my your i me we us you it there this "
    "that just really actually hi hello hey 's"
)
_WISHES = _stems("tell know want need like")  # unsaid of the asker: "I need to", "tell me"
_WISHING = frozenset("i we you to me please not really just would".split())
_ASKING = _stems("be what which who how where when why")  # these change places for the sake of grammar
_LONGEST = 4  # words of a part that changes its place
_STRANGE = 1  # words that only one question has. More, and they are built in different ways: no order says anything
_MOST_WORDS = 60  # longer texts are told from each other by more than an order


@remember
def read_roles(text: str) -> Roles:
    words = read_words(text)
    stems = frozenset(word.stem for word in words)
    order = tuple(_parts(_in_active_voice(words)))
    return Roles(
        order=order,
        stems=frozenset(part.stem for part in order),
        sequence=tuple(part.stem for part in order),
        sources=_after(words, ("from",)),
        targets=_after(words, ("to", "into", "onto", "towards", "toward")),
        is_symmetric=not stems.isdisjoint(_SYMMETRIC),
        is_undirected=not stems.isdisjoint(_UNDIRECTED),
    )


def _parts(words: Sequence[Word]) -> Iterator[Part]:
    clause = 0
    lists = [word in MARKS or word.text in ("and", "or") for word in words]
    last = len(words) - 1
    for place, word in enumerate(words):
        if word is STOP or word.text in _CLAUSES:
            clause += 1
        elif word is not COMMA and word.stem not in _UNSAID and not _is_wish(words, place):
            is_listed = lists[max(place - 1, 0)] or lists[min(place + 1, last)]
            yield Part(word.stem, _is_participle(word), clause, is_listed)


def _is_wish(words: Sequence[Word], place: int) -> bool:
    return words[place].stem in _WISHES and (place == 0 or words[place - 1].text in _WISHING)


def _after(words: Sequence[Word], prepositions: tuple[str, ...]) -> frozenset[str]:
    """The stems of what stands after a preposition: the first word that says something."""
    found = set()
    for place, word in enumerate(words):
        if word.text in prepositions:
            following = (each for each in words[place + 1 : place + 5] if each.stem not in _UNSAID)
            first = next(following, STOP)
            if first is not STOP and first.text not in _ANY:
                found.add(first.stem)
    return frozenset(found)


def _goes_back(one: Roles, other: Roles) -> bool:
    """Whether the one starts where the other ends, and does not end there too."""
    return any(place not in one.targets and place not in other.sources for place in one.sources & other.targets)


def _in_active_voice(words: tuple[Word, ...]) -> Sequence[Word]:
    """The words with "was B followed by A" and "B was followed by A" turned to "A follow B"."""
    texts = [word.text for word in words]
    if "by" not in texts:
        return words
    by = texts.index("by")
    be = next((at for at in range(by - 1, -1, -1) if words[at].stem == "be"), -1)
    end = next((at for at in range(by + 1, len(words)) if words[at] in MARKS or words[at].text in _BOUNDS), len(words))
    verb = by - 1
    if be < 0 or verb <= be or not _is_participle(words[verb]) or end == by + 1:
        return words
    agent, action = words[by + 1 : end], words[verb : verb + 1]
    if verb > be + 1 and words[be + 1].stem not in _ADVERBS:  # "was the castle lost by": it stands after the verb
        return [*words[:be], *agent, *action, *words[be + 1 : verb], *words[end:]]
    return [*agent, *action, *words[:be], *words[end:]]


_ANY = frozenset("one another other this that here".split())  # "from one account to another"
_CLAUSES = frozenset("but if because when since while".split())
_BOUNDS = frozenset("in on at for to from with when if because before after and or".split())
_ADVERBS = _stems("also always really being been not ever never")


def _is_participle(word: Word) -> bool:
    return word.text.endswith(("ed", "en", "t", "d", "n", "wn")) and len(word.text) > 2


def _swapped(asked: Order, stored: Order) -> bool:
    """Whether two parts changed places around something between them, among the words that both have."""
    common = Counter(part.stem for part in asked) & Counter(part.stem for part in stored)
    one, other = _only(asked, common), _only(stored, common)
    if max(len(asked) - len(one), len(stored) - len(other)) > _STRANGE or not 1 < len(one) <= _MOST_WORDS:
        return False
    stems, others = [part.stem for part in one], [part.stem for part in other]
    if stems == others:
        return False
    start, end = 0, len(stems)
    while stems[start] == others[start]:
        start += 1
    while stems[end - 1] == others[end - 1]:
        end -= 1
    around = stems[:start] + stems[end:]
    stems, others, one, other = stems[start:end], others[start:end], one[start:end], other[start:end]
    for first in range(1, min(_LONGEST, len(stems) - 1) + 1):
        for second in range(1, min(_LONGEST, len(stems) - first) + 1):
            between = stems[first:-second]
            if [*stems[-second:], *between, *stems[:first]] == others:
                if not between:
                    return first == second == 1 and not _WAYS.isdisjoint(around)
                moved = {*stems[:first], *stems[-second:]}
                return (
                    not _JOINING.issuperset(between)
                    and _ASKING.isdisjoint(moved)
                    and _are_inflected(one[:first], other[-first:]) == _are_inflected(one[-second:], other[:second])
                    and _is_one_clause(one)
                    and _is_one_clause(other)
                )
    return False


def _are_inflected(one: Order, other: Order) -> bool:
    """Whether what moved changed its form along: "change" in "change my limit", "get my limit changed"."""
    return [part.is_participle for part in one] != [part.is_participle for part in other]


def _is_one_clause(order: Order) -> bool:
    """Whether it is neither parts of a list nor of two clauses."""
    return order[0].clause == order[-1].clause and not (order[0].is_listed and order[-1].is_listed)


def _only(order: Order, wanted: Counter[str]) -> Order:
    """The parts in their order, each stem at most as often as wanted."""
    left = Counter(wanted)
    found = []
    for part in order:
        if left[part.stem] > 0:
            left[part.stem] -= 1
            found.append(part)
    return tuple(found)


def _is_converse(asked: str, stored: str) -> bool:
    """Whether a word changed to its opposite along with the order: "A is cheaper than B", "B is dearer than A"."""
    one, other = read_polarity(asked), read_polarity(stored)
    return any(are_opposite(a, b) for a in only_in(one, other) for b in only_in(other, one))
