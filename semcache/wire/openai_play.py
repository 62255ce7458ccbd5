"""Playing a stored chat completion: a body as a body, a stream as a stream, and each as the other.

What was recorded in the form that is asked for keeps its members as they were written. What changes form follows the
rules by which the official SDK adds up a stream, so a reader cannot tell which of the two was recorded.

Usage. A stream whose reader asked for it has exactly one usage chunk, last and without choices, and `usage: null` in
the others. A reader who did not ask gets neither, but figures that a vendor puts into its content chunks unasked stay
there. The figures are those recorded. Where the upstream told none they are 0: what this reply has cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from semcache.errors import CacheFault
from semcache.types import Answer, Form, Usage
from semcache.wire.dialect import Rendition
from semcache.wire.playing import Blanks, Event, with_blanks, words, zeroed, zeroed_member
from semcache.wire.score import Score, Slot
from semcache.wire.strict_json import Number, Tree, decode, encode

_SLOTS: Mapping[str, Slot] = {"id": Slot.ID, "created": Slot.CREATED}
_DONE: Event = [b"data: [DONE]\n\n"]
_PADDING = "obfuscation"  # hides the sizes of one stream's chunks; played again it would hide nothing

_ON_EACH_CHUNK = ("id", "object", "created", "model", "service_tier", "system_fingerprint")
_ONE_FOR_ALL = ("id", "created", "model")  # of these, a stream's first that says something holds for all of it
_STREAMED = ("reasoning_content", "reasoning", "content", "refusal")  # texts of a message that come in pieces, in order

_LAST_WINS = frozenset({"role", "index", "type"})  # servers repeat these in every delta; the others are added up
_IDENTIFIERS = frozenset({"id", "name"})  # repeated by some servers, sent in pieces by others


def prepare(answer: Answer, rendition: Rendition) -> Score:
    """Render an answer up to its id and time. Raises CacheFault if its parts are not what a scribe lets through."""
    form = rendition.form
    try:
        if answer.form is form is Form.JSON:
            return _body_as_body(answer, rendition.zero_usage)
        if answer.form is form:
            return _stream_as_stream(answer, rendition)
        if form is Form.JSON:
            return _stream_as_body(answer, rendition.zero_usage)
        return _body_as_stream(answer, rendition)
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as exc:
        raise CacheFault(f"a stored {answer.form} answer cannot be played as {form}: {type(exc).__name__}") from exc


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
    for part, offset_ms in zip(answer.parts, answer.offsets_ms or [0] * len(answer.parts), strict=True):
        chunk: Tree = decode(part.decode())
        chunk.pop(_PADDING, None)
        last = chunk
        told = chunk.get("usage")
        if told:
            usage, usage_ms = told, offset_ms
            if not chunk["choices"]:
                continue  # the usage chunk itself: its place is the end
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
        events.append(_event({**last, "choices": [], "usage": shown}))
        offsets_ms.append(max(usage_ms, offsets_ms[-1]))
    return Score(Form.STREAM, [*events, _DONE], [*offsets_ms, offsets_ms[-1]], tokens=_tokens(answer))


def _event(chunk: Tree) -> Event:
    """Write a chunk with blanks for its id and time."""
    blanks = Blanks()
    own = {key: blanks.at(slot, chunk[key]) for key, slot in _SLOTS.items() if key in chunk}
    return blanks.write({**chunk, **own}, b"data: ", b"\n\n")


def _tokens(answer: Answer) -> int | None:
    return answer.usage.completion_tokens if answer.usage else None


def _figures(usage: Usage | None) -> Tree:
    prompt, completion = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
    figures = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {name: Number(str(count)) for name, count in figures.items()}


# Body as stream: a role chunk, the texts in pieces, a finish chunk, for each choice


def _body_as_stream(answer: Answer, rendition: Rendition) -> Score:
    body: Tree = decode(answer.parts[0].decode())
    usage = body.pop("usage", None) or _figures(answer.usage)
    include_usage = rendition.include_usage
    choices = body.pop("choices")
    body["object"] = "chat.completion.chunk"
    always = {key: value for key, value in body.items() if key in _ON_EACH_CHUNK}
    once = {key: value for key, value in body.items() if key not in _ON_EACH_CHUNK}  # on the first chunk
    no_usage = {"usage": None} if include_usage else {}

    events: list[Event] = []
    for place, choice in enumerate(choices):
        for chunk in _chunks(choice, place):
            events.append(_event({**always, **once, "choices": [chunk], **no_usage}))
            once = {}
    if not events:
        raise ValueError("no choices")
    if include_usage:
        shown = zeroed(usage) if rendition.zero_usage else usage
        events.append(_event({**always, "choices": [], "usage": shown}))
    return Score(Form.STREAM, [*events, _DONE], tokens=_tokens(answer))


def _chunks(choice: Tree, place: int) -> list[Tree]:
    """Cut one choice of a body into the choices of chunks."""
    message: Tree = dict(choice["message"])
    index = choice.get("index", Number(str(place)))
    logprobs = choice.get("logprobs")
    streamed = [(key, message.pop(key)) for key in _STREAMED if message.get(key) and type(message[key]) is str]
    calls: list[Tree] = message.pop("tool_calls") if message.get("tool_calls") else []

    deltas: list[tuple[Tree, Any]] = [({"role": "assistant", **_opening(dict(streamed)), **message}, None)]
    for key, text in streamed:
        tokens = logprobs.get(key) if type(logprobs) is dict else None
        deltas += _text_deltas(key, text, tokens)
    for number, call in enumerate(calls):
        deltas += [(delta, None) for delta in _call_deltas(number, call)]
    deltas.append(({}, None))

    own = {key: value for key, value in choice.items() if key not in ("index", "message", "logprobs", "finish_reason")}
    chunks = [
        {"index": index, "delta": delta, **({"logprobs": probs} if "logprobs" in choice else {}), "finish_reason": None}
        for delta, probs in deltas
    ]
    chunks[-1] |= {"finish_reason": choice.get("finish_reason"), **own}
    return chunks


def _opening(streamed: Mapping[str, str]) -> Tree:
    return {"content": ""} if "content" in streamed else {}


def _text_deltas(key: str, text: str, tokens: Any) -> list[tuple[Tree, Any]]:
    """Cut a text at its tokens where they are known, each with its own log probability, else into words."""
    if type(tokens) is list and tokens:
        pieces = [token.get("token") for token in tokens if type(token.get("token")) is str]
        if "".join(pieces) == text and len(pieces) == len(tokens):
            return [
                ({key: piece}, _logprobs(key, [token])) for piece, token in zip(pieces, tokens, strict=True)
            ]  # else a character lies across tokens, which no text can show
    pieces = words(text)
    first = _logprobs(key, tokens) if tokens else None
    return [({key: piece}, first if number == 0 else None) for number, piece in enumerate(pieces)]


def _logprobs(key: str, tokens: Any) -> Tree:
    return {"content": None, "refusal": None, key: tokens}


def _call_deltas(number: int, call: Tree) -> list[Tree]:
    """One tool call as the vendor streams it: who is called, then with what."""
    first: Tree = {"index": Number(str(number)), **call}
    function = call.get("function")
    if type(function) is not dict or type(function.get("arguments")) is not str:
        return [{"tool_calls": [first]}]
    first["function"] = {**function, "arguments": ""}
    return [
        {"tool_calls": [first]},
        *(
            {"tool_calls": [{"index": Number(str(number)), "function": {"arguments": piece}}]}
            for piece in words(function["arguments"])
        ),
    ]


# Stream as body: the deltas added up


def _stream_as_body(answer: Answer, zero_usage: bool) -> Score:
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
            _add_choice(choices.setdefault(_number(item.get("index"), place), {}), item)
    if not choices:
        raise ValueError("no chunk with choices")
    body["object"] = "chat.completion"
    body["choices"] = [_settled_choice(index, choices[index]) for index in sorted(choices)]
    if body.get("usage", ...) is None:
        del body["usage"]
    # The values are JSON texts again, so that the two slots are found where they stand.
    text = encode(body)
    return _body_as_body(Answer(answer.dialect, Form.JSON, (text,), answer.offsets_ms[-1:]), zero_usage)


def _number(index: Any, place: int) -> int:
    return int(index.text) if type(index) is Number else place


def _add_choice(choice: Tree, item: Tree) -> None:
    for key, value in item.items():
        if key == "delta":
            accumulate(choice.setdefault("message", {}), value or {})
        elif key == "logprobs" and value is not None and choice.get(key) is not None:
            for name, tokens in value.items():
                if choice[key].get(name) is None:
                    choice[key][name] = tokens
                elif tokens is not None:
                    choice[key][name].extend(tokens)
        elif type(value) is list and type(choice.get(key)) is list:
            choice[key].extend(value)
        elif value is not None or key not in choice:
            choice[key] = value


def _settled_choice(index: int, choice: Tree) -> Tree:
    message = _settled(choice.get("message", {}))
    if calls := message.get("tool_calls"):
        for call in calls:
            call.pop("index", None)  # tells deltas apart; a body's calls are told apart by their order
    choice["index"] = Number(str(index))
    choice["message"] = {"role": "assistant", "content": None, **message}
    return choice


class _Text(list[str]):
    """A text in pieces: adding strings up one by one would copy a long answer once for every chunk."""


class _Indexed(dict[int, Any]):
    """A list whose items come in pieces under their `index`."""


def accumulate(sum_: Tree, delta: Tree) -> None:
    """Add a delta up, in place, as the official SDK does: texts follow each other, indexed items are merged, else the
    last value that is not null wins. Read the result through `_settled`.

    Unlike the SDK it does not double what servers repeat in every delta (role, id, name), and lists without index grow.
    """
    for key, value in delta.items():
        known = sum_.get(key)
        if value is None:
            sum_.setdefault(key, None)
        elif type(value) is str:
            if key in _LAST_WINS or type(known) is not _Text:
                sum_[key] = _Text([value])
            elif not (key in _IDENTIFIERS and "".join(known) == value):
                known.append(value)
        elif type(value) is dict:
            if type(known) is not dict:
                known = sum_[key] = {}
            accumulate(known, value)
        elif type(value) is list:
            if value and all(type(item) is dict and type(item.get("index")) is Number for item in value):
                if type(known) is not _Indexed:
                    known = sum_[key] = _Indexed()
                for item in value:
                    accumulate(known.setdefault(int(item["index"].text), {}), item)
            elif type(known) is list:
                known.extend(value)
            else:
                sum_[key] = value
        else:
            sum_[key] = value


def _settled(value: Any) -> Any:
    """Put texts and indexed lists together."""
    kind = type(value)
    if kind is _Text:
        return "".join(value)
    if kind is _Indexed:
        return [_settled(value[index]) for index in sorted(value)]
    if kind is dict:
        return {key: _settled(item) for key, item in value.items()}
    return value
