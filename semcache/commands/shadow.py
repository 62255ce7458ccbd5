"""`semcache shadow`: what each threshold would have done, asked of a running server or read from the store."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import click

from semcache.commands.shared import (
    FILE,
    admin_url,
    ask_server,
    examples,
    load,
    screen,
    speaks_plainly,
    with_config,
    with_store,
)
from semcache.errors import ClientError, SemcacheError

if TYPE_CHECKING:
    from semcache.config import Config


@click.command(
    epilog=examples(
        "semcache shadow",
        "semcache shadow --route 0 --target 0.02",
        "semcache shadow --admin http://10.0.0.7:8081 --json",
    )
)
@with_config
@click.option("--route", type=click.IntRange(0), help="Only this route, by its place in the configuration.")
@click.option(
    "--target",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="False hits among hits to allow; 0.01 is 1 %.",
)
@click.option("--admin", metavar="URL", help="The server's admin address; by default the one of the configuration.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--html", "page", type=FILE, help="Write the report as a page, too.")
@speaks_plainly
def shadow(
    file: Path | None, route: int | None, target: float | None, admin: str | None, as_json: bool, page: Path | None
) -> None:
    """Show what each threshold would have done, from requests in shadow mode: hits, false hits, what it would save.

    Asks a running server, else reads the store itself. Routes are in shadow mode with `match: {mode: shadow}`.
    """
    from semcache.commands.shadow_screen import show

    settings = load(file, {})
    report = asyncio.run(_shadow(settings, route, target, admin))
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    console = screen(record=page is not None)
    show(report, console)
    if page is not None:
        try:
            console.save_html(str(page))
        except OSError as exc:
            raise SemcacheError(f"{page}: cannot be written: {exc.strerror}") from exc


async def _shadow(settings: Config, route: int | None, target: float | None, admin: str | None) -> Any:
    from semcache.shadow import shadow_report

    asked = {name: value for name, value in (("route", route), ("target", target)) if value is not None}
    answer = await ask_server(settings, f"/shadow?{urlencode(asked)}", None, admin)
    if answer is not None:
        return json.loads(answer)
    if admin is not None:
        raise SemcacheError(f"no server listens on {admin_url(settings, admin)}: start it, or leave --admin out")
    if route is not None and route >= len(settings.routes):
        raise ClientError(f"--route: there are {len(settings.routes)} routes, the first is 0")
    report: list[Any] = []

    async def read(store: Any) -> int:
        report.append(shadow_report(await store.shadow_counts(), settings.routes, route, target))
        return 0

    await with_store(settings, read)
    return report[0]
