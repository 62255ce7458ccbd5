"""What an audit line holds: the events there are, and their facts as bytes.

Text that a caller wrote is never among the facts, except `question` where the operator set `audit.prompts`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

import orjson


class Event(StrEnum):
    """What is written down. The last three are the log's own."""

    START = "start"
    STOP = "stop"
    RELOAD = "reload"
    RELOAD_REFUSED = "reload-refused"  # a bad configuration, which changed nothing
    PURGE = "purge"
    EXPORT = "export"
    IMPORT = "import"
    KEY_CREATED = "key-created"
    KEY_ROTATED = "key-rotated"
    KEY_UPDATED = "key-updated"
    KEY_REVOKED = "key-revoked"
    DRAIN = "drain"  # a backend was taken out of service by hand
    UNDRAIN = "undrain"
    ADMIN_REFUSED = "admin-refused"  # a call of the admin port without its token
    HIT = "hit"  # a semantic hit was served: request, entry, similarity, decision
    FEEDBACK = "feedback"  # a caller's word on a hit
    RESIDENCY_REFUSAL = "residency-refusal"  # it could only have been answered outside its regions
    GUARDRAIL = "guardrail"  # which rule, what was done; never the text
    BREAKER = "breaker"  # a backend is out, by its checks or its breaker, or is back
    PANIC = "panic"  # a pool's backends all look dead and are asked all the same, or that is over
    TORN = "torn"  # the line above was cut by a crash
    LOST = "lost"  # so many records could not be written
    REMOVED = "removed"  # old files were removed, as `audit.keep` says


CUT = 400  # characters of a fact; names are short
CUT_QUESTION = 4000
_QUESTION = "question"
_RESERVED = frozenset({"seq", "time", "event", "prev", "hash", "withheld"})


def render(event: Event, time: datetime, facts: Mapping[str, Any]) -> bytes:
    """The middle of a line, from `"time"` to its last fact: ASCII without control characters.

    Facts that are None are left out. Raises ValueError for a fact whose name the log needs itself.
    """
    if not _RESERVED.isdisjoint(facts):
        raise ValueError(f"a fact cannot be called {min(_RESERVED & facts.keys())}")
    line = {"time": time.isoformat(timespec="microseconds").replace("+00:00", "Z"), "event": event}
    line |= {name: _cut(name, value) for name, value in facts.items() if value is not None}
    return _encode(line)[1:-1]


def render_withheld(event: Event, time: datetime, count: int) -> bytes:
    """The same for what may not be told here, since it belongs to a tenant of another region: only that it was."""
    line = {"time": time.isoformat(timespec="microseconds").replace("+00:00", "Z"), "event": event, "withheld": count}
    return _encode(line)[1:-1]


def _cut(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return value[: CUT_QUESTION if name == _QUESTION else CUT]
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return value


def _encode(line: Mapping[str, Any]) -> bytes:
    try:
        text = orjson.dumps(line)
    except TypeError:  # half a surrogate pair, which is no UTF-8; or an integer past 64 bits
        text = b"\x80"
    if text.isascii() and b"\x7f" not in text:
        return text
    # Other scripts, and among them what a terminal obeys though JSON allows it: C1 controls, text direction marks.
    return json.dumps(line, separators=(",", ":"), ensure_ascii=True, default=str).replace("\x7f", "\\u007f").encode()
