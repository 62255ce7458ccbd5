"""The public keys of an identity provider (JWKS, RFC 7517): where they come from, and which of them are fit for what.

Only public keys of the kinds that the configuration lists are taken in; what else a set holds, such as a secret that
both sides would share, is left out when it is read, so that no token can ever ask for it. A set that cannot be renewed
stays for KEEP_S: an outage of the provider is none of ours, but a key it withdrew must not live on for ever.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import aiohttp
import jwt

from semcache.errors import SemcacheError, StartError

log = logging.getLogger(__name__)

MAX_BYTES = 512 * 1024  # the sets of large providers have some 10 KB
MAX_KEYS = 100
FETCH_S = 5.0  # callers with a new key wait for it
AGAIN_S = 10.0  # between two attempts: a stranger who makes up key ids causes no more than this
KEEP_S = 86400.0
MIN_RSA_BITS = 2048  # RFC 7518 section 3.3

# What a key must be for an algorithm (RFC 7518 section 3.1, RFC 8037): its kind, and where there are several its curve.
_KINDS: Mapping[str, tuple[str, str | None]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256"), ("RSA", None)),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "EdDSA": ("OKP", "Ed25519"),
}


class KeySetFault(SemcacheError):
    """The set could not be had just now, or is none."""


class PublicKey(NamedTuple):
    kid: str | None
    algorithms: frozenset[str]  # that it may verify
    key: Any  # as `cryptography` has it


class KeySet:
    def __init__(
        self,
        source: str,
        algorithms: Sequence[str],
        refresh_s: float,
        now: Callable[[], float],
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`source`: a URL, or a file. `now`: monotonic seconds. `pause`: waits so many seconds before the next try."""
        self._source = source
        self._algorithms = algorithms
        self._refresh_s = refresh_s
        self._now = now
        self._pause = pause
        self._keys: tuple[PublicKey, ...] = ()
        self._raw = b""
        self._tried_at = float("-inf")
        self._renewed_at = float("-inf")
        self._renewing: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        self.on_change: Callable[[], None] = lambda: None
        self.faults = 0

    @property
    def _is_remote(self) -> bool:
        return self._source.startswith(("http://", "https://"))

    async def start(self) -> None:
        """Raises StartError for a file that is no key set. A provider that is down is asked again, and told."""
        if self._source.startswith("http://"):
            log.warning(
                "jwt.jwks: %s comes without TLS: whoever is on the way can put keys of his own in", _shown(self._source)
            )
        self._tried_at = self._now()
        try:
            await self._read()
        except KeySetFault as exc:
            if not self._is_remote:
                raise StartError(f"jwt.jwks: {exc.message}") from exc
            self.faults += 1
            self._tried_at = float("-inf")  # the first token has it asked again at once
            log.error("jwt.jwks: %s; until it comes no token can be checked", exc.message)
        self._following = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        for task in (self._following, self._renewing):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    def find(self, kid: str | None, algorithm: str) -> PublicKey | None:
        """The key that a token names. One that names none has it where only one is fit."""
        if self._now() - self._renewed_at >= KEEP_S:
            return None
        fit = [key for key in self._keys if algorithm in key.algorithms and (kid is None or key.kid == kid)]
        return fit[0] if fit and (kid is not None or len(fit) == 1) else None

    @property
    def may_be_renewed(self) -> bool:
        """Whether waiting for `renew` may bring a key that is not known: asking is due, or under way."""
        return self._renewing is not None or self._now() - self._tried_at >= AGAIN_S

    async def renew(self) -> None:
        """Have the set read again, once for all who wait. Faults are counted and logged."""
        if self._renewing is None:
            if not self.may_be_renewed:
                return
            self._tried_at = self._now()
            self._renewing = asyncio.create_task(self._renew())
            self._renewing.add_done_callback(self._forget_renewal)
        await asyncio.shield(self._renewing)  # one who hangs up does not end the wait of the others

    def _forget_renewal(self, _: asyncio.Task[None]) -> None:
        self._renewing = None

    async def _renew(self) -> None:
        try:
            await self._read()
        except KeySetFault as exc:
            self.faults += 1
            log.error("jwt.jwks: %s; the keys known stay for %g hours at most", exc.message, KEEP_S / 3600)

    async def _follow(self) -> None:
        """Renew, every `refresh_s`, and sooner after a fault."""
        while True:
            is_fresh = bool(self._keys) and self._renewed_at >= self._tried_at
            await self._pause(self._refresh_s if is_fresh else min(AGAIN_S, self._refresh_s))
            try:
                await self.renew()
            except Exception as exc:  # the top of a background loop
                self.faults += 1
                log.error("jwt.jwks: renewing failed: %s", type(exc).__name__)

    async def _read(self) -> None:
        """Raises KeySetFault."""
        if self._is_remote:
            raw = await _fetch(self._source)
        else:
            raw = await asyncio.to_thread(_read_file, self._source)
        if raw != self._raw:
            keys = read_keys(raw, self._algorithms)
            self._keys, self._raw = keys, raw
            self.on_change()
        self._renewed_at = self._now()

    def stats(self) -> dict[str, float]:
        return {"public_keys": len(self._keys), "key_set_faults": self.faults}


async def _fetch(url: str) -> bytes:
    """Raises KeySetFault. A redirect is not followed: the URL that the operator wrote is the one that is trusted."""
    timeout = aiohttp.ClientTimeout(total=FETCH_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=True) as session,
            session.get(url, allow_redirects=False, headers={"Accept": "application/json"}) as response,
        ):
            if response.status != 200:
                raise KeySetFault(f"{_shown(url)} answered {response.status}")
            raw = bytearray()
            async for piece in response.content.iter_any():
                raw += piece
                if len(raw) > MAX_BYTES:
                    raise KeySetFault(f"{_shown(url)} has more than {MAX_BYTES} bytes")
            return bytes(raw)
    except TimeoutError as exc:
        raise KeySetFault(f"{_shown(url)} did not answer within {FETCH_S:g} s") from exc
    except (aiohttp.ClientError, OSError, ValueError) as exc:
        raise KeySetFault(f"{_shown(url)} cannot be had: {type(exc).__name__}") from exc


def _shown(url: str) -> str:
    """A URL for the log: without a password, or a token in its query."""
    return re.sub(r"//[^/]*@", "//", url.partition("?")[0])


def _read_file(path: str) -> bytes:
    """Raises KeySetFault."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as exc:
        raise KeySetFault(f"{path} cannot be read: {exc.strerror}") from exc
    if len(raw) > MAX_BYTES:
        raise KeySetFault(f"{path} has more than {MAX_BYTES} bytes")
    return raw


def read_keys(raw: bytes, algorithms: Sequence[str]) -> tuple[PublicKey, ...]:
    """The keys of a set that can verify any of these algorithms. Raises KeySetFault for what is no set."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise KeySetFault("the key set is not JSON") from exc
    listed = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(listed, list):
        raise KeySetFault('the key set has no list of "keys"')
    if len(listed) > MAX_KEYS:
        raise KeySetFault(f"the key set has more than {MAX_KEYS} keys")
    keys = [key for one in listed if isinstance(one, dict) and (key := _read_key(one, algorithms)) is not None]
    if not keys:
        raise KeySetFault(f"the key set has no key for {', '.join(algorithms)}")
    return tuple(keys)


def _read_key(jwk: Mapping[str, Any], algorithms: Sequence[str]) -> PublicKey | None:
    """None for a key that is not for us: of another kind, for another use, private, too short or broken."""
    kind = (jwk.get("kty"), jwk.get("crv") if jwk.get("kty") != "RSA" else None)
    fit = frozenset(name for name in algorithms if _KINDS[name] == kind and jwk.get("alg", name) == name)
    operations = jwk.get("key_ops", ["verify"])
    is_to_verify = jwk.get("use", "sig") == "sig" and isinstance(operations, list) and "verify" in operations
    kid = jwk.get("kid")
    if not fit or not is_to_verify or "d" in jwk or not (kid is None or isinstance(kid, str)):
        return None
    try:
        key = jwt.PyJWK(dict(jwk), algorithm=min(fit)).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    if kind[0] == "RSA" and key.key_size < MIN_RSA_BITS:
        return None
    return PublicKey(kid, fit, key)
