"""OpenAI's chat completions: which part of a request is the question, and which must be equal for an answer to fit.

Everything belongs to the context but the question's text and the fields in NOT_CONTEXT; a field we have never heard of
does too. How replies are read is in openai_reply.py, how answers are played in openai_play.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from semcache.types import Answer, Ask, Traits
from semcache.wire import strict_json
from semcache.wire.chat_choices import ChatChoices
from semcache.wire.dialect import Address, Rendition, Scribe
from semcache.wire.error_shapes import OpenAIErrors
from semcache.wire.identifiers import random_hex
from semcache.wire.marks import sealed, take_content
from semcache.wire.openai_play import prepare
from semcache.wire.openai_reply import Judge, take_message
from semcache.wire.openai_usage import asking_for_usage
from semcache.wire.requests import (
    asking_message,
    context_of,
    end_user_of,
    in_tool_loop,
    invalid,
    is_stream,
    messages_of,
    model_of,
    named_headers,
    temperature_in,
)
from semcache.wire.score import Identity, Score
from semcache.wire.scribes import start_scribe
from semcache.wire.spoken import chat_text, spoken_in
from semcache.wire.strict_json import Number, Tree
from semcache.wire.turns import Conversing, Omission, Wording, take_turns

# What does not change the answer, each with its reason. With CACHE_MARK, inside content parts, the only list by which
# anything stays out of a key.
NOT_CONTEXT = (
    "stream",  # delivery: one recording plays in both forms
    "stream_options",  # delivery: usage chunk and padding
    "user",  # identity: the end user's id, for abuse reports; `cache.sharing` says who shares
    "safety_identifier",  # identity: what OpenAI replaces `user` by
    "prompt_cache_key",  # delivery: where the vendor looks for computed prefixes
    "prompt_cache_retention",  # delivery: how long it keeps them
    "prompt_cache_options",  # delivery: the same, newer
    "store",  # true asks the vendor to keep the exchange, and no stored answer can do that: see Traits.is_stateful
    "metadata",  # labels for what is kept so; tracing tools put a new id into it each time
)
CACHE_MARK = "prompt_cache_breakpoint"  # delivery: up to where the vendor keeps what it has computed of the prompt

# Headers that change the effective request. Whose account pays may decide which models and data a request reaches.
CONTEXT_HEADERS = ("openai-organization", "openai-project", "openai-beta", "api-version")

_CHOICES = ChatChoices()

_TEXT_PARTS = frozenset({"text", "refusal"})  # any other kind of content part is media
_PLAIN = Wording(frozenset({"role", "content"}), _TEXT_PARTS)
_TOOL_FIELDS = ("tools", "functions")
_POSITIVE = re.compile(r"[1-9][0-9]{0,3}", re.ASCII)  # n: the vendor's own limit is 128


class OpenAIChat(OpenAIErrors, Conversing):
    """The dialect of `/v1/chat/completions`."""

    def _parse(self, address: Address, body: bytes, headers: Mapping[str, str], omission: Omission | None) -> Ask:
        tree = strict_json.parse(body)
        messages = messages_of(tree)
        model = model_of(tree, address)
        stream = is_stream(tree)
        traits = _traits(tree, messages)
        options = tree.get("stream_options")
        user = end_user_of(tree)

        for name in NOT_CONTEXT:
            tree.pop(name, None)
        turn = asking_message(messages)
        question = take_content(turn, "text") if turn else None
        turns = take_turns(messages, turn, _PLAIN, omission) if turn and question is not None else ()
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
            turns=turns,
        )

    def context_headers(self, headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        return named_headers(headers, CONTEXT_HEADERS)

    def upstream_body(self, ask: Ask, *, ask_usage: bool) -> bytes:
        return asking_for_usage(ask.body) if ask.stream and ask_usage and not ask.include_usage else ask.body

    def scribe(
        self, ask: Ask, status: int, headers: Mapping[str, str], *, store_tools: bool, limit_bytes: int
    ) -> Scribe:
        judge = Judge(take_message, ask.traits.choices, store_tools)
        return start_scribe(judge, ask.dialect, status, headers, limit_bytes=limit_bytes)

    def prepare(self, answer: Answer, rendition: Rendition) -> Score:
        return prepare(answer, rendition, _CHOICES)

    def spoken(self, answer: Answer) -> str | None:
        return spoken_in(self, answer, chat_text)

    def fresh_identity(self, now: float) -> Identity:
        return Identity(id="chatcmpl-" + random_hex(), created=int(now))


def choices_of(tree: Tree) -> int:
    """How many answers to each prompt are asked for. Raises ClientError."""
    n = tree.get("n")
    if n is None:
        return 1
    if type(n) is Number and _POSITIVE.fullmatch(n.text):
        return int(n.text)
    raise invalid("n", "an integer from 1 to 9999", tree)


def _traits(tree: Tree, messages: list[Tree]) -> Traits:
    searches = tree.get("web_search_options") is not None
    media = [_take_media(message) for message in messages]
    return Traits(
        has_tools=searches or any(tree.get(name) for name in _TOOL_FIELDS),
        has_tool_results=in_tool_loop(messages),
        has_hosted_tools=searches,
        has_media=any(media),
        choices=choices_of(tree),
        temperature=temperature_in(tree),
        is_stateful=tree.get("store") is True,
    )


def _take_media(message: Tree) -> bool:
    """Whether a message holds images, audio or files. Put digests for their data, and take out marks for the vendor's
    prompt cache, in place."""
    content = message.get("content")
    found = False
    if type(content) is list:
        for place, part in enumerate(content):
            kind = part.get("type") if type(part) is dict else None
            if type(part) is dict:
                part.pop(CACHE_MARK, None)
            if type(kind) is not str or kind not in _TEXT_PARTS:
                content[place] = sealed(part)
                found = True
    return found or bool(message.get("audio"))  # an earlier spoken answer, by its id
