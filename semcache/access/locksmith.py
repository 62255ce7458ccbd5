"""What the operator does with keys: make, list, change, rotate and revoke them, here or through a running server.

A key can never do more than its tenant: what it is granted is checked when it is made, and narrowed again whenever it
is used, for the tenant may have lost it since. A key's text leaves this file once, as the return value of `create` or
`rotate`; only its digest is kept.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple, Protocol

from pydantic import Field

from semcache.access.key_file import Changing, KeyFile
from semcache.access.keys import PREFIX, Grants, Secret, VirtualKey, make_id, make_text, misfits
from semcache.config import Limits, TenantSettings
from semcache.errors import ClientError
from semcache.settings.primitives import Seconds, Section

LONGEST_S = 100 * 365 * 86400.0
OVERLAP_S = 86400.0  # both secrets work for a day: time to roll one out, and short enough for one that leaked

Lifetime = Annotated[Seconds, Field(gt=0, le=LONGEST_S)]


class Record(Protocol):
    def __call__(self, event: str, *, regions: frozenset[str], **facts: object) -> None:
        """Take down what is about to be kept; what raises keeps it from being so. Never told a key's text.

        `regions`: those that the key's tenant is bound to; empty: any.
        """


def no_record(event: str, *, regions: frozenset[str], **facts: object) -> None:
    """Where nothing is audited."""


class NewKey(Section):
    """What is asked of a key to be made."""

    tenant: str
    name: str = Field(default="", max_length=200)
    models: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    limits: Limits = Limits()
    expires: Lifetime | None = None  # from now; null: never


class KeyChange(Section):
    """What is to be another of a key. What is not named stays; a limit of null is lifted, `expires: null` too."""

    name: str | None = Field(default=None, max_length=200)
    limits: Limits = Limits()
    expires: Lifetime | None = None


class Made(NamedTuple):
    text: str  # shown once
    key: VirtualKey


class Locksmith:
    """Its methods wait for a disk: call them on a thread. They raise KeyFileFault."""

    def __init__(
        self,
        file: KeyFile,
        tenants: Callable[[], Sequence[TenantSettings]],
        clock: Callable[[], float],
        record: Record = no_record,
    ) -> None:
        """`tenants`: those of now, for a reload may change them. `clock`: unix seconds."""
        self._file = file
        self._tenants = tenants
        self._clock = clock
        self._record = record

    def create(self, wanted: NewKey) -> Made:
        """Raises ClientError for a tenant that is not there, and for what it may not use itself."""
        grants = Grants(**{name: getattr(wanted, name) for name in Grants.model_fields})
        found = self._tenant(wanted.tenant)
        if found is None:
            known = ", ".join(tenant.name for tenant in self._tenants())
            raise ClientError(f'no tenant is called "{wanted.tenant[:80]}"; there are {known}', param="tenant")
        if wrong := misfits(grants, found):
            raise ClientError(str(wrong[0]), param=wrong[0].grant)
        now = self._clock()
        expires = None if wanted.expires is None else now + wanted.expires
        with self._file.changing() as change:
            while True:
                key_id = make_id()
                text = make_text(key_id)
                key = VirtualKey(
                    id=key_id,
                    tenant=found.name,
                    name=wanted.name,
                    grants=grants,
                    limits=wanted.limits,
                    created=now,
                    expires=expires,
                    secrets=(Secret(digest=self._file.digest(text)),),
                )
                try:
                    change.add(key)
                    break
                except sqlite3.IntegrityError:  # the id is taken: one in 2**59
                    continue
            self._tell("key-created", key, expires=day_and_time(expires))
        return Made(text, key)

    def rotate(self, key_id: str, overlap_s: float = OVERLAP_S) -> Made:
        """A new secret under the same id, so that limits and figures go on; what worked until now does for a while.

        Raises ClientError for a key that is not there, or that works no more, and for an overlap without end.
        """
        if not 0 <= overlap_s <= LONGEST_S:
            raise ClientError("overlap: it is from 0 to 100 years", param="overlap")
        now = self._clock()
        text = make_text(key_id)
        with self._file.changing() as change:
            key = self._find(change, key_id)
            if not key.is_usable(now):
                raise ClientError(f"{_short(key_id)}: it was revoked, or has expired; make another", status=409)
            until = now + overlap_s
            old = [
                Secret(digest=secret.digest, until=until if secret.until is None else min(until, secret.until))
                for secret in key.secrets
                if secret.until is None or secret.until > now
            ]
            key = key.model_copy(update={"secrets": (*old, Secret(digest=self._file.digest(text)))})
            change.put(key)
            self._tell("key-rotated", key, overlap_s=overlap_s)
        return Made(text, key)

    def revoke(self, key_id: str) -> VirtualKey:
        """For good. Of a key that was revoked already the first time stands. Raises ClientError."""
        with self._file.changing() as change:
            key = self._find(change, key_id)
            if key.revoked is None:
                key = key.model_copy(update={"revoked": self._clock()})
                change.put(key)
            self._tell("key-revoked", key)
        return key

    def update(self, key_id: str, wanted: KeyChange) -> VirtualKey:
        """Raises ClientError."""
        named = wanted.model_fields_set
        changes: dict[str, Any] = {}
        if "name" in named:
            changes["name"] = wanted.name or ""
        if "expires" in named:
            changes["expires"] = None if wanted.expires is None else self._clock() + wanted.expires
        with self._file.changing() as change:
            key = self._find(change, key_id)
            if "limits" in named:
                said = {name: getattr(wanted.limits, name) for name in wanted.limits.model_fields_set}
                changes["limits"] = key.limits.model_copy(update=said)
            key = key.model_copy(update=changes)
            change.put(key)
            limits = key.limits.model_dump(exclude_none=True)
            self._tell("key-updated", key, limits=limits, expires=day_and_time(key.expires))
        return key

    def list(self, tenant: str | None = None) -> Sequence[Mapping[str, Any]]:
        """What may be shown of each key, oldest first."""
        days = self._file.last_used()
        of_tenant = [key for key in self._file.all() if tenant is None or key.tenant == tenant]
        return [describe(key, days.get(key.id)) for key in sorted(of_tenant, key=lambda key: (key.created, key.id))]

    def _find(self, change: Changing, key_id: str) -> VirtualKey:
        key = change.find(key_id)
        if key is None:
            raise ClientError(f"no key has the id {_short(key_id)}; `semcache keys list` shows them", status=404)
        return key

    def _tell(self, event: str, key: VirtualKey, **facts: object) -> None:
        tenant = self._tenant(key.tenant)
        regions = frozenset(tenant.regions) if tenant is not None else frozenset()
        self._record(event, regions=regions, key=key.id, tenant=key.tenant, name=key.name or None, **facts)

    def _tenant(self, name: str) -> TenantSettings | None:
        return next((tenant for tenant in self._tenants() if tenant.name == name), None)


def describe(key: VirtualKey, last_used: str | None = None) -> dict[str, Any]:
    """A key for the operator's eyes: whose it is and what it may, and nothing that opens a door."""
    return {
        "id": key.id,
        "prefix": PREFIX + key.id,
        "tenant": key.tenant,
        "name": key.name,
        "created": day_and_time(key.created),
        "last_used": last_used,
        "expires": day_and_time(key.expires),
        "revoked": day_and_time(key.revoked),
        "rotating_until": day_and_time(max((s.until for s in key.secrets if s.until is not None), default=None)),
        **key.grants.model_dump(mode="json"),
        "limits": key.limits.model_dump(exclude_none=True),
    }


def day_and_time(at: float | None) -> str | None:
    """UTC, as 2026-11-21T20:13:58Z."""
    return None if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _short(key_id: str) -> str:
    """An id as it was given; a whole key that was pasted in its place is not repeated."""
    return f'"{key_id}"' if len(key_id) <= 20 else f'"{key_id[:16]}..." (an id has 10 characters, not a whole key)'
