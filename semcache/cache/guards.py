"""VERIFY: guards compare two questions and may only veto. Adding one can never cause a wrong hit.

Embeddings see topics, not details: "5 mg" and "50 mg" lie closer together than two honest paraphrases. A guard looks at
one kind of detail, as a plain function of the two texts, in microseconds, and says no when they differ in it. Each has
a file of its own, guard_NAME.py; here is only which there are.

Comparing two texts takes a few microseconds once both have been read, and reading takes most of the time. It can be
done before, by `prepare`, on any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from semcache.cache.guard_code import code_differ, read_code
from semcache.cache.guard_comparison import comparison_differ
from semcache.cache.guard_dates import dates_differ, read_dates
from semcache.cache.guard_entities import entities_differ, read_entities
from semcache.cache.guard_language import language_differ, read_language
from semcache.cache.guard_negation import negation_differ
from semcache.cache.guard_numbers import numbers_differ, read_numbers
from semcache.cache.guard_question import question_differ, read_question
from semcache.cache.guard_roles import read_roles, roles_differ
from semcache.cache.guard_units import read_units, units_differ
from semcache.cache.polarity import read_polarity
from semcache.cache.wording import read_wording
from semcache.cache.words import read_words
from semcache.types import Reason

Guard = Callable[[str, str], bool]  # (question asked, question stored) -> True to veto

# The setting's name -> what it does, and the reason a veto is given.
GUARDS: Mapping[str, tuple[Guard, Reason]] = {
    "numbers": (numbers_differ, Reason.GUARD_NUMBER),
    "units": (units_differ, Reason.GUARD_UNIT),
    "dates": (dates_differ, Reason.GUARD_DATE),
    "comparison": (comparison_differ, Reason.GUARD_COMPARISON),
    "negation": (negation_differ, Reason.GUARD_NEGATION),
    "roles": (roles_differ, Reason.GUARD_ROLES),
    "question": (question_differ, Reason.GUARD_QUESTION),
    "language": (language_differ, Reason.GUARD_LANGUAGE),
    "code": (code_differ, Reason.GUARD_CODE),
    "entities": (entities_differ, Reason.GUARD_ENTITY),
}

# The setting's name -> all that its guard reads in a text, and remembers.
READERS: Mapping[str, tuple[Callable[[str], object], ...]] = {
    "numbers": (read_numbers, read_wording),
    "units": (read_units,),
    "dates": (read_dates, read_wording),
    "comparison": (read_polarity, read_words),
    "negation": (read_polarity, read_wording),
    "roles": (read_roles, read_polarity),
    "question": (read_question,),
    "language": (read_language,),
    "code": (read_code, read_wording),
    "entities": (read_entities, read_wording),
}


def prepare(text: str, guards: Iterable[str]) -> None:
    """Read what the guards will want to know of a text, so that `find_veto` finds it read. Safe on any thread."""
    for reader in dict.fromkeys(reader for name in guards for reader in READERS.get(name, ())):
        reader(text)


def find_veto(asked: str, stored: str, guards: Iterable[str]) -> Reason | None:
    """The reason of the first guard that objects, None when all are content."""
    for name in guards:
        if name in GUARDS:
            vetoes, reason = GUARDS[name]
            if vetoes(asked, stored):
                return reason
    return None
