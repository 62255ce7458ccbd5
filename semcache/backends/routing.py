"""ROUTE: which route a request takes, and which backends may then answer it, in which order of preference.

The rule: a backend comes from the configuration alone, never from anything a caller sent, and a request that is bound
to regions reaches no backend outside them. Everything here is pure. Who of them is alive, free and near is asked when
the request is sent (dispatch.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import blake2b
from itertools import chain
from math import log
from typing import NamedTuple

from semcache.backends.models import accepts, is_alias
from semcache.backends.target import Target, targets_of
from semcache.config import Arm, Pool, PoolChoice, Route
from semcache.errors import ClientError, OutOfRegion
from semcache.types import Tenant

BYTES_PER_TOKEN = 4  # of a prompt that nobody has counted; see settings/routing.py PromptSize


class Asking(NamedTuple):
    """What a route is chosen by."""

    model: str | None  # None: the request names none
    path: str  # without the query
    tenant: Tenant
    headers: Mapping[str, str] = {}  # case-insensitive, or with lower-case names
    prompt_tokens: int = 0  # estimated


@dataclass(frozen=True, slots=True)
class Option:
    """A pool of a way, with those of its backends that may answer."""

    pool: str
    model: str | None  # whose answers these are; None: of the model that was asked for, as are all others of the way
    targets: tuple[Target, ...]


@dataclass(frozen=True, slots=True)
class Way:
    """Where a request may go: pools in order of preference, at least one, each with at least one backend."""

    options: tuple[Option, ...]
    regions: frozenset[str] = frozenset()  # it may use no others; empty: any

    @property
    def targets(self) -> tuple[Target, ...]:
        return tuple(chain.from_iterable(option.targets for option in self.options))

    @property
    def model(self) -> str | None:
        """Whose answers are looked up and stored: those of the preferred pool. None: of the model asked for."""
        return self.options[0].model


def aliases_of(routes: Sequence[Route]) -> Sequence[str]:
    """Names that callers use for other models: those that a route writes out, and asks for something else instead."""
    return [
        name
        for route in routes
        if any(model is not None for model in _asked_instead(route))
        for name in route.models
        if is_alias(name)
    ]


def _asked_instead(route: Route) -> Iterator[str | None]:
    yield route.model
    for choice in (*route.pools, *(choice for arm in route.split for choice in arm.pools)):
        yield choice.model
    for arm in route.split:
        yield arm.model


def name_of(routes: Sequence[Route], place: int) -> str:
    return routes[place].name or f"routes[{place}]"


def pick_route(routes: Sequence[Route], asking: Asking) -> int:
    """The place of the first route that fits. Raises ClientError: 404 where none does, 403 where its key may not.

    A request without a model, to a path that passes through, takes the first route that is for any model; where there
    is none, the first that fits it otherwise.
    """
    refuse_model(asking)
    for place, route in enumerate(routes):
        if why_not(route, asking) is None:
            return _allowed(routes, place, asking.tenant)
    if asking.model is None:
        for place, route in enumerate(routes):
            if why_not(route, asking, any_model=True) is None:
                return _allowed(routes, place, asking.tenant)
        raise ClientError("no route serves this request", status=404, code="not_found")
    name = repr(asking.model[:100])
    raise ClientError(f"no route serves the model {name}", status=404, param="model", code="model_not_found")


def why_not(route: Route, asking: Asking, any_model: bool = False) -> str | None:
    """What keeps a route from taking this request, in words; None: nothing. `any_model`: leave the model out of it."""
    if not any_model and not any(
        fnmatchcase(asking.model, glob) if asking.model else glob == "*" for glob in route.models
    ):
        return f"models: {asking.model or 'a request without a model'} fits none of {', '.join(route.models)}"
    if route.paths and not any(fnmatchcase(asking.path, glob) for glob in route.paths):
        return f"paths: {asking.path} fits none of {', '.join(route.paths)}"
    if route.tenants and asking.tenant.id not in route.tenants:
        return f"tenants: {asking.tenant.id} is none of {', '.join(route.tenants)}"
    for name, glob in route.headers.items():
        value = asking.headers.get(name.lower())
        if value is None or not fnmatchcase(value, glob):
            return f"headers: {name} is {'not there' if value is None else f'{value!r}, which does not fit {glob!r}'}"
    if route.tenant_regions and not (asking.tenant.regions and asking.tenant.regions <= set(route.tenant_regions)):
        bound = ", ".join(sorted(asking.tenant.regions)) or "no region"
        return f"tenant_regions: the tenant is bound to {bound}, which is not within {', '.join(route.tenant_regions)}"
    size = route.prompt
    if asking.prompt_tokens < size.min or (size.max is not None and asking.prompt_tokens > size.max):
        return f"prompt: about {asking.prompt_tokens} tokens are not within {size.min} to {size.max or 'any number'}"
    return None


def refuse_model(asking: Asking) -> None:
    """Raises ClientError 403 for a model that the caller's key is not for."""
    globs = asking.tenant.models
    if not globs or (asking.model is not None and any(fnmatchcase(asking.model, glob) for glob in globs)):
        return
    if asking.model is None:
        if asking.path.removesuffix("/").endswith("/models"):
            return  # asks for nothing but names
        what = "the request names none"
    else:
        what = f"not for {asking.model[:100]!r}"
    raise ClientError(
        f"this key is for the models {', '.join(globs)}: {what}", status=403, param="model", code="model_not_allowed"
    )


def _allowed(routes: Sequence[Route], place: int, tenant: Tenant) -> int:
    if tenant.routes and routes[place].name not in tenant.routes:
        raise ClientError(
            f"this key may take the routes {', '.join(tenant.routes)}, and this request takes {name_of(routes, place)}",
            status=403,
            code="route_not_allowed",
        )
    return place


def bind(tenant: frozenset[str], route: Sequence[str]) -> frozenset[str]:
    """The regions a request may use: the tenant's, and of those the route's; empty: any. Raises ClientError 403."""
    if not route or not tenant:
        return tenant or frozenset(route)
    both = tenant & set(route)
    if not both:
        raise OutOfRegion(
            f"this key may use {', '.join(sorted(tenant))} only, and its route is for {', '.join(sorted(route))}",
            tenant,
        )
    return both


def pick_arm(name: str, arms: Sequence[Arm], key: str) -> Arm:
    """The side of an experiment that a key falls to, always the same.

    Weighted rendezvous hashing: when weights change, no more keys change sides than have to. `name`: of the experiment,
    so that a key which is in the tenth of one is not in the tenth of every other.
    """

    def score(arm: Arm) -> float:
        digest = blake2b(f"{name}\0{arm.name}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        uniform = (int.from_bytes(digest, "big") + 1) / (2**64 + 1)
        return -arm.weight / log(uniform)

    return max(arms, key=score)


def find_way(
    choices: Sequence[PoolChoice],
    pools: Mapping[str, Pool],
    dialect: str,
    regions: frozenset[str],
    asked: str | None = None,
    model: str | None = None,
) -> Way:
    """The backends a request may go to. `choices`: empty means every pool.

    `regions`: empty means any; a backend that names no region is in none. `asked`: the model the request names, None
    where it names none. `model`: the one the route asks for instead.
    Raises ClientError: 404 when nothing here speaks the dialect or serves the model, 403 when all that do lie outside
    the regions.
    """
    options = []
    speaks = serves = False
    choices = choices or tuple(PoolChoice(pool=name) for name in pools)
    # Where any pool is asked for another model, each says whose answers are its own: what is looked up and stored goes
    # by the first one's, and a later pool's may be of the model that the caller named.
    has_others = model is not None or any(choice.model for choice in choices)
    for choice in choices:
        wanted = choice.model or model or (asked if has_others else None)
        targets = []
        for target in targets_of(choice.pool, pools[choice.pool]):
            if target.backend.dialect != dialect:
                continue
            speaks = True
            called = wanted or asked
            name = accepts(target.backend.models, called) if called else None
            if name is None and called:
                continue
            serves = True
            if not regions or target.backend.region in regions:
                targets.append(target.asking_for(name if has_others or name != asked else None))
        if targets:
            options.append(Option(choice.pool, wanted, tuple(targets)))
    if options:
        return Way(tuple(options), regions)
    if not speaks:
        message = f"no backend for this model speaks the {dialect} dialect"
        raise ClientError(message, status=404, code="dialect_not_served")
    if not serves:
        message = f"no backend of this route serves the model {(model or asked or '')[:100]!r}"
        raise ClientError(message, status=404, param="model", code="model_not_found")
    places = ", ".join(sorted(regions))
    message = f"this key may use backends in {places} only, and none of those for this model is there"
    raise OutOfRegion(message, regions)
