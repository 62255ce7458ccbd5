"""ADVICE: settings that are allowed, and may not do what one who writes them thinks. Shown by `semcache check`.

What cannot work at all is an error of config.py. What is here works, and an operator should know what he gets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from semcache.config import Backend, Config, Match, Route

SHY = 0.005  # below it an error bound takes so many comparisons that a small service waits for months
LOW = 0.80  # cosine: below it, more than 1 % of hits were wrong on every labelled stream, guards or none
_DEFAULT = Match()


def advise(config: Config) -> list[str]:
    """One line each, `match...` where all routes have it and `routes[N].match...` where one does."""
    by_route = [list(_of_route(route, config)) for route in config.routes]
    lines = []
    for number, own in enumerate(by_route):
        for line in own:
            is_everywhere = all(line in others for others in by_route)
            if not is_everywhere or number == 0:
                lines.append(line if is_everywhere else f"routes[{number}].{line}")
    return [*lines, *_of_ways(config), *_of_regions(config)]


def _of_route(route: Route, config: Config) -> Iterator[str]:
    match = route.match
    if match.mode == "off":
        for name in ("max_error", "judge", "reranker"):
            if getattr(match, name) is not None:
                yield f"match.{name}: has no effect, as mode is off"
        return
    if match.max_error is not None:
        yield from _of_bound(match, match.max_error)
    else:
        yield from _of_threshold(match)
    if match.mode == "shadow" and match.learn == "off":
        yield "match.learn: off, so shadow mode counts hits and never learns which of them would have been wrong"
    if match.judge_weights is not None and match.judge is None and match.max_error is None:
        yield "match.judge_weights: are not read, as neither judge nor max_error is set"
    if match.answers_judge is not None:
        keyless = [backend for backend in config.pools[match.answers_judge.pool].backends if not _has_key(backend)]
        if keyless:
            yield (
                f"match.answers_judge: {keyless[0].url} has no api_key in pool {match.answers_judge.pool}, and no "
                "caller's key is used for it"
            )
    yield from _of_sharing(route, config)


def _of_bound(match: Match, max_error: float) -> Iterator[str]:
    if match.mode == "shadow":
        yield "match.max_error: serves nothing in mode shadow, and learns what it may serve when mode is serve again"
    elif match.explore == 0 or match.explore_usd == 0:
        name = "explore" if match.explore == 0 else "explore_usd"
        yield f"match.{name}: 0, so nobody sees when hits that once were right become wrong; 0.02 compares one in fifty"
    if max_error < SHY:
        yield (
            f"match.max_error: {max_error:g} takes {math.ceil(3 / max_error):,} comparisons without an error, at the "
            "least, before anything is served by meaning"
        )
    if match.judge is not None:
        yield "match.judge: is not asked for its own, as max_error weighs the judge's word with all else"
    if match.threshold != _DEFAULT.threshold:
        yield f"match.threshold: {match.threshold:g} is not asked, as max_error is set"


def _of_threshold(match: Match) -> Iterator[str]:
    if match.reranker is not None or match.mode != "serve":
        return
    if match.threshold < LOW and match.judge is None:
        yield (
            f"match.threshold: below {LOW:g} more than 1 % of hits were wrong on all traffic that was measured; "
            "`semcache shadow` tells of yours"
        )
    if not match.guards and match.judge is None and match.threshold < 1:
        yield 'match.guards: none, so "enable" is answered with what was stored for "disable"'


def _of_sharing(route: Route, config: Config) -> Iterator[str]:
    cache = route.cache
    if cache.sharing == "tenant":
        if cache.min_uses > 1:
            yield "cache.min_uses: has no effect, as sharing is tenant: nobody gets what another brought"
        return
    if not config.tenants:
        yield f"cache.sharing: {cache.sharing}, without tenants: whoever reaches the port reads what is shared"
    if route.match.personal == "serve":
        yield f"match.personal: serve, and sharing is {cache.sharing}: one tenant's balance may be told to another"


def _of_ways(config: Config) -> Iterator[str]:
    takes_all = next((number for number, route in enumerate(config.routes) if _takes_all(route)), None)
    if takes_all is not None:
        for number in range(takes_all + 1, len(config.routes)):
            yield f"routes[{number}]: nothing gets here, as routes[{takes_all}] takes every request before it"
    if not config.tenants:
        return
    for name, pool in config.pools.items():
        for place, backend in enumerate(pool.backends):
            if not _has_key(backend) and not backend.headers:
                yield (
                    f"pools.{name}.backends[{place}].api_key: none, and with tenants no caller's own key is passed on: "
                    f"{backend.url} gets requests without one"
                )


def _of_regions(config: Config) -> Iterator[str]:
    there = {backend.region for pool in config.pools.values() for backend in pool.backends}
    store = config.cache.region or config.server.region
    bonds = [(f"tenants[{number}]", tenant.regions) for number, tenant in enumerate(config.tenants)]
    bonds += [(f"routes[{number}]", route.regions) for number, route in enumerate(config.routes)]
    bonds = [(place, regions) for place, regions in bonds if regions]
    for place, regions in bonds:
        named = ", ".join(regions)
        if config.server.region is not None and config.server.region not in regions:
            yield f"{place}.regions: {named}, and server.region is {config.server.region}: this node refuses it all"
            continue
        if there.isdisjoint(regions):
            yield f"{place}.regions: no backend is in {named}, so nothing is answered but what the cache has"
        if store is not None and store not in regions:
            yield f"{place}.regions: {named}, and the store is in {store}: nothing of it is looked up or kept"
    if config.server.region is None and len({frozenset(regions) for _, regions in bonds}) > 1:
        yield "server.region: not set, so this node, its store and its logs are taken to be wherever a request may be"
    if bonds:
        yield from _of_parts_elsewhere(config, [frozenset(regions) for _, regions in bonds])


def _of_parts_elsewhere(config: Config, bonds: Sequence[frozenset[str]]) -> Iterator[str]:
    """What belongs to a node that has requests bound to regions, and is reached over a network or written to a disk."""
    embedder, here = config.embedder, config.server.region
    if embedder.engine == "openai":
        place = embedder.region or here
        if place is None:
            yield f"embedder.region: not set, nor server.region, so {embedder.url} reads what is bound to regions"
        elif any(place not in regions for regions in bonds):
            yield f"embedder.region: {place}, so of what is bound elsewhere only equal requests are hits"
    hooks = [route.guardrails.hook for route in config.routes]
    if here is None and any(hook is not None and hook.region is None for hook in hooks):
        yield "guardrails.hook.region: not set, nor server.region, so it is not asked about what is bound to regions"
    store = config.cache.region
    if config.usage.path == "auto" and store not in (None, here) and any(store not in regions for regions in bonds):
        yield f"usage.path: auto, beside the store in {store}: it says who asked how much, wherever he is bound"
    for name, pool in config.pools.items():
        is_placed = any(backend.region for backend in pool.backends)
        for number, backend in enumerate(pool.backends):
            if is_placed and backend.region is None:
                yield f"pools.{name}.backends[{number}].region: none, so it gets nothing that is bound to regions"
            if backend.chain and backend.region is not None:
                yield (
                    f"pools.{name}.backends[{number}].chain: what is bound to regions stays bound behind it only where "
                    "that semcache has chain.accept, and says where its own backends are"
                )


def _takes_all(route: Route) -> bool:
    narrows = (route.paths, route.tenants, route.headers, route.tenant_regions, route.prompt.min, route.prompt.max)
    return "*" in route.models and not any(narrows)


def _has_key(backend: Backend) -> bool:
    """It has one, or needs none: servers on plain HTTP are one's own."""
    return backend.url.startswith("http://") or bool(backend.api_keys or backend.api_key.get_secret_value())
