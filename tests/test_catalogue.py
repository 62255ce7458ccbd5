"""`GET /v1/models` through the whole proxy: one list of all backends, of what this caller may ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.harness import Proxy, running_proxy
from tests.test_model_lists import ModelServer as Lister


async def names(proxy: Proxy, key: str = "sk-test") -> list[str]:
    return [model.id async for model in proxy.client.with_options(api_key=key).models.list()]


def pools(*backends: str) -> str:
    return f"pools: {{p: {{backends: [{', '.join(backends)}], health: {{interval: 0s}}}}}}\n"


def backend(lister: Lister, more: str = "") -> str:
    return f"{{url: 'http://127.0.0.1:{lister.port}/v1'{more}}}"


async def test_one_list_of_all_backends_in_which_each_model_is_once(tmp_path: Path) -> None:
    async with Lister("small", "large").running() as one, Lister("small", "tiny").running() as other:
        async with running_proxy(tmp_path, pools(backend(one), backend(other))) as proxy:
            assert await names(proxy) == ["small", "large", "tiny"]
            raw = await proxy.client.models.with_raw_response.list()
            assert "fwd=bypass" in raw.headers["cache-status"]
            async with openai.AsyncOpenAI(base_url=proxy.url[:-3], api_key="k", max_retries=0) as bare:
                assert len([model async for model in bare.models.list()]) == 3


async def test_a_backend_that_is_gone_is_left_out_and_none_at_all_is_an_error(tmp_path: Path) -> None:
    gone = "{url: 'http://127.0.0.1:9/v1'}"
    async with Lister("small").running() as one:
        async with running_proxy(tmp_path, pools(backend(one), gone)) as proxy:
            assert await names(proxy) == ["small"]
            one.status = 500
            with pytest.raises(openai.InternalServerError) as failed:
                await names(proxy)
            assert failed.value.response.status_code == 502


async def test_a_caller_sees_what_he_may_ask_for(tmp_path: Path) -> None:
    async with Lister("small", "large").running() as near, Lister("secret").running() as far:
        settings = (
            pools(backend(near, ", region: eu"), backend(far, ", region: us"))
            + """
routes:
  - {models: [fast], model: small}
  - {name: rest, paths: [/v1/chat/*], models: [small, large, secret]}
  - {name: nothing-else, models: [no-such-model-here]}
tenants:
  - {name: any, keys: [sk-any]}
  - {name: bound, keys: [sk-bound], regions: [eu]}
  - {name: narrow, keys: [sk-narrow], models: [sm*, fast]}
  - {name: held, keys: [sk-held], routes: [rest]}
"""
        )
        async with running_proxy(tmp_path, settings) as proxy:
            assert await names(proxy, "sk-any") == ["small", "large", "secret", "fast"]
            assert await names(proxy, "sk-bound") == ["small", "large", "fast"]
            assert await names(proxy, "sk-narrow") == ["small", "fast"]
            assert await names(proxy, "sk-held") == ["small", "large", "secret"], "the alias is another route's"


async def test_names_are_those_that_callers_use(tmp_path: Path) -> None:
    async with Lister("meta/llama", "other").running() as one:
        settings = pools(backend(one, ", models: {llama: meta/llama}"))
        async with running_proxy(tmp_path, settings) as proxy:
            assert await names(proxy) == ["llama"]


async def test_one_open_backend_lists_its_models_itself(tmp_path: Path) -> None:
    async with Lister("small").running() as one:
        async with running_proxy(tmp_path, pools(backend(one))) as proxy:
            assert await names(proxy) == ["small"]
            assert [path for path, _ in one.requests] == ["/v1/models"]


async def test_the_other_vendors_lists_come_in_their_own_form(tmp_path: Path) -> None:
    async with (
        Lister("claude-a").running() as one,
        Lister("claude-b").running() as two,
        Lister("llama3:latest", form="ollama").running() as three,
        Lister("phi:latest", form="ollama").running() as four,
    ):
        settings = pools(
            backend(one, ", dialect: anthropic, api_key: k"),
            backend(two, ", dialect: anthropic, api_key: k"),
            f"{{url: 'http://127.0.0.1:{three.port}', dialect: ollama}}",
            f"{{url: 'http://127.0.0.1:{four.port}', dialect: ollama}}",
        )
        async with running_proxy(tmp_path, settings) as proxy:
            root: Any = proxy.url.removesuffix("/v1")
            async with anthropic.AsyncAnthropic(base_url=root, api_key="k", max_retries=0) as client:
                assert [model.id async for model in client.models.list()] == ["claude-a", "claude-b"]
            import ollama

            listed = await ollama.AsyncClient(host=root).list()
            assert [model.model for model in listed.models] == ["llama3:latest", "phi:latest"]


async def test_a_list_counts_as_a_request_and_a_spent_limit_asks_nobody(tmp_path: Path) -> None:
    async with Lister("small").running() as one, Lister("large").running() as other:
        settings = pools(backend(one), backend(other))
        settings += "tenants: [{name: shop, keys: [sk-test], limits: {requests_per_minute: 1}}]"
        async with running_proxy(tmp_path, settings) as proxy:
            raw = await proxy.client.models.with_raw_response.list()
            assert raw.headers["x-ratelimit-remaining-requests"] == "0"
            with pytest.raises(openai.RateLimitError):
                await names(proxy)
            assert len(one.requests) == 1
