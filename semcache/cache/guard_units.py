"""Guard `units`: what is measured or paid in one unit must not be in another.

Units are often left out ("I paid 5"), so a unit on one side only is no difference. Nor is the same amount in another
unit: 1 hour and 60 minutes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from semcache.cache.figures import Figure, read
from semcache.cache.measures import ANYWHERE, BESIDE_A_NUMBER, POUND, POUNDS, Measure


class Units(NamedTuple):
    named: frozenset[tuple[str, str]]  # (kind, unit)
    amounts: tuple[Figure, ...]  # the figures that have a unit


def units_differ(asked: str, stored: str) -> bool:
    """Whether both name units of the same kind and they are others, or give one number with units of two kinds."""
    if asked == stored:
        return False
    one, other = _units(asked), _units(stored)
    if one == other:
        return False
    left, right = one.named - other.named, other.named - one.named
    if left and right:
        same = {figure.also for figure in one.amounts} & {figure.also for figure in other.amounts} - {None}
        left, right = left - _said_otherwise(one, same), right - _said_otherwise(other, same)
        if {kind for kind, _ in left} & {kind for kind, _ in right} and not _may_agree(left, right):
            return True
    return _one_number_differs(one.amounts, other.amounts)


def _said_otherwise(units: Units, same: set[str | None]) -> set[tuple[str, str]]:
    """The units whose every amount is in the other question too, in another unit."""
    measures = {figure.measure for figure in units.amounts if figure.also in same}
    measures -= {figure.measure for figure in units.amounts if figure.also not in same}
    return {(_KINDS.get(each.kind, each.kind), each.unit) for each in measures if each is not None}


def _may_agree(left: frozenset[tuple[str, str]], right: frozenset[tuple[str, str]]) -> bool:
    """Whether a word that can be several units is one that the other question names: pounds, degrees."""
    one, other = {unit for _, unit in left}, {unit for _, unit in right}
    return any(
        vague in first and second <= meanings
        for first, second in ((one, other), (other, one))
        for vague, meanings in _VAGUE
    )


def _one_number_differs(one: Sequence[Figure], other: Sequence[Figure]) -> bool:
    """5 kg and 5 km: a number that both have, with units of different kinds."""
    kinds = _kinds(one)
    return any(
        value in kinds and not kinds[value] & theirs and POUND.kind not in kinds[value] | theirs
        for value, theirs in _kinds(other).items()
    )


def _kinds(figures: Sequence[Figure]) -> Mapping[str, set[str]]:
    kinds: dict[str, set[str]] = {}
    for figure in figures:
        if figure.measure is not None:
            kinds.setdefault(figure.value, set()).add(figure.measure.kind)
    return kinds


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


@lru_cache(maxsize=8192)  # a popular stored question is compared again and again
def _units(question: str) -> Units:
    reading = read(question)
    amounts = tuple(figure for figure in reading.figures if figure.measure is not None)
    named = {_named(figure.measure) for figure in amounts if figure.measure is not None}
    named.update(_spoken(reading.words))
    return Units(frozenset(named), amounts)


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
