"""Ollama's own chat and completions: which part of a request is the question, and what must be equal for an answer.

Everything belongs to the context but the question's text and the fields in NOT_CONTEXT; a field we have never heard of
does too. How replies are read is in ollama_reply.py, how answers are played in ollama_play.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from semcache.types import Answer, Ask, Traits, Turn
from semcache.wire import strict_json
from semcache.wire.dialect import Address, Rendition, Scribe
from semcache.wire.error_shapes import OllamaErrors
from semcache.wire.marks import sealed, take_text
from semcache.wire.ollama_play import prepare
from semcache.wire.ollama_reply import CHAT, GENERATE, Layout, scribe
from semcache.wire.requests import (
    asking_message,
    context_of,
    in_tool_loop,
    invalid,
    is_stream,
    model_of,
    objects_in,
    temperature_in,
)
from semcache.wire.score import Identity, Score
from semcache.wire.spoken import ollama_text, spoken_in
from semcache.wire.strict_json import Tree
from semcache.wire.turns import Conversing, Omission, Wording, take_turns

# What does not change the answer, each with its reason. The only list by which anything stays out of a key.
NOT_CONTEXT = (
    "stream",  # delivery: one recording plays in both forms
    "keep_alive",  # delivery: how long the model stays in memory after the answer
)

_PLAIN = Wording(frozenset({"role", "content"}), frozenset())

# Of a completion. With these its prompt is no question by itself, and one that is near means something else.
_MORE_THAN_A_QUESTION = (
    "context",  # the tokens of an earlier conversation
    "raw",  # a whole conversation in the model's own markup
    "suffix",  # the text around a gap to be filled
)


class _Ollama(OllamaErrors, Conversing, ABC):
    """What both endpoints have in common."""

    layout: ClassVar[Layout]

    def _parse(self, address: Address, body: bytes, headers: Mapping[str, str], omission: Omission | None) -> Ask:
        tree = strict_json.parse(body)
        model = model_of(tree, address)
        stream = is_stream(tree, default=True)
        traits = self._traits(tree)
        for name in NOT_CONTEXT:
            tree.pop(name, None)
        question, turns = self._take_question(tree, omission)
        return Ask(
            dialect=address.vendor,
            endpoint=address.endpoint,
            target=address.target,
            model=model,
            question=question,
            context=context_of(tree, ()),
            stream=stream,
            include_usage=False,  # the last line has the figures, asked for or not
            user=None,
            traits=traits,
            body=body,
            turns=turns,
        )

    @abstractmethod
    def _traits(self, tree: Tree) -> Traits:
        """Read the traits, and put digests in the place of images. Raises ClientError."""

    @abstractmethod
    def _take_question(self, tree: Tree, omission: Omission | None) -> tuple[str | None, tuple[Turn, ...]]:
        """Return the question and leave its mark; None, and the tree as it was, where there is none.

        With it come the turns before it, of which those are left out that `omission` names.
        """

    def context_headers(self, headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        return ()  # the API has none

    def upstream_body(self, ask: Ask, *, ask_usage: bool) -> bytes:
        return ask.body

    def scribe(
        self, ask: Ask, status: int, headers: Mapping[str, str], *, store_tools: bool, limit_bytes: int
    ) -> Scribe:
        return scribe(self.layout, ask, status, headers, store_tools=store_tools, limit_bytes=limit_bytes)

    def prepare(self, answer: Answer, rendition: Rendition) -> Score:
        return prepare(self.layout, answer, rendition)

    def spoken(self, answer: Answer) -> str | None:
        return spoken_in(self, answer, ollama_text)

    def fresh_identity(self, now: float) -> Identity:
        return Identity(id=None, created=int(now))  # these answers have no id


class OllamaChat(_Ollama):
    """The dialect of `/api/chat`."""

    layout = CHAT

    def _traits(self, tree: Tree) -> Traits:
        messages = _messages(tree)
        has_media = [_digest_images(message) for message in messages]
        return Traits(
            has_tools=bool(tree.get("tools")),
            has_tool_results=in_tool_loop(messages),
            has_media=any(has_media),
            temperature=temperature_in(_options(tree)),
            is_stateful=not messages,  # loads the model into memory, or with `keep_alive` 0 puts it out
        )

    def _take_question(self, tree: Tree, omission: Omission | None) -> tuple[str | None, tuple[Turn, ...]]:
        messages = _messages(tree)
        turn = asking_message(messages)
        question = take_text(turn, "content") if turn else None
        return question, take_turns(messages, turn, _PLAIN, omission) if turn and question is not None else ()


class OllamaGenerate(_Ollama):
    """The dialect of `/api/generate`."""

    layout = GENERATE

    def _traits(self, tree: Tree) -> Traits:
        prompt = tree.get("prompt")
        if prompt is not None and type(prompt) is not str:
            raise invalid("prompt", "a string", tree)
        return Traits(
            has_media=_digest_images(tree),
            temperature=temperature_in(_options(tree)),
            is_stateful=not prompt,  # as above
        )

    def _take_question(self, tree: Tree, omission: Omission | None) -> tuple[str | None, tuple[Turn, ...]]:
        return None if any(tree.get(name) for name in _MORE_THAN_A_QUESTION) else take_text(tree, "prompt"), ()


def _messages(tree: Tree) -> list[Tree]:
    """None are as good as an empty list here."""
    return [] if tree.get("messages") is None else objects_in(tree, "messages", "an array of objects")


def _options(tree: Tree) -> Tree:
    options = tree.get("options")
    return options if type(options) is dict else {}


def _digest_images(holder: Tree) -> bool:
    """Whether there are images. Their base64 texts, megabytes each, are put into the context by digest."""
    images = holder.get("images")
    if not images:
        return False
    holder["images"] = sealed(images)
    return True
