"""Ordinary English, to tell names by: a word that is not in it, or only with a capital, is likely to be one.

The two lists beside this file are made from SCOWL, the word lists of the free spelling dictionaries: of ordinary words
the Snowball stems, of names the words themselves. Read once, in milliseconds; they take about 5 MB of memory.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import resources

from semcache.cache.stems import snowball


def _load(name: str) -> frozenset[str]:
    text = resources.files("semcache.cache").joinpath(name).read_text(encoding="utf-8")
    return frozenset(word for line in text.splitlines() if not line.startswith("#") for word in line.split())


_GENERAL = _load("words_general.txt")

# Words that English writes with a capital only, in lower case.
NAMES = _load("words_names.txt")

# What people write in messages and no dictionary has.
INFORMAL = frozenset(
    "u ur r ya yo pls plz plss thx thanx tnx ty tho thru cuz coz bcoz bcz wanna gonna gotta lemme gimme "
    "dunno kinda sorta wat wut wht wen y k ok okay okey hi hiya hey heya lol btw asap aka etc vs dont "
    "doesnt didnt cant couldnt shouldnt wont wouldnt isnt arent wasnt werent havent hasnt im ive id ill "
    "youre youve theyre thats whats wheres hows whos its lets idk imo fyi faq faqs diy app apps wifi "
    "login logins signup signups logout username usernames online offline email emails website websites "
    "webpage blog blogs smartphone smartphones laptop internet url urls inbox autopay paycheck voicemail "
    "checkbook checkup timezone playlist playlists todo hashtag emoji emojis selfie startup startups "
    "freelancer dropshipping config configs repo repos backend frontend fullstack dataset datasets "
    "metadata boolean async plugin plugins chatbot"
    "smoothie cryptocurrency crypto ebook ebooks homescreen unsubscribe onboarding reschedule customer".split()
)


# Days and months are for guards of their own.
DATES = frozenset(
    "january february march april may june july august september october november december jan feb mar "
    "apr jun jul aug sep sept oct nov dec monday tuesday wednesday thursday friday saturday sunday mon "
    "tue tues wed thu thur thurs fri sat sun"
    "mondays tuesdays wednesdays thursdays fridays saturdays sundays".split()
)

# Words that people write with a capital for stress, or after a comma, and that name nothing.
COMMON = frozenset(
    "please hello thanks thank dear help need want would could should will shall can may might must what "
    "when where which who whom whose why how that this these those there their they them then than the "
    "and but for with without from into about your yours mine have has had does did done are was were "
    "been being not never ever always all any some every each most more much many very really just only "
    "also too still again already even else because since until while if best good great better worst "
    "right wrong real way ways thing things people person someone anyone tell show give find"
    "get make take use know think like love new old first last next other same different".split()
)


@lru_cache(maxsize=32768)
def stem(word: str) -> str:
    return snowball(word)


@lru_cache(maxsize=32768)
def is_general(word: str) -> bool:
    return len(word) < 2 or stem(word) in _GENERAL or word in INFORMAL


@lru_cache(maxsize=32768)
def is_plain_english(word: str) -> bool:
    """Whether all its parts are ordinary words: contractions are, and compounds of any two."""
    word = _STRETCHED.sub(r"\1", word)
    if word.replace("'", "") in INFORMAL or word in DATES:
        return True
    return all(is_general(part) or part in DATES for part in _JOINT.split(word.partition("'")[0]))


_STRETCHED = re.compile(r"(.)\1{2,}")  # "plzzz"
_JOINT = re.compile(r"[.&-]")


@lru_cache(maxsize=8192)
def is_glued(word: str) -> bool:
    """Whether it is two ordinary words without the space: a slip ("needhelp"), or a name ("doordash")."""
    if len(word) > 30:
        return False
    return any(_is_ordinary(word[:at]) and _is_ordinary(word[at:]) for at in range(2, len(word) - 1)) or (
        word[:1] in ("i", "a") and _is_ordinary(word[1:])
    )


@lru_cache(maxsize=8192)
def is_slip(word: str) -> bool:
    """Whether a letter more, less, other or displaced makes it an ordinary word: a typo, and no name. Costs 0.5 ms."""
    if not 4 <= len(word) <= 20:
        return False
    splits = [(word[:at], word[at:]) for at in range(len(word) + 1)]
    for left, right in splits:
        if right and _is_ordinary(left + right[1:]):
            return True
        if len(right) > 1 and _is_ordinary(left + right[1] + right[0] + right[2:]):
            return True
        for letter in "abcdefghijklmnopqrstuvwxyz":
            if _is_ordinary(left + letter + right) or (right and _is_ordinary(left + letter + right[1:])):
                return True
    return False


def _is_ordinary(word: str) -> bool:
    """`is_general`, without a place among the remembered."""
    return word in DATES or snowball(word) in _GENERAL
