"""Asking the file of usage: how much, of whom, when. Plain sums; nothing is guessed, and nothing changes.

`saved_usd` is what was avoided less what the cache itself has cost: refreshes, explored hits, judging answers, remote
embeddings, and the time of its own embedder.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from semcache.config import read_duration
from semcache.errors import ClientError, ConfigError, StoreFault
from semcache.usage.ledger import OWN_PURPOSES, Source
from semcache.usage.prices import NANO
from semcache.usage.rollups import read_only

TIMES = {"minute": 60, "hour": 3600, "day": 86400}
NAMES = ("tenant", "key", "model", "backend", "region", "purpose")
_SHOWN = {"minute": "%Y-%m-%d %H:%M", "hour": "%Y-%m-%d %H:00", "day": "%Y-%m-%d"}
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d)?)?Z?")


@dataclass(frozen=True, slots=True)
class Query:
    by: tuple[str, ...] = ("day",)
    tenant: str | None = None
    key: str | None = None
    model: str | None = None  # glob
    since: float | None = None  # unix seconds
    until: float | None = None  # before this


@dataclass(slots=True)
class Line:
    """The figures of one group. Money is in nano-dollars; requests are those that were answered."""

    requests: int = 0
    hits: int = 0  # of them, answered by the store or by another request's fetch
    fetches: int = 0  # that upstreams were asked for, also where nobody waited
    billed_tokens: int = 0
    billed_cached_tokens: int = 0  # of them, read from an upstream's own prompt cache
    replayed_tokens: int = 0
    shared_tokens: int = 0
    billed_nano: int = 0
    avoided_nano: int = 0
    own_nano: int = 0  # the cache's cost; what upstreams billed of it is in `billed` too
    estimated: int = 0
    unpriced: int = 0

    @property
    def saved_nano(self) -> int:
        return self.avoided_nano - self.own_nano

    def as_json(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "hits": self.hits,
            "fetches": self.fetches,
            "billed_tokens": self.billed_tokens,
            "billed_cached_tokens": self.billed_cached_tokens,
            "replayed_tokens": self.replayed_tokens,
            "shared_tokens": self.shared_tokens,
            "avoided_tokens": self.replayed_tokens + self.shared_tokens,
            "billed_usd": self.billed_nano / NANO,
            "avoided_usd": self.avoided_nano / NANO,
            "own_usd": self.own_nano / NANO,
            "saved_usd": self.saved_nano / NANO,
            "estimated": self.estimated,
            "unpriced": self.unpriced,
        }


def read_query(asked: Mapping[str, str], now: float) -> Query:
    """Read a query from its words, such as `by=day,tenant&since=7d`. Raises ClientError."""
    unknown = sorted(set(asked) - {"by", "tenant", "key", "model", "since", "until"})
    if unknown:
        raise ClientError(f"{unknown[0][:80]}: there are by, tenant, key, model, since, until", param=unknown[0][:80])
    by = tuple(dict.fromkeys(part.strip() for part in asked.get("by", "day").split(",") if part.strip()))
    for part in by:
        if part not in TIMES and part not in NAMES:
            known = ", ".join([*TIMES, *NAMES])
            raise ClientError(f'by: "{part[:80]}" is nothing to tell usage apart by; there are {known}', param="by")
    if len([part for part in by if part in TIMES]) > 1:
        raise ClientError("by: name one of minute, hour, day", param="by")
    query = Query(by, asked.get("tenant"), asked.get("key"), asked.get("model"))
    since, until = (_moment(asked[name], name, now) if name in asked else None for name in ("since", "until"))
    return replace(query, since=since, until=until)


def _moment(written: str, name: str, now: float) -> float:
    """Unix seconds of "2026-11-01", "2026-11-01T08:00" (UTC), or of "7d" ago. Raises ClientError."""
    text = written.strip()
    try:
        if _MOMENT.fullmatch(text):
            return datetime.fromisoformat(text.removesuffix("Z")).replace(tzinfo=UTC).timestamp()
        return now - read_duration(text, name)
    except (ValueError, ConfigError) as exc:
        raise ClientError(
            f'{name}: "{written[:80]}" is no time; write 7d, 24h, 2026-11-01 or 2026-11-01T08:00 (UTC)', param=name
        ) from exc


def read_report(path: Path, query: Query) -> dict[str, Any]:
    """Lines by what was asked, in order, and their total. On a thread. Raises StoreFault.

    Where only hours or days are kept any more, a span that `since` cuts through counts whole.
    """
    lines: dict[tuple[str, ...], Line] = {}
    total = Line()
    try:
        database = read_only(path)
        try:
            for group, source, purpose, figures in _rows(database, query):
                for line in (lines.setdefault(group, Line()), total):
                    _add(line, Source(source), purpose, figures)
        finally:
            database.close()
    except (sqlite3.Error, ValueError) as exc:
        raise StoreFault(f"usage: {path}: cannot be read: {exc}") from exc
    rows = [
        {**dict(zip(query.by, group, strict=True)), **line.as_json()}
        for group, line in sorted(lines.items(), key=lambda item: item[0])
    ]
    return {"by": list(query.by), "rows": rows, "total": total.as_json()}


def _rows(database: sqlite3.Connection, query: Query) -> list[tuple[tuple[str, ...], str, str, Sequence[int]]]:
    groups = [f"at / {TIMES[part]} * {TIMES[part]}" if part in TIMES else part for part in query.by]
    places = ", ".join(str(place + 1) for place in range(len(groups) + 2))
    wheres, values = ["1"], list[str | float]()
    for where, value in (
        ("tenant = ?", query.tenant),
        ("key = ?", query.key),
        ("model GLOB ?", query.model),
        ("at + seconds > ?", query.since),
        ("at < ?", query.until),
    ):
        if value is not None:
            wheres.append(where)
            values.append(value)
    found = database.execute(
        f"SELECT {', '.join([*groups, 'source', 'purpose'])}, SUM(requests), SUM(prompt), SUM(cached), "
        "SUM(completion), SUM(nano_usd), SUM(estimated), SUM(unpriced) FROM spans JOIN facets ON id = facets "
        f"WHERE {' AND '.join(wheres)} GROUP BY {places}",
        values,
    )
    n = len(groups)
    rows = []
    for row in found:
        group = tuple(
            datetime.fromtimestamp(value, UTC).strftime(_SHOWN[part]) if part in TIMES else value
            for part, value in zip(query.by, row[:n], strict=True)
        )
        rows.append((group, row[n], row[n + 1], row[n + 2 :]))
    return rows


def _add(line: Line, source: Source, purpose: str, figures: Sequence[int]) -> None:
    requests, prompt, cached, completion, nano, estimated, unpriced = figures
    tokens = prompt + completion
    line.estimated += estimated
    line.unpriced += unpriced
    if source is Source.OWN:
        line.own_nano += nano
    elif source is Source.FETCHED:
        line.fetches += requests
        line.billed_tokens += tokens
        line.billed_cached_tokens += cached
        line.billed_nano += nano
        line.own_nano += nano if purpose in OWN_PURPOSES else 0
    else:
        line.requests += requests
        if source is not Source.FORWARDED:
            line.hits += requests
            line.avoided_nano += nano
        if source is Source.REPLAYED:
            line.replayed_tokens += tokens
        elif source is Source.SHARED:
            line.shared_tokens += tokens
