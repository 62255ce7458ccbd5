"""Which route a request takes, and which backends may then answer it."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.backends.routing import Asking, Way, bind, find_way, pick_arm, pick_route, why_not
from semcache.backends.target import Target
from semcache.config import Arm, Backend, Pool, PoolChoice, Route
from semcache.errors import ClientError
from semcache.types import Tenant

ANYBODY = Tenant("anybody")
EU_SHOP = Tenant("shop", regions=frozenset({"eu"}))


def pool(*backends: Backend) -> Pool:
    return Pool(backends=backends or (Backend(url="http://gpu:8000/v1"),))


def backend(**settings: Any) -> Backend:
    return Backend.model_validate({"url": "http://gpu:8000/v1", **settings})


def route(**settings: Any) -> Route:
    return Route.model_validate(settings)


def choices(*names: str) -> list[PoolChoice]:
    return [PoolChoice(pool=name) for name in names]


def only(url: str, dialect: str = "openai") -> Target:
    way = find_way([], {"p": pool(backend(url=url, dialect=dialect))}, dialect, frozenset())
    [target] = way.targets
    return target


def names(way: Way) -> list[str]:
    return [target.name for target in way.targets]


def asking(model: str | None = "m", tenant: Tenant = ANYBODY, **more: Any) -> Asking:
    return Asking(model, more.pop("path", "/v1/chat/completions"), tenant, **more)


ROUTES = (route(models=["llama-*", "qwen*"]), route(models=["gpt-4o"]), route(models=["claude-[34]*"]))


@pytest.mark.parametrize("model, place", [("llama-3-8b", 0), ("qwen", 0), ("gpt-4o", 1), ("claude-3-5-haiku", 2)])
def test_the_first_route_with_a_matching_glob_is_picked(model: str, place: int) -> None:
    assert pick_route(ROUTES, asking(model)) == place


@pytest.mark.parametrize("model", ["LLAMA-3", "gpt-4o-mini", "claude-2", "my-llama-3"])
def test_a_model_that_no_route_names_is_not_found(model: str) -> None:
    with pytest.raises(ClientError) as refused:
        pick_route(ROUTES, asking(model))
    assert (refused.value.status, refused.value.code, refused.value.param) == (404, "model_not_found", "model")


# What a route asks for, a request that fits, and what does not: each with a word of the reason.
RULES = [
    ({"paths": ["/v1/embed*"]}, {"path": "/v1/embeddings"}, {}, "paths"),
    ({"tenants": ["shop"]}, {"tenant": EU_SHOP}, {}, "tenants"),
    ({"headers": {"X-Team": "blue*"}}, {"headers": {"x-team": "blue-2"}}, {"headers": {"x-team": "red"}}, "headers"),
    ({"headers": {"X-Team": "*"}}, {"headers": {"x-team": ""}}, {}, "headers"),
    ({"tenant_regions": ["eu", "uk"]}, {"tenant": EU_SHOP}, {}, "tenant_regions"),
    ({"prompt": {"max": 100}}, {"prompt_tokens": 100}, {"prompt_tokens": 101}, "prompt"),
    ({"prompt": {"min": 10}}, {"prompt_tokens": 10}, {"prompt_tokens": 9}, "prompt"),
]


@pytest.mark.parametrize("rule, fitting, other, word", RULES)
def test_each_rule_of_a_route_is_told_when_it_keeps_a_request_away(
    rule: dict[str, Any], fitting: dict[str, Any], other: dict[str, Any], word: str
) -> None:
    assert why_not(route(**rule), asking(**fitting)) is None
    told = why_not(route(**rule), asking(**other))
    assert told is not None and told.startswith(word)
    assert pick_route((route(**rule), route()), asking(**other)) == 1


def test_a_tenant_that_is_bound_to_more_than_a_route_names_does_not_take_it() -> None:
    roaming = Tenant("shop", regions=frozenset({"eu", "us"}))
    assert why_not(route(tenant_regions=["eu"]), asking(tenant=roaming)) is not None


def test_a_request_without_a_model_takes_the_route_for_any_model_and_keeps_the_other_rules() -> None:
    routes = (route(models=["a"]), route(models=["*"], tenants=["shop"]), route(models=["b"], paths=["/v1/files*"]))
    assert pick_route(routes, asking(None, EU_SHOP)) == 1
    assert pick_route(routes, asking(None, path="/v1/files")) == 0, "none is for any model and for everybody"
    with pytest.raises(ClientError, match="no route"):
        pick_route(routes[1:2], asking(None))


def test_a_key_for_some_models_asks_for_no_others() -> None:
    tenant = Tenant("shop", models=("gpt-4o*",))
    assert pick_route((route(),), asking("gpt-4o-mini", tenant)) == 0
    for model, path in (("o3", "/v1/chat/completions"), (None, "/v1/batches")):
        with pytest.raises(ClientError) as refused:
            pick_route((route(),), asking(model, tenant, path=path))
        assert (refused.value.status, refused.value.code) == (403, "model_not_allowed")
    assert pick_route((route(),), asking(None, tenant, path="/v1/models")) == 0


def test_a_key_for_some_routes_takes_no_others() -> None:
    tenant = Tenant("shop", routes=("cheap",))
    routes = (route(name="dear", models=["o3"]), route(name="cheap"))
    assert pick_route(routes, asking("gpt", tenant)) == 1
    with pytest.raises(ClientError) as refused:
        pick_route(routes, asking("o3", tenant))
    assert (refused.value.status, refused.value.code) == (403, "route_not_allowed")


# Regions


def test_a_request_may_use_what_both_its_tenant_and_its_route_allow() -> None:
    assert bind(frozenset({"eu", "us"}), ["eu", "uk"]) == {"eu"}
    assert bind(frozenset(), ["eu"]) == {"eu"}
    assert bind(frozenset({"eu"}), []) == {"eu"}
    assert bind(frozenset(), []) == frozenset()
    with pytest.raises(ClientError) as refused:
        bind(frozenset({"eu"}), ["us"])
    assert (refused.value.status, refused.value.code) == (403, "region_not_allowed")


def test_a_bound_request_reaches_no_backend_outside_nor_one_that_names_no_region() -> None:
    pools = {"p": pool(backend(region="us"), backend(), backend(region="eu"))}
    assert names(find_way([], pools, "openai", frozenset({"eu"}))) == ["p[2]"]
    with pytest.raises(ClientError) as refused:
        find_way([], pools, "openai", frozenset({"mars"}))
    assert (refused.value.status, refused.value.code) == (403, "region_not_allowed")


REGIONS = st.sampled_from(["eu", "us", "apac", None])


@given(
    places=st.lists(REGIONS, min_size=1, max_size=6),
    tenant=st.frozensets(REGIONS.filter(bool)),
    limits=st.lists(REGIONS.filter(bool), unique=True),
)
def test_no_configuration_leads_a_bound_request_outside(
    places: list[str | None], tenant: frozenset[str], limits: list[str]
) -> None:
    pools = {f"p{number}": pool(backend(region=place)) for number, place in enumerate(places)}
    with suppress(ClientError):
        for target in find_way([], pools, "openai", bind(tenant, limits)).targets:
            assert not tenant or target.backend.region in tenant
            assert not limits or target.backend.region in limits


# Backends


def test_backends_come_in_the_order_written_pool_after_pool() -> None:
    two = pool(backend(url="http://a/v1"), backend(url="http://b/v1"))
    way = find_way(choices("far", "near"), {"near": two, "far": pool()}, "openai", frozenset())
    assert names(way) == ["far[0]", "near[0]", "near[1]"]


def test_a_route_without_pools_uses_all_of_them() -> None:
    assert names(find_way([], {"a": pool(), "b": pool()}, "openai", frozenset())) == ["a[0]", "b[0]"]


def test_only_backends_that_speak_the_dialect_are_asked() -> None:
    pools = {"mixed": pool(backend(), backend(url="http://b", dialect="anthropic"))}
    assert names(find_way([], pools, "anthropic", frozenset())) == ["mixed[1]"]


def test_a_dialect_that_nobody_speaks_is_refused() -> None:
    with pytest.raises(ClientError, match="anthropic") as refused:
        find_way([], {"p": pool()}, "anthropic", frozenset())
    assert (refused.value.status, refused.value.code) == (404, "dialect_not_served")


def test_each_key_of_a_backend_is_a_target_of_its_own() -> None:
    way = find_way([], {"p": pool(backend(api_keys=["k1", "k2"]))}, "openai", frozenset())
    assert [(target.name, target.api_key) for target in way.targets] == [("p[0]#0", "k1"), ("p[0]#1", "k2")]


def test_a_backend_is_asked_for_the_name_that_it_has_for_a_model() -> None:
    pools = {"p": pool(backend(models={"llama": "meta/llama-3"}), backend(models=["qwen-*"]), backend())}
    way = find_way([], pools, "openai", frozenset(), asked="llama")
    assert [(target.name, target.model) for target in way.targets] == [("p[0]", "meta/llama-3"), ("p[2]", None)]
    assert way.model is None, "it is the same model under another name"


def test_a_model_that_no_backend_serves_is_not_found() -> None:
    with pytest.raises(ClientError) as refused:
        find_way([], {"p": pool(backend(models=["qwen-*"]))}, "openai", frozenset(), asked="llama")
    assert (refused.value.status, refused.value.code) == (404, "model_not_found")


def test_a_pool_may_be_asked_for_another_model_whose_answers_are_then_its_own() -> None:
    pools = {"local": pool(), "cloud": pool(backend(models={"small": "vendor/small"}))}
    chosen = [PoolChoice(pool="local"), PoolChoice(pool="cloud", model="small")]
    way = find_way(chosen, pools, "openai", frozenset(), asked="llama")
    assert [(option.pool, option.model) for option in way.options] == [("local", "llama"), ("cloud", "small")]
    assert [target.model for target in way.targets] == ["llama", "vendor/small"]


def test_an_alias_of_a_route_is_what_its_backends_are_asked_for() -> None:
    way = find_way([], {"p": pool()}, "openai", frozenset(), asked="default", model="llama")
    assert (way.model, way.targets[0].model) == ("llama", "llama")


# Experiments


def test_a_key_stays_on_its_side_and_the_shares_are_those_written() -> None:
    arms = [Arm.model_validate({"name": name, "weight": w, "pools": ["p"]}) for name, w in (("old", 95), ("new", 5))]
    sides = Counter(pick_arm("routes[0]", arms, f"user {number}").name for number in range(20_000))
    assert 0.04 < sides["new"] / 20_000 < 0.06
    assert all(pick_arm("routes[0]", arms, f"u{n}") is pick_arm("routes[0]", arms, f"u{n}") for n in range(50))


def test_a_growing_share_takes_users_in_and_sends_none_back() -> None:
    def new_side(weight: float) -> set[int]:
        arms = [Arm.model_validate({"name": n, "weight": w, "pools": ["p"]}) for n, w in (("old", 95), ("new", weight))]
        return {user for user in range(2000) if pick_arm("r", arms, str(user)).name == "new"}

    assert new_side(5) < new_side(20) < new_side(95)


# Where on a backend


def test_a_target_carries_the_deadlines_and_the_limit_of_its_pool() -> None:
    slow = Pool(
        backends=(backend(url="https://h:444/v1"),), connect=1, first_byte=2, between_bytes=3, max_connections=4
    )
    [target] = find_way([], {"slow": slow}, "openai", frozenset()).targets
    assert (target.connect_s, target.first_byte_s, target.between_bytes_s, target.max_connections) == (1, 2, 3, 4)
    assert (target.origin.host, target.origin.port, target.origin.tls, target.host) == ("h", 444, True, "h:444")


@pytest.mark.parametrize(
    "url, dialect, asked, sent",
    [
        ("http://h/v1", "openai", "/v1/chat/completions", "/v1/chat/completions"),
        ("http://h/v1", "openai", "/chat/completions", "/v1/chat/completions"),
        ("http://h/v1/", "openai", "/v1/models", "/v1/models"),
        ("http://h", "openai", "/v1/chat/completions", "/chat/completions"),
        ("http://h/openai/v1", "openai", "/v1/models", "/openai/v1/models"),
        ("http://h/v1beta/openai", "openai", "/v1/models", "/v1beta/openai/models"),
        ("http://h/v1", "openai", "/v1", "/v1"),
        ("http://h/v1", "openai", "/v1?after=x", "/v1?after=x"),
        ("http://h/v1", "openai", "/v10/models", "/v1/v10/models"),  # another version is not ours to strip
        ("http://h/v1", "openai", "/v1/files/a%2Fb%20c?q=%41+b&q=/v1/&e=", "/v1/files/a%2Fb%20c?q=%41+b&q=/v1/&e="),
        ("http://h/v1", "openai", "/v1/files?path=../x", "/v1/files?path=../x"),  # a query is not walked
        ("http://h/v1", "openai", "/v1/models/llama..v2", "/v1/models/llama..v2"),
        ("https://h", "anthropic", "/v1/messages?beta=true", "/v1/messages?beta=true"),
        ("https://h/v1", "anthropic", "/v1/messages", "/v1/messages"),
        ("https://h/api/anthropic", "anthropic", "/v1/messages", "/api/anthropic/v1/messages"),
        # Azure's and Ollama's paths say themselves whose API they are, so they begin at the root of any base URL.
        *[
            (
                url,
                "azure",
                "/openai/deployments/a%20b/chat/completions?v=1",
                "/openai/deployments/a%20b/chat/completions?v=1",
            )
            for url in ("https://h", "https://h/openai", "https://h/openai/v1", "https://h/v1")
        ],
        ("https://h/eu/openai/v1", "azure", "/openai/v1/responses", "/eu/openai/v1/responses"),
        ("https://h", "azure", "/v1/chat/completions", "/openai/v1/chat/completions"),  # an OpenAI client at Azure
        ("https://h/openai/v1", "azure", "/models", "/openai/v1/models"),
        ("http://h/v1", "openai", "/openai/deployments/d/chat/completions", "/openai/deployments/d/chat/completions"),
        ("http://h", "ollama", "/api/chat", "/api/chat"),
        ("http://h/api", "ollama", "/api/chat", "/api/chat"),
        ("http://h/v1", "ollama", "/api/chat", "/api/chat"),
        ("http://h", "ollama", "/v1/chat/completions", "/v1/chat/completions"),
        ("http://h/v1", "openai", "/api/chat", "/api/chat"),
        ("http://h/v1", "openai", "/apiary", "/v1/apiary"),
    ],
)
def test_the_path_is_joined_to_the_backends_url_as_its_sdk_would(url: str, dialect: str, asked: str, sent: str) -> None:
    assert only(url, dialect).path(asked) == sent


@pytest.mark.parametrize(
    "path",
    [
        "/v1/../metrics",
        "/v1/..",
        "/../etc",
        "/v1/./x",
        "/v1/%2e%2e/x",
        "/v1/.%2E/x",
        "/v1/a%2f..%2fx",
        "/v1/..%5cx",
        "/v1/..\\x",
        "/v1/..;/x",
        "/openai/../metrics",
        "/openai/deployments/%2e%2e/%2e%2e/metrics",
        "/openai/deployments/a%2f..%2fb/chat/completions",
        "/api/../metrics",
        "v1/models",
        "http://other/v1/models",
        "",
    ],
)
def test_a_path_that_would_leave_the_backends_url_is_refused(path: str) -> None:
    with pytest.raises(ClientError) as refused:
        only("http://h/v1").path(path)
    assert refused.value.status == 400
