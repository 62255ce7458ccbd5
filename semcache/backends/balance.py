"""In which order the backends of a pool are asked.

The rule: ranking reads, and changes nothing. It orders all backends it is given, so whoever calls it leaves out those
that may not be asked, and records what is then sent. Backends that look alike are ordered by chance: several proxies
in front of the same backends would otherwise all send to the same one.

`latency` is Finagle's power of two choices over a peak EWMA; `prefix` has its idea from SGLang's router, Preble and
Mooncake: go where the KV cache holds the most of the prompt, unless too many go there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import heapify, heappop
from math import inf
from random import Random
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from semcache.backends.prefix import PrefixMap
from semcache.config import Prefix

Balance = Literal["least-load", "prefix", "weighted", "latency"]

# Tokens of prompts that wait to be read count as one more request for each so many. It matters little: with 300 or 3000
# the simulated p99 is within a tenth.
TOKENS_PER_REQUEST = 1000

# A backend whose first answer is still awaited counts as slower than any measured one: it is being tried already.
_UNKNOWN_S = 1e6

_STEPS = 4  # of the imbalance that a backend may have: among equal matches a step less goes first


class Load(Protocol):
    """What ranking reads of one backend."""

    @property
    def in_flight(self) -> int: ...  # requests under way there
    @property
    def tokens(self) -> int: ...  # of prompts that wait for their first token there, estimated
    @property
    def weight(self) -> float: ...
    @property
    def prefixes(self) -> PrefixMap: ...
    def share(self, now: float) -> float: ...  # of its weight, 0 to 1: slow start
    def ttft_s(self, now: float) -> float | None: ...  # to the first token, for each unit of `queue`; None: unknown


L = TypeVar("L", bound=Load)


class Asked(NamedTuple):
    """What ranking reads of a request."""

    prompt_tokens: int  # estimated
    chunks: tuple[int, ...] = ()  # prefix.chain of the prompt; empty unless the pool balances by prefix


def queue(in_flight: int, tokens: int) -> float:
    """How much is under way at a backend, in requests: what best foretells how long another will wait there.

    The time to a first token, divided by the queue that its request had joined, tells how fast the backend is. Without
    the division a long prompt makes its backend look slow.
    """
    return in_flight + tokens / TOKENS_PER_REQUEST


def rank(
    balance: Balance, loads: Sequence[L], asked: Asked, settings: Prefix, now: float, chance: Random
) -> Iterator[L]:
    """All of `loads`, best first. Worked out as it is read, since most requests need the first alone."""
    return _ORDERS[balance](loads, asked, settings, now, chance)


def expected_s(load: Load, asked: Asked, now: float) -> float | None:
    """When the first token is expected there; None: nothing is known yet."""
    ttft_s = load.ttft_s(now)
    return None if ttft_s is None else ttft_s * queue(load.in_flight + 1, load.tokens + asked.prompt_tokens)


def _by_load(loads: Sequence[L], asked: Asked, _: Prefix, now: float, chance: Random) -> Iterator[L]:
    """What would be under way there with this request, for each unit of its weight."""
    return _in_order(loads, [(_fill(load, asked, now),) for load in loads], chance)


def _by_weight(loads: Sequence[L], asked: Asked, _: Prefix, now: float, chance: Random) -> Iterator[L]:
    """A lottery: each next one is drawn with a probability in proportion to its weight.

    The least of exponential times falls to each in proportion to its rate, and so does the next. Turns (a weighted
    round robin) would be smoother, but need a memory, and proxies that were started together would take them together.
    """
    weights = [_capacity(load, now) for load in loads]
    return _in_order(loads, [(chance.expovariate(weight) if weight else inf,) for weight in weights], chance)


def _by_latency(loads: Sequence[L], asked: Asked, _: Prefix, now: float, chance: Random) -> Iterator[L]:
    """The better of two drawn by chance, again and again.

    Better than the best of all: a backend that looks best to everybody is not the best for long. And a thousand
    backends cost no more than three.
    """
    left = list(loads)
    while len(left) > 1:
        last = len(left) - 1
        one, other = int(chance.random() * (last + 1)), int(chance.random() * last)
        if other == one:  # drawn from all but the last, which stands in for the one that cannot be drawn twice
            other = last
        cost, other_cost = _wait(left[one], asked, now), _wait(left[other], asked, now)
        best = one if cost < other_cost else other
        if cost == other_cost == inf:  # both are to get nothing yet: then none is drawn while another can be found
            best = min(range(len(left)), key=lambda place: _wait(left[place], asked, now))
        left[best], left[last] = left[last], left[best]
        yield left.pop()
    yield from left


def _by_prefix(loads: Sequence[L], asked: Asked, settings: Prefix, now: float, chance: Random) -> Iterator[L]:
    """The longest match first; those with too much to do come after all others.

    So a beginning that many ask for spreads: when its backend has too much, the next one reads it, and then has it too.
    Among equal matches a much lighter load counts, then the beginning itself: it always prefers the same backend, or
    what two of them have once read would stay in the caches of both, and push out what only one has. A beginning that
    nobody knows goes where the fewest are remembered, as SGLang's router does it: that cache has most room.
    """
    if not asked.chunks or chance.random() < settings.explore:
        return _by_load(loads, asked, settings, now, chance)
    capacities = [_capacity(load, now) for load in loads]
    fills = [load.in_flight / capacity for load, capacity in zip(loads, capacities, strict=True) if capacity]
    least = min(fills, default=0.0)
    costs = []
    for load, capacity in zip(loads, capacities, strict=True):
        even = least * capacity  # what it would have in flight, were it as full as the least loaded one
        surplus = load.in_flight - even
        has_too_much = surplus > settings.imbalance and surplus > even * (settings.imbalance_ratio - 1)
        matched = load.prefixes.match(asked.chunks)
        crowd = surplus // max(1, settings.imbalance / _STEPS)
        home = hash((asked.chunks[matched - 1], id(load))) if matched else len(load.prefixes) / (capacity or 1)
        costs.append((not capacity, has_too_much, -matched, crowd, home, _fill(load, asked, now)))
    return _in_order(loads, costs, chance)


_ORDERS: Mapping[str, Callable[[Sequence[Any], Asked, Prefix, float, Random], Iterator[Any]]] = {
    "least-load": _by_load,
    "weighted": _by_weight,
    "latency": _by_latency,
    "prefix": _by_prefix,
}


def _capacity(load: Load, now: float) -> float:
    return load.weight * load.share(now)


def _fill(load: Load, asked: Asked, now: float) -> float:
    capacity = _capacity(load, now)
    return queue(load.in_flight + 1, load.tokens + asked.prompt_tokens) / capacity if capacity else inf


def _wait(load: Load, asked: Asked, now: float) -> float:
    """As long as the first token is expected to take, for each unit of weight; nothing where nobody has tried yet."""
    capacity = _capacity(load, now)
    if not capacity:
        return inf
    wait_s = expected_s(load, asked, now)
    if wait_s is None:
        wait_s = _UNKNOWN_S * load.in_flight
    return wait_s / capacity


def _in_order(loads: Sequence[L], costs: Iterable[tuple[Any, ...]], chance: Random) -> Iterator[L]:
    """The cheapest first, by a heap, so that the rest is put in order only as far as it is read."""
    heap = [(*cost, chance.random(), place) for place, cost in enumerate(costs)]
    heapify(heap)
    while heap:
        yield loads[heappop(heap)[-1]]
