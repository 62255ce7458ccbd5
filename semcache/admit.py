"""ADMIT: who asks, decided from the headers before the body is read. Doubt about identity is REFUSED.

With `tenants` in the config a caller holds a key of the config, a virtual key or a token of an identity provider, each
of which belongs to a tenant, and anything else is a 401. Without, the caller's own key is the tenant, told apart by a
digest of the whole key, and is passed through to the upstream, which judges it.

`identify` is on the path of a hit: who was identified once is found in one dict, for as long as what identified him
counts. A changed key, key set or configuration empties that dict.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from itertools import chain
from typing import NamedTuple, Protocol

from multidict import MultiMapping

from semcache.access.credentials import KeySetStale, Verified, looks_like_token, unauthorized
from semcache.access.keys import PREFIX, VirtualKey, tenant_with
from semcache.config import Limits, TenantSettings
from semcache.errors import ClientError
from semcache.types import Tenant

__all__ = ["ANONYMOUS", "Admission", "KeySetStale"]

ANONYMOUS = Tenant("anonymous")  # no key at all, where none is asked for
REMEMBERED = 4096

NONE = Limits()


class Keyring(Protocol):
    """The virtual keys; see access/keyring.py."""

    sure_until: float  # monotonic seconds: after that nobody knows whether they still count
    on_change: Callable[[], None]

    def find(self, text: str) -> tuple[VirtualKey, float]:
        """The key of this text, and until when (unix seconds) that is so. Raises ClientError 401 or 503."""

    def get(self, key_id: str) -> VirtualKey | None: ...


class KeySet(Protocol):
    async def renew(self) -> None: ...


class Tokens(Protocol):
    """Tokens of an identity provider; see access/tokens.py."""

    on_change: Callable[[], None]

    @property
    def keys(self) -> KeySet: ...

    def verify(self, token: str) -> Verified:
        """Raises ClientError 401 or 403, and KeySetStale where waiting may help."""


class _Known(NamedTuple):
    tenant: Tenant
    until: float = math.inf  # unix seconds
    keyring: Keyring | None = None  # it counts only while this one is sure


class Admission:
    def __init__(
        self,
        tenants: Sequence[TenantSettings],
        keyring: Keyring | None = None,
        tokens: Tokens | None = None,
        clock: Callable[[], float] = time.time,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock`: unix seconds. `now`: monotonic seconds."""
        self._clock = clock
        self._now = now
        self._known: dict[tuple[tuple[str, ...], ...], _Known] = {}
        self._limits: dict[tuple[str, str], tuple[tuple[str, Limits], ...]] = {}
        self._keyring = keyring
        self._tokens = tokens
        for part in (keyring, tokens):
            if part is not None:
                part.on_change = self._forget
        self.adopt(tenants)

    def adopt(self, tenants: Sequence[TenantSettings]) -> None:
        """Go by these tenants from the next request on. They were checked; this cannot fail."""
        self._settings = {settings.name: settings for settings in tenants}
        self._by_name = {
            settings.name: Tenant(
                settings.name,
                frozenset(settings.regions),
                settings.namespaces,
                models=settings.models,
                routes=settings.routes,
            )
            for settings in tenants
        }
        # Keys are compared by their digests: the time of a dict lookup tells nothing about a key.
        self._by_digest = {
            _digest(key.get_secret_value()): self._by_name[settings.name]
            for settings in tenants
            for key in settings.keys
        }
        self._forget()

    @property
    def replaces_keys(self) -> bool:
        """Whether callers hold our keys, or tokens meant for us, which must never travel upstream."""
        return bool(self._by_name)

    def identify(self, headers: MultiMapping[str]) -> Tenant:
        """Raises ClientError 401, or 403 for a tenant that is none here, and KeySetStale: then await `learn_keys`
        and ask again."""
        # A field that comes twice counts twice: which of its values an upstream believes is not known here.
        # Where SDKs put the key: OpenAI, Anthropic, Azure OpenAI. All that are sent make up the identity.
        fields = (
            tuple(headers.getall("Authorization", ())),
            tuple(headers.getall("x-api-key", ())),
            tuple(headers.getall("api-key", ())),
        )
        known = self._known.get(fields)
        if known is not None:
            tenant, until, keyring = known
            if self._clock() < until and (keyring is None or self._now() < keyring.sure_until):
                return tenant
        known = self._identify(*fields)
        if len(self._known) >= REMEMBERED:
            del self._known[next(iter(self._known))]  # the oldest
        self._known[fields] = known
        return known.tenant

    async def learn_keys(self) -> None:
        """Have the identity provider asked for its keys, where a token named one that is not known."""
        if self._tokens is not None:
            await self._tokens.keys.renew()

    def find(self, name: str) -> Tenant | None:
        """The tenant of this name in the configuration."""
        return self._by_name.get(name)

    def named(self, name: str) -> Tenant:
        """The tenant of this name, or where none are configured of this id. Raises ClientError."""
        if not self._by_name:
            return Tenant(name)
        if name not in self._by_name:
            known = ", ".join(self._by_name)
            raise ClientError(f'no tenant is called "{name[:80]}"; there are {known}', param="tenant")
        return self._by_name[name]

    def namespace(self, tenant: Tenant, asked: str) -> str:
        """The namespace to use: what was asked, if the tenant may; else his first, or none. Raises ClientError 403."""
        if not asked:
            return tenant.namespaces[0] if tenant.namespaces else ""
        if self._by_name and asked not in tenant.namespaces:
            raise ClientError(f'this key may not use the namespace "{asked}"', status=403, code="namespace_not_allowed")
        return asked

    def limits(self, tenant: Tenant) -> tuple[tuple[str, Limits], ...]:
        """What a request of this tenant counts against: subjects such as "tenant shop" and "key a1B2c3D4e5", each with
        its limits; those without any are left out."""
        found = self._limits.get((tenant.id, tenant.key))
        if found is None:
            settings = self._settings.get(tenant.id)
            key = self._keyring.get(tenant.key) if self._keyring is not None and tenant.key else None
            subjects = (
                (f"tenant {tenant.id}", settings.limits if settings else NONE),
                (f"key {tenant.key}", key.limits if key else NONE),
            )
            found = tuple((subject, limits) for subject, limits in subjects if limits != NONE)
            if len(self._limits) >= REMEMBERED:
                self._limits.clear()
            self._limits[tenant.id, tenant.key] = found
        return found

    # Who it is, looked at anew

    def _identify(self, authorization: tuple[str, ...], *others: tuple[str, ...]) -> _Known:
        keys = [key for key in (*map(_bearer, authorization), *chain(*others)) if key]
        if not self._by_name:
            return _Known(Tenant(f"key-{_digest(*keys).hex()[:32]}") if keys else ANONYMOUS)
        if not keys:
            raise unauthorized("no API key was sent: put it into `Authorization: Bearer` or `x-api-key`")
        found = [self._whose(key) for key in keys]
        # Two keys of two tenants in one request, or with different rights: whose it is would depend on who reads it.
        if any(one.tenant != found[0].tenant for one in found):
            raise unauthorized("the API keys of this request do not belong together")
        keyring = next((one.keyring for one in found if one.keyring is not None), None)
        return _Known(found[0].tenant, min(one.until for one in found), keyring)

    def _whose(self, key: str) -> _Known:
        tenant = self._by_digest.get(_digest(key))
        if tenant is not None:
            return _Known(tenant)
        if self._keyring is not None and key.startswith(PREFIX):
            virtual, until = self._keyring.find(key)
            return _Known(tenant_with(virtual, self._configured(virtual.tenant)), until, self._keyring)
        if self._tokens is not None and looks_like_token(key):
            verified = self._tokens.verify(key)
            return _Known(self._by_name[self._configured(verified.tenant).name], verified.until)
        raise unauthorized("the API key is not known here")

    def _configured(self, name: str) -> TenantSettings:
        """Raises ClientError 403."""
        settings = self._settings.get(name)
        if settings is None:
            raise ClientError(
                "the tenant that this key or token names is not configured here", status=403, code="tenant_unknown"
            )
        return settings

    def _forget(self) -> None:
        self._known = {}
        self._limits = {}

    def stats(self) -> Mapping[str, float]:
        return {"remembered": len(self._known)}


def _bearer(authorization: str) -> str:
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else authorization


def _digest(*keys: str) -> bytes:
    framed = b"".join(len(key).to_bytes(4, "big") + key.encode("utf-8", "surrogateescape") for key in keys)
    return blake2b(framed, digest_size=32, person=b"semcache-tenant").digest()
