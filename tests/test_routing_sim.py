"""The simulated servers of the routing benchmark behave as their description says."""

from __future__ import annotations

import pytest

from loadtests.bench_routing import ORACLE, choose_by, choose_in_turn, choose_knowing
from loadtests.routing_sim import Model, Request, Seen, Server, play
from loadtests.routing_workloads import chats, held_by_one, strangers

MODEL = Model(prefill_per_s=1000, decode_per_s=10, slots=2, block_tokens=100, kv_tokens=400)


def servers(count: int = 1, speed: float = 1.0, model: Model = MODEL) -> list[Server]:
    return [Server(model, speed, Seen(1.0, 1000)) for _ in range(count)]


def times(requests: list[Request], there: list[Server]) -> list[float]:
    return [job.ttft_s for job in play(requests, there, choose_in_turn(there)).jobs]


def test_prompts_are_read_one_after_the_other() -> None:
    assert times([Request(0, 1000, 1), Request(0.5, 1000, 1)], servers()) == pytest.approx([1.0, 1.5])
    assert times([Request(0, 1000, 1)], servers(speed=2.0)) == pytest.approx([0.5])


def test_a_prompt_waits_for_a_place_to_be_answered_in() -> None:
    requests = [Request(0, 100, 100), Request(0, 100, 100), Request(0, 100, 100)]
    assert times(requests, servers()) == pytest.approx([0.1, 0.2, 10.2]), "two places, each taken for 10 s"


def test_what_the_kv_cache_holds_is_not_read_again() -> None:
    requests = [Request(0, 250, 1, (1, 2)), Request(10, 350, 1, (1, 2, 3)), Request(20, 200, 1, (1, 9))]
    played = play(requests, there := servers(), choose_in_turn(there))
    assert [job.cached_tokens for job in played.jobs] == [0, 200, 100]
    assert [job.ttft_s for job in played.jobs] == pytest.approx([0.25, 0.15, 0.1])


def test_a_full_kv_cache_evicts_what_was_used_longest_ago() -> None:
    requests = [Request(now, 201, 1, chunks) for now, chunks in [(0, (1, 2)), (1, (3, 4)), (2, (5, 6)), (3, (1, 2))]]
    played = play(requests, there := servers(), choose_in_turn(there))
    assert [job.cached_tokens for job in played.jobs] == [0, 0, 0, 0]


def test_nothing_is_in_flight_at_the_end() -> None:
    there = servers(5, model=Model())
    for balance in ("least-load", "prefix", "weighted", "latency"):
        played = play(chats(300, 20.0, 1), there, choose_by(balance, there, 1))
        assert len(played.jobs) == 300 and all(job.ttft_s >= 0 for job in played.jobs)
        assert [(server.seen.in_flight, server.seen.tokens) for server in there] == [(0, 0)] * 5


def test_a_proxy_that_forgets_nothing_matches_as_the_oracle_while_nothing_is_evicted() -> None:
    requests = chats(400, 20.0, 1)
    ours, known = servers(4, model=Model()), servers(4, model=Model())
    seen = play(requests, ours, choose_by("prefix", ours, 1, ORACLE))
    told = play(requests, known, choose_knowing(known, 1))
    assert [job.cached_tokens for job in seen.jobs] == [job.cached_tokens for job in told.jobs]
    assert 0.2 < seen.cached_share() <= held_by_one(requests, Model(), 4)


def test_load_is_what_all_servers_together_can_read() -> None:
    requests = strangers(20_000, 10, 0.5, Model(), 1)
    per_s = sum(request.prompt_tokens for request in requests) / requests[-1].at_s
    assert per_s == pytest.approx(0.5 * 10 * Model().prefill_per_s, rel=0.05)
