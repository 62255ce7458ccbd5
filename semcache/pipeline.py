"""THE LIFE OF A REQUEST, between its arrival (server.py) and its delivery (delivery.py), one function per phase.

    (planning.py)  RULE, KEY, ROUTE: everything that follows from the request's bytes alone, remembered for equal bytes
    respond    decides between:
    _look_up       LOOKUP: exact, then embed -> search -> VERIFY
    _forward       COALESCE: join a flight or lead one
    _fetch         FETCH: the flight's own task has the source (forwarding.py) write the recording
    (keeping.py)   STORE: the write gates, then the entry

What respond returns is something to play: a stored answer, a batch of them, or a recording that is being written.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic
from typing import Protocol

from cachetools import LRUCache

from semcache import keeping
from semcache.cache.agent_loop import digest_of, said_last
from semcache.cache.flight import Flight, Flights
from semcache.cache.lookup import Embedder, Lookup
from semcache.cache.policy import Directives, Ruling, tighten
from semcache.errors import CacheFault, ClientError, SemcacheError, UpstreamError
from semcache.forwarding import Source, answer_limit
from semcache.keeping import Keeping
from semcache.planning import Plan
from semcache.types import (
    FWD,
    Answer,
    Finding,
    Match,
    Occasion,
    Outcome,
    Reason,
    Tier,
    Unstorable,
    Verdict,
)
from semcache.wire.dialect import Dialect, Reading, SpokenDialect
from semcache.wire.recording import Recording

log = logging.getLogger(__name__)

READ_INLINE_BYTES = 32 * 1024  # of a stored answer: one of 1 MB takes 25 ms to read, the first time
SAID = 4096  # answers of which it is remembered what they say, at 200 bytes each
JSON_ACK_S = 0.05  # a JSON answer waits this long for the store's word, to say `stored`; then it leaves without


class Store(keeping.Store, Protocol):
    """What the pipeline needs to keep an answer, and to know that nothing has purged it meanwhile."""

    @property
    def last_seq(self) -> int: ...

    @property
    def last_purge_seq(self) -> int: ...


class Learner(Protocol):
    """Who learns from fresh answers that come where stored ones were near."""

    def learn(self, plan: Plan, finding: Finding, reading: Reading, fetch_s: float) -> None:
        """A request was forwarded that was looked up as `finding` says, and the flight has landed. Returns at once,
        raises nothing. `fetch_s`: from the request to the end of its answer."""


class LearnNothing:
    def learn(self, plan: Plan, finding: Finding, reading: Reading, fetch_s: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Played:
    """A stored answer."""

    match: Match


@dataclass(frozen=True, slots=True)
class PlayedBatch:
    """A stored answer for each item of a batch."""

    matches: Sequence[Match]


@dataclass(frozen=True, slots=True)
class Followed:
    """A recording that is being written. Enter `flight` while following it."""

    flight: Flight[Recording]
    is_relayed: bool  # as it is; else its answer is rendered for this request once it is whole
    is_anothers: bool = False  # another tenant's fetch: his answer is shared, his errors and headers are not
    plan: Plan | None = None  # of the items that are fetched, where the others of a batch are `known`
    known: Sequence[Match | None] = ()  # one for each item of the batch; None: it is fetched
    instead: Match | None = None  # what to play should the fetch fail: it only serves to learn, or is late as it is
    is_stale_instead: bool = False  # that is an old answer, for an upstream in trouble; a 4xx is then the answer


Reply = Played | PlayedBatch | Followed


class Pipeline:
    def __init__(
        self,
        lookup: Lookup,
        embedder: Embedder,
        store: Store,
        clock: Callable[[], float],
        learner: Learner = LearnNothing(),
    ) -> None:
        self._lookup = lookup
        self._learner = learner
        self._store = store
        self._said: LRUCache[str, bytes | None] = LRUCache(SAID)  # entry's id -> digest of its answer's text
        self.flights: Flights[Recording] = Flights()
        self.faults: Counter[str] = Counter()
        self._keeping = Keeping(lookup, embedder, store, clock, self.faults)

    @property
    def stored(self) -> int:
        """Answers kept since the start."""
        return self._keeping.stored

    # The decision

    async def respond(self, plan: Plan, asked: Directives, source: Source, outcome: Outcome) -> Reply:
        """Decide how the request is answered, and say so in `outcome`. `source` is where a fresh answer comes from.

        Raises ClientError when the request must not be forwarded (only-if-cached, a region without a backend).
        """
        ruling = tighten(plan.ruling, asked)
        if plan.items:
            return await self._respond_to_batch(plan, ruling, source, outcome)
        match = self._lookup.find_in_memory(plan.key, ruling) if ruling.skip_lookup is None else None
        if match is not None and ruling.may_serve:  # nine of ten hits, and nothing was waited for
            if not plan.ask.turns:
                return self._serve(plan, ruling, match, source, outcome)
            return await self._answer_with(plan, ruling, match, source, outcome)
        finding = await self._look_up(plan, ruling, outcome)
        if finding.reason is Reason.EXPIRED and ruling.stale_if_error_s > ruling.grace_s:
            finding = finding._replace(instead=await self._look_up_stale(plan, ruling))
        match = finding.match
        if match is not None and ruling.may_serve:
            return await self._answer_with(plan, ruling, match, source, outcome)
        outcome.reason = finding.reason if match is None else Reason.EXPLORING
        outcome.similarity = finding.best_similarity if match is None else match.similarity
        if ruling.only_if_cached:
            raise _not_cached()
        if finding.instead is not None and isinstance(plan.way, SemcacheError):
            return self._serve(plan, ruling, finding.instead, source, outcome)
        reply = self._forward(plan, ruling, finding, source, outcome)
        if not isinstance(reply, Followed) or finding.instead is None:
            return reply
        return replace(reply, instead=finding.instead, is_stale_instead=finding.reason is Reason.EXPIRED)

    async def _respond_to_batch(self, plan: Plan, ruling: Ruling, source: Source, outcome: Outcome) -> Reply:
        """The same for a request of many items: what is stored is played, and only the rest is fetched."""
        known, reason = await self._look_up_items(plan, ruling)
        if not ruling.may_serve:
            known, reason = [None] * len(known), Reason.EXPLORING if any(known) else reason
        matches = [match for match in known if match is not None]
        if len(matches) == len(known):
            return self._serve_batch(plan, ruling, matches, source, outcome)
        outcome.reason = Reason.PARTIAL if matches else reason
        if ruling.only_if_cached:
            raise _not_cached()
        missing = plan.narrow([place for place, match in enumerate(known) if match is None]) if matches else plan
        reply = self._forward(missing, ruling, Finding(None, outcome.reason), source, outcome)
        if not matches or not isinstance(reply, Followed):
            return reply
        return replace(reply, is_relayed=False, plan=missing, known=known)

    def forward_instead(self, plan: Plan, asked: Directives, source: Source, outcome: Outcome) -> Followed:
        """The stored answer turned out to be no good: forward, and let a fresh one replace it."""
        self.faults["unplayable"] += 1
        # It was no hit after all: neither the log nor a caller's feedback may take it for one.
        outcome.tier = outcome.entry_id = outcome.entry_key = outcome.usage = None
        outcome.similarity = outcome.ttl_left_s = outcome.age_s = None
        ruling = replace(tighten(plan.ruling, asked), skip_lookup=Reason.CACHE_FAULT)
        outcome.reason = Reason.CACHE_FAULT
        if ruling.only_if_cached:
            raise _not_cached()
        reply = self._forward(plan, ruling, Finding(None, Reason.CACHE_FAULT), source, outcome)
        assert isinstance(reply, Followed)
        return reply

    async def serve_after_all(
        self, plan: Plan, asked: Directives, match: Match, source: Source, outcome: Outcome
    ) -> Played | None:
        """What was to be learned from a fresh answer is not worth failing a request that has a stored one.

        None where it has it no more: the fetch took its time, and the entry may have been purged or called wrong
        meanwhile. Raises CacheFault.
        """
        if not await self._lookup.still_answers(match, plan.key):
            return None
        outcome.reason, outcome.collapsed = None, False
        # Past its grace it is given for want of a fresh one, which was asked for a moment ago: not at once again.
        is_late = match.ttl_left_s + plan.ruling.grace_s <= 0
        return self._serve(plan, tighten(plan.ruling, asked), match, source, outcome, may_refresh=not is_late)

    def forward_alone(self, plan: Plan, asked: Directives, source: Source, outcome: Outcome) -> Followed:
        """What the flight brought that this request joined is no answer to it: fetch one for it alone."""
        ruling = replace(tighten(plan.ruling, asked), may_coalesce=False)
        outcome.collapsed = False
        reply = self._forward(plan, ruling, Finding(None, outcome.reason), source, outcome)
        assert isinstance(reply, Followed)
        return reply

    def learned(self, plan: Plan) -> Unstorable | None:
        """Why answers to this were found not to be storable, a short while ago; None where they were not."""
        return self._keeping.why_never(plan.key.exact)

    def is_being_fetched(self, plan: Plan) -> bool:
        """Whether this request would join a flight now."""
        return self.flights.peek(self._flight_key(plan.key.exact, plan.ruling)) is not None

    async def _look_up(self, plan: Plan, ruling: Ruling, outcome: Outcome) -> Finding:
        """LOOKUP. A fault of the cache is a finding like any other: nothing found, for that reason."""
        if ruling.skip_lookup is not None:
            return Finding(None, ruling.skip_lookup)
        if self.learned(plan) is not None:
            return Finding(None, Reason.LEARNED)
        try:
            return await self._lookup.find(plan.ask, plan.key, ruling, outcome.phases_ms)
        except Exception as exc:
            self._count_fault("a lookup", exc)
            return Finding(None, Reason.CACHE_FAULT)

    async def _look_up_stale(self, plan: Plan, ruling: Ruling) -> Match | None:
        """An answer past its grace that may still be given should no backend have a fresh one (RFC 5861 section 4)."""
        lenient = replace(ruling, grace_s=ruling.stale_if_error_s)
        try:
            return (await self._lookup.find(plan.ask, plan.key, lenient, {})).match
        except Exception as exc:
            self._count_fault("a lookup", exc)
            return None

    async def _look_up_items(self, plan: Plan, ruling: Ruling) -> tuple[list[Match | None], Reason | None]:
        """LOOKUP in the exact tier, for each item. The reason is that of the first item that was not found."""
        nothing: list[Match | None] = [None] * len(plan.items)
        if ruling.skip_lookup is not None:
            return nothing, ruling.skip_lookup
        if self.learned(plan) is not None:
            return nothing, Reason.LEARNED
        try:
            findings = [await self._lookup.find_exact(item.key, ruling) for item in plan.items]
        except Exception as exc:
            self._count_fault("a lookup", exc)
            return nothing, Reason.CACHE_FAULT
        reasons = [finding.reason for finding in findings if finding.match is None]
        return [finding.match for finding in findings], reasons[0] if reasons else None

    async def turns_in_a_circle(self, plan: Plan, match: Match) -> bool:
        """Whether the stored answer is what the assistant said last in this conversation: it asks again because that
        did not help, as a stuck agent does. What an entry says is read once, a long one on a thread.
        """
        last = said_last(plan.ask.turns)
        if not last:
            return False
        entry = match.entry
        if entry.id not in self._said:
            is_long = entry.answer.size_bytes > READ_INLINE_BYTES
            read = partial(_digest_said, plan.dialect, entry.answer)
            self._said[entry.id] = said = await asyncio.to_thread(read) if is_long else read()
            return said == digest_of(last)  # others may have pushed it out meanwhile
        return self._said[entry.id] == digest_of(last)

    async def _answer_with(self, plan: Plan, ruling: Ruling, match: Match, source: Source, outcome: Outcome) -> Reply:
        """Serve what was found, unless it would keep an agent turning in a circle: then a fresh answer is fetched."""
        if not ruling.only_if_cached and await self.turns_in_a_circle(plan, match):
            outcome.reason = Reason.LOOP
            outcome.similarity = match.similarity
            return self._forward(
                plan, replace(ruling, skip_lookup=Reason.LOOP), Finding(None, Reason.LOOP), source, outcome
            )
        return self._serve(plan, ruling, match, source, outcome)

    def _serve(
        self,
        plan: Plan,
        ruling: Ruling,
        match: Match,
        source: Source,
        outcome: Outcome,
        *,
        may_refresh: bool = True,
    ) -> Played:
        """A HIT, or a STALE one with a refresh under way."""
        outcome.verdict = Verdict.STALE if match.is_stale else Verdict.HIT
        outcome.tier = match.tier
        outcome.similarity = match.similarity
        outcome.entry_id, outcome.entry_key = match.entry.id, match.entry.key.exact
        outcome.ttl_left_s = match.ttl_left_s
        outcome.age_s = match.age_s
        outcome.usage = match.entry.answer.usage
        if match.is_stale and may_refresh:
            key = plan.key.exact if match.tier is Tier.EXACT else b"refresh " + match.entry.key.exact
            self._refresh(plan, ruling, key, source, outcome)
        return Played(match)

    def _serve_batch(
        self, plan: Plan, ruling: Ruling, matches: Sequence[Match], source: Source, outcome: Outcome
    ) -> PlayedBatch:
        """As fresh as its oldest item."""
        outcome.ttl_left_s = min(match.ttl_left_s for match in matches)
        outcome.verdict = Verdict.STALE if outcome.ttl_left_s <= 0 else Verdict.HIT
        outcome.tier = Tier.EXACT
        outcome.similarity = 1.0
        if len(matches) == 1:  # of several, there is no telling which entry a word on this answer would be about
            outcome.entry_id, outcome.entry_key = matches[0].entry.id, matches[0].entry.key.exact
        outcome.age_s = max(match.age_s for match in matches)
        if outcome.verdict is Verdict.STALE:
            self._refresh(plan, ruling, plan.key.exact, source, outcome)
        return PlayedBatch(matches)

    def _refresh(self, plan: Plan, ruling: Ruling, exact: bytes, source: Source, outcome: Outcome) -> None:
        """RFC 5861: one refresh of a stale answer, in the words of whoever met it first.

        Where those are other words, `exact` is no request's, for nobody who asks exactly what the entry answered may
        find that flight.
        """
        if ruling.only_if_cached:
            return  # this caller wants nothing fetched on his behalf
        key = self._flight_key(exact, ruling)
        if ruling.may_store and not self.flights.is_under_way(key) and not isinstance(plan.way, SemcacheError):
            self._lead(plan, ruling, Finding(None), source, outcome, key=key, keep=True)

    # COALESCE

    def _forward(self, plan: Plan, ruling: Ruling, finding: Finding, source: Source, outcome: Outcome) -> Reply:
        reason = finding.reason or Reason.EXPLORING
        outcome.verdict = Verdict.BYPASS if FWD[reason] == "bypass" else Verdict.MISS
        may_share = ruling.may_coalesce and reason is not Reason.LEARNED
        if may_share:
            flight = self.flights.find(self._flight_key(plan.key.exact, ruling))
            if flight is not None and plan.ask.traits.id_is_a_handle and plan.tenant.id != flight.recording.tenant:
                may_share = False  # what the answer's id names at the upstream is in the other's account
            elif flight is not None:
                outcome.verdict = Verdict.COALESCED
                outcome.collapsed = True
                recording = flight.recording
                return Followed(
                    flight,
                    is_relayed=plan.ask.stream == recording.is_stream and plan.ask.echo == recording.echo,
                    is_anothers=plan.tenant.id != recording.tenant,
                )
            # Look again now that we lead: while we embedded, the previous leader may have stored its answer and
            # landed. Without this a burst fetches twice. Nothing is awaited from here to `lead`.
            searched = ruling.skip_lookup is None and not plan.items
            match = self._lookup.find_in_memory(plan.key, ruling) if searched else None
            if match is not None:
                outcome.reason = None
                return self._serve(plan, ruling, match, source, outcome)
        if isinstance(plan.way, SemcacheError):
            raise plan.way
        key = self._flight_key(plan.key.exact, ruling) if may_share else None
        return Followed(self._lead(plan, ruling, finding, source, outcome, key), is_relayed=True)

    def _flight_key(self, exact: bytes, ruling: Ruling) -> Hashable:
        """A flight that began before a purge is joined by nobody who asks after it. Where an answer must be vouched for
        before others get it, each tenant has flights of his own: what is in the air is proven by nobody.
        """
        return exact, self._store.last_purge_seq, ruling.asker if ruling.min_uses > 1 else None

    def _lead(
        self,
        plan: Plan,
        ruling: Ruling,
        finding: Finding,
        source: Source,
        outcome: Outcome,
        key: Hashable | None,
        keep: bool = False,
    ) -> Flight[Recording]:
        limit_bytes = answer_limit(plan) if ruling.may_store or key is not None else 0
        recording = Recording(limit_bytes, plan.ask.stream, plan.tenant.id, plan.ask.echo, outcome.request_id)
        recording.purpose = "refresh" if keep else _PURPOSES.get(finding.occasion, "request")
        recording.is_optional = keep or finding.instead is not None
        return self.flights.lead(
            key,
            recording,
            lambda flight: self._fetch(plan, ruling, finding, source, recording),
            keep=keep or plan.route.cache.on_client_gone == "finish",
        )

    # FETCH

    async def _fetch(self, plan: Plan, ruling: Ruling, finding: Finding, source: Source, recording: Recording) -> None:
        """The task of a flight: write the recording to its end, and keep the answer if it may be kept."""
        since_seq = self._store.last_seq  # a purge after this beats what we are about to fetch
        begun = monotonic()
        keep = partial(self._keeping.keep, plan, ruling, finding.vector, since_seq, recording)
        try:
            reading = await source(plan, recording)
            fetch_s = monotonic() - begun
            if recording.is_stream:
                recording.finish(reading)  # the client has its end now; the flight lands when the entry is durable
                await keep(reading)
            else:
                # A JSON answer waits a moment for the store's word, so that its header can say `stored`.
                patience = asyncio.get_running_loop().call_later(JSON_ACK_S, recording.finish, reading)
                try:
                    recording.stored = await keep(reading)
                finally:
                    patience.cancel()
                recording.finish(reading)
            self._learner.learn(plan, finding, reading, fetch_s)
        except SemcacheError as error:
            recording.fail(error)
        except Exception as exc:  # the top of a task: whoever follows must get an answer
            self.faults[type(exc).__name__] += 1
            log.error("a fetch failed unexpectedly: %s", type(exc).__name__)
            recording.fail(UpstreamError("the request could not be forwarded"))
        finally:
            if not recording.is_over:  # cancelled: nobody waits, or the program stops
                recording.fail(UpstreamError("the proxy is stopping", status=503, code="stopping"))

    def _count_fault(self, where: str, exc: Exception) -> None:
        """No fault of the cache fails a request, whether somebody has foreseen it or not."""
        self.faults[type(exc).__name__] += 1
        if not isinstance(exc, CacheFault):
            log.error("%s failed unexpectedly: %s", where, type(exc).__name__)

    def stats(self) -> dict[str, float]:
        return {
            **self.flights.stats(),
            **self._keeping.stats(),
            **{f"fault_{name}": count for name, count in self.faults.items()},
        }


# What a fetch is for, where it is not for whoever asked.
_PURPOSES = {Occasion.EXPLORE: "explore", Occasion.AUDIT: "explore", Occasion.SHADOW: "shadow"}


def _digest_said(dialect: Dialect, answer: Answer) -> bytes | None:
    said = dialect.spoken(answer) if isinstance(dialect, SpokenDialect) else None
    return None if said is None else digest_of(said)


def _not_cached() -> ClientError:
    return ClientError("nothing stored answers this, and only-if-cached was asked", status=504, code="not_cached")
