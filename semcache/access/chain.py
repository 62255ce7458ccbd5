"""Who asks, told from one semcache to the next: a signed line for each request, in the field Semcache-Identity.

The rule: the edge has decided who it is, and the next one believes it, as it could believe a key: but only with the
shared secret, only for a minute, and only once. A line that somebody read in a log or on a wire is worth nothing after
the request it came with. What the next one itself knows of the tenant still holds: regions become fewer, never more.

It is a JWT (RFC 7519) under HS256, with a type of its own (RFC 8725 section 3.11), so that no other token is taken for
one. It does not bind the body, which is sent while it is read: between sites there has to be TLS, as for any API key.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from hashlib import blake2b
from typing import Annotated, Literal

import jwt
import msgspec
from multidict import MultiMapping

from semcache.errors import ClientError
from semcache.settings.tenants import Chain
from semcache.types import Tenant

FIELD = "Semcache-Identity"  # as backends/headers.py sends it
ALGORITHM = "HS256"
TYPE = "semcache-identity+jwt"
AUDIENCE = "semcache"

LIFE_S = 60.0  # of a line: it is made for one request and sent at once
LEEWAY_S = 30.0  # clocks differ
MAX_CHARS = 8192  # aiohttp takes no longer field


class Claims(msgspec.Struct, frozen=True):
    """What a line says. All are there, whoever made it."""

    typ: Literal["semcache"]
    iss: str  # the node that made it
    aud: str
    iat: float
    exp: float
    jti: str  # a number used once
    sub: Annotated[str, msgspec.Meta(min_length=1)]  # the tenant
    key: str  # public id of the virtual key that spoke for him, or ""
    namespace: str
    regions: tuple[str, ...]


class Signer:
    def __init__(self, settings: Chain, node: str) -> None:
        """`node`: our name in Via."""
        self._key = _key(settings)
        self._node = node
        self.signed = 0

    def sign(self, tenant: Tenant, namespace: str, now_unix: float) -> str:
        """A line for one request, to one backend: a second attempt needs a second one."""
        self.signed += 1
        claims = {
            "typ": "semcache",
            "iss": self._node,
            "aud": AUDIENCE,
            "iat": now_unix,
            "exp": now_unix + LIFE_S,
            "jti": secrets.token_urlsafe(12),
            "sub": tenant.id,
            "key": tenant.key,
            "namespace": namespace,
            "regions": sorted(tenant.regions),
        }
        return jwt.encode(claims, self._key, ALGORITHM, headers={"typ": TYPE})


class Verifier:
    """Of one process. Another worker of the same node would take a line a second time, for its minute."""

    def __init__(self, settings: Chain, known: Callable[[str], Tenant | None] = lambda name: None) -> None:
        """`known`: the tenant of this name in our own configuration, if there is one."""
        self._key = _key(settings)
        self._known = known
        self._used: dict[str, float] = {}  # jti -> until when it would count, oldest first
        self.believed = 0
        self.refused = 0

    def identify(self, headers: MultiMapping[str], now_unix: float) -> Tenant | None:
        """As credentials.Reader has it. A line goes before a key beside it, which is the edge's, if anybody's."""
        lines = headers.getall(FIELD, ())
        if not lines:
            return None
        if len(lines) > 1:
            self.refused += 1
            raise _unauthorized("Semcache-Identity is there twice")
        return self.read(lines[0], now_unix)

    def read(self, value: str, now_unix: float) -> Tenant:
        """Raises ClientError: 401 for a line that is not believed, 403 for what the tenant may not do here."""
        try:
            claims = self._decode(value)
            self._judge_times(claims, now_unix)
            tenant = self._meet(claims)
            self._use_up(claims, now_unix)
        except ClientError:
            self.refused += 1
            raise
        self.believed += 1
        return tenant

    def stats(self) -> dict[str, float]:
        return {"believed": self.believed, "refused": self.refused, "remembered": len(self._used)}

    def _decode(self, value: str) -> Claims:
        if len(value) > MAX_CHARS:
            raise _unauthorized("the identity is too long")
        try:
            whole = jwt.decode_complete(
                value,
                self._key,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                # Times are judged here, by a clock that comes in.
                options={"verify_exp": False, "verify_nbf": False, "verify_iat": False},
            )
            if whole["header"].get("typ") != TYPE:
                raise _unauthorized("the token is of another kind")
            return msgspec.convert(whole["payload"], Claims)
        except jwt.InvalidSignatureError as exc:
            raise _unauthorized("the signature is wrong: do both ends have the same chain.secret?") from exc
        except (jwt.PyJWTError, msgspec.ValidationError, ValueError, TypeError, RecursionError) as exc:
            raise _unauthorized("the identity is malformed") from exc

    def _judge_times(self, claims: Claims, now_unix: float) -> None:
        # Written so that no comparison with NaN lets one pass.
        if not (claims.iat - LEEWAY_S <= now_unix < claims.exp + LEEWAY_S and claims.exp - claims.iat <= LIFE_S):
            raise _unauthorized("the identity has expired, or the clocks of the two ends differ by more than 30 s")

    def _meet(self, claims: Claims) -> Tenant:
        """The tenant as both ends allow him."""
        regions, namespaces = frozenset(claims.regions), (claims.namespace,) if claims.namespace else ()
        own = self._known(claims.sub)
        if own is None:
            return Tenant(claims.sub, regions, namespaces, claims.key)
        if claims.namespace and claims.namespace not in own.namespaces:
            raise ClientError(
                f'the tenant may not use the namespace "{claims.namespace[:80]}" behind this edge',
                status=403,
                code="namespace_not_allowed",
            )
        shared = regions & own.regions if regions and own.regions else regions | own.regions
        if not shared and regions:
            raise ClientError(
                f"the tenant is bound to {_names(regions)} there and to {_names(own.regions)} here: no region is left",
                status=403,
                code="region_not_allowed",
            )
        return Tenant(own.id, shared, namespaces or own.namespaces, claims.key, own.models, own.routes)

    def _use_up(self, claims: Claims, now_unix: float) -> None:
        while self._used and next(iter(self._used.values())) <= now_unix:
            del self._used[next(iter(self._used))]
        if claims.jti in self._used:
            raise _unauthorized("the identity has been used already")
        # For as long as any line counts, so that the oldest are first, whatever clocks say.
        self._used[claims.jti] = now_unix + LIFE_S + 2 * LEEWAY_S


def _key(settings: Chain) -> bytes:
    """Of 32 bytes, as HS256 wants it (RFC 7518 section 3.2), and of no use where the secret signs something else."""
    secret = settings.secret.get_secret_value().encode()
    return blake2b(secret, digest_size=32, person=b"semcache-chain").digest()


def _names(regions: frozenset[str]) -> str:
    return ", ".join(sorted(regions))


def _unauthorized(message: str) -> ClientError:
    # No WWW-Authenticate: the caller's key is not in doubt, and no other key would help.
    return ClientError(message, status=401, code="invalid_identity")
