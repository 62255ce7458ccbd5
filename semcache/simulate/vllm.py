"""What vLLM tells of a prompt without answering it: its tokens, by which a router guesses what a KV cache holds."""

from __future__ import annotations

from zlib import crc32

import orjson
from pydantic import Field

from semcache.simulate.answers import Json, tokens_of
from semcache.simulate.forms import Request
from semcache.simulate.kv_cache import tokens_of_prompt
from semcache.simulate.openai import Message

MAX_MODEL_TOKENS = 131_072


class TokenizeRequest(Request):
    prompt: str | None = None
    messages: list[Message] | None = Field(default=None, min_length=1)


def tokenize_json(body: Json) -> bytes:
    """Of POST /tokenize: of a prompt, or of a chat as the model reads it."""
    ids = _ids(body)
    return orjson.dumps({"count": len(ids), "max_model_len": MAX_MODEL_TOKENS, "tokens": ids, "token_strs": None})


def render_json(body: Json) -> bytes:
    """Of POST /v1/chat/completions/render: the request as it is handed to the engine."""
    sampling = {name: body[name] for name in ("temperature", "top_p", "max_tokens", "stop", "seed") if name in body}
    return orjson.dumps({"model": body["model"], "token_ids": _ids(body), "sampling_params": sampling})


def _ids(body: Json) -> list[int]:
    """One number a token: there is no vocabulary, so it follows from the token's text."""
    tokens = tokens_of(body["prompt"]) if isinstance(body.get("prompt"), str) else tokens_of_prompt(body)
    return [crc32(token.encode(errors="replace")) & 0x7FFFFFFF for token in tokens]
