"""The ways in beside the keys of the configuration: virtual keys and tokens, made from its sections and followed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from semcache.access.key_file import KeyFile
from semcache.access.keyring import Keyring
from semcache.access.locksmith import Locksmith, Record, no_record
from semcache.config import Config, TenantSettings

if TYPE_CHECKING:
    from semcache.access.tokens import Tokens


class Doors:
    """`keyring`, `locksmith` and `tokens` are None where the configuration has no such section."""

    def __init__(
        self,
        config: Config,
        tenants: Callable[[], Sequence[TenantSettings]],
        record: Record = no_record,
        clock: Callable[[], float] = time.time,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`tenants`: those of now, for a reload may change them. `record`: called on the loop that `start` runs on.
        `clock`: unix seconds. `now`: monotonic seconds."""
        self._record = record
        self.keyring: Keyring | None = None
        self.locksmith: Locksmith | None = None
        self.tokens: Tokens | None = None
        if config.keys is not None:
            file = KeyFile(config.keys.path, config.keys.pepper.get_secret_value().encode())
            self.keyring = Keyring(file, config.keys.refresh, clock, now)
            self.locksmith = Locksmith(file, tenants, clock, self._record_on_the_loop)
        if config.jwt is not None:
            # Brings cryptography with it: 10 MB, and 30 ms or, from a cold disk, a second.
            from semcache.access.key_set import KeySet
            from semcache.access.tokens import Tokens

            key_set = KeySet(config.jwt.jwks, config.jwt.algorithms, config.jwt.refresh, now)
            self.tokens = Tokens(config.jwt, key_set, clock)

    async def start(self) -> None:
        """Before the ports open, so that nobody is refused for want of keys. Raises StartError."""
        self._loop = asyncio.get_running_loop()
        if self.keyring is not None:
            await self.keyring.start()
        if self.tokens is not None:
            await self.tokens.start()

    async def stop(self) -> None:
        """Also after a start that failed, or never was."""
        if self.keyring is not None:
            await self.keyring.stop()
        if self.tokens is not None:
            await self.tokens.stop()

    def stats(self) -> Mapping[str, float]:
        keys = self.keyring.stats() if self.keyring is not None else {}
        return {**keys, **(self.tokens.stats() if self.tokens is not None else {})}

    def _record_on_the_loop(self, event: str, *, regions: frozenset[str], **facts: object) -> None:
        """Keys are changed on a thread, since that waits for a disk; what is recorded is queued on the loop."""
        by = partial(self._record, event, regions=regions, by="admin port", **facts)
        self._loop.call_soon_threadsafe(by)
