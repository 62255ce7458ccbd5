"""What is asked, and when: a workload is a list of requests, each with its text, its group and its time of arrival.

A group is the set of texts that one answer serves; it is what makes a false hit visible. Every random choice comes from
the seed, so a workload is the same on every machine.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from semcache.demo.questions import Group, load_groups
from semcache.errors import ConfigError

# Which field says what may share an answer, the finest first: files that have several use `group` for the domain.
GROUP_FIELDS = ("class", "group")


@dataclass(frozen=True, slots=True)
class Request:
    text: str
    group: str
    stream: bool = False
    at_s: float | None = None  # since the start; None: as soon as there is room


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    requests: tuple[Request, ...]

    @property
    def hit_ceiling(self) -> float:
        """The hit rate of a cache that knows the groups and starts empty."""
        return 1 - len({request.group for request in self.requests}) / max(1, len(self.requests))

    @property
    def exact_ceiling(self) -> float:
        """The hit rate of a cache that only knows equal texts."""
        return 1 - len({request.text for request in self.requests}) / max(1, len(self.requests))

    @property
    def span_s(self) -> float:
        return max((request.at_s or 0.0 for request in self.requests), default=0.0)


def shop_traffic(
    count: int,
    *,
    seed: int = 1,
    zipf: float = 0.9,
    wording_zipf: float = 0.6,
    groups: Sequence[Group] | None = None,
) -> Workload:
    """Questions to the made-up shop: a group by Zipf over a shuffled order, then a wording by a flatter Zipf."""
    rng = np.random.default_rng(seed)
    pool = list(groups if groups is not None else load_groups())
    rng.shuffle(pool)  # type: ignore[arg-type]
    favourites = [rng.permutation(len(group.wordings)) for group in pool]  # which wording is common differs by group
    chosen = rng.choice(len(pool), size=count, p=_zipf(len(pool), zipf))
    requests = []
    for place in chosen:
        wordings = pool[place].wordings
        rank = rng.choice(len(wordings), p=_zipf(len(wordings), wording_zipf))
        requests.append(Request(wordings[favourites[place][rank]], pool[place].name))
    return Workload("shop", tuple(requests))


def from_file(path: Path, *, group_field: str | None = None, limit: int | None = None) -> Workload:
    """Read JSON Lines (also .gz): `text`, a group, and at times `t`, the second of arrival. In the order of the file.

    Raises ConfigError with the line that cannot be used.
    """
    requests = []
    for number, line in itertools.islice(enumerate(_open(path), start=1), limit):
        try:
            row = json.loads(line)
            name = group_field or next((field for field in GROUP_FIELDS if field in row), None)
            if name is None:
                raise ConfigError(f"{path}:{number}: no field `group`; name the field with --group-field")
            at_s = float(row["t"]) if "t" in row else None
            requests.append(Request(str(row["text"]), str(row[name]), at_s=at_s))
        except (ValueError, KeyError, TypeError) as exc:
            raise ConfigError(f"{path}:{number}: not a JSON object with `text` and a group: {exc!r}") from exc
    if not requests:
        raise ConfigError(f"{path}: no requests in it")
    return Workload(path.name, tuple(requests))


def with_streams(workload: Workload, share: float, *, seed: int = 1) -> Workload:
    """Ask for a stream in this share of the requests, 0 to 1."""
    draws = np.random.default_rng(seed).random(len(workload.requests))
    return replace(
        workload,
        requests=tuple(
            replace(request, stream=bool(draw < share)) for request, draw in zip(workload.requests, draws, strict=True)
        ),
    )


def arriving(workload: Workload, times_s: Iterable[float]) -> Workload:
    """Give the requests these times, in order; what has no time left over is dropped."""
    paired = zip(workload.requests, times_s, strict=False)
    return replace(workload, requests=tuple(replace(request, at_s=at_s) for request, at_s in paired))


def poisson(rate_per_s: float, *, seed: int = 1) -> Iterator[float]:
    """Times of arrivals that know nothing of each other, without end."""
    rng = np.random.default_rng(seed)
    at_s = 0.0
    while True:
        yield at_s
        at_s += float(rng.exponential(1 / rate_per_s))


def trace(path: Path, *, speed: float = 1.0) -> Iterator[float]:
    """Times of a recorded trace, CSV with a header or JSON Lines (also .gz): column `t`, `t_s` or `t_ms`, from zero.

    `speed` 10 plays it ten times as fast. Raises ConfigError.
    """
    lines = _open(path)
    is_csv = ".csv" in path.suffixes
    rows: Iterable[dict[str, str]] = csv.DictReader(lines) if is_csv else map(json.loads, lines)
    first: float | None = None
    for row in rows:
        for column, unit_s in (("t", 1.0), ("t_s", 1.0), ("t_ms", 0.001)):
            if column in row:
                at_s = float(row[column]) * unit_s
                first = at_s if first is None else first
                yield (at_s - first) / speed
                break
        else:
            raise ConfigError(f"{path}: no column t, t_s or t_ms")


def _zipf(count: int, exponent: float) -> np.ndarray:
    weights = 1 / np.arange(1, count + 1) ** exponent
    return weights / weights.sum()


def _open(path: Path) -> Iterator[str]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            yield from lines
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read: {exc}") from exc
