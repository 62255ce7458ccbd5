"""RELOAD: read the configuration again while requests are served: validate, build, swap.

The rule: a file that cannot be taken changes nothing, and says why. What can fail happens before the swap, and the swap
is assignments in one turn of the event loop, so no request sees half of it: one that is under way goes by its plan to
its end, and the next is planned by the new settings.

What is made once and held open needs a restart: ports, the store, the embedder, files. A file that changes any of that
is refused as a whole, for half of what an operator wrote is not what he wanted either.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from semcache.config import Config
from semcache.errors import ConfigError

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between looks at the file

# What is read at the start alone.
_SECTIONS = ("server", "embedder", "usage", "audit", "keys", "jwt", "chain")
_OF_THE_CACHE = ("store", "max_entries", "region")
_OF_A_MATCH = ("reranker", "judge_weights")


class Reloader:
    """Of one process. `adopt` is called with settings that were checked, and cannot fail."""

    def __init__(
        self,
        config: Config,
        read: Callable[[], Config] | None,
        adopt: Callable[[Config], None],
        path: Path | None = None,
        record: Callable[[str, Mapping[str, object]], None] = lambda event, facts: None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`read`: the settings as they are written now; raises ConfigError. None: there is no file. `path`: watched.
        `record`: told what came of each attempt ("reload", "reload-refused").
        """
        self.config = config
        self._read = read
        self._adopt = adopt
        self._path = path
        self._record = record
        self._pause = pause
        self._watching: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self.reloads = 0
        self.refused = 0
        self.last_error: str | None = None  # of the last attempt; None: it was taken

    def start(self) -> None:
        if self._path is not None and self._read is not None:
            self._watching = asyncio.create_task(self._watch(self._path))

    async def stop(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching

    async def reload(self, why: str) -> bool:
        """Take the settings as they are written now. False when they are those that are in force.

        `why`: who wanted it, for the log. Raises ConfigError, with one line for each complaint; nothing has changed.
        """
        async with self._lock:  # one after the other, or an older file could win
            try:
                if self._read is None:
                    raise ConfigError("there is no configuration file to read again: the proxy was started without one")
                fresh = await asyncio.to_thread(self._read)
                if fresh == self.config:
                    self.last_error = None
                    return False
                if needs := what_needs_a_restart(self.config, fresh):
                    raise ConfigError("\n".join(f"{name}: takes effect with a restart only" for name in needs))
            except ConfigError as error:
                self.refused += 1
                self.last_error = error.message
                log.error("the configuration was not reloaded, and the one before goes on: %s", error.message)
                self._record("reload-refused", {"why": why, "error": error.message})
                raise
            changed = [name for name in Config.model_fields if getattr(fresh, name) != getattr(self.config, name)]
            self._adopt(fresh)
            self.config = fresh
            self.reloads += 1
            self.last_error = None
            log.warning("the configuration was reloaded: %s (%s)", ", ".join(changed), why)
            self._record("reload", {"why": why, "sections": changed})
            return True

    def asked(self, why: str) -> None:
        """Reload in the background; what comes of it is in the log."""
        # Held here, for the event loop itself holds a task only weakly.
        self._attempt = asyncio.create_task(self._try(why))

    async def _try(self, why: str) -> None:
        try:
            await self.reload(why)
        except ConfigError:
            pass  # it has been told
        except Exception as exc:  # the top of a task: a fault of ours must not end the watch over the file
            log.error("a reload failed unexpectedly: %s", type(exc).__name__)

    async def _watch(self, path: Path) -> None:
        """Reload when the file is another than before, and has been the same for two looks: editors write in steps."""
        seen = taken = await asyncio.to_thread(_identity, path)
        while True:
            await self._pause(LOOK_S)
            now = await asyncio.to_thread(_identity, path)
            if now is not None and now == seen and now != taken:
                taken = now
                await self._try("the file has changed")
            seen = now

    def stats(self) -> dict[str, object]:
        return {"reloads": self.reloads, "refused_reloads": self.refused, "last_error": self.last_error}


def what_needs_a_restart(old: Config, new: Config) -> Sequence[str]:
    """The settings that differ and cannot be changed while the program runs."""
    names = []
    for name in _SECTIONS:
        before, after = getattr(old, name), getattr(new, name)
        if before is None or after is None:
            if before is not after:
                names.append(name)
            continue
        names += [
            f"{name}.{field}" for field in type(after).model_fields if getattr(before, field) != getattr(after, field)
        ]
    names += [f"cache.{field}" for field in _OF_THE_CACHE if getattr(old.cache, field) != getattr(new.cache, field)]
    for field in _OF_A_MATCH:  # models are loaded at the start
        if _models(new, field) - _models(old, field):
            names.append(f"match.{field}")
    if any(route.match.judge is not None for route in new.routes) and not _asks_judge(old):
        names.append("match.judge")
    return names


def _models(config: Config, field: str) -> set[object]:
    return {getattr(route.match, field) for route in config.routes} - {None}


def _asks_judge(config: Config) -> bool:
    return any(route.match.judge is not None for route in config.routes)


def _identity(path: Path) -> tuple[int, ...] | None:
    """What tells one content of a file from the next; None where there is no file. A mounted folder's files are links
    that are exchanged: they are followed."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
