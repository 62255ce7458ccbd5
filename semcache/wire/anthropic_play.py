"""Playing a stored Anthropic message: a body as a body, a stream as a stream, and each as the other.

What was recorded in the form that is asked for keeps its members as they were written. What changes form follows the
rules by which the official SDK adds up a stream, so a reader cannot tell which of the two was recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import orjson

from semcache.types import Answer, Form, Usage
from semcache.wire.dialect import Rendition
from semcache.wire.playing import Blanks, Event, rendering, tokens_in, with_blanks, words, zeroed, zeroed_member
from semcache.wire.score import Score, Slot
from semcache.wire.strict_json import Number, Tree, decode, encode

_TEXT_DELTAS = {"text": "text_delta", "thinking": "thinking_delta"}  # a block's type, and its member, by its delta

# Of a message, what only its end tells.
_IN_DELTA = ("container", "stop_details", "stop_reason", "stop_sequence")
_BESIDE_DELTA = ("context_management",)
_STOPS = ("stop_reason", "stop_sequence", "stop_details")  # of several deltas the last counts, with its nulls too

# Of the usage. The others stand at the start and stay.
_TOTALS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
_FINAL = ("output_tokens_details", "server_tool_use", "iterations", "fallback_credit")
_ZERO = Number("0")


def prepare(answer: Answer, rendition: Rendition) -> Score:
    """Render an answer up to its id. Raises CacheFault if its parts are not what a scribe lets through."""
    form = rendition.form
    with rendering(answer, form):
        if answer.form is form is Form.JSON:
            return _body_as_body(answer, rendition.zero_usage)
        if answer.form is form:
            return _stream_as_stream(answer, rendition.zero_usage)
        if form is Form.JSON:
            return _stream_as_body(answer, rendition.zero_usage)
        return _body_as_stream(answer, rendition.zero_usage)


# Body as body: all bytes but two values


def _body_as_body(answer: Answer, zero_usage: bool) -> Score:
    body = answer.parts[0]
    replaced = zeroed_member(body, "usage") if zero_usage else {}
    return Score(Form.JSON, [with_blanks(body, {"id": Slot.ID}, replaced)], answer.offsets_ms[-1:])


# Stream as stream: all members. The vendor's padding is spaces before an event's last brace, and written anew they go


def _stream_as_stream(answer: Answer, zero_usage: bool) -> Score:
    events = [decode(part.decode()) for part in answer.parts]
    return Score(Form.STREAM, [_event(e, zero_usage) for e in events], answer.offsets_ms, tokens=tokens_in(answer))


def _event(event: Tree, zero_usage: bool) -> Event:
    """Write an event under its name, with a blank for the message's id."""
    blanks = Blanks()
    message = event.get("message")
    if type(message) is dict and event["type"] == "message_start":
        if zero_usage and "usage" in message:
            message = {**message, "usage": zeroed(message["usage"])}
        own = {"id": blanks.at(Slot.ID, message["id"])} if "id" in message else {}
        event = {**event, "message": {**message, **own}}
    elif zero_usage and "usage" in event:
        event = {**event, "usage": zeroed(event["usage"])}
    return blanks.write(event, b"event: %b\ndata: " % event["type"].encode(), b"\n\n")


# Body as stream: the start without content, each block in pieces, then how it ended


def _body_as_stream(answer: Answer, zero_usage: bool) -> Score:
    body: Tree = decode(answer.parts[0].decode())
    content = body.pop("content")
    usage = body.pop("usage", None) or _figures(answer.usage)
    delta = {"stop_reason": None, "stop_sequence": None}
    delta |= {name: body.pop(name) for name in _IN_DELTA if name in body}
    beside = {name: body.pop(name) for name in _BESIDE_DELTA if body.get(name) is not None}

    start = {
        **body,
        "content": [],
        **dict.fromkeys(delta),
        # Only input is known when an answer begins. And readers who add up the output of both events come out right.
        "usage": {name: value for name, value in usage.items() if name not in _FINAL or value is None}
        | {"output_tokens": _ZERO},
    }
    totals = {name: usage[name] for name in (*_TOTALS, *_FINAL) if usage.get(name) is not None}
    events: list[Tree] = [
        {"type": "message_start", "message": start},
        *_block_events(content),
        {"type": "message_delta", "delta": delta, **beside, "usage": totals},
        {"type": "message_stop"},
    ]
    return Score(Form.STREAM, [_event(event, zero_usage) for event in events], tokens=tokens_in(answer))


def _figures(usage: Usage | None) -> Tree:
    prompt, completion = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
    return {"input_tokens": Number(str(prompt)), "output_tokens": Number(str(completion))}


def _block_events(content: list[Tree]) -> Iterator[Tree]:
    for place, block in enumerate(content):
        index = Number(str(place))
        start, deltas = _in_pieces(block)
        yield {"type": "content_block_start", "index": index, "content_block": start}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}


def _in_pieces(block: Tree) -> tuple[Tree, list[Tree]]:
    """Cut a block into its start and its deltas. Those of other kinds than these come whole in their start."""
    kind = block["type"]
    if kind in _TEXT_DELTAS:
        return _text_in_pieces(kind, block)
    if kind.endswith("tool_use") and type(block.get("input")) is dict:
        texts = ["", *words(encode(block["input"]).decode())] if block["input"] else [""]
        return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": text} for text in texts]
    return block, []


def _text_in_pieces(kind: str, block: Tree) -> tuple[Tree, list[Tree]]:
    """A text and its citations, or a thought and its signature."""
    delta = _TEXT_DELTAS[kind]
    start: Tree = {**block, kind: ""}
    deltas: list[Tree] = [{"type": delta, kind: piece} for piece in words(block[kind])]
    if citations := block.get("citations"):
        start["citations"] = []
        deltas += [{"type": "citations_delta", "citation": citation} for citation in citations]
    if signature := block.get("signature"):
        start["signature"] = ""
        deltas.append({"type": "signature_delta", "signature": signature})
    return start, deltas


# Stream as body: the deltas added up


def _stream_as_body(answer: Answer, zero_usage: bool) -> Score:
    message = _added_up(decode(part.decode()) for part in answer.parts)
    # JSON text again, so that the id and the usage are found where they stand.
    return _body_as_body(Answer(answer.dialect, Form.JSON, (encode(message),), answer.offsets_ms[-1:]), zero_usage)


def _added_up(events: Iterable[Tree]) -> Tree:
    """The message that a stream's events make. Kinds of events that are not known tell nothing of it."""
    message: Tree = {}
    blocks: list[_Block] = []
    for event in events:
        kind = event["type"]
        if kind == "message_start":
            message = event["message"]
        elif kind == "content_block_start":
            blocks.append(_Block(event["content_block"]))
            if event["content_block"]["type"] == "fallback":
                message["model"] = event["content_block"]["to"]["model"]  # from here on another one speaks
        elif kind == "content_block_delta":
            blocks[int(event["index"].text)].add(event["delta"])
        elif kind == "message_delta":
            _change(message, event)
    if not message:
        raise ValueError("no message has begun")
    message["content"] = [block.whole() for block in blocks]
    return message


class _Block:
    """A content block being added up. Texts wait in pieces: adding strings up would copy a long one for every delta."""

    def __init__(self, start: Tree) -> None:
        self._block = start
        self._pieces: dict[str, list[str]] = {}

    def add(self, delta: Tree) -> None:
        block = self._block
        match delta["type"]:
            case "text_delta":
                self._pieces.setdefault("text", [block["text"]]).append(delta["text"])
            case "thinking_delta":
                self._pieces.setdefault("thinking", [block["thinking"]]).append(delta["thinking"])
            case "input_json_delta":
                self._pieces.setdefault("input", []).append(delta["partial_json"])
            case "signature_delta":
                block["signature"] = delta["signature"]
            case "citations_delta":
                block["citations"] = [*(block.get("citations") or ()), delta["citation"]]
            case "compaction_delta":
                block |= {name: delta.get(name) for name in ("content", "encrypted_content")}
            case unknown:  # a body without what it adds would lack a part of the answer
                raise ValueError(f"cannot add up {unknown}")

    def whole(self) -> Tree:
        for member, pieces in self._pieces.items():
            text = "".join(pieces)
            if member != "input":
                self._block[member] = text
            elif text:  # else the empty input of the start is meant
                orjson.loads(text)
                self._block[member] = orjson.Fragment(text)
        return self._block


def _change(message: Tree, event: Tree) -> None:
    """What the end of a message tells. Null leaves what the start said, but for the stops; figures are totals."""
    delta = event["delta"]
    message |= {name: delta.get(name) for name in _STOPS if name in delta or name in message}
    told = {**delta, **{name: value for name, value in event.items() if name not in ("type", "delta", "usage")}}
    message |= {name: value for name, value in told.items() if value is not None and name not in _STOPS}
    if usage := event.get("usage"):
        known = message.get("usage") or {}
        message["usage"] = known | {name: value for name, value in usage.items() if value is not None}
