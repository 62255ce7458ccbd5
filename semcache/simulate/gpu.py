"""How long a simulated GPU takes: requests wait for a slot, their prompts are read one after another, and all that are
being answered share its speed.

    time to the first token = the wait for a slot + the wait for those whose prompts are read before
                              + the tokens that are not in the KV cache / prefill rate
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from semcache.simulate.answers import Choice, Json
from semcache.simulate.kv_cache import KvCache, salt_of, tokens_of_prompt, tokens_of_turn

Metrics = dict[str, float]
Sleep = Callable[[float], Awaitable[None]]

STEP_S = 0.05  # of an answer that is not streamed: how often its speed is looked at again


@dataclass(frozen=True, slots=True)
class Turn:
    """A request whose prompt has been read."""

    cached_tokens: int
    slowest: Callable[[], float]  # seconds a token takes at least, with as many as are being answered now
    remember: Callable[[Sequence[Choice]], None]  # the answers are part of the next prompt
    sleep: Sleep = asyncio.sleep

    def token_s(self, own_token_s: float) -> float:
        return max(own_token_s, self.slowest())

    async def write(self, tokens: int, own_token_s: float) -> None:
        """Return when so many tokens have been written."""
        written = 0.0
        while (token_s := self.token_s(own_token_s)) and written < tokens:
            step_s = min(STEP_S, (tokens - written) * token_s)
            await self.sleep(step_s)
            written += step_s / token_s


class Engine(Protocol):
    def turn(self, prompts: Sequence[Json]) -> AbstractAsyncContextManager[Turn]:
        """Wait until the prompts of one request have been read. The slot is free again when the block is left."""
        ...

    def metrics(self) -> Metrics: ...


class NoGpu:
    """Nothing waits, and nothing is kept: a request takes the time that it is told to take."""

    @asynccontextmanager
    async def turn(self, prompts: Sequence[Json]) -> AsyncIterator[Turn]:
        yield Turn(0, lambda: 0.0, lambda choices: None)

    def metrics(self) -> Metrics:
        return {}


class Gpu:
    """`kv_tokens`: room of the KV cache. Rates are tokens per second; 0 is without limit, and so are no `slots`."""

    def __init__(
        self,
        *,
        kv_tokens: int = 0,
        prefill_rate: float = 0.0,
        slots: int = 0,
        decode_rate: float = 0.0,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.cache = KvCache(kv_tokens)
        self.running = 0
        self.waiting = 0
        self.prompt_tokens = 0
        self.written_tokens = 0
        self._prefill_rate = prefill_rate
        self._decode_rate = decode_rate
        self._sleep = sleep
        self._slots = asyncio.Semaphore(slots) if slots else None
        self._prefill = asyncio.Lock()

    @asynccontextmanager
    async def turn(self, prompts: Sequence[Json]) -> AsyncIterator[Turn]:
        await self._take_slot()
        self.running += 1
        try:
            cached = 0
            for prompt in prompts:
                cached += await self._read(prompt)
            yield Turn(cached, self._slowest, lambda choices: self._remember(prompts, choices), self._sleep)
        finally:
            self.running -= 1
            if self._slots is not None:
                self._slots.release()

    def metrics(self) -> Metrics:
        """As vLLM names them."""
        return {
            "num_requests_running": self.running,
            "num_requests_waiting": self.waiting,
            "kv_cache_usage_perc": self.cache.usage,
            "prefix_cache_queries_total": self.cache.queried_tokens,
            "prefix_cache_hits_total": self.cache.hit_tokens,
            "prompt_tokens_total": self.prompt_tokens,
            "generation_tokens_total": self.written_tokens,
        }

    async def _take_slot(self) -> None:
        if self._slots is None:
            return
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1

    async def _read(self, prompt: Json) -> int:
        """Return how many tokens were in the cache; the others take their time."""
        salt, tokens = salt_of(prompt), tokens_of_prompt(prompt)
        # One prompt after another, the cache asked when its turn has come: what is before it in line fills the cache.
        async with self._prefill:
            cached = self.cache.find(salt, tokens)
            if self._prefill_rate:
                await self._sleep((len(tokens) - cached) / self._prefill_rate)
            self.cache.keep(salt, tokens)
        self.prompt_tokens += len(tokens)
        return cached

    def _slowest(self) -> float:
        return self.running / self._decode_rate if self._decode_rate else 0.0

    def _remember(self, prompts: Sequence[Json], choices: Sequence[Choice]) -> None:
        self.written_tokens += sum(len(choice.tokens) + len(choice.thoughts) for choice in choices)
        each = len(choices) // len(prompts)
        for place, choice in enumerate(choices):
            prompt = prompts[place // each]
            self.cache.keep(salt_of(prompt), [*tokens_of_prompt(prompt), *tokens_of_turn(choice)])


def as_prometheus(metrics: Metrics, model: str) -> str:
    """The text of GET /metrics."""
    lines = []
    for name, value in metrics.items():
        kind = "counter" if name.endswith("_total") else "gauge"
        lines += [f"# TYPE vllm:{name} {kind}", f'vllm:{name}{{engine="0",model_name="{model}"}} {value:g}']
    return "".join(f"{line}\n" for line in lines)
