"""Identity is decided from whole keys, before the body is read; doubt is a refusal."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from multidict import CIMultiDict
from pydantic import SecretStr

from semcache.access.credentials import Verified, unauthorized
from semcache.access.keys import Grants, VirtualKey
from semcache.admit import ANONYMOUS, REMEMBERED, Admission, KeySetStale
from semcache.config import Limits, TenantSettings
from semcache.errors import ClientError
from semcache.types import Tenant
from tests.fakes import Clock

SHOP = TenantSettings(name="shop", keys=(SecretStr("sk-shop-1"), SecretStr("sk-shop-2")), namespaces=("faq", "blog"))
BANK = TenantSettings(name="bank", keys=(SecretStr("sk-bank"),))


def headers(**values: str) -> CIMultiDict[str]:
    return CIMultiDict({name.replace("_", "-"): value for name, value in values.items()})


@pytest.mark.parametrize(
    "sent", [headers(authorization="Bearer sk-shop-1"), headers(x_api_key="sk-shop-2"), headers(api_key="sk-shop-1")]
)
def test_a_key_of_the_config_is_its_tenant_wherever_the_sdk_puts_it(sent: CIMultiDict[str]) -> None:
    assert Admission([SHOP, BANK]).identify(sent).id == "shop"


@pytest.mark.parametrize(
    "sent",
    [
        headers(),
        headers(authorization="Bearer sk-shop-3"),
        headers(authorization="Bearer SK-SHOP-1"),
        headers(authorization="Bearer sk-shop-1", x_api_key="sk-bank"),
        headers(authorization="Basic sk-shop-1"),
        headers(authorization=""),
    ],
)
def test_doubt_about_identity_is_refused(sent: CIMultiDict[str]) -> None:
    with pytest.raises(ClientError) as caught:
        Admission([SHOP, BANK]).identify(sent)
    assert caught.value.status == 401
    assert "sk-" not in caught.value.message


def test_without_tenants_the_whole_key_is_the_tenant() -> None:
    admission = Admission([])
    common = "sk-proj-" + "a" * 40
    ids = {admission.identify(headers(authorization=f"Bearer {common}{end}")).id for end in ("x", "X", "y", "")}
    assert len(ids) == 4
    assert not any("sk-proj" in tenant for tenant in ids)
    assert admission.identify(headers()) is ANONYMOUS


def test_a_tenant_may_use_his_own_namespaces_and_gets_the_first() -> None:
    admission = Admission([SHOP, BANK])
    shop = admission.identify(headers(authorization="Bearer sk-shop-1"))
    assert admission.namespace(shop, "") == "faq"
    assert admission.namespace(shop, "blog") == "blog"
    with pytest.raises(ClientError, match="namespace") as caught:
        admission.namespace(shop, "secrets")
    assert caught.value.status == 403


# Virtual keys and tokens


class Ring:
    """Keys in memory; what is true of them changes when told."""

    def __init__(self) -> None:
        self.keys: dict[str, VirtualKey] = {}
        self.until = float("inf")
        self.sure_until = float("inf")
        self.on_change: Callable[[], None] = lambda: None
        self.finds = 0

    def add(self, text: str, tenant: str, limits: Limits = Limits(), **grants: tuple[str, ...]) -> None:
        self.keys[text] = VirtualKey(
            id=text[-10:], tenant=tenant, grants=Grants(**grants), limits=limits, created=0, secrets=()
        )

    def find(self, text: str) -> tuple[VirtualKey, float]:
        self.finds += 1
        if text not in self.keys:
            raise unauthorized("the API key is not known here")
        return self.keys[text], self.until

    def get(self, key_id: str) -> VirtualKey | None:
        return next((key for key in self.keys.values() if key.id == key_id), None)


class Door:
    """Believes tokens that it was told, and learns one more when its keys are renewed."""

    def __init__(self) -> None:
        self.believed: dict[str, Verified] = {}
        self.to_learn: dict[str, Verified] = {}
        self.on_change: Callable[[], None] = lambda: None
        self.renewals = 0

    @property
    def keys(self) -> Door:
        return self

    async def renew(self) -> None:
        self.renewals += 1
        self.believed |= self.to_learn

    def verify(self, token: str) -> Verified:
        if token not in self.believed:
            raise KeySetStale("not known") if not self.renewals else unauthorized("not known")
        return self.believed[token]


KEY_1, KEY_2, TOKEN = "sk-sc-0000000001", "sk-sc-0000000002", "eyJ.e30.x"
LIMITED = TenantSettings(
    name="shop", regions=("eu", "ch"), namespaces=("faq",), models=("gpt-*",), limits=Limits(requests_per_minute=60)
)


class House:
    """An Admission with keys and tokens, and the clocks it goes by."""

    def __init__(self, *tenants: TenantSettings) -> None:
        self.ring, self.door = Ring(), Door()
        self.clock, self.monotonic = Clock(), Clock(1000.0)
        self.tenants = tenants or (LIMITED, BANK)
        self.admission = Admission(self.tenants, self.ring, self.door, self.clock, self.monotonic)

    def identify(self, key: str, **more: str) -> Tenant:
        return self.admission.identify(headers(authorization=f"Bearer {key}", **more))

    def refusal(self, key: str, **more: str) -> tuple[int, str | None]:
        with pytest.raises(ClientError) as caught:
            self.identify(key, **more)
        assert key not in caught.value.message
        return caught.value.status, caught.value.code


@pytest.fixture
def house() -> House:
    return House()


def test_a_virtual_key_is_its_tenant_narrowed(house: House) -> None:
    house.ring.add(KEY_1, "shop", regions=("eu",), models=("gpt-4o",))
    tenant = house.identify(KEY_1)
    assert tenant == Tenant("shop", frozenset({"eu"}), ("faq",), key="0000000001", models=("gpt-4o",))
    assert house.admission.identify(headers(x_api_key=KEY_1)) == tenant


def test_keys_of_the_config_still_work_beside_virtual_ones(house: House) -> None:
    assert house.identify("sk-bank").id == "bank"
    assert house.identify("sk-bank").key == ""


def test_who_was_identified_once_is_found_without_asking_again(house: House) -> None:
    house.ring.add(KEY_1, "shop")
    tenants = {id(house.identify(KEY_1)) for _ in range(100)}
    assert len(tenants) == 1 and house.ring.finds == 1


def test_a_change_of_the_keys_counts_from_the_next_request_on(house: House) -> None:
    """Also on a connection that is kept open: who asks is decided with each request."""
    house.ring.add(KEY_1, "shop")
    house.identify(KEY_1)
    del house.ring.keys[KEY_1]
    house.ring.on_change()
    assert house.refusal(KEY_1) == (401, "invalid_api_key")


def test_a_key_is_looked_at_again_when_it_ends(house: House) -> None:
    house.ring.add(KEY_1, "shop")
    house.ring.until = house.clock() + 60
    house.identify(KEY_1)
    house.clock.advance(60)
    del house.ring.keys[KEY_1]
    assert house.refusal(KEY_1)[0] == 401


def test_what_is_remembered_of_a_key_counts_only_while_the_file_is_sure(house: House) -> None:
    house.ring.add(KEY_1, "shop")
    house.ring.sure_until = house.monotonic() + 60
    house.identify(KEY_1)
    house.identify("sk-bank")
    house.monotonic.advance(60)
    finds = house.ring.finds
    house.identify(KEY_1)
    assert house.ring.finds == finds + 1  # who then says no, see test_keys
    assert house.identify("sk-bank").id == "bank"  # which has no need of a file


def test_a_refusal_is_not_remembered(house: House) -> None:
    assert house.refusal(KEY_1)[0] == 401
    house.ring.add(KEY_1, "shop")
    assert house.identify(KEY_1).id == "shop"


def test_a_key_whose_tenant_was_taken_out_of_the_config_is_refused(house: House) -> None:
    house.ring.add(KEY_1, "gone")
    assert house.refusal(KEY_1) == (403, "tenant_unknown")


def test_a_key_of_which_the_tenant_lost_all_regions_is_refused_and_not_freed(house: House) -> None:
    house.ring.add(KEY_1, "shop", regions=("ch",))
    house.identify(KEY_1)
    shrunk = LIMITED.model_copy(update={"regions": ("eu",)})
    house.admission.adopt([shrunk, BANK])
    assert house.refusal(KEY_1) == (403, "key_not_usable")


def test_two_keys_in_one_request_must_be_equal_in_every_right(house: House) -> None:
    house.ring.add(KEY_1, "shop")
    house.ring.add(KEY_2, "shop", regions=("eu",))
    assert house.identify(KEY_1, x_api_key=KEY_1).id == "shop"
    assert house.refusal(KEY_1, x_api_key=KEY_2)[0] == 401
    assert house.refusal(KEY_1, x_api_key="sk-bank")[0] == 401


def test_a_token_is_the_tenant_that_it_names(house: House) -> None:
    house.door.believed[TOKEN] = Verified("shop", house.clock() + 60)
    assert house.identify(TOKEN) == house.admission.named("shop")
    house.clock.advance(60)
    del house.door.believed[TOKEN]
    with pytest.raises(KeySetStale):
        house.identify(TOKEN)


def test_a_token_of_a_tenant_that_is_none_here_is_refused(house: House) -> None:
    house.door.believed[TOKEN] = Verified("nobody", house.clock() + 60)
    assert house.refusal(TOKEN) == (403, "tenant_unknown")


async def test_a_token_whose_key_is_not_known_yet_is_waited_for_once(house: House) -> None:
    house.door.to_learn[TOKEN] = Verified("shop", house.clock() + 60)
    with pytest.raises(KeySetStale) as caught:
        house.identify(TOKEN)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")  # for whoever does not wait
    await house.admission.learn_keys()
    assert house.identify(TOKEN).id == "shop"
    assert house.refusal("eyJ.e30.y") == (401, "invalid_api_key")
    assert house.door.renewals == 1


def test_without_the_sections_keys_and_tokens_are_only_unknown_keys() -> None:
    admission = Admission([SHOP, BANK])
    for key in (KEY_1, TOKEN):
        with pytest.raises(ClientError) as caught:
            admission.identify(headers(authorization=f"Bearer {key}"))
        assert caught.value.status == 401


@pytest.mark.parametrize("key", [KEY_1, TOKEN])
def test_without_tenants_what_looks_like_ours_is_the_callers_own(key: str) -> None:
    admission = Admission([])
    assert admission.identify(headers(authorization=f"Bearer {key}")).id.startswith("key-")
    assert not admission.replaces_keys


def test_our_keys_and_tokens_never_travel_on() -> None:
    """Also where no tenant has a key in the config: callers then hold virtual keys, or tokens."""
    assert House(TenantSettings(name="shop")).admission.replaces_keys
    assert Admission([SHOP]).replaces_keys


def test_limits_are_told_by_subject(house: House) -> None:
    house.ring.add(KEY_1, "shop", Limits(usd_per_day=5))
    house.ring.add(KEY_2, "bank")
    assert house.admission.limits(house.identify(KEY_1)) == (
        ("tenant shop", Limits(requests_per_minute=60)),
        ("key 0000000001", Limits(usd_per_day=5)),
    )
    assert house.admission.limits(house.identify(KEY_2)) == ()
    assert house.admission.limits(ANONYMOUS) == ()
    changed = house.ring.keys[KEY_1].model_copy(update={"limits": Limits(usd_per_day=9)})
    house.ring.keys[KEY_1] = changed
    house.ring.on_change()
    assert house.admission.limits(house.identify(KEY_1))[1] == ("key 0000000001", Limits(usd_per_day=9))


def test_a_reload_counts_from_the_next_request_on(house: House) -> None:
    house.ring.add(KEY_1, "shop")
    house.identify(KEY_1)
    house.identify("sk-bank")
    shop = LIMITED.model_copy(update={"regions": ("ch",), "keys": (SecretStr("sk-shop-9"),)})
    house.admission.adopt([shop])
    assert house.identify(KEY_1).regions == house.identify("sk-shop-9").regions == {"ch"}
    assert house.refusal("sk-bank")[0] == 401


def test_what_is_remembered_is_bounded() -> None:
    admission = Admission([])
    for number in range(REMEMBERED + 50):
        admission.identify(headers(authorization=f"Bearer {number}"))
    assert admission.stats()["remembered"] == REMEMBERED
