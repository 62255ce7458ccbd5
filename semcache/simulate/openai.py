"""OpenAI's older forms: chat completions (written in answers.py), legacy completions, embeddings, models."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from semcache.simulate import answers
from semcache.simulate.answers import DONE, Json, Reply, openai_usage, sse
from semcache.simulate.forms import Fault, Request, Timed
from semcache.simulate.vectors import DIMENSIONS, Vector, count_words, embed

Tokens = list[int]
Text = Annotated[str, Field(min_length=1)]


class Message(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    role: str
    content: str | list[dict[str, Any]] | None = None


class Function(BaseModel):
    name: str
    parameters: dict[str, Any] | None = None


class Tool(BaseModel):
    function: Function | None = None  # vendors' own tools have none


class ChatRequest(Request):
    messages: list[Message] = Field(min_length=1)
    n: int | None = Field(default=None, ge=1, le=128)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    stream_options: dict[str, Any] | None = None
    logprobs: bool | None = None


def read_chat(body: Json) -> Sequence[Json]:
    return [body]


def chat_events(reply: Reply, body: Json) -> Iterator[Timed]:
    return chain(answers.openai_events(reply, body), [(reply.completion_tokens, DONE)])


# Legacy completions


class CompletionRequest(Request):
    prompt: str | list[str] | Tokens | list[Tokens]
    n: int | None = Field(default=None, ge=1, le=128)
    max_tokens: int | None = Field(default=None, ge=1)
    logprobs: int | None = None
    stream_options: dict[str, Any] | None = None
    echo: Literal[False] | None = None  # an answer that repeats its prompt is not simulated


def read_completion(body: Json) -> Sequence[Json]:
    """One chat request a prompt. Token ids are asked as numbers, written out: there is no tokenizer."""
    rest = {name: value for name, value in body.items() if name not in ("prompt", "logprobs", "echo")}
    prompt = body["prompt"]
    prompts = prompt if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else [prompt]
    if prompt == []:
        raise Fault(400, "prompt: at least one is needed", param="prompt")
    texts = [one if isinstance(one, str) else " ".join(map(str, one)) for one in prompts]
    return [{**rest, "messages": [{"role": "user", "content": text}]} for text in texts]


def completion_json(reply: Reply, body: Json) -> bytes:
    choices = [
        {
            "text": choice.text,
            "index": index,
            "logprobs": _logprobs(choice.tokens, 0) if body.get("logprobs") is not None else None,
            "finish_reason": choice.finish,
        }
        for index, choice in enumerate(reply.choices)
    ]
    return orjson.dumps({**_completion_frame(reply), "choices": choices, "usage": openai_usage(reply)})


def completion_events(reply: Reply, body: Json) -> Iterator[Timed]:
    with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
    frame = _completion_frame(reply) | ({"usage": None} if with_usage else {})

    def event(index: int, text: str, logprobs: Json | None = None, finish: str | None = None) -> bytes:
        choice = {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish}
        return sse({**frame, "choices": [choice]})

    written = 0
    offsets = [0] * len(reply.choices)
    for index, token, is_thought in answers.in_turns(reply.choices):
        written += 1
        if is_thought:  # this form has no place for it
            continue
        logprobs = _logprobs([token], offsets[index]) if body.get("logprobs") is not None else None
        offsets[index] += len(token)
        yield written, event(index, token, logprobs)
    for index, choice in enumerate(reply.choices):
        yield written, event(index, "", finish=choice.finish)
    if with_usage:
        yield written, sse({**frame, "choices": [], "usage": openai_usage(reply)})
    yield written, DONE


def _completion_frame(reply: Reply) -> Json:
    return {
        "id": f"cmpl-{reply.id}",
        "object": "text_completion",
        "created": reply.created,
        "model": reply.model,
        "system_fingerprint": reply.fingerprint,
    }


def _logprobs(tokens: Sequence[str], first_offset: int) -> Json:
    values = [-0.01 * len(token) for token in tokens]
    return {
        "tokens": list(tokens),
        "token_logprobs": values,
        "top_logprobs": [{token: value} for token, value in zip(tokens, values, strict=True)],
        "text_offset": list(accumulate(map(len, tokens[:-1]), initial=first_offset)),
    }


# Embeddings


class EmbeddingsRequest(Request):
    input: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=2048)]
        | Annotated[Tokens, Field(min_length=1)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=2048)]
    )
    dimensions: int | None = Field(default=None, ge=1, le=4096)
    encoding_format: Literal["float", "base64"] | None = None


def embeddings_json(body: Json) -> bytes:
    given = body["input"]
    texts = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    vectors = [embed(str(text), body.get("dimensions") or DIMENSIONS) for text in texts]
    rows = [
        {"object": "embedding", "index": index, "embedding": _encode(vector, body.get("encoding_format"))}
        for index, vector in enumerate(vectors)
    ]
    tokens = sum(count_words(str(text)) for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return orjson.dumps({"object": "list", "data": rows, "model": body["model"], "usage": usage})


def _encode(vector: Vector, encoding: str | None) -> object:
    return base64.b64encode(vector.tobytes()).decode() if encoding == "base64" else vector.tolist()


# Models


def models_json(body: Json) -> bytes:
    rows = [{"id": name, "object": "model", "created": 1700000000, "owned_by": "semcache"} for name in body["models"]]
    return orjson.dumps({"object": "list", "data": rows})
