"""Reading a request, as far as dialects do it alike: model, messages, how it is to be delivered, headers."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from semcache.errors import ClientError
from semcache.wire import strict_json
from semcache.wire.dialect import Address
from semcache.wire.strict_json import Number, Tree

_INSTRUCTING = frozenset({"system", "developer"})
_TOOL_ROLES = frozenset({"tool", "function"})


def model_of(tree: Tree, address: Address) -> str:
    """The model a request names: in its path, where the body's word counts for nothing, else in its body.

    Raises ClientError.
    """
    if other := other_model_in(tree):
        raise ClientError(
            f"Invalid '{other}': some servers would read it as 'model'.", param=other, code="unknown_parameter"
        )
    model = address.model or tree.get("model")
    if type(model) is not str or not model:
        raise invalid("model", "a non-empty string", tree)
    return model


def other_model_in(tree: Tree) -> str | None:
    """A name that is `model` in other letters. A server in Go, as Ollama is, takes one for the other, and the last
    counts: its caller would be let in, routed and billed for one model, and answered by another."""
    for name in tree:
        if len(name) == 5 and name != "model" and name.lower() == "model":
            return name
    return None


def is_stream(tree: Tree, default: bool = False) -> bool:
    """Whether a request asks for a stream. Raises ClientError."""
    stream = tree.get("stream")
    if stream is None:
        return default
    if type(stream) is bool:
        return stream
    raise invalid("stream", "a boolean", tree)


def temperature_in(settings: Tree) -> float | None:
    """None where it is left to the model, or is no number: judging that is for the upstream."""
    temperature = settings.get("temperature")
    return float(temperature.text) if type(temperature) is Number else None


def end_user_of(tree: Tree) -> str | None:
    """The caller's own user, under the name that OpenAI's API has for it or the one that it had before."""
    user = tree.get("user") or tree.get("safety_identifier")
    return user if type(user) is str else None


def messages_of(tree: Tree) -> list[Tree]:
    """A conversation of at least one message, which stays the one in the tree. Raises ClientError."""
    messages = objects_in(tree, "messages", "an array of objects")
    if not messages:
        raise ClientError("Invalid 'messages': the array is empty.", param="messages", code="empty_array")
    return messages


def objects_in(tree: Tree, name: str, expected: str) -> list[Tree]:
    """An array of objects, which stays the one in the tree. Raises ClientError, with what was `expected` instead."""
    items = tree.get(name)
    if type(items) is not list:
        raise invalid(name, expected, tree)
    for number, item in enumerate(items):
        if type(item) is not dict:
            raise invalid(f"{name}[{number}]", "an object", {f"{name}[{number}]": item})
    return items


def asking_message(messages: list[Tree]) -> Tree | None:
    """The last user message, where only instructions come after it. What else does has the question answered already,
    or begun to."""
    for message in reversed(messages):
        role = message.get("role")
        if role == "user":
            return message
        if type(role) is not str or role not in _INSTRUCTING:
            return None
    return None


def in_tool_loop(messages: list[Tree]) -> bool:
    """Tool results anywhere, or a tool called since the user last spoke."""
    since_user = True
    for message in reversed(messages):
        role = message.get("role")
        if type(role) is str and role in _TOOL_ROLES:
            return True
        if role == "user":
            since_user = False
        if since_user and (message.get("tool_calls") or message.get("function_call")):
            return True
    return False


def named_headers(headers: Mapping[str, str], names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Those of the headers that have these names (lower-case), sorted; a field that comes twice counts twice."""
    for name in names:  # no comprehension: this is done for known requests too, and there mostly finds nothing
        if name in headers:
            break
    else:
        return ()
    found = [name for name in names if name in headers]
    get_all = getattr(headers, "getall", None)  # not headers[name]: a header may come twice, and both go upstream
    if get_all is None:
        return tuple(sorted((name, headers[name]) for name in found))
    return tuple(sorted((name, value) for name in found for value in get_all(name)))


def context_of(tree: Tree, headers: tuple[tuple[str, str], ...]) -> bytes:
    """The bytes that must be equal: what is left of the request, and its headers that count. Not its model: that is the
    scope's (cache/key.py), which knows better where a route has another one asked.

    Canonical JSON has no raw newline, so the two cannot run together.
    """
    context = strict_json.canonical({name: value for name, value in tree.items() if name != "model"})
    return context + b"\n" + orjson.dumps(headers) if headers else context


def invalid(name: str, expected: str, tree: Tree) -> ClientError:
    """The complaint about one member, in the words of OpenAI's API. Its vendor's form is for the dialect to give."""
    if name not in tree:
        return ClientError(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    got = strict_json.kind(tree[name])
    return ClientError(f"Invalid '{name}': expected {expected}, got {got}.", param=name, code="invalid_type")
