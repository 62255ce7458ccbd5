"""The residency load test: a short run of it, and that it would see what it looks for."""

from __future__ import annotations

from random import Random

from loadtests import residency
from loadtests.residency_world import Backends, Findings, make_request, name_of, regions_of
from semcache.backends.fetch import UpstreamRequest
from semcache.backends.target import targets_of
from semcache.config import Backend, Pool


def test_a_short_run_meets_every_kind_of_end_and_nothing_crosses() -> None:
    report = residency.run(requests=1500, seed=3)
    assert report["crossings"] == 0, report["examples"]
    assert report["requests"] >= 1500
    for end in ("miss", "coalesced", "bypass", "refused: region_not_allowed"):
        assert report["ends"][end], report["ends"]
    assert report["failovers"] and report["hedges"] and report["log lines read"] and report["texts embedded"]


async def test_a_request_that_reaches_a_backend_outside_is_a_crossing() -> None:
    findings = Findings()
    backends = Backends(findings)
    tenant = next(tenant for tenant in range(50) if regions_of(tenant, 0) == {"eu"})
    chance = Random(1)
    asked = next(it for it in iter(lambda: make_request(chance, tenant, 0), None) if it.allowed == {"eu"})
    request = UpstreamRequest("POST", "/v1/chat/completions", asked.headers, asked.body)
    for place, crossings in (("eu", 0), ("us", 1)):
        (target,) = targets_of("pool", Pool(backends=(Backend(url=f"http://{place}-1.example/v1", region=place),)))
        await backends.send(target, request)
        assert sum(findings.crossings.values()) == crossings


def test_an_answer_of_another_tenant_or_region_may_not_be_given() -> None:
    tenant = next(tenant for tenant in range(50) if regions_of(tenant, 0) == {"eu"})
    asked = make_request(Random(1), tenant, 0)._replace(route="plain", allowed=frozenset({"eu"}))
    assert asked.may_get(name_of(tenant), "eu") == (True, True)
    assert asked.may_get(name_of(tenant), "nowhere") == (True, False)
    assert asked.may_get(name_of(tenant + 7), "eu") == (False, True)
    assert asked._replace(route="team").may_get(name_of(tenant + 7), "eu") == (True, True)  # one namespace
    assert asked._replace(route="team").may_get(name_of(tenant + 1), "eu") == (False, True)
    assert asked._replace(route="all").may_get(name_of(tenant + 1), "us") == (True, False)
