"""The settings of who may ask, for how much, and what is written down about it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ByteSize, Field, SecretStr, field_validator

from semcache.settings.primitives import Seconds, Section

Count = Annotated[int, Field(ge=1)]
Usd = Annotated[float, Field(gt=0)]


class Limits(Section):
    """Of a tenant or a key; null: none. Requests count whoever answers them; tokens and money only where billed.

    A minute slides; days and months are those of UTC.
    """

    requests_per_minute: Count | None = None
    requests_per_day: Count | None = None
    requests_per_month: Count | None = None
    tokens_per_minute: Count | None = None
    tokens_per_day: Count | None = None
    tokens_per_month: Count | None = None
    usd_per_minute: Usd | None = None
    usd_per_day: Usd | None = None
    usd_per_month: Usd | None = None


class TenantSettings(Section):
    name: str = Field(min_length=1)
    keys: tuple[SecretStr, ...] = ()  # written here; others come from `semcache keys`, or as JWT
    regions: tuple[str, ...] = ()  # nothing of this tenant leaves them: backends, entries, logs, the store
    namespaces: tuple[str, ...] = ()
    models: tuple[str, ...] = ()  # globs; empty: any
    routes: tuple[str, ...] = ()  # names; empty: any
    limits: Limits = Limits()

    @field_validator("keys")
    @classmethod
    def _not_empty(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if not all(key.get_secret_value() for key in keys):
            raise ValueError("a key is empty: is its environment variable set?")
        return keys


class Keys(Section):
    """Keys that are made, rotated and revoked while the proxy runs. They belong to tenants of this file."""

    path: str = "./var/keys.db"  # SQLite; holds digests under the pepper, never a key
    pepper: SecretStr = Field(min_length=16)  # of this installation; without it the file tells nothing
    refresh: Seconds = Field(default=1.0, gt=0, le=5)  # a revoked key stops within this


class Jwt(Section):
    """Tokens of an identity provider (OIDC) as another way in."""

    issuer: str = Field(min_length=1)
    audience: str = Field(min_length=1)
    jwks: str = Field(min_length=1)  # URL of the key set, or a file
    algorithms: tuple[Literal["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"], ...] = ("RS256", "ES256")
    tenant_claim: str = "tenant"  # its value is the name of a tenant of this file
    leeway: Seconds = 30.0  # clocks differ
    refresh: Seconds = 300.0  # the key set is read again; also when a token names an unknown key


class Chain(Section):
    """Several semcaches in a row, such as an edge before a GPU site: who asks travels signed."""

    secret: SecretStr = Field(min_length=16)  # the same at both ends
    accept: bool = False  # believe callers who sign with it; false: only sign, for backends with `chain: true`


class Usage(Section):
    """What was billed, replayed and avoided, by minute, hour and day."""

    path: str = "auto"  # SQLite; auto: beside the store, off where that is in memory; off
    prices: str | None = None  # a file like config/prices.yaml, asked before the list that comes with semcache
    flush: Seconds = Field(default=1.0, gt=0)  # so much is lost at most by a kill -9
    keep_minutes: Seconds = 172800.0  # two days; then hours
    keep_hours: Seconds = 7776000.0  # 90 days; then days
    usd_per_cpu_hour: float = Field(default=0.04, ge=0)  # of the embedder's threads: about what clouds ask for a core


class Audit(Section):
    path: str = "./var/audit.jsonl"
    region: str | None = None  # where that file is; null: server.region
    hits: bool = True  # semantic hits served, each with entry, similarity and decision
    prompts: bool = False  # with the question in it: personal data
    rotate: ByteSize = ByteSize(100 * 1024 * 1024)  # then a new file begins, which carries the chain on
    keep: Annotated[int, Field(ge=1)] | None = None  # files; null: all
