"""Anthropic's Messages: which part of a request is the question, and which must be equal for an answer to fit.

Everything belongs to the context but the question's text, the fields in NOT_CONTEXT, the end user's id and prompt-cache
hints; a field we have never heard of does too. How replies are read is in anthropic_reply.py, how answers are played
in anthropic_play.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from semcache.types import Answer, Ask, Traits
from semcache.wire import strict_json
from semcache.wire.anthropic_play import prepare
from semcache.wire.anthropic_reply import scribe
from semcache.wire.dialect import Address, Rendition, Scribe
from semcache.wire.error_shapes import AnthropicErrors
from semcache.wire.identifiers import random_hex
from semcache.wire.marks import sealed, take_content
from semcache.wire.requests import context_of, is_stream, messages_of, model_of, named_headers, temperature_in
from semcache.wire.score import Identity, Score
from semcache.wire.spoken import message_text, spoken_in
from semcache.wire.strict_json import Tree
from semcache.wire.turns import Conversing, Omission, Wording, take_turns

# What does not change the answer, each with its reason. With the hints and the id that `_take_hint` and `_take_user`
# take from deeper down, the only list by which anything stays out of a key.
NOT_CONTEXT = (
    "stream",  # delivery: one recording plays in both forms
    "cache_control",  # delivery: what of the prompt the vendor keeps computed
)
# Staying in: `inference_geo`, a promise about places, which an answer computed elsewhere would break, and
# `service_tier`, for the answer says which capacity served it, and so what it has cost.

# Headers that change the effective request. A workspace decides which files and models a request reaches, and a user
# profile for whom it is made: another company, whose answers are not for the next.
CONTEXT_HEADERS = ("anthropic-version", "anthropic-beta", "anthropic-workspace-id", "anthropic-user-profile-id")

_BETA = "anthropic-beta"

_TEXT_BLOCKS = frozenset({"text", "thinking", "redacted_thinking", "search_result", "compaction", "fallback"})
_PLAIN = Wording(frozenset({"role", "content"}), frozenset({"text"}))
_TOOL_CHANGES = frozenset({"tool_addition", "tool_removal"})
_USES_OF_TOOLS = ("tool_use", "tool_result")  # as the type ends: of the caller's tools, and of those the vendor ran

# Tools that the caller runs: its own, those that models were trained on, and references to one declared elsewhere in
# the request. The vendor runs every other kind (web_search_20250305, code_execution_20250825, advisor_20260301,
# mcp_toolset, ...); one that we do not know is taken for such.
_CALLERS_TOOL = re.compile(
    r"custom|tool_reference|(?:bash|text_editor|memory|computer|computer_toolset|browser_toolset)_\d{8}", re.ASCII
)


class AnthropicMessages(AnthropicErrors, Conversing):
    """The dialect of `/v1/messages`."""

    def _parse(self, address: Address, body: bytes, headers: Mapping[str, str], omission: Omission | None) -> Ask:
        tree = strict_json.parse(body)
        messages = messages_of(tree)
        model = model_of(tree, address)
        stream = is_stream(tree)
        seen = _look_over(tree, messages)
        traits = _traits(tree, seen)
        user = _take_user(tree)

        for name in NOT_CONTEXT:
            tree.pop(name, None)
        turn = _asking_turn(messages)
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
            include_usage=False,  # nothing to ask for: every stream tells its usage
            user=user,
            traits=traits,
            body=body,
            turns=turns,
        )

    def context_headers(self, headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        found = named_headers(headers, CONTEXT_HEADERS)
        return _with_betas_in_order(found) if _BETA in headers else found

    def upstream_body(self, ask: Ask, *, ask_usage: bool) -> bytes:
        return ask.body

    def scribe(
        self, ask: Ask, status: int, headers: Mapping[str, str], *, store_tools: bool, limit_bytes: int
    ) -> Scribe:
        return scribe(ask, status, headers, store_tools=store_tools, limit_bytes=limit_bytes)

    def prepare(self, answer: Answer, rendition: Rendition) -> Score:
        return prepare(answer, rendition)

    def spoken(self, answer: Answer) -> str | None:
        return spoken_in(self, answer, message_text)

    def fresh_identity(self, now: float) -> Identity:
        return Identity(id="msg_" + random_hex(), created=int(now))


@lru_cache(maxsize=256)  # programs send the same few with every request
def _with_betas_in_order(headers: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Betas are a set, and libraries put them together in any order, on one line or several."""
    betas = {beta.strip() for name, value in headers if name == _BETA for beta in value.split(",")}
    others = (pair for pair in headers if pair[0] != _BETA)
    return (*others, (_BETA, ",".join(sorted(betas - {""}))))


class _Seen:
    """What is found on the one walk over a request's blocks."""

    __slots__ = ("has_media", "has_tools", "hosts_tools", "uses_tools")

    def __init__(self) -> None:
        self.has_media = False
        self.has_tools = False
        self.hosts_tools = False
        self.uses_tools = False

    def take_tool(self, tool: Any) -> None:
        self.has_tools = True
        if type(tool) is dict:
            _take_hint(tool)
            kind = tool.get("type")
            if kind is not None and not (type(kind) is str and _CALLERS_TOOL.fullmatch(kind)):
                self.hosts_tools = True


def _look_over(tree: Tree, messages: list[Tree]) -> _Seen:
    """Walk over the tools and all content: take out hints, put digests for data, and note what there is."""
    seen = _Seen()
    tools = tree.get("tools")
    for tool in tools if type(tools) is list else ():
        seen.take_tool(tool)
    _walk(tree.get("system"), seen)
    for message in messages:
        _walk(message.get("content"), seen)
    return seen


def _walk(blocks: Any, seen: _Seen) -> None:
    """Content that is a text, or not what it should be, is left as it is: judging it is for the upstream."""
    if type(blocks) is not list:
        return
    for block in blocks:
        if type(block) is not dict:
            continue
        _take_hint(block)
        kind = block.get("type")
        if kind == "text":
            continue
        if type(kind) is not str:
            seen.has_media = True
        elif kind.endswith(_USES_OF_TOOLS):
            seen.uses_tools = True
        elif kind in _TOOL_CHANGES:
            _take_tool_change(block, seen)
        elif kind not in _TEXT_BLOCKS:
            seen.has_media = True
        source = block.get("source")
        if type(source) is dict:
            _walk(source.get("content"), seen)
            block["source"] = sealed(source)
        _walk(block.get("content"), seen)
        _walk(block.get("tool_changes"), seen)


def _take_hint(place: Tree) -> None:
    """Only where the vendor has hints. A tool's input may have a member of that name, and there it is the caller's."""
    place.pop("cache_control", None)


def _take_tool_change(block: Tree, seen: _Seen) -> None:
    """A tool that comes in the middle of a conversation, by reference or with its definition."""
    tool = block.get("tool")
    if type(tool) is dict:
        seen.take_tool(tool.get("definition", tool))


def _traits(tree: Tree, seen: _Seen) -> Traits:
    diagnostics = tree.get("diagnostics")
    return Traits(
        has_tools=seen.has_tools or bool(tree.get("tools")),
        has_tool_results=seen.uses_tools,
        has_hosted_tools=seen.hosts_tools or bool(tree.get("mcp_servers")),
        has_media=seen.has_media,
        temperature=temperature_in(tree),
        is_stateful=_is_stateful(tree, diagnostics),
        # The next request compares itself to this one, by the answer's id.
        id_is_a_handle=diagnostics is not None,
    )


def _is_stateful(tree: Tree, diagnostics: Any) -> bool:
    """1. A conversation that the vendor holds. 2. A container, with what is on its disk. 3. A credit, good for one
    request. 4. A comparison with an earlier request."""
    if any(tree.get(name) is not None for name in ("thread", "container", "fallback_credit_token")):
        return True
    return type(diagnostics) is dict and diagnostics.get("previous_message_id") is not None


def _take_user(tree: Tree) -> str | None:
    """Identity: the end user's id, for abuse reports; `cache.sharing` says who shares. Other metadata stays."""
    metadata = tree.get("metadata")
    if type(metadata) is not dict:
        return None
    user = metadata.pop("user_id", None)
    if not metadata:
        del tree["metadata"]
    return user if type(user) is str and user else None


def _asking_turn(messages: list[Tree]) -> Tree | None:
    """The last user turn; None where it asks nothing.

    What follows that turn, an answer's beginning or an instruction, is context like what goes before it. With tool
    results in the turn it is a step of an agent, and asks nothing.
    """
    turn = next((message for message in reversed(messages) if message.get("role") == "user"), None)
    if turn is None or _has_tool_result(turn.get("content")):
        return None
    return turn


def _has_tool_result(content: Any) -> bool:
    return type(content) is list and any(
        type(block) is dict and block.get("type") == "tool_result" for block in content
    )
