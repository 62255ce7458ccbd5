"""How alike two questions are worded, beside the detail that a guard looks at.

A detail that only one question has makes it another question when all the rest is equal: "weather in Oslo", "weather".
Between two questions of general interest that are put in other words throughout, it is mostly context that people add
or leave out: "in India", "in 2016". In a request, where somebody wants something done or speaks of his own affairs,
each detail is what is asked for, however it is worded.
"""

from __future__ import annotations

from typing import NamedTuple

from semcache.cache.remember import remember
from semcache.cache.words import MARKS, read_words


class Wording(NamedTuple):
    content: frozenset[str]  # the stems of the words that say something
    is_request: bool  # it speaks of the asker, or is no question at all


@remember
def read_wording(text: str) -> Wording:
    words = [word for word in read_words(text) if word not in MARKS]
    content = frozenset(word.stem for word in words if word.text not in _SMALL)
    opening = next((word.text for word in words if word.text not in _GREETINGS), "")
    return Wording(content, opening not in _QUESTIONS or not _FIRST_PERSON.isdisjoint(word.text for word in words))


def other_words(asked: str, stored: str) -> int:
    """How many words that say something are in one of the two only, the details among them."""
    return len(read_wording(asked).content ^ read_wording(stored).content)


def are_requests(asked: str, stored: str) -> bool:
    return read_wording(asked).is_request and read_wording(stored).is_request


def is_context(asked: str, stored: str, detail: int, most: int) -> bool:
    """Whether a detail of that many words, in one question only, may go without saying.

    That is in two questions that are not both requests, when more than `most` of the other words differ too.
    """
    return not are_requests(asked, stored) and other_words(asked, stored) - detail > most


_GREETINGS = frozenset("hi hello hey please so and but ok okay well".split())
_FIRST_PERSON = frozenset("i me my mine we us our".split())
_AUXILIARIES = frozenset(
    "is are am was were be been being do does did can could will would shall should may might must has have had".split()
)
_QUESTIONS = _AUXILIARIES | frozenset("what which who whose whom when where why how in at on if".split())
_SMALL = (
    _AUXILIARIES
    | _FIRST_PERSON
    | frozenset(
        "a an the of to in on at for from by with and or you he she it they your his her its their them this "
        "that these those there here what which who whom when where why how as if so than then just really "
        "actually some any very much many more most like get please tell know want need not 's".split()
    )
)
