"""`semcache keys`: make, list, rotate, change and revoke the keys that callers hold.

They work on the file of keys itself, which running proxies follow within `keys.refresh`; with --admin a running server
does it, for whoever cannot reach the file. Only a key goes to standard output, so that a script can catch it. Exit
status: 0 done, 1 could not, 2 a setting or an argument is wrong.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode

import click
from pydantic import ValidationError

from semcache import config
from semcache.commands.shared import FILE, admin_url, ask_server, examples, record_act, screen, speaks_plainly
from semcache.errors import ConfigError, SemcacheError

if TYPE_CHECKING:
    from semcache.access.locksmith import Locksmith, Made
    from semcache.config import Config

R = TypeVar("R")
T = TypeVar("T")


def _where(command: Callable[..., R]) -> Callable[..., R]:
    file = click.option("-c", "--config", "file", type=FILE, help="Configuration file, with keys: and tenants:.")
    admin = click.option("--admin", metavar="URL", help="Have a running server do it, at its admin address.")
    return file(admin(command))


_LIMITS = click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="NAME=VALUE",
    help="Such as requests_per_minute=600, tokens_per_day=1000000, usd_per_month=50.",
)
_AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print all that is known of it as JSON.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def keys() -> None:
    """Virtual keys: what callers hold in place of the keys of the model APIs."""


@keys.command(
    epilog=examples(
        "semcache keys create -c semcache.yaml --tenant shop --name web --expires 90d",
        "semcache keys create -c semcache.yaml --tenant shop --models 'gpt-4o*' --limit usd_per_day=5",
    )
)
@_where
@click.option("--tenant", required=True, metavar="NAME", help="Whose key it is: a tenant of the configuration.")
@click.option("--name", default="", help="What it is for, in your words.")
@click.option("--models", multiple=True, metavar="GLOB", help="Only these models; repeatable.")
@click.option("--routes", multiple=True, metavar="NAME", help="Only these routes; repeatable.")
@click.option("--namespaces", multiple=True, metavar="NAME", help="Only these namespaces, the first by default.")
@click.option("--regions", multiple=True, metavar="NAME", help="Nothing of it leaves these regions; repeatable.")
@_LIMITS
@click.option("--expires", metavar="DURATION", help="It ends after this, such as 90d; without, never.")
@_AS_JSON
@speaks_plainly
def create(file: Path | None, admin: str | None, limits: Sequence[str], as_json: bool, **wanted: Any) -> None:
    """Make a key and print it. It is shown this once: what is kept cannot be turned back into it."""
    from semcache.access.locksmith import NewKey

    asked = {**{name: value for name, value in wanted.items() if value}, "limits": _read_limits(limits)}
    new = _checked(NewKey, asked)
    answer = _do(file, admin, "", asked, lambda smith: _shown(smith.create(new)))
    _print_made(answer, as_json, f"key {answer['id']} of {answer['tenant']}; it is not shown again")


@keys.command("list", epilog=examples("semcache keys list -c semcache.yaml", "semcache keys list --tenant shop --json"))
@_where
@click.option("--tenant", metavar="NAME", help="Only those of one tenant.")
@_AS_JSON
@speaks_plainly
def list_(file: Path | None, admin: str | None, tenant: str | None, as_json: bool) -> None:
    """Show which keys there are, whose, and what they may; never a key itself."""
    path = f"?{urlencode({'tenant': tenant})}" if tenant else ""
    rows = _do(file, admin, path, None, lambda smith: {"keys": smith.list(tenant)})["keys"]
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    _print_table(rows)


@keys.command(
    epilog=examples(
        "semcache keys rotate Zk3fP0aQ9x -c semcache.yaml --overlap 24h",
        "semcache keys rotate Zk3fP0aQ9x -c semcache.yaml --overlap 0   # the old secret leaked",
    )
)
@click.argument("key_id", metavar="ID")
@_where
@click.option(
    "--overlap", default="24h", show_default=True, metavar="DURATION", help="So long the old secret works on."
)
@_AS_JSON
@speaks_plainly
def rotate(key_id: str, file: Path | None, admin: str | None, overlap: str, as_json: bool) -> None:
    """Give a key a new secret and print it. Id, limits and figures go on."""
    overlap_s = config.read_duration(overlap, "--overlap")
    answer = _do(
        file,
        admin,
        f"/{quote(key_id, safe='')}/rotate",
        {"overlap": overlap_s},
        lambda smith: _shown(smith.rotate(key_id, overlap_s)),
    )
    told = f"key {answer['id']} has a new secret; it is not shown again. The old one works for {overlap_s:g} s"
    _print_made(answer, as_json, told)


@keys.command(epilog=examples("semcache keys revoke Zk3fP0aQ9x -c semcache.yaml"))
@click.argument("key_id", metavar="ID")
@_where
@speaks_plainly
def revoke(key_id: str, file: Path | None, admin: str | None) -> None:
    """End a key, for good: running proxies refuse it within `keys.refresh`."""
    from semcache.access.locksmith import describe

    answer = _do(file, admin, f"/{quote(key_id, safe='')}/revoke", {}, lambda smith: describe(smith.revoke(key_id)))
    click.echo(f"key {answer['id']} of {answer['tenant']} is revoked", err=True)


@keys.command(
    epilog=examples(
        "semcache keys update Zk3fP0aQ9x -c semcache.yaml --limit requests_per_minute=1200",
        "semcache keys update Zk3fP0aQ9x -c semcache.yaml --limit usd_per_day=none --expires never",
    )
)
@click.argument("key_id", metavar="ID")
@_where
@_LIMITS
@click.option("--name", help="What it is for, in your words.")
@click.option("--expires", metavar="DURATION", help="It ends after this, from now; never takes an end away.")
@_AS_JSON
@speaks_plainly
def update(
    key_id: str,
    file: Path | None,
    admin: str | None,
    limits: Sequence[str],
    name: str | None,
    expires: str | None,
    as_json: bool,
) -> None:
    """Change a key's limits, name or end. What it may use is settled when it is made: make another for that.

    A limit of "none" is lifted.
    """
    from semcache.access.locksmith import KeyChange, describe

    asked: dict[str, Any] = {}
    if limits:
        asked["limits"] = _read_limits(limits)
    if name is not None:
        asked["name"] = name
    if expires is not None:
        asked["expires"] = None if expires == "never" else expires
    if not asked:
        raise click.UsageError("say what to change: --limit, --name or --expires")
    change = _checked(KeyChange, asked)
    path = f"/{quote(key_id, safe='')}/update"
    answer = _do(file, admin, path, asked, lambda smith: describe(smith.update(key_id, change)))
    if as_json:
        click.echo(json.dumps(answer, ensure_ascii=False, indent=2))
    else:
        click.echo(
            f"key {answer['id']} of {answer['tenant']}: limits {_in_words(answer['limits']) or 'none'}", err=True
        )


# What they share


def _do(
    file: Path | None,
    admin: str | None,
    path: str,
    asked: Mapping[str, Any] | None,
    act: Callable[[Locksmith], Any],
) -> Any:
    """Act on the file, or where `admin` is given have the server do the same."""
    settings = config.load(file)
    if admin is None:
        return act(_locksmith(settings))
    body = None if asked is None else json.dumps(asked).encode()
    answer = asyncio.run(ask_server(settings, f"/semcache/keys{path}", body, admin))
    if answer is None:
        raise SemcacheError(f"no server listens on {admin_url(settings, admin)}: start it, or leave --admin out")
    return json.loads(answer)


def _locksmith(settings: Config) -> Locksmith:
    """Raises StartError where the file cannot be used."""
    from semcache.access.key_file import KeyFile
    from semcache.access.locksmith import Locksmith

    if settings.keys is None:
        raise ConfigError(
            "keys: the configuration has no such section; write `keys: {pepper: ...}`, and name it with -c"
        )
    key_file = KeyFile(settings.keys.path, settings.keys.pepper.get_secret_value().encode())
    key_file.open()
    return Locksmith(key_file, lambda: settings.tenants, time.time, partial(record_act, settings))


def _shown(made: Made) -> dict[str, Any]:
    from semcache.access.locksmith import describe

    return {"key": made.text, **describe(made.key)}


def _checked(form: type[T], asked: Mapping[str, Any]) -> T:
    """Raises ConfigError for what no server would take either."""
    try:
        return form.model_validate(asked)  # type: ignore[attr-defined, no-any-return]
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        option = str(first["loc"][0]) if first["loc"] else "argument"
        name = ".".join(map(str, first["loc"][1:]))
        message = str(first["msg"]).removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"no such limit; there are {', '.join(config.Limits.model_fields)}"
        raise ConfigError(
            f"--{option.removesuffix('s') if name else option}: {f'{name}: ' if name else ''}{message}"
        ) from exc


def _read_limits(written: Sequence[str]) -> dict[str, str | None]:
    pairs = [one.partition("=") for one in written]
    if not all(sign for _, sign, _ in pairs):
        raise ConfigError("--limit: write NAME=VALUE, such as requests_per_minute=600")
    return {name.strip(): None if value.strip() == "none" else value.strip() for name, _, value in pairs}


def _print_made(answer: Mapping[str, Any], as_json: bool, told: str) -> None:
    if as_json:
        click.echo(json.dumps(answer, ensure_ascii=False, indent=2))
        return
    click.echo(told, err=True)
    click.echo(answer["key"])


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("id", "tenant", "name", "created", "last used", "ends", "may use", "limits"):
        table.add_column(heading, no_wrap=heading in ("id", "created", "last used"))
    for row in rows:
        cells = (
            row["id"],
            row["tenant"],
            row["name"],
            row["created"][:10],
            row["last_used"] or "never",
            _end(row),
            "\n".join(f"{name}: {', '.join(row[name])}" for name in _GRANTS if row[name]) or "all of its tenant's",
            _in_words(row["limits"]) or "its tenant's",
        )
        table.add_row(*map(Text, cells))  # a name is text, whatever marks it holds
    screen(160).print(table)


_GRANTS = ("models", "routes", "namespaces", "regions")


def _end(row: Mapping[str, Any]) -> str:
    if row["revoked"]:
        return f"revoked {row['revoked'][:10]}"
    ends = row["expires"][:10] if row["expires"] else "never"
    return f"{ends}, rotating until {row['rotating_until'][:16]}" if row["rotating_until"] else ends


def _in_words(limits: Mapping[str, float]) -> str:
    return "\n".join(f"{name} {value:g}" if value % 1 else f"{name} {int(value)}" for name, value in limits.items())
