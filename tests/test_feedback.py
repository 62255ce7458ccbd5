"""Feedback on hits, through the front door: who may speak of which hit, and what is served after that."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.errors import ClientError, StoreFault
from semcache.feedback import FeedbackDesk, read_feedback
from semcache.request_log import render_line
from semcache.types import Effect, Outcome, Said, Selector, Tenant
from tests.fakes import Clock
from tests.harness import Proxy, Reply, running_proxy, until
from tests.test_embeddings import Embeds

SETTINGS = "match: {guards: []}"  # so that similarity alone decides
STORED = "how long does a parcel to the north take on average in the autumn please tell me"
NEARER = f"{STORED} thanks"  # 0.98
NEAR = f"{STORED} kindly colleague"  # these three: 0.95
NEAR_TOO = f"{STORED} simply sister"
NEAR_AS_WELL = f"{STORED} gladly brother"

Sent = tuple[int, Any]  # status, body


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[Proxy]:
    async with running_proxy(tmp_path, SETTINGS) as running:
        yield running


async def send(proxy: Proxy, body: object, *, key: str | None = "sk-test", method: str = "POST", port: int = 0) -> Sent:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    url = f"http://127.0.0.1:{port or proxy.app.port}/semcache/feedback"
    async with aiohttp.ClientSession() as http, http.request(method, url, data=raw, headers=headers) as response:
        return response.status, json.loads(await response.read())


def about(reply: Reply, verdict: str = "wrong") -> dict[str, str]:
    return {"entry": reply.headers["semcache-entry"], "request": reply.headers["x-request-id"], "verdict": verdict}


async def call_wrong(proxy: Proxy, reply: Reply, effect: str, key: str = "sk-test") -> None:
    status, answer = await send(proxy, about(reply), key=key)
    assert (status, answer) == (200, {**about(reply), "effect": effect})


async def semantic_hit(proxy: Proxy, question: str, **more: Any) -> Reply:
    reply = await proxy.ask(question, **more)
    assert reply.verdict == "hit" and reply.detail.startswith("semantic"), reply.cache_status
    return reply


def gap(proxy: Proxy, question: str) -> float:
    return float(proxy.embedder.vector(STORED) @ proxy.embedder.vector(question))


# What follows from "wrong"


async def test_a_hit_called_wrong_is_fetched_next_time_and_its_own_answer_served_after_that(proxy: Proxy) -> None:
    first = await proxy.ask(STORED)
    await call_wrong(proxy, await semantic_hit(proxy, NEAR), "quarantined")

    own = await proxy.ask(NEAR)
    assert own.cache_status == "semcache; fwd=miss; fwd-status=200; stored; detail=feedback"
    assert own.text == f"answer 2 to: {NEAR}"
    again = await proxy.ask(NEAR)
    assert (again.verdict, again.detail, again.text) == ("hit", "exact", own.text)
    assert (await proxy.ask(STORED)).text == first.text
    assert proxy.backend.requests == 2


async def test_a_client_may_send_its_word_through_its_base_url(proxy: Proxy) -> None:
    await proxy.ask(STORED)
    reply = await semantic_hit(proxy, NEARER)
    async with openai.AsyncOpenAI(base_url=proxy.url, api_key="sk-test", max_retries=0) as client:
        answer: Any = await client.post("/semcache/feedback", body=about(reply), cast_to=object)
    assert answer == {**about(reply), "effect": "quarantined"}
    assert (await proxy.ask(NEARER)).detail == "feedback"


async def test_others_still_get_the_entry_after_one_wrong(proxy: Proxy) -> None:
    await proxy.ask(STORED)
    await call_wrong(proxy, await semantic_hit(proxy, NEAR), "quarantined")
    for question in (NEAR_TOO, NEARER):
        assert (await semantic_hit(proxy, question)).text.startswith("answer 1")
    assert proxy.backend.requests == 1


async def test_a_stream_called_wrong_is_wrong_as_json_too(proxy: Proxy) -> None:
    await proxy.ask(STORED)
    await call_wrong(proxy, await semantic_hit(proxy, NEAR, stream=True), "quarantined")
    assert (await proxy.ask(NEAR)).detail == "feedback"


async def test_two_wrongs_leave_the_entry_only_what_is_nearer_than_both(proxy: Proxy) -> None:
    assert gap(proxy, NEARER) > max(gap(proxy, NEAR), gap(proxy, NEAR_TOO)) + 0.01
    assert gap(proxy, NEAR_AS_WELL) < max(gap(proxy, NEAR), gap(proxy, NEAR_TOO)) + 0.01
    await proxy.ask(STORED)
    one, two = await semantic_hit(proxy, NEAR), await semantic_hit(proxy, NEAR_TOO)
    await call_wrong(proxy, one, "quarantined")
    await call_wrong(proxy, one, "quarantined")  # the same voice twice is one voice
    assert (await semantic_hit(proxy, NEAR_AS_WELL)).text.startswith("answer 1")
    await call_wrong(proxy, two, "tightened")

    refused = await proxy.ask(NEAR_AS_WELL)
    assert (refused.verdict, refused.detail) == ("miss", "feedback")
    assert (await semantic_hit(proxy, NEARER)).text.startswith("answer 1")
    assert (await proxy.ask(STORED)).detail == "exact"


async def test_an_exact_hit_called_wrong_is_gone_for_everybody_who_shares_it(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, f"{SETTINGS}\ncache: {{sharing: all}}") as proxy:
        await proxy.ask(STORED, key="sk-ann")
        hit = await proxy.ask(STORED, key="sk-bob")
        assert hit.detail == "exact"
        await call_wrong(proxy, hit, "removed", key="sk-bob")
        assert (await proxy.ask(STORED, key="sk-ann")).cache_status.endswith("stored; detail=no-entry")
        assert (await proxy.ask(STORED, key="sk-bob")).text == f"answer 2 to: {STORED}"


async def test_a_fresh_answer_outlives_a_late_word_on_the_one_before(proxy: Proxy) -> None:
    await proxy.ask(STORED)
    hit = await proxy.ask(STORED)
    await proxy.ask(STORED, headers={"Cache-Control": "no-cache"})
    await call_wrong(proxy, hit, "gone")
    assert (await proxy.ask(STORED)).text == f"answer 2 to: {STORED}"


async def test_a_refresh_of_the_entry_does_not_lift_a_quarantine(proxy: Proxy) -> None:
    await proxy.ask(STORED)
    await call_wrong(proxy, await semantic_hit(proxy, NEAR), "quarantined")
    await proxy.ask(STORED, headers={"Cache-Control": "no-cache"})
    assert (await proxy.ask(NEAR)).detail == "feedback"


async def test_right_is_recorded_and_lifts_nothing(proxy: Proxy) -> None:
    await proxy.ask(STORED)
    hit = await semantic_hit(proxy, NEAR)
    await call_wrong(proxy, hit, "quarantined")
    assert (await send(proxy, about(hit, "right")))[1]["effect"] == "recorded"
    assert (await proxy.ask(NEAR)).detail == "feedback"


async def test_an_input_of_embeddings_called_wrong_is_fetched_again(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, backend=Embeds()) as proxy:

        async def embed() -> Reply:
            raw = await proxy.client.embeddings.with_raw_response.create(model="small", input=["a parcel"])
            return Reply("", dict(raw.headers))

        await embed()
        hit = await embed()
        assert hit.verdict == "hit"
        await call_wrong(proxy, hit, "removed")
        assert (await embed()).verdict == "miss"
        assert proxy.backend.requests == 2


# How long it holds, and where


async def test_a_quarantine_and_a_boundary_survive_a_restart(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, SETTINGS) as proxy:
        await proxy.ask(STORED)
        one, two = await semantic_hit(proxy, NEAR), await semantic_hit(proxy, NEAR_TOO)
        await call_wrong(proxy, one, "quarantined")
        await call_wrong(proxy, two, "tightened")
    async with running_proxy(tmp_path, SETTINGS) as proxy:
        assert (await send(proxy, about(one)))[0] == 404, "hits of before a restart are not remembered"
        assert (await semantic_hit(proxy, NEARER)).text.startswith("answer 1")
        for question in (NEAR, NEAR_AS_WELL):
            with pytest.raises(openai.InternalServerError) as nothing:  # fetched, the one would answer the other
                await proxy.ask(question, headers={"Cache-Control": "only-if-cached"})
            assert nothing.value.response.headers["cache-status"] == "semcache; detail=feedback"


async def test_what_one_process_hears_holds_in_another_on_the_same_file(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, SETTINGS) as proxy, running_proxy(tmp_path, SETTINGS) as other:
        await proxy.ask(STORED)
        quarantine = other.app.store.quarantine
        await until(lambda: other.app.store.last_seq == proxy.app.store.last_seq)
        hit = await semantic_hit(other, NEAR)
        await call_wrong(proxy, await semantic_hit(proxy, NEAR), "quarantined")
        await until(lambda: quarantine.entries == 1)
        assert (await other.ask(NEAR)).detail == "feedback"

        await proxy.app.store.purge(Selector(text=STORED))
        await until(lambda: quarantine.entries == 0)
        await call_wrong(other, hit, "gone")


async def test_a_purge_takes_what_was_said_of_the_entry_with_it(proxy: Proxy) -> None:
    store = proxy.app.store
    await proxy.ask(STORED)
    await call_wrong(proxy, await semantic_hit(proxy, NEAR), "quarantined")
    assert await store.purge(Selector(text=STORED), erase=True) == 1
    assert (store.quarantine.entries, await store.recent_feedback(10)) == (0, [])
    await proxy.ask(STORED)
    await semantic_hit(proxy, NEAR)


async def test_a_purge_takes_words_on_entries_that_are_gone(proxy: Proxy) -> None:
    store = proxy.app.store
    await proxy.ask(STORED)
    await call_wrong(proxy, await proxy.ask(STORED), "removed")
    assert [row["tier"] for row in await store.recent_feedback(10)] == ["exact"]
    await store.purge(Selector(tenant="nobody"))
    assert await store.recent_feedback(10) == []


# Who may speak of what


async def test_a_request_nobody_made_is_not_found(proxy: Proxy) -> None:
    status, answer = await send(proxy, {"entry": "e", "request": "r", "verdict": "wrong"})
    assert status == 404
    assert answer["error"]["code"] == "unknown_request" and answer["error"]["param"] == "request"


async def test_a_miss_is_no_hit_to_speak_of(proxy: Proxy) -> None:
    miss = await proxy.ask(STORED)
    hit = await proxy.ask(STORED)
    claim = {**about(hit), "request": miss.headers["x-request-id"]}
    assert (await send(proxy, claim))[0] == 404


async def test_another_tenants_hit_is_as_unknown_as_none(tmp_path: Path) -> None:
    tenants = "tenants: [{name: shop, keys: [sk-shop]}, {name: rival, keys: [sk-rival]}]\ncache: {sharing: all}"
    async with running_proxy(tmp_path, f"{SETTINGS}\n{tenants}") as proxy:
        await proxy.ask(STORED, key="sk-shop")
        hit = await semantic_hit(proxy, NEAR, key="sk-shop")
        nobody = await send(proxy, {**about(hit), "request": "never was"}, key="sk-rival")
        assert nobody[0] == 404
        assert await send(proxy, about(hit), key="sk-rival") == nobody
        for key in (None, "sk-stranger"):
            assert (await send(proxy, about(hit), key=key))[0] == 401
        await semantic_hit(proxy, NEAR, key="sk-shop")
        await call_wrong(proxy, hit, "quarantined", key="sk-shop")


async def test_equal_request_ids_of_two_tenants_stay_apart(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, f"{SETTINGS}\ncache: {{sharing: all}}") as proxy:
        await proxy.ask(STORED, key="sk-ann")
        named = {"X-Request-Id": "mine"}
        await semantic_hit(proxy, NEAR, key="sk-ann", headers=named)
        hit = await semantic_hit(proxy, NEAR_TOO, key="sk-bob", headers=named)
        await call_wrong(proxy, hit, "quarantined", key="sk-bob")
        assert (await proxy.ask(NEAR_TOO, key="sk-ann")).detail == "feedback"
        await semantic_hit(proxy, NEAR, key="sk-ann")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"wrong", None),
        (b"[]", None),
        (b'{"entry": "e", "entry": "f", "request": "r", "verdict": "wrong"}', None),
        ({"entry": "e", "request": "r"}, "verdict"),
        ({"entry": "", "request": "r", "verdict": "wrong"}, "entry"),
        ({"entry": "e", "request": 7, "verdict": "wrong"}, "request"),
        ({"entry": "e", "request": "r", "verdict": "bad"}, "verdict"),
        ({"entry": "e", "request": "r", "verdict": "wrong", "note": "x"}, "note"),
    ],
)
async def test_what_is_no_feedback_is_refused_by_name(proxy: Proxy, body: object, param: str | None) -> None:
    status, answer = await send(proxy, body)
    assert (status, answer["error"]["param"]) == (400, param)


async def test_only_small_posts_are_taken(proxy: Proxy) -> None:
    assert (await send(proxy, b"x" * 5000))[0] == 413
    assert (await send(proxy, b"", method="GET"))[0] == 405


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: json.dumps({"entry": text}).encode()))
def test_no_body_is_more_than_refused(body: bytes) -> None:
    with pytest.raises(ClientError) as refusal:
        read_feedback(body)
    assert refusal.value.status == 400


# The desk


async def test_only_so_many_hits_are_remembered_and_the_oldest_are_forgotten() -> None:
    desk = FeedbackDesk(SimpleNamespace(), Clock(), remembered=3)
    for number in range(10):
        desk.remember(Tenant("t"), b"asked", Outcome(f"r{number}", 0.0, entry_id="e", entry_key=b"key"))
    assert desk.stats()["remembered"] == 3
    with pytest.raises(ClientError) as refusal:
        await desk.take(Tenant("t"), b'{"entry": "e", "request": "r6", "verdict": "wrong"}', Outcome("", 0.0))
    assert refusal.value.status == 404


async def test_a_word_that_cannot_be_kept_is_taken_when_it_is_sent_again() -> None:
    faults = [StoreFault("the disk is full")]

    class Store:
        async def take_feedback(self, feedback: object) -> Effect:
            if faults:
                raise faults.pop()
            return Effect.QUARANTINED

    desk = FeedbackDesk(Store(), Clock())
    desk.remember(Tenant("t"), b"asked", Outcome("r", 0.0, entry_id="e", entry_key=b"key"))
    body = b'{"entry": "e", "request": "r", "verdict": "wrong"}'
    with pytest.raises(ClientError) as refusal:
        await desk.take(Tenant("t"), body, Outcome("", 0.0))
    assert (refusal.value.status, desk.stats()["wrong"]) == (503, 0)
    assert (await desk.take(Tenant("t"), body, Outcome("", 0.0)))["effect"] == "quarantined"
    await desk.take(Tenant("t"), body, Outcome("", 0.0))
    assert desk.stats()["wrong"] == 1


# What the operator sees


async def test_the_operator_sees_what_was_said_of_what(proxy: Proxy) -> None:
    await proxy.ask(STORED)
    hit = await semantic_hit(proxy, NEAR)
    await call_wrong(proxy, hit, "quarantined")
    await send(proxy, about(hit, "right"))
    status, listed = await send(proxy, b"", method="GET", port=proxy.app.admin_port, key=None)
    assert status == 200
    right, wrong = listed["feedback"]
    assert (right["verdict"], wrong["verdict"]) == (Said.RIGHT, Said.WRONG)
    assert (wrong["entry"], wrong["request"]) == (hit.headers["semcache-entry"], hit.headers["x-request-id"])
    assert (wrong["tier"], wrong["times"], wrong["entry_wrong"], wrong["entry_right"]) == ("semantic", 1, 1, 1)
    assert wrong["similarity"] == pytest.approx(gap(proxy, NEAR), abs=1e-4)
    assert wrong["at"] == proxy.clock.now
    assert NEAR not in json.dumps(listed)

    metrics = proxy.app.telemetry.render().decode()
    assert "semcache_feedback_wrong_total 1.0" in metrics
    assert "semcache_feedback_right_total 1.0" in metrics
    assert "semcache_store_quarantined 1.0" in metrics
    assert 'endpoint="feedback"' not in metrics


async def test_what_was_said_is_for_the_operator_alone(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, f"{SETTINGS}\nserver: {{admin_token: correct horse}}") as proxy:
        port = proxy.app.admin_port
        assert (await send(proxy, b"", method="GET", port=port))[0] == 401
        assert await send(proxy, b"", method="GET", port=port, key="correct horse") == (200, {"feedback": []})


async def test_a_word_is_a_line_of_the_request_log(proxy: Proxy) -> None:
    outcome = Outcome("its own", 0.0, tenant="t")
    proxy.app.feedback.remember(Tenant("t"), b"asked", Outcome("r", 0.0, entry_id="e", entry_key=b"key"))
    await proxy.app.feedback.take(Tenant("t"), b'{"entry": "e", "request": "r", "verdict": "right"}', outcome)
    line = json.loads(render_line(outcome, datetime.now(UTC)))
    assert line["feedback"] == {"verdict": "right", "request": "r", "effect": "gone"}
    assert (line["tenant"], line["entry"]) == ("t", "e")
    assert "feedback" not in json.loads(render_line(Outcome("r", 0.0), datetime.now(UTC)))


async def test_a_stored_answer_that_could_not_be_played_was_no_hit(proxy: Proxy) -> None:
    await proxy.ask(STORED)
    store = proxy.app.store
    entry = await store.read(store.last_seq)
    assert entry is not None
    damaged = replace(entry, answer=replace(entry.answer, parts=(b"no answer at all",)), seq=0)
    await store.put(damaged, store.last_seq)
    fresh = await proxy.ask(STORED)
    assert (fresh.verdict, fresh.detail, fresh.text) == ("bypass", "cache-fault", f"answer 2 to: {STORED}")
    told = {"entry": damaged.id, "request": fresh.headers["x-request-id"], "verdict": "wrong"}
    status, answer = await send(proxy, told)
    assert (status, answer["error"]["code"]) == (404, "unknown_request")
