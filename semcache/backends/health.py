"""Who may be asked: what requests, active checks and rate limits tell of a backend, put together. Everything is pure.

The rule: the three kinds of evidence are kept apart, and each is taken back by its own kind. Failed requests open the
breaker; failed checks eject; a limited key rests until its time. They meet in one place: when a check succeeds that had
failed before, the backend has come back, and the breaker lets requests try it without waiting out its time. Checks that
succeed all along, while requests fail, have nothing to say to the breaker: a dead engine may sit behind a server that
still lists its models.

Silence is no proof. A busy server may be slow to answer a check, so a check without an answer counts only when nothing
else came from the backend in the meantime.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from enum import StrEnum

from semcache.backends.breaker import Breaker, Circuit
from semcache.config import Health

# What slow start begins with. Not less: with no share at all it would never be chosen, and so never be warm.
SMALLEST_SHARE = 0.1


class State(StrEnum):
    """For figures and logs. The first that applies."""

    EJECTED = "ejected"  # by active checks
    OPEN = "open"  # the breaker: too many requests in a row failed there
    HALF_OPEN = "half-open"  # single requests try it
    RESTING = "resting"  # its key has reached a rate limit
    WELL = "well"


class Vitals:
    """What is known of one backend's health; with several keys, of each.

    `now` is monotonic seconds and never goes back. Each `begin` is followed by exactly one of `succeeded`, `failed` and
    `ended`, with what `begin` returned: by then the backend may have been out and back, and a failure from before says
    nothing. Left out, the request counts as one of now.
    """

    __slots__ = (
        "_breaker",
        "_doubtful",
        "_ejected",
        "_failed_checks",
        "_good_checks",
        "_heard_at",
        "_rest_until",
        "_returned_at",
        "_waiting",
        "_waiting_since",
        "settings",
    )

    def __init__(self, settings: Health, chance: Callable[[], float] = random.random) -> None:
        """`chance`: from 0 to 1, spreads the returns of many proxies."""
        self.settings = settings
        self._breaker = Breaker(settings, chance)
        self._ejected = False
        self._failed_checks = 0  # in a row
        self._good_checks = 0  # in a row
        self._doubtful = False  # a check has failed since the last good one
        self._rest_until = 0.0
        self._returned_at = -math.inf
        self._heard_at = -math.inf  # the last sign of life of any kind
        self._waiting = 0  # requests without a first byte
        self._waiting_since = 0.0  # since when there have been some

    def adopt(self, settings: Health) -> None:
        """Judge by these settings from now on. What was found out stays."""
        if settings != self.settings:
            self.settings = settings
            self._breaker.adopt(settings)

    # What ranking asks

    def may_take(self, now: float) -> bool:
        """Whether a request may be sent there: not ejected, not resting, and the breaker closed or its place free."""
        return not self._ejected and now >= self._rest_until and self._breaker.may_take(now)

    def looks_alive(self) -> bool:
        """A resting one does: it answered, and said when to come back."""
        return not self._ejected and self._breaker.is_closed

    def is_ejected(self) -> bool:
        return self._ejected

    def rests_until(self, now: float) -> float:
        """A monotonic moment; 0 when it does not rest."""
        return self._rest_until if now < self._rest_until else 0.0

    def share(self, now: float) -> float:
        """Of what it would take otherwise: less than 1 for `slow_start` after a return, as its caches are cold.

        All of it while the breaker is half-open: one request at a time is little already, and with a small share other
        backends would be preferred for as long as they are not busy, and none would ever try it.
        """
        if self._ejected:
            return SMALLEST_SHARE
        if not self._breaker.is_closed:
            return 1.0
        age_s = now - self._returned_at
        if age_s >= self.settings.slow_start:
            return 1.0
        return max(SMALLEST_SHARE, age_s / self.settings.slow_start)

    def state(self, now: float) -> State:
        if self._ejected:
            return State.EJECTED
        circuit = self._breaker.circuit(now)
        if circuit is not Circuit.CLOSED:
            return State.OPEN if circuit is Circuit.OPEN else State.HALF_OPEN
        return State.RESTING if now < self._rest_until else State.WELL

    def silent_since(self) -> float | None:
        """Since when requests have waited there for a first byte without anything coming; None: none waits."""
        return max(self._heard_at, self._waiting_since) if self._waiting else None

    # What requests tell

    def begin(self, now: float) -> int:
        """A request is sent there. Returns what its end is to be told with."""
        if not self._waiting:
            self._waiting_since = now
        self._waiting += 1
        return self._breaker.begin(now)

    def succeeded(self, now: float, spell: int | None = None) -> None:
        """The first byte of a good answer came."""
        self._over()
        self._heard_at = now
        was_closed = self._breaker.is_closed
        self._breaker.succeeded(now, spell)
        if self._breaker.is_closed and not was_closed:
            self._returned_at = now

    def failed(self, now: float, spell: int | None = None) -> None:
        """Refused, reset, late, or a 500, 502, 503, 504 or 529. A refusal that says when to come back is no failure but
        a `rest`, and this is then `ended`: else five requests that meet one full server would close it for all."""
        self._over()
        self._breaker.failed(now, spell)

    def ended(self, now: float, spell: int | None = None) -> None:
        """The request was given up, or got an answer that says nothing of the backend, such as the caller's own 4xx."""
        self._over()
        self._breaker.ended(now, spell)

    def heard(self, now: float) -> None:
        """Any byte came. To be called for pieces of an answer, too, where that costs nothing."""
        self._heard_at = now

    def rest(self, until: float) -> None:
        """Its key is limited until this monotonic moment; of several the last one counts."""
        self._rest_until = max(self._rest_until, until)

    # What active checks tell

    def checked(self, is_well: bool, now: float) -> None:
        """A check was answered, or refused."""
        if not is_well:
            self._check_failed()
            return
        self._heard_at = now
        self._failed_checks = 0
        self._good_checks += 1
        if self._ejected and self._good_checks < self.settings.healthy_after:
            return
        if self._ejected:
            self._ejected = False
            self._returned_at = now
        if self._doubtful:
            self._doubtful = False
            self._breaker.try_now(now)

    def unanswered(self, asked_at: float) -> bool:
        """A check that was sent at `asked_at` has had no answer in time. The backend may be frozen, or busy: it is busy
        if anything has come from it since. Returns whether this counts as a failed check."""
        is_silent = self._heard_at < asked_at
        if is_silent:
            self._check_failed()
        return is_silent

    def _check_failed(self) -> None:
        self._doubtful = True
        self._good_checks = 0
        self._failed_checks += 1
        if self._failed_checks >= self.settings.unhealthy_after:
            self._ejected = True

    def _over(self) -> None:
        self._waiting = max(0, self._waiting - 1)


def choose(vitals: Sequence[Vitals], settings: Health, now: float) -> list[Vitals]:
    """Those that may be asked now; in panic all that do not rest.

    Panic is when none looks alive, or less than the share `settings.panic`: it is likelier then that the checks or our
    own network are broken than that all backends are, and with nobody to ask, asking a dead one costs nothing. So it
    ignores ejection and open breakers. It does not ignore a rest: a limited key has told that it works, that the next
    request is refused, and when to come back; asking all the same may prolong that. Nor does it know of drains and
    hours, which are the operator's word: leave those out before. Where another pool may serve the request, ask it
    before you ask a pool that is in panic.
    """
    able = [one for one in vitals if one.may_take(now)]
    if len(able) == len(vitals):
        return able
    alive = sum(one.looks_alive() for one in vitals)
    if alive and alive >= settings.panic * len(vitals):
        return able
    return [one for one in vitals if not one.rests_until(now)]
