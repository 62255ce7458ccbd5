"""Making texts comparable with known phrases: how they are written is taken away, what they say is kept.

Undone are: letters' case, width and accents, characters that nobody sees, line breaks, and Cyrillic or Greek letters
that stand for Latin ones they look like. A word of look-alikes only is not undone: it may be Russian.
Unicode UTS #39 (confusables) has the whole of that problem; here are the letters that are used for it.
"""

from __future__ import annotations

import re
import unicodedata

# Zero-width characters, soft hyphens, direction marks, variation selectors, fillers, tags: shown by nobody.
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff]+"
)
# Sorting a pile of accents takes the square of its height: 40,000 of them 2.5 s. Longer ones than of Unicode's
# Stream-Safe Text Format (UAX #15) are written by nobody. To `re` a mark is no letter, but for two of narrow Katakana.
_PILED = re.compile(r"((?:[^\w\s\x00-\x7f]|[\uff9e\uff9f]){30})(?:[^\w\s\x00-\x7f]|[\uff9e\uff9f])+")
_ACCENTED = re.compile("([a-z])[\u0300-\u036f]+")
_MIXED = re.compile(r"\b(?=\w*[a-z])\w*[\u0370-\u04ff]\w*")
_LOOK_ALIKES = str.maketrans("аеорсухіјѕһԁԛԝкмтнвгαονρτυχικεβη", "aeopcyxijshdqwkmthbraovptuxikebn")
_TAGS = re.compile("(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0020-\U000e007e]+")  # not those of a flag


def normal(text: str) -> str:
    """The text as phrases are written: lower case, single spaces, Latin letters without accents."""
    if not text.isascii():
        text = _PILED.sub(r"\1", _UNSEEN.sub("", text))
        text = unicodedata.normalize("NFKD", text).casefold()
        text = unicodedata.normalize("NFC", _ACCENTED.sub(r"\1", text))
        text = _MIXED.sub(lambda word: word[0].translate(_LOOK_ALIKES), text)
    else:
        text = text.lower()
    return " ".join(text.split())


def hidden(text: str) -> str:
    """What is written in tag characters (U+E0020 to U+E007E), which models read and nobody sees."""
    if text.isascii():
        return ""
    return "".join(chr(ord(tag) - 0xE0000) for run in _TAGS.findall(text) for tag in run)
