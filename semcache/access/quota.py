"""LIMITS: how much a tenant or a key may use, by minute, day and month. Decided before anything is looked up.

A request counts when it comes, whoever answers it. Tokens are reserved as they are expected and settled as they are
billed: a hit gives them back. Money counts once it is billed, so a budget is overshot by what was under way when it ran
out. A minute slides: the minute before counts by the share of it that the last 60 seconds still cover, a good
approximation that needs two numbers (Cloudflare, "How we built rate limiting capable of scaling to millions of
domains", 2017). Days and months are those of UTC.

Nothing here waits or reads a file. What is counted is handed to a file that all workers share, and what it says comes
back, about once a second; so workers know of each other what is a second old. Without a file each counts for itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from semcache.config import Limits
from semcache.errors import ClientError
from semcache.types import Usage

NANO = 1_000_000_000  # of a dollar
MINUTE_S, DAY_S = 60, 86400
SET_BACK_S = 60  # a clock that goes back by more than this was set; by less it was only corrected
SOON_S = 60  # SDKs wait as long as Retry-After says up to this; what takes longer they should not try again

Place = tuple[str, str, int]  # subject, period, and its first second
Counts = tuple[int, int, int]  # requests, tokens, nano-dollars


class Metric(IntEnum):
    REQUESTS = 0
    TOKENS = 1
    USD = 2


UNITS = ("requests", "tokens", "US dollars")


class Rule(NamedTuple):
    metric: Metric
    limit: int


class Rules(NamedTuple):
    minute: tuple[Rule, ...]
    day: tuple[Rule, ...]
    month: tuple[Rule, ...]


class Refusal(NamedTuple):
    subject: str
    metric: Metric
    period: str
    limit: int
    wait_s: float  # infinite: waiting does not help, for the request alone is more than the limit


class Cell:
    """What a subject has used in one minute, day or month: `told` and `news` together."""

    __slots__ = ("end", "is_news", "moved", "news", "place", "start", "told")

    def __init__(self, place: Place, end: int, told: Sequence[int] = (0, 0, 0)) -> None:
        self.place = place
        self.start = place[2]
        self.end = end
        self.told = list(told)  # by all workers, as the file says, and `moved`
        self.moved = [0, 0, 0]  # what is being written just now
        self.news = [0, 0, 0]  # what only this worker knows
        self.is_news = False

    def used(self, metric: int) -> int:
        used = self.told[metric] + self.news[metric]
        return used if used > 0 else 0  # max() would cost more than the rest: this is asked nine times for a hit


class Subject:
    """A tenant or a key, and what it has used."""

    __slots__ = ("before", "day", "minute", "month", "name", "rules")

    def __init__(self, name: str, rules: Rules) -> None:
        self.name = name
        self.rules = rules
        nothing = Cell((name, "minute", 0), 0)
        self.minute = self.before = self.day = self.month = nothing

    def cells(self) -> Cells:
        return self.minute, self.day, self.month

    def used_in_a_minute(self, metric: int, now: float) -> float:
        before = self.before.used(metric)
        if not before:
            return self.minute.used(metric)
        passed = min(max(now - self.minute.start, 0.0), MINUTE_S) / MINUTE_S
        return self.minute.used(metric) + before * (1.0 - passed)

    def minute_wait_s(self, metric: int, limit: int, need: int, now: float) -> float:
        """Until `need` more would fit, if nothing else came meanwhile."""
        room = limit - need
        if room < 0:
            return math.inf
        passed_s = min(max(now - self.minute.start, 0.0), float(MINUTE_S))
        current, before = self.minute.used(metric), self.before.used(metric)
        if current <= room:  # it is the minute before that is in the way
            return max(0.0, MINUTE_S * (1 - (room - current) / before) - passed_s) if before else 0.0
        return MINUTE_S - passed_s + MINUTE_S * (1 - room / current)

    def minute_reset_s(self, metric: int, now: float) -> float:
        """Until nothing of what was used counts any more."""
        left = MINUTE_S - min(max(now - self.minute.start, 0.0), float(MINUTE_S))
        return left + MINUTE_S if self.minute.used(metric) else left if self.before.used(metric) else 0.0


Cells = tuple[Cell, Cell, Cell]  # minute, day, month


@dataclass(slots=True)
class Reservation:
    """A request that was let in. Settle it once, whatever becomes of it."""

    subjects: Sequence[Subject] = ()
    cells: Sequence[Cells] = ()  # of each subject: where the tokens were reserved
    tokens: int = 0
    # Why it must not be forwarded, though it may be answered from the cache: raise it where a fetch would begin.
    why_no_fetch: ClientError | None = None
    is_settled: bool = False


NOTHING = Reservation(is_settled=True)  # nobody limits this request


class Quotas:
    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """`clock`: unix seconds, for what does not come with a request."""
        self._clock = clock
        self._subjects: dict[str, Subject] = {}
        self._rules: dict[int, tuple[Limits, Rules | None]] = {}  # by identity: comparing settings takes longer
        self._known: dict[Place, Counts] = {}  # what the file said of subjects that have not come yet
        self._news: list[Cell] = []
        self._written: list[Cell] = []
        self._active: dict[str, Subject] = {}
        self.refused = 0  # or let in for what the cache has, and nothing else

    def reserve(
        self, subjects: Sequence[tuple[str, Limits]], tokens: int, now: float, *, may_be_free: bool = False
    ) -> Reservation:
        """Let a request in that is expected to take so many `tokens`, or raise ClientError 429.

        `subjects`: everybody who is charged, with his limits. All of them are asked before any of them is charged.
        `may_be_free`: the cache may have its answer, which costs no tokens and no money. So where only these are used
        up it is let in, and the reservation says `why_no_fetch`.
        """
        limited = self._limited(subjects)
        if not limited:
            return NOTHING
        refusals: list[Refusal] = []
        why_no_fetch: ClientError | None = None
        for subject in limited:
            if not subject.minute.start - SET_BACK_S <= now < subject.minute.end:
                self._turn(subject, now)
            self._check(subject, tokens, now, refusals)
        if refusals:
            self.refused += 1
            worst = max(refusals, key=lambda refusal: refusal.wait_s)
            why_no_fetch = _too_much(worst, self._figures(limited, now))
            if not may_be_free or any(refusal.metric is Metric.REQUESTS for refusal in refusals):
                raise why_no_fetch
            tokens = 0
        cells = [subject.cells() for subject in limited]
        for each in cells:
            self._add(each, 1, tokens, 0)
        return Reservation(limited, cells, tokens, why_no_fetch)

    def settle(self, reservation: Reservation, usage: Usage | None, nano_usd: int | None, now: float) -> None:
        """Count what was billed for a request, instead of what was reserved. Neither: it cost nothing."""
        if reservation.is_settled:
            return
        reservation.is_settled = True
        billed = 0 if usage is None else max(0, usage.prompt_tokens) + max(0, usage.completion_tokens)
        change = billed - reservation.tokens
        if change < 0:  # back to where it was taken from: that minute may be over
            for cells in reservation.cells:
                self._add(cells, 0, change, 0)
            change = 0
        if change or nano_usd:
            self._charge(reservation.subjects, change, nano_usd or 0, now)

    def charge(self, subjects: Sequence[tuple[str, Limits]], usage: Usage, nano_usd: int | None, now: float) -> None:
        """Count what was billed for nobody's request, such as a refresh of a stale answer. Never refused."""
        self._charge(
            self._limited(subjects), max(0, usage.prompt_tokens) + max(0, usage.completion_tokens), nano_usd or 0, now
        )

    def headers(self, reservation: Reservation, now: float) -> list[tuple[str, str]]:
        """What is left, in the form of OpenAI's: of several limits the one of which the least is left."""
        return self._figures(reservation.subjects, now) if reservation.subjects else []

    # With the file that workers share

    def take(self) -> tuple[list[tuple[Place, Counts]], list[Place]]:
        """What is to be added to the file, and of what its totals are wanted. Then comes `learn`, or `give_back`."""
        self._written, self._news = self._news, []
        for cell in self._written:
            cell.moved, cell.news, cell.is_news = cell.news, [0, 0, 0], False
            cell.told = _sum(cell.told, cell.moved)
        news = [(cell.place, (cell.moved[0], cell.moved[1], cell.moved[2])) for cell in self._written]
        now = self._clock()
        self._active = {
            name: subject for name, subject in self._active.items() if now < subject.minute.end + 2 * MINUTE_S
        }
        wanted = [cell.place for subject in self._active.values() for cell in (*subject.cells(), subject.before)]
        return news, wanted

    def learn(self, totals: Mapping[Place, Counts]) -> None:
        """The file's totals, with what was taken in them; at the start, those of all that have used something."""
        for cell in self._written:
            cell.moved = [0, 0, 0]
        self._written = []
        left = dict(totals)
        for subject in self._active.values():
            for cell in (*subject.cells(), subject.before):
                counts = left.pop(cell.place, None)
                if counts is not None:
                    cell.told = list(counts)
        self._known.update((place, counts) for place, counts in left.items() if place[0] not in self._subjects)

    def give_back(self) -> None:
        """It could not be written."""
        for cell in self._written:
            cell.told = [told - moved for told, moved in zip(cell.told, cell.moved, strict=True)]
            cell.news = _sum(cell.news, cell.moved)
            cell.moved = [0, 0, 0]
            if not cell.is_news:
                cell.is_news = True
                self._news.append(cell)
        self._written = []

    def stats(self) -> dict[str, int]:
        return {"refused": self.refused, "subjects": len(self._subjects)}

    # Who is limited, and by what

    def _limited(self, subjects: Sequence[tuple[str, Limits]]) -> list[Subject]:
        found = []
        for name, limits in subjects:
            subject = self._find(name, limits)
            if subject is not None:
                found.append(subject)
        return found

    def _find(self, name: str, limits: Limits) -> Subject | None:
        """None where nothing is limited: there is then nothing to remember of this name either."""
        known = self._rules.get(id(limits))
        if known is None or known[0] is not limits:
            if len(self._rules) > 10_000:  # limits that came with keys which are gone
                self._rules.clear()
            known = self._rules[id(limits)] = (limits, _rules_of(limits))
        rules = known[1]
        if rules is None:
            return None
        subject = self._subjects.get(name)
        if subject is None:
            subject = self._subjects[name] = Subject(name, rules)
        subject.rules = rules  # a reload may have changed them; what was used stays
        return subject

    def _turn(self, subject: Subject, now: float) -> None:
        """A new minute, and with it perhaps a new day and month. Also where the clock was set back."""
        self._active[subject.name] = subject
        start = int(now // MINUTE_S) * MINUTE_S
        last = subject.minute
        is_next = last.start == start - MINUTE_S and last.end
        subject.before = last if is_next else self._cell(subject, "minute", start - MINUTE_S, start)
        subject.minute = self._cell(subject, "minute", start, start + MINUTE_S)
        if not subject.day.start - SET_BACK_S <= now < subject.day.end:
            day = int(now // DAY_S) * DAY_S
            subject.day = self._cell(subject, "day", day, day + DAY_S)
        if not subject.month.start - SET_BACK_S <= now < subject.month.end:
            subject.month = self._cell(subject, "month", *_month(now))

    def _cell(self, subject: Subject, period: str, start: int, end: int) -> Cell:
        place = (subject.name, period, start)
        return Cell(place, end, self._known.pop(place, (0, 0, 0)))

    def _check(self, subject: Subject, tokens: int, now: float, found: list[Refusal]) -> None:
        rules = subject.rules
        needs = (1, max(tokens, 1), 1)
        for metric, limit in rules.minute:
            if subject.used_in_a_minute(metric, now) + needs[metric] > limit:
                wait_s = subject.minute_wait_s(metric, limit, needs[metric], now)
                found.append(Refusal(subject.name, metric, "minute", limit, wait_s))
        for period, cell, listed in (("day", subject.day, rules.day), ("month", subject.month, rules.month)):
            for metric, limit in listed:
                if cell.used(metric) + needs[metric] > limit:
                    wait_s = math.inf if needs[metric] > limit else cell.end - now
                    found.append(Refusal(subject.name, metric, period, limit, wait_s))

    def _charge(self, subjects: Iterable[Subject], tokens: int, nano_usd: int, now: float) -> None:
        for subject in subjects:
            if not subject.minute.start - SET_BACK_S <= now < subject.minute.end:
                self._turn(subject, now)
            self._add(subject.cells(), 0, tokens, nano_usd)

    def _add(self, cells: Cells, requests: int, tokens: int, nano_usd: int) -> None:
        for cell in cells:
            news = cell.news
            news[0] += requests
            news[1] += tokens
            news[2] += nano_usd
            if not cell.is_news:
                cell.is_news = True
                self._news.append(cell)

    def _figures(self, subjects: Iterable[Subject], now: float) -> list[tuple[str, str]]:
        least: list[tuple[int, int, float] | None] = [None, None]  # by metric: left, limit, reset
        for subject in subjects:
            rules = subject.rules
            for metric, limit in rules.minute:
                if metric in _FIELDS:
                    left = int(limit - subject.used_in_a_minute(metric, now))
                    known = least[metric]
                    if known is None or left < known[0]:
                        least[metric] = left, limit, subject.minute_reset_s(metric, now)
            for cell, listed in ((subject.day, rules.day), (subject.month, rules.month)):
                for metric, limit in listed:
                    if metric in _FIELDS:
                        left = limit - cell.used(metric)
                        known = least[metric]
                        if known is None or left < known[0]:
                            least[metric] = left, limit, cell.end - now
        found = []
        for metric, (of_limit, of_rest, of_reset) in _FIELDS.items():
            if figures := least[metric]:
                left, limit, reset_s = figures
                found += [
                    (of_limit, str(limit)),
                    (of_rest, str(left if left > 0 else 0)),
                    (of_reset, duration(reset_s)),
                ]
        return found


# OpenAI's, which has no form for money.
_FIELDS = {
    metric: tuple(f"x-ratelimit-{figure}-{UNITS[metric]}" for figure in ("limit", "remaining", "reset"))
    for metric in (Metric.REQUESTS, Metric.TOKENS)
}


def duration(seconds: float) -> str:
    """As OpenAI writes the time until a reset: 120ms, 1s, 6m0s, 7h12m30s. Never sooner than it is."""
    if seconds <= 0:
        return "0s"
    if seconds <= 0.999:
        return f"{math.ceil(seconds * 1000)}ms"
    return _whole_seconds(math.ceil(seconds))


@lru_cache(maxsize=1024)  # every reply of a second tells the same
def _whole_seconds(seconds: int) -> str:
    minutes, s = divmod(seconds, 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}h{m}m{s}s" if hours else f"{m}m{s}s" if m else f"{s}s"


def _rules_of(limits: Limits) -> Rules | None:
    def of(period: str) -> tuple[Rule, ...]:
        found = (
            (Metric.REQUESTS, getattr(limits, f"requests_per_{period}")),
            (Metric.TOKENS, getattr(limits, f"tokens_per_{period}")),
            (Metric.USD, getattr(limits, f"usd_per_{period}")),
        )
        return tuple(
            Rule(metric, round(limit * NANO) if metric is Metric.USD else limit)
            for metric, limit in found
            if limit is not None
        )

    rules = Rules(of("minute"), of("day"), of("month"))
    return rules if any(rules) else None


def _sum(one: Sequence[int], other: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip(one, other, strict=True)]


def _month(now: float) -> tuple[int, int]:
    """Its first second, and the first of the next."""
    first = datetime.fromtimestamp(now, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    return int(first.timestamp()), int(following.timestamp())


def _too_much(refusal: Refusal, figures: Sequence[tuple[str, str]]) -> ClientError:
    subject, metric, period, limit, wait_s = refusal
    what = f"{limit / NANO:g}" if metric is Metric.USD else f"{limit:,}"
    allowed = f"{subject}: the limit of {what} {UNITS[metric]} a {period}"
    headers = dict(figures)
    if math.isinf(wait_s):
        message = f"{allowed} is less than this request alone would take"
        headers["x-should-retry"] = "false"
    else:
        message = f"{allowed} is used up; try again in {duration(wait_s)}"
        headers["Retry-After"] = str(max(1, math.ceil(wait_s)))
        if wait_s > SOON_S:
            headers["x-should-retry"] = "false"  # OpenAI's and Anthropic's SDKs would try again in a few seconds
    code = "insufficient_quota" if metric is Metric.USD else "rate_limit_exceeded"
    return ClientError(message, status=429, code=code, headers=headers)
