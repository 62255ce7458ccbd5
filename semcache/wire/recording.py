"""Every reply is a recording being played: written once by a fetch, followed by everyone who asked for the same.

A recording that may be shared keeps all its frames, so whoever joins late starts at the beginning. One that has grown
past its limit, or was never to be shared, keeps a window: frames that everybody has taken are dropped, and the fetch
waits for the slowest follower. So memory is bounded, and before that point no slow reader slows the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

from semcache.errors import SemcacheError
from semcache.types import Unstorable
from semcache.wire.dialect import Frame, Reading

WINDOW_BYTES = 256 * 1024  # kept per reply once it is not shared: enough to keep a fast reader busy


class Recording:
    """One upstream reply. The fetch calls begin, extend, finish or fail; followers await and iterate."""

    def __init__(
        self,
        limit_bytes: int,
        is_stream: bool,
        tenant: str = "",
        echo: tuple[tuple[str, bytes], ...] = (),
        request_id: str = "",
    ) -> None:
        """`limit_bytes` are kept for those who join later, 0 when nobody may. `is_stream`: what was asked for.

        `tenant`: whose request it answers, and `request_id` which. `echo`: what the answer repeats of that request; see
        `Ask.echo`.
        """
        self.is_stream = is_stream
        self.tenant = tenant
        self.echo = echo
        self.request_id = request_id
        self._loop = asyncio.get_running_loop()
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.backend: str | None = None
        self.region: str | None = None  # of the backend
        self.model: str | None = None  # whose answer it is, where another was asked than the request names
        self.purpose = "request"  # of the fetch: request, refresh, explore or shadow
        self.is_optional = False  # the fetch: whoever waits for it has a stored answer to fall back on
        self.attempts = 0  # backends that were asked for it
        self.reading: Reading | None = None
        self.stored = False  # durable in the store
        self.unstorable: Unstorable | None = None  # why it was not kept, once that is known
        self.error: SemcacheError | None = None
        self.is_joinable = limit_bytes > 0  # everything from the beginning is still here
        self._limit_bytes = limit_bytes
        self._frames: list[Frame] = []
        self._dropped = 0  # frames no longer kept
        self._held_bytes = 0
        self._followers: list[Follower] = []
        self._waiting: list[asyncio.Future[None]] = []  # for any change
        self._holding: list[asyncio.Future[None]] = []  # for the end

    def __repr__(self) -> str:
        state = "finished" if self.reading else "failed" if self.error else "running"
        return f"<Recording {self.status} {state} frames={len(self._frames)} followers={len(self._followers)}>"

    @property
    def is_delivering(self) -> bool:
        return self.is_stream and self.status != 0

    @property
    def is_over(self) -> bool:
        return self.reading is not None or self.error is not None

    # The fetch's side

    def came_from(self, region: str | None, model: str | None, attempts: int) -> None:
        """Said before it begins, where it comes from a backend."""
        self.region, self.model, self.attempts = region, model, attempts

    def begin(self, status: int, headers: Mapping[str, str], backend: str) -> None:
        self.status, self.headers, self.backend = status, headers, backend
        self._wake()

    async def extend(self, frames: Sequence[Frame]) -> None:
        """Add frames; wait while an unshared recording has a window full that somebody has yet to take."""
        for frame in frames:
            self._frames.append(frame)
            self._held_bytes += len(frame.raw)
        if frames:
            self._wake()
        if self._held_bytes > self._limit_bytes:
            self.is_joinable = False
            self._release()
            while self._held_bytes > WINDOW_BYTES and self._drop_taken() and self._held_bytes > WINDOW_BYTES:
                await self._change()

    def finish(self, reading: Reading) -> None:
        if not self.is_over:
            self.reading = reading
            self._wake()
            self._release()

    def fail(self, error: SemcacheError) -> None:
        """The reply will not be completed. Followers get what there is, then `error`."""
        if not self.is_over:
            self.error = error
            self._wake()
            self._release()

    # The followers' side

    async def begun(self) -> None:
        """Wait for status and headers. Raises the error if there is none to come."""
        while not self.status:
            if self.error is not None:
                raise self.error
            await self._change()

    async def whole(self) -> bool:
        """Wait until the reply is over, without being woken for each of its frames.

        False when it outgrew what is kept: it must then be followed as it comes. Raises the error of a reply that
        broke off.
        """
        while not self.is_over and self._held_bytes <= max(self._limit_bytes, WINDOW_BYTES):
            future = self._loop.create_future()
            self._holding.append(future)
            await future
        if self.error is not None:
            raise self.error
        return self.reading is not None

    def join(self) -> Follower:
        """Take a place at the beginning. Only while `is_joinable`, or for the one who leads; enter it with `with`."""
        follower = Follower(self)
        self._followers.append(follower)
        return follower

    def has_more_for(self, follower: Follower) -> bool:
        return follower.position - self._dropped < len(self._frames)

    def _leave(self, follower: Follower) -> None:
        self._followers.remove(follower)
        self._wake()  # the fetch may have been waiting for this one

    def _take(self, follower: Follower) -> list[Frame]:
        frames = self._frames[follower.position - self._dropped :]
        follower.position += len(frames)
        if frames and not self.is_joinable:
            self._wake()
        return frames

    def _drop_taken(self) -> bool:
        """Drop frames that everybody has taken. False when nobody follows, and so all was dropped."""
        taken = min((f.position for f in self._followers), default=self._dropped + len(self._frames)) - self._dropped
        if taken > 0:
            self._held_bytes -= sum(len(frame.raw) for frame in self._frames[:taken])
            del self._frames[:taken]
            self._dropped += taken
        return bool(self._followers)

    async def _change(self) -> None:
        future = self._loop.create_future()
        self._waiting.append(future)
        await future

    def _wake(self) -> None:
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            _set(waiting)

    def _release(self) -> None:
        if self._holding:
            holding, self._holding = self._holding, []
            _set(holding)


def _set(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


class Follower:
    """One reader's place in a recording."""

    __slots__ = ("_recording", "position")

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self.position = 0  # number of the next frame to take, counted from the beginning of the reply

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, *_: object) -> None:
        self._recording._leave(self)

    def take(self, include_usage: bool) -> bytes:
        """Everything that is there and was not taken yet."""
        return b"".join([f.raw for f in self._recording._take(self) if include_usage or not f.usage_only])

    async def pieces(self, include_usage: bool) -> AsyncIterator[bytes]:
        """Yield the reply as it comes, all that is there in one piece. Raises the error where the reply broke off."""
        recording = self._recording
        while True:
            if recording.has_more_for(self):
                if piece := self.take(include_usage):
                    yield piece
            elif recording.error is not None:
                raise recording.error
            elif recording.reading is not None:
                return
            else:
                await recording._change()
