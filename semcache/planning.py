"""RULE, KEY and ROUTE: everything that follows from a request's bytes, its tenant and its namespace alone.

A plan is remembered for equal bytes, so a request that has been seen before is neither parsed nor hashed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from hashlib import blake2b
from typing import NamedTuple

from cachetools import LRUCache

from semcache.backends.routing import (
    BYTES_PER_TOKEN,
    Asking,
    Way,
    bind,
    find_way,
    name_of,
    pick_arm,
    pick_route,
)
from semcache.backends.target import Target, targets_of
from semcache.cache.conversation import turns_left_out
from semcache.cache.key import derive_key, derive_scope
from semcache.cache.policy import Ruling, rule
from semcache.config import Config, PoolChoice, Route
from semcache.errors import ClientError, OutOfRegion, SemcacheError
from semcache.guardrails.inspection import NOTHING, Inspection, inspect
from semcache.residency import Residency
from semcache.types import Ask, Key, Reason, Scope, Tenant
from semcache.wire import Address, BatchDialect, Dialect, vendor_of
from semcache.wire.rename import rename_path
from semcache.wire.turns import Conversing, Omission

PARSE_INLINE_BYTES = 256 * 1024  # larger bodies are parsed on a thread: 1 MB takes some 15 ms
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
    way: Way | SemcacheError  # an error only matters when the request must be forwarded
    items: tuple[Item, ...] = ()  # of a batch; empty for a request that asks for one thing
    route_name: str = ""
    regions: frozenset[str] = frozenset()  # that it is bound to, by its tenant or its route; empty: any
    shorter: bytes | None = None  # the context without the turns that need not be equal; see cache/key.py
    embedder: str | None = None  # the stamp that is in the partition
    inspection: Inspection = NOTHING  # what guardrails say of its body; whoever answers it refuses it

    def of_model(self, model: str | None) -> Plan:
        """The same request, asked of another model: what that one answers is stored under its own name."""
        if model is None or model == self.ask.model:
            return self
        ask, scope = _of_model(self.ask, model), replace(self.scope, model=model)
        is_personal = self.ruling.personal is not None
        key = derive_key(ask, scope, self.embedder, self.shorter, is_personal=is_personal, regions=self.regions)
        items = tuple(
            Item(
                _of_model(item.ask, model),
                derive_key(_of_model(item.ask, model), scope, None, regions=self.regions),
            )
            for item in self.items
        )
        return replace(self, ask=ask, scope=scope, key=key, items=items)

    def narrow(self, wanted: Sequence[int]) -> Plan:
        """The plan of a request for these items only."""
        assert isinstance(self.dialect, BatchDialect)
        items = tuple(self.items[place] for place in wanted)
        body = self.dialect.narrow(self.ask, wanted)
        # Its key is made of theirs: two requests that lack the same items, in the same order, are one flight.
        context = b"".join(item.key.exact for item in items)
        ask = replace(self.ask, body=body, context=context, items=tuple(item.ask for item in items))
        return replace(self, ask=ask, key=derive_key(ask, self.scope, None, regions=self.regions), items=items)


class Going(NamedTuple):
    """What follows from the route that a request takes."""

    route: Route
    name: str
    way: Way | SemcacheError
    regions: frozenset[str]
    arm: str | None = None  # the side of its split


class Planner:
    def __init__(self, config: Config, embedder: str) -> None:
        """`embedder`: the stamp of the one that questions are embedded with."""
        self._embedder = embedder
        self._plans: LRUCache[tuple[object, ...], Plan] = LRUCache(PLANS, getsizeof=_weight)
        self.adopt(config)

    def adopt(self, config: Config) -> None:
        """Plan by these settings from now on. Requests that have a plan go by it to their end."""
        self._config = config
        self._ways = lru_cache(1024)(partial(self._find_way, config))
        self._in_force = config, self._ways
        self.residency = Residency(config)
        self._plans.clear()
        self._spoken = {backend.dialect for pool in config.pools.values() for backend in pool.backends}
        sticky = {
            route.sticky.partition(":")[2].lower() for route in config.routes if route.sticky.startswith("header:")
        }
        # Of all fields only those that a route reads belong to what a plan follows from.
        self._read_fields = tuple(sorted({name.lower() for route in config.routes for name in route.headers} | sticky))
        self._reads_size = any(route.prompt.min or route.prompt.max is not None for route in config.routes)

    def plan(self, address: Address, headers: Mapping[str, str], body: bytes, tenant: Tenant, namespace: str) -> Plan:
        """Parse, rule, derive the key, find the route. Raises ClientError for a body that is not a request."""
        context_headers = address.dialect.context_headers(headers)
        fields = self._fields(headers) if self._read_fields else ()
        # A tenant who comes through a chain may be bound otherwise each time, and otherwise than his key is here.
        who = (tenant.id, tenant.key, tenant.regions, tenant.models, tenant.routes, namespace)
        identity = (address.target, who, context_headers, fields, body)
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
        path = address.target.partition("?")[0]
        size = len(body) // BYTES_PER_TOKEN if self._reads_size else 0
        going = self.find_route(Asking(ask.model, path, tenant, dict(self._fields(headers)), size), ask.dialect, ask)
        route, regions = going.route, going.regions
        inspection = inspect(body, route.guardrails)
        if inspection.body is not None:  # from here on it is this request that was made: in its key, upstream, in logs
            body = inspection.body
            ask = dialect.parse(address, body, headers)
        if isinstance(going.way, Way) and going.way.model is not None:
            ask = _of_model(ask, going.way.model)
        ruling = self._rule(ask, route, regions)
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
        is_personal = ruling.personal is not None
        key = derive_key(ask, scope, embedder, shorter, is_personal=is_personal, regions=regions)
        items = tuple(Item(item, derive_key(item, scope, None, regions=regions)) for item in ask.items)
        return Plan(
            ask=ask,
            dialect=dialect,
            tenant=tenant,
            scope=scope,
            key=key,
            route=route,
            ruling=ruling,
            way=going.way,
            items=items,
            route_name=going.name,
            regions=regions,
            shorter=shorter,
            embedder=embedder,
            inspection=inspection,
        )

    def _rule(self, ask: Ask, route: Route, regions: frozenset[str]) -> Ruling:
        """RULE, within the regions that the request is bound to."""
        ruling = rule(ask, route.cache, route.match)
        if not regions:
            return ruling
        ruling = replace(ruling, regions=regions)
        if not self.residency.may_store(regions):
            return replace(ruling, skip_lookup=Reason.REGION, may_store=False, may_coalesce=False)
        if not self.residency.may_embed(regions):
            return replace(ruling, exact_only=ruling.exact_only or Reason.EXACT_ONLY, may_embed=False)
        return ruling

    def way_for_path(
        self, path: str, headers: Mapping[str, str], model: str | None, tenant: Tenant
    ) -> tuple[Way, Route, str]:
        """Where a request goes that passes through, its route and that route's name. Raises ClientError when no backend
        may take it.

        A vendor's paths go to backends that speak its dialect, and so does the caller's key.
        """
        vendor = vendor_of(path, headers)
        if vendor == "ollama" and vendor not in self._spoken and path not in _OLLAMA_ASKS:
            raise ClientError("no backend here is an Ollama (`dialect: ollama`)", status=404, code="dialect_not_served")
        going = self.find_route(Asking(model, path, tenant, dict(self._fields(headers))), vendor)
        if isinstance(going.way, SemcacheError):
            raise going.way
        return going.way, going.route, going.name

    def bound_for(self, path: str, headers: Mapping[str, str], vendor: str, tenant: Tenant) -> frozenset[str]:
        """The regions of a request that names no model and asks several backends; empty: any. Raises OutOfRegion."""
        try:
            return self.find_route(Asking(None, path, tenant, dict(self._fields(headers))), vendor).regions
        except OutOfRegion:
            raise
        except ClientError:  # no route is for this itself; those for models may be
            return tenant.regions

    def backends_of(self, vendor: str, regions: frozenset[str]) -> Sequence[Target]:
        """All that a vendor's requests that are bound to these regions could go to, whatever they ask for."""
        vendor = self._spoken_for(vendor)
        targets = [target for name, pool in self._config.pools.items() for target in targets_of(name, pool)]
        return [
            target
            for target in targets
            if target.backend.dialect == vendor and (not regions or target.backend.region in regions)
        ]

    @property
    def routes(self) -> Sequence[Route]:
        return self._config.routes

    def find_route(self, asking: Asking, vendor: str, ask: Ask | None = None) -> Going:
        """The route of a request, and where it goes. Raises ClientError for one that no route takes, or that may not be
        here.
        """
        # Read in one go: a long body is planned on a thread, and a reload may come meanwhile.
        config, remembered = self._in_force
        routes = config.routes
        place = pick_route(routes, asking)
        route, name = routes[place], name_of(routes, place)
        regions = bind(asking.tenant.regions, route.regions)
        self.residency.refuse_outsiders(regions)
        arm = pick_arm(name, route.split, _sticky(route.sticky, asking, ask)) if route.split else None
        choices, model = (route.pools, route.model) if arm is None else (arm.pools, arm.model or route.model)
        find = remembered if len(asking.model or "") <= MODEL_CHARS else partial(self._find_way, config)
        way = find(choices, asking.model, model, vendor, regions)
        return Going(route, name, way, regions, None if arm is None else arm.name)

    def _find_way(
        self,
        config: Config,
        choices: tuple[PoolChoice, ...],
        asked: str | None,
        model: str | None,
        vendor: str,
        regions: frozenset[str],
    ) -> Way | SemcacheError:
        """The backends a request may use, or why there are none: that matters only when it must be forwarded.

        Where the whole configuration speaks one dialect, as behind `--upstream`, its backends get every vendor's
        requests: model servers speak more than one, and what they do not know they say themselves.
        """
        try:
            return find_way(choices, config.pools, self._spoken_for(vendor), regions, asked, model)
        except SemcacheError as error:
            return error

    def _spoken_for(self, vendor: str) -> str:
        if vendor not in self._spoken and len(self._spoken) == 1:
            (vendor,) = self._spoken
        return vendor

    def _fields(self, headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        return tuple((name, headers[name]) for name in self._read_fields if name in headers)

    def stats(self) -> dict[str, float]:
        return {"plans": len(self._plans)}


def _of_model(ask: Ask, model: str) -> Ask:
    """As if it had named this model: in its path, too, where the model is named there."""
    if model == ask.model:
        return ask
    items = tuple(_of_model(item, model) for item in ask.items)
    return replace(ask, model=model, target=rename_path(ask.target, model), items=items)


def _weight(plan: Plan) -> int:
    return max(1, len(plan.items))


def _wants(route: Route, address: Address) -> bool:
    return address.opt_in is None or bool(getattr(route.cache, address.opt_in))


def _sticky(by: str, asking: Asking, ask: Ask | None) -> str:
    """What decides the side of an experiment: equal texts go to the same side."""
    if by.startswith("header:"):
        return asking.headers.get(by.removeprefix("header:").lower(), "")
    if ask is None or by == "tenant":
        return asking.tenant.id
    if by == "user":
        return f"{asking.tenant.id} {ask.user or ''}"
    if by == "session":
        first = next((turn.text for turn in ask.turns if turn.role == "user"), ask.question)
        return f"{asking.tenant.id} {ask.user or ''} {first or ''}"
    # Not its bytes: a stream of an answer and the answer as JSON are one entry, and so belong to one side.
    said = b"\0".join((ask.context, (ask.question or "").encode("utf-8", "surrogatepass")))
    return blake2b(said, digest_size=16).hexdigest()
