"""BOUND: serve only so many semantic hits that at most `match.max_error` of them are wrong, as evidence shows it.

Each candidate gets a probability from what speaks for it (witnesses.py). It is served above a cut, and the cut lies
where an upper confidence bound of the error among hits stays below what was asked (calibration.py). Evidence is of
three kinds. A request that is forwarded anyhow brings its fresh answer for free, so everything below the cut is known.
Of would-be hits a small share is forwarded all the same: more of those near the cut, where most is to be learned, and
some of the sure ones, to stay sure. What callers say of hits goes into the record of the entry.

Evidence is learned from in two places: the traffic of one scope (its group), and that of all scopes of its tenant. A
group follows its own evidence once that suffices; before, it follows its tenant's, unless its own speaks against it. No
tenant learns from another, for what one's answers agree on says nothing of the other's, and could be made up. Where
neither supports the bound, nothing is served by meaning. Should explored hits be wrong more often than allowed, the cut
aims lower until they are not, so that a change in traffic is felt before its evidence is complete (adaptive conformal
inference: Gibbs and Candes 2021). That a bound is kept per served answer, and not per request, is what sets this apart
from vCache (Schroeder et al. 2025), whose learned threshold for each entry it otherwise follows.

Fits run on a thread. Deciding reads what the last fit left: some 20 microseconds on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import ceil, exp, isfinite
from typing import NamedTuple

import numpy as np
from cachetools import LRUCache

from semcache.cache import calibration
from semcache.cache.bound_evidence import FAR_TIMES, NEAR_TIMES, REFIT_AT_LEAST, WIDTH, Evidence, as_rows, learn
from semcache.cache.calibration import Cut, Floats
from semcache.cache.kinship import Kin
from semcache.cache.recent_rows import Rows
from semcache.cache.witnesses import NAMES, Record, scaled
from semcache.types import How, Observation, Occasion, Reason, Scope

log = logging.getLogger(__name__)

PRECISION = 1.0  # of the prior: one standard step of a feature is worth a factor of e either way
GROUP_PRECISION = 10.0  # of a group's prior, which is what the evidence of all its tenant's groups says
NEAR = 1.0  # log-odds above the cut: up to here `match.explore` counts NEAR_TIMES, further up FAR_TIMES
CREDIT = 10.0  # explorations that may be saved up: with one, chance would leave a third of the share unused
GROUPS = 200  # with evidence of their own, and as many tenants; 0.45 MB each when full, 180 MB in all
HOME_BYTES = 8  # of a group's name: those of its tenant
RECORDS = 50_000  # entries
DAY_S = 86400
_COUNTED = ("served", "explored", "audited", "below_cut", "without_evidence", "unsound", "fits", "faults")
RECALL_ROWS = 100  # observations taken up at once: two milliseconds of the event loop
RECALL_FIT = 2000  # ... and so many between two fits meanwhile


def group_of(scope: Scope) -> bytes:
    """16 bytes that name the traffic of a scope, and do not tell whose it is. The first 8 are the same for all scopes
    of a tenant, or of all who share."""
    rest = "\0".join((scope.namespace, scope.dialect, scope.endpoint, scope.model))
    return _name(scope.tenant) + _name(rest)


def _name(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, person=b"semcache-group").digest()


@dataclass(frozen=True, slots=True)
class Limits:
    """What a route wants, from its `match` section."""

    max_error: float
    explore: float  # share of would-be hits that may be forwarded to learn
    explore_usd: float | None = None  # a day, for all routes together; None: no limit


class Decision(NamedTuple):
    """What becomes of a candidate that has no objection against it."""

    probability: float
    reason: Reason | None  # None: serve it
    occasion: Occasion = Occasion.MISS
    share: float = 1.0  # of such requests that are forwarded


_UNSOUND = Decision(0.0, Reason.BOUND)


class Opinion(NamedTuple):
    """What the evidence of a group supports, for people."""

    observed: int  # in the group
    observed_of_tenant: int  # in all groups of its tenant
    cut: Cut | None
    is_own: bool  # it rests on the group's own evidence
    needed: int  # comparisons without an error that would prove the bound, at least


_NONE = Evidence()  # of those that have none; nothing is ever added to it


class Bound:
    """All state belongs to the event loop; a thread fits copies of it."""

    def __init__(
        self,
        stamp: str,
        kin: Kin,
        clock: Callable[[], float],
        chance: Callable[[], float] = random.random,
        bounds: Iterable[float] = (),
    ) -> None:
        """`stamp`: of what makes features (embedder, judge): evidence of another kind is left aside. `clock`: unix
        seconds. `chance`: uniform in [0, 1), decides what is explored. `bounds`: that will be asked for; another is
        fitted for once it is.
        """
        self.mark = float(int.from_bytes(blake2b(repr((stamp, NAMES)).encode(), digest_size=3).digest()))
        self.kin = kin
        self._clock = clock
        self._chance = chance
        self._groups: LRUCache[bytes, Evidence] = LRUCache(GROUPS)  # by what `group_of` says
        self._homes: LRUCache[bytes, Evidence] = LRUCache(GROUPS)  # by its first bytes
        self._records: LRUCache[bytes, Record] = LRUCache(RECORDS)
        self._bounds = set(bounds)  # every max_error that was asked for
        self._credit = 1.0  # explorations that the share allows, saved up to a few
        self._spent_day, self._spent_usd = 0, 0.0
        self._fitting = asyncio.Lock()
        self._due = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._task: asyncio.Task[None] | None = None
        self._count: Counter[str] = Counter()

    # Deciding

    def record(self, entry_key: bytes) -> Record:
        return self._records.get(entry_key) or Record()

    def decide(self, group: bytes, features: Sequence[float], limits: Limits) -> Decision:
        """Whether the candidate that these features speak for is served, explored or refused."""
        if not isfinite(sum(features)):  # a witness that is no number speaks for nothing
            self._count["unsound"] += 1
            return _UNSOUND
        x: Floats = scaled(np.array([features]))[0]
        for evidence in (self._groups.get(group), self._homes.get(group[:HOME_BYTES])):
            if evidence is not None:  # only evidence makes a group: whoever makes up namespaces pushes none out
                evidence.traffic.append(x)
        bound = limits.max_error
        if bound not in self._bounds:
            self._bounds.add(bound)
            for evidence in (*self._groups.values(), *self._homes.values()):
                evidence.make_due()  # fit for this bound, too
            self._call_for_a_fit()
        decision, above_cut = self._judge(x, group, bound)
        if decision.reason is not None:
            self._count["below_cut" if above_cut is not None else "without_evidence"] += 1
            return decision
        assert above_cut is not None
        is_near = above_cut < NEAR
        share = min(1.0, limits.explore * (NEAR_TIMES if is_near else FAR_TIMES))
        self._credit = min(CREDIT, self._credit + limits.explore)
        if self._credit >= 1.0 and self._chance() < share and self._may_spend(limits):
            self._credit -= 1.0
            self._count["explored" if is_near else "audited"] += 1
            occasion = Occasion.EXPLORE if is_near else Occasion.AUDIT
            return Decision(decision.probability, Reason.EXPLORING, occasion, share)
        self._count["served"] += 1
        return decision

    def preview(self, group: bytes, features: Sequence[float], limits: Limits) -> Decision:
        """What `decide` would say, exploring aside. Leaves no trace."""
        if not isfinite(sum(features)):
            return _UNSOUND
        x: Floats = scaled(np.array([features]))[0]
        return self._judge(x, group, limits.max_error)[0]

    def _judge(self, x: Floats, group: bytes, bound: float) -> tuple[Decision, float | None]:
        """Serve or refuse, and how far above the cut the candidate is; None: there is no cut."""
        cut, weights, _ = self._standing(group, bound)
        if weights is None:
            return Decision(0.5, Reason.BOUND), None
        score = float(x @ weights)
        probability = 1 / (1 + exp(-max(-30.0, min(30.0, score))))
        if cut is None:
            return Decision(probability, Reason.BOUND), None
        return Decision(probability, None if score >= cut.score else Reason.BOUND), score - cut.score

    def opinion(self, group: bytes, max_error: float) -> Opinion:
        cut, _, is_own = self._standing(group, max_error)
        needed = ceil(calibration.upper_rate(0, 1_000_000) * 1_000_000 / max_error)
        own = self._groups.get(group) or _NONE
        return Opinion(len(own.pairs), len(self._home(group).pairs), cut, is_own, needed)

    def paid(self, usd: float) -> None:
        """An answer was fetched to learn, and cost this."""
        day = int(self._clock() // DAY_S)
        if day != self._spent_day:
            self._spent_day, self._spent_usd = day, 0.0
        self._spent_usd += usd

    def _may_spend(self, limits: Limits) -> bool:
        return limits.explore_usd is None or self._spent_today() < limits.explore_usd

    def _spent_today(self) -> float:
        return self._spent_usd if self._spent_day == int(self._clock() // DAY_S) else 0.0

    def _home(self, group: bytes) -> Evidence:
        """Of all scopes of the group's tenant together."""
        return self._homes.get(group[:HOME_BYTES]) or _NONE

    def _standing(self, group: bytes, bound: float) -> tuple[Cut | None, Floats | None, bool]:
        """The cut that holds for a group, the weights it is meant for, and whether they are its own.

        1. Its own, where its evidence proves one.
        2. None, where its evidence would have proved one by now, if there were one; or speaks against its tenant's.
        3. That of all scopes of its tenant.
        """
        own, home = self._groups.get(group) or _NONE, self._home(group)
        cut = own.cuts.get(bound)
        if cut is not None:
            return cut, own.weights, True
        could_have = len(own.pairs) * bound > 15  # five times what no error at all would prove the bound with
        if own.weights is not None and (could_have or own.is_doubted.get(bound)):
            return None, own.weights, True
        return home.cuts.get(bound), home.weights, False

    # Learning

    def observe(self, observations: Iterable[Observation]) -> None:
        """New evidence, of this process or another. Returns at once; what it changes is felt after the next fit.

        Some 15 us each, on the event loop: for many, there is `recall`.
        """
        self._take(observations)
        if any(evidence.is_due for evidence in (*self._homes.values(), *self._groups.values())):
            self._call_for_a_fit()

    async def recall(self, observations: Sequence[Observation]) -> None:
        """The same for what was learned before this start, the oldest first: in pieces, between which others run."""
        for start in range(0, len(observations), RECALL_ROWS):
            self._take(observations[start : start + RECALL_ROWS])
            if start % RECALL_FIT == 0:  # as it was fitted then, so that what depends on fits comes out the same
                await self._try_to_fit()
            await asyncio.sleep(0)
        self._call_for_a_fit()

    def _take(self, observations: Iterable[Observation]) -> None:
        told = list(observations)
        for it in told:
            self._remember(it)
        for it, pair in as_rows(told, self.mark):
            for evidence in (
                self._groups.setdefault(it.group, Evidence()),
                self._homes.setdefault(it.group[:HOME_BYTES], Evidence()),
            ):
                evidence.add(it, pair, self._bounds)

    def _remember(self, it: Observation) -> None:
        right, wrong = self.record(it.entry_key)
        self._records[it.entry_key] = Record(right + it.same, wrong + (not it.same))
        if it.same and it.how is not How.FEEDBACK and it.asked != it.entry_key:
            self.kin.join(it.entry_key, it.asked)

    def start(self) -> None:
        self._task = asyncio.create_task(self._fit_when_due())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def idle(self) -> None:
        """Wait until no fit is due or under way. For one that has been started."""
        await self._is_idle.wait()

    def _call_for_a_fit(self) -> None:
        self._due.set()
        self._is_idle.clear()

    async def _fit_when_due(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            await self._try_to_fit()
            if not self._due.is_set():  # else evidence has come meanwhile
                self._is_idle.set()

    async def _try_to_fit(self) -> None:
        try:
            await self.fit()
        except Exception as exc:  # the top of a background loop: the last fit stays
            self._count["faults"] += 1
            log.error("fitting the error bound failed unexpectedly: %s", type(exc).__name__)

    async def fit(self) -> None:
        """Learn from what is new. The tenants' evidence first: it is what each group starts from."""
        async with self._fitting:
            for home in [home for home in self._homes.values() if home.is_due]:
                if len(home.pairs) >= REFIT_AT_LEAST:
                    await self._fit(home, np.zeros(WIDTH), PRECISION)
            for group, own in [each for each in self._groups.items() if each[1].is_due]:
                home = self._home(group)
                if home.weights is not None:
                    pairs = await self._fit(own, home.weights, GROUP_PRECISION)
                    for bound in self._bounds:
                        own.is_doubted[bound] = home.is_wrong_too_often(pairs, bound)

    async def _fit(self, evidence: Evidence, prior: Floats, precision: float) -> Rows:
        """Return the pairs that it was fitted to."""
        evidence.new = 0
        pairs, traffic = evidence.pairs.copy(), evidence.traffic.copy()
        aims = {bound: bound * evidence.aims.get(bound, 1.0) for bound in self._bounds}
        evidence.weights, evidence.cuts = await asyncio.to_thread(
            learn, pairs, traffic, prior, precision, evidence.weights, aims
        )
        self._count["fits"] += 1
        return pairs

    def stats(self) -> dict[str, float]:
        homes = list(self._homes.values())
        return {
            **dict.fromkeys(_COUNTED, 0),
            **self._count,
            "groups": len(self._groups),
            "observations": sum(len(home.pairs) for home in homes),
            "kin": len(self.kin),
            "bounds": len(self._bounds) * max(len(homes), 1),  # each for every tenant with evidence
            "bounds_held": sum(cut is not None for home in homes for cut in home.cuts.values()),
            "spent_usd": self._spent_today(),
        }
