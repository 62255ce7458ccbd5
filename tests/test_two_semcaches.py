"""One semcache in front of another, both real, with a model server behind the second."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import openai
import pytest

from semcache.access.chain import Signer
from semcache.config import Chain
from semcache.types import Tenant
from tests.fakes import Clock, ModelServer
from tests.harness import Proxy, running_proxy
from tests.test_embeddings import Embeds

SECRET = "a secret of both ends"
SHOP = "edge-key-of-shop"
EDGE_TENANTS = """
tenants:
  - {name: shop, keys: [edge-key-of-shop], namespaces: [faq]}
  - {name: club, keys: [edge-key-of-club]}
  - {name: bank, keys: [edge-key-of-bank], regions: [eu]}
"""


@dataclass
class Row:
    edge: Proxy
    inner: Proxy

    @property
    def model(self) -> ModelServer:
        return self.inner.backend

    async def post(self, proxy: Proxy, key: str, **fields: str) -> tuple[int, dict[str, str], dict[str, object]]:
        body = {"model": "small", "messages": [{"role": "user", "content": "Where is my parcel?"}]}
        headers = {"Authorization": f"Bearer {key}", **fields}
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{proxy.url}/chat/completions", json=body, headers=headers) as response,
        ):
            return response.status, dict(response.headers), json.loads(await response.read())


@asynccontextmanager
async def row(
    folder: Path, *, inner: str = "", accept: bool = True, backend: ModelServer | None = None
) -> AsyncIterator[Row]:
    (folder / "inner").mkdir()
    (folder / "edge").mkdir()
    chain = f'chain: {{secret: "{SECRET}", accept: {str(accept).lower()}}}\n'
    clock = Clock()
    async with running_proxy(folder / "inner", chain + inner, backend=backend, clock=clock) as second:
        pools = f'pools: {{site: {{backends: [{{url: "{second.url}", region: eu, chain: true}}]}}}}\n'
        settings = f'chain: {{secret: "{SECRET}"}}\nserver: {{region: eu}}\n' + pools + EDGE_TENANTS
        async with running_proxy(folder / "edge", settings, clock=clock) as first:
            yield Row(first, second)


async def test_a_miss_goes_through_both_and_each_cache_says_what_it_did(tmp_path: Path) -> None:
    async with row(tmp_path) as chained:
        first = await chained.edge.ask("What is a monad?", key=SHOP)
        again = await chained.edge.ask("What is a monad?", key=SHOP)
        assert chained.model.requests == 1
        # RFC 9211: in the order in which the answer passed them, ours last.
        assert [part.split("; ")[1] for part in first.headers["cache-status"].split(", ")] == ["fwd=miss", "fwd=miss"]
        assert again.cache_status.startswith("semcache; hit; ") and "," not in again.cache_status
        assert chained.edge.app.node != chained.inner.app.node


@pytest.mark.parametrize("stream", [False, True])
async def test_a_hit_of_the_second_shows_behind_a_miss_of_the_first(tmp_path: Path, stream: bool) -> None:
    async with row(tmp_path) as chained:
        await chained.edge.ask("What is a monad?", key=SHOP)
        reply = await chained.edge.ask(
            "What is a monad?", key=SHOP, stream=stream, headers={"Cache-Control": "no-cache"}
        )
        inner, ours = reply.headers["cache-status"].split(", ")
        assert inner.startswith("semcache; hit; ")
        assert inner.endswith("; detail=exact")
        assert ours.startswith("semcache; fwd=request; fwd-status=200")
        assert reply.text.strip() == "answer 1 to: What is a monad?"
        assert chained.model.requests == 1


async def test_a_stream_through_both_shows_both(tmp_path: Path) -> None:
    async with row(tmp_path) as chained:
        reply = await chained.edge.ask("What is a monad?", key=SHOP, stream=True)
        assert reply.headers["cache-status"].count("fwd=miss") == 2


async def test_an_answer_gets_no_second_life_at_the_edge(tmp_path: Path) -> None:
    async with row(tmp_path) as chained:
        await chained.edge.ask("What is a monad?", key=SHOP)
        chained.edge.clock.advance(20 * 3600)
        await chained.edge.ask("What is a monad?", headers={"Cache-Control": "no-cache"}, key=SHOP)  # the second has it
        hit = await chained.edge.ask("What is a monad?", key=SHOP)
        assert hit.verdict == "hit"
        assert hit.headers["age"] == str(20 * 3600)
        assert f"ttl={4 * 3600}" in hit.cache_status


async def test_an_answer_to_another_question_is_not_kept_as_this_ones_own(tmp_path: Path) -> None:
    async with row(tmp_path, inner="match: {threshold: 0.8}\n") as chained:
        await chained.edge.ask("Please tell me what a monad is in functional programming", key=SHOP)
        again = "Please tell me what a monad is in functional programming now"
        for _ in range(2):
            reply = await chained.edge.ask(again, headers={"Semcache-Control": "tier=exact"}, key=SHOP)
            inner, _, ours = reply.cache_status.partition(", ")
            assert "detail=semantic/" in inner
            assert "fwd=miss" in ours
            assert "stored" not in ours
        assert chained.model.requests == 1


async def test_a_batch_that_is_put_together_shows_both(tmp_path: Path) -> None:
    async with row(tmp_path, backend=Embeds()) as chained:
        client = chained.edge.client.with_options(api_key=SHOP)
        await client.embeddings.create(model="small", input=["one"])
        raw = await client.embeddings.with_raw_response.create(model="small", input=["one", "two"])
        assert raw.headers["cache-status"].count("semcache; fwd=miss") == 2


async def test_tenants_of_the_edge_do_not_meet_behind_it(tmp_path: Path) -> None:
    async with row(tmp_path) as chained:
        for key in (SHOP, "edge-key-of-club"):
            await chained.edge.ask("What is a monad?", key=key)
        assert chained.model.requests == 2
        keys = [headers.get("Authorization") for headers in chained.model.headers]
        assert keys == [None, None]  # a key of the edge leaves it for nowhere
        assert not any("Semcache-Identity" in headers for headers in chained.model.headers)


async def test_regions_of_both_hold(tmp_path: Path) -> None:
    inner = "tenants: [{name: bank, keys: [own], regions: [us]}]\n"
    async with row(tmp_path, inner=inner) as chained:
        status, _, body = await chained.post(chained.edge, "edge-key-of-bank")
        assert status == 403
        assert body["error"]["code"] == "region_not_allowed"  # type: ignore[index]
        assert chained.model.requests == 0


async def test_a_caller_cannot_say_who_he_is(tmp_path: Path) -> None:
    forged = Signer(Chain(secret="not the secret of the row"), "semcache-00000000")  # type: ignore[arg-type]
    async with row(tmp_path) as chained:
        line = forged.sign(Tenant("bank"), "", chained.edge.clock())
        status, _, _ = await chained.post(chained.edge, SHOP, **{"Semcache-Identity": line})
        assert status == 200  # the edge does not look at it, and sends its own
        status, headers, body = await chained.post(chained.inner, "any", **{"Semcache-Identity": line})
        assert status == 401
        assert body["error"]["code"] == "invalid_identity"  # type: ignore[index]
        assert "cache-status" not in {name.lower() for name in headers}


async def test_a_line_that_was_seen_on_the_wire_is_worth_nothing(tmp_path: Path) -> None:
    async with row(tmp_path) as chained:
        signer = Signer(Chain(secret=SECRET), "semcache-00000000")  # type: ignore[arg-type]
        line = {"Semcache-Identity": signer.sign(Tenant("shop"), "", chained.inner.clock())}
        assert (await chained.post(chained.inner, "any", **line))[0] == 200
        assert (await chained.post(chained.inner, "any", **line))[0] == 401


async def test_where_lines_are_not_accepted_a_caller_is_who_his_key_says(tmp_path: Path) -> None:
    inner = "tenants: [{name: site, keys: [a-key-of-the-site]}]\n"
    async with row(tmp_path, inner=inner, accept=False) as chained:
        with pytest.raises(openai.AuthenticationError):
            await chained.edge.ask("What is a monad?", key=SHOP)
        assert chained.model.requests == 0


async def test_a_row_that_leads_back_to_itself_is_a_loop(tmp_path: Path) -> None:
    async with row(tmp_path) as chained:
        via = {"Via": f"1.1 {chained.edge.app.node}"}
        status, _, body = await chained.post(chained.edge, SHOP, **via)
        assert (status, body["error"]["code"]) == (508, "loop")  # type: ignore[index]
        five = {"Via": ", ".join(f"1.1 semcache-0000000{number}" for number in range(5))}
        assert (await chained.post(chained.edge, SHOP, **five))[0] == 508
        assert (await chained.post(chained.edge, SHOP, Via="1.1 semcache-00000009"))[0] == 200
