"""Playing a stored response: a body as a body, a stream as a stream, and each as the other.

What was recorded in the form that is asked for keeps its members as they were written, and events of kinds unknown here
keep their place. The response object of a stream's last event is the body; a body is taken apart into the events that
the vendor sends for such a response, in its order.

A response repeats settings of its request. Those that are no context, such as `metadata`, are the caller's own here, in
every event that carries the response.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from semcache.types import Answer, Form
from semcache.wire.dialect import Rendition
from semcache.wire.playing import Blanks, Event, rendering, tokens_in, with_blanks, words, zeroed, zeroed_member
from semcache.wire.score import Score, Slot
from semcache.wire.strict_json import Tree, decode, encode, spans

_SLOTS: Mapping[str, Slot] = {"id": Slot.ID, "created_at": Slot.CREATED, "completed_at": Slot.CREATED}
_ENDINGS = ("response.completed", "response.incomplete")
_PADDING = "obfuscation"  # hides the sizes of one stream's events; played again it would hide nothing

# What a response does not have yet while it is made.
_NOT_YET: Tree = {"completed_at": None, "incomplete_details": None, "output": [], "usage": None}


def prepare(answer: Answer, rendition: Rendition) -> Score:
    """Render an answer up to its id and time. Raises CacheFault if its parts are not what a scribe lets through."""
    form = rendition.form
    with rendering(answer, form):
        if form is Form.JSON:
            body = answer.parts[0] if answer.form is form else _body_of(answer)
            return Score(form, [_body(body, rendition)], answer.offsets_ms[-1:])
        if answer.form is form:
            return _stream_as_stream(answer, rendition)
        return _body_as_stream(answer, rendition)


# The response object, alone or inside an event


def _body(body: bytes, rendition: Rendition) -> Event:
    """A body with all its bytes but for the values that each replay has as its own."""
    text = body.decode()
    recorded = {name: text[start:end] for name, (start, end) in spans(text).items()}
    slots = {name: slot for name, slot in _SLOTS.items() if recorded.get(name, "null") != "null"}
    replaced = {name: value for name, value in rendition.echo if _says_other(value, recorded.get(name) == "null")}
    if rendition.zero_usage:
        replaced |= zeroed_member(body, "usage")
    return with_blanks(body, slots, replaced)


def _with_own(response: Tree, rendition: Rendition, blanks: Blanks) -> Tree:
    """The same for a response inside an event."""
    own: Tree = {}
    for name, slot in _SLOTS.items():
        if response.get(name) is not None:
            own[name] = blanks.at(slot, response[name])
    for name, value in rendition.echo:
        if name in response and _says_other(value, response[name] is None):
            own[name] = orjson.Fragment(value)
    if rendition.zero_usage and "usage" in response:
        own["usage"] = zeroed(response["usage"])
    return {**response, **own}


def _says_other(value: bytes, recorded_is_null: bool) -> bool:
    """Whether a member has to be the caller's instead of the recorded: servers write an empty one as {} or as null."""
    return not (value == b"{}" and recorded_is_null)


def _event(event: Tree, rendition: Rendition) -> Event:
    """Write an event with its framing, and with blanks for what each replay has as its own."""
    blanks = Blanks()
    own: Tree = {}
    if type(event.get("response")) is dict:
        own["response"] = _with_own(event["response"], rendition, blanks)
    if type(event.get("response_id")) is str:
        own["response_id"] = blanks.at(Slot.ID, event["response_id"])
    name: str = event["type"]
    return blanks.write({**event, **own}, b"event: %b\ndata: " % name.encode(), b"\n\n")


# Stream as stream: all events, without their padding


def _stream_as_stream(answer: Answer, rendition: Rendition) -> Score:
    events: list[Event] = []
    for part in answer.parts:
        event: Tree = decode(part.decode())
        event.pop(_PADDING, None)
        events.append(_event(event, rendition))
    return Score(Form.STREAM, events, answer.offsets_ms, tokens=tokens_in(answer))


# Stream as body: the response of the last event


def _body_of(answer: Answer) -> bytes:
    """The response of the last event, byte for byte; with the items of the events before where it has none itself."""
    text = answer.parts[-1].decode()
    last: Tree = decode(text)
    if last["type"] not in _ENDINGS:
        raise ValueError("the last event does not hold the response")
    if last["response"].get("output"):
        start, end = spans(text)["response"]
        return text[start:end].encode()
    items: dict[int, Any] = {}
    for part in answer.parts:
        event: Tree = decode(part.decode())
        if event["type"] == "response.output_item.done":
            items[int(event["output_index"].text)] = event["item"]
    return encode({**last["response"], "output": [items[index] for index in sorted(items)]})


# Body as stream: the response as it begins, its items one by one, the response as it is


def _body_as_stream(answer: Answer, rendition: Rendition) -> Score:
    response: Tree = decode(answer.parts[0].decode())
    ending = f"response.{response['status']}"
    if ending not in _ENDINGS:
        raise ValueError("no whole response")
    unfinished = {**response, **{k: v for k, v in _NOT_YET.items() if k in response}, "status": "in_progress"}
    told: list[Tree] = [
        {"type": "response.created", "response": unfinished},
        {"type": "response.in_progress", "response": unfinished},
    ]
    for index, item in enumerate(response["output"]):
        told.append({"type": "response.output_item.added", "output_index": index, "item": _announced(item)})
        told += [{**event, "output_index": index} for event in _item_events(item)]
        told.append({"type": "response.output_item.done", "output_index": index, "item": item})
    told.append({"type": ending, "response": response})
    events = [
        _event({"type": event["type"], "sequence_number": number, **event}, rendition)
        for number, event in enumerate(told)
    ]
    return Score(Form.STREAM, events, tokens=tokens_in(answer))


# What an item lacks when it is announced, by its type. Only what it has in the end is said of it at all.
_ANNOUNCED: Mapping[str, Tree] = {
    "message": {"content": []},
    "reasoning": {"summary": [], "content": [], "encrypted_content": ""},
    "function_call": {"arguments": ""},
    "custom_tool_call": {"input": ""},
}


def _announced(item: Tree) -> Tree:
    lacking = {**_ANNOUNCED.get(item["type"], {}), "status": "in_progress"}
    return {**item, **{name: value for name, value in lacking.items() if item.get(name) is not None}}


def _item_events(item: Tree) -> Iterator[Tree]:
    """The events between an item's announcement and its end, without the numbers that all of them have."""
    at: Tree = {"item_id": item.get("id") or ""}
    kind = item["type"]
    if kind == "function_call":
        name = "response.function_call_arguments"
        yield from _deltas(f"{name}.delta", at, item["arguments"])
        yield {"type": f"{name}.done", **at, "arguments": item["arguments"], "name": item["name"]}
    elif kind == "custom_tool_call":
        name = "response.custom_tool_call_input"
        yield from _deltas(f"{name}.delta", at, item["input"])
        yield {"type": f"{name}.done", **at, "input": item["input"]}
    elif kind in ("message", "reasoning"):
        for index, part in enumerate(item.get("content") or ()):
            yield from _part_events(part, {**at, "content_index": index})
        for index, part in enumerate(item.get("summary") or ()):
            yield from _summary_events(part, {**at, "summary_index": index})


def _part_events(part: Tree, at: Tree) -> Iterator[Tree]:
    """One part of a message, or of thoughts."""
    kind = part["type"]
    begun: Tree = part
    events: list[Tree] = []
    if kind == "output_text":
        begun = {**part, "text": "", **{name: [] for name in ("annotations", "logprobs") if part.get(name)}}
        events = list(_text_events(part, at))
    elif kind == "refusal":
        begun = {**part, "refusal": ""}
        events = [
            *_deltas("response.refusal.delta", at, part["refusal"]),
            {"type": "response.refusal.done", **at, "refusal": part["refusal"]},
        ]
    elif kind == "reasoning_text":
        begun = {**part, "text": ""}
        events = [
            *_deltas("response.reasoning_text.delta", at, part["text"]),
            {"type": "response.reasoning_text.done", **at, "text": part["text"]},
        ]
    yield {"type": "response.content_part.added", **at, "part": begun}
    yield from events
    yield {"type": "response.content_part.done", **at, "part": part}


def _text_events(part: Tree, at: Tree) -> Iterator[Tree]:
    """A text cut at its tokens where they are known, each with its own log probability, else into words."""
    text, logprobs = part["text"], part.get("logprobs") or []
    tokens = [token["token"] for token in logprobs]
    by_token = bool(tokens) and "".join(tokens) == text  # else a character lies across tokens, which no text can show
    for number, piece in enumerate(tokens if by_token else words(text)):
        own = [logprobs[number]] if by_token else logprobs if number == 0 else []
        yield {"type": "response.output_text.delta", **at, "delta": piece, "logprobs": own}
    for index, annotation in enumerate(part.get("annotations") or ()):
        place = {**at, "annotation_index": index}
        yield {"type": "response.output_text.annotation.added", **place, "annotation": annotation}
    yield {"type": "response.output_text.done", **at, "text": text, "logprobs": logprobs}


def _summary_events(part: Tree, at: Tree) -> Iterator[Tree]:
    name = "response.reasoning_summary"
    yield {"type": f"{name}_part.added", **at, "part": {**part, "text": ""}}
    yield from _deltas(f"{name}_text.delta", at, part["text"])
    yield {"type": f"{name}_text.done", **at, "text": part["text"]}
    yield {"type": f"{name}_part.done", **at, "part": part}


def _deltas(kind: str, at: Tree, text: str) -> Iterator[Tree]:
    for piece in words(text):
        yield {"type": kind, **at, "delta": piece}
