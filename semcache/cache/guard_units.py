"""Guard `units`: what is measured or paid in one unit must not be in another.

Units are often left out ("I paid 5"), so a unit on one side only is no difference. Nor is the same amount in another
unit: 1 hour and 60 minutes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import NamedTuple

from semcache.cache.figures import Figure, read
from semcache.cache.measures import ANYWHERE, BESIDE_A_NUMBER, POUND, POUNDS, Measure
from semcache.cache.remember import remember

Named = tuple[str, str]  # (kind, unit)


class Units(NamedTuple):
    named: Counter[Named]  # how often each
    amounts: tuple[Figure, ...]  # the figures that have a unit


def units_differ(asked: str, stored: str) -> bool:
    """Whether both name units of the same kind and they are others, or give one number with units of two kinds."""
    if asked == stored:
        return False
    one, other = read_units(asked), read_units(stored)
    if one == other:
        return False
    left, right = one.named - other.named, other.named - one.named
    if left and right:
        mine, yours = _only(one.amounts, other.amounts), _only(other.amounts, one.amounts)
        same = {figure.also for figure in mine} & {figure.also for figure in yours} - {None}
        left, right = left - _units_of(mine, same), right - _units_of(yours, same)
        if {kind for kind, _ in left} & {kind for kind, _ in right} and not _may_agree(left.keys(), right.keys()):
            return True
    return _one_number_differs(one.amounts, other.amounts)


def _only(amounts: Sequence[Figure], others: Sequence[Figure]) -> list[Figure]:
    """The amounts that the other question has not, or not in this unit."""
    theirs = {(figure.value, figure.measure) for figure in others}
    return [figure for figure in amounts if (figure.value, figure.measure) not in theirs]


def _units_of(amounts: Sequence[Figure], same: set[str | None]) -> Counter[Named]:
    """The units of those amounts that the other question has in another unit."""
    return Counter(_named(figure.measure) for figure in amounts if figure.measure and figure.also in same)


def _may_agree(left: Set[Named], right: Set[Named]) -> bool:
    """Whether a word that can be several units is one that the other question names: pounds, degrees."""
    one, other = {unit for _, unit in left}, {unit for _, unit in right}
    return any(
        vague in first and second <= meanings
        for first, second in ((one, other), (other, one))
        for vague, meanings in _VAGUE
    )


def _one_number_differs(one: Sequence[Figure], other: Sequence[Figure]) -> bool:
    """5 kg and 5 km: a number that both have, with other units."""
    mine = _by_number(one)
    return any(
        value in mine and not mine[value] & theirs and not _may_agree(mine[value], theirs)
        for value, theirs in _by_number(other).items()
    )


def _by_number(figures: Sequence[Figure]) -> Mapping[str, set[Named]]:
    units: dict[str, set[Named]] = {}
    for figure in figures:
        if figure.measure is not None:
            units.setdefault(figure.value, set()).add(_named(figure.measure))
    return units


_VAGUE = (("pound", POUNDS), ("degree", frozenset({"celsius", "fahrenheit", "kelvin"})))
# Kinds that answer one question: 5 days or 5 months; 5 pounds, which are a weight or money.
_KINDS = {"calendar": "time", **dict.fromkeys(("mass", "currency", POUND.kind), "mass or money")}

_RATES: Mapping[str, str] = {
    **dict.fromkeys(("hourly",), "hour"),
    **dict.fromkeys(("daily", "nightly"), "day"),
    **dict.fromkeys(("weekly",), "week"),
    **dict.fromkeys(("fortnightly", "biweekly"), "fortnight"),
    **dict.fromkeys(("monthly",), "month"),
    **dict.fromkeys(("quarterly",), "quarter"),
    **dict.fromkeys(("yearly", "annually", "annual", "annum"), "year"),
}
_SPANS: Mapping[str, str] = {
    "second": "second",
    "minute": "minute",
    "hour": "hour",
    "day": "day",
    "night": "day",
    "week": "week",
    "fortnight": "fortnight",
    "month": "month",
    "quarter": "quarter",
    "year": "year",
}
_LONG = _SPANS.keys() - {"second", "minute"}  # "wait a second", "a second card"
_PER = frozenset({"per", "each", "every", "/"})
_DOLLARS: Mapping[str, str] = {
    "us": "usd",
    "american": "usd",
    "canadian": "cad",
    "australian": "aud",
    "singapore": "sgd",
    "kong": "hkd",
    "zealand": "nzd",
}
_RUPEES: Mapping[str, str] = {"indian": "inr", "pakistani": "pkr", "nepali": "npr", "nepalese": "npr", "lankan": "lkr"}


@remember
def read_units(question: str) -> Units:
    reading = read(question)
    amounts = tuple(figure for figure in reading.figures if figure.measure is not None)
    named = Counter(_named(figure.measure) for figure in amounts if figure.measure is not None)
    # The words of an amount are read again here, so that what is left is what stands alone, and the most counts.
    return Units(named | Counter(_spoken(reading.words)), amounts)


def _named(measure: Measure) -> tuple[str, str]:
    return _KINDS.get(measure.kind, measure.kind), measure.unit


def _spoken(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Units that stand without a number: "in kg", "how many weeks", "per month", "Canadian dollars"."""
    for before, word in zip(("", *words), words, strict=False):
        if word in _RATES:
            yield "rate", _RATES[word]
        elif word in _SPANS and (before in _PER or (before in ("a", "an") and word in _LONG)):
            yield "rate", _SPANS[word]
        elif word in ANYWHERE and not (word == "percentage" or word == "cents"):
            unit = ANYWHERE[word]
            special = _DOLLARS if unit.unit == "usd" else _RUPEES if unit.unit == "inr" else {}
            yield _named(unit._replace(unit=special.get(before, unit.unit)))
        elif word in ("pounds", "pound"):
            yield _named(POUND)
        elif before in ("many", "in") and word.endswith("s") and word in BESIDE_A_NUMBER:
            yield _named(BESIDE_A_NUMBER[word])
