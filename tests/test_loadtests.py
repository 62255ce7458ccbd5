"""Workloads are drawn as told, false hits are found, and the report says what happened."""

from __future__ import annotations

import gzip
import itertools
import json
from collections import Counter
from pathlib import Path
from statistics import mean

import pytest

from loadtests.driver import Driver, Provenance, Result, Run, read_stream
from loadtests.report import as_text, summarize, wilson, write_html, write_json
from loadtests.workload import Request, Workload, arriving, from_file, poisson, shop_traffic, trace, with_streams
from semcache.errors import ConfigError
from semcache.simulate import Simulator
from semcache.types import Tier, Verdict
from tests.careless_cache import CarelessCache

ORDERS = Workload(
    "orders",
    (
        Request("Where is order 1?", "order/1"),
        Request("Where is order 1?", "order/1"),
        Request("where is order 1", "order/1", stream=True),
        Request("Where is order 2?", "order/2"),
        Request("Where is order 1?", "order/1", stream=True),
    ),
)


def test_a_seed_gives_the_same_workload_every_time() -> None:
    assert shop_traffic(300, seed=5) == shop_traffic(300, seed=5)
    assert shop_traffic(300, seed=5) != shop_traffic(300, seed=6)


def test_popularity_follows_zipf() -> None:
    flat = Counter(r.group for r in shop_traffic(4000, zipf=0).requests).most_common(1)[0][1]
    steep = Counter(r.group for r in shop_traffic(4000, zipf=1.2).requests).most_common(1)[0][1]
    assert steep > 8 * flat


def test_poisson_arrivals_have_the_rate_and_the_spread_of_chance() -> None:
    times = list(itertools.islice(poisson(50, seed=3), 5000))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert mean(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert mean(gap > 1 / 50 for gap in gaps) == pytest.approx(0.368, abs=0.03)  # e^-1


def test_a_share_of_the_requests_are_streams() -> None:
    requests = with_streams(shop_traffic(2000), 0.3).requests
    assert mean(request.stream for request in requests) == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize(
    "name, content",
    [
        ("azure.csv", "t_s,context_tokens\n3.5,10\n4.5,20\n"),
        ("mooncake.csv", "t_ms,input_length\n3500,10\n4500,20\n"),
        ("own.jsonl", '{"t": 3.5}\n{"t": 4.5}\n'),
        ("own.jsonl.gz", '{"t": 3.5}\n{"t": 4.5}\n'),
    ],
)
def test_a_trace_gives_its_times_from_zero(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    assert list(trace(path, speed=2)) == [0.0, 0.5]
    assert [r.at_s for r in arriving(ORDERS, trace(path)).requests] == [0.0, 1.0]


def test_a_file_of_questions_is_read_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl.gz"
    rows = [
        {"text": "a", "group": "g"},
        {"text": "b", "class": "c", "group": "domain", "t": 4},
        {"text": "c", "class": 7, "class_slots": "fine"},
    ]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert from_file(path).requests == (Request("a", "g"), Request("b", "c", at_s=4.0), Request("c", "7"))
    assert [r.text for r in from_file(path, limit=2).requests] == ["a", "b"]


@pytest.mark.parametrize(
    "content, complaint",
    [
        ("{]", ":1: not a JSON object"),
        ('{"text": "a"}', ":1: no field `group`"),
        ('{"group": "a"}', ":1: not a JSON object with `text`"),
        ("", "no requests in it"),
    ],
)
def test_an_unusable_file_names_its_line(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match=complaint):
        from_file(path)


async def test_a_false_hit_is_known_by_the_answer_that_came() -> None:
    async with Simulator() as backend, CarelessCache(backend.url) as cache:
        run = await Driver(cache.url).closed_loop(ORDERS, concurrency=1)
    assert [(r.verdict, r.tier, r.right) for r in run.results] == [
        (Verdict.MISS, None, True),
        (Verdict.HIT, Tier.EXACT, True),
        (Verdict.MISS, None, True),
        (Verdict.HIT, Tier.SEMANTIC, False),
        (Verdict.HIT, Tier.SEMANTIC, True),  # other words, the same group
    ]
    assert run.results[3].answered_for == "Where is order 1?"
    assert run.results[3].similarity == 0.95


def test_with_a_backend_that_does_not_sign_answers_are_known_by_their_content() -> None:
    provenance = Provenance(ORDERS)
    one, _, _, two, _ = ORDERS.requests
    assert provenance.judge("It left today.", one) == (None, None)  # never seen: unknown, not right
    provenance.learn("It left today.", one)
    assert provenance.judge("It left today.", two) == (False, "Where is order 1?")
    provenance.learn("It left today.", two)  # the backend itself says the same to both
    assert provenance.judge("It left today.", two) == (True, "Where is order 2?")


async def test_an_open_loop_sends_on_time_however_slow_the_answers() -> None:
    timed = arriving(ORDERS, itertools.repeat(0.0))
    async with Simulator(ttft_s=0.02) as backend:
        run = await Driver(backend.url).open_loop(timed)
        assert backend.counters.max_active == len(ORDERS.requests)
    assert all(r.total_ms >= r.ttfb_ms >= 20 for r in run.results)
    assert {r.verdict for r in run.results} == {Verdict.BYPASS}  # no cache in between


async def test_errors_are_counted_and_end_nothing() -> None:
    async with Simulator() as backend:
        nowhere = Driver(backend.url.replace("/v1", "/v2"))
        run = await nowhere.closed_loop(ORDERS, concurrency=2)
    gone = await Driver(backend.url).closed_loop(ORDERS, concurrency=2)
    assert summarize(run)["errors"] == {"status 404": 5}
    assert summarize(gone)["errors"] == {"ClientConnectorError": 5}


def test_a_stream_without_its_end_is_an_error() -> None:
    with pytest.raises(ValueError, match="cut"):
        read_stream(b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n')


def test_the_interval_of_a_rate_is_wilsons() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 100) == pytest.approx((0.0, 0.0370), abs=1e-4)
    assert wilson(10, 100) == pytest.approx((0.0552, 0.1744), abs=1e-4)


def test_the_report_gives_the_rates_the_ceilings_and_the_false_hits(tmp_path: Path) -> None:
    run = finished_run()
    summary = summarize(run, {"threshold": 0.9})
    assert summary["hit_rate"]["rate"] == 0.6
    assert summary["false_hits_of_hits"]["events"] == 1 and summary["false_hits_of_hits"]["of"] == 3
    assert summary["false_hits_of_requests"]["of"] == 5
    assert summary["ceilings"] == {"knows_the_groups": 0.6, "equal_texts_only": pytest.approx(0.4)}
    assert summary["latency_ms"]["miss"]["first_byte"]["p50"] == 300.0
    assert "95 %: 6.15% – 79.23%" in as_text(summary)

    write_json(summary, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(summary))


def test_the_page_is_whole_in_itself_and_shows_text_as_text(tmp_path: Path) -> None:
    run = finished_run(asked="Where is <script>alert(1)</script> & co?")
    write_html(summarize(run), run, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 4
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt; &amp; co?" in page
    assert "src=" not in page and "@import" not in page
    assert "$" not in page


def finished_run(asked: str = "Where is order 2?") -> Run:
    run = Run(ORDERS, wall_s=1.0)
    for place, request in enumerate(ORDERS.requests):
        run.results.append(
            Result(
                request, place * 0.2, Verdict.MISS, detail="no-entry", status=200, ttfb_ms=300, total_ms=900, right=True
            )
        )
    for place in (1, 3, 4):
        result = run.results[place]
        result.verdict, result.tier, result.similarity, result.ttfb_ms = Verdict.HIT, Tier.SEMANTIC, 0.93, 4.0
    run.results[3].right, run.results[3].answered_for = False, asked
    return run
