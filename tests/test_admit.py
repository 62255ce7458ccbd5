"""Identity is decided from whole keys, before the body is read; doubt is a refusal."""

import pytest
from multidict import CIMultiDict
from pydantic import SecretStr

from semcache.admit import ANONYMOUS, Admission
from semcache.config import TenantSettings
from semcache.errors import ClientError

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
