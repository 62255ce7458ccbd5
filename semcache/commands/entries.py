"""`semcache purge`, `export` and `import`: the stored answers, as an operator removes, saves and brings them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from semcache.commands.shared import (
    FILE,
    ask_server,
    examples,
    fail,
    load,
    record_act,
    speaks_plainly,
    with_config,
    with_store,
)
from semcache.errors import SemcacheError

if TYPE_CHECKING:
    from semcache.config import Config


@click.command(
    epilog=examples(
        "semcache purge --text 'Where is my parcel?' --dry-run",
        "semcache purge --tenant shop --erase --yes",
        "semcache purge --all",
    )
)
@with_config
@click.option("--all", "everything", is_flag=True, help="Everything.")
@click.option("--entry", metavar="ID", help="One entry, as named in Semcache-Entry.")
@click.option("--model", metavar="GLOB", help="Answers of these models.")
@click.option("--tenant", metavar="NAME", help="Answers of one tenant.")
@click.option("--namespace", metavar="NAME", help="Answers in one namespace.")
@click.option("--user", metavar="ID", help="Answers to one end user (the `user` field).")
@click.option("--text", metavar="QUESTION", help="Answers to one question.")
@click.option("--writer", metavar="NAME", help="Answers that one tenant brought or vouches for, whoever shares them.")
@click.option("--erase", is_flag=True, help="Leave no copy in any file either.")
@click.option("--dry-run", is_flag=True, help="Count, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@speaks_plainly
def purge(file: Path | None, everything: bool, erase: bool, dry_run: bool, yes: bool, **fields: str | None) -> None:
    """Remove answers: from a running server through its admin port, else from the store itself."""
    chosen = {name: value for name, value in fields.items() if value}
    if everything == bool(chosen):
        raise click.UsageError(
            "say what to purge: --all, or some of --entry --model --tenant --namespace --user --text --writer"
        )
    settings = load(file, {})
    count = asyncio.run(_purge(settings, chosen, erase=False, dry_run=True))
    if dry_run:
        click.echo(f"{count} entries would be purged")
        return
    if not yes and not click.confirm(f"purge {count} entries?"):
        fail("nothing was purged", 1)
    count = asyncio.run(_purge(settings, chosen, erase=erase, dry_run=False))
    click.echo(f"{count} entries purged{' and erased' if erase else ''}")


async def _purge(settings: Config, chosen: dict[str, str], *, erase: bool, dry_run: bool) -> int:
    from semcache.types import Selector

    answer = await ask_server(
        settings, "/purge", json.dumps({**chosen, "all": not chosen, "erase": erase, "dry_run": dry_run}).encode()
    )
    if answer is not None:
        return int(json.loads(answer)["purged"])

    async def act(store: Any) -> int:
        if not dry_run:
            told: dict[str, Any] = {name: value for name, value in chosen.items() if name != "text"}
            record_act(settings, "purge", **told, by_text="text" in chosen, erase=erase)
        return int(await store.purge(Selector(**chosen), erase=erase, dry_run=dry_run))

    return await with_store(settings, act)


@click.command(epilog=examples("semcache export backup.jsonl", "semcache export - | gzip > backup.jsonl.gz"))
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@click.option("-c", "--config", "config_file", type=FILE, help="Configuration file.")
@speaks_plainly
def export(file: Path, config_file: Path | None) -> None:
    """Write every entry, vectors included, as JSON Lines; a file only you can read. `-` is standard output."""

    settings = load(config_file, {})

    async def write(store: Any) -> int:
        count = -1  # the first line is a header
        record_act(settings, "export", file=str(file))
        with _private(file) as target:
            async for line in store.export():
                target.write(line)
                count += 1
        return count

    click.echo(f"{asyncio.run(with_store(settings, write))} entries exported", err=True)


def _private(path: Path) -> IO[bytes]:
    """Questions and answers are for the eyes of whoever exports them. Raises SemcacheError."""
    if str(path) == "-":
        return os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb")
    except OSError as exc:
        raise SemcacheError(f"{path}: cannot be written: {exc.strerror}") from exc


@click.command("import", epilog=examples("semcache import backup.jsonl"))
@click.argument("file", type=click.File("rb"), metavar="FILE")
@click.option("-c", "--config", "config_file", type=FILE, help="Configuration file.")
@speaks_plainly
def import_(file: Any, config_file: Path | None) -> None:
    """Read entries that `semcache export` wrote. Vectors come along, so nothing is embedded again."""

    settings = load(config_file, {})

    async def read(store: Any) -> int:
        record_act(settings, "import", file=str(file.name))

        async def lines() -> Any:
            for line in file:
                yield line

        return int(await store.import_lines(lines()))

    click.echo(f"{asyncio.run(with_store(settings, read))} entries imported", err=True)
