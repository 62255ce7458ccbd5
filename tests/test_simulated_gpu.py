"""The simulated server as a GPU: a KV cache, slots, limits, and an end."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import aiohttp
import pytest
from anthropic import AsyncAnthropic
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI, InternalServerError, RateLimitError

from semcache import children
from semcache.simulate import Simulator
from semcache.simulate.answers import count_prompt
from semcache.simulate.gpu import Gpu
from semcache.simulate.kv_cache import BLOCK_TOKENS, KvCache, tokens_of_prompt
from semcache.simulate.limits import RateLimit, duration_text
from tests.fakes import Clock

HELP_PAGES = " ".join(f"Page {number} is about parcels." for number in range(40))


def chat(question: str, *earlier: dict[str, str], model: str = "m") -> dict:
    system = {"role": "system", "content": HELP_PAGES}
    return {"model": model, "messages": [system, *earlier, {"role": "user", "content": question}]}


class Waits(list[float]):
    """In place of sleeping: what would have been slept."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)
        await asyncio.sleep(0)


# The KV cache


def test_a_prompt_is_found_up_to_its_last_whole_block() -> None:
    cache, words = KvCache(1024), [str(number) for number in range(100)]
    assert cache.find(0, words) == 0
    cache.keep(0, words)
    assert cache.find(0, words) == 96
    assert cache.find(0, [*words[:50], "other", *words[51:]]) == 48
    assert cache.find(0, ["other", *words]) == 0
    assert (cache.queried_tokens, cache.hit_tokens) == (401, 144)


def test_the_last_token_is_computed_though_its_block_is_there() -> None:
    cache, words = KvCache(1024), [str(number) for number in range(32)]
    cache.keep(0, words)
    assert cache.find(0, words) == 16


def test_another_model_finds_nothing() -> None:
    cache, words = KvCache(1024), [str(number) for number in range(33)]
    cache.keep(1, words)
    assert cache.find(2, words) == 0 and cache.find(1, words) == 32


def test_the_end_of_a_prompt_is_forgotten_before_its_beginning() -> None:
    cache = KvCache(4 * BLOCK_TOKENS)
    first, second = ([f"{name}{number}" for number in range(49)] for name in "ab")
    cache.keep(0, first)
    cache.keep(0, second)
    assert cache.find(0, second) == 48
    assert cache.find(0, first) == 16
    assert len(cache) == 4 and cache.usage == 1.0


@given(st.lists(st.lists(st.sampled_from("ab"), max_size=80), max_size=20), st.integers(0, 200))
def test_no_more_is_found_than_was_kept_and_fits(prompts: list[list[str]], room: int) -> None:
    cache = KvCache(room)
    for place, prompt in enumerate(prompts):
        found = cache.find(0, prompt)
        shared = max((_shared(prompt, other) for other in prompts[:place]), default=0)
        assert found <= min(shared, room, max(len(prompt) - 1, 0))
        cache.keep(0, prompt)
        assert len(cache) * BLOCK_TOKENS <= room


def _shared(one: list[str], other: list[str]) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def test_a_prompt_has_as_many_tokens_as_are_billed() -> None:
    body = chat("Where is it?", {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there"})
    assert len(tokens_of_prompt(body)) == count_prompt(body)


# Time


async def test_only_what_is_not_in_the_cache_takes_time() -> None:
    waits = Waits()
    gpu = Gpu(kv_tokens=10_000, prefill_rate=100, sleep=waits)
    body = chat("Where is my parcel?")
    tokens = count_prompt(body)
    for _ in range(2):
        async with gpu.turn([body]):
            pass
    found = (tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    assert waits == [tokens / 100, (tokens - found) / 100]


async def test_one_more_than_the_slots_waits_until_one_is_done() -> None:
    gpu, body, done = Gpu(slots=2), chat("Where is it?"), asyncio.Event()
    begun: list[int] = []

    async def ask(number: int) -> None:
        async with gpu.turn([body]):
            begun.append(number)
            await done.wait()

    asking = [asyncio.create_task(ask(number)) for number in range(3)]
    while len(begun) < 2:
        await asyncio.sleep(0)
    assert (gpu.metrics()["num_requests_running"], gpu.metrics()["num_requests_waiting"]) == (2, 1)
    done.set()
    await asyncio.gather(*asking)
    assert begun == [0, 1, 2]
    assert (gpu.running, gpu.waiting) == (0, 0)


async def test_a_caller_who_leaves_gives_back_his_slot_and_his_place_in_line() -> None:
    gpu, body = Gpu(slots=1), chat("Where is it?")
    async with gpu.turn([body]):
        waiting = asyncio.create_task(gpu.turn([body]).__aenter__())
        while not gpu.waiting:
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert gpu.waiting == 0
    async with asyncio.timeout(5), gpu.turn([body]):
        assert gpu.running == 1


async def test_those_who_are_answered_share_the_speed() -> None:
    waits = Waits()
    gpu, body = Gpu(decode_rate=100, sleep=waits), chat("Where is it?")
    async with gpu.turn([body]) as one:
        assert one.token_s(0.0) == pytest.approx(0.01)
        assert one.token_s(0.05) == 0.05  # its own pace is slower
        await one.write(10, 0.0)
        async with gpu.turn([body]) as other:
            assert one.token_s(0.0) == other.token_s(0.0) == pytest.approx(0.02)
    assert sum(waits) == pytest.approx(0.1)


# On the wire


async def test_a_conversation_finds_its_earlier_turns_in_the_cache() -> None:
    async with (
        Simulator(gpu=Gpu(kv_tokens=10_000)) as backend,
        AsyncOpenAI(base_url=backend.url, api_key="none", max_retries=0) as client,
    ):
        first = await client.chat.completions.create(**chat("Where is it?"))
        earlier = (
            {"role": "user", "content": "Where is it?"},
            {"role": "assistant", "content": first.choices[0].message.content},
        )
        stream = await client.chat.completions.create(
            **chat("And the other?", *earlier), stream=True, stream_options={"include_usage": True}
        )
        second = [chunk async for chunk in stream][-1].usage
        assert first.usage.prompt_tokens_details.cached_tokens == 0
        # The first prompt and its answer, up to the last whole block.
        before = first.usage.total_tokens + 4
        assert before - BLOCK_TOKENS < second.prompt_tokens_details.cached_tokens <= before


async def test_anthropic_counts_cached_tokens_apart() -> None:
    async with (
        Simulator(gpu=Gpu(kv_tokens=10_000)) as backend,
        AsyncAnthropic(base_url=backend.root, api_key="none", max_retries=0) as client,
    ):
        asked = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": HELP_PAGES}]}
        first, second = [(await client.messages.create(**asked)).usage for _ in range(2)]
        assert first.cache_read_input_tokens == 0
        assert second.cache_read_input_tokens > 0
        assert second.input_tokens + second.cache_read_input_tokens == first.input_tokens


async def test_metrics_are_named_as_those_of_vllm() -> None:
    async with Simulator(gpu=Gpu(kv_tokens=10_000)) as backend, aiohttp.ClientSession() as session:
        for _ in range(2):
            async with session.post(f"{backend.url}/chat/completions", json=chat("Where is it?")):
                pass
        async with session.get(f"{backend.root}/metrics") as reply:
            lines = dict(line.rsplit(" ", 1) for line in (await reply.text()).splitlines() if line[0] != "#")
        async with session.get(f"{backend.root}/health") as reply:
            assert reply.status == 200
    values = {name.partition("{")[0]: float(value) for name, value in lines.items()}
    asked = count_prompt(chat("Where is it?"))
    assert values["vllm:prefix_cache_queries_total"] == 2 * asked
    assert values["vllm:prefix_cache_hits_total"] == (asked - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    assert values["vllm:num_requests_running"] == values["vllm:num_requests_waiting"] == 0
    assert backend.counters.requests == 2


# Limits and faults


def test_a_bucket_fills_steadily() -> None:
    clock = Clock()
    limit = RateLimit(60, clock)
    assert [limit.take("a")[0] for _ in range(61)] == [True] * 60 + [False]
    assert limit.take("b")[0]
    clock.advance(1)
    assert [limit.take("a")[0] for _ in range(2)] == [True, False]
    clock.advance(3600)
    assert limit.take("a")[1:] == (59, 1)


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "0ms"), (0.85, "850ms"), (1, "1s"), (2.5, "2.5s"), (59.9996, "60s"), (60, "1m0s"), (71.2, "1m12s")],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


async def test_a_key_that_asked_too_often_is_told_when_to_come_back() -> None:
    clock = Clock()
    async with (
        Simulator(limit=RateLimit(2, clock)) as backend,
        AsyncOpenAI(base_url=backend.url, api_key="one", max_retries=0) as one,
        AsyncOpenAI(base_url=backend.url, api_key="two", max_retries=0) as two,
        AsyncAnthropic(base_url=backend.root, api_key="three", max_retries=0) as three,
    ):
        told = await one.chat.completions.with_raw_response.create(**chat("Where is it?"), stream=True)
        assert told.headers["x-ratelimit-remaining-requests"] == "1"
        assert told.headers["x-ratelimit-reset-requests"] == "30s"
        await one.chat.completions.create(**chat("Where is it?"))
        with pytest.raises(RateLimitError) as refused:
            await one.chat.completions.create(**chat("Where is it?"))
        assert refused.value.response.headers["retry-after"] == "30"
        assert refused.value.response.headers["x-ratelimit-remaining-requests"] == "0"
        await two.chat.completions.create(**chat("Where is it?"))
        asked = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "Hello"}]}
        other = await three.messages.with_raw_response.create(**asked)
        assert other.headers["anthropic-ratelimit-requests-remaining"] == "1"
        clock.advance(30)
        await one.chat.completions.create(**chat("Where is it?"))


async def test_so_many_requests_fail_as_was_asked_for() -> None:
    chances = iter([0.4, 0.6])
    async with (
        Simulator(fail_rate=0.5, chance=lambda: next(chances)) as backend,
        AsyncOpenAI(base_url=backend.url, api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(InternalServerError):
            await client.chat.completions.create(**chat("Where is it?"))
        await client.chat.completions.create(**chat("Where is it?"))


async def test_a_server_that_is_to_die_does_so_without_a_word(tmp_path: Path) -> None:
    command = [*children.SEMCACHE, "simulate", "--port", "0", "--ttft", "0", "--die-after", "1"]
    child = children.Child(command, tmp_path / "log")
    try:
        url = (await asyncio.to_thread(child.wait_for_line, r"(http://\S+/v1)"))[1]
        async with aiohttp.ClientSession() as session:
            async with session.post(f"{url}/chat/completions", json=chat("Where is it?")) as reply:
                assert reply.status == 200
            with pytest.raises(aiohttp.ClientError):
                await session.post(f"{url}/chat/completions", json=chat("Where is it?"))
        assert await asyncio.to_thread(child.wait) == -signal.SIGKILL
    finally:
        child.stop()


async def test_a_router_is_told_the_tokens_of_a_prompt() -> None:
    body = chat("Where is it?")
    async with Simulator() as backend, aiohttp.ClientSession() as session:
        async with session.post(f"{backend.root}/tokenize", json=body) as reply:
            told = await reply.json()
        async with session.post(f"{backend.url}/chat/completions/render", json=body) as reply:
            assert (await reply.json())["token_ids"] == told["tokens"]
        other = {**body, "messages": [body["messages"][0], {"role": "user", "content": "Who has it?"}]}
        async with session.post(f"{backend.root}/tokenize", json=other) as reply:
            others = (await reply.json())["tokens"]
    assert told["count"] == len(told["tokens"]) == count_prompt(body)
    assert _shared(told["tokens"], others) == count_prompt({"messages": body["messages"][:1]}) + 3
