"""OpenAI's Responses: which part of a request is the question, what must be equal, and what is held at the upstream.

Everything belongs to the context but the question's text and the members in NOT_CONTEXT; one we have never heard of
does too. What the upstream holds (a conversation, a job, an item named by its id) is never answered from the cache: see
`_is_stateful`. How replies are read is in responses_reply.py, how answers are played in responses_play.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from semcache.errors import SemcacheError
from semcache.types import Answer, Ask, Traits
from semcache.wire import strict_json
from semcache.wire.dialect import Address, Rendition, Scribe
from semcache.wire.error_shapes import OpenAIErrors
from semcache.wire.identifiers import random_hex
from semcache.wire.marks import sealed, take_content, take_text
from semcache.wire.openai import CACHE_MARK, CONTEXT_HEADERS
from semcache.wire.requests import (
    asking_message,
    context_of,
    end_user_of,
    is_stream,
    model_of,
    named_headers,
    objects_in,
    temperature_in,
)
from semcache.wire.responses_play import prepare
from semcache.wire.responses_reply import scribe
from semcache.wire.score import Identity, Score
from semcache.wire.spoken import response_text, spoken_in
from semcache.wire.strict_json import Tree
from semcache.wire.turns import Conversing, Omission, Wording, take_turns

# What does not change the answer, each with its reason. The only list by which anything stays out of a key, but for the
# vendor's marks for its prompt cache inside content parts (CACHE_MARK).
#
# Not in it, though they look like delivery: `store`, for with `false` the vendor does not keep the response under its
# id, and a replay may not say otherwise; `service_tier`, for the answer says which one served it and so what it cost;
# `prompt_cache_options`, for its `prewarm` asks for no output and its `comparison_response_id` for a diagnosis.
NOT_CONTEXT = (
    "stream",  # delivery: one recording plays in both forms
    "stream_options",  # delivery: padding
    "user",  # identity: the end user's id, for abuse reports; `cache.sharing` says who shares
    "safety_identifier",  # identity: what OpenAI replaces `user` by
    "prompt_cache_key",  # delivery: where the vendor looks for computed prefixes
    "prompt_cache_retention",  # delivery: how long it keeps them
    "metadata",  # labels; tracing tools put a new id into it each time
)

# Of NOT_CONTEXT, what the answer repeats, and how the vendor writes it for a request without it. None: as it likes, by
# the account's settings, so what was recorded stays.
_ECHOED: Mapping[str, bytes | None] = {
    "metadata": b"{}",
    "user": b"null",
    "safety_identifier": b"null",
    "prompt_cache_key": b"null",
    "prompt_cache_retention": None,
}

_TEXT_PARTS = frozenset({"input_text", "output_text", "refusal"})  # any other kind of content part is media
# An answer sent back with the next question has the id and the status that it had.
_PLAIN = Wording(frozenset({"role", "content", "type", "id", "status"}), _TEXT_PARTS)
_MEDIA_ITEMS = frozenset({"image_generation_call", "computer_call_output"})

# Tools whose calls the caller carries out. All others are the vendor's (searches, code, images, MCP) or act on a screen
# of the moment (computer*), or are new: what they bring is not kept.
_CALLERS_TOOLS = frozenset({"function", "custom", "apply_patch", "local_shell"})


class Responses(OpenAIErrors, Conversing):
    """The dialect of `/v1/responses`."""

    def _parse(self, address: Address, body: bytes, headers: Mapping[str, str], omission: Omission | None) -> Ask:
        tree = strict_json.parse(body)
        model = _model(tree, address)
        stream = is_stream(tree)
        items = _items(tree)
        traits = _traits(tree, items)
        user = end_user_of(tree)
        echo = tuple((name, text) for name in _ECHOED if (text := _echoed(tree, name)) is not None)

        for name in NOT_CONTEXT:
            tree.pop(name, None)
        turn = asking_message(items)
        question = _take_question(tree, items, turn)
        _seal_media(items)
        turns = take_turns(items, turn, _PLAIN, omission) if turn and question is not None else ()
        return Ask(
            dialect=address.vendor,
            endpoint=address.endpoint,
            target=address.target,
            model=model,
            question=question,
            context=context_of(tree, self.context_headers(headers)),
            stream=stream,
            include_usage=False,  # nobody asks for it here: it stands in the last event of every stream
            user=user,
            traits=traits,
            body=body,
            echo=echo,
            turns=turns,
        )

    def context_headers(self, headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        return named_headers(headers, CONTEXT_HEADERS)

    def upstream_body(self, ask: Ask, *, ask_usage: bool) -> bytes:
        return ask.body

    def scribe(
        self, ask: Ask, status: int, headers: Mapping[str, str], *, store_tools: bool, limit_bytes: int
    ) -> Scribe:
        return scribe(ask, status, headers, store_tools=store_tools, limit_bytes=limit_bytes)

    def prepare(self, answer: Answer, rendition: Rendition) -> Score:
        return prepare(answer, rendition)

    def spoken(self, answer: Answer) -> str | None:
        return spoken_in(self, answer, response_text)

    def fresh_identity(self, now: float) -> Identity:
        return Identity(id="resp_" + random_hex() + random_hex(), created=int(now))

    def error_event(self, error: SemcacheError, request_id: str) -> bytes:
        """As the vendor documents the event, flat, and as it sends it, nested: clients read the one or the other.

        The number is no continuation of the stream's, which is not known here; nothing comes after it.
        """
        body: dict[str, Any] = orjson.loads(self.error_body(error, request_id))
        flat = {name: body["error"][name] for name in ("code", "message", "param")}
        return b"event: error\ndata: %b\n\n" % orjson.dumps({"type": "error", "sequence_number": 0, **flat, **body})


def _model(tree: Tree, address: Address) -> str:
    """The model asked for; empty where a stored prompt names it and the request does not."""
    if tree.get("model") is None and address.model is None and type(tree.get("prompt")) is dict:
        return ""
    return model_of(tree, address)


def _items(tree: Tree) -> list[Tree]:
    """The input's items, which stay those in the tree. None where it is a text, or left to what the upstream holds."""
    given = tree.get("input")
    if given is None or type(given) is str:
        return []
    return objects_in(tree, "input", "a string or an array of objects")


def _echoed(tree: Tree, name: str) -> bytes | None:
    value = tree.get(name)
    return _ECHOED[name] if value is None else strict_json.encode(value)


def _traits(tree: Tree, items: list[Tree]) -> Traits:
    tools = list(_tools(tree, items))
    is_stateful = _is_stateful(tree, items)
    return Traits(
        has_tools=bool(tools),
        has_tool_results=_in_tool_loop(items),
        has_hosted_tools=not all(map(_is_callers, tools)),
        has_media=any(map(_has_media, items)) or _has_media_variables(tree),
        is_stateful=is_stateful,
        id_is_a_handle=not is_stateful and tree.get("store") is None,
        temperature=temperature_in(tree),
    )


# State


def _is_stateful(tree: Tree, items: list[Tree]) -> bool:
    """Whether it reads or leaves at the upstream what no stored answer can stand for.

    1. It goes on from an earlier response or a conversation, or compares itself with one.
    2. It starts a job that is asked for later, or says that the response is to be kept. Saying nothing leaves that to
       the vendor's default, and a replay then shows the recorded id, under which it is kept: see `id_is_a_handle`.
    3. It uses a stored prompt in whatever version is current there. A version, once published, does not change.
    4. It names items by their id alone.
    """
    options = tree.get("prompt_cache_options")
    prompt = tree.get("prompt")
    return (
        tree.get("previous_response_id") is not None
        or tree.get("conversation") is not None
        or (type(options) is dict and options.get("comparison_response_id") is not None)
        or bool(tree.get("background"))
        or bool(tree.get("store"))
        or (prompt is not None and not (type(prompt) is dict and prompt.get("version")))
        or any(map(_is_reference, items))
    )


def _is_reference(item: Tree) -> bool:
    """An item that is nothing but an id, or reasoning of which only the upstream has more than a summary."""
    kind = item.get("type")
    if kind == "reasoning":
        return bool(item.get("id")) and not item.get("encrypted_content") and not item.get("content")
    return kind == "item_reference" or (kind is None and "role" not in item and "id" in item)


# Tools


def _tools(tree: Tree, items: list[Tree]) -> Iterator[Any]:
    """All tools declared, wherever: a request may add some in the middle of its input."""
    for holder in (tree, *(item for item in items if item.get("type") == "additional_tools")):
        tools = holder.get("tools")
        yield from tools if type(tools) is list else [tools] if tools else []


def _is_callers(tool: Any) -> bool:
    if type(tool) is not dict:
        return False
    kind = tool.get("type")
    if kind == "namespace":
        return type(tool.get("tools")) is list and all(map(_is_callers, tool["tools"]))
    if kind == "shell":  # in the vendor's container unless it is said to be the caller's
        environment = tool.get("environment")
        return type(environment) is dict and environment.get("type") == "local"
    if kind == "tool_search":
        return tool.get("execution") == "client"
    return type(kind) is str and kind in _CALLERS_TOOLS


def _in_tool_loop(items: list[Tree]) -> bool:
    """Results of tools anywhere, or a tool called since the user last spoke."""
    since_user = True
    for item in reversed(items):
        kind = item.get("type")
        if type(kind) is str and kind.endswith(("_output", "_approval_response")):
            return True
        if item.get("role") == "user":
            since_user = False
        if since_user and type(kind) is str and kind.endswith("_call"):
            return True
    return False


# Media


def _parts(item: Tree) -> Iterator[Any]:
    """What a message, or a tool's result, is made of, where that is more than a text."""
    for name in ("content", "output"):
        given = item.get(name)
        if type(given) is list:
            yield from given


def _is_media(part: Any) -> bool:
    kind = part.get("type") if type(part) is dict else None
    return type(kind) is not str or kind not in _TEXT_PARTS


def _has_media(item: Tree) -> bool:
    kind = item.get("type")
    if type(kind) is str and kind in _MEDIA_ITEMS:
        return True
    return kind != "reasoning" and any(map(_is_media, _parts(item)))


def _has_media_variables(tree: Tree) -> bool:
    prompt = tree.get("prompt")
    variables = prompt.get("variables") if type(prompt) is dict else None
    return type(variables) is dict and any(_is_media(value) for value in variables.values() if type(value) is not str)


def _seal_media(items: list[Tree]) -> None:
    """Put digests for images, audio and files, and take out marks for the vendor's prompt cache, in place."""
    for item in items:
        for name in ("content", "output"):
            if type(item.get(name)) is list:
                item[name] = [_without_data(part) for part in item[name]]
        kind = item.get("type")
        if type(kind) is str and kind in _MEDIA_ITEMS:
            item.update(sealed(item))


def _without_data(part: Any) -> Any:
    if type(part) is dict:
        part.pop(CACHE_MARK, None)
    return sealed(part) if _is_media(part) else part


# The question


def _take_question(tree: Tree, items: list[Tree], turn: Tree | None) -> str | None:
    """Return the question and leave its mark in the tree; None, and the tree as it was, where there is none.

    It is the input's text, or that of the last user message if only instructions follow.
    """
    if not items:
        return take_text(tree, "input")
    if turn is None or turn.get("type", "message") != "message":
        return None
    return take_content(turn, "input_text")
