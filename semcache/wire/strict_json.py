"""Reading JSON so that two parsers cannot disagree about it, and writing it so that equal values give equal bytes.

Whatever decides a cache key must mean to us what it means to the upstream. So what parsers are known to read in
different ways is refused (duplicate keys, NaN, a byte order mark, lone surrogates, other encodings than UTF-8), and a
number is kept as it was written: 1, 1.0, 1e0 and integers past 64 bits are all different and never rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from json.decoder import JSONDecoder
from typing import Any, NoReturn

import orjson

from semcache.errors import ClientError

MAX_DEPTH = 200  # orjson writes 254 levels; requests of real clients, tool schemas included, have under 30
_SPARE = 254 - MAX_DEPTH
_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"
# Counted in strings too, where text of a million tokens, the longest that a model reads, stays below both. 32 MB of
# `[],` would hold the interpreter for seconds, on whatever thread it is read, and take a gigabyte.
MAX_CONTAINERS = 500_000
MAX_COMMAS = 2_000_000
MAX_NUMBER = 256  # characters; a double has at most 25, and no parameter of an LLM is longer

COMPACT_CHARS = 4096  # texts longer than this may be read the quick way

Tree = dict[str, Any]  # of dict, list, str, Number, bool and None


class Number:
    """A number as it was written. No str, so that a check for text never takes a number for one."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        if len(text) > MAX_NUMBER:
            raise _Refused(f"a number has {len(text)} characters, more than {MAX_NUMBER}")
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Number) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Number({self.text})"


class _Refused(ValueError):
    """Valid for Python's json, not for us."""


def parse(body: bytes) -> Tree:
    """Read a request body. Raises ClientError (400) for anything but one strict JSON object."""
    try:
        tree = decode(body.decode("utf-8"))
    except UnicodeDecodeError as exc:
        raise _refusal(f"the body is not valid UTF-8 at byte {exc.start}") from exc
    except (ValueError, RecursionError) as exc:
        raise _refusal(_reason(exc)) from exc
    if type(tree) is not dict:
        raise _refusal(f"expected an object at the top level, got {kind(tree)}")
    return tree


def decode(text: str) -> Any:
    """Read one strict JSON value of any kind. Raises ValueError or RecursionError."""
    containers = text.count("{") + text.count("[")
    if containers > MAX_CONTAINERS or text.count(",") > MAX_COMMAS:
        raise _Refused("it has too many members")
    if len(text) > COMPACT_CHARS and '": ' not in text[:256]:
        # Looking for keys that come twice takes a call for each object, most of the time of a long conversation. So a
        # text without spaces, as SDKs write theirs, is read without looking and written again: one that comes out as
        # it went in has lost no member. Any other is read with care.
        tree = _TRUSTING.decode(text)
        with suppress(TypeError):
            if _write_deeply(tree) == b"[" * _SPARE + text.encode() + b"]" * _SPARE:
                return tree
    tree = _DECODER.decode(text)
    # Brackets inside strings count here too, so this only ever sends us to the exact check without need.
    if containers > MAX_DEPTH or "\\ud" in text or "\\uD" in text:
        _check_depth_and_text(tree)
    return tree


def canonical(tree: Any) -> bytes:
    """Write a tree with sorted keys and without spaces: equal bytes if and only if the values are equal.

    The bytes hold no raw newline. An `orjson.Fragment` in the tree is written as it is.
    """
    return orjson.dumps(tree, _write_number, orjson.OPT_SORT_KEYS)


def encode(tree: Any) -> bytes:
    """Write a tree without spaces, keys in their order."""
    return orjson.dumps(tree, _write_number)


def spans(text: str, start: int = 0) -> Mapping[str, tuple[int, int]]:
    """Return where the value of each member lies in the object that begins at `start`, white space before it allowed.

    For changing one member and leaving every other character as it was. A key that is doubled counts as its last.
    Raises ValueError when there is no object.
    """
    found: dict[str, tuple[int, int]] = {}
    at = _skip(text, start)
    if text[at : at + 1] != "{":
        raise ValueError(f"no object at {at}")
    at = _skip(text, at + 1)
    while text[at : at + 1] == '"':
        key, at = _DECODER.raw_decode(text, at)
        at = _skip(text, at)
        if text[at : at + 1] != ":":
            raise ValueError(f"no colon at {at}")
        begin = _skip(text, at + 1)
        _, end = _DECODER.raw_decode(text, begin)
        found[key] = (begin, end)
        at = _skip(text, end)
        if text[at : at + 1] != ",":
            break
        at = _skip(text, at + 1)
    if text[at : at + 1] != "}":
        raise ValueError(f"no end of the object at {at}")
    return found


def kind(value: object) -> str:
    """Name what a tree holds here, for error messages."""
    return _KINDS.get(type(value), "something else")


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\n", "\r", "\t"):
        at += 1
    return at


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _Refused("a key appears twice in one object")
    return members


def _no_constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is not JSON")


_DECODER = JSONDecoder(parse_int=Number, parse_float=Number, parse_constant=_no_constant, object_pairs_hook=_once)
_TRUSTING = JSONDecoder(parse_int=Number, parse_float=Number, parse_constant=_no_constant)  # of keys that come twice


def _write_deeply(tree: Any) -> bytes:
    """Write a tree inside so many lists that the writer's own limit of 254 levels is ours for the tree.

    Raises TypeError for a tree that is nested too deep, and for half of a surrogate pair: that can only come from an
    escape, and has no UTF-8.
    """
    for _ in range(_SPARE):
        tree = [tree]
    return encode(tree)


def _check_depth_and_text(tree: Any) -> None:
    try:
        _write_deeply(tree)
    except TypeError as exc:
        is_deep = "ecursion" in str(exc)
        raise _Refused(_TOO_DEEP if is_deep else "a string holds half of a surrogate pair") from exc


def _write_number(value: object) -> orjson.Fragment:
    if type(value) is Number:
        return orjson.Fragment(value.text)
    raise TypeError(f"{type(value).__name__} is not JSON")


def _reason(exc: Exception) -> str:
    if isinstance(exc, RecursionError):
        return _TOO_DEEP
    return str(exc)  # of the json module: what was expected and where, never the text itself


def _refusal(reason: str) -> ClientError:
    return ClientError(f"The request body is not the JSON this endpoint takes: {reason}.", code="invalid_json")


_KINDS: Mapping[type, str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    Number: "a number",
    bool: "a boolean",
    type(None): "null",
}
