"""What embedding dialects share: one item's vector in either encoding, and its share of a batch's tokens."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

MAX_ITEMS = 2048  # OpenAI's limit for one request; a larger batch is looked up and stored as a whole


def as_base64(vector: Any) -> str:
    """A vector as base64 of its little-endian float32 values, the encoding that the OpenAI SDKs ask for."""
    if type(vector) is str:
        return vector
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode("ascii")


def as_floats(vector: Any) -> list[float] | orjson.Fragment:
    """A vector as a JSON array. Decoded from base64 its numbers are those that a client would decode.

    Raises ValueError when it is neither.
    """
    if type(vector) is list:
        return vector
    try:
        values = np.frombuffer(base64.b64decode(vector, validate=True), dtype="<f4")
    except binascii.Error as exc:
        raise ValueError("no base64") from exc
    return orjson.Fragment(orjson.dumps(values.astype(np.float64), option=orjson.OPT_SERIALIZE_NUMPY))


def is_vector(vector: Any) -> bool:
    """Whether this may be an embedding in one of the encodings: an array of numbers, or a text, and not empty."""
    if type(vector) is str:
        return bool(vector)
    return type(vector) is list and bool(vector) and all(type(value) in (float, int) for value in vector)


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """Divide `total` in proportion to the weights, in whole numbers that add up to it (largest remainders first)."""
    whole = sum(weights)
    if not whole:
        weights, whole = [1] * len(weights), len(weights)
    found = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda place: total * weights[place] % whole, reverse=True)
    for place in by_remainder[: total - sum(found)]:
        found[place] += 1
    return found


def weight(item: bytes) -> int:
    """About how many tokens an item has, by its JSON text: the tokens themselves, or the length of the text."""
    return item.count(b",") + 1 if item.startswith(b"[") else len(item)
