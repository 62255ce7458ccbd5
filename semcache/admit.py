"""ADMIT: who asks, decided from the headers before the body is read. Doubt about identity is REFUSED.

With `tenants` in the config a key belongs to a tenant, and an unknown key is a 401. Without, the caller's own key is
the tenant, told apart by a digest of the whole key, and is passed through to the upstream, which judges it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import chain

from multidict import MultiMapping

from semcache.config import TenantSettings
from semcache.errors import ClientError
from semcache.types import Tenant

ANONYMOUS = Tenant("anonymous")  # no key at all, where none is asked for


class Admission:
    def __init__(self, tenants: Sequence[TenantSettings]) -> None:
        # Keys are compared by their digests: the time of a dict lookup tells nothing about a key.
        self._by_digest: dict[bytes, Tenant] = {}
        self._by_name: dict[str, Tenant] = {}
        for settings in tenants:
            tenant = Tenant(settings.name, frozenset(settings.regions), settings.namespaces)
            self._by_name[settings.name] = tenant
            for key in settings.keys:
                self._by_digest[_digest(key.get_secret_value())] = tenant
        self._identify = lru_cache(maxsize=4096)(self._identify_uncached)

    @property
    def replaces_keys(self) -> bool:
        """Whether callers hold our keys, which must never travel upstream."""
        return bool(self._by_digest)

    def identify(self, headers: MultiMapping[str]) -> Tenant:
        """Raises ClientError 401."""
        # A field that comes twice counts twice: which of its values an upstream believes is not known here.
        # Where SDKs put the key: OpenAI, Anthropic, Azure OpenAI. All that are sent make up the identity.
        return self._identify(
            tuple(headers.getall("Authorization", ())),
            tuple(headers.getall("x-api-key", ())),
            tuple(headers.getall("api-key", ())),
        )

    def named(self, name: str) -> Tenant:
        """The tenant of this name, or where none are configured of this id. Raises ClientError."""
        if not self._by_digest:
            return Tenant(name)
        if name not in self._by_name:
            known = ", ".join(self._by_name)
            raise ClientError(f'no tenant is called "{name[:80]}"; there are {known}', param="tenant")
        return self._by_name[name]

    def namespace(self, tenant: Tenant, asked: str) -> str:
        """The namespace to use: what was asked, if the tenant may; else his first, or none. Raises ClientError 403."""
        if not asked:
            return tenant.namespaces[0] if tenant.namespaces else ""
        if self._by_digest and asked not in tenant.namespaces:
            raise ClientError(f'this key may not use the namespace "{asked}"', status=403, code="namespace_not_allowed")
        return asked

    def _identify_uncached(self, authorization: tuple[str, ...], *others: tuple[str, ...]) -> Tenant:
        keys = [key for key in (*map(_bearer, authorization), *chain(*others)) if key]
        if not self._by_digest:
            return Tenant(f"key-{_digest(*keys).hex()[:32]}") if keys else ANONYMOUS
        if not keys:
            raise _unauthorized("no API key was sent: put it into `Authorization: Bearer` or `x-api-key`")
        tenant = self._by_digest.get(_digest(keys[0]))
        # Two keys of two tenants in one request: whose it is would depend on who reads it.
        if tenant is None or any(self._by_digest.get(_digest(key)) is not tenant for key in keys[1:]):
            raise _unauthorized("the API key is not known here")
        return tenant


def _bearer(authorization: str) -> str:
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else authorization


def _digest(*keys: str) -> bytes:
    framed = b"".join(len(key).to_bytes(4, "big") + key.encode("utf-8", "surrogateescape") for key in keys)
    return blake2b(framed, digest_size=32, person=b"semcache-tenant").digest()


def _unauthorized(message: str) -> ClientError:
    return ClientError(message, status=401, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
