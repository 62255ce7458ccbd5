"""RULE, KEY and ROUTE: everything that follows from a request's bytes, its tenant and its namespace alone.

A plan is remembered for equal bytes, so a request that has been seen before is neither parsed nor hashed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from cachetools import LRUCache

from semcache.backends.routing import Target, pick_route, rank
from semcache.cache.conversation import turns_left_out
from semcache.cache.key import derive_key, derive_scope
from semcache.cache.policy import Ruling, rule
from semcache.config import Config, Route
from semcache.errors import ClientError, SemcacheError
from semcache.types import Ask, Key, Scope, Tenant
from semcache.wire import Address, BatchDialect, Dialect, vendor_of
from semcache.wire.turns import Conversing, Omission

PLAN_BODY_BYTES = 16 * 1024  # larger bodies are parsed each time: remembering them costs more memory than it saves time
PLANS = 2048  # so at most some 64 MB, for a plan also holds its context and question. An item of a batch counts as one
PLAN_ITEMS = 64  # of a batch. An item takes 5 KB however short it is: 12 KB of body can hold 2,000 of them, and 10 MB
MODEL_CHARS = 256  # routes of longer names are not remembered: a caller may make up a name of any length

# Of Ollama's own API, what goes to a backend that was not said to be an Ollama: what asks, not what pulls or deletes.
_OLLAMA_ASKS = frozenset(f"/api/{name}" for name in "chat embed embeddings generate ps show tags version".split())


@dataclass(frozen=True, slots=True)
class Item:
    """One of several things that a request asks for, with an answer and an entry of its own."""

    ask: Ask
    key: Key


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything about a request that follows from its bytes, its tenant and its namespace."""

    ask: Ask
    dialect: Dialect
    tenant: Tenant
    scope: Scope
    key: Key
    route: Route
    ruling: Ruling  # the operator's; the caller's wishes come with each request
    targets: Sequence[Target] | SemcacheError  # an error only matters when the request must be forwarded
    items: tuple[Item, ...] = ()  # of a batch; empty for a request that asks for one thing

    def narrow(self, wanted: Sequence[int]) -> Plan:
        """The plan of a request for these items only."""
        assert isinstance(self.dialect, BatchDialect)
        items = tuple(self.items[place] for place in wanted)
        body = self.dialect.narrow(self.ask, wanted)
        # Its key is made of theirs: two requests that lack the same items, in the same order, are one flight.
        context = b"".join(item.key.exact for item in items)
        ask = replace(self.ask, body=body, context=context, items=tuple(item.ask for item in items))
        return replace(self, ask=ask, key=derive_key(ask, self.scope, None), items=items)


class Planner:
    def __init__(self, config: Config, embedder: str) -> None:
        """`embedder`: the stamp of the one that questions are embedded with."""
        self._config = config
        self._embedder = embedder
        self._plans: LRUCache[tuple[object, ...], Plan] = LRUCache(PLANS, getsizeof=_weight)
        self._routes = lru_cache(1024)(self._route)
        self._spoken = {backend.dialect for pool in config.pools.values() for backend in pool.backends}

    def plan(self, address: Address, headers: Mapping[str, str], body: bytes, tenant: Tenant, namespace: str) -> Plan:
        """Parse, rule, derive the key, find the route. Raises ClientError for a body that is not a request."""
        identity = (address.target, tenant.id, namespace, address.dialect.context_headers(headers), body)
        plan = self._plans.get(identity)
        if plan is None:
            plan = self._plan(address, headers, body, tenant, namespace)
            if len(body) <= PLAN_BODY_BYTES and len(plan.items) <= PLAN_ITEMS:
                self._plans[identity] = plan
        return plan

    def caches(self, address: Address) -> bool:
        """Whether any route has this cached, so that its body is worth reading."""
        return address.opt_in is None or any(_wants(route, address) for route in self._config.routes)

    def plan_upload(
        self, address: Address, headers: Mapping[str, str], body: bytes | None, tenant: Tenant, namespace: str
    ) -> Plan | None:
        """The plan of what routes may have cached or not; None where it passes through.

        That is so where its route wants nothing kept, for a stream, and for what is not at hand (None) or cannot be
        read: judging it is then for the upstream. A plan is not remembered here, for the same bytes mean something else
        with another boundary.
        """
        if body is None:
            return None
        try:
            plan = self._plan(address, headers, body, tenant, namespace)
        except ClientError:
            return None
        return plan if _wants(plan.route, address) and not plan.ask.stream else None

    def _plan(self, address: Address, headers: Mapping[str, str], body: bytes, tenant: Tenant, namespace: str) -> Plan:
        dialect = address.dialect
        ask = dialect.parse(address, body, headers)
        route, targets = self._find_route(ask.model, ask.dialect, tenant.regions)
        ruling = rule(ask, route.cache, route.match)
        # What is personal stays with its tenant, whoever shares the rest.
        scope = derive_scope(ask, tenant, namespace, "tenant" if ruling.personal else route.cache.sharing)
        if route.cache.min_uses > 1 and scope.tenant != tenant.id:
            ruling = replace(ruling, min_uses=route.cache.min_uses, asker=tenant.id)
        embedder = self._embedder if ruling.exact_only is None else None
        left_out = None if embedder is None else turns_left_out(ask.turns, route.match)
        shorter = None
        if left_out is not None:
            assert isinstance(dialect, Conversing)  # the others read no turns
            shorter = dialect.context_without(address, body, headers, Omission(left_out, ruling.compares_turns))
        key = derive_key(ask, scope, embedder, shorter, is_personal=ruling.personal is not None)
        items = tuple(Item(item, derive_key(item, scope, None)) for item in ask.items)
        return Plan(ask, dialect, tenant, scope, key, route, ruling, targets, items)

    def targets_for_path(
        self, path: str, headers: Mapping[str, str], model: str | None, tenant: Tenant
    ) -> Sequence[Target]:
        """Where a request goes that passes through. Raises ClientError when no backend may take it.

        A vendor's paths go to backends that speak its dialect, and so does the caller's key.
        """
        vendor = vendor_of(path, headers)
        if vendor == "ollama" and vendor not in self._spoken and path not in _OLLAMA_ASKS:
            raise ClientError("no backend here is an Ollama (`dialect: ollama`)", status=404, code="dialect_not_served")
        _, targets = self._find_route(model, vendor, tenant.regions)
        if isinstance(targets, SemcacheError):
            raise targets
        return targets

    def _find_route(
        self, model: str | None, vendor: str, regions: frozenset[str]
    ) -> tuple[Route, Sequence[Target] | SemcacheError]:
        find = self._routes if len(model or "") <= MODEL_CHARS else self._route
        return find(model, vendor, regions)

    def _route(
        self, model: str | None, vendor: str, regions: frozenset[str]
    ) -> tuple[Route, Sequence[Target] | SemcacheError]:
        """The route of a model and the backends it may use, or why there are none. No model: the catch-all route.

        Where the whole configuration speaks one dialect, as behind `--upstream`, its backends get every vendor's
        requests: model servers speak more than one, and what they do not know they say themselves.
        Raises ClientError for a model that no route takes.
        """
        routes = self._config.routes
        route = pick_route(routes, model) if model else next((r for r in routes if "*" in r.models), routes[0])
        if vendor not in self._spoken and len(self._spoken) == 1:
            (vendor,) = self._spoken
        try:
            return route, rank(route, self._config.pools, vendor, regions)
        except SemcacheError as error:  # matters only when the request must be forwarded
            return route, error

    def stats(self) -> dict[str, float]:
        return {"plans": len(self._plans)}


def _weight(plan: Plan) -> int:
    return max(1, len(plan.items))


def _wants(route: Route, address: Address) -> bool:
    return address.opt_in is None or bool(getattr(route.cache, address.opt_in))
