"""A circuit breaker: a backend that failed several requests in a row is left alone, then tried by single ones.

    closed      every request may go there; `failures` in a row open it
    open        none may, for `open` seconds
    half-open   one at a time; `successes` close it, a failure opens it again, for twice as long

The rule: what was sent before the breaker changed its mind says nothing about now. Requests carry the spell in which
they were sent, and of another spell's only a good answer in the closed state is heard.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from semcache.config import Health

# Many proxies that saw the same backend fail do not come back to it in the same moment: up to a fifth later.
_SPREAD = 0.2

# An outage of an hour costs a failed request every two minutes instead of every half. No longer than that, as where
# there are no active checks these requests are the only way to see that it is back.
_LONGEST_WAIT = 4  # times `open`

# A trial without a result for so long no longer keeps others away: it may hang for all of `first_byte`.
TRIAL_S = 30.0

UNPLACED = 0  # the spell of requests that were sent although nothing should be: in panic


class Circuit(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """Every `now` is monotonic seconds, and none is before the last."""

    __slots__ = ("_chance", "_closed", "_failures", "_good", "_settings", "_spell", "_trying", "_until", "_wait_s")

    def __init__(self, settings: Health, chance: Callable[[], float]) -> None:
        """`chance`: from 0 to 1."""
        self._settings = settings
        self._chance = chance
        self._spell = 1
        self._closed = True
        self._failures = 0  # in a row
        self._good = 0  # answers since it opened
        self._trying = False  # the place of the half-open state is taken
        self._until = 0.0  # not closed: nobody may try before; with a trial under way: nobody else
        self._wait_s = settings.open

    def adopt(self, settings: Health) -> None:
        """Judge by these settings from now on; a wait that has begun goes on to its end."""
        self._settings = settings
        self._wait_s = settings.open

    @property
    def is_closed(self) -> bool:
        return self._closed

    def circuit(self, now: float) -> Circuit:
        if self._closed:
            return Circuit.CLOSED
        return Circuit.HALF_OPEN if self._trying or now >= self._until else Circuit.OPEN

    def may_take(self, now: float) -> bool:
        return self._closed or now >= self._until

    def begin(self, now: float) -> int:
        """A request is sent. Returns its spell; one that was sent although `may_take` was false is UNPLACED."""
        if self._closed:
            return self._spell
        if now < self._until:
            return UNPLACED
        self._spell += 1
        self._trying = True
        self._until = now + TRIAL_S
        return self._spell

    def succeeded(self, now: float, spell: int | None) -> None:
        if self._closed:
            self._failures = 0
            return
        is_trial = self._trying and spell in (None, self._spell)
        if not is_trial and spell not in (None, UNPLACED):
            return
        self._good += 1
        if self._good >= self._settings.successes:
            self._close()
        elif is_trial:
            self._trying, self._until = False, now
        elif not self._trying:
            self._until = min(self._until, now)  # a request in panic has shown that it is worth a trial

    def failed(self, now: float, spell: int | None) -> None:
        if spell not in (None, self._spell):
            return
        if self._closed:
            self._failures += 1
            if self._failures >= self._settings.failures:
                self._open(now)
        elif self._trying:
            self._open(now)

    def ended(self, now: float, spell: int | None) -> None:
        """Neither good nor bad: a trial's place is free again."""
        if self._trying and spell in (None, self._spell):
            self._trying, self._until = False, now

    def try_now(self, now: float) -> None:
        """There is other evidence that it is back: half-open at once."""
        if not self._closed and not self._trying:
            self._until = min(self._until, now)

    def _open(self, now: float) -> None:
        self._spell += 1
        self._closed = False
        self._trying = False
        self._good = 0
        self._until = now + self._wait_s * (1 + _SPREAD * self._chance())
        self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT * self._settings.open)

    def _close(self) -> None:
        self._spell += 1
        self._closed = True
        self._trying = False
        self._failures = 0
        self._wait_s = self._settings.open
