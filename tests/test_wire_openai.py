"""What a chat completions request asks: its question, its context, its traits, and the body that goes upstream."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from semcache.errors import ClientError
from semcache.types import Ask
from semcache.wire import Address
from semcache.wire.marks import by_digest
from semcache.wire.openai import NOT_CONTEXT, OpenAIChat

OPENAI = OpenAIChat()
CHAT = Address(OPENAI, "openai", "chat/completions", "/v1/chat/completions")
USER = {"role": "user", "content": "How long does a parcel take?"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def ask_raw(body: bytes, **headers: str) -> Ask:
    return OPENAI.parse(CHAT, body, CIMultiDict({k.replace("_", "-"): v for k, v in headers.items()}))


def ask(*messages: Any, **fields: Any) -> Ask:
    return ask_raw(json.dumps({"model": "m", "messages": messages or [USER], **fields}).encode())


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def text(*parts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": part} for part in parts]


# Question and context


def test_the_question_is_the_last_users_text() -> None:
    assert (
        ask(
            {"role": "system", "content": "Be brief."}, user("Hi"), {"role": "assistant", "content": "Yes?"}, USER
        ).question
        == USER["content"]
    )


@pytest.mark.parametrize(
    "last",
    [
        {"role": "assistant", "content": "The parcel"},
        {"role": "tool", "content": "4 days", "tool_call_id": "c"},
        {"content": "who says this?"},
        user(""),
        user("  \n"),
        user(None),
        user(7),
        user({"type": "text", "text": "x"}),
        user([]),
        user([IMAGE]),
        user(["text"]),
        user([{"type": "text", "text": 5}]),
        {"role": ["user"], "content": "x"},
    ],
)
def test_without_a_last_users_text_there_is_no_question(last: Any) -> None:
    assert ask(USER, last).question is None


@pytest.mark.parametrize("role", ["system", "developer"])
def test_instructions_after_the_question_are_context(role: str) -> None:
    asked = [ask(user(text), {"role": role, "content": "Answer now."}) for text in ("One?", "Two?")]
    assert [one.question for one in asked] == ["One?", "Two?"]
    assert asked[0].context == asked[1].context
    assert asked[0].context != ask(user("One?"), {"role": role, "content": "Later."}).context
    assert asked[0].context != ask({"role": role, "content": "Answer now."}, user("One?")).context


def test_requests_that_differ_in_their_question_only_share_the_context() -> None:
    assert ask(user("One?")).context == ask(user("Two?")).context
    assert ask(user(text("One?"))).context == ask(user(text("Two?"))).context


def test_text_parts_are_joined() -> None:
    assert ask(user(text("How long", "does it take?"))).question == "How long\ndoes it take?"


def test_the_shape_of_the_question_is_context() -> None:
    shapes = [user("a\nb"), user(text("a\nb")), user(text("a", "b")), {**USER, "content": "a\nb", "name": "Ann"}]
    assert {a.question for a in map(ask, shapes)} == {"a\nb"}
    assert len({a.context for a in map(ask, shapes)}) == len(shapes)


def test_parts_that_would_join_to_one_question_stay_apart() -> None:
    one, other = ask(user(text("a\nb", "c"))), ask(user(text("a", "b\nc")))
    assert one.question == other.question
    assert one.context != other.context


@pytest.mark.parametrize("mark", ["?", '"?"', "?1", "\\u003f", None])
def test_no_message_can_be_written_like_the_mark(mark: str | None) -> None:
    forged = json.dumps(mark).encode()
    body = b'{"model":"m","messages":[{"role":"user","content":%b}]}'
    assert ask_raw(body % forged).context == ask(USER).context or mark is None
    # With the role changed the text itself is context; it must not look like a taken question.
    assert ask_raw((body % forged).replace(b'"user"', b'"system"')).context != ask(USER).context


DIFFERENT: list[dict[str, Any]] = [
    {"temperature": 1},
    {"temperature": 1.0},
    {"seed": 1},
    {"seed": 10**20},
    {"seed": 10**20 + 1},
    {"top_p": 0.5},
    {"n": 2},
    {"max_tokens": 5},
    {"max_completion_tokens": 5},
    {"stop": ["x"]},
    {"logprobs": True},
    {"response_format": {"type": "json_object"}},
    {"tools": [{"type": "function", "function": {"name": "f"}}]},
    {"tool_choice": "none"},
    {"reasoning_effort": "low"},
    {"verbosity": "low"},
    {"service_tier": "flex"},
    {"modalities": ["text"]},
    {"moderation": {"model": "x"}},
    {"a_field_of_tomorrow": 1},
    {"a_field_of_tomorrow": None},
    {"model": "m2"},
]


def test_whatever_may_change_the_answer_is_context_or_its_model() -> None:
    asks = [ask(**fields) for fields in [{}, *DIFFERENT]]
    contexts = [(one.model, one.context) for one in asks]
    assert len(set(contexts)) == len(contexts)


@pytest.mark.parametrize("number", [("1", "1.0"), ("1", "1e0"), ("100000000000000000001", "100000000000000000002")])
def test_numbers_are_compared_as_written(number: tuple[str, str]) -> None:
    body = '{"model":"m","messages":[{"role":"user","content":"x"}],"seed":%s}'
    one, other = (ask_raw((body % text).encode()) for text in number)
    assert one.context != other.context


def test_earlier_turns_and_media_are_context() -> None:
    contexts = [
        ask({"role": "system", "content": "Be brief."}, USER).context,
        ask({"role": "developer", "content": "Be brief."}, USER).context,
        ask({"role": "system", "content": "Be long."}, USER).context,
        ask(user("Hi"), {"role": "assistant", "content": "Yes?"}, USER).context,
        ask(user([*text("x"), IMAGE])).context,
        ask(user([IMAGE, *text("x")])).context,
        ask(user([*text("x"), {**IMAGE, "image_url": {"url": "https://shop.example/a.png"}}])).context,
        ask(user(text("x"))).context,
    ]
    assert len(set(contexts)) == len(contexts)


LONG = "A" * 300
MEDIA: list[Any] = [
    lambda data: {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}", "detail": "low"}},
    lambda data: {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
    lambda data: {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{data}"}},
    lambda data: {"type": "of tomorrow", "frames": [{"data": data}]},
]


@pytest.mark.parametrize("part", MEDIA)
def test_media_enter_the_context_by_their_digest(part: Any) -> None:
    one, again, other = (ask(user([*text("x"), part(data)])) for data in (LONG * 1000, LONG * 1000, LONG * 1000 + "B"))
    assert one.context == again.context != other.context
    assert len(one.context) < 500
    assert one.question == "x"
    assert one.traits.has_media
    assert ask(user([*text("x"), part(LONG)])).context != ask(user([part(LONG), *text("x")])).context


def test_no_part_can_be_written_like_a_digest() -> None:
    digest = by_digest(LONG)
    url = str(orjson.dumps(digest), "ascii")
    part = {"type": "image_url", "image_url": {"url": LONG}}
    assert ask(user([part])).context != ask(user([{**part, "image_url": {"url": url}}])).context
    assert ask(user([part])).context != ask(user([{**part, "image_url": {"url": LONG + "A"}}])).context


def test_marks_for_the_vendors_prompt_cache_change_no_key() -> None:
    mark = {"prompt_cache_breakpoint": {"mode": "explicit"}}
    marked = ask({"role": "system", "content": [{**text("s")[0], **mark}]}, user([{**IMAGE, **mark}, *text("x")]))
    assert marked.context == ask({"role": "system", "content": text("s")}, user([IMAGE, *text("x")])).context
    assert ask(**mark).context != ask().context, "a member of the request itself is one that nobody knows"


def test_media_of_every_message_are_replaced() -> None:
    part = MEDIA[0](LONG)
    assert LONG.encode() not in ask(user([part]), user([part, *text("x")])).context
    assert ask({"role": "system", "content": LONG}, USER).context.count(LONG.encode()) == 1, "text stays text"


@pytest.mark.parametrize("name", NOT_CONTEXT)
def test_delivery_and_identity_are_not_context(name: str) -> None:
    value = {"stream": True, "stream_options": {"include_usage": True}, "prompt_cache_options": {"ttl": "30m"}}.get(
        name, "v"
    )
    assert ask(**{name: value}).context == ask().context


def test_a_request_whose_exchange_the_vendor_keeps_is_known() -> None:
    assert ask(store=True).traits.is_stateful
    assert not any(ask(**fields).traits.is_stateful for fields in ({}, {"store": False}, {"store": None}))


def test_headers_that_change_the_request_are_context_and_no_others() -> None:
    body = json.dumps({"model": "m", "messages": [USER]}).encode()
    plain = ask_raw(body).context
    assert ask_raw(body, Authorization="Bearer x", User_Agent="y", X_Request_Id="z").context == plain
    named = [
        ask_raw(body, **{name: "v"}).context
        for name in ("OpenAI_Organization", "OpenAI_Project", "OpenAI_Beta", "api_version")
    ]
    assert len({plain, *named}) == 5
    assert ask_raw(body, openai_project="v").context == ask_raw(body, OPENAI_PROJECT="v").context
    assert ask_raw(body, openai_project="v").context != ask_raw(body, openai_project="V").context


def test_a_header_sent_twice_counts_twice() -> None:
    body = json.dumps({"model": "m", "messages": [USER]}).encode()
    one = CIMultiDict([("OpenAI-Beta", "a")])
    two = CIMultiDict([("OpenAI-Beta", "a"), ("openai-beta", "b")])
    assert OPENAI.context_headers(two) != OPENAI.context_headers(one)
    assert OPENAI.parse(CHAT, body, two).context != OPENAI.parse(CHAT, body, one).context
    hash(OPENAI.context_headers(two))


def test_order_of_members_and_white_space_change_nothing() -> None:
    one = ask_raw(b'{"model":"m","messages":[{"role":"user","content":"x"}],"top_p":0.5}')
    other = ask_raw(b'{ "top_p" : 0.5,\n"messages":[{"content":"x","role":"user"}],\t"model":"\\u006d"}')
    assert (one.context, one.question, one.model) == (other.context, other.question, other.model)


names = st.sampled_from(["n", "seed", "stop", "tools", "user", "store", "metadata", "stream_options", "tomorrow"])
some = st.none() | st.booleans() | st.integers(1, 5) | st.sampled_from(["a", "b"]) | st.lists(st.text(max_size=1))


@given(st.dictionaries(names, some, max_size=4), names, some)
def test_equal_contexts_mean_equal_requests_but_for_the_list(fields: dict[str, Any], name: str, value: Any) -> None:
    other = {**fields, name: value}
    try:
        one, two = ask(**fields), ask(**other)
    except ClientError:
        return

    def counted(tree: dict[str, Any]) -> str:
        kept = {key: item for key, item in tree.items() if key not in NOT_CONTEXT}
        return json.dumps(kept, sort_keys=True)

    assert (one.context == two.context) == (counted(fields) == counted(other))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["user", "text", "tool", "x\ny", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "tool_calls", "n", "stream"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(
        st.sampled_from(["messages", "model", "n", "stream", "stream_options", "user", "tools"]), json_values
    )
)
def test_any_object_is_read_or_refused_and_always_the_same_way(tree: dict[str, Any]) -> None:
    for candidate in (tree, {"model": "m", "messages": [USER], **tree}):
        body = json.dumps(candidate).encode()
        try:
            found = ask_raw(body)
        except ClientError:
            continue
        assert found == ask_raw(body)
        assert found.body == body
        OPENAI.upstream_body(found, ask_usage=True)


# Refusals


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"model": "m"}, "messages", "missing_required_parameter"),
        ({"messages": [USER]}, "model", "missing_required_parameter"),
        ({"model": "m", "messages": "x"}, "messages", "invalid_type"),
        ({"model": "m", "messages": None}, "messages", "invalid_type"),
        ({"model": "m", "messages": {}}, "messages", "invalid_type"),
        ({"model": "m", "messages": []}, "messages", "empty_array"),
        ({"model": "m", "messages": [USER, "x"]}, "messages[1]", "invalid_type"),
        ({"model": 5, "messages": [USER]}, "model", "invalid_type"),
        ({"model": "", "messages": [USER]}, "model", "invalid_type"),
        ({"model": "m", "messages": [USER], "stream": "true"}, "stream", "invalid_type"),
        ({"model": "m", "messages": [USER], "stream": 1}, "stream", "invalid_type"),
        ({"model": "m", "messages": [USER], "n": 0}, "n", "invalid_type"),
        ({"model": "m", "messages": [USER], "n": -1}, "n", "invalid_type"),
        ({"model": "m", "messages": [USER], "n": 1.0}, "n", "invalid_type"),
        ({"model": "m", "messages": [USER], "n": "2"}, "n", "invalid_type"),
        ({"model": "m", "messages": [USER], "n": True}, "n", "invalid_type"),
        ({"model": "m", "messages": [USER], "n": 10**9}, "n", "invalid_type"),
    ],
)
def test_a_refusal_names_the_field_as_the_vendor_does(body: Any, param: str, code: str) -> None:
    with pytest.raises(ClientError) as refused:
        ask_raw(json.dumps(body).encode())
    assert (refused.value.status, refused.value.param, refused.value.code) == (400, param, code)
    error = json.loads(OPENAI.error_body(refused.value, "r"))["error"]
    assert error == {"message": refused.value.message, "type": "invalid_request_error", "param": param, "code": code}
    assert f"'{param}'" in error["message"]


@pytest.mark.parametrize(
    "field", [{"temperature": "hot"}, {"stream": None}, {"n": None}, {"stop": 5}, {"stream_options": 5}]
)
def test_what_need_not_be_understood_is_left_to_the_upstream(field: dict[str, Any]) -> None:
    found = ask(**field)
    assert (found.stream, found.include_usage, found.traits.choices, found.traits.temperature) == (
        False,
        False,
        1,
        None,
    )


# Traits and delivery


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([USER], False),
        ([USER, {"role": "assistant", "content": "Yes?"}, USER], False),
        ([USER, {"role": "assistant", "tool_calls": [{"id": "c"}]}], True),
        ([USER, {"role": "assistant", "function_call": {"name": "f"}}], True),
        ([USER, {"role": "assistant", "tool_calls": [{"id": "c"}]}, {"role": "tool", "content": "4"}], True),
        ([USER, {"role": "assistant", "tool_calls": [{"id": "c"}]}, {"role": "tool", "content": "4"}, USER], True),
        ([USER, {"role": "function", "name": "f", "content": "4"}, USER], True),
        ([USER, {"role": "assistant", "tool_calls": []}, USER], False),
    ],
)
def test_a_running_tool_loop_is_seen(messages: list[Any], expected: bool) -> None:
    assert ask(*messages).traits.has_tool_results is expected


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ({}, False),
        ({"tools": []}, False),
        ({"tools": None}, False),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, True),
        ({"functions": [{"name": "f"}]}, True),
        ({"web_search_options": {}}, True),
    ],
)
def test_declared_tools_are_seen(field: dict[str, Any], expected: bool) -> None:
    assert ask(**field).traits.has_tools is expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (user("x"), False),
        (user(text("x", "y")), False),
        (user([*text("x"), IMAGE]), True),
        (user([*text("x"), {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}]), True),
        (user([*text("x"), {"type": "file", "file": {"file_id": "f"}}]), True),
        (user([*text("x"), {"type": "of tomorrow"}]), True),
        (user([*text("x"), "loose"]), True),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, False),
        ({"role": "assistant", "audio": {"id": "audio_1"}}, True),
    ],
)
def test_media_are_seen_in_any_message(message: Any, expected: bool) -> None:
    assert ask(message, USER).traits.has_media is expected
    assert ask(USER, message).traits.has_media is expected


def test_sampling_is_read() -> None:
    found = ask(n=3, temperature=0.7).traits
    assert (found.choices, found.temperature) == (3, 0.7)
    assert (ask().traits.choices, ask().traits.temperature) == (1, None)


def test_the_model_of_a_path_counts_more_than_that_of_the_body() -> None:
    deployment = replace(CHAT, vendor="azure", model="prod")
    for body in ({"messages": [USER]}, {"model": "other", "messages": [USER]}, {"model": 5, "messages": [USER]}):
        assert OPENAI.parse(deployment, json.dumps(body).encode(), {}).model == "prod"
    found = OPENAI.parse(deployment, json.dumps({"messages": [USER]}).encode(), {})
    assert (found.dialect, found.endpoint, found.target) == ("azure", "chat/completions", CHAT.target)


def test_the_end_user_is_known_by_either_field() -> None:
    assert ask(user="u").user == "u"
    assert ask(safety_identifier="s").user == "s"
    assert ask(user="u", safety_identifier="s").user == "u"
    assert ask(user=5).user is None
    assert ask().user is None


@pytest.mark.parametrize(
    ("fields", "stream", "usage"),
    [
        ({}, False, False),
        ({"stream": False, "stream_options": {"include_usage": True}}, False, False),
        ({"stream": True}, True, False),
        ({"stream": True, "stream_options": None}, True, False),
        ({"stream": True, "stream_options": {"include_usage": False}}, True, False),
        ({"stream": True, "stream_options": {"include_usage": 1}}, True, False),
        ({"stream": True, "stream_options": {"include_usage": True}}, True, True),
    ],
)
def test_delivery_is_read(fields: dict[str, Any], stream: bool, usage: bool) -> None:
    assert (ask(**fields).stream, ask(**fields).include_usage) == (stream, usage)


# Upstream

HEAD = b'{"model":"m","messages":[{"role":"user","content":"x \\u00e9 stream"}],  "seed": 1e0'


@pytest.mark.parametrize(
    "rest",
    [
        b"}",
        b',"stream":false}',
        b',"stream":false,"stream_options":{"include_obfuscation":false}}',
        b',"stream":true,"stream_options":{"include_usage":true}}',
        b',"stream":true,"stream_options":{"include_usage":"yes"}}',  # wrong: the upstream says so
        b',"stream":true,"stream_options":"yes"}',
    ],
)
def test_a_body_that_needs_no_change_goes_up_byte_for_byte(rest: bytes) -> None:
    assert OPENAI.upstream_body(ask_raw(HEAD + rest), ask_usage=True) == HEAD + rest


@pytest.mark.parametrize(
    ("rest", "changed"),
    [
        (b',"stream":true,"stream_options":null}', b',"stream":true,"stream_options":{"include_usage":true}}'),
        (b',"stream":true,"stream_options":{}}', b',"stream":true,"stream_options":{"include_usage":true}}'),
        (b',"stream":true,"stream_options": { } }', b',"stream":true,"stream_options": {"include_usage":true } }'),
        (
            b',"stream":true,"stream_options":{ "include_obfuscation" : false}}',
            b',"stream":true,"stream_options":{"include_usage":true, "include_obfuscation" : false}}',
        ),
        (
            b',"stream":true,"stream_options":{"a":{"include_usage":0},"include_usage" : false , "b":1} }',
            b',"stream":true,"stream_options":{"a":{"include_usage":0},"include_usage" : true , "b":1} }',
        ),
        (
            b',"stream":true,"stream_options":{"include_usage":null}}',
            b',"stream":true,"stream_options":{"include_usage":true}}',
        ),
        (
            b',"stream":true,"stream\\u005foptions":{"include_usage":false}}',
            b',"stream":true,"stream\\u005foptions":{"include_usage":true}}',
        ),
    ],
)
def test_asking_for_usage_changes_one_member_and_no_other_byte(rest: bytes, changed: bytes) -> None:
    assert OPENAI.upstream_body(ask_raw(HEAD + rest), ask_usage=True) == HEAD + changed
    assert OPENAI.upstream_body(ask_raw(HEAD + rest), ask_usage=False) == HEAD + rest


@pytest.mark.parametrize(
    "head",
    [HEAD, b" \n" + HEAD, HEAD.replace(b"\\u00e9 stream", b'stream_options\\": {'), HEAD.replace(b"\\u00e9", b"")],
)
def test_a_stream_without_options_gets_them_in_front(head: bytes) -> None:
    body = head + b',"stream":true}'
    sent = OPENAI.upstream_body(ask_raw(body), ask_usage=True)
    assert sent == body.replace(b'{"model"', b'{"stream_options":{"include_usage":true},"model"', 1)
    assert ask_raw(sent).include_usage
    assert ask_raw(sent).context == ask_raw(body).context
