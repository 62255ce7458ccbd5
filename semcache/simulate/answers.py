"""What the simulated model says, and its first form on the wire, that of chat completions. All of it is pure.

An answer follows from the request alone. It opens with `[ref Q/C]`, digests of its question and of its context, so
whoever reads an answer, from wherever it came, can tell for which question it was written: `read_reference`.

The model reads chat requests only. The other forms (messages.py and its neighbours) put their requests into
this one first, so that a question gets the same answer in whatever dialect it is asked.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import orjson

Json = dict[str, Any]

FINGERPRINT = "fp_simulated"
DONE = b"data: [DONE]\n\n"

_DELIVERY = ("stream", "stream_options", "user", "metadata")  # how an answer is delivered, not what it says
_REFERENCE = re.compile(r"\[ref ([0-9a-f]{12})/([0-9a-f]{12})\]")
_TOKEN = re.compile(r"\s*\S+")
_THOUGHT = "The customer asks about one matter; the help pages cover it."
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


# Ways to say the same, for answers that are ordered to be about something.
_ABOUT = (
    "About {}: open your account page and choose it there.",
    "About {}: please open your account page, and choose it there.",
    "About {}: you can open your account page and choose it there.",
    "About {}: open the account page, then choose it there.",
)


class Reference(NamedTuple):
    """For which question, in which context, an answer was written: 12 hex digits each."""

    question: str
    context: str


class Pace(NamedTuple):
    """How fast a reply is written. Zeros: as fast as it goes."""

    ttft_s: float = 0.0
    token_s: float = 0.0


AT_ONCE = Pace()


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
        return tokens_of(self.tool[1] if self.tool else self.text)

    @property
    def thoughts(self) -> list[str]:
        """The tokens of the reasoning, which are written before the others."""
        return tokens_of(self.reasoning or "")


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer, before it is put on the wire."""

    id: str
    created: int  # unix seconds
    model: str
    choices: tuple[Choice, ...]
    prompt_tokens: int
    pace: Pace = AT_ONCE
    cached_tokens: int = 0  # of the prompt's: found in a KV cache
    fingerprint: str = FINGERPRINT  # which server answered

    @property
    def reasoning_tokens(self) -> int:
        return sum(len(choice.thoughts) for choice in self.choices)

    @property
    def completion_tokens(self) -> int:
        """All that is written: the reasoning counts, as vendors bill it."""
        return self.reasoning_tokens + sum(len(choice.tokens) for choice in self.choices)

    @property
    def duration_s(self) -> float:
        return self.pace.ttft_s + self.completion_tokens * self.pace.token_s


def tokens_of(text: str) -> list[str]:
    """Words, each with the space before it."""
    return _TOKEN.findall(text)


def question_digest(question: str) -> str:
    return hashlib.blake2b(question.strip().encode(errors="replace"), digest_size=6).hexdigest()


def read_reference(text: str) -> Reference | None:
    found = _REFERENCE.search(text)
    return Reference(found[1], found[2]) if found else None


def read_question(body: Json) -> str:
    """The text of the last user turn: a string, or the text parts of a list."""
    for message in reversed(body.get("messages") or []):
        if message.get("role") == "user":
            return text_of(message.get("content"))
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


def count_prompt(body: Json) -> int:
    """The tokens of a chat request: its words, and four for the frame of each message."""
    return sum(len(tokens_of(text_of(message.get("content")))) + 4 for message in body.get("messages") or [])


def write_reply(body: Json, orders: Mapping[str, str], number: int, now: float, pace: Pace = AT_ONCE) -> Reply:
    """Answer a chat request. `orders` come from the X-Simulate header: tokens, finish, reasoning, refusal, about."""
    question = read_question(body)
    context = context_digest(body)
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    count = 1 if body.get("n") is None else body["n"]
    choices = tuple(_choice(body, question, context, index, limit, orders) for index in range(count))
    model = str(body.get("model", "simulated"))
    return Reply(f"{number:024x}", int(now), model, choices, count_prompt(body), pace)


def joined(replies: Sequence[Reply]) -> Reply:
    """The replies to the prompts of one request, as one reply: choices in the order of the prompts."""
    choices = tuple(choice for reply in replies for choice in reply.choices)
    return replace(replies[0], choices=choices, prompt_tokens=sum(reply.prompt_tokens for reply in replies))


def _choice(
    body: Json, question: str, context: str, index: int, limit: int | None, orders: Mapping[str, str]
) -> Choice:
    tool = _tool_to_call(body, question)
    if tool is not None:
        return Choice("", orders.get("finish", "tool_calls"), tool=tool)
    if "refusal" in orders:
        return Choice("I cannot help with that.", orders.get("finish", "stop"), refusal=True)
    about = orders.get("about")
    said = _prose(question, context, index, orders) if about is None else _about(about, question)
    text = f"[ref {question_digest(about or question)}/{context}] {said}"
    wanted = body.get("response_format") or {}
    if wanted.get("type") in ("json_object", "json_schema"):
        text = orjson.dumps(_structured(text, wanted.get("json_schema") or {})).decode()
    finish = "stop"
    tokens = tokens_of(text)
    if limit is not None and len(tokens) > limit:
        text, finish = "".join(tokens[:limit]), "length"
    return Choice(text, orders.get("finish", finish), _THOUGHT if "reasoning" in orders else None)


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


def _about(about: str, question: str) -> str:
    """One answer for many questions, as a model would give it: never quite the same words."""
    way = _ABOUT[int(question_digest(question), 16) % len(_ABOUT)]
    return way.format(" ".join(re.split(r"[\W_]+", about)).strip())


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


def _structured(text: str, wanted: Json) -> Json:
    """An object with `text` in its strings, and in the other fields of the schema whatever fits them."""
    fields = (wanted.get("schema") or {}).get("properties") or {"answer": {}}
    return {name: _value_for(kind, text) for name, kind in fields.items()}


def _value_for(schema: object, question: str) -> object:
    if not isinstance(schema, dict):  # `true` is a schema too
        return question
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
            choices = schema.get("enum")
            return choices[0] if isinstance(choices, list) and choices else question


def text_of(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return ""


# The form of chat completions


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
            "usage": openai_usage(reply),
            "service_tier": "default",
            "system_fingerprint": reply.fingerprint,
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
        "system_fingerprint": reply.fingerprint,
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
            opening["tool_calls"] = [{"index": 0, "id": call_id(reply.id), "type": "function", "function": function}]
        yield 0, event(index, opening)
    written = 0
    for index, token, is_thought in in_turns(reply.choices):
        written += 1
        logprobs = _logprobs([token]) if body.get("logprobs") and not is_thought else None
        delta = {"reasoning_content": token} if is_thought else _delta(reply.choices[index], token)
        yield written, event(index, delta, logprobs)
    for index, choice in enumerate(reply.choices):
        yield written, event(index, {}, finish=choice.finish)
    if with_usage:
        yield written, sse({**frame, "choices": [], "usage": openai_usage(reply)})


def in_turns(choices: Sequence[Choice]) -> Iterator[tuple[int, str, bool]]:
    """Yield (choice, token, whether it is a thought), the choices taking turns as those of one batch on a GPU do."""
    columns = [[(t, True) for t in choice.thoughts] + [(t, False) for t in choice.tokens] for choice in choices]
    for row in range(max(map(len, columns), default=0)):
        for index, column in enumerate(columns):
            if row < len(column):
                yield index, *column[row]


def _message(choice: Choice, reply_id: str) -> Json:
    spoken = None if choice.tool or choice.refusal else choice.text
    refusal = choice.text if choice.refusal else None
    message: Json = {"role": "assistant", "content": spoken, "refusal": refusal, "annotations": []}
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.tool:
        function = {"name": choice.tool[0], "arguments": choice.tool[1]}
        message["tool_calls"] = [{"id": call_id(reply_id), "type": "function", "function": function}]
    return message


def _delta(choice: Choice, token: str) -> Json:
    if choice.tool:
        return {"tool_calls": [{"index": 0, "function": {"arguments": token}}]}
    return {"refusal" if choice.refusal else "content": token}


def call_id(reply_id: str) -> str:
    return f"call_{reply_id}"


def _logprobs(tokens: list[str]) -> Json:
    spoken = [{"token": t, "logprob": -0.01 * len(t), "bytes": list(t.encode()), "top_logprobs": []} for t in tokens]
    return {"content": spoken, "refusal": None}


def openai_usage(reply: Reply) -> Json:
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "total_tokens": reply.prompt_tokens + reply.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": reply.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": reply.reasoning_tokens, "audio_tokens": 0},
    }


def sse(payload: Json, name: str | None = None) -> bytes:
    head = b"event: " + name.encode() + b"\n" if name else b""
    return head + b"data: " + orjson.dumps(payload) + b"\n\n"
