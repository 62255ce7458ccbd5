"""Finding known phrases, quickly: a phrase is only tried where one of its rarest words is there at all.

Patterns are written for normal text (see normal.py), and in bounded pieces, so that no text makes them slow.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from semcache.guardrails.normal import normal


@dataclass(frozen=True, slots=True)
class Phrase:
    """One wording in one language, with texts that it must find and texts much like them that it must not."""

    needles: tuple[tuple[str, ...], ...]  # of each group, one is in every text that the pattern finds
    pattern: re.Pattern[str]
    hits: tuple[str, ...]
    misses: tuple[str, ...] = ()

    def may_be_in(self, text: str) -> bool:
        return all(any(needle in text for needle in group) for group in self.needles)


@dataclass(frozen=True, slots=True)
class Rule:
    id: str
    reason: str  # completes "a guardrail refused this request: "
    phrases: tuple[Phrase, ...]


def phrase(needles: str, pattern: str, hits: Sequence[str], misses: Sequence[str] = ()) -> Phrase:
    """`needles`: separated by `|`, groups by ` + `.

    In the pattern `~` is what may stand between two words, `~3~` up to three words. It begins with letters rather than
    with `\\b`, so that the search skips to where one of them is.
    """
    pattern = re.sub(r"~(\d)~", lambda gap: rf"(?:\W{{1,6}}\w{{1,40}}){{0,{gap[1]}}}?\W{{1,6}}", pattern)
    pattern = pattern.replace("~", r"\W{1,6}")
    groups = tuple(tuple(group.split("|")) for group in needles.split(" + "))
    return Phrase(groups, re.compile(pattern), tuple(hits), tuple(misses))


def find(text: str, rules: Sequence[Rule]) -> Iterator[Rule]:
    """The rules that find something in a text that is normal already."""
    for rule in rules:
        for candidate in rule.phrases:
            if candidate.may_be_in(text) and candidate.pattern.search(text):
                yield rule
                break


_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_=-])[A-Za-z0-9+/_-]{32,8192}={0,2}(?![A-Za-z0-9+/_=-])")
_SHORTEST = 32  # characters of base64
MAX_DECODED = 32  # runs of one text: more is data, not an instruction that hides


def decoded(text: str) -> str:
    """What base64 in a text says, where it says words; made normal."""
    if all(len(word) < _SHORTEST for word in text.split()):
        return ""
    said = []
    for run in _BASE64.findall(text)[:MAX_DECODED]:
        plain = run.rstrip("=").replace("-", "+").replace("_", "/")
        try:
            words = base64.b64decode(plain + "=" * (-len(plain) % 4)).decode()
        except (binascii.Error, UnicodeDecodeError):
            continue
        if words.isprintable() or "\n" in words:
            said.append(normal(words))
    return "\n".join(said)
