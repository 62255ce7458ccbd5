"""Figures: what is counted for each kind of request, and what `/metrics` shows of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from semcache.telemetry import Histogram, Telemetry
from semcache.types import Outcome, Reason, Tier, Unstorable, Verdict
from tests.fakes import ModelServer
from tests.harness import running_proxy


class Ledger:
    """A ledger that says what it was told to say."""

    def __init__(self) -> None:
        self.totals: dict[tuple[str, str], SimpleNamespace] = {}
        self.seen: list[str] = []

    def observe(self, outcome: Outcome) -> None:
        self.seen.append(outcome.request_id)


class Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str | None]] = []

    def write(self, outcome: Outcome, question: str | None = None) -> None:
        self.lines.append((outcome.request_id, question))


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def telemetry(ledger: Ledger, log: Log) -> Telemetry:
    stats: dict[str, dict[str, object]] = {
        "embedder": {"queue_depth": 7.0},
        "pipeline": {"led": 5, "flights": 2, "fault_StoreFault": 1, "stored": 1, "unstorable_finish": 1},
    }
    stats |= {"listener": {"refused_header_timeout": 4, "requests": 6}}
    stats |= {"store": {"refused_puts": 2, "path": "not a number"}}
    stats |= {"request_log": {"lines_dropped": 3}, "usage": {"billed_usd": 1.0}}
    return Telemetry(lambda: stats, ledger, log, clock=iter([100.0, 160.0]).__next__)


def figures(telemetry: Telemetry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of the exposition, read by the client library's own parser."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(telemetry.render().decode())
        for sample in family.samples
    }


def one(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    return figures(telemetry).get((name, tuple(sorted(labels.items()))))


def an_outcome(**fields: object) -> Outcome:
    return Outcome("r1", 0.0, **fields)  # type: ignore[arg-type]


def test_requests_are_counted_by_verdict_reason_and_endpoint(telemetry: Telemetry) -> None:
    for _ in range(3):
        telemetry.observe(an_outcome(verdict=Verdict.MISS, reason=Reason.NO_ENTRY, endpoint="chat/completions"))
    telemetry.observe(an_outcome(verdict=Verdict.HIT, tier=Tier.EXACT, endpoint="chat/completions"))
    seen = figures(telemetry)
    chat = ("endpoint", "chat/completions")
    assert seen["semcache_requests_total", (chat, ("reason", "no-entry"), ("verdict", "miss"))] == 3
    assert seen["semcache_requests_total", (chat, ("reason", ""), ("verdict", "hit"))] == 1


def test_paths_that_callers_make_up_share_one_label(telemetry: Telemetry) -> None:
    for number in range(50):
        telemetry.observe(an_outcome(verdict=Verdict.BYPASS, reason=Reason.ENDPOINT, endpoint=f"made/up/{number}"))
    assert one(telemetry, "semcache_requests_total", verdict="bypass", reason="endpoint", endpoint="other") == 50


def test_times_are_told_in_seconds(telemetry: Telemetry) -> None:
    telemetry.observe(an_outcome(verdict=Verdict.HIT, total_ms=3.0, ttfb_ms=0.2, phases_ms={"embed": 2.0}))
    seen = figures(telemetry)
    hit = ("verdict", "hit")
    assert seen["semcache_request_seconds_sum", (hit,)] == pytest.approx(0.003)
    assert seen["semcache_request_seconds_bucket", (("le", "0.003"), hit)] == 1
    assert seen["semcache_request_seconds_bucket", (("le", "0.002"), hit)] == 0
    assert seen["semcache_ttfb_seconds_bucket", (("le", "0.00025"), hit)] == 1
    assert seen["semcache_phase_seconds_count", (("phase", "embed"),)] == 1


def test_similarities_served_and_rejected_are_told_apart(telemetry: Telemetry) -> None:
    telemetry.observe(an_outcome(verdict=Verdict.HIT, tier=Tier.SEMANTIC, similarity=0.97))
    telemetry.observe(an_outcome(verdict=Verdict.STALE, tier=Tier.SEMANTIC, similarity=0.93))
    telemetry.observe(an_outcome(verdict=Verdict.HIT, tier=Tier.EXACT, similarity=1.0))
    telemetry.observe(an_outcome(verdict=Verdict.MISS, reason=Reason.BELOW_THRESHOLD, similarity=0.88))
    telemetry.observe(an_outcome(verdict=Verdict.MISS, reason=Reason.BELOW_THRESHOLD, similarity=-0.1))
    seen = figures(telemetry)
    assert seen["semcache_similarity_count", (("result", "served"),)] == 2
    assert seen["semcache_similarity_count", (("result", "rejected"),)] == 2
    assert seen["semcache_similarity_sum", (("result", "rejected"),)] == pytest.approx(0.88)


def test_what_became_of_fetched_answers_is_counted(telemetry: Telemetry) -> None:
    telemetry.observe(an_outcome(verdict=Verdict.MISS, fwd_status=200, stored=True))
    telemetry.observe(an_outcome(verdict=Verdict.MISS, fwd_status=200, unstorable=Unstorable.FINISH))
    telemetry.observe(an_outcome(verdict=Verdict.MISS, fwd_status=429, unstorable=Unstorable.STATUS))
    telemetry.observe(an_outcome(verdict=Verdict.MISS, fwd_status=503, truncated=True, error="UpstreamError"))
    seen = figures(telemetry)
    assert seen["semcache_pipeline_stored_total", ()] == 1
    assert seen["semcache_unstorable_total", (("part", "pipeline"), ("reason", "finish"))] == 1
    assert seen["semcache_upstream_responses_total", (("status", "2xx"),)] == 2
    assert seen["semcache_upstream_responses_total", (("status", "429"),)] == 1
    assert seen["semcache_upstream_responses_total", (("status", "5xx"),)] == 1
    assert seen["semcache_errors_total", (("error", "UpstreamError"),)] == 1
    assert seen["semcache_truncated_total", ()] == 1


def test_what_guardrails_said_is_counted_by_rule_and_a_firewall_cannot_make_up_labels_without_end(
    telemetry: Telemetry,
) -> None:
    telemetry.observe(an_outcome(flags=("injection/no-restrictions", "secrets/jwt")))
    for number in range(1000):
        telemetry.observe(an_outcome(flags=(f"hook/reason-{number}", "secrets/jwt")))
    seen = figures(telemetry)
    assert seen["semcache_guardrail_flags_total", (("flag", "secrets/jwt"),)] == 1001
    assert seen["semcache_guardrail_flags_total", (("flag", "injection/no-restrictions"),)] == 1
    assert sum(name == "semcache_guardrail_flags_total" for name, _ in seen) <= 201


def test_a_hit_that_failed_on_its_way_out_is_counted_too(telemetry: Telemetry) -> None:
    telemetry.observe(an_outcome(verdict=Verdict.HIT, tier=Tier.EXACT, similarity=1.0, error="X", truncated=True))
    seen = figures(telemetry)
    assert seen["semcache_errors_total", (("error", "X"),)] == 1
    assert seen["semcache_truncated_total", ()] == 1
    assert seen["semcache_similarity_count", (("result", "rejected"),)] == 0


def test_tokens_and_money_are_told_by_model_and_source(telemetry: Telemetry, ledger: Ledger) -> None:
    ledger.totals["m", "fetched"] = SimpleNamespace(prompt_tokens=1, completion_tokens=2, usd=0.5)
    ledger.totals["m", "replayed"] = SimpleNamespace(prompt_tokens=10, completion_tokens=20, usd=5.0)
    ledger.totals["m", "shared"] = SimpleNamespace(prompt_tokens=3, completion_tokens=4, usd=1.0)
    seen = figures(telemetry)
    model = ("model", "m")
    assert seen["semcache_billed_tokens_total", (("kind", "completion"), model)] == 2
    assert seen["semcache_avoided_tokens_total", (("kind", "prompt"), model, ("source", "replayed"))] == 10
    assert seen["semcache_avoided_usd_total", (model, ("source", "shared"))] == 1.0
    assert seen["semcache_billed_usd_total", (model,)] == 0.5


def test_the_figures_of_the_parts_are_shown_as_counters_gauges_and_faults(telemetry: Telemetry) -> None:
    seen = figures(telemetry)
    assert seen["semcache_embedder_queue_depth", ()] == 7
    assert seen["semcache_pipeline_flights", ()] == 2
    assert seen["semcache_listener_requests", ()] == 6  # under way
    assert seen["semcache_pipeline_led_total", ()] == 5
    assert seen["semcache_request_log_lines_dropped_total", ()] == 3
    assert seen["semcache_store_refused_puts_total", ()] == 2
    assert seen["semcache_faults_total", (("kind", "StoreFault"), ("part", "pipeline"))] == 1
    assert seen["semcache_refused_total", (("kind", "header_timeout"), ("part", "listener"))] == 4
    assert not any("path" in name or name.startswith("semcache_usage") for name, _ in seen)


def test_uptime_build_and_process_are_shown(telemetry: Telemetry) -> None:
    seen = figures(telemetry)
    assert seen["semcache_uptime_seconds", ()] == 60
    assert any(name == "semcache_build_info" for name, _ in seen)
    assert any(name == "process_resident_memory_bytes" for name, _ in seen)


def test_every_request_reaches_the_ledger_and_the_log_once(telemetry: Telemetry, ledger: Ledger, log: Log) -> None:
    telemetry.observe(an_outcome(verdict=Verdict.MISS), "what is a monad?")
    assert ledger.seen == ["r1"]
    assert log.lines == [("r1", "what is a monad?")]


def test_no_label_holds_what_a_caller_wrote(telemetry: Telemetry) -> None:
    secret = "sk-secret"
    telemetry.observe(
        an_outcome(
            verdict=Verdict.MISS,
            tenant=secret,
            namespace=secret,
            model=secret,
            endpoint=secret,
            entry_id=secret,
            backend=secret,
        ),
        secret,
    )
    assert secret not in telemetry.render().decode()


def test_a_value_on_a_bound_belongs_below_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (1.0, 1.5, 2.0, 99.0):
        histogram.add(value)
    assert histogram.cumulative(1) == [("1", 1.0), ("2", 3.0), ("+Inf", 4.0)]


async def test_each_backend_is_told_by_its_name_and_by_nothing_that_is_secret(tmp_path: Path) -> None:
    gone = "{url: 'http://127.0.0.1:9/v1', api_keys: [sk-one, sk-two]}"
    async with ModelServer().running() as model:
        health = "health: {interval: 0s, failures: 1}"
        settings = f"pools: {{near: {{backends: [{{url: '{model.url}'}}]}}, far: {{backends: [{gone}], {health}}}}}"
        async with running_proxy(tmp_path, f"{settings}\nroutes: [{{pools: [far, near]}}]") as proxy:
            assert (await proxy.ask("What is a monad?")).verdict == "miss"
            await proxy.landed()
            told = figures(proxy.app.telemetry)
            rendered = proxy.app.telemetry.render().decode()
    near = (("backend", "near[0]"),)
    assert told["semcache_backend_requests_total", near] == 1
    assert told["semcache_backend_in_flight", near] == 0
    assert told["semcache_backend_ttft_seconds", near] > 0
    assert told["semcache_backend_state", (*near, ("state", "well"))] == 1
    assert sum(told["semcache_backend_failures_total", (("backend", f"far[0]#{key}"),)] for key in (0, 1)) >= 1
    assert told["semcache_pool_waiting", (("pool", "far"),)] == 0
    assert told["semcache_backends_failovers_total", ()] >= 1
    assert "sk-" not in rendered and "127.0.0.1" not in rendered
