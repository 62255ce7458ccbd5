"""`semcache backends`: what a running proxy knows of its backends, and taking one out of service by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from semcache import config
from semcache.commands.shared import FILE, admin_url, ask_server, examples, screen, speaks_plainly
from semcache.errors import SemcacheError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from semcache.config import Config

Pools = Mapping[str, Mapping[str, Any]]

_GOOD = ("well",)
_DOUBTFUL = ("half-open", "resting", "drained", "off-duty")

_file = click.option("-c", "--config", "file", type=FILE, help="Configuration file; see config/reference.yaml.")
_admin = click.option(
    "--admin", metavar="URL", help="The server's admin address; by default the one of the configuration."
)
_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples(
        "semcache backends -c semcache.yaml",
        "semcache backends --admin http://10.0.0.7:8081 --json",
        "semcache backends drain 'local[0]'",
    ),
)
@_file
@_admin
@_as_json
@click.pass_context
@speaks_plainly
def backends(context: click.Context, file: Path | None, admin: str | None, as_json: bool) -> None:
    """Show each backend of a running proxy: its state, what it bears, how fast it is.

    Each worker process knows its own requests and checks; this asks the first one, --admin another.
    """
    if context.invoked_subcommand is not None:
        return
    pools = _ask(file, admin, "/backends", None)["pools"]
    if as_json:
        click.echo(json.dumps(pools, ensure_ascii=False, indent=2))
        return
    screen(160).print(table_of(pools))


@backends.command(
    epilog=examples("semcache backends drain 'local[0]'", "semcache backends drain local   # a whole pool")
)
@click.argument("name")
@_file
@_admin
@speaks_plainly
def drain(name: str, file: Path | None, admin: str | None) -> None:
    """Send a backend nothing new; what runs there ends in peace. NAME: as the table has it, or a pool's.

    It lasts until `undrain` or a restart; `drain: true` in the configuration lasts longer.
    """
    _tell_all(file, admin, f"/backends/{quote(name, safe='')}/drain")


@backends.command(epilog=examples("semcache backends undrain 'local[0]'"))
@click.argument("name")
@_file
@_admin
@speaks_plainly
def undrain(name: str, file: Path | None, admin: str | None) -> None:
    """Let a backend that was drained by hand take requests again."""
    _tell_all(file, admin, f"/backends/{quote(name, safe='')}/undrain")


def _ask(file: Path | None, admin: str | None, path: str, body: bytes | None) -> Any:
    return _ask_at(config.load(file), admin, path, body)


def _ask_at(settings: Config, admin: str | None, path: str, body: bytes | None) -> Any:
    answer = asyncio.run(ask_server(settings, path, body, admin))
    if answer is None:
        raise SemcacheError(f"no server listens on {admin_url(settings, admin)}: start it, or name it with --admin")
    return json.loads(answer)


def _tell_all(file: Path | None, admin: str | None, path: str) -> None:
    """Each worker has an admin port of its own, and what it is told concerns itself alone."""
    settings = config.load(file)
    workers = settings.server.workers if admin is None else 1
    for worker in range(workers):
        port = settings.server.admin_port + worker
        at = settings.model_copy(update={"server": settings.server.model_copy(update={"admin_port": port})})
        answer = _ask_at(at, admin, path, b"")
        prefix = f"worker {worker}: " if workers > 1 else ""
        for backend in answer["backends"]:
            running = f"; {backend['in_flight']} still run there" if backend["in_flight"] else ""
            click.echo(f"{prefix}{backend['name']} is {backend['state']}{running}")
        for note in answer["notes"]:
            click.echo(f"note: {note}")


def table_of(pools: Pools) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("backend", "url", "region", "state", "in flight", "limit", "requests", "failures", "first token"):
        is_number = heading in ("in flight", "limit", "requests", "failures", "first token")
        table.add_column(heading, justify="right" if is_number else "left", no_wrap=heading != "url")
    table.add_column("round trip", justify="right", no_wrap=True)
    for pool in pools.values():
        for name, backend in pool["backends"].items():
            table.add_row(*_cells(name, backend))
        if waiting := pool["queue"].get("waiting"):
            table.add_row("", f"{waiting} requests wait for a place")
    return table


def _cells(name: str, backend: Mapping[str, Any]) -> Iterator[Text]:
    from rich.text import Text

    state = backend["state"]
    style = "green" if state in _GOOD else "yellow" if state in _DOUBTFUL else "bold red"
    rests = f", {backend['rests_s']:.0f} s more" if backend["rests_s"] else ""
    yield Text(name)
    yield Text(backend["url"])
    yield Text(backend["region"] or "-")
    yield Text(state + rests, style)
    for figure in ("in_flight", "limit", "requests", "failures"):
        yield Text(f"{backend[figure]:,}")
    for seconds in (backend["ttft_s"], backend["round_trip_s"]):
        yield Text("-" if seconds is None else f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms")
