"""Playing a stored completion, a chat's or a text's: a body as a body, a stream as a stream, and each as the other.

What was recorded in the form that is asked for keeps its members as they were written. What changes form follows the
rules by which the official SDK adds up a stream, so a reader cannot tell which of the two was recorded. What a choice
holds is another file's matter: chat_choices.py, text_choices.py.

Usage. A stream whose reader asked for it has exactly one usage chunk, last and without choices, and `usage: null` in
the others. A reader who did not ask gets neither, but figures that a vendor puts into its content chunks unasked stay
there. The figures are those recorded. Where the upstream told none they are 0: what this reply has cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from semcache.types import Answer, Form, Usage
from semcache.wire.dialect import Rendition
from semcache.wire.playing import Blanks, Event, rendering, tokens_in, with_blanks, zeroed, zeroed_member
from semcache.wire.score import Score, Slot
from semcache.wire.strict_json import Number, Tree, decode, encode

_SLOTS: Mapping[str, Slot] = {"id": Slot.ID, "created": Slot.CREATED}
_DONE: Event = [b"data: [DONE]\n\n"]
_PADDING = "obfuscation"  # hides the sizes of one stream's chunks; played again it would hide nothing

_ON_EACH_CHUNK = ("id", "object", "created", "model", "service_tier", "system_fingerprint")
_ONE_FOR_ALL = ("id", "created", "model")  # of these, a stream's first that says something holds for all of it


class Choices(Protocol):
    """What the choices of an endpoint look like in its bodies and in the chunks of its streams."""

    body_object: str  # the `object` of a body
    chunk_object: str  # and of a chunk

    def cut(self, choice: Tree, place: int) -> list[Tree]:
        """Cut a body's choice into those of chunks, in pieces of about a word. `place`: its index, if it has none."""

    def add(self, total: Tree, item: Tree) -> None:
        """Add a chunk's choice to what came before it, in place. `total` is read through `settle` only."""

    def settle(self, index: int, total: Tree) -> Tree:
        """The choice of a body, of all that was added."""


def prepare(answer: Answer, rendition: Rendition, kind: Choices) -> Score:
    """Render an answer up to its id and time. Raises CacheFault if its parts are not what a scribe lets through."""
    form = rendition.form
    with rendering(answer, form):
        if answer.form is form is Form.JSON:
            return _body_as_body(answer, rendition.zero_usage)
        if answer.form is form:
            return _stream_as_stream(answer, rendition)
        if form is Form.JSON:
            return _stream_as_body(answer, rendition.zero_usage, kind)
        return _body_as_stream(answer, rendition, kind)


# Body as body: all bytes but two values


def _body_as_body(answer: Answer, zero_usage: bool) -> Score:
    body = answer.parts[0]
    replaced = zeroed_member(body, "usage") if zero_usage else {}
    return Score(Form.JSON, [with_blanks(body, _SLOTS, replaced)], answer.offsets_ms[-1:])


# Stream as stream: all members but usage and padding


def _stream_as_stream(answer: Answer, rendition: Rendition) -> Score:
    events: list[Event] = []
    offsets_ms: list[int] = []
    usage, usage_ms = _figures(answer.usage), 0
    last: Tree = {}
    usage_chunk: Tree | None = None
    for part, offset_ms in zip(answer.parts, answer.offsets_ms or [0] * len(answer.parts), strict=True):
        chunk: Tree = decode(part.decode())
        chunk.pop(_PADDING, None)
        last = chunk
        told = chunk.get("usage")
        if told:
            usage, usage_ms = told, offset_ms
            if not chunk["choices"]:
                usage_chunk = chunk
                continue  # its place is the end
        if rendition.include_usage:
            chunk["usage"] = None
        elif not told:
            chunk.pop("usage", None)
        elif rendition.zero_usage:
            chunk["usage"] = zeroed(told)
        events.append(_event(chunk))
        offsets_ms.append(offset_ms)
    if not events:
        raise ValueError("no chunk with choices")
    if rendition.include_usage:
        shown = zeroed(usage) if rendition.zero_usage else usage
        events.append(_event({**(usage_chunk or last), "choices": [], "usage": shown}))
        offsets_ms.append(max(usage_ms, offsets_ms[-1]))
    return Score(Form.STREAM, [*events, _DONE], [*offsets_ms, offsets_ms[-1]], tokens=tokens_in(answer))


def _event(chunk: Tree) -> Event:
    """Write a chunk with blanks for its id and time."""
    blanks = Blanks()
    own = {key: blanks.at(slot, chunk[key]) for key, slot in _SLOTS.items() if key in chunk}
    return blanks.write({**chunk, **own}, b"data: ", b"\n\n")


def _figures(usage: Usage | None) -> Tree:
    prompt, completion = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
    figures = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {name: Number(str(count)) for name, count in figures.items()}


# Body as stream: one choice after the other


def _body_as_stream(answer: Answer, rendition: Rendition, kind: Choices) -> Score:
    body: Tree = decode(answer.parts[0].decode())
    usage = body.pop("usage", None) or _figures(answer.usage)
    include_usage = rendition.include_usage
    choices = body.pop("choices")
    body["object"] = kind.chunk_object
    always = {key: value for key, value in body.items() if key in _ON_EACH_CHUNK}
    once = {key: value for key, value in body.items() if key not in _ON_EACH_CHUNK}  # on the first chunk
    no_usage = {"usage": None} if include_usage else {}

    events: list[Event] = []
    for place, choice in enumerate(choices):
        for chunk in kind.cut(choice, place):
            events.append(_event({**always, **once, "choices": [chunk], **no_usage}))
            once = {}
    if not events:
        raise ValueError("no choices")
    if include_usage:
        shown = zeroed(usage) if rendition.zero_usage else usage
        events.append(_event({**always, "choices": [], "usage": shown}))
    return Score(Form.STREAM, [*events, _DONE], tokens=tokens_in(answer))


# Stream as body: the chunks added up


def _stream_as_body(answer: Answer, zero_usage: bool, kind: Choices) -> Score:
    body: Tree = {}
    choices: dict[int, Tree] = {}
    for part in answer.parts:
        chunk = decode(part.decode())
        for key, value in chunk.items():
            if key == "choices":
                body.setdefault(key, None)  # keeps their place
            elif key in _ONE_FOR_ALL:
                if body.get(key) in (None, "", Number("0")):  # Azure's filter chunks have an id and a time of none
                    body[key] = value
            elif key != _PADDING and (value is not None or key not in body):
                body[key] = value
        for place, item in enumerate(chunk["choices"]):
            kind.add(choices.setdefault(_number(item.get("index"), place), {}), item)
    if not choices:
        raise ValueError("no chunk with choices")
    body["object"] = kind.body_object
    body["choices"] = [kind.settle(index, choices[index]) for index in sorted(choices)]
    if body.get("usage", ...) is None:
        del body["usage"]
    # The values are JSON texts again, so that the two slots are found where they stand.
    text = encode(body)
    return _body_as_body(Answer(answer.dialect, Form.JSON, (text,), answer.offsets_ms[-1:]), zero_usage)


def _number(index: Any, place: int) -> int:
    return int(index.text) if type(index) is Number else place
