"""Reading a request, as far as every dialect does it alike: its model, whether it streams, what its context holds."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

import orjson

from semcache.errors import ClientError
from semcache.wire import strict_json
from semcache.wire.dialect import Address
from semcache.wire.strict_json import Tree


def model_of(tree: Tree, address: Address) -> str:
    """The model a request names: in its path, where the body's word counts for nothing, else in its body.

    Raises ClientError.
    """
    model = address.model or tree.get("model")
    if type(model) is not str or not model:
        raise invalid("model", "a non-empty string", tree)
    return model


def is_stream(tree: Tree, default: bool = False) -> bool:
    """Whether a request asks for a stream. Raises ClientError."""
    stream = tree.get("stream")
    if stream is None:
        return default
    if type(stream) is bool:
        return stream
    raise invalid("stream", "a boolean", tree)


def named_headers(headers: Mapping[str, str], names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Those of the headers that have these names (lower-case), sorted; a field that comes twice counts twice."""
    for name in names:
        if name in headers:
            break
    else:
        return ()
    # Not headers[name]: a header may come twice, and both go upstream.
    lowered = [(name.lower(), value) for name, value in headers.items()]
    return tuple(sorted(pair for pair in lowered if pair[0] in names))


def context_of(tree: Tree, headers: tuple[tuple[str, str], ...]) -> bytes:
    """The bytes that must be equal: what is left of the request, and its headers that count.

    Canonical JSON has no raw newline, so the two cannot run together.
    """
    context = strict_json.canonical(tree)
    return context + b"\n" + orjson.dumps(headers) if headers else context


def by_digest(text: str) -> orjson.Fragment:
    """What stands in a context for a text too long to be kept there. No JSON value is written like it."""
    return orjson.Fragment(b"#" + blake2b(text.encode(), digest_size=32).hexdigest().encode())


def invalid(name: str, expected: str, tree: Tree) -> ClientError:
    """The complaint about one member, in the words of OpenAI's API."""
    if name not in tree:
        return ClientError(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    got = strict_json.kind(tree[name])
    return ClientError(f"Invalid '{name}': expected {expected}, got {got}.", param=name, code="invalid_type")
