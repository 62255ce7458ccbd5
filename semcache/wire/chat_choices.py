"""A chat's choice, as a body has it and as a stream does: a message, or deltas that add up to one.

They are added up by the rules of the official SDK, so a reader cannot tell which of the two was recorded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from semcache.wire.playing import words
from semcache.wire.strict_json import Number, Tree

_STREAMED = ("reasoning_content", "reasoning", "content", "refusal")  # texts of a message that come in pieces, in order
_GIVEN = {"function": "arguments", "custom": "input"}  # what a call of each kind is given, in pieces too

_LAST_WINS = frozenset({"role", "index", "type"})  # servers repeat these in every delta; the others are added up
_IDENTIFIERS = frozenset({"id", "name"})  # repeated by some servers, sent in pieces by others


class ChatChoices:
    body_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def cut(self, choice: Tree, place: int) -> list[Tree]:
        """A role, the texts in pieces, the calls in pieces, and the end."""
        message: Tree = dict(choice["message"])
        index = choice.get("index", Number(str(place)))
        streamed = [(key, message.pop(key)) for key in _STREAMED if message.get(key) and type(message[key]) is str]
        calls: list[Tree] = message.pop("tool_calls") if message.get("tool_calls") else []
        function: Tree | None = message.pop("function_call") if type(message.get("function_call")) is dict else None
        probs = _Probabilities(choice.get("logprobs"))

        said = [delta for key, text in streamed for delta in probs.text_deltas(key, text)]
        opening = {"content": ""} if any(key == "content" for key, _ in streamed) else {}
        deltas: list[tuple[Tree, Any]] = [({"role": "assistant", **opening, **message}, probs.left_over()), *said]
        for number, call in enumerate(calls):
            deltas += [({"tool_calls": [delta]}, None) for delta in _call_deltas(number, call)]
        if function is not None:
            deltas += [({"function_call": delta}, None) for delta in _given_in_pieces(function, "arguments")]
        deltas.append(({}, None))

        has_probs = "logprobs" in choice
        chunks = [
            {"index": index, "delta": delta, **({"logprobs": one} if has_probs else {}), "finish_reason": None}
            for delta, one in deltas
        ]
        own = {key: value for key, value in choice.items() if key not in ("index", "message", "logprobs")}
        chunks[-1] |= {"finish_reason": None, **own}
        return chunks

    def add(self, total: Tree, item: Tree) -> None:
        for key, value in item.items():
            if key == "delta":
                accumulate(total.setdefault("message", {}), value or {})
            else:
                add_member(total, key, value)

    def settle(self, index: int, total: Tree) -> Tree:
        message = _settled(total.get("message", {}))
        if calls := message.get("tool_calls"):
            for call in calls:
                call.pop("index", None)  # tells deltas apart; a body's calls are told apart by their order
        total["index"] = Number(str(index))
        total["message"] = {"role": "assistant", "content": None, **message}
        return total


def add_member(total: Tree, key: str, value: Any) -> None:
    """Add a member that a choice of any endpoint may have: log probabilities are joined, lists grow, else the last
    value that is not null wins."""
    known = total.get(key)
    if key == "logprobs" and type(value) is dict and type(known) is dict:
        for name, tokens in value.items():
            add_member(known, name, tokens)
    elif type(value) is list and type(known) is list:
        known.extend(value)
    elif value is not None or key not in total:
        total[key] = value


# Cutting


class _Probabilities:
    """The log probabilities of a choice, given out with the texts that they belong to."""

    def __init__(self, probs: Any) -> None:
        self._probs = probs
        self._given: set[str] = set()

    def text_deltas(self, key: str, text: str) -> Iterable[tuple[Tree, Any]]:
        """Cut a text at its tokens where they are known, each with its own log probability, else into words."""
        tokens = self._probs.get(key) if type(self._probs) is dict else None
        if type(tokens) is list and tokens and all(type(token) is dict for token in tokens):
            pieces = [token.get("token") for token in tokens]
            if all(type(piece) is str for piece in pieces) and "".join(pieces) == text:
                self._given.add(key)
                return [
                    ({key: piece}, {"content": None, "refusal": None, key: [token]})
                    for piece, token in zip(pieces, tokens, strict=True)
                ]
            # else a character lies across tokens, which no text can show
        return [({key: piece}, None) for piece in words(text)]

    def left_over(self) -> Any:
        """What belongs to no piece of a text: it goes with the beginning."""
        if not self._given:
            return self._probs
        rest = {name: tokens for name, tokens in self._probs.items() if name not in self._given}
        return dict.fromkeys(self._given) | rest if any(t is not None for t in rest.values()) else None


def _call_deltas(number: int, call: Tree) -> list[Tree]:
    """One tool call as the vendor streams it: who is called, then with what."""
    index = Number(str(number))
    for kind, given in _GIVEN.items():
        if type(call.get(kind)) is dict:
            first, *pieces = _given_in_pieces(call[kind], given)
            return [{"index": index, **call, kind: first}, *({"index": index, kind: piece} for piece in pieces)]
    return [{"index": index, **call}]


def _given_in_pieces(called: Tree, given: str) -> list[Tree]:
    text = called.get(given)
    if type(text) is not str or not text:
        return [called]
    return [{**called, given: ""}, *({given: piece} for piece in words(text))]


# Adding up


class _Text(list[str]):
    """A text in pieces: adding strings up one by one would copy a long answer once for every chunk."""


class _Indexed(dict[int, Any]):
    """A list whose items come in pieces under their `index`."""


def accumulate(total: Tree, delta: Tree) -> None:
    """Add a delta up, in place, as the official SDK does: texts follow each other, indexed items are merged, else the
    last value that is not null wins. Read the result through `_settled`.

    Unlike the SDK it does not double what servers repeat in every delta (role, id, name), and lists without index grow.
    """
    for key, value in delta.items():
        known = total.get(key)
        if value is None:
            total.setdefault(key, None)
        elif type(value) is str:
            if key in _LAST_WINS or type(known) is not _Text:
                total[key] = _Text([value])
            elif not (key in _IDENTIFIERS and "".join(known) == value):
                known.append(value)
        elif type(value) is dict:
            if type(known) is not dict:
                known = total[key] = {}
            accumulate(known, value)
        elif type(value) is list:
            if value and all(type(item) is dict and type(item.get("index")) is Number for item in value):
                if type(known) is not _Indexed:
                    known = total[key] = _Indexed()
                for item in value:
                    accumulate(known.setdefault(int(item["index"].text), {}), item)
            elif type(known) is list:
                known.extend(value)
            elif value or known is None:  # some servers have an empty list of calls in every delta
                total[key] = value
        else:
            total[key] = value


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
