"""The dialect of a program that asks for itself, without HTTP: a question and its context in, a text out.

It has a wire form all the same, so that a program's questions live the life of any request: what is asked is a JSON
object, and an answer is the text as UTF-8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from semcache.types import Answer, Ask, Form, Traits, Unstorable
from semcache.wire import strict_json
from semcache.wire.dialect import Address, Frame, Reading, Rendition, Scribe
from semcache.wire.error_shapes import OpenAIErrors
from semcache.wire.requests import context_of, invalid
from semcache.wire.score import RECORDED, Identity, Score

_TEXT = "text/plain; charset=utf-8"


def write_question(question: str, context: Any, model: str, user: str | None) -> bytes:
    """The request as `parse` reads it. Raises TypeError for a context that has no JSON form."""
    asked = {"question": question, "context": context, "model": model, "user": user}
    return orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)


class PlainText(OpenAIErrors):
    """Exact and semantic hits on `question`, where `context` and `model` are equal."""

    def parse(self, address: Address, body: bytes, headers: Mapping[str, str]) -> Ask:
        tree = strict_json.parse(body)
        question, user, model = tree.pop("question"), tree.pop("user"), tree["model"]
        if type(question) is not str:
            raise invalid("question", "a string", {"question": question})
        return Ask(
            dialect=address.vendor,
            endpoint=address.endpoint,
            target=address.target,
            model=model,
            question=question if question.strip() else None,
            context=context_of(tree if question.strip() else {**tree, "question": question}, ()),
            stream=False,
            include_usage=False,
            user=user,
            traits=Traits(),
            body=body,
        )

    def context_headers(self, headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        return ()

    def upstream_body(self, ask: Ask, *, ask_usage: bool) -> bytes:
        return ask.body

    def scribe(
        self, ask: Ask, status: int, headers: Mapping[str, str], *, store_tools: bool, limit_bytes: int
    ) -> Scribe:
        return _TextScribe(ask.dialect, limit_bytes)

    def prepare(self, answer: Answer, rendition: Rendition) -> Score:
        return Score(Form.JSON, [answer.parts], content_type=_TEXT)

    def spoken(self, answer: Answer) -> str | None:
        return b"".join(answer.parts).decode(errors="replace") or None

    def fresh_identity(self, now: float) -> Identity:
        return RECORDED  # a text has neither an id nor a time


class _TextScribe:
    """A text is whole when its source says so, and kept when it says something."""

    def __init__(self, dialect: str, limit_bytes: int) -> None:
        self._dialect = dialect
        self._limit_bytes = limit_bytes
        self._chunks: list[bytes] = []

    def feed(self, chunk: bytes, offset_ms: int) -> Sequence[Frame]:
        self._chunks.append(chunk)
        return (Frame(chunk),)

    def finish(self, whole: bool) -> tuple[Sequence[Frame], Reading]:
        text = b"".join(self._chunks)
        answer = Answer(self._dialect, Form.JSON, (text,))
        if not whole:
            return (), Reading(None, Unstorable.INCOMPLETE)
        if len(text) > self._limit_bytes:
            return (), Reading(answer, Unstorable.TOO_LARGE)
        return (), Reading(answer, None if text.strip() else Unstorable.EMPTY)
