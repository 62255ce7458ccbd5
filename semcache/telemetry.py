"""What the program tells about itself, read from each request's Outcome and from the parts' `stats()`.

Counting a request takes a few plain additions; names, labels and text are made when somebody asks for `/metrics`.
Names end in their unit. Labels have few values, all ours: never a key, a prompt or a user, and a model's name only from
the ledger's bounded list.
"""

from __future__ import annotations

import platform
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import monotonic
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from semcache import __version__
from semcache.types import Outcome, Reason, Tier, Verdict

Stats = Mapping[str, Mapping[str, object]]  # part -> name -> figure; what is no number is not for metrics

# A hit takes 0.2 ms, an embedding 2, a search up to 50, an answer seconds.
TIMES_MS = (0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 20, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 120_000)
# Fine where thresholds are chosen, coarse where nobody would set one.
SIMILARITIES = (0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.82, 0.84, 0.86, 0.88, *(n / 100 for n in range(90, 101)))

ENDPOINTS = frozenset({"chat/completions", "completions", "responses", "embeddings", "messages", "models"})

MOST_FLAGS = 200  # kinds of what guardrails say: some 40 rules of ours, and those of a firewall of the operator

# Figures of the parts that only grow. All others are gauges: sizes, queues, what is under way.
COUNTERS: Mapping[str, frozenset[str]] = {
    part: frozenset(names.split())
    for part, names in {
        "audit": "lines_written lines_withheld lines_lost faults rotations",
        "backends": "requests failovers hedges overflows over_budget refused checks_asked checks_failed "
        "checks_unanswered checks_faults",
        "bound": "served explored audited below_cut without_evidence unsound fits faults",
        "feedback": "wrong right unknown",
        "firewall": "asked remembered failed outside",
        "embedder": "texts remembered joined too_long faults refused late skipped seconds",
        "learning": "dropped incomparable unsure lost embed_seconds judge_yes judge_no judge_unclear judge_faults "
        "judge_refused judge_over_budget judge_too_long",
        "index": "folds folds_failed fold_seconds vectors_refused snapshots_saved snapshots_damaged snapshots_foreign",
        "pipeline": "led joined stored",
        "request_log": "lines_written lines_dropped lines_lost",
        "usage": "own_usd estimated_requests unpriced_requests",
        "usage_file": "faults rows_written",
        "quotas": "refused",
        "reload": "reloads",
        "residency": "refused",
        "store": "commits puts refused_puts purged_puts reads damaged foreign_changes apply_faults poll_faults "
        "hot_hits hot_misses",
        "upkeep": "rounds faults expired evicted clock_jumps",
    }.items()
}
# Figures whose names begin so are counted by kind, of whatever part: the prefix names the metric, the rest is a label.
KINDS: Mapping[str, tuple[str, str, str]] = {  # prefix -> metric, what it tells, the label's name
    "fault_": ("faults", "Failures inside the cache, by part and kind.", "kind"),
    "observed_": ("observations", "Fresh answers held against stored ones, by occasion and what it showed.", "kind"),
    "refused_": ("refused", "What a part turned away, by part and kind.", "kind"),
    "unstorable_": ("unstorable", "Answers not kept, by reason.", "reason"),
}


class Spent(Protocol):
    prompt_tokens: int
    completion_tokens: int

    @property
    def usd(self) -> float: ...


class Ledger(Protocol):
    @property
    def totals(self) -> Mapping[tuple[str, str], Spent]:
        """By model (few) and by who produced the answer: "fetched" is billed, "replayed" and "shared" were avoided."""

    def observe(self, outcome: Outcome) -> None: ...


class Log(Protocol):
    def write(self, outcome: Outcome, question: str | None = None) -> None: ...


class Histogram:
    """Counts of values by the least bound that is not below them; the last count is of those above all bounds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self, unit: float) -> list[tuple[str, float]]:
        """Buckets as the exposition format has them. `unit`: what one of the values is in the unit shown."""
        seen, buckets = 0, []
        for bound, count in zip([*self.bounds, float("inf")], self.counts, strict=True):
            seen += count
            buckets.append(("+Inf" if bound == float("inf") else f"{bound * unit:g}", float(seen)))
        return buckets


class _Tally:
    """What is counted for each verdict."""

    __slots__ = ("bytes_out", "is_served", "request_ms", "ttfb_ms")

    def __init__(self, verdict: Verdict) -> None:
        self.is_served = verdict in (Verdict.HIT, Verdict.STALE)
        self.request_ms = Histogram(TIMES_MS)
        self.ttfb_ms = Histogram(TIMES_MS)
        self.bytes_out = 0


_SEMANTIC = Tier.SEMANTIC  # reaching into an enum class costs as much as a histogram's bisection


class Telemetry(Collector):
    """One worker's figures. `stats` is asked at each scrape; `ledger` and `log` see each request that is counted."""

    def __init__(
        self, stats: Callable[[], Stats], ledger: Ledger, log: Log, clock: Callable[[], float] = monotonic
    ) -> None:
        self._stats = stats
        self._ledger = ledger
        self._log = log
        self._clock = clock
        self._started = clock()
        self._requests: dict[tuple[Verdict, Reason | None, str], int] = defaultdict(int)
        self._by_verdict = {verdict: _Tally(verdict) for verdict in Verdict}
        self._phase_ms: dict[str, Histogram] = defaultdict(lambda: Histogram(TIMES_MS))
        self._served, self._rejected = Histogram(SIMILARITIES), Histogram(SIMILARITIES)
        self._upstream: dict[int, int] = defaultdict(int)
        self._errors: dict[str, int] = defaultdict(int)
        self._flags: dict[str, int] = defaultdict(int)
        self._truncated = 0
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def observe(self, outcome: Outcome, question: str | None = None) -> None:
        """Count one finished request. On the event loop, for every request, in under 5 microseconds.

        `question` is for the log, which drops it unless the operator wants prompts there.
        """
        endpoint = outcome.endpoint
        if outcome.feedback is not None:  # no request to a model: the figures of feedback are its own
            self._log.write(outcome, question)
            return
        self._requests[outcome.verdict, outcome.reason, endpoint if endpoint in ENDPOINTS else "other"] += 1
        tally = self._by_verdict[outcome.verdict]
        tally.bytes_out += outcome.bytes_out
        if outcome.total_ms is not None:
            tally.request_ms.add(outcome.total_ms)
        if outcome.ttfb_ms is not None:
            tally.ttfb_ms.add(outcome.ttfb_ms)
        if outcome.phases_ms:
            for phase, ms in outcome.phases_ms.items():
                self._phase_ms[phase].add(ms)
        self._truncated += outcome.truncated
        if not tally.is_served or outcome.error is not None:
            self._count_forwarding(outcome)
        elif outcome.tier is _SEMANTIC and outcome.similarity is not None:  # of an exact hit it is 1 and tells nothing
            self._served.add(outcome.similarity)
        for flag in outcome.flags:
            self._flags[flag if flag in self._flags or len(self._flags) < MOST_FLAGS else "other"] += 1
        self._ledger.observe(outcome)
        self._log.write(outcome, question)

    def _count_forwarding(self, outcome: Outcome) -> None:
        if (
            outcome.similarity is not None and outcome.tier is None
        ):  # clamped: a sum of negative numbers looks like a counter that was reset
            self._rejected.add(max(0.0, outcome.similarity))
        if outcome.fwd_status is not None:
            self._upstream[outcome.fwd_status] += 1
        if outcome.error is not None:
            self._errors[outcome.error] += 1

    def render(self) -> bytes:
        """Return all figures in the Prometheus text format, version 0.0.4."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        yield from self._about_requests()
        yield from self._about_times()
        yield from self._about_money()
        stats = self._stats()
        pools = stats.get("backends", {}).get("pools")
        yield from _about_backends(pools if isinstance(pools, dict) else {})
        yield from _about_parts(stats)
        yield _gauge("uptime_seconds", "Since the start of this worker.", [((), self._clock() - self._started)])
        build = {"version": __version__, "python": platform.python_version()}
        yield _gauge("build_info", "What is running.", [(tuple(build.values()), 1)], tuple(build))

    def _about_requests(self) -> Iterator[Metric]:
        yield _counter(
            "requests",
            "Requests by what became of them, and why they were not answered from the store.",
            [((verdict, reason or "", endpoint), n) for (verdict, reason, endpoint), n in self._requests.items()],
            ("verdict", "reason", "endpoint"),
        )
        upstream: dict[str, int] = defaultdict(int)
        for status, n in self._upstream.items():
            upstream[_status_class(status)] += n
        yield _counter(
            "upstream_responses",
            "Answers of backends by status; 429 apart from the other 4xx.",
            [((status,), n) for status, n in upstream.items()],
            ("status",),
        )
        yield _counter(
            "errors", "Our own errors by class.", [((error,), n) for error, n in self._errors.items()], ("error",)
        )
        yield _counter(
            "guardrail_flags",
            "What guardrails said of requests, by check and rule.",
            [((flag,), n) for flag, n in self._flags.items()],
            ("flag",),
        )
        yield _counter(
            "truncated", "Answers that ended early, by the upstream or by a client that left.", [((), self._truncated)]
        )
        yield _counter(
            "response_bytes",
            "Bytes of answers sent.",
            [((verdict,), tally.bytes_out) for verdict, tally in self._by_verdict.items()],
            ("verdict",),
        )

    def _about_times(self) -> Iterator[Metric]:
        similarity = {"served": self._served, "rejected": self._rejected}
        yield _histogram(
            "similarity",
            "Cosine of semantic hits served, and of the best candidate where none was.",
            similarity,
            "result",
            unit=1,
        )
        by_verdict = {verdict.value: tally.request_ms for verdict, tally in self._by_verdict.items()}
        yield _histogram("request_seconds", "From the first header to the last byte.", by_verdict, "verdict")
        by_verdict = {verdict.value: tally.ttfb_ms for verdict, tally in self._by_verdict.items()}
        yield _histogram(
            "ttfb_seconds", "From the first header to the first byte of the answer.", by_verdict, "verdict"
        )
        yield _histogram("phase_seconds", "Of each phase of a request's life.", self._phase_ms, "phase")

    def _about_money(self) -> Iterator[Metric]:
        billed_tokens, avoided_tokens, billed_usd, avoided_usd = [], [], [], []
        for (model, source), spent in self._ledger.totals.items():
            kinds = (("prompt", spent.prompt_tokens), ("completion", spent.completion_tokens))
            if source == "fetched":
                billed_tokens += [((model, kind), n) for kind, n in kinds]
                billed_usd.append(((model,), spent.usd))
            else:
                avoided_tokens += [((model, source, kind), n) for kind, n in kinds]
                avoided_usd.append(((model, source), spent.usd))
        labels = ("model", "source")
        yield _counter("billed_tokens", "Tokens that a backend made for a request.", billed_tokens, ("model", "kind"))
        yield _counter(
            "avoided_tokens",
            "Tokens replayed from the store, or shared from another request's fetch.",
            avoided_tokens,
            (*labels, "kind"),
        )
        yield _counter("billed_usd", "Cost of the billed tokens at list prices.", billed_usd, ("model",))
        yield _counter("avoided_usd", "What the avoided tokens would have cost.", avoided_usd, labels)


def _about_backends(pools: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[Metric]:
    """Each backend by the name it has in the configuration, "local[0]", and what waits before each pool.

    No address and no key is in a name.
    """
    backends = {name: told for pool in pools.values() for name, told in pool["backends"].items()}

    def of_each(figure: str) -> list[tuple[tuple[str, ...], float]]:
        return [((name,), told[figure]) for name, told in backends.items() if told[figure] is not None]

    yield _gauge("backend_in_flight", "Requests that run there.", of_each("in_flight"), ("backend",))
    yield _gauge("backend_limit", "Requests that it is taken to bear at once.", of_each("limit"), ("backend",))
    yield _counter("backend_requests", "Requests that were sent there.", of_each("requests"), ("backend",))
    yield _counter("backend_failures", "Requests that failed there.", of_each("failures"), ("backend",))
    ttft = "Until the first byte of a short request that came now, as is expected."
    yield _gauge("backend_ttft_seconds", ttft, of_each("ttft_s"), ("backend",))
    yield _gauge("backend_round_trip_seconds", "To its host and back.", of_each("round_trip_s"), ("backend",))
    states: Rows = [((name, str(told["state"])), 1) for name, told in backends.items()]
    yield _gauge("backend_state", "1 for the state that it is in; other states are not there.", states, _STATE_LABELS)
    waiting: Rows = [((name,), pool["queue"]["waiting"]) for name, pool in pools.items()]
    yield _gauge("pool_waiting", "Requests that wait for a place at any backend of a pool.", waiting, ("pool",))


_STATE_LABELS = ("backend", "state")


def _about_parts(stats: Stats) -> Iterator[Metric]:
    """Every figure of every part, under the names that the parts gave them."""
    by_kind: dict[str, list[tuple[tuple[str, ...], float]]] = {prefix: [] for prefix in KINDS}
    for part, figures in stats.items():
        if part == "usage":  # the rest is told by model already
            figures = {name: value for name, value in figures.items() if name in COUNTERS[part]}
        counters = COUNTERS.get(part, frozenset())
        for name, value in figures.items():
            if not isinstance(value, (int, float)):
                continue
            prefix = next((prefix for prefix in KINDS if name.startswith(prefix) and name not in counters), None)
            if prefix is not None:
                by_kind[prefix].append(((part, name.removeprefix(prefix)), value))
                continue
            family = _counter if name in counters else _gauge
            metric = _METRIC_NAME.sub("_", f"{part}_{name}")
            yield family(metric, f"{part}: {name.replace('_', ' ')}.", [((), value)])
    for prefix, (metric, text, label) in KINDS.items():
        yield _counter(metric, text, by_kind[prefix], ("part", label))


_METRIC_NAME = re.compile(r"[^a-zA-Z0-9_]")

Rows = Sequence[tuple[tuple[str, ...], float]]


def _counter(name: str, text: str, rows: Rows, labels: Sequence[str] = ()) -> Metric:
    family = CounterMetricFamily(f"semcache_{name}", text, labels=labels)
    for values, n in rows:
        family.add_metric(values, n)
    return family


def _gauge(name: str, text: str, rows: Rows, labels: Sequence[str] = ()) -> Metric:
    family = GaugeMetricFamily(f"semcache_{name}", text, labels=labels)
    for values, n in rows:
        family.add_metric(values, n)
    return family


def _histogram(name: str, text: str, rows: Mapping[str, Histogram], label: str, unit: float = 0.001) -> Metric:
    family = HistogramMetricFamily(f"semcache_{name}", text, labels=[label])
    for value, histogram in rows.items():
        family.add_metric([value], buckets=histogram.cumulative(unit), sum_value=histogram.total * unit)
    return family


def _status_class(status: int) -> str:
    return str(status) if status == 429 else f"{status // 100}xx"
