"""What a request to Ollama asks: its question, its context, its traits."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.errors import ClientError
from semcache.types import Ask, Traits
from semcache.wire import find_address
from semcache.wire.ollama import NOT_CONTEXT

USER = {"role": "user", "content": "How long does a parcel take?"}
CAT, DOG = "aVZCT1J3MEtHZ28", "L2NhbmlzLw"


def ask_raw(endpoint: str, body: bytes) -> Ask:
    address = find_address(f"/api/{endpoint}")
    assert address is not None
    return address.dialect.parse(address, body, {})


def chat(*messages: Any, **fields: Any) -> Ask:
    return ask_raw("chat", json.dumps({"model": "tiny", "messages": messages or [USER], **fields}).encode())


def generate(prompt: Any = USER["content"], **fields: Any) -> Ask:
    return ask_raw("generate", json.dumps({"model": "tiny", "prompt": prompt, **fields}).encode())


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


# Question and context


def test_a_chats_question_is_the_last_users_text() -> None:
    asked = chat({"role": "system", "content": "Be brief."}, user("Hi"), {"role": "assistant", "content": "Yes?"}, USER)
    assert asked.question == USER["content"]
    assert (asked.dialect, asked.endpoint, asked.target, asked.model) == ("ollama", "api/chat", "/api/chat", "tiny")


@pytest.mark.parametrize(
    "last",
    [
        {"role": "assistant", "content": "The parcel"},  # to be continued
        {"role": "tool", "content": "4 days", "tool_name": "track"},
        {"content": "who says this?"},
        {"role": ["user"], "content": "x"},
        user(""),
        user(" \n"),
        user(None),
        user(7),
        user(["x"]),
    ],
)
def test_without_a_last_users_text_there_is_no_question(last: Any) -> None:
    assert chat(USER, last).question is None


def test_instructions_after_the_question_are_context() -> None:
    asked = [chat(user(text), {"role": "system", "content": "Answer now."}) for text in ("One?", "Two?")]
    assert [one.question for one in asked] == ["One?", "Two?"]
    assert asked[0].context == asked[1].context != chat(user("One?")).context


def test_a_completions_question_is_its_prompt() -> None:
    asked = generate(system="Be brief.", template="{{ .Prompt }}", format="json", raw=False, suffix="", context=[])
    assert asked.question == USER["content"]
    assert (asked.endpoint, asked.target) == ("api/generate", "/api/generate")
    assert generate(" \n").question is None


@pytest.mark.parametrize("more", [{"raw": True}, {"suffix": "return x"}, {"context": [1, 2, 3]}])
def test_a_prompt_that_is_part_of_more_is_no_question_by_itself(more: dict[str, Any]) -> None:
    asked = generate(**more)
    assert asked.question is None
    assert asked.context != generate("Another prompt", **more).context
    assert asked.context == generate(**more).context


def test_requests_that_differ_in_their_question_only_share_the_context() -> None:
    assert chat(user("One?")).context == chat(user("Two?")).context
    assert generate("One?").context == generate("Two?").context


def test_a_client_cannot_write_the_mark() -> None:
    assert chat(user("?")).context == chat(user("x")).context
    assert chat(user("x"), user("y")).context != chat(user("?"), user("y")).context
    assert generate(" ").context != generate("x").context


FIELDS: list[dict[str, Any]] = [
    {"options": {"temperature": 0}},
    {"options": {"temperature": 0.0}},
    {"options": {"seed": 1}},
    {"options": {"num_ctx": 4096}},
    {"options": {"num_predict": 10}},
    {"options": {"stop": ["\n"]}},
    {"options": {}},
    {"format": "json"},
    {"format": {"type": "object"}},
    {"think": True},
    {"think": False},
    {"think": "high"},
    {"logprobs": True},
    {"logprobs": True, "top_logprobs": 3},
    {"truncate": False},
    {"shift": False},
    {"a member nobody knows": 1},
    {"Keep_Alive": "5m"},  # a server may read it as its own member, whatever the case
    {},
]
OF_CHAT: list[dict[str, Any]] = [
    {"tools": []},
    {"tools": [{"type": "function", "function": {"name": "now"}}]},
    {"messages": [USER, USER]},
    {"messages": [{"role": "system", "content": "Be brief."}, USER]},
    {"messages": [user(USER["content"], images=[CAT])]},
    {"messages": [user(USER["content"], images=[DOG])]},
    {"messages": [user(USER["content"], images=[CAT, DOG])]},
    {"messages": [user(USER["content"], thinking="x")]},
    {"messages": [{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}]},
]
OF_GENERATE: list[dict[str, Any]] = [
    {"system": "Be brief."},
    {"template": "{{ .Prompt }}"},
    {"raw": True},
    {"raw": False},
    {"suffix": "return x"},
    {"context": [1, 2]},
    {"context": [1, 2.0]},
    {"images": [CAT]},
    {"images": [DOG]},
    {"images": [CAT, DOG]},
    {"images": []},
    {"width": 512},
]


def test_whatever_may_change_the_answer_changes_the_context() -> None:
    asked = [chat(**fields) for fields in FIELDS + OF_CHAT] + [generate(**fields) for fields in FIELDS + OF_GENERATE]
    assert len({(one.endpoint, one.question, one.context) for one in asked}) == len(asked)


@pytest.mark.parametrize("delivery", [{"stream": True}, {"stream": False}, {"stream": None}, {"keep_alive": "5m"}])
def test_delivery_does_not(delivery: dict[str, Any]) -> None:
    assert set(delivery) <= set(NOT_CONTEXT)
    assert chat(**delivery).context == chat().context
    assert generate(**delivery).context == generate().context


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
names = st.sampled_from(["options", "format", "think", "tools", "system", "raw", "x", "Stream", "truncate"])


@given(st.dictionaries(names, values, max_size=4), st.dictionaries(names, values, max_size=4))
def test_contexts_are_equal_exactly_when_the_members_are(one: dict[str, Any], other: dict[str, Any]) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    for ask in (chat, generate):
        first, second = ask(**one), ask(**other)
        assert ((first.question, first.context) == (second.question, second.context)) is same
        assert ask(**one, stream=False, keep_alive=0).context == first.context


def test_images_enter_the_context_by_digest() -> None:
    for asked in (chat(user("What is this?", images=["A" * 100_000])), generate(images=["A" * 100_000])):
        assert len(asked.context) < 500
        assert asked.question is not None


# Delivery and traits


@pytest.mark.parametrize(("stream", "streams"), [({}, True), ({"stream": None}, True), ({"stream": False}, False)])
def test_a_stream_is_what_comes_unasked(stream: dict[str, Any], streams: bool) -> None:
    assert chat(**stream).stream is streams
    assert generate(**stream).stream is streams


CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "now", "arguments": {}}}]}


@pytest.mark.parametrize(
    ("asked", "traits"),
    [
        (chat(), Traits()),
        (chat(tools=[]), Traits()),
        (chat(tools=[{"type": "function"}]), Traits(has_tools=True)),
        (chat(USER, CALL), Traits(has_tool_results=True)),
        (chat(USER, CALL, {"role": "tool", "content": "noon"}), Traits(has_tool_results=True)),
        (chat(USER, CALL, {"role": "tool", "content": "noon"}, USER), Traits(has_tool_results=True)),
        (chat(USER, CALL, USER), Traits()),
        (chat(user("What is this?", images=[CAT])), Traits(has_media=True)),
        (chat(user("What is this?", images=[CAT]), CALL, USER), Traits(has_media=True)),
        (chat(user("What is this?", images=[])), Traits()),
        (chat(options={"temperature": 0.5}), Traits(temperature=0.5)),
        (chat(options=None), Traits()),
        (chat(options={"temperature": "hot"}), Traits()),
        (chat(messages=[]), Traits(is_stateful=True)),
        (chat(messages=None), Traits(is_stateful=True)),
        (generate(), Traits()),
        (generate(images=[CAT]), Traits(has_media=True)),
        (generate(options={"temperature": 2}), Traits(temperature=2.0)),
        (generate(""), Traits(is_stateful=True)),
        (generate(None), Traits(is_stateful=True)),
        (generate("", keep_alive=0), Traits(is_stateful=True)),
        (ask_raw("generate", b'{"model":"tiny"}'), Traits(is_stateful=True)),
        (ask_raw("chat", b'{"model":"tiny"}'), Traits(is_stateful=True)),
    ],
)
def test_traits(asked: Ask, traits: Traits) -> None:
    assert asked.traits == traits


def test_the_body_goes_upstream_as_it_came() -> None:
    address = find_address("/api/chat")
    assert address is not None
    asked = chat(stream=True)
    for ask_usage in (True, False):
        assert address.dialect.upstream_body(asked, ask_usage=ask_usage) is asked.body
    assert address.dialect.context_headers({"authorization": "Bearer x", "user-agent": "y"}) == ()


# Bad requests


@pytest.mark.parametrize(
    ("endpoint", "body", "message"),
    [
        ("chat", b"", "not the JSON"),
        ("chat", b"[]", "expected an object at the top level, got an array"),
        ("chat", b'{"model":"m","model":"n"}', "a key appears twice"),
        ("chat", b'{"messages":[]}', "'model'"),
        ("chat", b'{"model":"","messages":[]}', "'model'"),
        ("chat", b'{"model":7}', "'model'"),
        ("chat", b'{"model":"m","stream":"yes"}', "'stream': expected a boolean, got a string"),
        ("chat", b'{"model":"m","messages":{}}', "'messages': expected an array of objects, got an object"),
        ("chat", b'{"model":"m","messages":[{},"x"]}', r"'messages\[1\]': expected an object, got a string"),
        ("generate", b'{"model":"m","prompt":["x"]}', "'prompt': expected a string, got an array"),
        ("generate", b'{"model":"m","prompt":NaN}', "NaN is not JSON"),
        ("generate", b'{"prompt":"x"}', "'model'"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(endpoint: str, body: bytes, message: str) -> None:
    with pytest.raises(ClientError, match=message) as caught:
        ask_raw(endpoint, body)
    assert caught.value.status == 400
