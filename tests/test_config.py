"""The contract of the configuration: what is written is what counts, and complaints say path, value, remedy."""

import pytest

from semcache.config import Config, parse
from semcache.errors import ConfigError


def complaint(text: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, environ)
    return caught.value.message


def test_an_empty_file_is_the_embedded_default() -> None:
    config = parse("")
    assert config == Config.model_validate({})
    assert [route.models for route in config.routes] == [("*",)]
    assert config.cache.store == "sqlite:./var/semcache.db"


@pytest.mark.parametrize(
    ("written", "seconds"), [("30s", 30), ("10m", 600), ("24h", 86400), ("7d", 604800), ("250ms", 0.25), ("90", 90)]
)
def test_durations(written: str, seconds: float) -> None:
    assert parse(f"cache: {{ttl: {written}}}").cache.ttl == seconds


@pytest.mark.parametrize(("written", "size"), [("512KB", 512_000), ("10MB", 10_000_000), ("4096", 4096)])
def test_sizes(written: str, size: int) -> None:
    assert parse(f"server: {{max_body: {written}}}").server.max_body == size


def test_off_is_a_mode_and_no_boolean() -> None:
    assert parse("match: {mode: off}").match.mode == "off"


def test_a_route_inherits_what_it_does_not_name() -> None:
    config = parse(
        """
        match: {threshold: 0.93, neighbours: 7}
        cache: {ttl: 1h}
        routes:
          - {models: ["llama-*"], match: {threshold: 0.97}}
          - {models: ["*"], cache: {ttl: 5m}}
        """
    )
    llama, rest = config.routes
    assert (llama.match.threshold, llama.match.neighbours, llama.cache.ttl) == (0.97, 7, 3600)
    assert (rest.match.threshold, rest.cache.ttl) == (0.93, 300)


def test_secrets_come_from_the_environment_and_stay_out_of_sight() -> None:
    text = "tenants: [{name: shop, keys: ['${SHOP_KEY}', '${OTHER:-spare}']}]"
    tenant = parse(text, {"SHOP_KEY": "sk-1"}).tenants[0]
    assert [key.get_secret_value() for key in tenant.keys] == ["sk-1", "spare"]
    assert "sk-1" not in repr(tenant)


def test_an_environment_value_cannot_add_settings() -> None:
    name = "shop, keys: [x]}], match: {threshold: 0"
    assert parse("tenants: [{name: '${N}', keys: [k]}]", {"N": name}).tenants[0].name == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("match: {threshold: 1.5}", ["match.threshold", "1.5", "less than or equal to 1"]),
        ("match: {thresold: 0.9}", ["match.thresold", "no such setting", "reference.yaml"]),
        ("cache: {ttl: 3 weeks}", ["cache.ttl", "3 weeks", "24h"]),
        ("match: {max_error: 0.6}", ["match.max_error", "0.6", "less than or equal to 0.5"]),
        ("pools: {a: {backends: [{url: 'htp://a'}]}}", ["pools.a.backends[0].url", "htp://a", "http://127.0.0.1"]),
        ("pools: {a: {backends: [{url: 'http://h:99999/v1'}]}}", ["pools.a.backends[0].url", "valid port"]),
        ("pools: {a: {backends: [{url: 'http://me:pw@h/v1'}]}}", ["pools.a.backends[0].url", "api_key"]),
        ("routes: [{pools: [nowhere]}]", ["routes[0].pools", "nowhere", "openai"]),
        ("routes: [{cache: {store: 'memory:'}}]", ["routes[0].cache.store", "global"]),
        ("match: {threshold: 0.9, threshold: 0.8}", ["YAML", "threshold"]),
        ("- a list", ["sections"]),
        ("tenants: [{name: shop, keys: ['${NOT_SET}']}]", ["tenants[0].keys[0]", "NOT_SET", "not set"]),
        ("tenants: [{name: shop, keys: ['${NOT_SET:-}']}]", ["tenants[0].keys", "empty"]),
        ("cache: yes please", ["cache", "yes please"]),
        ("routes: [{cache: 5}]", ["routes[0].cache", "5"]),
        ("routes: {models: [a]}", ["routes"]),
        ("embedder: {sessions: 0}", ["embedder.sessions"]),
        ("embedder: {engine: openai}", ["embedder", "needs a url"]),
        ("cache: {store: 'redis://:hunter2@host'}", ["cache.store", "redis", "sqlite:PATH"]),
        ("pools: {}", ["pools"]),
        ("tenants: [{name: a, keys: [k]}, {name: b, keys: [k]}]", ["tenants[1].keys", "tenants[0]"]),
        ("tenants: [{name: a, keys: [k]}, {name: a, keys: [l]}]", ["tenants[1].name"]),
        ("tenants: [{name: a, keys: [k], limits: {tokens_per_minute: -5}}]", ["tokens_per_minute", "-5"]),
        ("server: {port: 99999}", ["server.port", "99999"]),
        ("match: {threshold: .nan}", ["match.threshold"]),
        ("match: {max_error: 1%}", ["match.max_error", "1%", "0.01 is 1 %"]),
        ("match: {max_error: 0.01, learn: off}", ["match", "max_error", "learn: auto"]),
        ("match: {max_eror: 0.01}", ["match.max_eror", "did you mean max_error?"]),
        ("routes: [{cache: {tttl: 1h}}]", ["routes[0].cache.tttl", "did you mean ttl?"]),
        ("pools: {a: {backend: []}}", ["pools.a.backend", "did you mean backends?"]),
        ("pools: {a: {backends: [{uri: 'http://h'}]}}", ["pools.a.backends[0].uri", "did you mean url?"]),
        ("mach: {}", ["mach", "did you mean match?"]),
        ("match: {guards: numbers}", ["match.guards", "write a list, such as [numbers]"]),
        ("match: {answers_judge: {pool: openai}}", ["match.answers_judge.model", "no default"]),
        ("match: {answers_judge: {pool: nowhere, model: m}}", ["match.answers_judge.pool", "nowhere", "openai"]),
    ],
)
def test_a_complaint_names_path_value_and_remedy(text: str, words: list[str]) -> None:
    message = complaint(text)
    for word in words:
        assert word in message


def test_what_is_wrong_globally_is_said_once() -> None:
    assert len(complaint("match: {threshold: 3}").splitlines()) == 1
    assert len(complaint("{match: {threshold: 3}, routes: [{match: {threshold: 4}}]}").splitlines()) == 1
    assert len(complaint("routes: [{match: {threshold: 4}}]").splitlines()) == 1


def test_a_wrong_secret_is_not_repeated_in_the_complaint() -> None:
    assert "hunter2" not in complaint("pools: {a: {backends: [{url: 'http://a', api_key: [hunter2]}]}}")


def test_a_password_in_a_url_is_not_repeated_either() -> None:
    assert "hunter2" not in complaint("pools: {a: {backends: [{url: 'https://me:hunter2@h/v1'}]}}")
    assert "hunter2" not in complaint("cache: {store: 'redis://:hunter2@host'}")


def test_wrong_types_are_complaints_under_an_option_of_the_command_line_too() -> None:
    for text in ("routes: {models: [a]}", "routes: 7", "cache: 5", "match: x", "server: []"):
        for options in ({"upstream": "http://h/v1"}, {"store": "memory:"}, {"threshold": 0.9}, {"port": 1}):
            with pytest.raises(ConfigError):
                parse(text, {}, options=options)


def test_a_missing_file_is_a_clear_error(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from semcache.config import load

    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load(tmp_path / "nowhere.yaml")


def test_a_judge_of_answers_needs_a_pool_that_is_there() -> None:
    with pytest.raises(ConfigError, match=r'match\.answers_judge\.pool: "none" is not a pool; there are openai'):
        parse("match: {answers_judge: {pool: none, model: m}}", {})


def test_answers_cannot_differ_and_be_alike() -> None:
    with pytest.raises(ConfigError, match="answers_differ is above answers_alike"):
        parse("match: {answers_alike: 0.5}", {})


def test_a_list_whose_only_item_is_wrong_is_one_complaint() -> None:
    with pytest.raises(ConfigError) as caught:
        parse('pools: {local: {backends: [{url: "http://a/v1", max_in_flite: 2}]}}')
    assert len(caught.value.message.splitlines()) == 1
    assert "did you mean max_in_flight?" in caught.value.message
    with pytest.raises(ConfigError, match=r"pools\.local\.backends: .*at least 1"):
        parse("pools: {local: {backends: []}}")
