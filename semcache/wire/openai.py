"""OpenAI's chat completions: which part of a request is the question, and which must be equal for an answer to fit.

Everything belongs to the context but the question's text and the fields in NOT_CONTEXT; a field we have never heard of
does too. How replies are read is in openai_reply.py, how answers are played in openai_play.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import orjson

from semcache.errors import ClientError
from semcache.types import Answer, Ask, Form, Traits
from semcache.wire import strict_json
from semcache.wire.dialect import Scribe
from semcache.wire.error_shapes import OpenAIErrors
from semcache.wire.openai_play import prepare
from semcache.wire.openai_reply import start_scribe
from semcache.wire.score import Identity, Score
from semcache.wire.strict_json import Number, Tree

# What does not change the answer, each with its reason. The only list by which anything stays out of a key.
NOT_CONTEXT = (
    "stream",  # delivery: one recording plays in both forms
    "stream_options",  # delivery: usage chunk and padding
    "user",  # identity: the end user's id, for abuse reports; `cache.sharing` says who shares
    "safety_identifier",  # identity: what OpenAI replaces `user` by
    "prompt_cache_key",  # delivery: where the vendor looks for computed prefixes
    "prompt_cache_retention",  # delivery: how long it keeps them
    "prompt_cache_options",  # delivery: the same, newer
)
# `store: true` asks the vendor to keep the exchange, under the labels in `metadata`. Such a request is equal only to
# one which asks for the same to be kept. Without it, both say nothing about the answer: OpenAI reads metadata only to
# label what it stores, and tracing tools put a new id into it each time, which would leave no two requests equal.
_KEEPING = ("store", "metadata")

# Headers that change the effective request. Whose account pays may decide which models and data a request reaches.
CONTEXT_HEADERS = ("openai-organization", "openai-project", "openai-beta", "api-version")

# Stands where the question's text was. No JSON value is written like this, so no client can send an equal context.
_MARK = orjson.Fragment(b"?")

_TEXT_PARTS = frozenset({"text", "refusal"})  # any other kind of content part is media
_TOOL_ROLES = frozenset({"tool", "function"})
_TOOL_FIELDS = ("tools", "functions", "web_search_options")  # web search: an answer of its moment, like a tool's
_POSITIVE = re.compile(r"[1-9][0-9]{0,3}", re.ASCII)  # n: the vendor's own limit is 128


class OpenAIChat(OpenAIErrors):
    """The dialect of `/v1/chat/completions`."""

    name = "openai"

    def parse(self, endpoint: str, body: bytes, headers: Mapping[str, str]) -> Ask:
        tree = strict_json.parse(body)
        messages = _messages(tree)
        model = tree.get("model")
        if type(model) is not str or not model:
            raise _invalid("model", "a non-empty string", tree)
        stream = _is_stream(tree)
        traits = _traits(tree, messages)
        options = tree.get("stream_options")
        user = tree.get("user") or tree.get("safety_identifier")

        for name in NOT_CONTEXT:
            tree.pop(name, None)
        if tree.get("store") in (None, False):
            for name in _KEEPING:
                tree.pop(name, None)
        question = _take_question(messages[-1])
        context = strict_json.canonical(tree)
        if own := self.context_headers(headers):
            context += b"\n" + orjson.dumps(own)  # canonical JSON has no raw newline, so the parts cannot run together
        return Ask(
            dialect=self.name,
            endpoint=endpoint,
            model=model,
            question=question,
            context=context,
            stream=stream,
            include_usage=stream and type(options) is dict and options.get("include_usage") is True,
            user=user if type(user) is str else None,
            traits=traits,
            body=body,
        )

    def context_headers(self, headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        for name in CONTEXT_HEADERS:
            if name in headers:
                break
        else:
            return ()
        # Not headers[name]: a header may come twice, and both go upstream.
        lowered = [(name.lower(), value) for name, value in headers.items()]
        return tuple(sorted(pair for pair in lowered if pair[0] in CONTEXT_HEADERS))

    def upstream_body(self, ask: Ask, *, ask_usage: bool) -> bytes:
        """Every byte as received, but for what asks for usage: one member put in, or `include_usage` set to true."""
        if not (ask.stream and ask_usage) or ask.include_usage:
            return ask.body
        if b"stream_options" not in ask.body and b"\\u" not in ask.body:  # not even written with an escape
            return _insert(ask.body, b'"stream_options":{"include_usage":true},')
        text = ask.body.decode()
        start, end = strict_json.spans(text).get("stream_options", (0, 0))
        if not end:
            return _insert(ask.body, b'"stream_options":{"include_usage":true},')
        if text[start:end] == "null":
            return _replace(text, start, end, '{"include_usage":true}')
        if text[start] != "{":
            return ask.body  # the upstream will say what is wrong with it
        options = strict_json.spans(text, start)
        if "include_usage" not in options:
            member = '"include_usage":true' + ("," if options else "")
            return _replace(text, start + 1, start + 1, member)
        start, end = options["include_usage"]
        if text[start:end] not in ("false", "null"):
            return ask.body
        return _replace(text, start, end, "true")

    def scribe(
        self, ask: Ask, status: int, headers: Mapping[str, str], *, store_tools: bool, limit_bytes: int
    ) -> Scribe:
        return start_scribe(ask, status, headers, store_tools=store_tools, limit_bytes=limit_bytes)

    def prepare(self, answer: Answer, form: Form, *, include_usage: bool) -> Score:
        return prepare(answer, form, include_usage=include_usage)

    def fresh_identity(self, now: float) -> Identity:
        # From the kernel and not from a counter: worker processes are forked and must not count alike.
        return Identity(id="chatcmpl-" + os.urandom(12).hex(), created=int(now))


def _messages(tree: Tree) -> list[Tree]:
    messages = tree.get("messages")
    if type(messages) is not list:
        raise _invalid("messages", "an array of objects", tree)
    if not messages:
        raise ClientError("Invalid 'messages': the array is empty.", param="messages", code="empty_array")
    for number, message in enumerate(messages):
        if type(message) is not dict:
            raise _invalid(f"messages[{number}]", "an object", {f"messages[{number}]": message})
    return messages


def _is_stream(tree: Tree) -> bool:
    stream = tree.get("stream")
    if stream is None or type(stream) is bool:
        return bool(stream)
    raise _invalid("stream", "a boolean", tree)


def _choices(tree: Tree) -> int:
    n = tree.get("n")
    if n is None:
        return 1
    if type(n) is Number and _POSITIVE.fullmatch(n.text):
        return int(n.text)
    raise _invalid("n", "an integer from 1 to 9999", tree)


def _traits(tree: Tree, messages: list[Tree]) -> Traits:
    temperature = tree.get("temperature")
    return Traits(
        has_tools=any(tree.get(name) for name in _TOOL_FIELDS) or tree.get("web_search_options") == {},
        has_tool_results=_in_tool_loop(messages),
        has_media=any(_has_media(message) for message in messages),
        choices=_choices(tree),
        temperature=float(temperature.text) if type(temperature) is Number else None,
    )


def _in_tool_loop(messages: list[Tree]) -> bool:
    """Tool results anywhere, or a tool called since the user last spoke."""
    since_user = True
    for message in reversed(messages):
        role = message.get("role")
        if type(role) is str and role in _TOOL_ROLES:
            return True
        if role == "user":
            since_user = False
        if since_user and (message.get("tool_calls") or message.get("function_call")):
            return True
    return False


def _has_media(message: Tree) -> bool:
    content = message.get("content")
    if type(content) is list:
        for part in content:
            kind = part.get("type") if type(part) is dict else None
            if type(kind) is not str or kind not in _TEXT_PARTS:
                return True
    return bool(message.get("audio"))  # an earlier spoken answer, by its id


def _take_question(message: Tree) -> str | None:
    """Return the question and leave its mark in the message; None, and the message as it was, where there is none.

    Text parts are joined by line ends. Where that does not tell the parts apart any more, the marks carry lengths, so
    that ["a\\nb", "c"] and ["a", "b\\nc"], one question, are two contexts.
    """
    if message.get("role") != "user":
        return None
    content = message.get("content")
    if type(content) is str:
        if not content.strip():
            return None
        message["content"] = _MARK
        return content
    if type(content) is not list:
        return None
    parts: list[dict[str, Any]] = [
        part for part in content if type(part) is dict and part.get("type") == "text" and type(part.get("text")) is str
    ]
    texts = [part["text"] for part in parts]
    question = "\n".join(texts)
    if not question.strip():
        return None
    tells_apart = question.count("\n") == len(texts) - 1
    for part in parts:
        part["text"] = _MARK if tells_apart or len(parts) == 1 else orjson.Fragment(b"?%d" % len(part["text"]))
    return question


def _invalid(name: str, expected: str, tree: Tree) -> ClientError:
    if tree.get(name) is None and name not in tree:
        return ClientError(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    got = strict_json.kind(tree[name])
    return ClientError(f"Invalid '{name}': expected {expected}, got {got}.", param=name, code="invalid_type")


def _insert(body: bytes, member: bytes) -> bytes:
    """Put a member first in the object: a request has others, `messages` at least, so a comma follows."""
    start = body.index(b"{") + 1
    return body[:start] + member + body[start:]


def _replace(text: str, start: int, end: int, by: str) -> bytes:
    return (text[:start] + by + text[end:]).encode()
