"""The words of a question, as the guards of grammar read them: one spelling, one stem, contractions taken apart.

Case, white space and the shape of an apostrophe never matter. English is understood; words of other languages come out
as they are, and mean nothing to the tables of English words that they are looked up in.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from semcache.cache.remember import remember
from semcache.cache.stems import snowball


class Word(NamedTuple):
    text: str  # lower case
    stem: str  # "enable", "enables" and "enabled" have one stem, "bought" that of "buy"


# A full stop stands for every mark that ends a sentence or a large part of it.
STOP = Word(".", ".")
COMMA = Word(",", ",")
MARKS = (STOP, COMMA)

# A number with the separators inside it is one word; a hyphen or a slash parts words ("opt-out", "on/off").
_TOKEN = re.compile(r"\d+(?:[.,:]\d+)+|[^\W_]+(?:'[^\W_]+)*|[.?!;:,\u2014]|(?<=\s)[-\u2013](?=\s)")
_APOSTROPHES = str.maketrans("\u2019\u2018\u02bc\u0060\u00b4", "'" * 5)
_SHORTENED: Mapping[str, tuple[str, ...]] = {  # n't is cut off by rule, what it leaves of these is no word
    "can't": ("can", "not"),
    "cannot": ("can", "not"),
    "won't": ("will", "not"),
    "shan't": ("shall", "not"),
    "ain't": ("is", "not"),
    "wanna": ("want", "to"),
    "gonna": ("going", "to"),
    "unable": ("not", "able"),
    "let's": ("let", "us"),
}
_TAILS: Mapping[str, str] = {"'m": "am", "'re": "are", "'ve": "have", "'ll": "will", "'d": "would", "'s": "'s"}
# Typed without the apostrophe. "wont", "cant" are words too, which nobody types to a machine.
_BARE = (
    "isnt arent wasnt werent dont doesnt didnt hasnt havent hadnt wouldnt couldnt shouldnt mustnt neednt cant wont aint"
)

# Past forms that no stemmer leads back, with the verb: only what people ask about.
_IRREGULAR = """
be am is are was were been being; have has had; do does did done doing; go went gone; buy bought; sell sold; send sent;
get got gotten; give gave given; take took taken; make made; lose lost; win won; find found; pay paid; spend spent;
lend lent; begin began begun; break broke broken; bring brought; build built; catch caught; choose chose chosen;
come came; become became; draw drew drawn; drink drank drunk; drive drove driven; eat ate eaten; fall fell fallen;
feel felt; fight fought; fly flew flown; forget forgot forgotten; forgive forgave forgiven; freeze froze frozen;
grow grew grown; hear heard; hide hid hidden; hold held; keep kept; know knew known; lead led; learn learnt;
leave leaving leaves; meet met; ride rode ridden; rise rose risen; run ran; say said; see saw seen; shake shook shaken;
shoot shot; show shown; shrink shrank shrunk; sing sang sung; sink sank sunk; sit sat; sleep slept; speak spoke spoken;
stand stood; steal stole stolen; strike struck; swim swam swum; teach taught; tear torn; tell told; think thought;
throw threw thrown; understand understood; wake woke woken; wear wore worn; write wrote written; withdraw withdrew
withdrawn; beat beaten; bite bit bitten; blow blew blown; dig dug; feed fed; deal dealt; mean meant; seek sought;
swear swore sworn; bind bound; hang hung; forbid forbade forbidden;
child children; man men; woman women; person people; foot feet; tooth teeth;
mouse mice; wife wives; life lives; half halves; die died dies dying; lie lied lying; sue sued suing;
tie tied tying; pro pros; use used using uses
"""
_STEMS: dict[str, str] = {
    form: snowball(verb) for verb, *forms in (entry.split() for entry in _IRREGULAR.split(";")) for form in forms
}


def stem(word: str) -> str:
    """The stem of a word in lower case."""
    return _STEMS.get(word) or snowball(word)


@remember
def read_words(text: str) -> tuple[Word, ...]:
    """The words of a text in their order, and its marks, never first, last or two in a row."""
    found: list[Word] = []
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(_APOSTROPHES)
    for token in _TOKEN.findall(plain):
        if not token[0].isalnum():
            if found and found[-1] not in MARKS:
                found.append(COMMA if token == "," else STOP)
            continue
        if found and found[-1].text == "non":  # "non-stop", "non stop" and "nonstop" are one word
            token = found.pop().text + token
        found.extend(_EXPANDED.get(token) or _expand(token))
    if found and found[-1] in MARKS:
        found.pop()
    return tuple(found)


@lru_cache(maxsize=16384)  # the words of questions are much the same
def _expand(token: str) -> tuple[Word, ...]:
    if "'" not in token:
        return (Word(token, stem(token)),)
    if token.endswith("n't"):
        return _words(token[:-3], "not")
    head, mark, tail = token.rpartition("'")
    if mark + tail in _TAILS:
        return _words(head, _TAILS[mark + tail])
    return _words(token)


def _words(*texts: str) -> tuple[Word, ...]:
    return tuple(Word(text, stem(text)) for text in texts if text)


_EXPANDED: dict[str, tuple[Word, ...]] = {word: _words(*parts) for word, parts in _SHORTENED.items()} | {
    word: _words(*_SHORTENED.get(f"{word[:-1]}'t", (word[:-2], "not"))) for word in _BARE.split()
}
