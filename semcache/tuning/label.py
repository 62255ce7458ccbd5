"""`semcache tune label`: a person says of near questions whether one answer serves both.

Labels are appended to a file as they are given, one line each, so that nothing is lost when the loop is left. The file
holds questions of users: it is made for its owner's eyes only.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.text import Text

from semcache.errors import SemcacheError
from semcache.tuning.labelled import read_rows
from semcache.tuning.stored import Near
from semcache.types import Entry

KEYS = "y: the same answer serves both   n: it does not   a: show the answers   s: skip   q: stop"
SHOWN_CHARS = 1500  # of an answer


class Labelled(NamedTuple):
    same: int
    different: int


class Labels:
    """The file that labels are appended to."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError for a file that holds something else; SemcacheError where none can be made."""
        self._path = path
        self._known: set[frozenset[str]] = set()
        if path.exists() and path.stat().st_size:
            self._known = {frozenset((str(row.get("a")), str(row.get("b")))) for row in read_rows(path)}
        else:
            self._append(b"")

    def has(self, near: Near) -> bool:
        return frozenset((near.asked.question or "", near.stored.question or "")) in self._known

    def add(self, near: Near, same: bool) -> None:
        a, b = near.asked.question, near.stored.question
        row = {"a": a, "b": b, "duplicate": int(same), "cosine": round(near.cosine, 4)}
        self._append(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        self._known.add(frozenset((a or "", b or "")))

    def _append(self, line: bytes) -> None:
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "ab") as file:
                file.write(line)
        except OSError as exc:
            raise SemcacheError(f"{self._path}: cannot be written: {exc.strerror or exc}") from exc


async def label(
    pairs: AsyncIterator[Near],
    labels: Labels,
    console: Console,
    ask_key: Callable[[], str],
    say: Callable[[Entry], str | None],
) -> Labelled:
    """Until there are no more, or the person has had enough. `say`: what a stored answer says; None: it is no text."""
    same = different = 0
    async for near in pairs:
        if labels.has(near):
            continue
        console.print(Text(f"\n{same + different + 1}.  cosine {near.cosine:.3f}", "dim"))
        console.print(Text.assemble(("  asked   ", "dim"), near.asked.question or ""))
        console.print(Text.assemble(("  stored  ", "dim"), near.stored.question or ""))
        key = _decide(near, console, ask_key, say)
        if key == "q":
            break
        if key == "s":
            continue
        labels.add(near, key == "y")
        same, different = same + (key == "y"), different + (key == "n")
    return Labelled(same, different)


def _decide(near: Near, console: Console, ask_key: Callable[[], str], say: Callable[[Entry], str | None]) -> str:
    while True:
        key = ask_key().strip().lower()[:1]
        if key in ("y", "n", "s", "q"):
            return key
        if key == "a":
            for name, entry in (("asked ", near.asked), ("stored", near.stored)):
                said = say(entry) or "no plain text"
                console.print(Text.assemble((f"  {name}  ", "dim"), said[:SHOWN_CHARS]))
        else:
            console.print(Text(KEYS, "dim"))
