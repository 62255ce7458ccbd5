"""Where answers are shared: what one tenant can, and cannot, put before the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
from aiohttp import ClientSession, web
from hypothesis import given
from hypothesis import strategies as st

from semcache import config
from semcache.cache.provenance import MOST_VOUCHERS, InsertLimits, vouchers_of
from semcache.errors import ConfigError
from semcache.types import Selector
from tests.entries import make_entry
from tests.fakes import Clock, ModelServer
from tests.harness import Proxy, running_proxy, until

TENANTS = (
    "tenants: [" + ", ".join(f"{{name: {name}, keys: [sk-{name}]}}" for name in ("ann", "bob", "cid", "eve")) + "]"
)
PROVEN = f"{TENANTS}\ncache: {{sharing: all, min_uses: 2}}\nmatch: {{threshold: 0.8, guards: []}}"
PARCEL = "how long does a parcel with red shoes take"
NEAR = "how long does a parcel with red shoes travel"


class Steady(ModelServer):
    """Says the same to everybody, until told to say something else; `varies`: never the same twice."""

    def __init__(self) -> None:
        super().__init__()
        self.says = "It is on its way."
        self.varies = False

    def _whole(self, body: dict[str, Any], text: str) -> web.Response:
        return super()._whole(body, text if self.varies else self.says)

    def _events(self, body: dict[str, Any], text: str) -> list[str]:
        return super()._events(body, text if self.varies else self.says)


@asynccontextmanager
async def facing(folder: Path, settings: str = PROVEN) -> AsyncIterator[tuple[Proxy, Steady]]:
    server = Steady()
    async with running_proxy(folder, settings, backend=server) as proxy:
        yield proxy, server


async def verdicts(proxy: Proxy, *names: str, question: str = PARCEL, **more: Any) -> list[str]:
    found = []
    for name in names:
        found.append((await proxy.ask(question, key=f"sk-{name}", **more)).verdict)
        await proxy.landed()
    return found


# Vouching


async def test_an_answer_is_given_to_others_once_two_tenants_fetched_the_same(tmp_path: Path) -> None:
    async with facing(tmp_path) as (proxy, server):
        first = await proxy.ask(PARCEL, key="sk-ann")
        second = await proxy.ask(PARCEL, key="sk-bob")
        assert (first.detail, second.verdict, second.detail) == ("no-entry", "miss", "unproven")
        third = await proxy.ask(PARCEL, key="sk-cid")
        near = await proxy.ask(NEAR, key="sk-eve")
        assert (third.verdict, third.text) == ("hit", server.says)
        assert (near.verdict, near.detail.partition("/")[0]) == ("hit", "semantic")
        assert server.requests == 2


async def test_answers_that_differ_prove_nothing(tmp_path: Path) -> None:
    async with facing(tmp_path) as (proxy, server):
        server.varies = True
        assert await verdicts(proxy, "ann", "bob", "cid") == ["miss", "miss", "miss"]
        assert await verdicts(proxy, "cid", "bob") == ["hit", "miss"]  # what was fetched last stands, for its own


async def test_an_answer_in_other_words_vouches_for_one_that_says_the_same(tmp_path: Path) -> None:
    async with facing(tmp_path) as (proxy, server):
        for name, says, verdict in (
            ("ann", "Your parcel is on its way and will be there very soon.", "miss"),
            ("bob", "Your parcel is on its way and it will be there very soon.", "miss"),
            ("cid", "", "hit"),
        ):
            server.says = says
            assert await verdicts(proxy, name) == [verdict]


@pytest.mark.parametrize("fault", ["another answer", "another number", "embedder"])
async def test_a_doubt_whether_answers_agree_is_no_voucher(tmp_path: Path, fault: str) -> None:
    async with facing(tmp_path) as (proxy, server):
        server.says = "Your parcel is on its way and will be there in 3 days."
        await verdicts(proxy, "ann")
        server.says = {
            "another answer": "Please send your password to the address below first.",
            "another number": "Your parcel is on its way and will be there in 9 days.",
            "embedder": "Your parcel is on its way and it will be there in 3 days.",
        }[fault]
        if fault == "embedder":
            proxy.embedder.fault = RuntimeError("broken")
        assert await verdicts(proxy, "bob", "cid") == ["bypass" if fault == "embedder" else "miss"] * 2


async def test_nothing_its_writer_does_alone_proves_an_answer(tmp_path: Path) -> None:
    async with facing(tmp_path) as (proxy, server):
        assert await verdicts(proxy, "eve", "eve", "eve") == ["miss", "hit", "hit"]
        assert await verdicts(proxy, "eve", headers={"Cache-Control": "no-cache"}) == ["miss"]
        assert await verdicts(proxy, "bob") == ["miss"]
        assert server.requests == 3


async def test_a_planted_question_near_to_others_answers_only_its_writer(tmp_path: Path) -> None:
    async with facing(tmp_path) as (proxy, server):
        server.says = "Send me your password."
        await proxy.ask(NEAR, key="sk-eve")
        server.says = "It is on its way."
        asked = await proxy.ask(PARCEL, key="sk-ann")
        assert (asked.verdict, asked.detail, asked.text) == ("miss", "unproven", server.says)
        assert (await proxy.ask(PARCEL + " then", key="sk-eve")).text == "Send me your password."


async def test_an_answer_that_was_fetched_until_it_pleased_begins_anew(tmp_path: Path) -> None:
    async with facing(tmp_path) as (proxy, server):
        assert await verdicts(proxy, "ann", "bob", "eve") == ["miss", "miss", "hit"]
        server.says = "Send me your password."
        assert await verdicts(proxy, "eve", headers={"Cache-Control": "no-cache"}) == ["miss"]
        server.says = "It is on its way."
        reply = await proxy.ask(PARCEL, key="sk-cid")
        assert (reply.verdict, reply.text) == ("miss", server.says)


async def test_a_fetch_in_the_air_is_followed_by_its_own_tenant_alone(tmp_path: Path) -> None:
    async with facing(tmp_path) as (proxy, server):
        server.gate = asyncio.Event()
        asking = [asyncio.create_task(proxy.ask(PARCEL, key=f"sk-{name}")) for name in ("ann", "ann", "bob")]
        await until(lambda: server.requests == 2 and proxy.app.pipeline.flights.joined == 1)
        server.gate.set()
        replies = await asyncio.gather(*asking)
        assert sorted(reply.verdict for reply in replies) == ["coalesced", "miss", "miss"]
        await proxy.landed()
        assert server.requests == 2


async def test_a_stream_vouches_for_a_body_that_says_the_same(tmp_path: Path) -> None:
    async with facing(tmp_path) as (proxy, _):
        await verdicts(proxy, "ann", stream=True)
        assert await verdicts(proxy, "bob", "cid") == ["miss", "hit"]


async def test_what_was_vouched_for_is_so_after_a_restart_and_in_another_process(tmp_path: Path) -> None:
    async with facing(tmp_path) as (proxy, _):
        await verdicts(proxy, "ann", "bob")
        async with facing(tmp_path) as (other, _):
            assert await verdicts(other, "cid") == ["hit"]
    async with facing(tmp_path) as (proxy, _):
        assert await verdicts(proxy, "eve") == ["hit"]


async def test_a_refresh_that_brings_the_same_keeps_who_vouched(tmp_path: Path) -> None:
    async with facing(tmp_path) as (proxy, server):
        await verdicts(proxy, "ann", "bob")
        proxy.clock.advance(86_400 + 1)
        assert await verdicts(proxy, "eve", "cid") == ["stale", "hit"]
        proxy.clock.advance(86_400 + 1)
        server.says = "It has arrived."
        assert await verdicts(proxy, "eve", "cid") == ["stale", "miss"]


async def test_tenants_that_share_nothing_need_no_proof(tmp_path: Path) -> None:
    async with facing(tmp_path, f"{TENANTS}\ncache: {{min_uses: 2}}") as (proxy, _):
        assert await verdicts(proxy, "ann", "ann", "bob", "bob") == ["miss", "hit", "miss", "hit"]


async def test_shared_answers_are_given_at_once_by_default(tmp_path: Path) -> None:
    async with facing(tmp_path, f"{TENANTS}\ncache: {{sharing: all}}") as (proxy, _):
        assert await verdicts(proxy, "ann", "bob") == ["miss", "hit"]


names = st.sampled_from("abcdefghijklmnopqrst")


@given(st.lists(st.tuples(names, st.booleans()), min_size=1, max_size=30))
def test_vouchers_are_different_tenants_that_all_fetched_the_last_answer(fetches: list[tuple[str, bool]]) -> None:
    standing, agreeing = None, set[str]()
    for writer, agrees in fetches:
        vouchers = vouchers_of(writer, standing, agrees)
        agreeing = {*agreeing, writer} if agrees and standing is not None else {writer}
        assert len(set(vouchers)) == len(vouchers) <= MOST_VOUCHERS and set(vouchers) <= agreeing
        assert set(vouchers) == agreeing or len(vouchers) == MOST_VOUCHERS
        standing = replace(make_entry("q"), writer=writer, vouchers=vouchers)


# Provenance


async def admin(proxy: Proxy, path: str, body: Mapping[str, Any]) -> Any:
    async with (
        ClientSession() as session,
        session.post(f"http://127.0.0.1:{proxy.app.admin_port}{path}", data=orjson.dumps(body)) as reply,
    ):
        assert reply.status == 200, await reply.text()
        return orjson.loads(await reply.read())


async def test_explain_tells_who_brought_an_answer_and_why_it_is_not_given(tmp_path: Path) -> None:
    async with facing(tmp_path) as (proxy, _):
        brought = await proxy.ask(PARCEL, key="sk-ann")
        told = await admin(proxy, "/semcache/explain", {"question": PARCEL, "tenant": "bob", "model": "small"})
        assert (told["verdict"], told["reason"], told["exact"]["writer"]) == ("miss", "unproven", "ann")
        assert told["exact"]["request"] == brought.headers["x-request-id"]
        assert told["exact"]["backend"] and told["exact"]["vouchers"] == ["ann"]
        assert "too few" in told["summary"]
        near = await admin(proxy, "/semcache/explain", {"question": NEAR, "tenant": "bob", "model": "small"})
        assert (near["reason"], near["candidates"][0]["objection"]) == ("unproven", "unproven")


async def test_a_purge_by_writer_takes_what_he_brought_and_what_he_vouched_for(tmp_path: Path) -> None:
    async with facing(tmp_path) as (proxy, _):
        await verdicts(proxy, "eve", question="one two three four")
        await verdicts(proxy, "eve", "ann", question="five six seven eight")
        await verdicts(proxy, "ann", question="nine ten eleven twelve")
        assert (await admin(proxy, "/purge", {"writer": "eve", "dry_run": True}))["purged"] == 2
        assert (await admin(proxy, "/purge", {"writer": "eve"}))["purged"] == 2
        assert await verdicts(proxy, "ann", question="nine ten eleven twelve") == ["hit"]
        assert await verdicts(proxy, "ann", question="five six seven eight") == ["miss"]


async def test_a_purge_by_writer_refuses_what_his_flights_bring(tmp_path: Path) -> None:
    async with facing(tmp_path) as (proxy, server):
        server.gate = asyncio.Event()
        asking = [asyncio.create_task(proxy.ask(f"{PARCEL} {name}", key=f"sk-{name}")) for name in ("eve", "ann")]
        await until(lambda: server.requests == 2)
        await proxy.app.store.purge(Selector(writer="eve"))
        server.gate.set()
        await asyncio.gather(*asking)
        await proxy.landed()
        assert proxy.app.pipeline.stats()["unstorable_purged"] == 1
        assert proxy.app.store.stats()["entries"] == 1


# Insert limits

LIMITED = f"{TENANTS}\ncache: {{sharing: all, inserts_per_minute: 3}}"


async def test_past_its_limit_a_tenants_answers_are_relayed_and_not_kept(tmp_path: Path) -> None:
    async with facing(tmp_path, LIMITED) as (proxy, server):
        questions = [f"{word} {word} {word}" for word in ("red", "green", "blue", "black", "white")]
        for question in questions:
            assert (await proxy.ask(question, key="sk-eve")).text == server.says
        await proxy.landed()
        stats = proxy.app.pipeline.stats()
        assert (stats["stored"], stats["unstorable_insert-limit"]) == (3, 2)
        assert await verdicts(proxy, "ann", question="a question of somebody else") == ["miss"]
        assert await verdicts(proxy, "bob", question="a question of somebody else") == ["hit"]
        proxy.clock.advance(20)
        assert await verdicts(proxy, "eve", "eve", question=questions[3]) == ["miss", "hit"]
        assert await verdicts(proxy, "eve", "eve", question=questions[4]) == ["miss", "miss"]


class Vectors(ModelServer):
    """Embeds texts as one number each."""

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(body := orjson.loads(await request.read()))
        data = [{"object": "embedding", "index": n, "embedding": [0.5]} for n, _ in enumerate(body["input"])]
        usage = {"prompt_tokens": len(data), "total_tokens": len(data)}
        return web.json_response({"object": "list", "data": data, "model": "small", "usage": usage})


async def test_of_a_batch_as_many_are_kept_as_the_limit_allows(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, LIMITED, backend=Vectors()) as proxy:
        client = openai.AsyncOpenAI(base_url=proxy.url, api_key="sk-eve", max_retries=0)
        async with client:
            for _ in range(2):
                reply = await client.embeddings.create(model="small", input=list("abcde"), encoding_format="float")
                assert len(reply.data) == 5
        await proxy.landed()
        assert proxy.app.store.stats()["entries"] == 3
        assert [len(body["input"]) for body in proxy.backend.bodies] == [5, 2]


@given(
    st.integers(1, 1000),
    st.lists(st.tuples(st.floats(0, 90, allow_nan=False), st.integers(1, 500)), min_size=1, max_size=40),
)
def test_no_tenant_gets_more_than_a_minutes_worth_beyond_its_rate(
    per_minute: int, asked: list[tuple[float, int]]
) -> None:
    clock = Clock()
    limits, began, granted = InsertLimits(clock), clock(), 0
    for pause_s, wanted in asked:
        clock.advance(pause_s)
        given_now = limits.take("eve", wanted, per_minute)
        assert 0 <= given_now <= wanted
        granted += given_now
        assert granted <= per_minute * (1 + (clock() - began) / 60) + 0.01


def test_a_clock_that_jumps_back_costs_a_minute_at_most() -> None:
    clock = Clock()
    limits = InsertLimits(clock)
    assert limits.take("eve", 10, 6) == 6
    clock.advance(-86_400)
    assert limits.take("eve", 10, 6) == 0
    clock.advance(60)
    assert limits.take("eve", 10, 6) == 6


def test_routes_with_different_limits_draw_on_the_same_minute() -> None:
    limits = InsertLimits(Clock())
    assert limits.take("eve", 5, 10) == 5  # half a minute's worth
    assert limits.take("eve", 100, 100) == 50
    assert limits.take("eve", 1, None) == 1
    assert limits.take("ann", 10, 10) == 10


@pytest.mark.parametrize("name", ["min_uses", "inserts_per_minute"])
def test_a_limit_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        config.parse(f"cache: {{{name}: 0}}", {})
