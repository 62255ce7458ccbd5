"""Model servers on a simulated clock, for choosing among them by the thousand.

A server reads prompts one after the other, in the order they came, at its own speed; a beginning that its KV cache
holds costs nothing. Then it writes the answer, up to `slots` of them at once, each at its own speed: reading is bound
by arithmetic and shared, writing by memory and nearly free to share. The KV cache is an LRU of blocks, and what is
queued before a prompt counts as read before it. That the blocks of answers stay, too, is left out.

The part that is known is apart from the part that is so: a `Server` has a speed and a KV cache, a `Seen` is what a
proxy can observe of it, and all that `semcache.backends.balance.rank` is shown.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from cachetools import LRUCache

from semcache.backends.balance import queue
from semcache.backends.ewma import PeakEwma
from semcache.backends.prefix import PrefixMap


@dataclass(frozen=True, slots=True)
class Request:
    at_s: float
    prompt_tokens: int
    output_tokens: int
    chunks: tuple[int, ...] = ()  # chained hashes of its blocks


@dataclass(frozen=True, slots=True)
class Model:
    """A server of speed 1. The defaults: a small model on one GPU, in round numbers."""

    prefill_per_s: float = 8000.0  # tokens of prompts, all requests together
    decode_per_s: float = 50.0  # tokens of each answer
    slots: int = 64  # answers at once
    block_tokens: int = 128
    kv_tokens: int = 500_000


class KvCache:
    """What a server holds in truth. Not a PrefixMap: the yardstick is not made of what it measures."""

    def __init__(self, blocks: int) -> None:
        self._blocks: LRUCache[int, None] = LRUCache(blocks)

    def __len__(self) -> int:
        return len(self._blocks)

    def match(self, chunks: Sequence[int]) -> int:
        for place, chunk in enumerate(chunks):
            if chunk not in self._blocks:
                return place
        return len(chunks)

    def read(self, chunks: Sequence[int]) -> None:
        for chunk in reversed(chunks):
            self._blocks[chunk] = None


class Seen:
    """What a proxy knows of a server: a `balance.Load`."""

    def __init__(self, weight: float, remember: int) -> None:
        self.in_flight = 0
        self.tokens = 0
        self.weight = weight
        self.prefixes = PrefixMap(remember)
        self.pace = PeakEwma()

    def share(self, now: float) -> float:
        return 1.0

    def ttft_s(self, now: float) -> float | None:
        return self.pace.value(now)

    def sent(self, request: Request) -> float:
        """Returns the queue that the request is in, itself included, for `answered`."""
        self.in_flight += 1
        self.tokens += request.prompt_tokens
        self.prefixes.insert(request.chunks)
        return queue(self.in_flight, self.tokens)

    def answered(self, request: Request, joined: float, ttft_s: float, now: float) -> None:
        self.tokens -= request.prompt_tokens
        self.pace.observe(ttft_s / joined, now)

    def ended(self) -> None:
        self.in_flight -= 1


class SeenPlainly(Seen):
    """The time to the first token as it is, whatever the prompt and the queue: what Finagle would do."""

    def answered(self, request: Request, joined: float, ttft_s: float, now: float) -> None:
        super().answered(request, 1.0, ttft_s, now)


class Server:
    def __init__(self, model: Model, speed: float, seen: Seen) -> None:
        self.model = model
        self.speed = speed
        self.seen = seen
        self.kv = KvCache(model.kv_tokens // model.block_tokens)
        self.waiting: deque[Job] = deque()
        self.reading: Job | None = None
        self.writing = 0


@dataclass(slots=True, eq=False)
class Job:
    """One request at the server it went to, and what became of it."""

    request: Request
    server: Server
    joined: float  # queue
    cached_tokens: int
    ttft_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Played:
    jobs: Sequence[Job]
    in_flight: np.ndarray  # (samples, servers), seen by arriving requests

    def ttft_s(self, quantile: float) -> float:
        return float(np.quantile([job.ttft_s for job in self.jobs], quantile))

    def cached_share(self) -> float:
        """Of the tokens of all prompts: those that a KV cache held."""
        return sum(job.cached_tokens for job in self.jobs) / sum(job.request.prompt_tokens for job in self.jobs)

    def imbalance(self) -> float:
        """Requests in flight at the fullest server over those at the average one, both averaged over time; 1: even."""
        return float(self.in_flight.max(axis=1).mean() / self.in_flight.mean())


Choose = Callable[[Request, float], Server]


def play(requests: Sequence[Request], servers: Sequence[Server], choose: Choose, sample_every: int = 1) -> Played:
    """Send each request when it is due, until all are answered. `choose` is told the time, nothing of the future."""
    clock = Clock()
    jobs, samples = [], []
    for number, request in enumerate(requests):
        clock.advance(request.at_s)
        if number % sample_every == 0:
            samples.append([server.seen.in_flight for server in servers])
        jobs.append(clock.send(request, choose(request, request.at_s)))
    clock.advance(float("inf"))
    return Played(jobs, np.array(samples))


class Clock:
    """What happens next at any server."""

    def __init__(self) -> None:
        self._events: list[tuple[float, int, Callable[[Job, float], None], Job]] = []
        self._count = 0  # of events: what is due at the same time happens in the order it was planned

    def send(self, request: Request, server: Server) -> Job:
        cached = min(server.kv.match(request.chunks) * server.model.block_tokens, request.prompt_tokens - 1)
        server.kv.read(request.chunks)
        job = Job(request, server, server.seen.sent(request), cached)
        server.waiting.append(job)
        self._read(server, request.at_s)
        return job

    def advance(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            now, _, happen, job = heapq.heappop(self._events)
            happen(job, now)

    def _plan(self, at_s: float, happen: Callable[[Job, float], None], job: Job) -> None:
        self._count += 1
        heapq.heappush(self._events, (at_s, self._count, happen, job))

    def _read(self, server: Server, now: float) -> None:
        if server.reading is None and server.waiting and server.writing < server.model.slots:
            server.reading = job = server.waiting.popleft()
            tokens = job.request.prompt_tokens - job.cached_tokens
            self._plan(now + tokens / (server.model.prefill_per_s * server.speed), self._answered, job)

    def _answered(self, job: Job, now: float) -> None:
        server = job.server
        job.ttft_s = now - job.request.at_s
        server.seen.answered(job.request, job.joined, job.ttft_s, now)
        server.reading = None
        server.writing += 1
        self._plan(now + job.request.output_tokens / (server.model.decode_per_s * server.speed), self._ended, job)
        self._read(server, now)

    def _ended(self, job: Job, now: float) -> None:
        job.server.seen.ended()
        job.server.writing -= 1
        self._read(job.server, now)


class Known:
    """A server as an oracle sees it: `prefixes` is what its KV cache holds in truth, with all that was evicted gone."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.prefixes = server.kv

    @property
    def in_flight(self) -> int:
        return self.server.seen.in_flight

    @property
    def tokens(self) -> int:
        return self.server.seen.tokens

    @property
    def weight(self) -> float:
        return self.server.seen.weight

    def share(self, now: float) -> float:
        return 1.0

    def ttft_s(self, now: float) -> float | None:
        return None
