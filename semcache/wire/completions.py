"""OpenAI's legacy completions: a text that the model goes on with, or several.

The question is the prompt where it is one text, and nothing else in the answer depends on its letters: an answer that
repeats the prompt (`echo`), counts its characters (`logprobs`) or has to fit what comes behind it (`suffix`) belongs to
this very prompt. Replies are judged in openai_reply.py, answers played in openai_play.py, as a chat's are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from semcache.errors import ClientError
from semcache.types import Answer, Ask, Form, Traits
from semcache.wire import strict_json
from semcache.wire.dialect import Address, Rendition, Scribe
from semcache.wire.error_shapes import OpenAIErrors
from semcache.wire.identifiers import random_hex
from semcache.wire.marks import MARK
from semcache.wire.openai import CONTEXT_HEADERS, choices_of
from semcache.wire.openai_play import prepare
from semcache.wire.openai_reply import Choice, Judge
from semcache.wire.openai_usage import asking_for_usage
from semcache.wire.requests import (
    context_of,
    end_user_of,
    invalid,
    is_stream,
    model_of,
    named_headers,
    temperature_in,
)
from semcache.wire.score import Identity, Score
from semcache.wire.scribes import start_scribe
from semcache.wire.spoken import completion_text, spoken_in
from semcache.wire.strict_json import Number, Tree
from semcache.wire.text_choices import TextChoices

# What does not change the answer, each with its reason. The only list by which anything stays out of a key.
NOT_CONTEXT = (
    "stream",  # delivery: one recording plays in both forms
    "stream_options",  # delivery: usage chunk and padding
    "user",  # identity: the end user's id, for abuse reports; `cache.sharing` says who shares
)

_OF_THIS_PROMPT = ("echo", "logprobs", "suffix")

_CHOICES = TextChoices()


class OpenAICompletions(OpenAIErrors):
    """The dialect of `/v1/completions`."""

    def parse(self, address: Address, body: bytes, headers: Mapping[str, str]) -> Ask:
        tree = strict_json.parse(body)
        model = model_of(tree, address)
        stream = is_stream(tree)
        traits = Traits(choices=_prompts(tree) * choices_of(tree), temperature=temperature_in(tree))
        options = tree.get("stream_options")
        user = end_user_of(tree)

        for name in NOT_CONTEXT:
            tree.pop(name, None)
        question = _take_question(tree)
        return Ask(
            dialect=address.vendor,
            endpoint=address.endpoint,
            target=address.target,
            model=model,
            question=question,
            context=context_of(tree, self.context_headers(headers)),
            stream=stream,
            include_usage=stream and type(options) is dict and options.get("include_usage") is True,
            user=user,
            traits=traits,
            body=body,
        )

    def context_headers(self, headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        return named_headers(headers, CONTEXT_HEADERS)

    def upstream_body(self, ask: Ask, *, ask_usage: bool) -> bytes:
        return asking_for_usage(ask.body) if ask.stream and ask_usage and not ask.include_usage else ask.body

    def scribe(
        self, ask: Ask, status: int, headers: Mapping[str, str], *, store_tools: bool, limit_bytes: int
    ) -> Scribe:
        judge = Judge(take_text, ask.traits.choices)
        return start_scribe(judge, ask.dialect, status, headers, limit_bytes=limit_bytes)

    def prepare(self, answer: Answer, rendition: Rendition) -> Score:
        return prepare(answer, rendition, _CHOICES)

    def spoken(self, answer: Answer) -> str | None:
        return spoken_in(self, answer, completion_text)

    def fresh_identity(self, now: float) -> Identity:
        return Identity(id="cmpl-" + random_hex(), created=int(now))


def take_text(choice: Choice, item: Mapping[str, Any], form: Form, keep_arguments: bool) -> bool:
    """Note what a choice says. False: there is no text in it."""
    text = item.get("text")
    if text is None and form is Form.STREAM:
        return True  # Azure's content filter reports on text that has gone before
    if type(text) is not str:
        return False
    if text and not choice.said_something:
        choice.said_something = not text.isspace()
    return True


def _prompts(tree: Tree) -> int:
    """How many prompts there are: texts, or lists of the numbers of tokens. Each has its own choices in the answer."""
    prompt = tree.get("prompt")
    if prompt is None or type(prompt) is str:
        return 1
    if type(prompt) is not list:
        raise invalid("prompt", "a string or an array", tree)
    if not prompt:
        raise ClientError("Invalid 'prompt': the array is empty.", param="prompt", code="empty_array")
    return 1 if all(type(item) is Number for item in prompt) else len(prompt)


def _take_question(tree: Tree) -> str | None:
    """Return the prompt and leave a mark in its place; None, and the tree as it was, where it is no question."""
    if any(tree.get(name) not in (None, False, "") for name in _OF_THIS_PROMPT):
        return None
    prompt: Any = tree.get("prompt")
    is_list = type(prompt) is list and len(prompt) == 1
    text = prompt[0] if is_list else prompt
    if type(text) is not str or not text.strip():
        return None
    tree["prompt"] = [MARK] if is_list else MARK
    return text
