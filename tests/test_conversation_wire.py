"""How each dialect reads the turns before a question, and what a context is without some of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from semcache.types import Ask, Turn
from semcache.wire import Address
from semcache.wire.anthropic import AnthropicMessages
from semcache.wire.ollama import OllamaChat
from semcache.wire.openai import OpenAIChat
from semcache.wire.responses import Responses
from semcache.wire.turns import Conversing, Omission

ADDRESSES = {
    "openai": Address(OpenAIChat(), "openai", "chat/completions", "/v1/chat/completions"),
    "responses": Address(Responses(), "openai", "responses", "/v1/responses"),
    "anthropic": Address(AnthropicMessages(), "anthropic", "messages", "/v1/messages"),
    "ollama": Address(OllamaChat(), "ollama", "api/chat", "/api/chat"),
}
DIALECTS = pytest.mark.parametrize("name", ADDRESSES)
TALK = [
    {"role": "user", "content": "Which plan has roaming?"},
    {"role": "assistant", "content": "The travel plan has."},
    {"role": "user", "content": "Does it cover Norway?"},
    {"role": "assistant", "content": "Yes, all of Europe."},
]
QUESTION = {"role": "user", "content": "What does the travel plan cost a month?"}
ALL = slice(None)


def body_of(name: str, messages: list[Any], **fields: Any) -> bytes:
    return json.dumps({"model": "m", "input" if name == "responses" else "messages": messages, **fields}).encode()


def read(name: str, messages: list[Any], **fields: Any) -> Ask:
    address = ADDRESSES[name]
    return address.dialect.parse(address, body_of(name, messages, **fields), CIMultiDict())


def without(name: str, messages: list[Any], places: slice, *, marks: bool = False, **fields: Any) -> bytes:
    address = ADDRESSES[name]
    assert isinstance(address.dialect, Conversing)
    body = body_of(name, messages, **fields)
    return address.dialect.context_without(address, body, CIMultiDict(), Omission(places, marks))


@DIALECTS
def test_turns_are_read_in_order_and_stay_in_the_context(name: str) -> None:
    found = read(name, [*TALK, QUESTION])
    assert found.turns == tuple(Turn(turn["role"], turn["content"]) for turn in TALK)  # type: ignore[arg-type]
    assert found.question == QUESTION["content"]
    assert b"all of Europe" in found.context


@DIALECTS
def test_a_first_question_has_no_turns(name: str) -> None:
    assert read(name, [QUESTION]).turns == ()


@DIALECTS
def test_without_any_turn_a_context_is_that_of_a_first_question(name: str) -> None:
    assert without(name, [*TALK, QUESTION], ALL) == read(name, [QUESTION]).context


@DIALECTS
def test_without_the_oldest_turns_a_context_is_that_of_a_shorter_conversation(name: str) -> None:
    assert without(name, [*TALK, QUESTION], slice(0, 3)) == read(name, [TALK[3], QUESTION]).context


@DIALECTS
def test_marks_tell_how_many_turns_there_were_and_whose(name: str) -> None:
    contexts = {
        without(name, messages, ALL, marks=True)
        for messages in ([QUESTION], [TALK[0], QUESTION], [TALK[1], QUESTION], [*TALK[:2], QUESTION], [*TALK, QUESTION])
    }
    assert len(contexts) == 5
    other = [{"role": turn["role"], "content": "something else"} for turn in TALK]
    assert without(name, [*TALK, QUESTION], ALL, marks=True) == without(name, [*other, QUESTION], ALL, marks=True)


@DIALECTS
def test_everything_but_the_turns_stays_in_the_context(name: str) -> None:
    system = {"role": "system", "content": "Be brief."}
    plain = without(name, [*TALK, QUESTION], ALL)
    assert without(name, [system, *TALK, QUESTION], ALL) != plain
    assert without(name, [*TALK, QUESTION], ALL, temperature=0.5) != plain
    assert b"Be brief." in without(name, [*TALK[:2], system, *TALK[2:], QUESTION], ALL)


@pytest.mark.parametrize(
    "name, turn, text",
    [
        ("openai", {"role": "assistant", "content": "Yes.", "refusal": None, "tool_calls": []}, "Yes."),
        ("openai", {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "a\nb"),
        ("openai", {"role": "user", "name": "ann", "content": "Yes."}, None),
        ("openai", {"role": "user", "content": [{"type": ["text"], "text": "a"}]}, None),
        ("openai", {"role": "assistant", "content": None}, None),
        ("openai", {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, None),
        ("responses", {"role": "assistant", "content": [{"type": "output_text", "text": "Yes.", "annotations": []}],
                       "type": "message", "id": "msg_1", "status": "completed"}, "Yes."),
        ("responses", {"role": "assistant", "content": [{"type": "output_text", "text": "Yes.",
                                                         "annotations": [{"url": "x"}]}]}, None),
        ("anthropic", {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"t": 1}}]}, "a"),
        ("anthropic", {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "s"},
                                                        {"type": "text", "text": "Yes."}]}, None),
        ("ollama", {"role": "assistant", "content": "Yes.", "thinking": "hm"}, None),
        ("ollama", {"role": "user", "content": "Yes.", "images": ["AAAA"]}, None),
    ],
)  # fmt: skip
def test_a_turn_is_a_text_only_where_it_is_nothing_else(name: str, turn: dict[str, Any], text: str | None) -> None:
    (found,) = read(name, [turn, QUESTION]).turns
    assert found == (turn["role"], text)


def test_tool_calls_and_their_results_are_no_turns_that_can_be_compared() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Look it up."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "42"},
        {"role": "assistant", "content": "It is 42."},
        QUESTION,
    ]
    assert [turn.text for turn in read("openai", messages).turns] == ["Look it up.", None, "It is 42."]
    assert b"42" in without("openai", messages, slice(1, 2))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "text", "x"]), inner),
    max_leaves=6,
)


@DIALECTS
@given(contents=st.lists(st.tuples(st.sampled_from(["user", "assistant", "system", "x"]), JSON), max_size=5))
def test_whatever_the_turns_hold_they_can_be_read_and_left_out(name: str, contents: list[Any]) -> None:
    messages = [{"role": role, "content": content} for role, content in contents]
    found = read(name, [*messages, QUESTION])
    assert found.question == QUESTION["content"]
    assert len(found.turns) == sum(role in ("user", "assistant") for role, _ in contents)
    kept = [message for message in messages if message["role"] not in ("user", "assistant")]
    assert without(name, [*messages, QUESTION], ALL) == read(name, [*kept, QUESTION]).context
