"""`semcache usage`: what was billed, what the cache spared, and what it cost. Reads; changes nothing."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import click

from semcache import config
from semcache.commands.shared import FILE, admin_url, ask_server, screen
from semcache.errors import ClientError, ConfigError, SemcacheError

if TYPE_CHECKING:
    from rich.console import Console

NOBODY = {"tenant": "(the cache)", "key": "-", "model": "-", "backend": "-", "region": "-"}
FIGURES = (
    "requests hits fetches billed_tokens billed_cached_tokens replayed_tokens shared_tokens avoided_tokens billed_usd "
    "avoided_usd own_usd saved_usd estimated unpriced"
).split()


@click.command(
    epilog="\b\nExamples:\n"
    "  semcache usage --since 7d\n"
    "  semcache usage --by tenant --by model --since 2026-11-01 --until 2026-12-01\n"
    "  semcache usage --by hour --model 'gpt-4o*' --csv > usage.csv\n"
    "  semcache usage --admin http://10.0.0.7:8081 --json"
)
@click.option("-c", "--config", "file", type=FILE, help="Configuration file; see config/reference.yaml.")
@click.option(
    "--by",
    multiple=True,
    default=("day",),
    show_default=True,
    metavar="WORD",
    help="What to tell apart: minute, hour or day; tenant, key, model, backend, region, purpose. Several may be given.",
)
@click.option("--tenant", metavar="NAME", help="Only of this tenant.")
@click.option("--key", metavar="ID", help="Only of this key, by its public id.")
@click.option("--model", metavar="GLOB", help="Only of these models.")
@click.option("--since", metavar="TIME", help="From then on: 7d, 24h, 2026-11-01, 2026-11-01T08:00 (UTC).")
@click.option("--until", metavar="TIME", help="Before then.")
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--admin", metavar="URL", help="Ask a running server at its admin address instead of reading the file.")
def usage(
    file: Path | None, by: tuple[str, ...], as_csv: bool, as_json: bool, admin: str | None, **only: str | None
) -> None:
    """Show tokens and money: billed by upstreams, avoided by the cache, and what is left of that.

    Saved is what was avoided less what the cache itself has cost: refreshes, explored hits, judging, embedding. The
    sums are read from the file beside the store (usage.path), whether a server is running or not.
    """
    if as_csv and as_json:
        raise click.UsageError("choose one of --csv and --json")
    try:
        asked = {"by": ",".join(by), **{name: value for name, value in only.items() if value is not None}}
        report = asyncio.run(_report(file, asked, admin))
    except SemcacheError as error:
        click.echo(f"semcache: {error.message}", err=True)
        sys.exit(2 if isinstance(error, (ConfigError, ClientError)) else 1)
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False, indent=2))
    elif as_csv:
        click.echo(_csv(report), nl=False)
    else:
        show(report, screen(150))


async def _report(file: Path | None, asked: dict[str, str], admin: str | None) -> Any:
    from semcache.usage.report import read_query, read_report
    from semcache.usage.rollups import usage_path

    settings = config.load(file)
    query = read_query(asked, time.time())
    path = usage_path(settings)
    if admin is None and path is not None and path.exists():
        return await asyncio.to_thread(read_report, path, query)
    answer = await ask_server(settings, f"/semcache/usage?{urlencode(asked)}", None, admin)
    if answer is not None:
        return json.loads(answer)
    server = f"no server listens on {admin_url(settings, admin)}"
    if admin is not None:
        raise SemcacheError(f"{server}: start it, or leave --admin out")
    if path is None:
        raise SemcacheError("usage is not kept: `usage.path` is off, or auto beside a store in memory")
    raise SemcacheError(f"{path} is not there yet, and {server}: nothing has been counted")


def _csv(report: dict[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*report["by"], *FIGURES], lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {name: f"{value:.9f}" if name.endswith("_usd") else _inert(value) for name, value in row.items()}
        for row in report["rows"]
    )
    return text.getvalue()


def _inert(value: object) -> object:
    """Spreadsheets compute what begins like a formula, and callers choose the names of models."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value


def show(report: dict[str, Any], console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    total = report["total"]
    if not report["rows"]:
        console.print("Nothing was counted in that time.")
        return
    table = Table(show_footer=len(report["rows"]) > 1, header_style="bold", footer_style="bold")
    for place, name in enumerate(report["by"]):
        table.add_column(name, "total" if place == 0 else "", no_wrap=name in ("day", "hour", "minute"))
    for title, cell in _COLUMNS.items():
        table.add_column(title, cell(total), justify="right", no_wrap=True)
    for row in report["rows"]:
        names = [escape(row[name] or NOBODY.get(name, "-")) for name in report["by"]]
        table.add_row(*names, *(cell(row) for cell in _COLUMNS.values()))
    console.print(table)
    console.print(
        f"Saved {_usd(total['saved_usd'])} net: {_usd(total['avoided_usd'])} avoided less {_usd(total['own_usd'])} "
        "that the cache has cost itself.",
        highlight=False,
    )
    if total["billed_cached_tokens"]:
        cached = total["billed_cached_tokens"]
        console.print(f"{cached:,} of the billed tokens came from upstreams' own prompt caches.", highlight=False)
    if total["estimated"]:
        console.print(f"{total['estimated']:,} answers had no usage: their tokens are estimates.", highlight=False)
    if total["unpriced"]:
        console.print(
            f"{total['unpriced']:,} answers are of models without a price: their money is missing where a + is. Write "
            "it into the file that `usage.prices` names, or beside the backend (`price`).",
            highlight=False,
        )


def _usd(value: float) -> str:
    sign = "-" if value < 0 else ""
    size = abs(value)
    if size < 0.00005:
        return "$0.00"
    return f"{sign}${size:,.2f}" if size >= 1 else f"{sign}${size:.4f}"


def _usd_so_far(usd: float, unpriced: int) -> str:
    return _usd(usd) + ("+" if unpriced else "")


_COLUMNS: dict[str, Any] = {
    "requests": lambda row: f"{row['requests']:,}",
    "hits": lambda row: f"{row['hits'] / row['requests']:.0%}" if row["requests"] else "-",
    "tokens billed": lambda row: f"{row['billed_tokens']:,}",
    "replayed": lambda row: f"{row['replayed_tokens']:,}",
    "shared": lambda row: f"{row['shared_tokens']:,}",
    "billed": lambda row: _usd_so_far(row["billed_usd"], row["unpriced"]),
    "avoided": lambda row: _usd_so_far(row["avoided_usd"], row["unpriced"]),
    "own cost": lambda row: _usd(row["own_usd"]),
    "saved net": lambda row: _usd(row["saved_usd"]),
}
