"""`semcache explain` through the front door: a real proxy is asked, then asked why, and both must agree."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from click.testing import CliRunner

from semcache.cache.context_view import HIDDEN, view_context
from semcache.cache.explain_words import DIFFERENCES, REASONS, likely, percent
from semcache.cache.guards import GUARDS
from semcache.cli import main
from semcache.recent_requests import RecentRequests
from semcache.request_log import NoLog
from semcache.types import Outcome, Reason
from tests.fakes import ModelServer
from tests.harness import Proxy, running_proxy

PATH = "/semcache/explain"
SETTINGS = "match: {threshold: 0.8, guards: [numbers]}\ncache: {ttl: 1h, grace: 10m}"
PARCEL = "When does the parcel number 17 arrive at home please"
REWORDED = "When does the parcel number 17 arrive at our home please"
OTHER_NUMBER = "When does the parcel number 18 arrive at home please"
ADMIN_TOKEN = "sesame-of-the-operator"


class Desk:
    """A proxy, and its operator."""

    def __init__(self, proxy: Proxy, http: aiohttp.ClientSession, token: str = "") -> None:
        self.proxy = proxy
        self.http = http
        self.url = f"http://127.0.0.1:{proxy.app.admin_port}{PATH}"
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    async def call(self, asked: Any, status: int = 200) -> Any:
        body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
        async with self.http.post(self.url, data=body, headers=self.headers) as response:
            assert response.status == status, await response.text()
            return await response.json()

    async def explain(self, question: str, **asked: Any) -> Any:
        whose = {} if "tenant" in asked else {"key": "sk-test"}
        return await self.call({"question": question, "model": "small", **whose, **asked})

    async def recall(self, request_id: str, status: int = 200) -> Any:
        async with self.http.get(self.url, params={"request": request_id}, headers=self.headers) as response:
            assert response.status == status, await response.text()
            return await response.json()


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with running_proxy(tmp_path, SETTINGS) as proxy, aiohttp.ClientSession() as http:
        yield Desk(proxy, http)


def candidate(report: Any, question: str) -> Any:
    return next(each for each in report["candidates"] if each["question"] == question)


# The telling cases. Each is explained first and asked then: the explanation must have been right.


async def test_an_equal_request_is_an_exact_hit_with_its_time_left(desk: Desk) -> None:
    first = await desk.proxy.ask(PARCEL)
    assert first.verdict == "miss"
    desk.proxy.clock.advance(600)
    report = await desk.explain(PARCEL)
    assert (report["verdict"], report["reason"]) == ("hit", None)
    assert "10 min old and fresh for another 50 min" in report["summary"]
    assert report["exact"]["freshness"] == "fresh"
    assert report["scope"]["model"] == "small" and report["scope"]["tenant"].startswith("key-")
    assert {"name": "messages[0]", "value": "user: (the question)"} in report["context"]
    assert report["route"]["threshold"] == 0.8 and report["route"]["guards"] == ["numbers"]
    assert report["route"]["ttl_s"] == 3600
    reply = await desk.proxy.ask(PARCEL)
    assert (reply.verdict, reply.detail, reply.headers["semcache-entry"]) == ("hit", "exact", report["served"])


async def test_other_words_are_a_semantic_hit_with_their_similarity(desk: Desk) -> None:
    await desk.proxy.ask(PARCEL)
    report = await desk.explain(REWORDED)
    assert report["verdict"] == "hit" and report["exact"] is None and report["partition_entries"] == 1
    near = candidate(report, PARCEL)
    assert (near["threshold"], near["guards"], near["freshness"]) == ("passes", {"numbers": "passes"}, "fresh")
    reply = await desk.proxy.ask(REWORDED)
    assert reply.verdict == "hit" and reply.detail.startswith("semantic/")
    assert float(reply.detail.partition("/")[2]) == pytest.approx(near["similarity"], abs=0.001)
    assert reply.headers["semcache-entry"] == report["served"] == near["entry"]


async def test_a_veto_names_the_guard_and_what_differs(desk: Desk) -> None:
    await desk.proxy.ask(PARCEL)
    report = await desk.explain(OTHER_NUMBER)
    near = candidate(report, PARCEL)
    assert (report["verdict"], report["reason"]) == ("miss", "guard-number")
    assert report["summary"] == (
        f"This would be a MISS: the nearest stored question, at {near['similarity']:.3f}, "
        "differs in a number (guard numbers)."
    )
    assert near["threshold"] == "passes" and near["guards"] == {"numbers": "vetoes"}
    assert near["objection"] == "guard-number" and report["served"] is None
    assert (await desk.proxy.ask(OTHER_NUMBER)).detail == "guard-number"


async def test_what_is_below_the_threshold_is_shown_too(desk: Desk) -> None:
    await desk.proxy.ask(PARCEL)
    distant = "When does my train number 17 leave for the city please"
    report = await desk.explain(distant)
    near = candidate(report, PARCEL)
    assert (report["verdict"], report["reason"], near["threshold"]) == ("miss", "below-threshold", "below")
    assert f"at {near['similarity']:.3f}, is below the threshold of 0.8." in report["summary"]
    assert (await desk.proxy.ask(distant)).detail == "below-threshold"


async def test_another_context_is_found_and_named(desk: Desk) -> None:
    await desk.proxy.ask(PARCEL)
    report = await desk.explain(PARCEL, system="You work for the post.")
    assert (report["verdict"], report["reason"], report["partition_entries"]) == ("miss", "no-entry", 0)
    assert {"name": "messages[0]", "value": "system: You work for the post."} in report["context"]
    assert [home["differs"] for home in report["elsewhere"]] == [["context"]]
    assert "another context (earlier turns, system prompt" in report["summary"]


async def test_another_tenant_and_model_are_found_and_named(desk: Desk) -> None:
    await desk.proxy.ask(PARCEL, key="sk-of-another")
    await desk.proxy.ask(PARCEL, model="large")
    report = await desk.explain(PARCEL)
    assert report["verdict"] == "miss" and report["candidates"] == []
    assert sorted(home["differs"] for home in report["elsewhere"]) == [["model"], ["tenant"]]
    assert "stored 2 times elsewhere" in report["summary"]
    assert (await desk.proxy.ask(PARCEL)).detail == "no-entry"


async def test_past_its_ttl_an_answer_is_stale_and_past_its_grace_too_old(desk: Desk) -> None:
    await desk.proxy.ask(PARCEL)
    desk.proxy.clock.advance(3600 + 60)
    report = await desk.explain(PARCEL)
    assert (report["verdict"], report["exact"]["freshness"], report["exact"]["ttl_left_s"]) == ("stale", "stale", -60)
    assert "within its grace, so it would be refreshed" in report["summary"]
    desk.proxy.clock.advance(600)
    report = await desk.explain(PARCEL)
    assert (report["verdict"], report["reason"], report["exact"]["freshness"]) == ("miss", "expired", "too old")
    assert "past its ttl and its grace: it is 1 h 11 min old" in report["summary"]
    assert desk.proxy.backend.requests == 1, "nothing was refreshed by asking why"


TOOLS = [{"type": "function", "function": {"name": "track", "parameters": {"type": "object"}}}]


async def test_a_request_with_tools_is_exact_only_and_told_why(desk: Desk) -> None:
    await desk.proxy.ask(PARCEL)
    request = {"model": "small", "messages": [{"role": "user", "content": REWORDED}], "tools": TOOLS}
    report = await desk.call({"body": request, "key": "sk-test"})
    assert (report["verdict"], report["exact_only"], report["partition"]) == ("miss", "tools", None)
    assert "the request declares tools, so only an equal request" in report["summary"]
    assert (await desk.proxy.ask(REWORDED, tools=TOOLS)).detail == "tools"


async def test_guards_speak_about_every_candidate_and_lookups_read_only_the_nearest(tmp_path: Path) -> None:
    settings = "match: {threshold: 0.5, guards: [numbers], neighbours: 2}"
    async with running_proxy(tmp_path, settings) as proxy, aiohttp.ClientSession() as http:
        desk = Desk(proxy, http)
        for number in (17, 18, 19):
            await proxy.ask(f"When does the parcel number {number} arrive at home please")
        report = await desk.explain("When does the parcel number 20 arrive at home please")
        assert len(report["candidates"]) == 3
        assert {each["guards"]["numbers"] for each in report["candidates"]} == {"vetoes"}
        assert [each["is_looked_at"] for each in report["candidates"]] == [True, True, False]
        assert report["verdict"] == "miss"


async def test_a_question_about_now_is_exact_only_and_told_why(desk: Desk) -> None:
    now = "What is the weather like today"
    await desk.proxy.ask(now)
    report = await desk.explain("What is the weather like today then")
    assert (report["verdict"], report["exact_only"]) == ("miss", "time-bound")
    assert "about now" in report["summary"] and report["route"]["ttl_s"] < 3600
    assert (await desk.explain(now))["verdict"] == "hit"


def test_every_reason_and_every_guard_has_words() -> None:
    assert [reason for reason in Reason if reason not in REASONS and not reason.startswith("guard-")] == []
    assert set(GUARDS) - set(DIFFERENCES) == set()


STREAM_OF_QUESTIONS = (
    "How do I cancel my order",
    "How can I cancel my order",
    "How do I cancel my orders please",
    "How do I cancel order 5",
    "How do I cancel order 6",
    "How do I not cancel my order",
    "How do I cancel my order in Paris",
    "How do I cancel my order in London",
    "How do I cancel my order by Friday",
    "How do I cancel my order now",
    "How do I cancel `order`",
    "When do I cancel my order",
    "Who cancels orders",
    "Wie storniere ich meine Bestellung",
    "",
    "5",
    "?",
)


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
async def test_what_is_explained_is_what_happens_then(tmp_path: Path, threshold: float) -> None:
    async with running_proxy(tmp_path, f"match: {{threshold: {threshold}}}") as proxy, aiohttp.ClientSession() as http:
        desk = Desk(proxy, http)
        verdicts = set()
        for question in (*STREAM_OF_QUESTIONS, *STREAM_OF_QUESTIONS[:3]):
            body = {"model": "small", "messages": [{"role": "user", "content": question}]}
            report = await desk.call({"body": body, "key": "sk-test"})
            reply = await proxy.ask(question)
            assert (report["verdict"], report["served"]) == (reply.verdict, reply.headers.get("semcache-entry"))
            assert reply.verdict == "hit" or report["reason"] == reply.detail, question
            verdicts.add((reply.verdict, reply.detail.partition("/")[0]))
        assert len(verdicts) >= 4, "hits of both tiers, and misses of more than one kind"


# What it must not do


async def test_explaining_changes_nothing(desk: Desk) -> None:
    await desk.proxy.ask(PARCEL)
    store, backend = desk.proxy.app.store, desk.proxy.backend
    await store.flush_recency()
    before = store.stats()
    for question in (PARCEL, REWORDED, OTHER_NUMBER):
        await desk.explain(question)
    assert store.stats() == before
    assert backend.requests == 1 and store.last_seq == 1


SECRET = "abcdefghijklmnop1234567890"


async def test_secrets_of_a_request_are_shown_nowhere(desk: Desk) -> None:
    server = {
        "type": "mcp",
        "server_url": f"https://user:{SECRET}@tools.example/?api_key={SECRET}",
        "authorization": SECRET,
        "headers": {"X-Thing": SECRET},
    }
    request = {
        "model": "small",
        "messages": [
            {"role": "system", "content": f"Use the key sk-{SECRET} and Bearer {SECRET}."},
            {"role": "user", "content": f"Is ghp_{SECRET} still valid?"},
        ],
        "tools": [server],
        "metadata": {"api_key": SECRET, "password": SECRET},
        "max_completion_tokens": 50,
    }
    asked = {"body": request, "key": f"sk-{SECRET}", "headers": {"OpenAI-Organization": "org-shown"}}
    report = await desk.call(asked)
    assert SECRET not in json.dumps(report)
    assert HIDDEN in json.dumps(report["context"]) and HIDDEN in report["question"]
    named = {member["name"]: member["value"] for member in report["context"]}
    assert named["max_completion_tokens"] == "50" and named["header openai-organization"] == "org-shown"


def test_a_context_that_is_no_json_tells_its_size_only() -> None:
    assert view_context(b"\x00\x01 anything") == (("context", "11 bytes"),)
    assert [member.name for member in view_context(b'{"a":?12,"b":"?7 #ab","c":#00ff}')] == ["a", "b", "c"]
    assert view_context(b'{"b":"?7 \\" #ab"}')[0].value == '?7 " #ab'


@pytest.mark.parametrize("place", [*range(900, 1010, 7), 150, 5000])
def test_a_secret_in_a_long_text_is_hidden_wherever_the_text_is_cut(place: int) -> None:
    text = f"{'word ' * (place // 5)}Bearer {SECRET} {'word ' * 2000}"
    context = json.dumps({"messages": [{"role": "system", "content": text}]}).encode()
    assert SECRET[:6] not in view_context(context)[0].value
    assert SECRET[:6] not in view_context(json.dumps({"a": f"sk-{SECRET * 100}"}).encode())[0].value


async def test_an_answer_called_wrong_is_told_so(desk: Desk) -> None:
    await desk.proxy.ask(PARCEL)
    hit = await desk.proxy.ask(REWORDED)
    feedback = desk.proxy.url.removesuffix("/v1") + "/semcache/feedback"
    told = {"entry": hit.headers["semcache-entry"], "request": hit.headers["x-request-id"], "verdict": "wrong"}
    async with desk.http.post(feedback, json=told, headers={"Authorization": "Bearer sk-test"}) as response:
        assert response.status == 200, await response.text()
    report = await desk.explain(REWORDED)
    assert (report["verdict"], report["reason"], report["candidates"][0]["objection"]) == (
        "miss", "feedback", "feedback"
    )  # fmt: skip
    assert "was called wrong" in report["summary"]
    assert (await desk.proxy.ask(REWORDED)).detail == "feedback"


async def test_it_needs_the_token_like_every_admin_call(tmp_path: Path) -> None:
    settings = f"{SETTINGS}\nserver: {{admin_token: {ADMIN_TOKEN}}}"
    async with running_proxy(tmp_path, settings) as proxy, aiohttp.ClientSession() as http:
        await proxy.ask(PARCEL)
        stranger = Desk(proxy, http)
        answer = await stranger.call({"question": PARCEL, "model": "small"}, status=401)
        assert set(answer) == {"error"} and PARCEL not in json.dumps(answer)
        await stranger.recall("any", status=401)
        report = await Desk(proxy, http, ADMIN_TOKEN).explain(PARCEL)
        assert report["verdict"] == "hit" and ADMIN_TOKEN not in json.dumps(report)


# Whose request it is, and which


async def test_what_is_not_said_is_taken_from_the_newest_answer_and_told(desk: Desk) -> None:
    await desk.call({"question": PARCEL}, status=400)
    await desk.proxy.ask(PARCEL)
    report = await desk.call({"question": PARCEL})
    assert report["verdict"] == "hit"
    assert report["assumed"] == [f"tenant {report['tenant']}", "model small"]


TENANTS = """
tenants:
  - {name: shop, keys: [sk-shop-key], namespaces: [faq, docs]}
  - {name: bank, keys: [sk-bank-key]}
"""


async def test_a_tenant_is_named_by_name_or_key(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, SETTINGS + TENANTS) as proxy, aiohttp.ClientSession() as http:
        desk = Desk(proxy, http)
        assert "shop, bank" in (await desk.call({"question": PARCEL, "model": "small"}, status=400))["error"]["message"]
        await proxy.ask(PARCEL, key="sk-shop-key")
        for whose in ({"tenant": "shop"}, {"key": "sk-shop-key"}, {}):
            report = await desk.call({"question": PARCEL, "model": "small", **whose})
            assert (report["verdict"], report["scope"]["namespace"]) == ("hit", "faq"), whose
        report = await desk.explain(PARCEL, tenant="bank")
        assert (report["verdict"], report["elsewhere"][0]["differs"]) == ("miss", ["tenant", "namespace"])
        report = await desk.explain(PARCEL, tenant="shop", namespace="docs")
        assert (report["verdict"], report["elsewhere"][0]["differs"]) == ("miss", ["namespace"])
        await desk.call({"question": PARCEL, "model": "small", "tenant": "nobody"}, status=400)
        await desk.call({"question": PARCEL, "model": "small", "key": "sk-unknown"}, status=401)
        await desk.call({"question": PARCEL, "model": "small", "tenant": "bank", "namespace": "faq"}, status=403)


async def test_a_writer_that_is_no_tenant_any_more_is_not_assumed(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, SETTINGS) as proxy:
        await proxy.ask(PARCEL)
    async with running_proxy(tmp_path, SETTINGS + TENANTS) as proxy, aiohttp.ClientSession() as http:
        answer = await Desk(proxy, http).call({"question": PARCEL, "model": "small"}, status=400)
        assert "say whose request it is; there are shop, bank" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("headers", "verdict", "reason"),
    [
        ({"Cache-Control": "no-cache"}, "miss", "no-cache"),
        ({"Cache-Control": "no-store"}, "bypass", "no-store"),
        ({"Cache-Control": "max-age=5"}, "miss", "max-age"),
        ({"Semcache-Control": "tier=exact"}, "miss", "exact-only"),
        ({"Semcache-Control": "similarity=0.999"}, "miss", "below-threshold"),
        ({"Cache-Control": "only-if-cached", "Semcache-Control": "similarity=0.999"}, "refused", "below-threshold"),
    ],
)
async def test_what_a_caller_asks_of_the_cache_counts(
    desk: Desk, headers: dict[str, str], verdict: str, reason: str
) -> None:
    await desk.proxy.ask(PARCEL)
    desk.proxy.clock.advance(10)
    report = await desk.explain(REWORDED, headers=headers)
    assert (report["verdict"], report["reason"]) == (verdict, reason)
    if verdict == "refused":
        with pytest.raises(openai.APIStatusError):
            await desk.proxy.ask(REWORDED, headers=headers)
    else:
        assert (await desk.proxy.ask(REWORDED, headers=headers)).detail == reason


@pytest.mark.parametrize(
    ("match", "verdict", "reason"), [("mode: off", "bypass", "disabled"), ("mode: shadow", "miss", "exploring")]
)
async def test_the_mode_of_a_route_is_part_of_the_verdict(
    tmp_path: Path, match: str, verdict: str, reason: str
) -> None:
    async with running_proxy(tmp_path, f"match: {{{match}}}") as proxy, aiohttp.ClientSession() as http:
        await proxy.ask(PARCEL)
        report = await Desk(proxy, http).explain(PARCEL)
        assert (report["verdict"], report["reason"]) == (verdict, reason)
        assert (await proxy.ask(PARCEL)).detail == reason


async def test_a_fault_of_the_cache_is_told_and_not_taken_for_a_miss(desk: Desk) -> None:
    await desk.proxy.ask(PARCEL)
    desk.proxy.embedder.fault = RuntimeError("the engine is gone")
    report = await desk.explain(REWORDED)
    assert (report["verdict"], report["reason"], report["fault"]) == ("bypass", "cache-fault", "the engine is gone")
    report = await desk.explain(PARCEL)
    assert (report["verdict"], report["fault"]) == ("hit", "the engine is gone")


async def test_an_answer_found_not_to_be_storable_is_told(desk: Desk) -> None:
    desk.proxy.backend.finish_reason = "length"
    await desk.proxy.ask(PARCEL)
    report = await desk.explain(PARCEL)
    assert (report["verdict"], report["reason"]) == ("bypass", "learned") and "(finish)" in report["summary"]
    assert (await desk.proxy.ask(PARCEL)).detail == "learned"


async def test_a_question_that_is_being_fetched_would_be_coalesced(tmp_path: Path) -> None:
    backend = ModelServer()
    backend.gate = asyncio.Event()
    async with running_proxy(tmp_path, SETTINGS, backend=backend) as proxy, aiohttp.ClientSession() as http:
        asking = asyncio.create_task(proxy.ask(PARCEL))
        async with asyncio.timeout(10):
            while not backend.requests:
                await asyncio.sleep(0)
        assert (await Desk(proxy, http).explain(PARCEL))["verdict"] == "coalesced"
        backend.gate.set()
        await asking
        assert (await Desk(proxy, http).explain(PARCEL))["verdict"] == "hit"


async def test_a_question_longer_than_the_embedder_reads_is_exact_only(desk: Desk) -> None:
    long = "word " * 300
    await desk.proxy.ask(PARCEL)
    report = await desk.explain(long)
    assert (report["verdict"], report["reason"], report["candidates"]) == ("miss", "too-long", [])


async def test_a_batch_tells_how_many_of_its_items_are_stored(desk: Desk) -> None:
    body = {"model": "small", "input": ["one", "two"]}
    report = await desk.call({"body": body, "path": "/v1/embeddings", "key": "sk-test"})
    assert (report["verdict"], report["items_stored"]) == ("miss", [False, False])


async def test_numbers_of_a_body_stay_as_they_are_written(desk: Desk) -> None:
    await desk.proxy.ask(PARCEL, temperature=0.5)
    text = json.dumps({"model": "small", "messages": [{"role": "user", "content": PARCEL}], "stream": False})
    for written, verdict in (("0.5", "hit"), ("0.50", "miss")):
        body = f'{text[:-1]}, "temperature": {written}}}'
        as_text = await desk.call({"body": body, "key": "sk-test"})
        as_object = await desk.call(f'{{"body": {body}, "key": "sk-test"}}'.encode())
        assert as_text["verdict"] == as_object["verdict"] == verdict


@pytest.mark.parametrize(
    "asked",
    [
        b"",
        b"[]",
        b'{"question": "a", "question": "b"}',
        {},
        {"question": ""},
        {"question": 5},
        {"question": "a", "wanted": "b"},
        {"question": "a", "body": {}},
        {"body": 7},
        {"body": {"model": "m"}},
        {"body": "not json"},
        {"body": {"model": "m", "messages": [{"role": "user", "content": "a"}]}, "model": "m"},
        {"body": {}, "path": "/v1/files"},
        {"question": "a", "path": "/v1/messages"},
        {"question": "a", "tenant": "a", "key": "b"},
        {"question": "a", "headers": ["a"]},
        {"question": "a", "headers": {"a": 1}},
        {"question": "a", "model": "m", "headers": {"Semcache-Control": "similarity=9"}},
        {"question": "\ud800", "model": "m"},
    ],
)
async def test_what_cannot_be_understood_is_refused_in_one_sentence(desk: Desk, asked: Any) -> None:
    answer = await desk.call(asked, status=400)
    assert set(answer) == {"error"} and answer["error"]["message"]


# By request id


async def test_a_request_is_recalled_by_its_id_without_its_prompt(tmp_path: Path) -> None:
    async with running_proxy(tmp_path, f"{SETTINGS}\nserver: {{log_prompts: true}}") as proxy:
        async with aiohttp.ClientSession() as http:
            desk = Desk(proxy, http)
            reply = await proxy.ask(PARCEL)
            await proxy.ask(OTHER_NUMBER, headers={"X-Request-Id": "mine-1"})
            first = await desk.recall(reply.headers["x-request-id"])
            assert first["outcomes"][0]["reason"] == "no-entry"
            second = await desk.recall("mine-1")
            assert second["outcomes"][0]["verdict"] == "miss" and "guard" in second["outcomes"][0]["summary"]
            assert "parcel" not in json.dumps([first, second])
            assert "error" in await desk.recall("unheard-of", status=404)
            assert "error" in await desk.recall("", status=400)


# The command


def command(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(main, ["explain", *arguments])
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    return result.output


async def test_the_command_asks_a_running_server_and_prints_for_people(desk: Desk, tmp_path: Path) -> None:
    reply = await desk.proxy.ask(PARCEL)
    admin = f"http://127.0.0.1:{desk.proxy.app.admin_port}"

    async def run(*arguments: str, status: int = 0) -> str:
        return await asyncio.to_thread(command, *arguments, "--admin", admin, status=status)

    text = await run(OTHER_NUMBER, "--key", "sk-test", "--model", "small")
    assert text.startswith("This would be a MISS: the nearest stored question, at 0.901, differs in")
    assert "vetoes" in text and "numbers" in text and "fresh" in text
    assert "This would be a HIT" in await run(PARCEL)
    report = json.loads(await run(REWORDED, "--key", "sk-test", "--json"))
    assert report["verdict"] == "hit"
    file = tmp_path / "request.json"
    file.write_text(json.dumps({"model": "small", "messages": [{"role": "user", "content": PARCEL}], "n": 2}))
    text = await run("--body", str(file), "--key", "sk-test", "-H", "Cache-Control: no-cache")
    assert "asked for a fresh answer" in text and "sampling" in text
    assert "This was a MISS" in await run("--request", reply.headers["x-request-id"])
    assert "no such request" in await run("--request", "unheard-of", status=1)
    assert "Semcache-Control" in await run(PARCEL, "-H", "Semcache-Control: similarity=9", status=2)


async def test_the_command_asks_for_a_key_that_nobody_else_should_see(desk: Desk) -> None:
    await desk.proxy.ask(PARCEL)
    arguments = ["explain", PARCEL, "--key", "-", "--model", "small", "--admin", desk.url.removesuffix(PATH)]
    result = await asyncio.to_thread(CliRunner().invoke, main, arguments, input="sk-test\n")
    assert result.exit_code == 0 and "This would be a HIT" in result.output and "sk-test" not in result.output


async def test_the_command_says_what_speaks_against_a_candidate_beside_guards(desk: Desk) -> None:
    await desk.proxy.ask(PARCEL)
    reply = await desk.proxy.ask(REWORDED)
    said = {"entry": reply.headers["semcache-entry"], "request": reply.headers["x-request-id"], "verdict": "wrong"}
    async with desk.http.post(
        desk.proxy.url.removesuffix("/v1") + "/semcache/feedback",
        json=said,
        headers={"Authorization": "Bearer sk-test"},
    ) as response:
        assert response.status == 200
    text = await asyncio.to_thread(command, REWORDED, "--key", "sk-test", "--admin", desk.url.removesuffix(PATH))
    assert "objection" in text and "called wrong" in text and "1 question to compare with" in text


async def test_the_command_says_for_whom_a_personal_question_is_asked(desk: Desk) -> None:
    await desk.proxy.ask("What is my balance?", user="ann")
    arguments = ("What is my balance?", "--key", "sk-test", "--model", "small", "--admin", desk.url.removesuffix(PATH))
    assert "--user ID" in await asyncio.to_thread(command, *arguments)
    text = await asyncio.to_thread(command, *arguments, "--user", "ann")
    assert "This would be a HIT" in text and "--user ID" not in text


async def test_a_question_that_the_error_bound_refuses_tells_what_is_missing(tmp_path: Path) -> None:
    settings = "match: {max_error: 0.05, guards: [numbers]}"
    async with running_proxy(tmp_path, settings) as proxy, aiohttp.ClientSession() as http:
        desk = Desk(proxy, http)
        await proxy.ask(PARCEL)
        report = await desk.explain(REWORDED)
        assert (report["verdict"], report["reason"]) == ("miss", "bound")
        assert report["summary"].endswith(
            "may serve, but the evidence does not prove at most 5 % of hits wrong (match.max_error): "
            "there are 0 comparisons for this scope and 0 in all; 60 without an error are the least."
        )
        far = await desk.explain("When will it rain on my train please")
        assert "is too far away: below 0.6 none is weighed" in far["summary"]
        text = await asyncio.to_thread(command, REWORDED, "--key", "sk-test", "--admin", desk.url.removesuffix(PATH))
        assert "max_error 0.05 (of candidates from 0.6 on)" in text and "error bound" in text
        assert (await proxy.ask(REWORDED)).detail == "bound"


def test_a_certain_probability_is_not_rounded_up() -> None:
    assert (likely(0.99999), likely(0.98274)) == (">0.9999", "0.9827")
    assert (percent(0.05), percent(0.00957)) == ("5 %", "0.957 %")


async def test_nothing_that_a_terminal_obeys_is_printed(desk: Desk) -> None:
    await desk.proxy.ask("Where \x1b[31mis\x07 the [bold]parcel[/] \u202enumber\u009b 17")
    arguments = ["explain", "Where is the parcel number 17", "--admin", desk.url.removesuffix(PATH)]
    result = await asyncio.to_thread(CliRunner().invoke, main, arguments)
    assert result.exit_code == 0 and "[bold]parcel[/]" in result.output
    assert all(c.isprintable() or c == "\n" for c in result.output)


def test_only_the_latest_requests_are_remembered() -> None:
    recent = RecentRequests(NoLog(), kept=2)
    for number in range(3):
        recent.write(Outcome(f"id-{number}", 0.0, question="a secret"), "a secret")
    assert recent.find("id-0") == []
    ((outcome, line),) = recent.find("id-2")
    assert outcome.question is None and "secret" not in json.dumps(line)


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    assert "say what to explain" in command(status=2)
    assert "say what to explain" in command("a question", "--request", "id", status=2)
    assert "NAME:VALUE" in command("a question", "-H", "nonsense", status=2)
    assert "no server listens on http://127.0.0.1:1:" in command("a question", "--admin", "127.0.0.1:1", status=1)
