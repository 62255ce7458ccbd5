"""VERIFY: from candidates to a match.

A candidate lies in the request's own partition and is near, which makes it no answer yet. The nearest that nothing
speaks against becomes the match, if enough speaks for it: its similarity, or under an error bound the evidence
(`weigh`, and bound.py). Who may object, in the order in which they are heard:

1. `find_objection`: callers who called it wrong, the guards, the turns before the question, too few vouchers, the pair
   judge, and its own words, where they are for one person only.
2. `match`: its age, which may be too high for the operator or for this caller.
3. `_rerank`: the reranker, once the others are content, for it takes milliseconds. Without an error bound it is heard
   before 2, which then chooses between fresh and stale.

Each may object, and none can insist. Doubt about an answer is a miss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from math import exp, log
from time import perf_counter
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from semcache.cache.bound import Bound, group_of
from semcache.cache.conversation import Past, find_context_objection
from semcache.cache.guards import find_veto
from semcache.cache.kinship import Kin
from semcache.cache.personal import find_personal
from semcache.cache.policy import Ruling
from semcache.cache.provenance import may_be_given
from semcache.cache.quarantine import Quarantine
from semcache.cache.reranker import Rerankers
from semcache.cache.witnesses import Neighbour, read_witnesses
from semcache.errors import RerankerFault
from semcache.types import CLOCK_SKEW_S, Candidate, Considered, Entry, Finding, Key, Match, Reason, Tier, Vector


class Entries(Protocol):
    """The store, as far as LOOKUP and VERIFY need it."""

    def get(self, seq: int) -> Entry | None: ...

    async def read(self, seq: int) -> Entry | None: ...

    def touch(self, seq: int) -> None: ...


class Judge(Protocol):
    @property
    def stamp(self) -> str: ...

    def judge(
        self,
        asked: str,
        vector: Vector,
        stored: Sequence[str],
        vectors: NDArray[np.float32],
        *,
        guards_passed: bool = False,
    ) -> NDArray[np.float32]:
        """For each stored question the probability, shape (n,), that its answer serves. `vectors`: shape (n, d)."""


class NoJudge:
    """Knows nothing about any pair."""

    stamp = "none"

    def judge(
        self,
        asked: str,
        vector: Vector,
        stored: Sequence[str],
        vectors: NDArray[np.float32],
        *,
        guards_passed: bool = False,
    ) -> NDArray[np.float32]:
        return np.full(len(stored), 0.5, np.float32)


class Asked(NamedTuple):
    """A question as it is compared with stored ones."""

    question: str
    vector: Vector
    past: Past
    key: Key


class Verifier:
    def __init__(
        self,
        entries: Entries,
        clock: Callable[[], float],
        quarantine: Quarantine | None = None,
        judge: Judge = NoJudge(),
        bound: Bound | None = None,
        rerankers: Rerankers | None = None,
    ) -> None:
        """`quarantine`: what feedback keeps from being served; None: nothing. `bound`: for routes with an error bound;
        None: one that never sees evidence, and so serves nothing. `rerankers`: those that routes name.
        """
        self._entries = entries
        self._clock = clock
        self._quarantine = Quarantine() if quarantine is None else quarantine
        self._judge = judge
        self.bound = Bound("", Kin(lambda entry: None), clock) if bound is None else bound
        self._decide = self.bound.decide
        self._rerankers = Rerankers({}) if rerankers is None else rerankers

    def looking_on(self, entries: Entries) -> Verifier:
        """The same on another view of the store, for one who only looks: nothing is learned or explored."""
        other = copy(self)
        other._entries = entries
        other._decide = self.bound.preview
        return other

    async def verify(self, asked: Asked, candidates: Sequence[Candidate], ruling: Ruling) -> Finding:
        """`candidates`: nearest first. Raises CacheFault when an entry cannot be read."""
        if ruling.limits is None:
            return await self._verify_by_threshold(asked, candidates, ruling)
        return await self._verify_within_bound(asked, candidates, ruling)

    async def _verify_by_threshold(self, asked: Asked, candidates: Sequence[Candidate], ruling: Ruling) -> Finding:
        """The nearest candidate above the threshold that nothing speaks against."""
        begun = perf_counter()
        considered: list[Considered] = []
        stale: Match | None = None
        first: Reason | None = None  # why the nearest was refused
        for candidate in candidates:
            if candidate.similarity < ruling.floor:
                first = first or Reason.BELOW_THRESHOLD
                break
            entry = await self.read(candidate.seq)
            if entry is None:  # purged or damaged since the search: it was never there
                continue
            is_near = candidate.similarity >= ruling.threshold
            objection = self.find_objection(asked, candidate, entry, ruling) if is_near else Reason.BELOW_THRESHOLD
            if objection is None:
                objection = await self._rerank(asked, candidate, entry, ruling, begun)
            considered.append(Considered(entry, candidate.similarity, objection))
            match = objection or self.match(entry, _tier(asked, entry), candidate.similarity, ruling)
            if isinstance(match, Reason):
                first = first or match
            elif not match.is_stale:
                return Finding(match, considered=tuple(considered))
            else:
                stale = stale or match  # a fresh one a little further away is better
        return Finding(stale, None if stale else first or Reason.NO_ENTRY, considered=tuple(considered))

    async def _verify_within_bound(self, asked: Asked, candidates: Sequence[Candidate], ruling: Ruling) -> Finding:
        """The nearest candidate that nothing speaks against, if the evidence allows it; see bound.py."""
        assert ruling.limits is not None
        begun = perf_counter()
        near = []
        for candidate in candidates:
            entry = await self.read(candidate.seq) if candidate.similarity >= ruling.floor else None
            if entry is not None:
                near.append((candidate, entry))
        first: Reason | None = None
        refused: list[Considered] = []
        for candidate, entry in near[: ruling.neighbours]:
            if candidate.similarity < ruling.threshold:  # a caller's: the others are witnesses
                break
            objection = self.find_objection(asked, candidate, entry, ruling)
            match = objection or self.match(entry, _tier(asked, entry), candidate.similarity, ruling)
            if isinstance(match, Reason):
                first = first or match
                if not ruling.may_serve:  # shadow mode counts what each of its voices refused
                    refused.append(Considered(entry, candidate.similarity, match))
                continue
            if match.tier is Tier.EXACT:
                return Finding(match)
            features = self.weigh(asked, candidate, entry, near, guards_passed=ruling.asks_all_guards)
            group = group_of(entry.scope)
            decision = self._decide(group, features[1:], ruling.limits)
            if decision.reason is None and (objection := await self._rerank(asked, candidate, entry, ruling, begun)):
                decision = decision._replace(reason=objection)
            proposed = Considered(entry, candidate.similarity, decision.reason, decision.probability, features)
            considered = (*refused, proposed)
            if decision.reason is None:
                return Finding(match, considered=considered)
            return Finding(
                None,
                decision.reason,
                considered=considered,
                occasion=decision.occasion,
                share=decision.share,
                instead=match if decision.reason is Reason.EXPLORING else None,
            )
        return Finding(None, first or Reason.BELOW_THRESHOLD, considered=tuple(refused))

    def find_objection(self, asked: Asked, candidate: Candidate, entry: Entry, ruling: Ruling) -> Reason | None:
        """Why a candidate that is near enough must not answer: callers called it wrong, a guard has a veto, the turns
        before differ, it is another tenant's and too few vouch for it, the pair judge doubts it, or it is for one
        person: stored by a version, or under settings, that did not tell.
        """
        is_equal = entry.key.exact == asked.key.exact
        if not is_equal and self._quarantine.refuses(entry.key.exact, asked.key.exact, candidate.similarity):
            return Reason.FEEDBACK
        if entry.question is None:
            return Reason.NO_ENTRY
        if objection := find_veto(asked.question, entry.question, ruling.guards):
            return objection
        if objection := find_context_objection(asked.past, entry, ruling):
            return objection
        if ruling.min_uses != 1 and not may_be_given(entry, ruling):
            return Reason.UNPROVEN
        if ruling.judge is not None and not is_equal:
            odds = self.judge_odds(asked, entry, guards_passed=ruling.asks_all_guards)
            if not odds >= log_odds(ruling.judge):  # NaN is not
                return Reason.JUDGE
        return Reason.PERSONAL if ruling.keeps_personal and find_personal(entry.question) else None

    def weigh(
        self,
        asked: Asked,
        candidate: Candidate,
        entry: Entry,
        near: Sequence[tuple[Candidate, Entry]],
        *,
        guards_passed: bool = False,
    ) -> tuple[float, ...]:
        """What speaks for a candidate, one of `near`: the mark of its kind, then the features of witnesses.py."""
        kin = self.bound.kin
        around = [Neighbour(other.similarity, kin.name(stored)) for other, stored in near]
        features = read_witnesses(
            Neighbour(candidate.similarity, kin.name(entry)),
            around,
            self.judge_odds(asked, entry, guards_passed=guards_passed),
            self.bound.record(entry.key.exact),
            entry.age_s(self._clock()),
        )
        return self.bound.mark, *features

    def judge_odds(self, asked: Asked, entry: Entry, *, guards_passed: bool = False) -> float:
        """The pair judge's log-odds that the stored answer serves. `guards_passed`: every guard there is was asked."""
        if entry.question is None or entry.vector is None:
            return 0.0
        (probability,) = self._judge.judge(
            asked.question,
            asked.vector,
            [entry.question],
            entry.vector[np.newaxis],
            guards_passed=guards_passed,
        )
        return log_odds(float(probability))

    @property
    def has_judge(self) -> bool:
        return not isinstance(self._judge, NoJudge)

    async def _rerank(
        self, asked: Asked, candidate: Candidate, entry: Entry, ruling: Ruling, begun: float
    ) -> Reason | None:
        """The last and dearest word on a candidate. One that cannot be had in time is a no: doubt is a miss."""
        how = ruling.rerank
        is_equal = entry.key.exact == asked.key.exact
        if how is None or is_equal or entry.question is None or candidate.similarity >= how.sure_from:
            return None
        left_s = how.deadline_s - (perf_counter() - begun)
        try:
            (score,) = await self._rerankers[how.model].score([(asked.question, entry.question)], max(left_s, 0.0))
        except RerankerFault:
            return Reason.RERANKER
        return None if score >= how.least else Reason.RERANKER

    def in_memory(self, seq: int) -> Entry | None:
        """None says nothing about entries that are on disk only."""
        return self._entries.get(seq)

    async def read(self, seq: int) -> Entry | None:
        return self._entries.get(seq) or await self._entries.read(seq)

    def match(self, entry: Entry, tier: Tier, similarity: float, ruling: Ruling) -> Match | Reason:
        """The match; or why there is none: the entry is another's, and unproven, or it is too old for the operator
        (ttl, grace) or this caller (max-age, max-stale).
        """
        if ruling.min_uses > 1 and not may_be_given(entry, ruling):
            return Reason.UNPROVEN
        if ruling.regions and entry.region not in ruling.regions:  # its backend has been placed elsewhere since
            return Reason.REGION
        left_s, age_s, too_old = judge_age(entry, ruling, self._clock())
        if too_old is not None:
            return too_old
        self._entries.touch(entry.seq)
        return Match(entry, tier, left_s, age_s, similarity)

    def is_called_wrong(self, match: Match, key: Key) -> bool:
        """Whether callers have called this answer to this question wrong by now."""
        return self._quarantine.refuses(match.entry.key.exact, key.exact, match.similarity)


class Freshness(NamedTuple):
    left_s: float  # of freshness; zero or less: stale, in its grace
    age_s: float
    too_old: Reason | None  # MAX_AGE or EXPIRED; None: it may still be given


def judge_age(entry: Entry, ruling: Ruling, now: float) -> Freshness:
    age_s = entry.age_s(now)
    # A shorter ttl or grace counts for older entries too; an entry from the future is stale at once.
    left_s = min(entry.ttl_s, ruling.ttl_s) - age_s if entry.created_at <= now + CLOCK_SKEW_S else 0.0
    if ruling.max_age_s is not None and age_s > ruling.max_age_s:
        return Freshness(left_s, age_s, Reason.MAX_AGE)
    grace_s = min(entry.grace_s, ruling.grace_s)
    if ruling.max_stale_s is not None:
        grace_s = min(grace_s, ruling.max_stale_s)
    return Freshness(left_s, age_s, Reason.EXPIRED if left_s <= 0 and left_s + grace_s <= 0 else None)


def _tier(asked: Asked, entry: Entry) -> Tier:
    """Equal, though not found as equal: it was stored since, while the question was embedded."""
    return Tier.EXACT if entry.key.exact == asked.key.exact else Tier.SEMANTIC


def log_odds(probability: float) -> float:
    inside = min(max(probability, 1e-6), 1 - 1e-6)
    return log(inside / (1 - inside))


def probability_of(odds: float) -> float:
    return 1 / (1 + exp(-odds))
