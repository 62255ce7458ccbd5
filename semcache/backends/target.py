"""A target: one backend with one key, and all that a fetch needs of it, worked out once and not once a request."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from yarl import URL

from semcache.config import Backend, Pool
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
    name: str  # "local[0]": its pool and its place there, and its key where there are several; for logs and metrics
    pool: str
    backend: Backend
    api_key: str  # empty: the caller's own is passed through
    model: str | None  # asked for there instead of what the body names; None: as it is
    origin: Origin
    host: str  # the Host field
    prefix: str  # of every path at this backend, no slash at its end: "/v1"
    root: str  # the same without the version: where Azure's and Ollama's paths begin
    connect_s: float  # to a usable connection: a free one, or name, TCP and TLS
    first_byte_s: float  # from the request sent to the first byte of the answer's body
    between_bytes_s: float  # silence inside an answer
    max_connections: int
    connection_age_s: float

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

    def asking_for(self, model: str | None) -> Target:
        return self if model == self.model else replace(self, model=model)


def targets_of(pool_name: str, pool: Pool) -> Iterator[Target]:
    """A pool's backends as written, each once for every key it has."""
    for place, backend in enumerate(pool.backends):
        keys = [key.get_secret_value().strip() for key in backend.api_keys or (backend.api_key,)]
        for number, key in enumerate(keys):
            name = f"{pool_name}[{place}]" + (f"#{number}" if len(keys) > 1 else "")
            yield _aim(name, pool_name, pool, backend, key)


def _aim(name: str, pool_name: str, pool: Pool, backend: Backend, api_key: str) -> Target:
    url = URL(backend.url, encoded=True)
    path = url.raw_path.rstrip("/")
    assert url.raw_host is not None and url.port is not None  # config.Backend has checked that it is an http(s) URL
    return Target(
        name=name,
        pool=pool_name,
        backend=backend,
        api_key=api_key,
        model=None,
        origin=Origin(url.raw_host, url.port, url.scheme == "https"),
        host=url.host_port_subcomponent or "",
        prefix=_prefix(path, backend.dialect),
        root=_root(path),
        connect_s=pool.connect,
        first_byte_s=pool.first_byte,
        between_bytes_s=pool.between_bytes,
        max_connections=pool.max_connections,
        connection_age_s=pool.connection_age,
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
