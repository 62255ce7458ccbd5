"""A text completion's choice, as a body has it and as a stream does: the same members, the text whole or in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from semcache.wire.chat_choices import add_member
from semcache.wire.playing import words
from semcache.wire.strict_json import Number, Tree


class TextChoices:
    body_object = "text_completion"
    chunk_object = "text_completion"

    def cut(self, choice: Tree, place: int) -> list[Tree]:
        """The text in pieces, and the end."""
        index = choice.get("index", Number(str(place)))
        text: str = choice["text"]
        probs = choice.get("logprobs")
        pieces: list[tuple[str, Any]] = list(_tokens(text, probs)) or [(piece, None) for piece in words(text)]
        if probs is not None and all(one is None for _, one in pieces):  # they belong to no piece: first comes all
            pieces = [("", probs), *pieces]

        has_probs = "logprobs" in choice
        chunks: list[Tree] = [
            {"text": piece, "index": index, **({"logprobs": one} if has_probs else {}), "finish_reason": None}
            for piece, one in [*pieces, ("", None)]
        ]
        own = {key: value for key, value in choice.items() if key not in ("text", "index", "logprobs")}
        chunks[-1] |= own
        return chunks

    def add(self, total: Tree, item: Tree) -> None:
        for key, value in item.items():
            if key == "text":
                total.setdefault("text", []).append(value or "")
            else:
                add_member(total, key, value)

    def settle(self, index: int, total: Tree) -> Tree:
        total["index"] = Number(str(index))
        total["text"] = "".join(total.get("text", ()))
        return total


def _tokens(text: str, probs: Any) -> Iterator[tuple[str, Tree]]:
    """Each token with its part of every list, where the tokens make up the text; else nothing.

    They do not where a character lies across tokens, which the vendor then writes as `bytes:\\xe9`.
    """
    tokens = probs.get("tokens") if type(probs) is dict else None
    if type(tokens) is not list or not tokens or not all(type(token) is str for token in tokens):
        return
    each = all(value is None or (type(value) is list and len(value) == len(tokens)) for value in probs.values())
    if not each or "".join(tokens) != text:
        return
    for place, token in enumerate(tokens):
        yield token, {name: values if values is None else [values[place]] for name, values in probs.items()}
