"""An identity provider: real keys made for the test, tokens signed with them, and its key set on a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from tests.fakes import Clock

ISSUER, AUDIENCE = "https://id.example", "semcache"

_MAKERS = {
    "RS": (lambda: rsa.generate_private_key(65537, 2048), RSAAlgorithm),
    "PS": (lambda: rsa.generate_private_key(65537, 2048), RSAAlgorithm),
    "ES256": (lambda: ec.generate_private_key(ec.SECP256R1()), ECAlgorithm),
    "ES384": (lambda: ec.generate_private_key(ec.SECP384R1()), ECAlgorithm),
    "Ed": (ed25519.Ed25519PrivateKey.generate, OKPAlgorithm),
}


class Signer:
    """One key pair."""

    def __init__(self, algorithm: str, kid: str | None) -> None:
        make, self._form = next(maker for start, maker in _MAKERS.items() if algorithm.startswith(start))
        self.algorithm, self.kid = algorithm, kid
        self.private: Any = make()
        self.public: Any = self.private.public_key()

    def jwk(self, **more: Any) -> dict[str, Any]:
        shown = json.loads(self._form.to_jwk(self.public))  # type: ignore[attr-defined]
        return {**shown, **({"kid": self.kid} if self.kid else {}), "use": "sig", **more}

    def sign(self, claims: dict[str, Any], **header: Any) -> str:
        header = {**({"kid": self.kid} if self.kid else {}), **header}
        return jwt.encode(claims, self.private, algorithm=self.algorithm, headers=header)


class IdentityProvider:
    """Shows `shown`, a key set, and counts how often it was asked."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.signer = Signer("ES256", "one")
        self.shown: Any = {"keys": [self.signer.jwk()]}
        self.status = 200
        self.asked = 0
        self.gate: asyncio.Event | None = None  # set to hold answers until the event is set
        self.url = ""

    def claims(self, **changed: Any) -> dict[str, Any]:
        """Of a token that is right, with some claims changed; None leaves one out."""
        now = int(self.clock())
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "tenant": "shop", "iat": now, "exp": now + 600}
        return {name: value for name, value in {**claims, **changed}.items() if value is not None}

    def token(self, **changed: Any) -> str:
        return self.signer.sign(self.claims(**changed))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[IdentityProvider]:
        app = web.Application()
        app.router.add_get("/jwks", self._show)
        app.router.add_get("/moved", self._redirect)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}/jwks"
        try:
            yield self
        finally:
            if self.gate is not None:
                self.gate.set()
            await runner.cleanup()

    async def _show(self, _: web.Request) -> web.Response:
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        body = self.shown if isinstance(self.shown, bytes) else json.dumps(self.shown).encode()
        return web.Response(body=body, status=self.status, content_type="application/json")

    async def _redirect(self, _: web.Request) -> web.Response:
        raise web.HTTPFound("/jwks")
