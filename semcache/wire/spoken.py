"""What an answer says, as one text: for holding a fresh answer against a stored one. Nothing here decides what is kept.

Only a plain text counts: an answer that calls tools, refuses, or comes in several choices says nothing that another
could be compared with by its words. Thoughts are left out, for they are no part of what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from semcache.errors import CacheFault
from semcache.types import Answer, Form
from semcache.wire.dialect import Dialect, Rendition
from semcache.wire.score import RECORDED

Body = dict[str, Any]
Read = Callable[[Body], str | None]  # of the JSON body of a reply: its text, None where it is no plain one

_BODY = Rendition(Form.JSON)


def spoken_in(dialect: Dialect, answer: Answer, read: Read) -> str | None:
    """The text of an answer in whatever form it was recorded; None where there is none, or it is not as expected.

    Takes as long as playing the answer: not for the event loop.
    """
    try:
        body = orjson.loads(dialect.prepare(answer, _BODY).play_whole(RECORDED))
        text = read(body)
    except (CacheFault, ValueError, TypeError, AttributeError, LookupError):
        return None
    return text if isinstance(text, str) and text.strip() else None


def chat_text(body: Body) -> str | None:
    (choice,) = body["choices"]
    message = choice["message"]
    if choice.get("finish_reason") != "stop" or _calls_or_refuses(message):
        return None
    return _text(message.get("content"))


def completion_text(body: Body) -> str | None:
    (choice,) = body["choices"]
    return _text(choice["text"]) if choice.get("finish_reason") == "stop" else None


def message_text(body: Body) -> str | None:
    """Of Anthropic's messages."""
    if body.get("stop_reason") not in ("end_turn", "stop_sequence"):
        return None
    return _joined(body["content"], aside=("thinking", "redacted_thinking"), kind="text")


def response_text(body: Body) -> str | None:
    """Of OpenAI's responses."""
    if body.get("status") != "completed":
        return None
    items = [item for item in body["output"] if item["type"] != "reasoning"]
    if any(item["type"] != "message" for item in items):
        return None
    return _joined([part for item in items for part in item["content"]], aside=(), kind="output_text")


def ollama_text(body: Body) -> str | None:
    """Of both of Ollama's endpoints."""
    if body.get("done_reason", "stop") != "stop":
        return None
    message = body.get("message")
    if message is None:
        return _text(body["response"])
    return None if _calls_or_refuses(message) else _text(message["content"])


def _calls_or_refuses(message: Body) -> bool:
    return any(message.get(name) for name in ("tool_calls", "function_call", "refusal"))


def _joined(parts: list[Body], *, aside: tuple[str, ...], kind: str) -> str | None:
    """The texts of the parts of one kind; None where there are others than those that are left aside."""
    said = [part for part in parts if part["type"] not in aside]
    if any(part["type"] != kind for part in said):
        return None
    return "".join(part["text"] for part in said)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
