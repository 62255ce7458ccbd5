"""Ollama's own forms: a line of JSON for each piece of an answer, the last one with `done` and what it cost.

An empty prompt, or no messages, loads the model and answers at once: so clients warm a model up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any
from zlib import crc32

import orjson
from pydantic import Field

from semcache.simulate.answers import Choice, Json, Reply
from semcache.simulate.forms import Request, Timed
from semcache.simulate.openai import Message, Text, Tool
from semcache.simulate.vectors import DIMENSIONS, count_words, embed

VERSION = "0.12.6"  # whose form this is
VOCABULARY = 128_256
_SAID_OTHERWISE = ("keep_alive", "format")
_LOADED_AT = "2026-01-01T00:00:00Z"
_BYTES = 2_019_393_189
_DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "simulated",
    "families": ["simulated"],
    "parameter_size": "3.2B",
    "quantization_level": "Q4_K_M",
}


class _Generation(Request):
    options: dict[str, Any] | None = None
    format: str | dict[str, Any] | None = None
    think: bool | str | None = None
    keep_alive: float | int | str | None = None
    logprobs: bool | None = None


class ChatRequest(_Generation):
    messages: list[Message] | None = None
    tools: list[Tool] | None = None


class GenerateRequest(_Generation):
    prompt: str | None = None
    system: str | None = None
    images: list[str] | None = None


class EmbedRequest(Request):
    input: str | Annotated[list[Text], Field(min_length=1)]
    dimensions: int | None = Field(default=None, ge=1, le=4096)


class ShowRequest(Request):
    pass


def read_chat(body: Json) -> Sequence[Json]:
    return [_common(body, body.get("messages") or [])]


def read_generate(body: Json) -> Sequence[Json]:
    asked = [{"role": "user", "content": body["prompt"]}] if body.get("prompt") else []
    spoken = [{"role": "system", "content": body["system"]}] if body.get("system") and asked else []
    return [_common({name: body[name] for name in body if name not in ("prompt", "system")}, [*spoken, *asked])]


def _common(body: Json, messages: Sequence[Json]) -> Json:
    rest = {name: value for name, value in body.items() if name not in _SAID_OTHERWISE and value not in ([], {})}
    limit = (body.get("options") or {}).get("num_predict")
    if isinstance(limit, int) and limit > 0:  # below: no limit
        rest["max_tokens"] = limit
    if isinstance(wanted := body.get("format"), dict):
        rest["response_format"] = {"type": "json_schema", "json_schema": {"schema": wanted}}
    elif wanted:
        rest["response_format"] = {"type": "json_object"}
    if not messages:
        rest["n"] = 0  # nothing is asked: nothing is said
    return {**rest, "messages": messages}


def thinks(body: Json) -> bool:
    return bool(body.get("think"))


Said = Callable[[str, str, Choice | None], Json]  # (text, thought, the choice whose tool is called) -> its fields


def _in_message(text: str, thought: str, calling: Choice | None) -> Json:
    message: Json = {"role": "assistant", "content": text}
    if thought:
        message["thinking"] = thought
    if calling and calling.tool:
        name, arguments = calling.tool
        message["tool_calls"] = [{"function": {"name": name, "arguments": orjson.loads(arguments)}}]
    return {"message": message}


def _in_response(text: str, thought: str, calling: Choice | None) -> Json:
    return {"response": text, **({"thinking": thought} if thought else {})}


def chat_json(reply: Reply, body: Json) -> bytes:
    return _whole(reply, body, _in_message, {})


def chat_events(reply: Reply, body: Json) -> Iterator[Timed]:
    return _lines(reply, body, _in_message, {})


def generate_json(reply: Reply, body: Json) -> bytes:
    return _whole(reply, body, _in_response, _conversation(reply, body))


def generate_events(reply: Reply, body: Json) -> Iterator[Timed]:
    return _lines(reply, body, _in_response, _conversation(reply, body))


def _whole(reply: Reply, body: Json, said: Said, more: Json) -> bytes:
    spoken = said("", "", None)
    logprobs: Json = {}
    for choice in reply.choices:
        spoken = said("" if choice.tool else choice.text, choice.reasoning or "", choice)
        logprobs = _logprobs([] if choice.tool else choice.tokens, body)
    line = {**_frame(reply, reply.completion_tokens), **spoken, **logprobs, "done": True}
    return orjson.dumps({**line, **_cost(reply), **(more if reply.choices else {})})


def _lines(reply: Reply, body: Json, said: Said, more: Json) -> Iterator[Timed]:
    written = 0

    def line(fields: Json) -> Timed:
        return written, orjson.dumps({**_frame(reply, written), **fields}) + b"\n"

    for choice in reply.choices:
        for thought in choice.thoughts:
            written += 1
            yield line({**said("", thought, None), "done": False})
        if choice.tool:  # a call comes whole, once its arguments are
            written += len(choice.tokens)
            yield line({**said("", "", choice), "done": False})
            continue
        for token in choice.tokens:
            written += 1
            yield line({**said(token, "", None), **_logprobs([token], body), "done": False})
    yield line({**said("", "", None), "done": True, **_cost(reply), **(more if reply.choices else {})})


def _frame(reply: Reply, written: int) -> Json:
    at_s = reply.created + reply.pace.ttft_s + written * reply.pace.token_s
    return {"model": reply.model, "created_at": datetime.fromtimestamp(at_s, UTC).isoformat().replace("+00:00", "Z")}


def _cost(reply: Reply) -> Json:
    """What the end of an answer says of it. Times are in nanoseconds, and those of the pace that was set."""
    if not reply.choices:
        return {"done_reason": "load"}
    prompt_ns = round(reply.pace.ttft_s * 1e9)
    answer_ns = round(reply.completion_tokens * reply.pace.token_s * 1e9)
    finish = reply.choices[0].finish
    return {
        "done_reason": "stop" if finish == "tool_calls" else finish,
        "total_duration": prompt_ns + answer_ns,
        "load_duration": 0,
        "prompt_eval_count": reply.prompt_tokens,
        "prompt_eval_duration": prompt_ns,
        "eval_count": reply.completion_tokens,
        "eval_duration": answer_ns,
    }


def _conversation(reply: Reply, body: Json) -> Json:
    """The tokens so far, which a client may send back as `context`: a number for each word."""
    words = [*(body.get("prompt") or "").split(), *(token.strip() for c in reply.choices for token in c.tokens)]
    return {"context": [*(body.get("context") or []), *(crc32(word.encode()) % VOCABULARY for word in words)]}


def _logprobs(tokens: Sequence[str], body: Json) -> Json:
    if not body.get("logprobs"):
        return {}
    return {"logprobs": [{"token": t, "logprob": -0.01 * len(t), "bytes": list(t.encode())} for t in tokens]}


# What is there


def embed_json(body: Json) -> bytes:
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    vectors = [embed(text, body.get("dimensions") or DIMENSIONS).tolist() for text in texts]
    words = sum(count_words(text) for text in texts)
    answer = {"model": body["model"], "embeddings": vectors, "prompt_eval_count": words}
    return orjson.dumps({**answer, "total_duration": 0, "load_duration": 0})


def tags_json(body: Json) -> bytes:
    rows = [
        {
            "name": name,
            "model": name,
            "modified_at": _LOADED_AT,
            "size": _BYTES,
            "digest": hashlib.sha256(name.encode()).hexdigest(),
            "details": _DETAILS,
        }
        for name in body["models"]
    ]
    return orjson.dumps({"models": rows})


def version_json(body: Json) -> bytes:
    return orjson.dumps({"version": VERSION})


def show_json(body: Json) -> bytes:
    return orjson.dumps(
        {
            "modelfile": f"FROM {body['model']}\n",
            "parameters": "",
            "template": "{{ .Prompt }}",
            "details": _DETAILS,
            "model_info": {"general.architecture": "simulated", "simulated.context_length": 131072},
            "capabilities": ["completion", "tools", "thinking"],
            "modified_at": _LOADED_AT,
        }
    )
