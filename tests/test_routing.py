import pytest

from semcache.backends.routing import Target, pick_route, rank
from semcache.config import Backend, Pool, Route
from semcache.errors import ClientError


def pool(*backends: Backend) -> Pool:
    return Pool(backends=backends or (Backend(url="http://gpu:8000/v1"),))


def only(url: str, dialect: str = "openai") -> Target:
    [target] = rank(Route(), {"p": pool(Backend(url=url, dialect=dialect))}, dialect, frozenset())  # type: ignore[arg-type]
    return target


def names(targets: list[Target]) -> list[str]:
    return [target.name for target in targets]


ROUTES = (Route(models=("llama-*", "qwen*")), Route(models=("gpt-4o",)), Route(models=("claude-[34]*",)))


@pytest.mark.parametrize(
    "model, place",
    [("llama-3-8b", 0), ("qwen", 0), ("gpt-4o", 1), ("claude-3-5-haiku", 2)],
)
def test_the_first_route_with_a_matching_glob_is_picked(model: str, place: int) -> None:
    assert pick_route(ROUTES, model) is ROUTES[place]


@pytest.mark.parametrize("model", ["", "LLAMA-3", "gpt-4o-mini", "claude-2", "my-llama-3"])
def test_a_model_that_no_route_names_is_not_found(model: str) -> None:
    with pytest.raises(ClientError) as refused:
        pick_route(ROUTES, model)
    assert (refused.value.status, refused.value.code, refused.value.param) == (404, "model_not_found", "model")


def test_backends_come_in_the_order_written_pool_after_pool() -> None:
    two = pool(Backend(url="http://a/v1"), Backend(url="http://b/v1"))
    assert names(
        rank(Route.model_validate({"pools": ["far", "near"]}), {"near": two, "far": pool()}, "openai", frozenset())
    ) == [
        "far[0]",
        "near[0]",
        "near[1]",
    ]


def test_a_route_without_pools_uses_all_of_them() -> None:
    assert names(rank(Route(), {"a": pool(), "b": pool()}, "openai", frozenset())) == ["a[0]", "b[0]"]


def test_only_backends_that_speak_the_dialect_are_ranked() -> None:
    pools = {"mixed": pool(Backend(url="http://a/v1"), Backend(url="http://b", dialect="anthropic"))}
    assert names(rank(Route(), pools, "anthropic", frozenset())) == ["mixed[1]"]


def test_a_dialect_that_nobody_speaks_is_refused() -> None:
    with pytest.raises(ClientError, match="anthropic") as refused:
        rank(Route(), {"p": pool()}, "anthropic", frozenset())
    assert refused.value.status == 404


def test_a_tenant_bound_to_regions_reaches_no_backend_outside_them() -> None:
    pools = {
        "p": pool(
            Backend(url="http://a/v1", region="us"),
            Backend(url="http://b/v1", region="eu"),
            Backend(url="http://c/v1"),  # nobody knows where
        )
    }
    assert names(rank(Route(), pools, "openai", frozenset({"eu"}))) == ["p[1]"]
    assert len(rank(Route(), pools, "openai", frozenset())) == 3
    with pytest.raises(ClientError, match="asia") as refused:
        rank(Route(), pools, "openai", frozenset({"asia"}))
    assert refused.value.status == 403


def test_a_target_carries_the_deadlines_and_the_limit_of_its_pool() -> None:
    slow = Pool(
        backends=(Backend(url="https://h:444/v1"),), connect=1, first_byte=2, between_bytes=3, max_connections=4
    )
    [target] = rank(Route(), {"slow": slow}, "openai", frozenset())
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
