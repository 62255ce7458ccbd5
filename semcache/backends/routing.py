"""ROUTE: which backends may answer a request, in which order, and at which URL.

The rule: a backend comes from the configuration alone, never from anything a caller sent, and a tenant that is bound
to regions reaches no backend outside them. Everything here is pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from yarl import URL

from semcache.config import Backend, Pool, Route
from semcache.errors import ClientError

_VERSION = re.compile(r"/v1(?=[/?]|$)")

_FROM_ROOT = ("/openai/", "/api/")  # paths that say themselves whose API they are: Azure's and Ollama's
_NOT_ROOT = re.compile(r"(?:/openai|/api)?(?:/v1)?\Z")

# A segment that climbs, however it is spelt: behind a backend's URL it would leave the part of that server the operator
# meant to expose, and with the operator's key. `;` since some servers cut a segment there.
_CLIMBING = re.compile(r"(?:^|[/\\]|%2f|%5c)(?:\.|%2e){1,2}(?=$|[/\\;]|%2f|%5c|%3b)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where to connect. Equal origins share their connections."""

    host: str
    port: int
    tls: bool


@dataclass(frozen=True, slots=True)
class Target:
    """One backend with all that a fetch needs, worked out once a route and not once a request."""

    name: str  # "local[0]": its pool and its place there, for messages, logs and metrics
    pool: str
    backend: Backend
    origin: Origin
    host: str  # the Host field
    prefix: str  # of every path at this backend, no slash at its end: "/v1"
    root: str  # the same without the version: where Azure's and Ollama's paths begin
    connect_s: float  # to a usable connection: a free one, or name, TCP and TLS
    first_byte_s: float  # from the request sent to the first byte of the answer's body
    between_bytes_s: float  # silence inside an answer
    max_connections: int

    def path(self, path_and_query: str) -> str:
        """The request target at this backend; clients write their base URL with or without `/v1`, both mean the same.

        Nothing is quoted or unquoted. Raises ClientError (400) for a path that climbs.
        """
        path, mark, query = path_and_query.partition("?")
        if not path.startswith("/") or _CLIMBING.search(path):
            raise ClientError("the path of the request must start with / and hold no . or .. segments", code="bad_path")
        if path.startswith(_FROM_ROOT):
            return f"{self.root}{path}{mark}{query}"
        return f"{self.prefix}{_VERSION.sub('', path, count=1) if path.startswith('/v1') else path}{mark}{query}"


def pick_route(routes: Sequence[Route], model: str) -> Route:
    """The first route with a glob that matches, case and all. Raises ClientError (404)."""
    for route in routes:
        if any(fnmatchcase(model, glob) for glob in route.models):
            return route
    raise ClientError(f"no route serves the model {model[:100]!r}", status=404, param="model", code="model_not_found")


def rank(route: Route, pools: Mapping[str, Pool], dialect: str, regions: frozenset[str]) -> list[Target]:
    """The backends to try, best first; never empty.

    `regions`: those the tenant is bound to; empty means any. A backend that names no region is in none.
    Raises ClientError: 404 when nothing here speaks the dialect, 403 when all that do lie outside the regions.
    """
    speaking = [
        target
        for name in [choice.pool for choice in route.pools] or tuple(pools)
        for target in _in_order(name, pools[name])
        if target.backend.dialect == dialect
    ]
    if not speaking:
        raise ClientError(
            f"no backend for this model speaks the {dialect} dialect", status=404, code="dialect_not_served"
        )
    allowed = [target for target in speaking if not regions or target.backend.region in regions]
    if not allowed:
        places = ", ".join(sorted(regions))
        raise ClientError(
            f"this key may use backends in {places} only, and none of those for this model is there",
            status=403,
            code="region_not_allowed",
        )
    return allowed


def _in_order(name: str, pool: Pool) -> Iterator[Target]:
    """A pool's backends as written. Balancing and health come in here: they reorder and leave out, nothing else."""
    for place, backend in enumerate(pool.backends):
        yield _aim(f"{name}[{place}]", name, pool, backend)


def _aim(name: str, pool_name: str, pool: Pool, backend: Backend) -> Target:
    url = URL(backend.url, encoded=True)
    path = url.raw_path.rstrip("/")
    assert url.raw_host is not None and url.port is not None  # config.Backend has checked that it is an http(s) URL
    return Target(
        name=name,
        pool=pool_name,
        backend=backend,
        origin=Origin(url.raw_host, url.port, url.scheme == "https"),
        host=url.host_port_subcomponent or "",
        prefix=_prefix(path, backend.dialect),
        root=_root(path),
        connect_s=pool.connect,
        first_byte_s=pool.first_byte,
        between_bytes_s=pool.between_bytes,
        max_connections=pool.max_connections,
    )


def _root(path: str) -> str:
    """A base URL may hold the beginning of such paths too: "https://name.openai.azure.com/openai/v1"."""
    return _NOT_ROOT.sub("", path, count=1)


def _prefix(path: str, dialect: str) -> str:
    """A base URL is read as the vendor's own SDK reads it: OpenAI's holds the version, the others' do not."""
    if dialect == "azure":
        return f"{_root(path)}/openai/v1"
    if dialect in ("anthropic", "ollama") and not path.endswith("/v1"):
        return f"{path}/v1"
    return path
