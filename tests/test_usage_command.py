"""`semcache usage` and `GET /semcache/usage`: the same as a table, as CSV and as JSON, with or without a server."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
from click.testing import CliRunner, Result

from loadtests.usage_day import START, Day
from semcache.admin.listener import Admin
from semcache.admin.usage import usage_routes
from semcache.cli import main
from semcache.config import Server


@pytest.fixture
async def day(tmp_path: Path) -> Path:
    """A configuration whose usage file holds a made-up day."""
    await Day(tmp_path / "usage.db").play()
    file = tmp_path / "semcache.yaml"
    file.write_text(f"usage: {{path: {tmp_path / 'usage.db'}}}\n")
    return file


def run(*words: object) -> Result:
    return CliRunner().invoke(main, ["usage", *map(str, words)])


def test_a_table_tells_what_was_saved_net_of_what_the_cache_has_cost(day: Path) -> None:
    shown = run("-c", day)
    assert shown.exit_code == 0
    assert "2026-11-20" in shown.output and "saved net" in shown.output
    assert "avoided less" in shown.output and "their tokens are estimates" in shown.output


def test_csv_and_json_tell_the_same(day: Path) -> None:
    words = ("-c", day, "--by", "tenant", "--by", "model", "--model", "gpt*")
    rows = list(csv.DictReader(io.StringIO(run(*words, "--csv").output)))
    report = json.loads(run(*words, "--json").output)
    assert [row["tenant"] for row in rows] == ["bank", "school", "shop"]
    for row, told in zip(rows, report["rows"], strict=True):
        assert int(row["requests"]) == told["requests"] > 0
        assert float(row["saved_usd"]) == pytest.approx(told["avoided_usd"] - told["own_usd"])


def test_names_that_a_spreadsheet_would_compute_are_made_inert(tmp_path: Path) -> None:
    from semcache.commands.usage import _csv

    text = _csv({"by": ["model"], "rows": [{"model": '=HYPERLINK("http://x")', "requests": 1, "saved_usd": -1.0}]})
    row = next(csv.DictReader(io.StringIO(text)))
    assert row["model"].startswith("'=") and row["saved_usd"] == "-1.000000000"


def test_a_time_without_requests_says_so(day: Path) -> None:
    assert "Nothing was counted in that time." in run("-c", day, "--since", "2030-01-01").output


@pytest.mark.parametrize(
    "words, status, complaint",
    [
        (("--by", "colour"), 2, "there are minute, hour, day, tenant"),
        (("--since", "soon"), 2, "write 7d, 24h"),
        (("--csv", "--json"), 2, "choose one"),
        (("--admin", "http://127.0.0.1:1"), 1, "no server listens"),
    ],
)
def test_what_cannot_be_told_is_one_clear_line(day: Path, words: tuple[str, ...], status: int, complaint: str) -> None:
    shown = run("-c", day, *words)
    assert shown.exit_code == status
    assert complaint in shown.output and "Traceback" not in shown.output


def test_usage_that_is_not_kept_says_why(tmp_path: Path) -> None:
    file = tmp_path / "semcache.yaml"
    file.write_text("cache: {store: 'memory:'}\nserver: {admin_port: 1}\n")
    shown = run("-c", file)
    assert shown.exit_code == 1 and "usage is not kept" in shown.output


# Over the admin port


@pytest.fixture
async def url(day: Path) -> AsyncIterator[str]:
    parts = cast(Any, SimpleNamespace())
    routes = usage_routes(day.parent / "usage.db", lambda: START)
    admin = Admin(Server(), parts, parts, list, dict, parts, parts, routes)
    try:
        yield f"http://127.0.0.1:{await admin.start('127.0.0.1', 0)}/semcache/usage"
    finally:
        await admin.stop()


async def test_the_admin_port_tells_usage(url: str) -> None:
    async with aiohttp.ClientSession() as session, session.get(url, params={"by": "tenant", "model": "gpt*"}) as reply:
        report = await reply.json()
        assert reply.status == 200 and reply.headers["Cache-Control"] == "no-store"
    assert [row["tenant"] for row in report["rows"]] == ["bank", "school", "shop"]
    assert report["total"]["saved_usd"] > 0


@pytest.mark.parametrize("query", ["by=colour", "since=soon", "tenant=a&tenant=b", "what=x"])
async def test_a_wrong_question_is_a_400_that_says_what_is_right(url: str, query: str) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"{url}?{query}") as reply:
        assert reply.status == 400
        assert (await reply.json())["error"]["message"]


async def test_strangers_get_no_figures(url: str) -> None:
    async with aiohttp.ClientSession() as session, session.get(url, headers={"X-Forwarded-For": "1.2.3.4"}) as reply:
        assert reply.status == 403
