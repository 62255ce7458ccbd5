"""Tokens of an identity provider (JWT, RFC 7519) as a way in: which are believed, and whose request they make it.

The rules are those of RFC 8725. The algorithm is one that the configuration lists, and the key is of the kind that the
algorithm needs, whatever the token says; nothing in a token is used as a path or an address; issuer, audience and an
end of its validity must be there and right. A token that was verified is remembered by its digest until it ends, or
until the provider's keys change, so its signature is computed once.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any

import jwt

from semcache.access.credentials import KeySetStale, Verified, unauthorized
from semcache.access.key_set import KeySet
from semcache.config import Jwt
from semcache.errors import ClientError

MAX_CHARS = 8192  # aiohttp takes no longer field
MAX_REMEMBERED = 8192
TYPES = frozenset({None, "jwt", "at+jwt", "application/at+jwt"})  # others, such as of a logout, are no way in


class Tokens:
    def __init__(self, settings: Jwt, keys: KeySet, clock: Callable[[], float]) -> None:
        """`clock`: unix seconds. The key set is theirs from now on: `keys.on_change` is set."""
        self._settings = settings
        self._clock = clock
        self._verified: dict[bytes, Verified] = {}
        self.keys = keys
        self.on_change: Callable[[], None] = lambda: None
        keys.on_change = self._forget

    async def start(self) -> None:
        """Raises StartError."""
        await self.keys.start()

    async def stop(self) -> None:
        await self.keys.stop()

    def verify(self, token: str) -> Verified:
        """Raises ClientError 401 for a token that is not believed, and KeySetStale where its key may yet be learned."""
        digest = blake2b(token.encode("utf-8", "surrogateescape"), digest_size=32).digest()
        known = self._verified.get(digest)
        if known is None or self._clock() >= known.until:
            known = self._verify(token)
            if len(self._verified) >= MAX_REMEMBERED:
                del self._verified[next(iter(self._verified))]
            self._verified[digest] = known
        return known

    def _verify(self, token: str) -> Verified:
        if len(token) > MAX_CHARS:
            raise unauthorized("the token is too long")
        header = _read_header(token)
        algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ")
        if algorithm not in self._settings.algorithms:
            raise unauthorized(f"the token is signed in another way than {', '.join(self._settings.algorithms)}")
        if not (kid is None or isinstance(kid, str)) or (kind.lower() if isinstance(kind, str) else kind) not in TYPES:
            raise unauthorized("the token is of another kind than an access token, or an id token")
        key = self.keys.find(kid, algorithm)
        if key is None:
            message = "the token is signed with a key that its issuer does not show"
            if self.keys.may_be_renewed:
                raise KeySetStale(message)
            raise unauthorized(message)
        try:
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                # Times are judged below, by a clock that comes in.
                options={
                    "require": ["exp", "iss", "aud"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except jwt.InvalidTokenError as exc:
            raise unauthorized(_why(exc)) from exc
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as exc:
            raise unauthorized("the token is malformed") from exc
        until = self._judge_times(claims)
        tenant = claims.get(self._settings.tenant_claim)
        if not isinstance(tenant, str) or not tenant:
            raise ClientError(
                f'the token names no tenant: it has no text in its claim "{self._settings.tenant_claim}"',
                status=403,
                code="tenant_missing",
            )
        return Verified(tenant, until)

    def _judge_times(self, claims: Mapping[str, Any]) -> float:
        """Until when a token counts. Raises ClientError."""
        now, leeway_s = self._clock(), self._settings.leeway
        expires, begins = _number(claims["exp"]), _number(claims.get("nbf", 0))
        if expires is None or begins is None:
            raise unauthorized("the token is malformed: exp and nbf are numbers")
        if now >= expires + leeway_s:
            raise unauthorized("the token has expired")
        if now < begins - leeway_s:
            raise unauthorized("the token is not valid yet")
        return expires + leeway_s

    def _forget(self) -> None:
        """The provider's keys are others: what the old ones signed may be believed no more."""
        self._verified.clear()
        self.on_change()

    def stats(self) -> dict[str, float]:
        return {"tokens": len(self._verified), **self.keys.stats()}


def _read_header(token: str) -> Mapping[str, Any]:
    """Raises ClientError. PyJWT's own reading looks at every character of the token; one whose key we do not have is
    turned away sooner."""
    first = token.partition(".")[0]
    try:
        header = json.loads(base64.b64decode(first + "=" * (-len(first) % 4), altchars=b"-_", validate=True))
    except (ValueError, RecursionError) as exc:
        raise unauthorized("the token is malformed") from exc
    if not isinstance(header, dict):
        raise unauthorized("the token is malformed")
    return header


def _number(value: object) -> float | None:
    """A NumericDate (RFC 7519 section 2)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _why(exc: jwt.InvalidTokenError) -> str:
    for kind, why in _WHY.items():
        if isinstance(exc, kind):
            return why
    return "the token is malformed"


_WHY: Mapping[type[Exception], str] = {
    jwt.InvalidSignatureError: "the token's signature is wrong",
    jwt.InvalidAudienceError: "the token is for another audience",
    jwt.InvalidIssuerError: "the token is of another issuer",
    jwt.MissingRequiredClaimError: "the token lacks one of exp, iss and aud",
}
