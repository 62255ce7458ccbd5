"""The virtual keys as this process knows them: in memory, and read again when another process has changed the file.

How long doubt may last: a file that can be read is looked at every `keys.refresh` (1 s), so a revoked key stops within
that. While it cannot be read nobody can have revoked anything in it that we would see, and refusing everybody at once
would make a hiccup of a disk an outage of everything: the keys known keep working for PATIENCE_S, keys not known are
refused. After that all are, since who asks is then in doubt.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime

from semcache.access.credentials import unauthorized
from semcache.access.key_file import KeyFile, KeyFileFault
from semcache.access.keys import Malformed, VirtualKey, read_id
from semcache.errors import ClientError

log = logging.getLogger(__name__)

PATIENCE_S = 60.0  # a disk that does not answer for a minute is not going to
_NOBODYS = "0" * 64  # held against what is sent under an id that nobody has: the same work as for one that is known

DAY_S = 86400.0


class Keyring:
    def __init__(
        self,
        file: KeyFile,
        refresh_s: float,
        clock: Callable[[], float],
        now: Callable[[], float],
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`clock`: unix seconds. `now`: monotonic seconds. `pause`: waits so many seconds before another look."""
        self._file = file
        self._refresh_s = refresh_s
        self._clock = clock
        self._now = now
        self._pause = pause
        self._keys: Mapping[str, VirtualKey] = {}
        self._used: dict[str, str] = {}  # by id, the day: those that the file does not know of yet
        self._noted: dict[str, str] = {}
        self._reading = asyncio.Lock()
        self._following: asyncio.Task[None] | None = None
        self._is_failing = False
        self.sure_until = -1.0  # monotonic seconds: until then what is known here counts
        self.on_change: Callable[[], None] = lambda: None
        self.faults = 0

    async def start(self) -> None:
        """Raises StartError where the file cannot be used, or is of another pepper."""
        await asyncio.to_thread(self._file.open)
        await self.refresh()
        self._following = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        if self._following is not None:
            self._following.cancel()
            with suppress(asyncio.CancelledError):
                await self._following
        with suppress(KeyFileFault):
            await self._note_uses()
        await asyncio.to_thread(self._file.close)

    # On the path of a request: no disk, no await

    def find(self, text: str) -> tuple[VirtualKey, float]:
        """The key of this text, and until when it counts (unix seconds, at most a day on).

        Raises ClientError: 401 for what is no key of ours or works no more, and only who holds the right secret is told
        which; 503 while nothing is known for sure.
        """
        try:
            key_id = read_id(text)
        except Malformed as exc:
            raise unauthorized(f"the API key is malformed: {exc}") from exc
        if self._now() >= self.sure_until:
            raise _unsure()
        digest = self._file.digest(text)
        key = self._keys.get(key_id)
        if key is None:
            hmac.compare_digest(_NOBODYS, digest)
            raise unauthorized("the API key is not known here")
        secret = key.secret_of(digest)
        if secret is None:
            raise unauthorized("the API key is not known here")
        now = self._clock()
        if key.revoked is not None:
            raise unauthorized(f"the API key was revoked on {_day(key.revoked)}")
        if key.expires is not None and now >= key.expires:
            raise unauthorized(f"the API key expired on {_day(key.expires)}")
        if secret.until is not None and now >= secret.until:
            raise unauthorized(f"the API key was replaced, and stopped on {_day(secret.until)}")
        self._used[key_id] = _day(now)
        ends = (now - now % DAY_S + DAY_S, key.expires, secret.until)  # at midnight it is looked up, and noted, again
        return key, min(end for end in ends if end is not None)

    def get(self, key_id: str) -> VirtualKey | None:
        return self._keys.get(key_id)

    # Beside it

    async def refresh(self) -> None:
        """Read the file if it has changed. A fault is counted and logged: what is known counts a while longer."""
        async with self._reading:
            began = self._now()  # before, so that a read that hangs makes nothing look fresh
            try:
                keys = await asyncio.to_thread(self._file.read)
            except KeyFileFault as exc:
                self.faults += 1
                if not self._is_failing:
                    log.error("keys: %s; the keys known keep working for %g s at most", exc.message, PATIENCE_S)
                self._is_failing = True
                return
            if self._is_failing:
                log.warning("keys: %s can be read again", self._file.path)
            self._is_failing = False
            self.sure_until = began + PATIENCE_S
            if keys is not None:
                self._keys = keys
                self.on_change()

    async def _follow(self) -> None:
        while True:
            await self._pause(self._refresh_s)
            try:
                await self.refresh()
                await self._note_uses()
            except KeyFileFault as exc:
                log.warning("keys: when they were used last could not be noted: %s", exc.message)
            except Exception as exc:  # the top of a background loop: a bug here must not keep revoked keys alive unseen
                self.faults += 1
                log.error("keys: following the file failed: %s", type(exc).__name__)

    async def _note_uses(self) -> None:
        """A key that is used is written down once a day, and not with every request."""
        used, self._used = self._used, {}
        fresh = {key_id: day for key_id, day in used.items() if self._noted.get(key_id) != day}
        if not fresh:
            return
        try:
            await asyncio.to_thread(self._file.note_uses, fresh)
        except KeyFileFault:
            self._used = {**fresh, **self._used}  # tried again at the next look
            raise
        self._noted.update(fresh)

    def stats(self) -> dict[str, float]:
        return {"keys": len(self._keys), "faults": self.faults}


def _unsure() -> ClientError:
    """Made each time: an exception that is raised again keeps all its earlier tracebacks."""
    return ClientError(
        "API keys cannot be checked just now", status=503, code="keys_unavailable", headers={"Retry-After": "5"}
    )


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).date().isoformat()
