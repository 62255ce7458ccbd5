"""The configuration files that come with semcache: complete, true and loadable."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from semcache import config
from semcache.config import Config
from semcache.errors import ConfigError
from semcache.usage import load_prices

FOLDER = Path(__file__).parent.parent / "config"
REFERENCE = FOLDER / "reference.yaml"
EXAMPLE = re.compile(r"^#:", re.MULTILINE)  # lines that show what has no default
ENVIRONMENT = {"SEMCACHE_ADMIN_TOKEN": "t", "SHOP_KEY": "k1", "WEB_KEY": "k2", "BATCH_KEY": "k3"} | {
    "SEMCACHE_KEY_PEPPER": "sixteen letters!",
    "SEMCACHE_CHAIN_SECRET": "sixteen letters!",
}


def reference_with_examples() -> str:
    """The file with its examples switched on; an example replaces the empty default above it."""
    text = REFERENCE.read_text().replace("\ntenants: []", "\n#")
    for name in ("keys", "jwt", "chain", "audit"):
        text = text.replace(f"\n{name}: null", "\n#")
    for name in ("tls", "answers_judge", "hook"):
        text = text.replace(f"\n  {name}: null", "\n  #")
    text = text.replace("\n        price: null", "\n        #")
    return EXAMPLE.sub("", text)


def read(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


# Where each model of config.py is written out in full.
PLACES: dict[str, tuple[type[BaseModel], tuple[str | int, ...]]] = {
    "": (config.Config, ()),
    "server": (config.Server, ("server",)),
    "tls": (config.Tls, ("server", "tls")),
    "cache": (config.Cache, ("cache",)),
    "embedder": (config.Embedder, ("embedder",)),
    "match": (config.Match, ("match",)),
    "answers_judge": (config.AnswersJudge, ("match", "answers_judge")),
    "pool": (config.Pool, ("pools", "openai")),
    "backend": (config.Backend, ("pools", "openai", "backends", 0)),
    "price": (config.Price, ("pools", "openai", "backends", 0, "price")),
    "health": (config.Health, ("pools", "openai", "health")),
    "queue": (config.Queue, ("pools", "openai", "queue")),
    "prefix": (config.Prefix, ("pools", "openai", "prefix")),
    "overflow": (config.Overflow, ("pools", "openai", "overflow")),
    "route": (config.Route, ("routes", 0)),
    "prompt": (config.PromptSize, ("routes", 0, "prompt")),
    "retry": (config.Retry, ("routes", 0, "retry")),
    "hedge": (config.Hedge, ("routes", 2, "hedge")),
    "arm": (config.Arm, ("routes", 2, "split", 0)),
    "choice": (config.PoolChoice, ("routes", 2, "split", 1, "pools", 0)),
    "guardrails": (config.Guardrails, ("guardrails",)),
    "hook": (config.Hook, ("guardrails", "hook")),
    "tenant": (config.TenantSettings, ("tenants", 0)),
    "limits": (config.Limits, ("tenants", 0, "limits")),
    "keys": (config.Keys, ("keys",)),
    "jwt": (config.Jwt, ("jwt",)),
    "chain": (config.Chain, ("chain",)),
    "usage": (config.Usage, ("usage",)),
    "audit": (config.Audit, ("audit",)),
}


def models_of(model: type[BaseModel], seen: set[type[BaseModel]] | None = None) -> set[type[BaseModel]]:
    """A model and all that its fields are made of."""
    seen = set() if seen is None else seen
    if model not in seen:
        seen.add(model)
        for field in model.model_fields.values():
            for part in _types_in(field.annotation):
                models_of(part, seen)
    return seen


def _types_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _types_in(argument)


def test_every_model_of_the_settings_has_its_place_in_the_reference() -> None:
    assert models_of(Config) == {model for model, _ in PLACES.values()}


@pytest.mark.parametrize("name", PLACES)
def test_the_reference_has_every_setting_and_no_other(name: str) -> None:
    model, path = PLACES[name]
    place = read(reference_with_examples())
    for step in path:
        place = place[step]
    assert set(place) == set(model.model_fields)


def test_the_reference_gives_what_no_file_gives() -> None:
    assert config.load(REFERENCE, {}) == config.load(None, {})


def test_each_default_is_written_as_it_is() -> None:
    written = config.load(REFERENCE, {})
    for section in ("server", "cache", "embedder", "match", "guardrails", "usage"):
        default = getattr(Config(), section)
        for field in type(default).model_fields:
            assert getattr(getattr(written, section), field) == getattr(default, field), f"{section}.{field}"
    assert written.pools == config.DEFAULT_POOLS


def test_the_examples_in_the_reference_load_too() -> None:
    settings = config.parse(reference_with_examples(), ENVIRONMENT)
    assert settings.tenants[0].limits == config.Limits()
    assert settings.tenants[0].regions == () and settings.tenants[0].namespaces == ()
    assert settings.routes[1].match.threshold == 0.95
    assert settings.routes[1].match.neighbours == settings.match.neighbours


def test_every_setting_in_the_reference_has_its_reason_beside_it() -> None:
    bare = [
        line
        for line in reference_with_examples().splitlines()
        if re.match(r"\s*(- )?\w+:", line)
        and "#" not in line
        and not re.fullmatch(r"\w+:|  openai:|  anthropic:", line)
    ]
    # Sections and lists whose own lines say more.
    assert [line.strip() for line in bare] == ["backends:"]


def settings_files() -> list[Path]:
    others = {"prices.yaml", "prometheus.yaml"}
    return [path for path in sorted(FOLDER.glob("*.yaml")) if path.name not in others]


def test_the_files_of_the_design_are_there() -> None:
    assert {"semcache.yaml", "reference.yaml", "cluster.yaml"} <= {path.name for path in settings_files()}


@pytest.mark.parametrize("path", settings_files(), ids=lambda path: path.name)
def test_every_settings_file_loads(path: Path) -> None:
    settings = config.load(path, ENVIRONMENT)
    names = {choice.pool for route in settings.routes for choice in route.pools}
    assert names <= set(settings.pools)


@pytest.mark.parametrize("name", ["semcache.yaml", "reference.yaml", "docker.yaml"])
def test_a_file_to_start_from_needs_no_environment(name: str) -> None:
    config.load(FOLDER / name, {})


def test_a_file_that_opens_admin_calls_to_a_network_asks_for_the_token() -> None:
    with pytest.raises(ConfigError, match="SEMCACHE_ADMIN_TOKEN"):
        config.load(FOLDER / "cluster.yaml", {name: "x" for name in ENVIRONMENT if name != "SEMCACHE_ADMIN_TOKEN"})


def test_the_container_takes_its_settings_from_the_environment() -> None:
    environ = {"SEMCACHE_UPSTREAM": "http://vllm:8000/v1", "SEMCACHE_THRESHOLD": "0.93", "SEMCACHE_ADMIN_TOKEN": "t"}
    settings = config.load(FOLDER / "docker.yaml", environ)
    assert settings.pools["upstream"].backends[0].url == "http://vllm:8000/v1"
    assert settings.match.threshold == 0.93
    assert settings.server.admin_token.get_secret_value() == "t"


def test_no_settings_file_holds_a_secret() -> None:
    for path in settings_files():
        for key, value in _leaves(read(path.read_text())):
            if key in ("api_key", "api_keys", "admin_token", "keys", "pepper", "secret"):
                assert not value or re.fullmatch(r"\$\{\w+(:-)?\}", value), f"{path.name}: {key}"


def _leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from _leaves(value, name)
    elif isinstance(tree, list):
        for value in tree:
            yield from _leaves(value, key)
    else:
        yield key, tree


def test_the_price_list_in_the_folder_is_the_one_that_is_installed() -> None:
    assert load_prices(FOLDER / "prices.yaml").prices == load_prices().prices


CONTRACT = """
server:   {host: 127.0.0.1, port: 8080, admin_host: 127.0.0.1, admin_port: 8081,
           admin_token: "${SEMCACHE_ADMIN_TOKEN:-}", workers: 1, max_body: 32MB, drain: 600s}
cache:
  store: sqlite:./var/semcache.db
  ttl: 24h
  grace: 10m
  max_entries: 1000000
  sharing: tenant
  replay: instant
embedder:
  model: all-MiniLM-L6-v2
  engine: onnx
  url: null
  sessions: auto
  deadline: 250ms
match:
  mode: serve
  threshold: 0.90
  max_error: null
  guards: [numbers, negation, entities, units, code, language]
  reranker: null
pools:
  local:
    backends: [{url: "http://127.0.0.1:8000/v1", api_key: "${LOCAL_KEY:-}", weight: 1, region: eu, dialect: openai}]
    balance: least-load
  cloud:
    backends: [{url: "https://api.openai.com/v1", region: eu}]
routes:
  - {models: ["llama-*"], pools: [local, cloud], match: {threshold: 0.95}}
  - {models: ["*"], pools: [cloud]}
tenants:
  - {name: shop, keys: ["${SHOP_KEY}"], regions: [eu], namespaces: [shop-faq],
     limits: {requests_per_minute: 600, usd_per_day: 50}}
audit: {path: ./var/audit.jsonl}
"""


def test_the_contract_loads() -> None:
    """The file that was promised to operators; it may grow, it never breaks."""
    settings = config.parse(CONTRACT, ENVIRONMENT)
    assert settings.server.max_body == 32_000_000 and settings.server.drain == 600
    assert settings.cache.ttl == 86_400 and settings.cache.grace == 600 and settings.embedder.deadline == 0.25
    assert [route.match.threshold for route in settings.routes] == [0.95, 0.90]
    assert settings.tenants[0].limits.usd_per_day == 50
