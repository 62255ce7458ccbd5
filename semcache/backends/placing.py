"""Placing: which backend a request gets a place at, and where it waits for one.

A pool that has no place for a request is passed by for the next one of its way; where `overflow.queue` lets it wait
here, it waits. Health comes before preference: a later pool that is well is asked before an earlier one in panic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import NamedTuple

from semcache.backends.balance import Asked, expected_s, rank
from semcache.backends.fleet import Fleet, PoolState
from semcache.backends.prefix import chain, prompt_of
from semcache.backends.routing import BYTES_PER_TOKEN, Option, Way
from semcache.backends.state import BackendState
from semcache.backends.target import Target
from semcache.backends.waiting import Priority, Turn
from semcache.config import Pool
from semcache.errors import Overloaded


@dataclass(slots=True)
class Search:
    """For places for one request."""

    way: Way
    priority: Priority
    is_nearest_first: bool
    prompt: bytes  # the body, as it is sent
    model: str | None = None
    is_optional: bool = False  # then only backends that are well are asked
    tried: set[str] = field(default_factory=set)  # backends that have been asked for it
    passed: set[str] = field(default_factory=set)  # pools in which it has waited long enough
    _chunks: dict[int, tuple[int, ...]] = field(default_factory=dict)  # by size

    def asked(self, pool: Pool) -> Asked:
        """What ranking reads of the request. A prompt is hashed where that matters, once."""
        chunks: tuple[int, ...] = ()
        if pool.balance == "prefix":
            size = pool.prefix.chunk
            if size not in self._chunks:
                self._chunks[size] = chain(prompt_of(self.prompt, self.model), size)
            chunks = self._chunks[size]
        return Asked(self.tokens, chunks)

    @property
    def tokens(self) -> int:
        return len(self.prompt) // BYTES_PER_TOKEN


class Place(NamedTuple):
    """A place at a backend, taken."""

    state: BackendState
    target: Target
    asked: Asked
    model: str | None  # whose answer this will be; None: of the model that was asked for
    spell: int  # what the end of the request is told to the backend's vitals with


class Placing:
    def __init__(self, fleet: Fleet, chance: Random) -> None:
        self._fleet = fleet
        self._chance = chance
        self.overflows = 0
        self.refused = 0

    def pick(self, search: Search, turn: Turn | None = None) -> Place | None:
        """Take a place at the backend that is ranked first, of the first pool that has one. None: wait, or give up.

        `turn`: the right to look before those who came later.
        """
        options = self._in_order(search)
        for find in self._finders(search):
            is_anybody_able = False
            for number, option in enumerate(options):
                pool = self._fleet.pool(option.pool)
                later = options[number + 1 :]
                able = find(option, search.tried)
                is_anybody_able |= bool(able)
                free = [state for state in able if state.has_room()]
                if not free or not pool.room.may_pass(search.priority, turn):
                    if able and later and self._waits_here(search, option, pool):
                        return None
                elif self._is_slow(search, pool, free) and self._has_place(search, later):
                    self.overflows += 1
                else:
                    return self._take(search, option, pool, free)
            if is_anybody_able:  # they are only full: wait for one that is well, rather than ask one that is not
                return None
        return None

    def is_anybody_left(self, search: Search) -> bool:
        """Whether there are backends that could be asked, now or when they have room."""
        options = self._in_order(search)
        return any(find(option, search.tried) for find in self._finders(search) for option in options)

    async def place(self, search: Search) -> Place:
        """Take a place, or wait for one. Raises Overloaded where there is none, or none in time."""
        turn: Turn | None = None
        while (place := self.pick(search, turn)) is None:
            turn = await self._wait(search, turn)
        return place

    def give_back(self, place: Place, *, is_tunnel: bool = False) -> None:
        place.state.finish(is_tunnel=is_tunnel)
        self._fleet.wake(place.target.pool)

    def _take(self, search: Search, option: Option, pool: PoolState, free: Sequence[BackendState]) -> Place:
        settings, now = pool.settings, self._fleet.clock()
        asked = search.asked(settings)
        best = next(iter(rank(settings.balance, free, asked, settings.prefix, now, self._chance)))
        spell = best.begin(search.tokens, now)
        target = next(target for target in option.targets if pool.find(target) is best)
        return Place(best, target, asked, option.model, spell)

    async def _wait(self, search: Search, turn: Turn | None) -> Turn | None:
        """Wait for a turn to look again, in the first pool that is merely full and lets one more wait.

        None: look again without one, for there is a place in a later pool than the one that was waited in.
        """
        options = self._in_order(search)
        full: list[Option] = []
        for find in self._finders(search):
            full = full or [option for option in options if find(option, search.tried)]
        refusal: Overloaded | None = None
        for number, option in enumerate(full):
            pool = self._fleet.pool(option.pool)
            is_last = option is full[-1]  # then its queue is where to wait, however long it is
            was_here = turn is not None and turn.room is pool.room
            if not was_here and not is_last and not self._waits_here(search, option, pool):
                continue
            if refusal is not None and self._has_place(search, (option,)):
                return None
            try:
                # A place in a pool that it would prefer is as good as one here.
                can_go = partial(self._could_go, search, full[: number + 1])
                return await pool.room.wait(search.priority, turn=turn, can_go=can_go)
            except Overloaded as exc:
                search.passed.add(option.pool)
                refusal, turn = exc, None
        self.refused += 1
        if refusal is not None:
            raise refusal
        raise Overloaded("no backend takes requests now", retry_after_s=self._fleet.rests_s(options) or 1.0)

    def _waits_here(self, search: Search, option: Option, pool: PoolState) -> bool:
        """Whether the pool's queue is short enough to wait in, though a later pool may have a place."""
        limit = pool.settings.overflow.queue
        return limit is not None and pool.room.waiting < limit and option.pool not in search.passed

    def _has_place(self, search: Search, options: Sequence[Option]) -> bool:
        return any(state.has_room() for option in options for state in self._fleet.well(option, search.tried))

    def _could_go(self, search: Search, options: Sequence[Option]) -> bool:
        """Whether a look for a place is worth it, for one who waits."""
        for find in self._finders(search):
            able = [state for option in options for state in find(option, search.tried)]
            if able:
                return any(state.has_room() for state in able)
        return False

    def _finders(self, search: Search) -> Sequence[Callable[[Option, set[str]], list[BackendState]]]:
        """Who is asked, and who is if there are none of those."""
        return (self._fleet.well,) if search.is_optional else (self._fleet.well, self._fleet.in_panic)

    def _is_slow(self, search: Search, pool: PoolState, free: Sequence[BackendState]) -> bool:
        """Whether even the quickest of these is expected to begin later than the pool's overflow says."""
        limit_s = pool.settings.overflow.ttft
        if limit_s is None:
            return False
        asked, now = Asked(search.tokens), self._fleet.clock()
        expected = [expected_s(state, asked, now) for state in free]
        return all(ttft_s is not None and ttft_s > limit_s for ttft_s in expected)

    def _in_order(self, search: Search) -> Sequence[Option]:
        options = [option for option in search.way.options if self._fleet.has(option.pool)]
        if not search.is_nearest_first or len(options) < 2:
            return options
        return sorted(options, key=self._fleet.distance_s)  # stable: equals stay as they are written
