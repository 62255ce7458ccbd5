"""What commands share: how they read settings, fail and end their help, ask a running server, and open its store."""

from __future__ import annotations

import asyncio
import getpass
import json
import shutil
import sys
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

import click

from semcache import config
from semcache.errors import ClientError, ConfigError, SemcacheError

if TYPE_CHECKING:
    from rich.console import Console

    from semcache.config import Config

P = ParamSpec("P")
R = TypeVar("R")

FILE = click.Path(dir_okay=False, path_type=Path)


def speaks_plainly(command: Callable[P, R]) -> Callable[P, R]:
    """One clear line for every error that is ours, with its exit status."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except SemcacheError as error:
            fail(error.message, 2 if isinstance(error, (ConfigError, ClientError)) else 1)

    return wrapped


def with_config(command: Callable[..., R]) -> Callable[..., R]:
    option = click.option("-c", "--config", "file", type=FILE, help="Configuration file; see config/reference.yaml.")
    return option(command)


def load(file: Path | None, options: dict[str, Any]) -> Config:
    return config.load(file, options={name: value for name, value in options.items() if value is not None})


def fail(message: str, status: int) -> NoReturn:
    click.echo(f"semcache: {message}", err=True)
    sys.exit(status)


def examples(*lines: str) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def screen(width: int = 120, *, highlight: bool = True, record: bool = False) -> Console:
    """Where tables go: as wide as the terminal, and `width` columns in a file or a pipe."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else width, highlight=highlight, record=record)


def admin_url(settings: Config, admin: str | None = None) -> str:
    if admin:
        return (admin if "://" in admin else f"http://{admin}").rstrip("/")
    server = settings.server
    host = f"[{server.admin_host}]" if ":" in server.admin_host else server.admin_host
    return f"http://{host}:{server.admin_port}"


def record_act(settings: Config, event: str, *, regions: frozenset[str] = frozenset(), **facts: object) -> None:
    """Have it in the audit log, on the disk, before it is done. Raises SemcacheError where that cannot be."""
    from semcache.audit.log import record_now
    from semcache.audit.record import Event

    by = f"command line, {_user()}"
    record_now(settings.audit, settings.server.region, Event(event), regions=regions, by=by, **facts)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number without a name
        return "unknown user"


async def ask_server(settings: Config, path: str, body: bytes | None, admin: str | None = None) -> bytes | None:
    """Ask at the admin port of a running server: post `body`, or get where there is none. None: nothing listens there.

    `admin`: its address, where it is not that of the settings. Raises ClientError for what the server does not
    understand, SemcacheError for what it cannot do.
    """
    import aiohttp

    token = settings.server.admin_token.get_secret_value()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = f"{admin_url(settings, admin)}{path}"
    patience = aiohttp.ClientTimeout(total=None, sock_connect=5)  # an erase rewrites the whole file
    try:
        async with (
            aiohttp.ClientSession(timeout=patience) as session,
            session.request("GET" if body is None else "POST", url, data=body, headers=headers) as response,
        ):
            answer = await response.read()
            if response.status == 200:
                return answer
            fault = ClientError if response.status == 400 else SemcacheError
            raise fault(f"{url}: {response.status}: {_complaint(answer)}")
    except aiohttp.ClientConnectorError:
        return None
    except (aiohttp.ClientError, TimeoutError) as exc:
        raise SemcacheError(f"{url}: the server did not answer: {type(exc).__name__}") from exc


def _complaint(answer: bytes) -> str:
    """What an error of the admin port says; what is none of ours, as it is."""
    try:
        return str(json.loads(answer)["error"]["message"])
    except (ValueError, TypeError, KeyError):
        return answer.decode(errors="replace")[:200]


async def with_store(settings: Config, act: Callable[[Any], Coroutine[Any, Any, int]]) -> int:
    """Open the store of the settings, act, close. A running server shares the file and follows the change."""
    from semcache.cache.store import open_store

    store = open_store(settings.cache)
    store.on_erase = lambda: asyncio.to_thread(_forget_index, settings)
    await store.open()
    try:
        return await act(store)
    finally:
        await store.close()


def _forget_index(settings: Config) -> None:
    """The saved index holds vectors of what was erased; the next start makes it anew."""
    from semcache.core import snapshot_folder

    folder = snapshot_folder(settings)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
