"""Virtual keys and tokens through the whole proxy: who comes in, what travels on, and how soon a revocation counts."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import aiohttp
import openai
import pytest

from semcache.access.key_file import KeyFile
from semcache.access.locksmith import Locksmith, NewKey
from semcache.config import TenantSettings
from tests.fakes import Clock, ModelServer
from tests.harness import Proxy, running_proxy
from tests.identity_provider import AUDIENCE, ISSUER, IdentityProvider

PEPPER = "a pepper of this test that is long enough"


def settings(folder: Path, more: str = "") -> str:
    keys = f"keys: {{path: {folder}/keys.db, pepper: {PEPPER}, refresh: 100ms}}\n"
    return f"{keys}{more}\ntenants: [{{name: shop, namespaces: [faq]}}, {{name: bank}}]"


def locksmith(folder: Path) -> Locksmith:
    """As `semcache keys` has one, beside the running proxy."""
    file = KeyFile(f"{folder}/keys.db", PEPPER.encode())
    return Locksmith(file, lambda: [TenantSettings(name="shop"), TenantSettings(name="bank")], Clock())


async def status(session: aiohttp.ClientSession, proxy: Proxy, key: str) -> int:
    body = {"model": "small", "messages": [{"role": "user", "content": "Where is the parcel?"}]}
    headers = {"Authorization": f"Bearer {key}"}
    async with session.post(f"{proxy.url}/chat/completions", json=body, headers=headers) as response:
        await response.read()
        return response.status


async def until_it_is(wanted: int, session: aiohttp.ClientSession, proxy: Proxy, key: str) -> float:
    began = time.monotonic()
    async with asyncio.timeout(5):
        while await status(session, proxy, key) != wanted:
            await asyncio.sleep(0.01)
    return time.monotonic() - began


async def test_a_revoked_key_stops_on_a_connection_that_is_kept_open(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, settings(tmp_path)) as proxy:
        made = locksmith(tmp_path).create(NewKey(tenant="shop"))
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
            await until_it_is(200, session, proxy, made.text)
            locksmith(tmp_path).revoke(made.key.id)
            assert await until_it_is(401, session, proxy, made.text) < 5
        assert proxy.app.listener.stats()["connections"] <= 2


async def test_no_key_of_ours_travels_upstream(tmp_path: Path) -> None:
    backend = ModelServer()
    async with running_proxy(tmp_path, settings(tmp_path), backend=backend) as proxy:
        made = locksmith(tmp_path).create(NewKey(tenant="shop"))
        async with aiohttp.ClientSession() as session:
            await until_it_is(200, session, proxy, made.text)
        assert backend.requests == 1
        assert made.text not in repr(backend.headers)


async def test_tenants_with_keys_share_nothing(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, settings(tmp_path)) as proxy:
        smith = locksmith(tmp_path)
        shop, web, bank = (smith.create(NewKey(tenant=name)).text for name in ("shop", "shop", "bank"))
        async with aiohttp.ClientSession() as session:
            for key in (shop, web, bank):
                await until_it_is(200, session, proxy, key)
        assert (await proxy.ask("What is a monad?", key=shop)).verdict == "miss"
        await proxy.landed()
        assert (await proxy.ask("What is a monad?", key=web)).verdict == "hit"
        assert (await proxy.ask("What is a monad?", key=bank)).verdict == "miss"


async def test_a_token_whose_key_is_not_known_yet_waits_for_it(tmp_path: Path) -> None:
    clock = Clock()
    async with IdentityProvider(clock).running() as provider:
        provider.status = 503  # while the proxy starts
        jwt = f"jwt: {{issuer: '{ISSUER}', audience: {AUDIENCE}, jwks: '{provider.url}'}}"
        async with running_proxy(tmp_path, settings(tmp_path, jwt), clock=clock) as proxy:
            provider.status = 200
            assert (await proxy.ask("What is a monad?", key=provider.token())).verdict == "miss"
            assert provider.asked == 2
            with pytest.raises(openai.AuthenticationError):
                await proxy.ask("What is a monad?", key=provider.token(aud="other"))
            with pytest.raises(openai.PermissionDeniedError):
                await proxy.ask("What is a monad?", key=provider.token(tenant="nobody"))


@pytest.mark.parametrize("kind", ["text/plain", "application/octet-stream", ""])
async def test_a_model_in_the_query_is_no_word_on_that_in_the_body(tmp_path: Path, kind: str) -> None:
    tenants = "tenants: [{name: shop, keys: [sk-shop], models: [small]}]"
    async with running_proxy(tmp_path, tenants) as proxy, aiohttp.ClientSession() as session:
        headers = {"Authorization": "Bearer sk-shop", "Content-Type": kind}
        url = f"{proxy.url}/images/generations?model=small"
        async with session.post(url, data=b'{"model": "large", "prompt": "a cat"}', headers=headers) as refused:
            assert (refused.status, proxy.backend.requests) == (403, 0)
            assert (await refused.json())["error"]["code"] == "model_not_allowed"


async def test_a_session_offer_takes_its_model_from_the_query(tmp_path: Path) -> None:
    tenants = "tenants: [{name: shop, keys: [sk-shop], models: [small]}]"
    async with running_proxy(tmp_path, tenants) as proxy, aiohttp.ClientSession() as session:
        headers = {"Authorization": "Bearer sk-shop", "Content-Type": "application/sdp"}
        for model, status in (("small", 200), ("large", 403)):
            url = f"{proxy.url}/realtime/calls?model={model}"
            async with session.post(url, data=b"v=0\r\n", headers=headers) as reply:
                assert reply.status == status
