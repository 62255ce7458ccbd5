"""The admin calls for backends. Who may make them is decided in listener.py.

GET  /backends                what is known of each of them now
POST /backends/NAME/drain     send it nothing new; what runs there ends in peace
POST /backends/NAME/undrain

NAME is a backend's, such as local[0], or that of a pool. A drain by hand lasts until its end, or that of this process;
`drain: true` in the configuration is heeded beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from aiohttp import web

from semcache.admin.listener import as_json
from semcache.backends.fleet import Fleet
from semcache.backends.state import BackendState
from semcache.errors import ClientError


class BackendCalls:
    def __init__(self, fleet: Fleet, record: Callable[[str, Mapping[str, object]], None]) -> None:
        """`record`: told who was drained ("drain", "undrain")."""
        self._fleet = fleet
        self._record = record

    def routes(self) -> Sequence[web.RouteDef]:
        return [
            web.get("/backends", self._list),
            web.post("/backends/{name}/drain", self._drain),
            web.post("/backends/{name}/undrain", self._undrain),
        ]

    async def _list(self, _: web.Request) -> web.Response:
        return as_json({"pools": self._fleet.pools()})

    async def _drain(self, request: web.Request) -> web.Response:
        return self._set(request, True)

    async def _undrain(self, request: web.Request) -> web.Response:
        return self._set(request, False)

    def _set(self, request: web.Request, is_drained: bool) -> web.Response:
        name = request.match_info["name"]
        found = self._fleet.drain(name, is_drained)
        if not found:
            known = ", ".join(own for pool in self._fleet.pools().values() for own in pool["backends"])
            raise ClientError(f'no backend is called "{name[:80]}"; there are {known}', status=404, code="not_found")
        names = [state.target.name for state in found]
        self._record("drain" if is_drained else "undrain", {"backends": names, "by": "admin port"})
        now, wall = self._fleet.clock(), self._fleet.wall()
        backends = [{"name": state.target.name, **state.stats(now, wall)} for state in found]
        return as_json({"backends": backends, "notes": list(self._notes(found, is_drained))})

    def _notes(self, found: Sequence[BackendState], is_drained: bool) -> Iterator[str]:
        """What an operator might not expect."""
        if not is_drained:
            for state in found:
                if state.target.backend.drain:
                    yield f"{state.target.name}: stays drained, as the configuration says `drain: true`"
        for pool in dict.fromkeys(state.target.pool for state in found):
            if not self._fleet.takes_requests(pool):
                yield f"pool {pool} takes no requests now: they go to their route's next pool, or get a 503"
