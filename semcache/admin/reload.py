"""`POST /reload`: read the configuration again, now."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from semcache.admin.listener import as_json
from semcache.errors import ClientError, ConfigError
from semcache.reload import Reloader


def reload_routes(reloader: Reloader, tell_others: Callable[[], None]) -> list[web.RouteDef]:
    """To be put behind the guard of the admin port. `tell_others`: the workers that share the port."""

    async def reload(_: web.Request) -> web.Response:
        try:
            has_changed = await reloader.reload("an admin call")
        except ConfigError as error:
            raise ClientError(error.message, status=400, code="bad_config") from error
        tell_others()
        return as_json({"changed": has_changed})

    return [web.post("/reload", reload)]
