"""Virtual keys: their text, what is kept of them, and what a tenant becomes in the hands of one.

The text is `sk-sc-`, then the key's public id, a secret of 256 random bits, and a checksum, all in base62: a program
that looks for leaked secrets needs one pattern, and a typo is told from a wrong key without asking anybody. The form
follows GitHub's tokens ("Behind GitHub's new authentication token formats", 2021).

What is kept is an HMAC-SHA-256 of the text under the pepper. Passwords need a slow hash because they can be guessed;
256 random bits cannot, so one fast pass is enough (NIST SP 800-63B section 5.1.2.2 asks for 112 bits; OWASP ASVS
2.6.2), and a slow one would only be a way to keep us busy. The pepper makes a stolen file worthless for forging keys.
"""

from __future__ import annotations

import hmac
import re
import secrets
import string
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import NamedTuple
from zlib import crc32

from pydantic import Field

from semcache.config import Limits, TenantSettings
from semcache.errors import ClientError
from semcache.settings.primitives import Section
from semcache.types import Tenant

PREFIX = "sk-sc-"
ID_CHARS = 10  # 59 bits: two keys with one id are refused by the file, and will not be seen
SECRET_CHARS = 43  # 62**43 is the first power beyond 2**256
CHECK_CHARS = 6  # of a CRC-32
KEY_CHARS = len(PREFIX) + ID_CHARS + SECRET_CHARS + CHECK_CHARS

_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_FORM = re.compile(rf"{PREFIX}([0-9A-Za-z]{{{ID_CHARS}}})[0-9A-Za-z]{{{SECRET_CHARS + CHECK_CHARS}}}")

Digest = Callable[[str], str]  # of a key's text


class Malformed(ValueError):
    """It begins like a key, and is none: cut, or mistyped. The text is not in the message."""


# The text


def make_id() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(ID_CHARS))


def make_text(key_id: str) -> str:
    body = f"{PREFIX}{key_id}{_base62(secrets.randbits(256), SECRET_CHARS)}"
    return body + _checksum(body)


def read_id(text: str) -> str:
    """The public id in a key's text. Raises Malformed."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise Malformed(f"it must have {KEY_CHARS} letters and digits, {PREFIX} included, and has {len(text)}")
    if _checksum(text[:-CHECK_CHARS]) != text[-CHECK_CHARS:]:
        raise Malformed("its checksum is wrong, so a character of it is")
    return found[1]


def _checksum(body: str) -> str:
    return _base62(crc32(body.encode()), CHECK_CHARS)


def _base62(number: int, chars: int) -> str:
    digits = []
    for _ in range(chars):
        number, digit = divmod(number, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))


def digest_under(pepper: bytes) -> Digest:
    """How a key is kept."""

    def digest(text: str) -> str:
        return hmac.digest(pepper, b"semcache virtual key\0" + text.encode("utf-8", "surrogateescape"), sha256).hex()

    return digest


# What is kept


class Secret(Section):
    """One text that a key may be shown with; while one is being rotated there are two."""

    digest: str = Field(repr=False)
    until: float | None = None  # unix seconds; null: as long as the key


class Grants(Section):
    """What of its tenant a key may use. Empty: all that the tenant may."""

    models: tuple[str, ...] = ()  # globs
    routes: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()


class VirtualKey(Section):
    id: str
    tenant: str
    name: str = ""  # for the operator's eyes
    grants: Grants = Grants()
    limits: Limits = Limits()
    created: float  # unix seconds, as all times here
    expires: float | None = None
    revoked: float | None = None
    secrets: tuple[Secret, ...] = Field(repr=False)  # the newest last

    def secret_of(self, digest: str) -> Secret | None:
        """The one with this digest, found in a time that tells nothing of those there are."""
        found = [secret for secret in self.secrets if hmac.compare_digest(secret.digest, digest)]
        return found[0] if found else None

    def is_usable(self, now: float) -> bool:
        return self.revoked is None and (self.expires is None or now < self.expires)


# What a tenant is with a key in hand


class Misfit(NamedTuple):
    """A grant that leaves nothing of what its tenant may."""

    grant: str  # "regions"
    asked: tuple[str, ...]
    allowed: tuple[str, ...]

    def __str__(self) -> str:
        one = ", ".join(self.asked)
        return f"{self.grant}: of {one} the tenant may use none; it may use {', '.join(self.allowed) or 'none at all'}"


def misfits(grants: Grants, tenant: TenantSettings) -> list[Misfit]:
    """The grants that name something the tenant may not use, each with what is wrong: reasons to refuse a new key."""
    found = []
    for name in Grants.model_fields:
        asked, allowed = getattr(grants, name), getattr(tenant, name)
        outside = tuple(one for one in asked if not _narrow(name, (one,), allowed))
        if outside:
            found.append(Misfit(name, outside, allowed))
    return found


def tenant_with(key: VirtualKey, tenant: TenantSettings) -> Tenant:
    """The tenant, narrowed to what this key may use of it. Raises ClientError 403.

    Both may have changed since the key was made. A grant of which nothing is left must not become an empty one, since
    that would mean everything.
    """
    narrowed: dict[str, tuple[str, ...]] = {}
    for name in Grants.model_fields:
        asked, allowed = getattr(key.grants, name), getattr(tenant, name)
        narrowed[name] = _narrow(name, asked, allowed) if asked else allowed
        if asked and not narrowed[name]:
            raise ClientError(
                f"this API key is bound to {name} that its tenant may not use any more",
                status=403,
                code="key_not_usable",
            )
    return Tenant(
        tenant.name,
        frozenset(narrowed["regions"]),
        narrowed["namespaces"],
        key=key.id,
        models=narrowed["models"],
        routes=narrowed["routes"],
    )


def _narrow(name: str, asked: Sequence[str], allowed: Sequence[str]) -> tuple[str, ...]:
    """What is left of a grant. An empty `allowed` allows all, but namespaces: a tenant has those that are named."""
    if name == "models":
        return meet(asked, allowed)
    if not allowed and name != "namespaces":
        return tuple(asked)
    return tuple(one for one in asked if one in allowed)


def meet(globs: Iterable[str], others: Sequence[str]) -> tuple[str, ...]:
    """Globs that take what both lists take, or less: of two that overlap without one holding the other, nothing."""
    if not others:
        return tuple(dict.fromkeys(globs))
    both = [(one, other) for one in globs for other in others]
    return tuple(
        dict.fromkeys(
            one if _lies_within(one, other) else other
            for one, other in both
            if _lies_within(one, other) or _lies_within(other, one)
        )
    )


def _lies_within(glob: str, other: str) -> bool:
    """Whether all that one glob takes is taken by another. May say no where it is so, never yes where it is not.

    Where the other's only wildcard is *, reading the first as a plain text is enough: a * in it can only have been
    taken by a *, which takes whatever that one may stand for.
    """
    if glob == other or other == "*":
        return True
    if any(char in "*?[" for char in glob) and any(char in "?[" for char in glob + other):
        return False
    return fnmatchcase(glob, other)
