"""config/backends.yaml: every kind of server, and what requests to it look like."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from semcache import config
from semcache.backends.models import accepts
from semcache.backends.target import targets_of
from semcache.cli import main
from semcache.config import Backend

FILE = Path(__file__).parent.parent / "config" / "backends.yaml"
POOLS = config.load(FILE, {}).pools


def test_the_file_passes_its_own_check() -> None:
    checked = CliRunner().invoke(main, ["check", str(FILE)])
    assert (checked.exit_code, checked.output.splitlines()[-1]) == (0, f"{FILE}: ok")


@pytest.mark.parametrize(
    "pool, path, url",
    [
        ("vllm", "/v1/chat/completions", "http://127.0.0.1:8000/v1/chat/completions"),
        ("sglang", "/v1/chat/completions", "http://127.0.0.1:30000/v1/chat/completions"),
        ("tgi", "/v1/chat/completions", "http://127.0.0.1:8080/v1/chat/completions"),
        ("llamacpp", "/v1/embeddings", "http://127.0.0.1:8080/v1/embeddings"),
        ("nim", "/v1/chat/completions", "http://127.0.0.1:8002/v1/chat/completions"),
        ("transformers", "/v1/responses", "http://127.0.0.1:8003/v1/responses"),
        ("ollama", "/api/chat", "http://127.0.0.1:11434/api/chat"),
        ("ollama-openai", "/v1/chat/completions", "http://127.0.0.1:11434/v1/chat/completions"),
        ("openai", "/v1/responses", "https://api.openai.com:443/v1/responses"),
        (
            "azure",
            "/openai/deployments/d/chat/completions?api-version=2024-10-21",
            "https://my-resource.openai.azure.com:443/openai/deployments/d/chat/completions?api-version=2024-10-21",
        ),
        ("azure", "/openai/v1/responses", "https://my-resource.openai.azure.com:443/openai/v1/responses"),
        ("anthropic", "/v1/messages", "https://api.anthropic.com:443/v1/messages"),
    ],
)
def test_requests_go_where_each_server_expects_them(pool: str, path: str, url: str) -> None:
    target = next(targets_of(pool, POOLS[pool]))
    scheme = "https" if target.origin.tls else "http"
    assert f"{scheme}://{target.origin.host}:{target.origin.port}{target.path(path)}" == url


def test_every_pool_has_a_route_and_says_how_its_health_is_seen() -> None:
    routed = {choice.pool for route in config.load(FILE, {}).routes for choice in route.pools}
    assert routed == set(POOLS)
    for pool in POOLS.values():
        assert pool.health.path or pool.health.interval == 0


def test_the_one_model_of_tgi_is_asked_for_by_its_name_there() -> None:
    [backend] = POOLS["tgi"].backends
    assert accepts(backend.models, "llama-3.1-8b") == "tgi"


def test_a_deployment_of_azure_may_have_another_name_or_the_same() -> None:
    [backend] = POOLS["azure"].backends
    assert [accepts(backend.models, name) for name in ("gpt-4o", "o4-mini")] == ["my-gpt-4o", "o4-mini"]


def test_what_is_commented_out_is_valid_too() -> None:
    lines = re.findall(r"^# {7}(\w+: .*)", FILE.read_text(), re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        Backend(url="https://h/v1", **YAML(typ="safe", pure=True).load(line))
