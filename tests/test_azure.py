"""Azure's paths through the front door, asked with the vendor's own Azure client: as sent, cached, and kept apart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.azure_server import AzureServer
from tests.harness import Proxy, running_proxy, until

VERSION = "2024-10-21"
QUESTION = [{"role": "user", "content": "How long does a parcel take?"}]


@dataclass
class Front:
    proxy: Proxy
    azure: AzureServer
    http: openai.DefaultAsyncHttpxClient

    @property
    def root(self) -> str:
        return self.proxy.url.removesuffix("/v1")

    def client(self, version: str = VERSION, **options: Any) -> openai.AsyncAzureOpenAI:
        own = {"azure_endpoint": self.root, "api_key": "callers-key", "max_retries": 0, "http_client": self.http}
        return openai.AsyncAzureOpenAI(api_version=version, **{**own, **options})

    def plain_client(self, path: str) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.root + path, api_key="callers-key", http_client=self.http)


@asynccontextmanager
async def front(
    folder: Path, backends: str = "{url: URL, dialect: azure, api_key: operators-key}", more: str = ""
) -> AsyncIterator[Front]:
    """A proxy whose one pool has these backends; URL is the Azure server's."""
    async with AzureServer().running() as azure, openai.DefaultAsyncHttpxClient() as http:
        settings = f"pools: {{az: {{backends: [{backends.replace('URL', azure.url)}]}}}}\n{more}"
        async with running_proxy(folder, settings) as proxy:
            yield Front(proxy, azure, http)


async def chat(client: Any, *, stream: bool = False, model: str = "prod", **more: Any) -> tuple[str, str, Any]:
    """What a user of the SDK gets: the text, the Cache-Status, and the last thing parsed."""
    raw = await client.chat.completions.with_raw_response.create(model=model, messages=QUESTION, stream=stream, **more)
    answer = raw.parse()
    status = raw.headers["cache-status"]
    if not stream:
        return answer.choices[0].message.content, status, answer
    chunks = [chunk async for chunk in answer]
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices), status, chunks


async def complete(client: Any, *, stream: bool = False, model: str = "prod", **more: Any) -> tuple[str, str, Any]:
    raw = await client.completions.with_raw_response.create(model=model, prompt="A parcel takes", stream=stream, **more)
    answer = raw.parse()
    status = raw.headers["cache-status"]
    if not stream:
        return answer.choices[0].text, status, answer
    chunks = [chunk async for chunk in answer]
    return "".join(c.choices[0].text for c in chunks if c.choices), status, chunks


# As sent


async def test_path_and_query_arrive_as_sent_and_the_operators_key_replaces_the_callers(tmp_path: Path) -> None:
    async with front(tmp_path) as here:
        await chat(here.client(), model="my prod/4")
        assert here.azure.targets == [f"/openai/deployments/my%20prod%2F4/chat/completions?api-version={VERSION}"]
        sent = here.azure.headers[0]
        assert sent["api-key"] == "operators-key"
        assert "authorization" not in sent
        assert "callers-key" not in json.dumps(sent)


async def test_without_a_key_of_the_operator_the_callers_own_is_passed(tmp_path: Path) -> None:
    async with front(tmp_path, "{url: URL, dialect: azure}") as here:
        await chat(here.client())
        await chat(here.client(api_key=None, azure_ad_token="entra-token"))
        assert [h.get("api-key") for h in here.azure.headers] == ["callers-key", None]
        assert here.azure.headers[1]["authorization"] == "Bearer entra-token"


# Cached, in both forms


@pytest.mark.parametrize("ask", [chat, complete])
@pytest.mark.parametrize("first", [True, False])
async def test_a_hit_comes_in_either_form_whichever_was_recorded(tmp_path: Path, ask: Any, first: bool) -> None:
    async with front(tmp_path) as here:
        text, status, _ = await ask(here.client(), stream=first)
        assert "fwd=miss" in status
        await here.proxy.landed()
        for stream in (first, not first):
            again, status, answer = await ask(here.client(), stream=stream)
            assert (again, "; hit" in status, "exact" in status) == (text, True, True)
            assert {part.id for part in (answer if stream else [answer]) if part.id} != {"chatcmpl-az"}
            whole = answer[-1] if stream else answer
            assert whole.choices[0].finish_reason == "stop"
        assert len(here.azure.targets) == 1


async def test_the_report_on_the_prompt_is_played_where_it_came(tmp_path: Path) -> None:
    async with front(tmp_path) as here:
        _, _, miss = await chat(here.client(), stream=True)
        await here.proxy.landed()
        _, status, hit = await chat(here.client(), stream=True)
        assert "; hit" in status
        first, second = miss[0], hit[0]
        assert first.prompt_filter_results == second.prompt_filter_results
        assert (second.choices, len(hit)) == ([], len(miss))
        _, _, body = await chat(here.client())
        assert body.prompt_filter_results == first.prompt_filter_results
        assert body.model == "gpt-4o-2024-11-20"
        assert (body.usage.prompt_tokens, body.usage.completion_tokens) == (9, 4)


async def test_the_sync_client_reads_the_same(tmp_path: Path) -> None:
    async with front(tmp_path) as here:

        def ask(stream: bool) -> str:
            with openai.AzureOpenAI(
                azure_endpoint=here.root, azure_deployment="prod", api_key="k", api_version=VERSION, max_retries=0
            ) as client:
                if not stream:
                    answer = client.chat.completions.create(model="prod", messages=QUESTION)  # type: ignore[arg-type]
                    return answer.choices[0].message.content or ""
                with client.chat.completions.stream(model="prod", messages=QUESTION) as told:  # type: ignore[arg-type]
                    return told.get_final_completion().choices[0].message.content or ""

        first = await asyncio.to_thread(ask, False)
        await here.proxy.landed()
        assert await asyncio.to_thread(ask, True) == first
        assert here.azure.targets == [f"/openai/deployments/prod/chat/completions?api-version={VERSION}"]


@pytest.mark.parametrize("stream", [True, False])
async def test_equal_requests_at_once_cost_one_fetch(tmp_path: Path, stream: bool) -> None:
    async with front(tmp_path) as here:
        here.azure.gate = asyncio.Event()
        asking = [asyncio.create_task(chat(here.client(), stream=stream if i else not stream)) for i in range(5)]
        await until(lambda: here.proxy.app.pipeline.flights.joined == 4)
        here.azure.gate.set()
        assert {text for text, _, _ in await asyncio.gather(*asking)} == {"answer 1"}
        assert len(here.azure.targets) == 1


async def test_a_near_question_at_the_same_deployment_is_answered(tmp_path: Path) -> None:
    async with front(tmp_path) as here:
        words = "how long does a parcel to the north of the country usually take"
        first = await here.client().chat.completions.create(model="p", messages=[{"role": "user", "content": words}])
        await here.proxy.landed()
        raw = await here.client().chat.completions.with_raw_response.create(
            model="p", messages=[{"role": "user", "content": words + " please"}]
        )
        assert "semantic" in raw.headers["cache-status"]
        assert raw.parse().choices[0].message.content == first.choices[0].message.content


# Kept apart


async def test_no_two_deployments_versions_or_forms_of_the_path_share_an_answer(tmp_path: Path) -> None:
    async with front(tmp_path) as here:
        v1 = here.plain_client("/openai/v1")
        askers: list[tuple[Any, str]] = [
            (here.client(), "prod"),
            (here.client(), "test"),
            (here.client("2025-01-01-preview"), "prod"),
            (v1, "prod"),
            (v1.with_options(default_query={"api-version": "preview"}), "prod"),
            (here.plain_client("/v1"), "prod"),
        ]
        for _ in range(2):  # the second time each finds its own
            texts = []
            for client, model in askers:
                texts.append((await chat(client, model=model))[0])
                await here.proxy.landed()
            assert texts == [f"answer {number}" for number in range(1, len(askers) + 1)]
        assert here.azure.targets == [
            f"/openai/deployments/prod/chat/completions?api-version={VERSION}",
            f"/openai/deployments/test/chat/completions?api-version={VERSION}",
            "/openai/deployments/prod/chat/completions?api-version=2025-01-01-preview",
            "/openai/v1/chat/completions",
            "/openai/v1/chat/completions?api-version=preview",
            "/openai/v1/chat/completions",
        ]


async def test_the_deployment_of_the_path_chooses_the_route_whatever_the_body_says(tmp_path: Path) -> None:
    async with front(tmp_path, more="routes: [{models: ['cheap*'], pools: [az]}]") as here:
        with pytest.raises(openai.NotFoundError, match="'dear'"):
            await chat(here.plain_client("/openai/deployments/dear"), model="cheap-1")
        assert (await chat(here.client(), model="cheap-1"))[0] == "answer 1"
        assert len(here.azure.targets) == 1


# Passed through, to Azure only


async def test_other_paths_of_azure_pass_to_azure_and_to_no_other_backend(tmp_path: Path) -> None:
    both = "{url: 'http://127.0.0.1:9/v1', api_key: k}, {url: URL, dialect: azure, api_key: operators-key}"
    async with front(tmp_path, both) as here:
        client = here.client()
        await client.files.list()
        await client.models.list()
        await client.audio.transcriptions.create(model="whisper", file=("a.wav", b"RIFF"))
        assert here.azure.targets == [
            f"/openai/files?api-version={VERSION}",
            f"/openai/models?api-version={VERSION}",
            f"/openai/deployments/whisper/audio/transcriptions?api-version={VERSION}",
        ]
        assert {h["api-key"] for h in here.azure.headers} == {"operators-key"}
        assert b"RIFF" in here.azure.bodies[-1]
        raw = await client.models.with_raw_response.list()
        assert raw.headers["cache-status"].endswith("fwd=bypass; fwd-status=200; detail=endpoint")


async def test_where_nobody_speaks_azure_among_several_its_paths_are_refused(tmp_path: Path) -> None:
    both = "{url: URL}, {url: 'http://127.0.0.1:9', dialect: anthropic}"
    async with front(tmp_path, both) as here:
        for ask in (chat, lambda client: client.files.list()):
            with pytest.raises(openai.NotFoundError, match="azure") as refused:
                await ask(here.client())
            assert refused.value.code == "dialect_not_served"
        assert here.azure.targets == []


async def test_behind_one_upstream_azures_requests_go_to_it_as_sent(tmp_path: Path) -> None:
    async with front(tmp_path, "{url: URL/v1}") as here:
        text, _, _ = await chat(here.client())
        await here.client().files.list()
        await here.proxy.landed()
        assert (await chat(here.client(), stream=True))[0] == text
        assert here.azure.targets == [
            f"/openai/deployments/prod/chat/completions?api-version={VERSION}",
            f"/openai/files?api-version={VERSION}",
        ]
        assert here.azure.headers[0]["api-key"] == "callers-key"


# Errors


@pytest.mark.parametrize(
    ("status", "code", "raised"),
    [
        (400, "content_filter", openai.BadRequestError),
        (404, "DeploymentNotFound", openai.NotFoundError),
        (429, "429", openai.RateLimitError),
        (503, "503", openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_azures_own_errors_are_relayed_and_typed(
    tmp_path: Path, status: int, code: str, raised: type[openai.APIStatusError], stream: bool
) -> None:
    async with front(tmp_path) as here:
        here.azure.error = (status, {"code": code, "message": "So says Azure.", "innererror": {"a": 1}})
        with pytest.raises(raised, match="So says Azure") as found:
            await chat(here.client(), stream=stream)
        assert (found.value.status_code, found.value.code) == (status, code)
        assert found.value.body == here.azure.error[1]
        assert found.value.response.headers["retry-after"] == "7"
        here.azure.error = None
        if status in (429, 503):  # and its word is heeded: the operator's key rests
            with pytest.raises(openai.InternalServerError, match="no backend takes requests now"):
                await chat(here.client(), stream=stream)
        else:
            assert "fwd=miss" in (await chat(here.client(), stream=stream))[1]


async def test_our_own_errors_are_typed(tmp_path: Path) -> None:
    async with front(tmp_path) as here:
        client = here.client()
        with pytest.raises(openai.BadRequestError, match="'messages'"):
            await client.chat.completions.create(model="m", messages=[])
        with pytest.raises(openai.BadRequestError, match="Semcache-Control"):
            await chat(client, extra_headers={"Semcache-Control": "colour=blue"})
        with pytest.raises(openai.InternalServerError) as missing:
            await chat(client, extra_headers={"Cache-Control": "only-if-cached"})
        assert missing.value.status_code == 504
        assert here.azure.targets == []


async def test_only_a_known_key_is_let_in(tmp_path: Path) -> None:
    async with front(tmp_path, more="tenants: [{name: shop, keys: [shop-key]}]") as here:
        with pytest.raises(openai.AuthenticationError):
            await chat(here.client())
        assert here.azure.targets == []
        await chat(here.client(api_key="shop-key"))
        assert here.azure.headers[0]["api-key"] == "operators-key"
