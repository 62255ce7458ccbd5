"""What callers show to say who they are, and how doubt about it is answered. Kept apart from what checks it, so that
a proxy without tokens loads no cryptography."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from multidict import MultiMapping

from semcache.errors import ClientError
from semcache.types import Tenant

CHALLENGE = {"WWW-Authenticate": "Bearer"}


class Verified(NamedTuple):
    """A token that was believed."""

    tenant: str  # as the token has it: whether there is such a tenant is not known here
    until: float  # unix seconds


class KeySetStale(ClientError):
    """A token names a key that is not known yet: await `Admission.learn_keys`, then ask again.

    A 401 for whoever does not, since who asks is in doubt.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, status=401, code="invalid_api_key", headers=CHALLENGE)


class Reader(Protocol):
    """How a proxy learns from a request's fields that another semcache speaks for its caller."""

    def identify(self, headers: MultiMapping[str], now_unix: float) -> Tenant | None:
        """None: nobody does. Raises ClientError: 401 for a line not to be believed, 403 for what it may not do here."""


class NoReader:
    """Lines are not believed, and not looked at: a caller is who his key says."""

    def identify(self, headers: MultiMapping[str], now_unix: float) -> Tenant | None:
        return None


# What to tell another semcache of who asks: of a tenant, in a namespace, bound to regions (a route may have said more
# than its tenant). It is made anew for each attempt. None: nothing is told.
Introduce = Callable[[Tenant, str, frozenset[str]], Callable[[], str] | None]


def introduce_nobody(tenant: Tenant, namespace: str, regions: frozenset[str]) -> None:
    return None


def unauthorized(message: str) -> ClientError:
    return ClientError(message, status=401, code="invalid_api_key", headers=CHALLENGE)


def looks_like_token(text: str) -> bool:
    """Whether it is in the form of a signed JWT: three parts, the first of which is a JSON object in base64."""
    return text.startswith("eyJ") and text.count(".") == 2
