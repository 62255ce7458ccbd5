from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jwt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from multidict import CIMultiDict

from semcache import config
from semcache.access import chain
from semcache.access.chain import Signer, Verifier
from semcache.access.credentials import NoReader
from semcache.config import Chain
from semcache.errors import ClientError
from semcache.planning import Planner
from semcache.types import Tenant
from semcache.wire import find_address

SECRET = "a secret of both ends"
NOW = 1_800_000_000.0
SHOP = Tenant("shop", frozenset({"eu", "us"}), ("faq", "docs"), key="k1")


def settings(secret: str = SECRET, *, accept: bool = True) -> Chain:
    return Chain(secret=secret, accept=accept)  # type: ignore[arg-type]


def line(tenant: Tenant = SHOP, namespace: str = "faq", *, at: float = NOW, secret: str = SECRET) -> str:
    return Signer(settings(secret), "semcache-0a1b2c3d").sign(tenant, namespace, at)


def knowing(*tenants: Tenant) -> Verifier:
    by_name: dict[str, Tenant] = {tenant.id: tenant for tenant in tenants}
    return Verifier(settings(), by_name.get)


def refusal(act: Callable[[], object]) -> tuple[int, str | None]:
    with pytest.raises(ClientError) as refused:
        act()
    return refused.value.status, refused.value.code


def forged(**changed: Any) -> str:
    """A line of somebody who has the secret, and says something else than a Signer would."""
    header = {"typ": changed.pop("typ_header", chain.TYPE)}
    key = changed.pop("signed_with", chain._key(settings()))
    algorithm = changed.pop("algorithm", "HS256")
    claims = jwt.decode(line(), options={"verify_signature": False}) | changed
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, key, algorithm, headers=header)


def test_who_asks_arrives_as_the_edge_knows_him() -> None:
    assert knowing().read(line(), NOW + 1) == Tenant("shop", frozenset({"eu", "us"}), ("faq",), key="k1")
    assert knowing().read(line(Tenant("key-0123"), ""), NOW) == Tenant("key-0123")


def test_a_line_counts_once() -> None:
    verifier, written = knowing(), line()
    verifier.read(written, NOW)
    assert refusal(lambda: verifier.read(written, NOW + 1)) == (401, "invalid_identity")
    assert verifier.read(line(), NOW + 1).id == "shop"
    assert (verifier.believed, verifier.refused) == (2, 1)


def test_a_line_is_forgotten_only_when_it_counts_no_more() -> None:
    verifier = knowing()
    fast = line(at=NOW + chain.LEEWAY_S)  # of a clock that is ahead
    verifier.read(fast, NOW)
    for second in range(200):
        assert refusal(partial(verifier.read, fast, NOW + second)) == (401, "invalid_identity")
    verifier.read(line(at=NOW + 300), NOW + 300)
    assert verifier.stats() == {"believed": 2, "refused": 200, "remembered": 1}


@pytest.mark.parametrize(
    "late_s, counts", [(-31, False), (-29, True), (0, True), (89, True), (91, False), (1e6, False)]
)
def test_a_line_counts_for_a_minute_and_what_clocks_may_differ(late_s: float, counts: bool) -> None:
    if counts:
        assert knowing().read(line(), NOW + late_s).id == "shop"
    else:
        assert refusal(lambda: knowing().read(line(), NOW + late_s)) == (401, "invalid_identity")


FORGERIES: dict[str, Callable[[], str]] = {
    "another secret": lambda: line(secret="another secret of 24 ch."),
    "the secret as it is written": lambda: forged(signed_with=SECRET.encode().ljust(32)),
    "no signature": lambda: forged(signed_with=None, algorithm="none"),
    "another algorithm": lambda: forged(algorithm="HS512"),
    "another kind of token": lambda: forged(typ_header="JWT"),
    "another audience": lambda: forged(aud="semcache-admin"),
    "no audience": lambda: forged(aud=None),
    "no end": lambda: forged(exp=None),
    "no number": lambda: forged(jti=None),
    "no tenant": lambda: forged(sub=None),
    "a tenant without a name": lambda: forged(sub=""),
    "a tenant that is a number": lambda: forged(sub=7),
    "regions that are a text": lambda: forged(regions="eu"),
    "no regions": lambda: forged(regions=None),
    "a long life": lambda: forged(exp=NOW + 86_400),
    "an endless life": lambda: forged(exp=1e999),
    "not a number": lambda: forged(iat=float("nan")),
    "nothing": lambda: "",
    "not a token": lambda: "shop",
    "a token cut short": lambda: line()[:-5],
    "too much": lambda: "x" * 9000,
}


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")  # of the forger
@pytest.mark.parametrize("forgery", FORGERIES)
def test_what_is_not_of_an_edge_is_a_401(forgery: str) -> None:
    verifier = knowing()
    assert refusal(lambda: verifier.read(FORGERIES[forgery](), NOW)) == (401, "invalid_identity")
    assert verifier.stats() == {"believed": 0, "refused": 1, "remembered": 0}


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda raw: raw.decode("utf-8", "surrogateescape")))
def test_no_text_is_more_than_a_401(text: str) -> None:
    assert refusal(lambda: knowing().read(text, NOW)) == (401, "invalid_identity")


@given(place=st.integers(0, 330), put=st.sampled_from("AQgw_-.9"))
def test_a_line_with_one_letter_changed_is_a_401(place: int, put: str) -> None:
    written = line()
    changed = written[: place % len(written)] + put + written[place % len(written) + 1 :]
    # The last letter of 32 bytes in base64 has two bits that nothing reads.
    assume(changed != written and place % len(written) != len(written) - 1)
    assert refusal(lambda: knowing().read(changed, NOW)) == (401, "invalid_identity")


def test_regions_of_both_ends_hold() -> None:
    def met(there: set[str], here: set[str]) -> frozenset[str]:
        return knowing(Tenant("shop", frozenset(here))).read(line(Tenant("shop", frozenset(there)), ""), NOW).regions

    assert met({"eu", "us"}, {"us", "asia"}) == {"us"}
    assert met({"eu"}, set()) == {"eu"}
    assert met(set(), {"us"}) == {"us"}
    assert met(set(), set()) == set()
    assert refusal(lambda: met({"eu"}, {"us"})) == (403, "region_not_allowed")


def test_what_our_own_configuration_allows_him_holds_too() -> None:
    own = Tenant("shop", namespaces=("faq",), models=("small-*",), routes=("cheap",))
    found = knowing(own).read(line(), NOW)
    assert (found.namespaces, found.models, found.routes, found.key) == (("faq",), ("small-*",), ("cheap",), "k1")
    assert knowing(own).read(line(namespace=""), NOW).namespaces == ("faq",)
    assert refusal(lambda: knowing(own).read(line(namespace="docs"), NOW)) == (403, "namespace_not_allowed")


def test_a_refused_line_can_be_sent_again() -> None:
    verifier = knowing(Tenant("shop", frozenset({"asia"})))
    written = line(namespace="")
    for _ in range(2):
        assert refusal(lambda: verifier.read(written, NOW)) == (403, "region_not_allowed")


def test_the_field_is_read_where_lines_are_accepted_and_only_there() -> None:
    fields = CIMultiDict({"semcache-identity": line(), "Authorization": "Bearer edge"})
    assert NoReader().identify(fields, NOW) is None
    found = knowing().identify(fields, NOW)
    assert found is not None and found.id == "shop"
    assert knowing().identify(CIMultiDict({"Authorization": "Bearer own"}), NOW) is None


def test_two_lines_are_none() -> None:
    fields = CIMultiDict([("Semcache-Identity", line()), ("Semcache-Identity", line())])
    assert refusal(lambda: knowing().identify(fields, NOW)) == (401, "invalid_identity")


def test_a_plan_is_for_those_alone_who_may_have_it() -> None:
    """The same key may be bound here, and by the semcache in front of us not."""
    planner = Planner(config.build({}, "settings"), "words")
    address = find_address("/v1/chat/completions")
    assert address is not None
    body = b'{"model": "large", "messages": [{"role": "user", "content": "Hello?"}]}'
    planner.plan(address, {}, body, Tenant("shop", key="a1"), "")
    for bound in (Tenant("shop", key="a1", models=("small",)), Tenant("shop", key="a1", routes=("other",))):
        with pytest.raises(ClientError):
            planner.plan(address, {}, body, bound, "")
