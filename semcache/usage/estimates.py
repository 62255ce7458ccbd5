"""Counting tokens where an upstream tells none, or its stream was cut: a bill comes all the same.

Every vendor has its own tokenizer, and few give it away, so this is none of theirs: it cuts a text as they do before
they look into their vocabulary (words, runs of digits and of signs, line ends), and takes a piece for as many tokens as
such pieces have on average. Pictures and sound are not counted. `loadtests/bench_estimates.py` holds it against a real
tokenizer; docs/tenants.md tells the error.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import orjson

from semcache.types import Ask, Usage

COUNTED_CHARS = 200_000  # of a text; the rest is taken to be like it
INLINE_BYTES = 8 * 1024  # to count in: half a millisecond. What is longer is counted on a thread
PER_MESSAGE = 4  # tokens around each: who speaks, where it ends

# Endings such as 's, words, up to three digits, signs, ends of lines with what indents the next, wide gaps. A single
# space is part of the word behind it.
_PIECE = re.compile(r"'(?:[sdmt]|ll|ve|re)\b|[^\W\d_]+|\d{1,3}|[^\w\s]+|_+|\n\s*|[ \t]{2,}")
_WHOLE_WORD = 8  # letters: words up to this are mostly one token, longer ones are put together of about six letters
_WORD_PART = 6
_SIGNS = 3  # of one kind of bracket, say, in a token

# Bytes in UTF-8 to a token, beyond ASCII: Latin with accents, other alphabets, Chinese and its neighbours.
_ACCENTED, _ALPHABETS, _IDEOGRAPHS = 3.4, 5.2, 3.4

# Where the words of messages stand, in every dialect. What else is in a request (ids, settings) is not read by a model.
_TEXTS = frozenset(
    "content text prompt input system instructions suffix question refusal thinking reasoning reasoning_content "
    "reasoning_text summary arguments name description output response partial_json delta".split()
)
_ASKED = ("messages", "prompt", "input", "system", "instructions", "tools", "functions", "suffix", "response_format")
_ANSWERED = ("choices", "content", "message", "response", "output", "text", "delta")


def count_tokens(text: str) -> int:
    """About how many tokens a text has. 0.06 ms a thousand characters."""
    counted = text if len(text) <= COUNTED_CHARS else text[:COUNTED_CHARS]
    tokens = sum(map(_tokens_in, _PIECE.findall(counted)))
    return tokens if counted is text else round(tokens * len(text) / COUNTED_CHARS)


def estimate(ask: Ask, answer: str | Sequence[bytes]) -> Usage:
    """The usage of a request and of what came of its answer: the text, or its parts as they were recorded."""
    completion = count_tokens(answer) if isinstance(answer, str) else sum(map(_tokens_of_part, answer))
    return Usage(prompt_tokens(ask), completion, is_estimated=True)


async def estimate_aside(ask: Ask, answer: str | Sequence[bytes]) -> Usage:
    """The same, on a thread where it would hold up the event loop."""
    size = len(answer) if isinstance(answer, str) else sum(map(len, answer))
    if len(ask.body) + size <= INLINE_BYTES:
        return estimate(ask, answer)
    return await asyncio.to_thread(estimate, ask, answer)


async def complete(told: Usage | None, ask: Ask, parts: Sequence[bytes], was_cut: bool) -> Usage:
    """What a fetch will be billed: what the upstream told, and where that is nothing or not all, an estimate.

    `was_cut`: the end did not come, by the upstream or by a client that left. What was told until then is the prompt's
    part at most, for a vendor says last what it has generated.
    """
    if told is not None and not was_cut:
        return told
    guess = await estimate_aside(ask, parts)
    if told is None:
        return guess
    return replace(told, completion_tokens=max(told.completion_tokens, guess.completion_tokens), is_estimated=True)


def prompt_tokens(ask: Ask) -> int:
    """Of a request, as it was received. Of what is no JSON, by its question, where it has one."""
    try:
        body = orjson.loads(ask.body)
    except orjson.JSONDecodeError:
        return count_tokens(ask.question or "")
    if not isinstance(body, dict):
        return 0
    messages = body.get("messages", body.get("input"))
    around = PER_MESSAGE * len(messages) if isinstance(messages, list) else 0
    return around + sum(count_tokens(text) for name in _ASKED if name in body for text in _texts(body[name]))


def expected_tokens(ask: Ask) -> int:
    """What to reserve for a request before it is answered: a quarter of its bytes, for speed."""
    return len(ask.body) // 4 + 1


def _tokens_of_part(part: bytes) -> int:
    """Of a body, or of an event of a stream."""
    try:
        value = orjson.loads(part)
    except orjson.JSONDecodeError:  # of a body that was cut
        return count_tokens(part.decode(errors="replace"))
    if not isinstance(value, dict):
        return 0
    kind = value.get("type")
    if isinstance(kind, str) and ("." in kind or kind.startswith(("content_block_", "message_"))):
        # A stream that says again at the end what it has said in pieces: only the pieces count.
        if not kind.endswith(("delta", "content_block_start")) or kind == "message_delta":
            return 0
        return sum(map(count_tokens, _texts(value.get("delta"))))
    return sum(count_tokens(text) for name in _ANSWERED if name in value for text in _texts(value[name]))


def _texts(value: Any, depth: int = 0) -> Iterator[str]:
    if isinstance(value, str):
        if not value.startswith("data:"):  # a picture
            yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, depth + 1)
    elif isinstance(value, dict) and depth < 32:
        if value.get("type") in ("image", "image_url", "input_image", "input_audio", "audio", "file", "document"):
            return
        for name, item in value.items():
            if isinstance(item, (dict, list)):
                yield from _texts(item, depth + 1)
            elif name in _TEXTS and isinstance(item, str):
                yield from _texts(item)


def _tokens_in(piece: str) -> int:
    length = len(piece)
    if piece.isascii():
        if piece[0].isalpha():
            return 1 if length <= _WHOLE_WORD else -(-length // _WORD_PART)
        return 1 if length <= _SIGNS or piece[0] in "\n\t " else -(-length // _SIGNS)
    size = len(piece.encode(errors="replace"))
    per_token = _IDEOGRAPHS if piece[0] >= "\u2e80" else _ACCENTED if size < 1.5 * length else _ALPHABETS
    return max(1, round(size / per_token))
