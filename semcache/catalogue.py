"""THE LIST OF MODELS: what a caller may ask for here, of all backends together, in the form of his vendor.

The rule: a model is listed when a request for it would be taken, by a route and by a backend that is not known to lack
it. Where there is one backend, and nothing stands between it and the caller, its own list passes through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from semcache.backends.fleet import Fleet
from semcache.backends.routing import aliases_of
from semcache.backends.target import Target
from semcache.errors import ClientError
from semcache.planning import Planner
from semcache.types import Tenant
from semcache.wire import vendor_of

_PATHS = frozenset({"/v1/models", "/models", "/api/tags"})

# Where models are asked, by vendor: routes may be for some of these only.
_ASKED_AT: Mapping[str, Sequence[str]] = {
    "openai": tuple(
        f"/v1/{endpoint}"
        for endpoint in ("chat/completions", "responses", "completions", "embeddings", "audio/transcriptions")
    ),
    "anthropic": ("/v1/messages",),
    "ollama": ("/api/chat", "/api/generate", "/api/embed"),
}


class Catalogue:
    def __init__(self, planner: Planner, fleet: Fleet) -> None:
        self._planner = planner
        self._fleet = fleet

    def regions(self, path: str, headers: Mapping[str, str], tenant: Tenant) -> frozenset[str]:
        """That a request for the list is bound to; empty: any. Raises OutOfRegion."""
        return self._planner.bound_for(path, headers, vendor_of(path, headers), tenant)

    def backends(
        self, path: str, headers: Mapping[str, str], tenant: Tenant, regions: frozenset[str]
    ) -> Sequence[Target]:
        """Those whose lists make up this one; none where a request for it should pass through as any other."""
        targets = self._planner.backends_of(vendor_of(path, headers), regions)
        if any(target.backend.dialect == "azure" for target in targets):
            return ()  # it lists what could be deployed, and is asked for deployments
        is_one = len({id(target.backend) for target in targets}) == 1 and targets[0].backend.models == "any"
        is_open = not (aliases_of(self._planner.routes) or tenant.models or tenant.routes)
        return () if is_one and is_open else targets

    async def list(
        self, targets: Sequence[Target], path: str, headers: Mapping[str, str], tenant: Tenant, pass_key: bool
    ) -> bytes:
        """The body of the list. `pass_key`: backends without a key of their own are asked with the caller's. Raises
        UpstreamError when no backend answers."""
        vendor = vendor_of(path, headers)

        def is_allowed(model: str) -> bool:
            return any(self._is_taken(model, at, vendor, headers, tenant) for at in _ASKED_AT[vendor])

        aliases = aliases_of(self._planner.routes)
        return await self._fleet.list_models(targets, vendor, is_allowed, headers, pass_key, aliases)

    def _is_taken(self, model: str, path: str, vendor: str, headers: Mapping[str, str], tenant: Tenant) -> bool:
        try:
            way, _, _ = self._planner.way_for_path(path, headers, model, tenant)
            self._fleet.narrow(way, model)
        except ClientError:
            return False
        return True


def is_list(method: str, path: str) -> bool:
    return method == "GET" and path in _PATHS
