"""`semcache audit verify` and `semcache audit show`: for whoever has to believe the audit log, or wants to read it.

They need the files only, no running proxy, and change nothing. Exit status: 0 the chain holds, 1 it does not or cannot
be read, 2 a setting or an argument is wrong.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import click

from semcache import config
from semcache.audit.record import Event
from semcache.audit.verify import Report, read_records, since
from semcache.audit.verify import verify as verify_chain
from semcache.commands.shared import FILE, examples, speaks_plainly
from semcache.errors import ConfigError

R = TypeVar("R")


def _names_a_log(command: Callable[..., R]) -> Callable[..., R]:
    option = click.option("-c", "--config", "settings_file", type=FILE, help="Configuration with the audit.path.")
    return click.argument("path", type=FILE, required=False)(option(command))


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def audit() -> None:
    """Check and read the audit log: who changed what, and what was served for what."""


@audit.command(
    epilog=examples(
        "semcache audit verify -c config/semcache.yaml",
        "semcache audit verify /backup/audit.jsonl --head 9f2c...",
    )
)
@_names_a_log
@click.option("--head", metavar="HASH", help="A hash printed by an earlier run: its line must still be there.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@speaks_plainly
def verify(settings_file: Path | None, path: Path | None, head: str | None, as_json: bool) -> None:
    """Check that no line of the log was changed, removed, moved or added.

    Whoever may write the files can make the whole chain anew, or cut its end off. So keep the head that this prints in
    another place, and give it with --head the next time.
    """
    if head is not None and (len(head) != 64 or not all(digit in "0123456789abcdefABCDEF" for digit in head)):
        raise ConfigError("--head: a hash has 64 hexadecimal digits; `semcache audit verify` prints it")
    report = verify_chain(_path(settings_file, path), head)
    if as_json:
        click.echo(json.dumps(_as_json(report), indent=2))
    else:
        _print(report)
    if report.broken is not None:
        sys.exit(1)


@audit.command(
    epilog=examples(
        "semcache audit show --event hit --since 1d --tenant shop",
        "semcache audit show --event key-created --event key-revoked --json",
    )
)
@_names_a_log
@click.option(
    "--event", "events", multiple=True, type=click.Choice([event.value for event in Event]), help="Only these events."
)
@click.option("--since", "period", metavar="PERIOD", help="Only so long ago, such as 30m, 12h or 7d; or a date.")
@click.option("--tenant", help="Only lines of this tenant.")
@click.option("--key", help="Only lines of the key with this public id.")
@click.option("--json", "as_json", is_flag=True, help="Print lines as they are in the file.")
@speaks_plainly
def show(
    settings_file: Path | None,
    path: Path | None,
    events: tuple[str, ...],
    period: str | None,
    tenant: str | None,
    key: str | None,
    as_json: bool,
) -> None:
    """Print lines of the log, oldest first. Says nothing about whether they are what was written: see verify."""
    start = None if period is None else _start(period, datetime.now(UTC))
    for record in read_records(_path(settings_file, path)):
        if (events and record.get("event") not in events) or (start is not None and not since(record, start)):
            continue
        if (tenant is not None and record.get("tenant") != tenant) or (key is not None and record.get("key") != key):
            continue
        click.echo(json.dumps(record, separators=(",", ":")) if as_json else _one_line(record))


def _path(settings_file: Path | None, path: Path | None) -> Path:
    """The log that is meant. Raises ConfigError."""
    if path is not None and settings_file is not None:
        raise ConfigError("name a log or a configuration, not both")
    if path is not None:
        return path
    settings = config.load(settings_file)
    if settings.audit is None:
        raise ConfigError("this configuration writes no audit log: it has no audit: section; or name the file")
    return Path(settings.audit.path)


def _start(period: str, now: datetime) -> datetime:
    try:
        date = datetime.fromisoformat(period)
    except ValueError:
        try:
            return now - timedelta(seconds=config.read_duration(period, "--since"))
        except OverflowError as exc:
            raise ConfigError(f"--since: {period} is longer than time") from exc
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)


def _one_line(record: dict[str, object]) -> str:
    facts = {name: value for name, value in record.items() if name not in ("seq", "time", "event", "prev", "hash")}
    told = " ".join(f"{name}={value if _is_plain(value) else json.dumps(value)}" for name, value in facts.items())
    return f"{record.get('seq')}  {record.get('time')}  {record.get('event')}  {told}".rstrip()


def _is_plain(value: object) -> bool:
    """Whether it can be shown to a terminal and read again without quotes."""
    return isinstance(value, str) and value.isascii() and value.isprintable() and value != "" and " " not in value


def _print(report: Report) -> None:
    files = ", ".join(file.name for file in report.files)
    click.echo(f"files   {files}")
    if report.lines:
        click.echo(f"lines   {report.lines:,}: number {report.begins:,} to {report.head.seq:,}")
        click.echo(f"period  {report.first_time} to {report.last_time}")
        click.echo(f"head    {report.head.hash}")
    else:
        click.echo("lines   none")
    for note in _notes(report):
        click.echo(f"note    {note}")
    if report.broken is None:
        click.echo("ok      every line follows the one before it")
    else:
        broken = report.broken
        click.echo(f"BROKEN  {broken.file}, line {broken.line}: {broken.why}")


def _notes(report: Report) -> list[str]:
    notes = []
    if report.begins > 1:
        notes.append(f"lines before number {report.begins:,} are not here; the log says that it removed them")
    if report.torn:
        notes.append(f"{report.torn} cut by a crash; the line after each says so")
    if report.is_cut:
        notes.append("the end is a line that a crash has cut; the next start closes it")
    if report.lost:
        notes.append(f"{report.lost:,} records could not be written, as the log says itself")
    if report.broken is not None and report.begins > 1:
        notes = notes[1:]
    return notes


def _as_json(report: Report) -> dict[str, object]:
    broken = report.broken
    return {
        "ok": broken is None,
        "files": [str(file) for file in report.files],
        "lines": report.lines,
        "begins": report.begins,
        "first_time": report.first_time,
        "last_time": report.last_time,
        "head": {"seq": report.head.seq, "hash": report.head.hash},
        "torn": report.torn,
        "is_cut": report.is_cut,
        "lost": report.lost,
        "broken": broken and {"file": str(broken.file), "line": broken.line, "why": broken.why},
    }
