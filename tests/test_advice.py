"""What `semcache check` says of settings that are allowed, and may not do what they seem to."""

from __future__ import annotations

import pytest

from semcache.advice import advise
from semcache.config import parse

SHOP = "tenants: [{name: shop, keys: [k]}]"
CLINIC = "tenants: [{name: clinic, keys: [k], regions: [eu]}]"
EU = "pools: {c: {backends: [{url: 'http://h/v1', region: eu}]}}"
REMOTE = "embedder: {engine: openai, url: 'http://e/v1'"
JUDGED = "answers_judge: {pool: far, model: m}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("match: {mode: off, max_error: 0.01}", ["match.max_error", "mode is off"]),
        ("match: {max_error: 0.01, explore: 0}", ["match.explore", "compares one in fifty"]),
        ("match: {max_error: 0.01, explore_usd: 0}", ["match.explore_usd"]),
        ("match: {max_error: 0.01, mode: shadow}", ["match.max_error", "mode shadow", "learns"]),
        ("match: {max_error: 0.001}", ["match.max_error", "3,000 comparisons"]),
        ("match: {max_error: 0.01, judge: 0.9}", ["match.judge", "max_error"]),
        ("match: {max_error: 0.01, threshold: 0.95}", ["match.threshold: 0.95", "not asked"]),
        ("match: {mode: shadow, learn: off}", ["match.learn"]),
        ("match: {judge_weights: w.npz}", ["match.judge_weights", "not read"]),
        ("match: {threshold: 0.7}", ["match.threshold", "more than 1 %"]),
        ("match: {guards: []}", ["match.guards", "enable"]),
        ("cache: {min_uses: 2}", ["cache.min_uses", "sharing is tenant"]),
        ("cache: {sharing: all}", ["cache.sharing: all", "whoever reaches the port"]),
        (
            f"{{cache: {{sharing: all}}, match: {{personal: serve}}, {SHOP}, {EU}}}",
            ["match.personal: serve", "balance"],
        ),
        (
            f"{{match: {{mode: shadow, {JUDGED}}}, pools: {{far: {{backends: [{{url: 'https://h/v1'}}]}}}}}}",
            ["match.answers_judge", "https://h/v1", "api_key"],
        ),
        ("routes: [{models: ['*']}, {models: ['gpt-*']}]", ["routes[1]", "nothing gets here", "routes[0]"]),
        (
            f"{{{SHOP}, pools: {{c: {{backends: [{{url: 'https://h/v1'}}]}}}}}}",
            ["pools.c.backends[0].api_key", "https://h"],
        ),
        (
            f"{{{CLINIC}, pools: {{c: {{backends: [{{url: 'http://h/v1', region: us}}]}}}}}}",
            ["tenants[0].regions", "no backend"],
        ),
        (f"{{{CLINIC}, {EU}, server: {{region: us}}}}", ["tenants[0].regions", "this node refuses"]),
        (
            f"{{{CLINIC}, {EU}, server: {{region: eu}}, cache: {{region: us}}, usage: {{path: 'off'}}}}",
            ["tenants[0].regions", "store is in us"],
        ),
        (
            f"{{{CLINIC}, {EU}, routes: [{{models: [a], regions: [us, eu]}}, {{models: ['*']}}]}}",
            ["server.region", "not set", "wherever"],
        ),
        (f"{{{CLINIC}, {EU}, guardrails: {{hook: {{url: 'http://f/v1'}}}}}}", ["guardrails.hook.region", "not asked"]),
        (f"{{{CLINIC}, {EU}, {REMOTE}}}}}", ["embedder.region", "not set", "http://e/v1"]),
        (
            f"{{{CLINIC}, {EU}, server: {{region: eu}}, {REMOTE}, region: us}}}}",
            ["embedder.region: us", "only equal requests"],
        ),
        (
            f"{{{CLINIC}, pools: {{c: {{backends: [{{url: 'http://h/v1', region: eu}}, {{url: 'http://i/v1'}}]}}}}}}",
            ["pools.c.backends[1].region", "nothing that is bound"],
        ),
        (
            f"{{{CLINIC}, chain: {{secret: a-secret-of-both-ends}}, "
            "pools: {c: {backends: [{url: 'http://h/v1', region: eu, chain: true}]}}}",
            ["pools.c.backends[0].chain", "chain.accept"],
        ),
    ],
)
def test_a_note_names_the_setting_and_what_becomes_of_it(text: str, words: list[str]) -> None:
    (line,) = advise(parse(text))
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    "text",
    [
        "",
        "match: {mode: shadow}",
        "match: {max_error: 0.01}",
        "match: {reranker: shipped, guards: []}",
        f"{{cache: {{sharing: namespace, min_uses: 2}}, {SHOP}, {EU}}}",
        f"{{{CLINIC}, {EU}}}",
        f"{{{CLINIC}, {EU}, server: {{region: eu}}, routes: [{{prompt: {{min: 9}}}}, {{}}]}}",
        f"{{{SHOP}, pools: {{c: {{backends: [{{url: 'https://h/v1', api_keys: [a, b]}}]}}}}}}",
        f"{{match: {{{JUDGED}}}, pools: {{far: {{backends: [{{url: 'https://h/v1', api_key: k}}]}}}}}}",
        f"{{match: {{{JUDGED}}}, pools: {{far: {{backends: [{{url: 'http://127.0.0.1:1/v1'}}]}}}}}}",
    ],
)
def test_what_does_as_it_seems_gets_no_note(text: str) -> None:
    assert advise(parse(text)) == []


def test_a_ledger_beside_a_store_elsewhere_gets_a_note_of_its_own() -> None:
    _, line = advise(parse(f"{{{CLINIC}, {EU}, server: {{region: eu}}, cache: {{region: us}}}}"))
    assert line.startswith("usage.path: auto, beside the store in us")


def test_a_note_names_the_route_where_only_one_has_it() -> None:
    everywhere = "{match: {judge_weights: w}, routes: [{models: [a]}, {models: ['*']}]}"
    assert [line.partition(":")[0] for line in advise(parse(everywhere))] == ["match.judge_weights"]
    one = "routes: [{models: [a]}, {models: ['*'], match: {threshold: 0.5}}]"
    assert [line.partition(":")[0] for line in advise(parse(one))] == ["routes[1].match.threshold"]
