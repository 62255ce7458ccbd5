"""Shadow mode: what each threshold would have done, counted from requests that are forwarded all the same."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from semcache.cache.store import open_store
from semcache.cache.store_evidence import ShadowCount, ShadowKey
from semcache.cli import main
from semcache.commands.shadow_screen import show
from semcache.config import Route, parse
from semcache.shadow import Strategy, recommend, shadow_report, shadow_request, wilson
from semcache.types import Considered, Finding, Occasion, Reason
from tests.entries import make_entry
from tests.harness import Proxy, running_proxy, until

ROUTES = parse("match: {mode: shadow}").routes
SHADOW = "match: {mode: shadow}"


def key(bucket: int, strategy: Strategy = Strategy.GUARDS, hour: int = 10, setting: str = "s") -> ShadowKey:
    return ShadowKey(hour, 0, setting, strategy, bucket)


def counts() -> list[tuple[ShadowKey, ShadowCount]]:
    """1,000 requests: 200 equal ones, 300 near at 0.95 of which 1 is false, 200 at 0.80 of which 100 are, 300 far."""
    semantic = [
        (95, ShadowCount(300, 299, 1, 3000, 6000, 3.0, 0, 300.0)),
        (80, ShadowCount(200, 80, 100, 2000, 4000, 2.0, 5, 200.0)),
        (-1, ShadowCount(300, 0, 0, 3000, 6000, 3.0, 0, 300.0)),
    ]
    return [
        (key(100, Strategy.EXACT), ShadowCount(200, 190, 10, 2000, 4000, 2.0, 0, 200.0)),
        *(
            (key(bucket, strategy), count)
            for bucket, count in semantic
            for strategy in (Strategy.GUARDS, Strategy.THRESHOLD)
        ),
    ]


def only_route(report: Any) -> Any:
    (route,) = report["routes"]
    return route


def row_at(route: Any, threshold: float, strategy: Strategy = Strategy.GUARDS) -> Any:
    return next(row for row in route["curves"][strategy] if math.isclose(row["threshold"], threshold))


def test_each_threshold_has_the_hits_at_and_above_it() -> None:
    route = only_route(shadow_report(counts(), ROUTES))
    assert route["requests"] == 1000
    strict, loose = row_at(route, 0.95), row_at(route, 0.80)
    assert (strict["hits"], strict["semantic_hits"], strict["compared"], strict["false"]) == (500, 300, 300, 1)
    assert (loose["hits"], loose["semantic_hits"], loose["compared"], loose["false"]) == (700, 500, 480, 101)
    assert row_at(route, 0.96)["hits"] == 200
    assert loose["not_compared"] == 20 / 500
    assert (strict["tokens"], strict["usd"], strict["fetch_s"], loose["unpriced"]) == (15000, 5.0, 500.0, 5)
    assert route["exact"] == {"hits": 200, "hit_rate": 0.2, "compared": 200, "different_rate": 0.05}


def test_what_was_counted_under_another_setting_is_left_out() -> None:
    old = [(key(99, hour=2, setting="old"), ShadowCount(70)), (key(99, Strategy.THRESHOLD, 2, "old"), ShadowCount(70))]
    route = only_route(shadow_report([*old, *counts()], ROUTES))
    assert (route["requests"], route["left_out"], route["since"]) == (1000, 70, 10 * 3600)


def test_a_route_that_was_never_in_shadow_mode_is_not_shown() -> None:
    assert shadow_report([], parse("").routes) == {"routes": []}
    assert only_route(shadow_report([], ROUTES))["requests"] == 0


def test_the_lowest_threshold_that_keeps_the_target_for_sure_is_recommended() -> None:
    route = only_route(shadow_report(counts(), ROUTES, target=0.05))
    found = route["recommendation"]
    assert found["threshold"] == 0.95  # between this and 0.80 nothing was seen
    assert found["yaml"] == "match:\n  mode: serve\n  threshold: 0.95"


def test_too_little_evidence_says_how_much_is_missing() -> None:
    found = only_route(shadow_report(counts(), ROUTES, target=0.01))["recommendation"]
    assert found["threshold"] is None
    total = found["row"]["compared"] + found["more"]
    assert wilson(found["row"]["false_rate"] * total, total)[1] <= 0.01


def test_a_target_out_of_reach_is_said_to_be() -> None:
    counted = [(key(99), ShadowCount(1000, 900, 100))]
    found = recommend(only_route(shadow_report(counted, ROUTES))["curves"][Strategy.GUARDS], 0.01)
    assert (found["threshold"], found["more"]) == (None, None)


def test_a_strict_threshold_that_fails_ends_the_search() -> None:
    """Else chance would find some lower one that seems to hold."""
    counted = [(key(99), ShadowCount(1000, 950, 50)), (key(80), ShadowCount(100_000, 100_000, 0))]
    found = recommend(only_route(shadow_report(counted, ROUTES))["curves"][Strategy.GUARDS], 0.01)
    assert found["threshold"] is None


@given(st.integers(0, 500), st.integers(1, 500))
def test_an_interval_holds_what_was_seen(found: int, of: int) -> None:
    found = min(found, of)
    low, high = wilson(found, of)
    assert 0 <= low <= found / of + 1e-12 and found / of - 1e-12 <= high <= 1


def test_nothing_seen_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def considered(similarity: float, objection: Reason | None = None) -> Considered:
    return Considered(make_entry(f"question {similarity}"), similarity, objection)


@pytest.mark.parametrize(
    "candidates, threshold, guards",
    [
        ([considered(0.93)], 93, 93),
        ([considered(0.9299999)], 93, 93),  # as a float32 has it
        ([considered(0.97, Reason.GUARD_DATE), considered(0.91)], 97, 91),
        ([considered(0.97, Reason.EXPIRED), considered(0.91)], 91, 91),  # too old to be served, whatever it says
        ([considered(0.97, Reason.GUARD_DATE)], 97, -1),
        ([considered(-0.2)], -1, -1),
        ([considered(0.91), considered(0.97, Reason.GUARD_DATE)], 97, 91),  # in whatever order
        ([], -1, -1),
    ],
)
def test_the_nearest_candidate_decides(candidates: list[Considered], threshold: int, guards: int) -> None:
    finding = Finding(None, Reason.NO_ENTRY, considered=tuple(candidates))
    eligible = [candidate.objection is None for candidate in candidates]
    request = shadow_request(finding, eligible, 1, 0, "s")
    assert {key.strategy: key.bucket for key, _ in request.counted} == {"threshold": threshold, "guards": guards}


def shown(report: Any) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    show(report, console)
    return console.export_text()


def test_the_screen_says_what_to_set() -> None:
    text = shown(shadow_report(counts(), ROUTES, target=0.05))
    assert "1,000 requests looked up" in text
    assert "at 0.95 there are 50 % hits, 0.33 % of those by meaning false" in text
    assert "threshold: 0.95" in text


def test_with_an_error_bound_no_threshold_is_to_be_pasted() -> None:
    report = shadow_report(counts(), parse("match: {mode: shadow, max_error: 0.05}").routes)
    assert only_route(report)["recommendation"]["yaml"] == "match:\n  mode: serve\n  max_error: 0.05"
    assert "no threshold is asked" in shown(report)


@pytest.mark.parametrize(
    "counted, says",
    [
        ([], "nothing was looked up"),
        ([(key(-1), ShadowCount(10))], "no hit by meaning was compared yet; it takes"),
        ([(key(99), ShadowCount(10, 10))], "not enough evidence"),
        ([(key(99), ShadowCount(1000, 900, 100))], "no threshold will do"),
    ],
)
def test_the_screen_says_what_is_missing(counted: Any, says: str) -> None:
    assert says in " ".join(shown(shadow_report(counted, ROUTES)).split())


def test_the_screen_says_how_to_begin() -> None:
    assert "mode: shadow" in shown({"routes": []})


# Through the proxy


async def compared(proxy: Proxy) -> None:
    await proxy.landed()
    await proxy.app.core.learning.idle()


async def get_report(proxy: Proxy, query: str = "") -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://127.0.0.1:{proxy.app.admin_port}/shadow{query}") as response,
    ):
        return response.status, await response.json()


async def test_in_shadow_mode_everything_is_forwarded_and_the_report_says_what_would_have_been(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, SHADOW) as proxy:
        for stream in (False, True, False):
            assert (await proxy.ask("How many days does a parcel need to Norway?", stream=stream)).verdict == "miss"
            await compared(proxy)
        assert proxy.backend.requests == 3
        _, report = await get_report(proxy)
        route = only_route(report)
        assert route["requests"] == 3
        assert (route["exact"]["hits"], route["exact"]["compared"]) == (2, 2)
        assert row_at(route, 0.7)["tokens"] == 2 * 33


async def test_near_questions_are_compared_and_leave_evidence(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, SHADOW) as proxy:
        told: list[Any] = []
        proxy.app.store.on_observations = told.extend
        await proxy.ask("How many days does a parcel need to Norway?")
        await compared(proxy)
        await proxy.ask("How many days does one parcel need to Norway?")
        await compared(proxy)
        _, report = await get_report(proxy)
        assert row_at(only_route(report), 0.7)["semantic_hits"] == 1
        await until(lambda: told or proxy.app.core.learning.stats().get("unsure"))
        assert [seen.occasion for seen in told] in ([Occasion.SHADOW], [])


@pytest.mark.parametrize("query", ["?route=9", "?route=x", "?target=2", "?target=x", "?target=nan"])
async def test_a_report_that_cannot_be_made_says_why(tmp_path: Path, query: str) -> None:
    async with running_proxy(tmp_path, SHADOW) as proxy:
        status, answer = await get_report(proxy, query)
        assert status == 400
        assert answer["error"]["message"].startswith(query[1:].partition("=")[0])


async def test_counts_outlive_a_restart_and_are_read_without_a_server(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, SHADOW) as proxy:
        await proxy.ask("How many days does a parcel need to Norway?")
        await compared(proxy)
    async with running_proxy(tmp_path, SHADOW) as proxy:
        _, report = await get_report(proxy)
        assert only_route(report)["requests"] == 1
    settings = parse(f"cache: {{store: 'sqlite:{tmp_path}/cache.db'}}\n{SHADOW}")
    store = open_store(settings.cache)
    await store.open()
    assert only_route(shadow_report(await store.shadow_counts(), settings.routes))["requests"] == 1
    await store.close()


def test_the_command_reads_the_store_and_writes_a_page(tmp_path: Path) -> None:
    file, page = tmp_path / "semcache.yaml", tmp_path / "report.html"
    file.write_text(f"cache: {{store: 'sqlite:{tmp_path}/cache.db'}}\n{SHADOW}\nserver: {{admin_port: 1}}\n")
    done = CliRunner().invoke(main, ["shadow", "-c", str(file), "--html", str(page)])
    assert (done.exit_code, "nothing was looked up" in done.output) == (0, True), done.output
    assert "nothing was looked up" in page.read_text()
    done = CliRunner().invoke(main, ["shadow", "-c", str(file), "--json"])
    assert json.loads(done.output)["routes"][0]["requests"] == 0
    done = CliRunner().invoke(main, ["shadow", "-c", str(file), "--route", "3"])
    assert (done.exit_code, "there are 1 routes" in done.output) == (2, True)


def test_a_route_keeps_its_own_target() -> None:
    routes = (Route.model_validate({"match": {"mode": "shadow"}}),)
    assert only_route(shadow_report(counts(), routes))["recommendation"]["target"] == 0.01
