"""Requests for simulated servers: prompts that share nothing, those of tenants that chat, and a recorded hour."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Sequence
from math import log
from pathlib import Path
from random import Random

import numpy as np

from loadtests.routing_sim import KvCache, Model, Request
from semcache.backends.prefix import chain

TRACE = "trace_mooncake_conversation.csv.gz"
TRACE_BLOCK_TOKENS = 512
BYTES_PER_TOKEN = 4


def strangers(count: int, servers: int, load: float, model: Model, seed: int) -> list[Request]:
    """Poisson arrivals of prompts that share nothing. `load`: of what all servers, 1 quick on average, can read.

    Prompts and answers are log-normal, with medians of 3,000 and 250 tokens.
    """
    rng = np.random.default_rng(seed)
    prompts = np.minimum(rng.lognormal(log(3000), 1.0, count), 64_000).astype(int) + 1
    outputs = np.minimum(rng.lognormal(log(250), 0.8, count), 4_000).astype(int) + 1
    per_s = load * servers * model.prefill_per_s / prompts.mean()
    times = np.cumsum(rng.exponential(1 / per_s, count))
    return [Request(*row) for row in zip(times.tolist(), prompts.tolist(), outputs.tolist(), strict=True)]


def chats(count: int, per_s: float, seed: int, tenants: int = 50) -> list[Request]:
    """Conversations with the assistants of many tenants; each turn asks with all that was said before.

    Their popularity falls with their rank (Zipf); their system prompts are log-normal, with a median of 1,500 tokens
    and at most 8,000. A conversation has six turns on average, half a minute apart. Prompts are real bytes and go
    through the real hashes.
    """
    rng = Random(seed)
    systems = [rng.randbytes(min(32_000, int(rng.lognormvariate(log(6000), 1)))) for _ in range(tenants)]
    popularity = [1 / (rank + 1) for rank in range(tenants)]
    chunk = Model().block_tokens * BYTES_PER_TOKEN
    turns = 6
    requests: list[Request] = []
    begins_at = 0.0
    while len(requests) < count:
        begins_at += rng.expovariate(per_s / turns)
        said, now = rng.choices(systems, popularity)[0], begins_at
        while True:
            said += rng.randbytes(1 + int(rng.lognormvariate(log(250), 1.2)))  # the user's turn
            output = 1 + int(rng.lognormvariate(log(200), 0.7))
            requests.append(Request(now, 1 + len(said) // BYTES_PER_TOKEN, output, chain(said, chunk)))
            if rng.random() < 1 / turns:
                break
            said += rng.randbytes(output * BYTES_PER_TOKEN)
            now += 5 + output / Model().decode_per_s + rng.expovariate(1 / 25)
    requests.sort(key=lambda request: request.at_s)
    return requests[:count]


def recorded(path: Path, faster: float) -> list[Request]:
    """An hour of a chat service (Mooncake, FAST '25), with the hashes of its prompts' blocks, played `faster` times."""
    with gzip.open(path, "rt", encoding="ascii") as lines:
        return [
            Request(
                int(row["t_ms"]) / 1000 / faster,
                int(row["input_length"]),
                int(row["output_length"]),
                # The last block is often not full, and a KV cache keeps full ones alone.
                tuple(map(int, row["hash_ids"].split()))[: int(row["input_length"]) // TRACE_BLOCK_TOKENS],
            )
            for row in csv.DictReader(lines)
        ]


def held_by_one(requests: Sequence[Request], model: Model, count: int) -> float:
    """The share of prompt tokens that one KV cache as large as `count` would hold: no choice does much better."""
    kv = KvCache(count * model.kv_tokens // model.block_tokens)
    cached = 0
    for request in requests:
        cached += min(kv.match(request.chunks) * model.block_tokens, request.prompt_tokens - 1)
        kv.read(request.chunks)
    return cached / sum(request.prompt_tokens for request in requests)
