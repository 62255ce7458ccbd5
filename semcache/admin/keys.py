"""The admin calls for virtual keys. Who may make them is decided in listener.py.

GET  /semcache/keys[?tenant=NAME]     what there is, and never a key
POST /semcache/keys                   make one; the answer shows it, once
POST /semcache/keys/ID/rotate         a new secret, also shown once; {"overlap": "24h"}
POST /semcache/keys/ID/revoke
POST /semcache/keys/ID/update         {"limits": {...}, "name": ..., "expires": ...}
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from aiohttp import web
from pydantic import Field, ValidationError

from semcache.access.locksmith import OVERLAP_S, KeyChange, Locksmith, NewKey, describe
from semcache.admin.listener import as_json, whole_body
from semcache.errors import ClientError
from semcache.settings.primitives import Seconds, Section

Body = TypeVar("Body", bound=Section)
R = TypeVar("R")


class Keyring(Protocol):
    async def refresh(self) -> None:
        """Look at the file now."""


class Rotation(Section):
    overlap: Seconds = Field(default=OVERLAP_S)


class KeyCalls:
    def __init__(self, locksmith: Locksmith | None, keyring: Keyring | None) -> None:
        """Neither, where the configuration has no keys."""
        self._locksmith = locksmith
        self._keyring = keyring

    def routes(self) -> Sequence[web.RouteDef]:
        return [
            web.get("/semcache/keys", self._list),
            web.post("/semcache/keys", self._create),
            web.post("/semcache/keys/{id}/rotate", self._rotate),
            web.post("/semcache/keys/{id}/revoke", self._revoke),
            web.post("/semcache/keys/{id}/update", self._update),
        ]

    async def _list(self, request: web.Request) -> web.Response:
        rows = await asyncio.to_thread(self._smith.list, request.query.get("tenant"))
        return as_json({"keys": rows})

    async def _create(self, request: web.Request) -> web.Response:
        wanted = read(NewKey, await whole_body(request))
        made = await self._change(partial(self._smith.create, wanted))
        return as_json({"key": made.text, **describe(made.key)})

    async def _rotate(self, request: web.Request) -> web.Response:
        wanted = read(Rotation, await whole_body(request))
        made = await self._change(partial(self._smith.rotate, request.match_info["id"], wanted.overlap))
        return as_json({"key": made.text, **describe(made.key)})

    async def _revoke(self, request: web.Request) -> web.Response:
        key = await self._change(partial(self._smith.revoke, request.match_info["id"]))
        return as_json(describe(key))

    async def _update(self, request: web.Request) -> web.Response:
        wanted = read(KeyChange, await whole_body(request))
        key = await self._change(partial(self._smith.update, request.match_info["id"], wanted))
        return as_json(describe(key))

    @property
    def _smith(self) -> Locksmith:
        """Raises ClientError 404."""
        if self._locksmith is None:
            raise ClientError("there are no virtual keys here: the configuration has no keys: section", status=404)
        return self._locksmith

    async def _change(self, act: Callable[[], R]) -> R:
        """What was changed here counts here at once; other processes see it at their next look."""
        done = await asyncio.to_thread(act)
        if self._keyring is not None:
            await self._keyring.refresh()
        return done


def read(form: type[Body], body: bytes) -> Body:
    """Raises ClientError, with the first thing that is wrong."""
    try:
        return form.model_validate_json(body or b"{}")
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        message = str(first["msg"]).removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"no such field; there are {', '.join(form.model_fields)}"
        raise ClientError(f"{place}: {message}"[:300] if place else message[:300], param=place[:80] or None) from exc
