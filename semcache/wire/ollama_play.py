"""Playing Ollama's answers: a body as a body, a stream as a stream, and each as the other.

What was recorded in the form that is asked for keeps every byte but its times. What changes form follows the server
itself, whose body is the last line of its stream with the texts, calls and log probabilities of all lines put together.

Usage. The figures are the recorded ones, or 0 for who is shown what this reply has cost. Durations stay as recorded
even then, for clients divide by them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from semcache.types import Answer, Form
from semcache.wire import ndjson
from semcache.wire.dialect import Rendition
from semcache.wire.ollama_reply import Layout
from semcache.wire.playing import Event, rendering, tokens_in, with_blanks, words
from semcache.wire.score import NDJSON, Score, Slot
from semcache.wire.strict_json import Tree, decode, encode

_JSON = "application/json; charset=utf-8"
_SLOTS: Mapping[str, Slot] = {"created_at": Slot.CREATED_TEXT}
_NO_FIGURES = dict.fromkeys(("prompt_eval_count", "prompt_eval_cached_count", "eval_count"), b"0")

_ON_EACH_LINE = ("model", "remote_model", "remote_host", "created_at")


def prepare(layout: Layout, answer: Answer, rendition: Rendition) -> Score:
    """Render an answer up to its time. Raises CacheFault if its parts are not what a scribe lets through."""
    form = rendition.form
    replaced = _NO_FIGURES if rendition.zero_usage else {}
    with rendering(answer, form):
        if not answer.parts:
            raise ValueError("nothing was said")
        if form is Form.JSON:
            body = answer.parts[0] if answer.form is form else _added_up(layout, answer)
            return Score(form, [with_blanks(body, _SLOTS, replaced)], answer.offsets_ms[-1:], content_type=_JSON)
        if answer.form is form:
            events = [[*with_blanks(part, _SLOTS, replaced), b"\n"] for part in answer.parts]
            offsets_ms = answer.offsets_ms
        else:
            events = [_event(line, replaced) for line in _lines(layout, decode(answer.parts[0].decode()))]
            offsets_ms = ()
        return Score(form, events, offsets_ms, content_type=NDJSON, tokens=tokens_in(answer))


def _event(value: Tree, replaced: Mapping[str, bytes]) -> Event:
    return with_blanks(ndjson.line(encode(value)), _SLOTS, replaced)


# Body as stream: thoughts, text and calls line by line, then a line with all the rest


def _lines(layout: Layout, body: Tree) -> Iterator[Tree]:
    message = layout.message
    said: Tree = body if message is None else body.pop(message, None) or {}
    texts = {key: said.pop(key) for key in ("thinking", layout.text) if said.get(key)}
    calls = said.pop("tool_calls") if said.get("tool_calls") else None
    tokens = body.pop("logprobs") if texts and body.get("logprobs") else []
    head = {key: body[key] for key in _ON_EACH_LINE if key in body}
    opening = {layout.text: ""} if message is None else {"role": said.get("role", "assistant"), layout.text: ""}

    def line(said_here: Tree, rest: Tree) -> Tree:
        said_here = {**opening, **said_here}
        return {**head, **(said_here if message is None else {message: said_here}), **rest}

    for key, piece, told in _pieces(texts, tokens):
        yield line({key: piece}, {"done": False, **({"logprobs": told} if told else {})})
    if calls:
        yield line({"tool_calls": calls}, {"done": False})
    yield line({} if message is None else said, body)


def _pieces(texts: Mapping[str, str], tokens: list[Any]) -> Iterator[tuple[str, str, list[Any]]]:
    """Cut the texts at their tokens where they are known, each with its own log probability, else into words."""
    spelt = "".join(token["token"] for token in tokens)
    # Else they are of both texts and the marks between, or halves of characters: no text shows where they belong.
    owner = next((key for key, text in texts.items() if text == spelt), None)
    untold = [] if owner else tokens
    for key, text in texts.items():
        if key == owner:
            yield from ((key, token["token"], [token]) for token in tokens)
            continue
        for piece in words(text):
            yield key, piece, untold
            untold = []


# Stream as body: the lines added up


def _added_up(layout: Layout, answer: Answer) -> bytes:
    body: Tree = {}
    said: Tree = body if layout.message is None else {}
    pieces: dict[str, list[str]] = {"thinking": [], layout.text: []}
    lists: dict[str, list[Any]] = {"tool_calls": [], "logprobs": []}
    for part in answer.parts:
        line: Tree = decode(part.decode())
        message = line if layout.message is None else line.get(layout.message) or {}
        for key, texts in pieces.items():
            texts.append(message.get(key) or "")
        lists["tool_calls"] += message.get("tool_calls") or []
        lists["logprobs"] += line.get("logprobs") or []
        if layout.message is not None:
            said.update(message)
            line[layout.message] = said
        body.update(line)
    for key, texts in pieces.items():
        if said.get(key) is not None or any(texts):
            said[key] = "".join(texts)
    for holder, key in ((said, "tool_calls"), (body, "logprobs")):
        if holder.get(key) is not None:
            holder[key] = lists[key]
    return encode(body)
