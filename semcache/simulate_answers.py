"""What the simulated model says: pure functions from a request to an answer, and from an answer to wire bytes.

An answer follows from the request alone. It opens with `[ref Q/C]`, digests of its question and of its context, so
whoever reads an answer, from wherever it came, can tell for which question it was written: `read_reference`.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

Json = dict[str, Any]

FINGERPRINT = "fp_simulated"
DONE = b"data: [DONE]\n\n"
EMBEDDING_DIMENSIONS = 384

_DELIVERY = ("stream", "stream_options", "user", "metadata")  # how an answer is delivered, not what it says
_REFERENCE = re.compile(r"\[ref ([0-9a-f]{12})/([0-9a-f]{12})\]")
_TOKEN = re.compile(r"\s*\S+")
_SENTENCES = (
    "Thank you for your question.",
    "I have looked into this for you.",
    "You will find the details on your account page, under the heading that fits best.",
    "Most customers are done with this in a few minutes, and nothing else needs to be filled in.",
    "If anything looks different on your side, reply here and a colleague will take over.",
    "Please have your order at hand, since the first step asks for it.",
    "You will get a confirmation by e-mail as soon as it is settled.",
    "There is no charge for this, whichever plan you are on.",
    "It can take until the next working day before the change shows everywhere.",
    "Should you change your mind, the same page lets you undo it.",
    "The steps are the same in the app and in the browser.",
    "We keep your settings as they are until you confirm.",
)


class Reference(NamedTuple):
    """For which question, in which context, an answer was written: 12 hex digits each."""

    question: str
    context: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer of a reply. `tool` is (name, arguments as JSON) when the model calls a tool instead of speaking."""

    text: str
    finish: str
    reasoning: str | None = None
    refusal: bool = False
    tool: tuple[str, str] | None = None

    @property
    def tokens(self) -> list[str]:
        return _TOKEN.findall(self.tool[1] if self.tool else self.text)


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer, before it is put on the wire."""

    id: str
    created: int  # unix seconds
    model: str
    choices: tuple[Choice, ...]
    prompt_tokens: int

    @property
    def completion_tokens(self) -> int:
        return sum(len(choice.tokens) for choice in self.choices)


def question_digest(question: str) -> str:
    return hashlib.blake2b(question.strip().encode(errors="replace"), digest_size=6).hexdigest()


def read_reference(text: str) -> Reference | None:
    found = _REFERENCE.search(text)
    return Reference(found[1], found[2]) if found else None


def read_question(body: Json) -> str:
    """The text of the last user turn: a string, or the text parts of a list."""
    for message in reversed(body.get("messages") or []):
        if message.get("role") == "user":
            return _text(message.get("content"))
    return ""


def context_digest(body: Json) -> str:
    """Equal for two requests exactly when nothing but the last user turn and the delivery differ."""
    rest = {name: value for name, value in body.items() if name not in _DELIVERY}
    messages = list(body.get("messages") or [])
    for place in range(len(messages) - 1, -1, -1):
        if messages[place].get("role") == "user":
            messages[place] = None
            break
    rest["messages"] = messages
    return hashlib.blake2b(orjson.dumps(rest, option=orjson.OPT_SORT_KEYS), digest_size=6).hexdigest()


def write_reply(body: Json, orders: Mapping[str, str], number: int, now: float) -> Reply:
    """Answer a chat request. `orders` come from the X-Simulate header: tokens, finish, reasoning, refusal."""
    question = read_question(body)
    context = context_digest(body)
    prompt = sum(len(_TOKEN.findall(_text(m.get("content")))) + 4 for m in body.get("messages") or [])
    prompt += len(_TOKEN.findall(_text(body.get("system"))))
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    choices = tuple(_choice(body, question, context, index, limit, orders) for index in range(body.get("n") or 1))
    return Reply(f"{number:024x}", int(now), str(body.get("model", "simulated")), choices, prompt)


def _choice(
    body: Json, question: str, context: str, index: int, limit: int | None, orders: Mapping[str, str]
) -> Choice:
    tool = _tool_to_call(body, question)
    if tool is not None:
        return Choice("", orders.get("finish", "tool_calls"), tool=tool)
    if "refusal" in orders:
        return Choice("I cannot help with that.", orders.get("finish", "stop"), refusal=True)
    text = f"[ref {question_digest(question)}/{context}] {_prose(question, context, index, orders)}"
    if (body.get("response_format") or {}).get("type") in ("json_object", "json_schema"):
        text = orjson.dumps({"answer": text}).decode()
    finish = "stop"
    tokens = _TOKEN.findall(text)
    if limit is not None and len(tokens) > limit:
        text, finish = "".join(tokens[:limit]), "length"
    reasoning = "The customer asks about one matter; the help pages cover it." if "reasoning" in orders else None
    return Choice(text, orders.get("finish", finish), reasoning)


def _prose(question: str, context: str, index: int, orders: Mapping[str, str]) -> str:
    """Some sentences chosen by question, context and choice; `tokens=N` in the orders sets their length."""
    seed = hashlib.blake2b(f"{index}\0{context}\0{question}".encode(errors="replace"), digest_size=8).digest()
    order = sorted(range(2, len(_SENTENCES)), key=lambda place: seed[place % 8] * (place + 7) % 251)
    spoken = [_SENTENCES[seed[0] % 2], *(_SENTENCES[place] for place in order[: 2 + seed[1] % 3])]
    wanted = int(orders.get("tokens") or 0)
    if not wanted:
        return " ".join(spoken)
    words = " ".join(spoken).split()
    return " ".join(words[place % len(words)] for place in range(wanted))


def _tool_to_call(body: Json, question: str) -> tuple[str, str] | None:
    """The tool that `tool_choice` demands, or the first declared one whose name the question says in words."""
    tools = [tool["function"] for tool in body.get("tools") or [] if "function" in tool]
    chosen = body.get("tool_choice", "auto")
    if not tools or chosen == "none" or (body.get("messages") or [{}])[-1].get("role") == "tool":
        return None
    if isinstance(chosen, dict):
        tools = [tool for tool in tools if tool["name"] == chosen.get("function", {}).get("name")]
    elif chosen != "required":
        said = question.lower()
        tools = [tool for tool in tools if tool["name"].lower().replace("_", " ") in said]
    if not tools:
        return None
    fields = (tools[0].get("parameters") or {}).get("properties") or {}
    values = {name: _value_for(kind, question) for name, kind in fields.items()}
    return tools[0]["name"], orjson.dumps(values).decode()


def _value_for(schema: Json, question: str) -> object:
    numbers = re.findall(r"\d+", question)
    match schema.get("type"):
        case "integer" | "number":
            return int(numbers[0]) if numbers else 0
        case "boolean":
            return True
        case "array":
            return []
        case "object":
            return {}
        case _:
            return (schema.get("enum") or [question])[0]


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(part.get("text", "") for part in content if isinstance(part, dict))
    return ""


# The OpenAI form


def openai_json(reply: Reply, body: Json) -> bytes:
    choices = [
        {
            "index": index,
            "message": _message(choice, reply.id),
            "logprobs": _logprobs(choice.tokens) if body.get("logprobs") else None,
            "finish_reason": choice.finish,
        }
        for index, choice in enumerate(reply.choices)
    ]
    return orjson.dumps(
        {
            "id": f"chatcmpl-{reply.id}",
            "object": "chat.completion",
            "created": reply.created,
            "model": reply.model,
            "choices": choices,
            "usage": _openai_usage(reply),
            "service_tier": "default",
            "system_fingerprint": FINGERPRINT,
        }
    )


def openai_events(reply: Reply, body: Json) -> Iterator[tuple[int, bytes]]:
    """Yield (tokens written so far, event), without the `[DONE]`: the pace of a stream is the pace of its tokens."""
    with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
    frame: Json = {
        "id": f"chatcmpl-{reply.id}",
        "object": "chat.completion.chunk",
        "created": reply.created,
        "model": reply.model,
        "service_tier": "default",
        "system_fingerprint": FINGERPRINT,
    }
    if with_usage:
        frame["usage"] = None

    def event(index: int, delta: Json, logprobs: object = None, finish: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return sse({**frame, "choices": [choice]})

    for index, choice in enumerate(reply.choices):
        opening: Json = {"role": "assistant", "content": None if choice.tool else "", "refusal": None}
        if choice.tool:
            function = {"name": choice.tool[0], "arguments": ""}
            opening["tool_calls"] = [{"index": 0, "id": _call_id(reply.id), "type": "function", "function": function}]
        yield 0, event(index, opening)
        if choice.reasoning:
            yield 0, event(index, {"reasoning_content": choice.reasoning})
    written = 0
    columns = [choice.tokens for choice in reply.choices]
    for row in range(max(map(len, columns), default=0)):
        for index, choice in enumerate(reply.choices):
            if row < len(columns[index]):
                written += 1
                token = columns[index][row]
                logprobs = _logprobs([token]) if body.get("logprobs") else None
                yield written, event(index, _delta(choice, token), logprobs)
    for index, choice in enumerate(reply.choices):
        yield written, event(index, {}, finish=choice.finish)
    if with_usage:
        yield written, sse({**frame, "choices": [], "usage": _openai_usage(reply)})


def _message(choice: Choice, reply_id: str) -> Json:
    spoken = None if choice.tool or choice.refusal else choice.text
    refusal = choice.text if choice.refusal else None
    message: Json = {"role": "assistant", "content": spoken, "refusal": refusal, "annotations": []}
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.tool:
        function = {"name": choice.tool[0], "arguments": choice.tool[1]}
        message["tool_calls"] = [{"id": _call_id(reply_id), "type": "function", "function": function}]
    return message


def _delta(choice: Choice, token: str) -> Json:
    if choice.tool:
        return {"tool_calls": [{"index": 0, "function": {"arguments": token}}]}
    return {"refusal" if choice.refusal else "content": token}


def _call_id(reply_id: str) -> str:
    return f"call_{reply_id}"


def _logprobs(tokens: list[str]) -> Json:
    spoken = [{"token": t, "logprob": -0.01 * len(t), "bytes": list(t.encode()), "top_logprobs": []} for t in tokens]
    return {"content": spoken, "refusal": None}


def _openai_usage(reply: Reply) -> Json:
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "total_tokens": reply.prompt_tokens + reply.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def sse(payload: Json, name: str | None = None) -> bytes:
    head = b"event: " + name.encode() + b"\n" if name else b""
    return head + b"data: " + orjson.dumps(payload) + b"\n\n"


# The Anthropic form


_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


def anthropic_json(reply: Reply) -> bytes:
    choice = reply.choices[0]
    message = _anthropic_message(reply)
    message["content"] = [{"type": "text", "text": choice.text}]
    message["stop_reason"] = _STOP_REASONS.get(choice.finish, choice.finish)
    message["usage"]["output_tokens"] = reply.completion_tokens
    return orjson.dumps(message)


def anthropic_events(reply: Reply) -> Iterator[tuple[int, bytes]]:
    choice = reply.choices[0]

    def event(kind: str, **fields: object) -> bytes:
        return sse({"type": kind, **fields}, kind)

    yield 0, event("message_start", message=_anthropic_message(reply))
    yield 0, event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    yield 0, event("ping")
    written = 0
    for token in choice.tokens:
        written += 1
        yield written, event("content_block_delta", index=0, delta={"type": "text_delta", "text": token})
    yield written, event("content_block_stop", index=0)
    stop = {"stop_reason": _STOP_REASONS.get(choice.finish, choice.finish), "stop_sequence": None}
    yield written, event("message_delta", delta=stop, usage={"output_tokens": written})
    yield written, event("message_stop")


def _anthropic_message(reply: Reply) -> Json:
    return {
        "id": f"msg_{reply.id}",
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": reply.prompt_tokens, "output_tokens": 1},
    }


# Embeddings


def embeddings_json(body: Json) -> bytes:
    """A unit vector per text, the sum of one random direction per word: texts that share words are near."""
    given = body.get("input", "")
    texts = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
    dimensions = body.get("dimensions") or EMBEDDING_DIMENSIONS
    vectors = [_embed(str(text), dimensions) for text in texts]
    rows = [
        {"object": "embedding", "index": index, "embedding": _encode(vector, body.get("encoding_format"))}
        for index, vector in enumerate(vectors)
    ]
    tokens = sum(len(_TOKEN.findall(str(text))) for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return orjson.dumps({"object": "list", "data": rows, "model": body.get("model", "simulated"), "usage": usage})


def _embed(text: str, dimensions: int) -> npt.NDArray[np.float32]:
    words = re.findall(r"\w+", text.lower()) or [""]
    total = np.sum([_direction(word, dimensions) for word in words], axis=0)
    unit: npt.NDArray[np.float32] = (total / np.linalg.norm(total)).astype(np.float32)
    return unit


@lru_cache(maxsize=4096)
def _direction(word: str, dimensions: int) -> npt.NDArray[np.float64]:
    seed = int.from_bytes(hashlib.blake2b(word.encode(errors="replace"), digest_size=8).digest(), "big")
    return np.random.default_rng(seed).standard_normal(dimensions)


def _encode(vector: npt.NDArray[np.float32], encoding: str | None) -> object:
    return base64.b64encode(vector.tobytes()).decode() if encoding == "base64" else vector.tolist()
