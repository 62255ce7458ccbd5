"""Which header fields cross the proxy, in each direction.

The rule: fields that belong to one connection stay on it, fields addressed to semcache end here, and all others pass
in their order, known or not (RFC 9110 section 7.6). A caller can neither remove a field that carries meaning, by
listing it in Connection, nor say who he is or where he came from in a field that only a proxy may write.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Mapping

from multidict import CIMultiDict, MultiMapping

from semcache.backends.target import Target
from semcache.errors import ClientError

NODE = "semcache"  # in Via, where a node has no name of its own
IDENTITY = "Semcache-Identity"  # who asks, signed, between two semcaches; see access/chain.py
MAX_HOPS = 5  # through semcaches: an edge, a region, a site and two to spare
_OTHER_NODES = re.compile(r"semcache(-[0-9a-f]{8})?")

_ONE_CONNECTION = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

_ENDS_HERE = _ONE_CONNECTION | {
    "host",  # the backend has its own
    "content-length",  # written anew from the body that is sent
    "expect",  # our server has answered it
    "cache-control",  # addressed to us, as the cache nearest to the caller
    "semcache-control",
    "semcache-identity",  # ours to write; from a caller it has been read, or is worth nothing
    "cache-status",  # a response field; from a caller it could only mislead
    "forwarded",  # these and X-Forwarded-* say where a request came from, and a caller's word on that is worth nothing
    "x-real-ip",
}

_KEY_FIELDS: Mapping[str, str] = {"anthropic": "x-api-key", "azure": "api-key"}  # else: Authorization: Bearer
_KEYS = frozenset({"authorization", "x-api-key", "api-key"})

# What these say of a body was true of its packed bytes; once it has been read here it is sent on plain.
_OF_THE_PACKED_BODY = frozenset({"content-encoding", "content-md5", "digest", "content-digest", "repr-digest"})

# Listing one of these in Connection asks the proxy to remove what the request means: an attack, not a wish.
_NOT_TO_BE_LISTED = _KEYS | {
    "host",
    "content-length",
    "content-type",
    "content-encoding",
    "transfer-encoding",
    "cookie",
    "via",
    "cache-control",
    "semcache-control",
}

_KEPT_FROM_CLIENTS = _ONE_CONNECTION | {
    "semcache-entry",  # ours to give
    # These two speak for the origin the client talks to, and that is semcache's host, not the vendor's: passed on, they
    # would send clients to a QUIC port we do not have, or bind the operator's host name to https.
    "alt-svc",
    "strict-transport-security",
}


def new_node() -> str:
    """A name for this node in Via (RFC 9110 section 7.6.3: a pseudonym). The workers of one node have the same.

    Of its own, since several semcaches may stand in a row, and only who comes back to the same one turns in a circle.
    """
    return f"{NODE}-{secrets.token_hex(4)}"


def refuse_unforwardable(headers: MultiMapping[str], node: str = NODE) -> None:
    """Refuse what may go to no backend, before anything else is decided: the answer to it may be stored, or under way.

    Raises ClientError: 400 when Connection lists a field that must not go, 508 when the request has been here before,
    or through too many others.
    """
    for value in headers.getall("Connection", ()):
        _refuse_listing(_members(value))
    if via := headers.getall("Via", ()):
        _refuse_loop(via, node)


def forwarded_headers(
    headers: Mapping[str, str],
    target: Target,
    want_recording: bool,
    *,
    pass_key: bool = True,
    is_unpacked: bool = False,
    node: str = NODE,
    identity: Callable[[], str] | None = None,
) -> list[tuple[str, str]]:
    """The fields to send to this backend, in order; framing and Host are left to whoever writes the request.

    `want_recording`: the answer is to be read, so it must come unencoded. `pass_key`: send the caller's own key where
    the backend has none configured; False when that key is one of ours and means nothing elsewhere. `is_unpacked`: the
    body goes on plain, in whatever coding it came. `node`: our name in Via. `identity`: who asks, signed for one use;
    called for backends that are semcaches, too.
    Made anew for every backend that is tried, since one backend's key must not reach another.

    Raises ClientError: 400 when Connection lists a field that must not go, 508 when the request has been here before.
    """
    own_key, own_fields = target.api_key, target.backend.headers
    drops_keys = bool(own_key) or not pass_key
    replaced = {name.lower() for name in own_fields}
    drops_coding = is_unpacked and "Content-Encoding" in headers
    listed: set[str] = set()
    kept = []
    via = []
    for name, value in headers.items():
        field = name.lower()
        if field in _ENDS_HERE:
            if field == "connection":
                listed |= _members(value)
        elif field.startswith("x-forwarded-"):
            pass
        elif field in _KEYS and drops_keys:
            pass
        elif field in replaced:
            pass
        elif field == "accept-encoding" and want_recording:
            pass
        elif field in _OF_THE_PACKED_BODY and drops_coding:
            pass
        else:
            if field == "via":
                via.append(value)
            kept.append((name, value))
    if via:
        _refuse_loop(via, node)
    if listed:
        _refuse_listing(listed)
        kept = [(name, value) for name, value in kept if name.lower() not in listed]
    if want_recording:
        kept.append(("Accept-Encoding", "identity"))
    kept += [(name, value.get_secret_value()) for name, value in own_fields.items()]
    if own_key:
        own_field = _KEY_FIELDS.get(target.backend.dialect)
        kept.append((own_field, own_key) if own_field else ("Authorization", f"Bearer {own_key}"))
    if identity is not None and target.backend.chain:
        kept.append((IDENTITY, identity()))
    kept.append(("Via", f"1.1 {node}"))
    return kept


def returned_headers(headers: Iterable[tuple[str, str]] | Mapping[str, str]) -> CIMultiDict[str]:
    """The fields of an upstream's reply that go on to the client, repeated ones in their order.

    Content-Length and Content-Encoding stay: they describe the bytes that are relayed, which nothing here decodes.
    Whoever sends other bytes has to replace them.
    """
    fields = list(headers.items() if isinstance(headers, Mapping) else headers)
    listed: set[str] = set()
    for name, value in fields:
        if name.lower() == "connection":
            listed |= _members(value)
    dropped = _KEPT_FROM_CLIENTS | listed if listed else _KEPT_FROM_CLIENTS
    return CIMultiDict((name, value) for name, value in fields if name.lower() not in dropped)


def _members(value: str) -> set[str]:
    return {member.strip().lower() for member in value.split(",")}


def _refuse_listing(listed: set[str]) -> None:
    if attacked := listed & _NOT_TO_BE_LISTED:
        raise ClientError(f"Connection may not list {', '.join(sorted(attacked))}", code="bad_connection_header")


def _refuse_loop(via: Iterable[str], node: str) -> None:
    hops = 0
    for member in ",".join(via).split(","):
        for received_by in member.lower().split()[1:2]:  # "1.1 semcache-0a1b2c3d (comment)"
            if received_by == node:
                raise ClientError(
                    "the request has passed through this semcache already: a backend's URL leads back to it",
                    status=508,
                    code="loop",
                )
            hops += _OTHER_NODES.fullmatch(received_by) is not None
    if hops >= MAX_HOPS:
        raise ClientError(
            f"the request has passed through {hops} semcaches already: are the backends of one the others?",
            status=508,
            code="loop",
        )
