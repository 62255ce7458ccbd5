"""Tokens of an identity provider: which are believed, and how its keys come in and go."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm

from semcache.access.credentials import KeySetStale, looks_like_token
from semcache.access.key_set import AGAIN_S, KEEP_S, MAX_BYTES, KeySet, KeySetFault, read_keys
from semcache.access.tokens import MAX_CHARS, Tokens
from semcache.config import Jwt
from semcache.errors import ClientError, StartError
from tests.fakes import Clock
from tests.identity_provider import AUDIENCE, ISSUER, IdentityProvider, Signer

DEFAULT = ("RS256", "ES256")


class Door:
    """A verifier of tokens that asks a real provider; its pauses end when the test says so."""

    def __init__(self, provider: IdentityProvider, **settings: Any) -> None:
        self.provider = provider
        self.clock, self.monotonic = provider.clock, Clock(1000.0)
        self.pauses: list[float] = []
        self.go = asyncio.Semaphore(0)
        self.settings = Jwt.model_validate({"issuer": ISSUER, "audience": AUDIENCE, "jwks": provider.url} | settings)
        keys = KeySet(self.settings.jwks, self.settings.algorithms, self.settings.refresh, self.monotonic, self._pause)
        self.tokens = Tokens(self.settings, keys, self.clock)

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await self.go.acquire()

    async def verify(self, token: str) -> str:
        """The tenant, asked for as the server does."""
        try:
            return self.tokens.verify(token).tenant
        except KeySetStale:
            await self.tokens.keys.renew()
            return self.tokens.verify(token).tenant

    async def complaint(self, token: str, status: int = 401) -> str:
        with pytest.raises(ClientError) as caught:
            await self.verify(token)
        assert caught.value.status == status
        assert token not in caught.value.message
        return caught.value.message


@pytest.fixture
async def provider() -> AsyncIterator[IdentityProvider]:
    async with IdentityProvider(Clock()).running() as running:
        yield running


Opening = Callable[..., Awaitable[Door]]


@pytest.fixture
async def opened(provider: IdentityProvider) -> AsyncIterator[Opening]:
    doors: list[Door] = []

    async def open_door(**settings: Any) -> Door:
        door = Door(provider, **settings)
        doors.append(door)
        await door.tokens.start()
        return door

    yield open_door
    for door in doors:
        await door.tokens.stop()


def part(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


# Which are believed


@pytest.mark.parametrize("algorithm", ["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"])
async def test_a_token_of_every_listed_algorithm_names_its_tenant(
    provider: IdentityProvider, opened: Opening, algorithm: str
) -> None:
    provider.signer = Signer(algorithm, "one")
    provider.shown = {"keys": [Signer("ES256", "other").jwk(), provider.signer.jwk()]}
    door = await opened(algorithms=[algorithm])
    assert await door.verify(provider.token()) == "shop"


async def test_a_claim_of_another_name_and_one_of_several_audiences_will_do(
    provider: IdentityProvider, opened: Opening
) -> None:
    door = await opened(tenant_claim="https://id.example/customer")
    claims = {"https://id.example/customer": "bank", "aud": ["other", AUDIENCE]}
    assert await door.verify(provider.token(**claims)) == "bank"


@pytest.mark.parametrize(
    "changed, complaint",
    [
        ({"aud": "somebody-else"}, "another audience"),
        ({"aud": None}, "lacks one of"),
        ({"iss": "https://id.example.evil"}, "another issuer"),
        ({"iss": None}, "lacks one of"),
        ({"exp": None}, "lacks one of"),
        ({"exp": "tomorrow"}, "numbers"),
        ({"exp": True}, "numbers"),
        ({"exp": 1e999}, "numbers"),
        ({"exp": 10**400}, "numbers"),
        ({"nbf": "x"}, "numbers"),
        ({"exp": 1_800_000_000 - 31}, "has expired"),
        ({"nbf": 1_800_000_000 + 31}, "not valid yet"),
    ],
)
async def test_a_token_with_a_wrong_claim_is_refused(
    provider: IdentityProvider, opened: Opening, changed: dict[str, Any], complaint: str
) -> None:
    door = await opened()
    assert complaint in await door.complaint(provider.token(**changed))


@pytest.mark.parametrize("tenant", [None, "", 7, ["shop"], {"name": "shop"}, True])
async def test_a_token_without_a_tenant_opens_nothing(
    provider: IdentityProvider, opened: Opening, tenant: object
) -> None:
    door = await opened()
    assert "names no tenant" in await door.complaint(provider.token(tenant=tenant), status=403)


async def test_clocks_may_differ_by_the_leeway(provider: IdentityProvider, opened: Opening) -> None:
    door = await opened(leeway="30s")
    now = provider.clock()
    assert await door.verify(provider.token(exp=now - 29, nbf=now - 60)) == "shop"
    assert await door.verify(provider.token(nbf=now + 29)) == "shop"


async def test_a_token_that_was_believed_is_so_until_it_ends(provider: IdentityProvider, opened: Opening) -> None:
    door = await opened()
    token = provider.token()
    assert await door.verify(token) == "shop"
    provider.clock.advance(629)
    assert await door.verify(token) == "shop"
    assert door.tokens.stats()["tokens"] == 1
    provider.clock.advance(1)
    assert "has expired" in await door.complaint(token)


# Forgeries


def unsigned(claims: dict[str, Any], algorithm: str) -> str:
    return f"{part({'alg': algorithm, 'typ': 'JWT', 'kid': 'one'})}.{part(claims)}."


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", "HS256", "ES256K", "RS1"])
async def test_a_token_without_a_signature_is_refused(
    provider: IdentityProvider, opened: Opening, algorithm: str
) -> None:
    door = await opened()
    await door.complaint(unsigned(provider.claims(), algorithm))


@pytest.mark.parametrize("algorithm", [["ES256"], {"a": 1}, None, 7])
async def test_an_algorithm_that_is_no_name_is_refused(
    provider: IdentityProvider, opened: Opening, algorithm: object
) -> None:
    door = await opened()
    await door.complaint(f"{part({'alg': algorithm, 'kid': 'one'})}.{part(provider.claims())}.{part(b'x' * 64)}")


async def test_the_public_key_is_no_secret_to_sign_with(provider: IdentityProvider, opened: Opening) -> None:
    """The classic: HS256 with the bytes of the public key, in every form an attacker may have it."""
    provider.signer = Signer("RS256", "one")
    provider.shown = {"keys": [provider.signer.jwk()]}
    door = await opened()
    forms = [
        provider.signer.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        provider.signer.public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        json.dumps(provider.signer.jwk()).encode(),
    ]
    for secret in forms:
        signed = f"{part({'alg': 'HS256', 'typ': 'JWT', 'kid': 'one'})}.{part(provider.claims())}"
        signature = hmac.digest(secret, signed.encode(), hashlib.sha256)
        assert "another way" in await door.complaint(f"{signed}.{part(signature)}")


async def test_a_secret_in_the_key_set_signs_nothing(provider: IdentityProvider, opened: Opening) -> None:
    secret = b"a secret of thirty-two bytes....."
    shared = {"kty": "oct", "kid": "shared", "k": part(secret), "alg": "HS256"}
    provider.shown = {"keys": [shared, {**shared, "alg": "ES256"}, provider.signer.jwk()]}
    door = await opened()
    assert door.tokens.stats()["public_keys"] == 1
    await door.complaint(jwt.encode(provider.claims(), secret, "HS256", {"kid": "shared"}))


async def test_a_key_is_used_for_the_algorithm_of_its_kind_alone(provider: IdentityProvider, opened: Opening) -> None:
    other = Signer("ES384", "other")
    rs = Signer("RS256", "rs")
    provider.shown = {"keys": [provider.signer.jwk(), other.jwk(), rs.jwk(alg="RS256")]}
    door = await opened(algorithms=["RS256", "RS512", "ES256", "ES384"])
    assert await door.verify(other.sign(provider.claims())) == "shop"
    assert await door.verify(rs.sign(provider.claims())) == "shop"
    await door.complaint(other.sign(provider.claims(), kid="one"))
    await door.complaint(other.sign(provider.claims(), kid="rs"))
    rs.algorithm = "RS512"  # which the provider says this key is not for
    await door.complaint(rs.sign(provider.claims()))


@pytest.mark.parametrize(
    "header",
    [
        {"kid": "../../../../dev/null"},
        {"kid": "' OR 1=1 --"},
        {"kid": "http://127.0.0.1:1/key"},
        {"kid": "x" * 5000},
        {"kid": "one", "typ": "logout+jwt"},
        {"kid": "one", "typ": "dpop+jwt"},
        {"kid": "one", "crit": ["exp"]},
        {"kid": "one", "crit": []},
    ],
)
async def test_a_header_that_asks_for_tricks_is_refused(
    provider: IdentityProvider, opened: Opening, header: dict[str, Any]
) -> None:
    door = await opened()
    await door.complaint(provider.signer.sign(provider.claims(), **header))


async def test_keys_and_addresses_in_a_token_are_not_looked_at(provider: IdentityProvider, opened: Opening) -> None:
    door = await opened()
    thief = Signer("ES256", "thief")
    header = {"jwk": thief.jwk(), "jku": f"{provider.url}?thief", "x5u": provider.url}
    asked = provider.asked
    door.monotonic.advance(AGAIN_S - 1)
    await door.complaint(thief.sign(provider.claims(), **header))
    await door.complaint(thief.sign(provider.claims(), **header, kid="one"))
    assert provider.asked == asked


async def test_a_changed_token_is_refused(provider: IdentityProvider, opened: Opening) -> None:
    door = await opened()
    head, _, signature = provider.token().split(".")
    forged = f"{head}.{part(provider.claims(tenant='bank'))}.{signature}"
    assert "signature" in await door.complaint(forged)
    assert await door.verify(provider.token()) == "shop"


async def test_a_huge_token_is_refused_before_it_is_read(provider: IdentityProvider, opened: Opening) -> None:
    door = await opened()
    assert "too long" in await door.complaint(provider.token(groups="x" * MAX_CHARS))
    nested = part(b"[" * 5000)
    await door.complaint(f"{nested}.{nested[:100]}.x")


@given(st.text(max_size=60))
def test_whatever_looks_like_a_token_is_a_401(text: str) -> None:
    settings = Jwt(issuer=ISSUER, audience=AUDIENCE, jwks="/nowhere")
    tokens = Tokens(settings, KeySet("/nowhere", DEFAULT, 300, Clock()), Clock())
    for sent in (text, f"eyJ{text}", f"eyJhbGciOiJFUzI1NiJ9.{text}.{text}"):
        with pytest.raises(ClientError) as caught:
            tokens.verify(sent)
        assert caught.value.status == 401


def test_a_token_is_told_from_a_key_by_its_form() -> None:
    assert looks_like_token("eyJhbGciOiJFUzI1NiJ9.e30.x")
    assert not any(map(looks_like_token, ("sk-sc-abc", "eyJ", "eyJ.a", "eyJ.a.b.c.d", "a.b.c")))


async def test_who_asks_is_never_logged(
    provider: IdentityProvider, opened: Opening, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    door = await opened()
    token = provider.token(sub="ann@example.org")
    await door.verify(token)
    await door.complaint(provider.token(sub="ann@example.org", aud="other"))
    assert "ann@" not in caplog.text and token not in caplog.text
    assert "ann@" not in repr(vars(door.tokens)) and token not in repr(vars(door.tokens))


# The provider's keys


async def test_a_new_key_of_the_provider_is_learned_at_its_first_token(
    provider: IdentityProvider, opened: Opening
) -> None:
    door = await opened()
    provider.signer = Signer("ES256", "two")
    provider.shown["keys"].append(provider.signer.jwk())
    door.monotonic.advance(AGAIN_S)
    assert await door.verify(provider.token()) == "shop"
    assert provider.asked == 2


async def test_a_stranger_who_makes_up_key_ids_has_the_provider_asked_every_ten_seconds_at_most(
    provider: IdentityProvider, opened: Opening
) -> None:
    door = await opened()
    stranger = Signer("ES256", None)
    for number in range(40):
        door.monotonic.advance(1)
        await door.complaint(stranger.sign(provider.claims(), kid=f"made-up-{number}"))
    assert provider.asked == 1 + 4


async def test_those_who_wait_for_a_key_wait_for_one_fetch(provider: IdentityProvider, opened: Opening) -> None:
    door = await opened()
    provider.signer = Signer("ES256", "two")
    provider.shown["keys"].append(provider.signer.jwk())
    door.monotonic.advance(AGAIN_S)
    provider.gate = asyncio.Event()
    asking = [asyncio.create_task(door.verify(provider.token(jti=str(n)))) for n in range(20)]
    async with asyncio.timeout(10):
        while provider.asked < 2:
            await asyncio.sleep(0)
    asking[0].cancel()  # it hangs up, and the others get theirs
    late = asyncio.create_task(door.verify(provider.token(jti="late")))
    await asyncio.sleep(0)
    provider.gate.set()
    assert await asyncio.gather(*asking[1:], late) == ["shop"] * 20
    assert provider.asked == 2


async def test_a_key_that_was_withdrawn_opens_nothing_after_the_next_look(
    provider: IdentityProvider, opened: Opening
) -> None:
    door = await opened()
    token = provider.token()
    assert await door.verify(token) == "shop"
    forgotten = asyncio.Event()
    door.tokens.on_change = forgotten.set
    provider.shown = {"keys": [Signer("ES256", "two").jwk()]}
    door.monotonic.advance(door.settings.refresh)
    door.go.release()
    await asyncio.wait_for(forgotten.wait(), 10)
    assert "does not show" in await door.complaint(token)
    assert set(door.pauses) == {300.0}


async def test_an_outage_of_the_provider_is_none_of_ours_for_a_day(provider: IdentityProvider, opened: Opening) -> None:
    door = await opened()
    provider.status = 503
    door.monotonic.advance(KEEP_S - 1)
    await door.tokens.keys.renew()
    assert await door.verify(provider.token()) == "shop"
    assert door.tokens.stats()["key_set_faults"] == 1
    door.monotonic.advance(AGAIN_S)
    await door.complaint(provider.token(jti="another"))
    provider.status = 200
    door.monotonic.advance(AGAIN_S)
    assert await door.verify(provider.token(jti="third")) == "shop"


async def test_a_provider_that_is_down_at_the_start_is_asked_again_soon(
    provider: IdentityProvider, opened: Opening
) -> None:
    provider.status = 503
    door = await opened()
    await door.complaint(provider.token())
    provider.status = 200
    door.monotonic.advance(AGAIN_S)
    assert await door.verify(provider.token()) == "shop"
    assert door.pauses[0] == AGAIN_S


@pytest.mark.parametrize(
    "shown, complaint",
    [
        (b"<html>", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        ([], "no list"),
        ({"keys": {}}, "no list"),
        ({"keys": [{}] * 101}, "more than 100"),
        ({"keys": ["x", {}, {"kty": "EC", "crv": "P-256", "x": "!", "y": "!"}, {"kty": ["EC"]}]}, "no key for"),
        (b" " * (MAX_BYTES + 1), "more than"),
    ],
)
async def test_a_key_set_that_is_none_changes_nothing(
    provider: IdentityProvider, opened: Opening, caplog: pytest.LogCaptureFixture, shown: Any, complaint: str
) -> None:
    door = await opened()
    provider.shown = shown
    door.monotonic.advance(AGAIN_S)
    await door.tokens.keys.renew()
    assert complaint in caplog.text
    assert await door.verify(provider.token()) == "shop"


def test_keys_that_are_not_for_us_are_left_out() -> None:
    ours = Signer("ES256", "ours")
    short = rsa.generate_private_key(65537, 1024).public_key()
    numbers = short.public_numbers()
    short_jwk = {
        "kty": "RSA",
        "kid": "short",
        "n": part(numbers.n.to_bytes(128, "big")),
        "e": part(numbers.e.to_bytes(3, "big")),
    }
    shown = [
        ours.jwk(),
        ours.jwk(kid="encrypts", use="enc"),
        ours.jwk(kid="signs", key_ops=["sign"]),
        {**json.loads(ECAlgorithm.to_jwk(ours.private)), "kid": "private"},
        ours.jwk(kid=7),
        ours.jwk(kid="other", alg="ES384"),
        ours.jwk(kid="lists", key_ops="verify"),
        short_jwk,
    ]
    found = read_keys(json.dumps({"keys": shown}).encode(), DEFAULT)
    assert [key.kid for key in found] == ["ours"]
    with pytest.raises(KeySetFault):
        read_keys(json.dumps({"keys": shown[1:]}).encode(), DEFAULT)


async def test_a_token_without_a_key_id_is_judged_by_the_only_key_there_is(
    provider: IdentityProvider, opened: Opening
) -> None:
    provider.signer = Signer("ES256", None)
    provider.shown = {"keys": [provider.signer.jwk(), Signer("RS256", "other").jwk()]}
    door = await opened()
    assert await door.verify(provider.token()) == "shop"
    provider.shown = {"keys": [provider.signer.jwk(), Signer("ES256", "two").jwk()]}
    door.monotonic.advance(AGAIN_S)
    await door.tokens.keys.renew()
    await door.complaint(provider.token())


async def test_a_redirect_is_not_followed(provider: IdentityProvider, opened: Opening) -> None:
    door = await opened(jwks=provider.url.replace("/jwks", "/moved"))
    await door.complaint(provider.token())
    assert provider.asked == 0


async def test_a_key_set_may_be_a_file(provider: IdentityProvider, opened: Opening, tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"
    with pytest.raises(StartError, match=r"jwt.jwks: .*jwks.json cannot be read"):
        await opened(jwks=str(file))
    file.write_text('{"keys": []}')
    with pytest.raises(StartError, match="jwt.jwks: the key set has no key for RS256, ES256"):
        await opened(jwks=str(file))
    file.write_text(json.dumps(provider.shown))
    door = await opened(jwks=str(file))
    assert await door.verify(provider.token()) == "shop"


async def test_a_password_in_the_address_of_the_keys_is_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    keys = KeySet("http://me:Hush@127.0.0.1:9/jwks?token=Hush", ("RS256",), 60.0, Clock())
    await keys.start()
    await keys.stop()
    assert "127.0.0.1:9/jwks" in caplog.text and "Hush" not in caplog.text
