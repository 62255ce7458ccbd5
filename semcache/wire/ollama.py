"""Ollama's own chat and completions: which part of a request is the question, and what must be equal for an answer.

Everything belongs to the context but the question's text and the fields in NOT_CONTEXT; a field we have never heard of
does too. How replies are read is in ollama_reply.py, how answers are played in ollama_play.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from hashlib import blake2b
from typing import ClassVar

import orjson

from semcache.types import Answer, Ask, Traits
from semcache.wire import strict_json
from semcache.wire.dialect import Address, Rendition, Scribe
from semcache.wire.error_shapes import OllamaErrors
from semcache.wire.ollama_play import prepare
from semcache.wire.ollama_reply import CHAT, GENERATE, Layout, scribe
from semcache.wire.requests import context_of, invalid, is_stream, model_of
from semcache.wire.score import Identity, Score
from semcache.wire.strict_json import Number, Tree

# What does not change the answer, each with its reason. The only list by which anything stays out of a key.
NOT_CONTEXT = (
    "stream",  # delivery: one recording plays in both forms
    "keep_alive",  # delivery: how long the model stays in memory after the answer
)

# Stands where the question's text was. No JSON value is written like this, so no client can send an equal context.
_MARK = orjson.Fragment(b"?")

# Of a completion. With these its prompt is no question by itself, and one that is near means something else.
_MORE_THAN_A_QUESTION = (
    "context",  # the tokens of an earlier conversation
    "raw",  # a whole conversation in the model's own markup
    "suffix",  # the text around a gap to be filled
)


class _Ollama(OllamaErrors, ABC):
    """What both endpoints have in common."""

    layout: ClassVar[Layout]

    def parse(self, address: Address, body: bytes, headers: Mapping[str, str]) -> Ask:
        tree = strict_json.parse(body)
        model = model_of(tree, address)
        stream = is_stream(tree, default=True)
        traits = self._traits(tree)
        for name in NOT_CONTEXT:
            tree.pop(name, None)
        question = self._take_question(tree)
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
        )

    @abstractmethod
    def _traits(self, tree: Tree) -> Traits:
        """Read the traits, and put digests in the place of images. Raises ClientError."""

    @abstractmethod
    def _take_question(self, tree: Tree) -> str | None:
        """Return the question and leave its mark; None, and the tree as it was, where there is none."""

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
            has_tool_results=_in_tool_loop(messages),
            has_media=any(has_media),
            temperature=_temperature(tree),
            is_stateful=not messages,  # loads the model into memory, or with `keep_alive` 0 puts it out
        )

    def _take_question(self, tree: Tree) -> str | None:
        last = tree["messages"][-1] if tree.get("messages") else {}
        return _take(last, "content") if last.get("role") == "user" else None


class OllamaGenerate(_Ollama):
    """The dialect of `/api/generate`."""

    layout = GENERATE

    def _traits(self, tree: Tree) -> Traits:
        prompt = tree.get("prompt")
        if prompt is not None and type(prompt) is not str:
            raise invalid("prompt", "a string", tree)
        return Traits(
            has_media=_digest_images(tree),
            temperature=_temperature(tree),
            is_stateful=not prompt,  # as above
        )

    def _take_question(self, tree: Tree) -> str | None:
        return None if any(tree.get(name) for name in _MORE_THAN_A_QUESTION) else _take(tree, "prompt")


def _messages(tree: Tree) -> list[Tree]:
    messages = tree.get("messages")
    if messages is None:
        return []
    if type(messages) is not list:
        raise invalid("messages", "an array of objects", tree)
    for number, message in enumerate(messages):
        if type(message) is not dict:
            raise invalid(f"messages[{number}]", "an object", {f"messages[{number}]": message})
    return messages


def _in_tool_loop(messages: list[Tree]) -> bool:
    """Tool results anywhere, or a tool called since the user last spoke."""
    since_user = True
    for message in reversed(messages):
        role = message.get("role")
        if role == "tool":
            return True
        if role == "user":
            since_user = False
        if since_user and message.get("tool_calls"):
            return True
    return False


def _temperature(tree: Tree) -> float | None:
    options = tree.get("options")
    temperature = options.get("temperature") if type(options) is dict else None
    return float(temperature.text) if type(temperature) is Number else None


def _digest_images(holder: Tree) -> bool:
    """Whether there are images. Their base64 texts, megabytes each, are put into the context by digest."""
    images = holder.get("images")
    if type(images) is list:
        holder["images"] = [_digest(image) if type(image) is str else image for image in images]
    return bool(images)


def _digest(text: str) -> orjson.Fragment:
    """No JSON value is written like this either."""
    return orjson.Fragment(b"?%b" % blake2b(text.encode(), digest_size=32).hexdigest().encode())


def _take(holder: Tree, name: str) -> str | None:
    text = holder.get(name)
    if type(text) is not str or not text.strip():
        return None
    holder[name] = _MARK
    return text
