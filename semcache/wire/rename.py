"""Asking for a model under another name: the one it has at a backend, or the one that a route puts in its place.

The rule: nothing but the name changes. A request is not written again but spliced, so every number, space and escape,
and the order of all members, arrive as the caller wrote them. No name is added where a request has none: model servers
then take the one they have, Azure takes it from the path, and a stored prompt of the Responses API has its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterable, Iterator
from json.decoder import JSONDecoder
from urllib.parse import quote

from semcache.errors import ClientError
from semcache.wire.form_model import rename_in_form, rename_in_upload
from semcache.wire.strict_json import MAX_COMMAS, MAX_CONTAINERS

_DEPLOYMENT = re.compile(r"(?<=\A/openai/deployments/)[^/]+(?=/)")
_IN_QUERY = re.compile(r"(?:(?<=\Amodel=)|(?<=&model=))[^&#]*")


Body = bytes | AsyncIterable[bytes]


def rename(target: str, content_type: str, body: Body, model: str) -> tuple[str, Body]:
    """A request's path, query and body that ask for `model`, wherever it was named: there, in JSON, or in a form.

    A body that streams is of another length then. Raises ClientError as `rename_model` does.
    """
    if content_type.lower().startswith("multipart/form-data"):
        if isinstance(body, bytes):
            body = rename_in_form(content_type, body, model)
        else:
            body = rename_in_upload(content_type, body, model)
    elif isinstance(body, bytes) and body:
        body = rename_model(body, model)
    return rename_path(target, model), body


def rename_model(body: bytes, model: str) -> bytes:
    """A JSON request of any dialect that asks for `model`; one that names none comes back as it is.

    `Model` and a name that is written twice are replaced as well: a server in Go would heed the first, and which of two
    is heeded differs from parser to parser. Raises ClientError (400) for what is no JSON object, since nobody can tell
    which model it would reach.
    """
    try:
        text = body.decode()
        places = list(_models_in(text))
    except (ValueError, RecursionError) as exc:
        raise ClientError(
            "The request body is not a JSON object, so its model cannot be replaced.", code="invalid_json"
        ) from exc
    if not places:
        return body
    name = json.dumps(model)  # in ASCII, which every parser reads alike
    pieces = []
    at = 0
    for begin, end in places:
        pieces += [text[at:begin], name]
        at = end
    return "".join([*pieces, text[at:]]).encode()


def rename_path(target: str, model: str) -> str:
    """Path and query with the model in the place of Azure's deployment, and of the query's `model`, as a WebSocket has
    it; those that name none come back as they are."""
    name = quote(model, safe="")
    path, mark, query = target.partition("?")
    return f"{_DEPLOYMENT.sub(lambda _: name, path)}{mark}{_IN_QUERY.sub(lambda _: name, query)}"


def _models_in(text: str) -> Iterator[tuple[int, int]]:
    """Where the values of the outermost object's members of that name lie. Raises ValueError, or RecursionError."""
    # As in strict_json: a body made of brackets alone would hold the event loop for seconds.
    if text.count("{") + text.count("[") > MAX_CONTAINERS or text.count(",") > MAX_COMMAS:
        raise ValueError("too many members")
    at = _skip(text, 0)
    if text[at : at + 1] != "{":
        raise ValueError(f"no object at {at}")
    at = _skip(text, at + 1)
    has_more = text[at : at + 1] != "}"
    while has_more:
        if text[at : at + 1] != '"':
            raise ValueError(f"no key at {at}")
        key, at = _SKIMMING.raw_decode(text, at)
        at = _skip(text, at)
        if text[at : at + 1] != ":":
            raise ValueError(f"no colon at {at}")
        begin = _skip(text, at + 1)
        _, end = _SKIMMING.raw_decode(text, begin)
        if key.lower() == "model":
            yield begin, end
        at = _skip(text, end)
        has_more = text[at : at + 1] == ","
        if has_more:
            at = _skip(text, at + 1)
    if text[at : at + 1] != "}" or _skip(text, at + 1) != len(text):
        raise ValueError(f"no end of the object at {at}")


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\n", "\r", "\t"):
        at += 1
    return at


def _number(text: str) -> None:
    """Not read: Python refuses integers of more than 4,300 digits, and no number matters here."""


_SKIMMING = JSONDecoder(parse_int=_number, parse_float=_number, parse_constant=_number)
