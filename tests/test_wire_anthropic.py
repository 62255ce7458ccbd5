"""What an Anthropic messages request asks: its question, its context, its traits, and what is wrong with it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from semcache.errors import ClientError
from semcache.types import Ask
from semcache.wire import Address
from semcache.wire.anthropic import NOT_CONTEXT, AnthropicMessages

ANTHROPIC = AnthropicMessages()
MESSAGES = Address(ANTHROPIC, "anthropic", "messages", "/v1/messages")
USER = {"role": "user", "content": "How long does a parcel take?"}
BREAK = {"type": "ephemeral", "ttl": "1h"}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "four days"}
CALL = {"type": "tool_use", "id": "toolu_1", "name": "track", "input": {}}
TOOL = {"name": "track", "input_schema": {"type": "object"}}


def ask_raw(body: bytes, **headers: str) -> Ask:
    return ANTHROPIC.parse(MESSAGES, body, CIMultiDict({k.replace("_", "-"): v for k, v in headers.items()}))


def ask(*messages: Any, **fields: Any) -> Ask:
    tree = {"model": "claude", "max_tokens": 99, "messages": messages or [USER], **fields}
    return ask_raw(json.dumps(tree).encode())


def user(*content: Any) -> dict[str, Any]:
    """A turn of one text as it is, or of blocks; a text among several is a block too."""
    if len(content) == 1 and isinstance(content[0], str):
        return {"role": "user", "content": content[0]}
    return {"role": "user", "content": [block(part) if isinstance(part, str) else part for part in content]}


def block(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **more}


def assistant(*content: Any) -> dict[str, Any]:
    return {**user(*content), "role": "assistant"}


# Question


@pytest.mark.parametrize(
    ("messages", "question"),
    [
        pytest.param([USER], USER["content"], id="a text"),
        pytest.param([user(block("x"))], "x", id="a block"),
        pytest.param([user("How long", "does it take?")], "How long\ndoes it take?", id="blocks"),
        pytest.param([user(IMAGE, "What is this?")], "What is this?", id="with an image"),
        pytest.param([user("Hi"), assistant("Yes?"), USER], USER["content"], id="a conversation"),
        pytest.param([USER, assistant('{"days":')], USER["content"], id="a beginning put into its mouth"),
        pytest.param([USER, {"role": "system", "content": "Be brief."}], USER["content"], id="an instruction after"),
        pytest.param([user("Hi"), assistant(CALL), user(RESULT)], None, id="tool results"),
        pytest.param([user("Hi"), assistant(CALL), user(RESULT, "And then?")], None, id="tool results and a text"),
        pytest.param([user("Hi"), assistant(CALL), user(RESULT), assistant("4."), USER], USER["content"], id="later"),
        pytest.param([user("")], None, id="nothing"),
        pytest.param([user(" \n")], None, id="white space"),
        pytest.param([user(block(" "), block("\t"))], None, id="blocks of white space"),
        pytest.param([user(IMAGE)], None, id="an image"),
        pytest.param([{"role": "user", "content": None}], None, id="null"),
        pytest.param([{"role": "user", "content": 7}], None, id="a number"),
        pytest.param([{"role": "user", "content": block("x")}], None, id="a block without its array"),
        pytest.param([{"role": "user", "content": [{"type": "text", "text": 5}, "x"]}], None, id="no texts"),
        pytest.param([assistant("The parcel")], None, id="no user"),
        pytest.param([{"content": "who says this?"}], None, id="nobody"),
    ],
)
def test_the_question_is_the_text_of_the_last_user_turn(messages: list[Any], question: str | None) -> None:
    assert ask(*messages).question == question


def test_requests_that_differ_in_their_question_only_share_the_context() -> None:
    assert ask(user("One?")).context == ask(user("Two?")).context
    assert ask(user(block("One?"))).context == ask(user(block("Two?"))).context
    assert ask(user("One?"), assistant("{")).context == ask(user("Two?"), assistant("{")).context


def test_the_shape_of_the_question_is_context() -> None:
    shapes = [user("a\nb"), user(block("a\nb")), user("a", "b"), {**user("a\nb"), "name": "Ann"}]
    assert {a.question for a in map(ask, shapes)} == {"a\nb"}
    assert len({a.context for a in map(ask, shapes)}) == len(shapes)


def test_blocks_that_would_join_to_one_question_stay_apart() -> None:
    one, other = ask(user("a\nb", "c")), ask(user("a", "b\nc"))
    assert one.question == other.question
    assert one.context != other.context


@pytest.mark.parametrize("forged", ["?", '"?"', "?1", "\\u003f"])
def test_no_text_can_be_written_like_the_mark(forged: str) -> None:
    assert ask({"role": "system", "content": forged}, user("x")).context != ask(user("x"), user("x")).context
    assert ask(user(forged), assistant("x")).context == ask(user("x"), assistant("x")).context
    assert ask(user(forged), user("x")).context not in {ask(user("y"), user("x")).context, ask(user("x")).context}


# Context

DIFFERENT: list[dict[str, Any]] = [
    {"model": "claude-2"},
    {"max_tokens": 100},
    {"max_tokens": 99.0},
    {"system": "Be brief."},
    {"system": [block("Be brief.")]},
    {"system": [block("Be"), block("brief.")]},
    {"temperature": 1},
    {"temperature": 1.0},
    {"top_k": 5},
    {"top_p": 0.5},
    {"stop_sequences": ["x"]},
    {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    {"thinking": {"type": "enabled", "budget_tokens": 2048}},
    {"thinking": {"type": "disabled"}},
    {"tools": [TOOL]},
    {"tools": [{**TOOL, "description": "x"}]},
    {"tools": [TOOL], "tool_choice": {"type": "any"}},
    {"tools": [TOOL], "tool_choice": {"type": "none"}},
    {"output_config": {"effort": "low"}},
    {"output_config": {"format": {"type": "json_schema", "schema": {}}}},
    {"context_management": {"edits": []}},
    {"inference_geo": "eu"},
    {"service_tier": "standard_only"},
    {"speed": "fast"},
    {"fallbacks": "default"},
    {"metadata": {"label": "x"}},
    {"metadata": 5},
    {"mcp_servers": [{"type": "url", "url": "https://post.example", "name": "post"}]},
    {"container": "container_1"},
    {"thread": {"type": "create"}},
    {"anthropic_version": "vertex-2023-10-16"},
    {"a_field_of_tomorrow": 1},
    {"a_field_of_tomorrow": None},
]


def test_whatever_may_change_the_answer_is_context_or_its_model() -> None:
    asks = [ask(**fields) for fields in [{}, *DIFFERENT]]
    contexts = [(one.model, one.context) for one in asks]
    assert len(set(contexts)) == len(contexts)


def test_earlier_turns_and_media_are_context() -> None:
    def of(**source: Any) -> dict[str, Any]:
        return {**IMAGE, "source": source}

    contexts = [
        ask(*messages).context
        for messages in (
            [user(block("x"))],
            [user("Hi"), assistant("Yes?"), user(block("x"))],
            [user("Hi"), assistant("Yes."), user(block("x"))],
            [user("Hi"), user("x")],
            [user("x"), assistant("{")],
            [user("x"), assistant("[")],
            [user("x"), {"role": "system", "content": "Be brief."}],
            [user("x", IMAGE)],
            [user(IMAGE, "x", "")],
            [user(of(type="base64", media_type="image/png", data="AAAB"), "x")],
            [user(of(type="base64", media_type="image/gif", data="AAAA"), "x")],
            [user(of(type="url", url="https://shop.example/a.png"), "x")],
            [user(of(type="url", url="https://shop.example/b.png"), "x")],
            [user(of(type="file", file_id="file_1"), "x")],
            [user({**IMAGE, "type": "document"}, "x")],
            [user(of(type="content", content=[IMAGE]), "x")],
            [user(of(type="content", content=[of(type="base64", data="AAAB")]), "x")],
            [assistant({"type": "thinking", "thinking": "Hm.", "signature": "EqQB"}), user("x")],
            [assistant({"type": "thinking", "thinking": "Hm.", "signature": "EqQC"}), user("x")],
        )
    ]
    assert len(set(contexts)) == len(contexts)


def test_an_images_data_is_in_the_context_by_its_digest() -> None:
    data = "A" * 1_000_000
    one = ask(user({**IMAGE, "source": {"type": "base64", "media_type": "image/png", "data": data}}, "x"))
    assert len(one.context) < 400
    assert one.body.count(data.encode()) == 1
    digest = one.context[one.context.index(b"#") :][:65].decode()
    forged = ask(user({**IMAGE, "source": {"type": "base64", "media_type": "image/png", "data": digest}}, "x"))
    assert forged.context != one.context
    assert b'"%b"' % digest.encode() in forged.context, "what a client writes is a text"


def test_a_documents_text_is_in_the_context_by_its_digest() -> None:
    text = "x" * 100_000
    sources = [
        {"type": "text", "media_type": "text/plain", "data": text},
        {"type": "content", "content": [block(text)]},
    ]
    for source in sources:
        one = ask(user({"type": "document", "source": source}, "What is this?"))
        assert len(one.context) < 400
        assert one.context != ask(user({"type": "document", "source": {**source, "data": text + "y"}}, "?")).context


@pytest.mark.parametrize("number", [("1", "1.0"), ("1", "1e0"), ("100000000000000000001", "100000000000000000002")])
def test_numbers_are_compared_as_written(number: tuple[str, str]) -> None:
    body = '{"model":"m","messages":[{"role":"user","content":"x"}],"top_k":%s}'
    one, other = (ask_raw((body % text).encode()) for text in number)
    assert one.context != other.context


def test_order_of_members_and_white_space_change_nothing() -> None:
    one = ask_raw(b'{"model":"m","messages":[{"role":"user","content":"x"}],"top_p":0.5}')
    other = ask_raw(b'{ "top_p" : 0.5,\n"messages":[{"content":"x","role":"user"}],\t"model":"\\u006d"}')
    assert (one.context, one.question, one.model) == (other.context, other.question, other.model)


# What is not context


@pytest.mark.parametrize("name", NOT_CONTEXT)
def test_delivery_is_not_context(name: str) -> None:
    value = {"stream": True, "cache_control": BREAK}[name]
    assert ask(**{name: value}).context == ask().context
    assert ask(**{name: value}).body != ask().body


def test_the_end_user_is_known_and_not_context() -> None:
    found = ask(metadata={"user_id": "u-7"})
    assert (found.user, found.context) == ("u-7", ask().context)
    for nobody in ({"user_id": None}, {"user_id": ""}, {"user_id": 5}, {}):
        assert (ask(metadata=nobody).user, ask(metadata=nobody).context) == (None, ask().context)
    labelled = ask(metadata={"user_id": "u-7", "label": "x"})
    assert (labelled.user, labelled.context) == ("u-7", ask(metadata={"label": "x"}).context)


HINTED: list[tuple[list[Any], dict[str, Any]]] = [
    ([user(block("x"))], {"system": [block("Be brief.")]}),
    ([user(IMAGE, block("x"))], {}),
    ([user(block("x"))], {"tools": [TOOL, {**TOOL, "name": "send"}]}),
    ([user("Hi"), assistant(CALL), user(RESULT)], {"tools": [TOOL]}),
    ([user("Hi"), assistant(CALL), user({**RESULT, "content": [block("4"), IMAGE]})], {"tools": [TOOL]}),
    ([user({"type": "search_result", "source": "s", "title": "t", "content": [block("4")]}, block("x"))], {}),
    ([user({"type": "document", "source": {"type": "content", "content": [block("4"), IMAGE]}}, block("x"))], {}),
    ([{"role": "system", "content": [{"type": "tool_addition", "tool": {"type": "tool_definition"}}]}, USER], {}),
]


def with_hints(value: Any) -> Any:
    """The same with a hint wherever the vendor takes one."""
    if isinstance(value, list):
        return [with_hints(item) for item in value]
    if not isinstance(value, dict):
        return value
    value = {name: with_hints(item) if name not in ("input", "input_schema") else item for name, item in value.items()}
    takes = ("type" in value and "media_type" not in value and value["type"] != "content") or "input_schema" in value
    return {**value, "cache_control": BREAK} if takes else value


@pytest.mark.parametrize(("messages", "fields"), HINTED)
def test_prompt_cache_hints_anywhere_are_not_context(messages: list[Any], fields: Any) -> None:
    plain = ask(*messages, **fields)
    hinted = ask(*with_hints(messages), **with_hints(fields), cache_control=BREAK)
    assert hinted.body.count(b"cache_control") > 1
    assert (hinted.question, hinted.context, hinted.traits) == (plain.question, plain.context, plain.traits)


def test_a_member_that_is_only_called_like_a_hint_is_context() -> None:
    schema = {"type": "object", "properties": {"cache_control": {"type": "string"}}}
    assert (
        ask(tools=[{**TOOL, "input_schema": schema}]).context
        != ask(tools=[{**TOOL, "input_schema": {"type": "object", "properties": {}}}]).context
    )
    called = [user("Hi"), assistant({**CALL, "input": {"cache_control": "no-store"}}), user(RESULT)]
    assert ask(*called).context != ask(user("Hi"), assistant(CALL), user(RESULT)).context


def test_headers_that_change_the_request_are_context_and_no_others() -> None:
    body = json.dumps({"model": "m", "messages": [USER]}).encode()
    plain = ask_raw(body).context
    assert ask_raw(body, x_api_key="x", User_Agent="y", X_Stainless_Retry_Count="1").context == plain
    named = [
        ask_raw(body, **{name: "v"}).context
        for name in ("Anthropic_Version", "anthropic_beta", "anthropic_workspace_id", "anthropic_user_profile_id")
    ]
    assert len({plain, *named}) == 5
    two = CIMultiDict([("anthropic-beta", "b"), ("Anthropic-Beta", "a")])
    assert ANTHROPIC.parse(MESSAGES, body, two).context != ask_raw(body, anthropic_beta="a").context
    for written in ("a,b", "b, a", "a,b,a", "a , b,"):
        assert ask_raw(body, anthropic_beta=written).context == ANTHROPIC.parse(MESSAGES, body, two).context
    assert ask_raw(body, anthropic_beta="a;b").context != ask_raw(body, anthropic_beta="a,b").context
    hash(ANTHROPIC.context_headers(two))


def test_the_body_goes_up_as_it_came() -> None:
    body = b'{ "model":"m", "stream":true,"messages":[{"role":"user","content":[{"type":"text","text":"\\u00e9"}]}]}'
    for ask_usage in (True, False):
        assert ANTHROPIC.upstream_body(ask_raw(body), ask_usage=ask_usage) == body
    assert (ask_raw(body).stream, ask_raw(body).include_usage) == (True, False)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["user", "text", "base64", "x\ny", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "type", "text", "source", "data", "cache_control", "tool", "definition", "user_id"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
TREES = st.dictionaries(
    st.sampled_from(
        ["messages", "model", "system", "stream", "metadata", "tools", "diagnostics", "thread", "cache_control"]
    ),
    json_values,
)


@given(TREES)
def test_any_object_is_read_or_refused_and_always_the_same_way(tree: dict[str, Any]) -> None:
    for candidate in (tree, {"model": "m", "messages": [USER], **tree}):
        body = json.dumps(candidate).encode()
        try:
            found = ask_raw(body)
        except ClientError:
            continue
        assert found == ask_raw(body)
        assert found.body == body


@given(
    st.dictionaries(st.text(min_size=1), json_values, max_size=3),
    st.dictionaries(st.text(min_size=1), json_values, max_size=3),
)
def test_requests_that_differ_outside_of_delivery_have_different_contexts(one: Any, other: Any) -> None:
    known = {"messages", "model", "metadata", "system", "tools", *NOT_CONTEXT}
    one, other = ({name: value for name, value in tree.items() if name not in known} for tree in (one, other))
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (ask(**one).context == ask(**other).context) is same
    delivered = {"stream": True, "cache_control": BREAK, "metadata": {"user_id": "u"}}
    assert ask(**one, **delivered).context == ask(**one).context


# Traits


@pytest.mark.parametrize(
    ("kind", "hosted"),
    [
        (None, False),
        ("custom", False),
        ("bash_20250124", False),
        ("text_editor_20250728", False),
        ("computer_20251124", False),
        ("memory_20250818", False),
        ("computer_toolset_20260801", False),
        ("browser_toolset_20260801", False),
        ("web_search_20250305", True),
        ("web_fetch_20260318", True),
        ("code_execution_20250825", True),
        ("bash_code_execution_20250825", True),
        ("tool_search_tool_bm25_20251119", True),
        ("advisor_20260301", True),
        ("mcp_toolset", True),
        ("of_tomorrow_20990101", True),
        (5, True),
    ],
)
def test_tools_of_the_callers_are_told_from_those_the_vendor_runs(kind: Any, hosted: bool) -> None:
    tool = {**TOOL, **({} if kind is None else {"type": kind})}
    traits = ask(tools=[TOOL, tool]).traits
    assert (traits.has_tools, traits.has_hosted_tools) == (True, hosted)
    added = {"role": "system", "content": [{"type": "tool_addition", "tool": {"definition": tool}}]}
    traits = ask(added, USER).traits
    assert (traits.has_tools, traits.has_hosted_tools) == (True, hosted)


@pytest.mark.parametrize(
    ("fields", "has_tools", "hosted"),
    [
        ({}, False, False),
        ({"tools": []}, False, False),
        ({"tools": None}, False, False),
        ({"tools": "all"}, True, False),
        ({"tools": ["all"]}, True, False),
        ({"mcp_servers": []}, False, False),
        ({"mcp_servers": [{"type": "url", "url": "https://post.example", "name": "post"}]}, False, True),
    ],
)
def test_declared_tools_are_seen(fields: dict[str, Any], has_tools: bool, hosted: bool) -> None:
    traits = ask(**fields).traits
    assert (traits.has_tools, traits.has_hosted_tools) == (has_tools, hosted)


def test_a_reference_to_a_tool_is_no_tool_of_the_vendors() -> None:
    def change(**tool: Any) -> dict[str, Any]:
        return {"role": "system", "content": [{"type": "tool_addition", "tool": tool}]}

    assert not ask(change(type="tool_reference", name="track"), USER, tools=[TOOL]).traits.has_hosted_tools
    assert ask(change(type="mcp_toolset_reference", server_name="post"), USER, tools=[TOOL]).traits.has_hosted_tools


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([USER], False),
        ([USER, assistant("Yes?"), USER], False),
        ([USER, assistant(CALL), user(RESULT)], True),
        ([USER, assistant(CALL), user(RESULT), assistant("4."), USER], True),
        ([USER, assistant({**CALL, "type": "server_tool_use"})], True),
        ([USER, assistant({"type": "web_search_tool_result", "content": []}), USER], True),
        ([USER, assistant({"type": "mcp_tool_use", "input": {}}), USER], True),
    ],
)
def test_a_running_tool_loop_is_seen(messages: list[Any], expected: bool) -> None:
    assert ask(*messages).traits.has_tool_results is expected


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (user("x"), False),
        (user("x", "y"), False),
        (user({"type": "search_result", "source": "s", "title": "t", "content": [block("4")]}, "x"), False),
        (assistant({"type": "thinking", "thinking": "Hm.", "signature": "EqQB"}, "x"), False),
        (assistant({"type": "redacted_thinking", "data": "EmwK"}, "x"), False),
        (user(IMAGE, "x"), True),
        (user({"type": "image", "source": {"type": "file", "file_id": "file_1"}}, "x"), True),
        (user({"type": "document", "source": {"type": "text", "data": "4 days"}}, "x"), True),
        (user({"type": "container_upload", "file_id": "file_1"}, "x"), True),
        (user({"type": "of tomorrow"}, "x"), True),
        (user({"text": "x"}, "x"), True),
        (user({**RESULT, "content": [IMAGE]}), True),
    ],
)
def test_media_are_seen_in_any_message(message: Any, expected: bool) -> None:
    assert ask(message, USER).traits.has_media is expected
    assert ask(USER, message).traits.has_media is expected


@pytest.mark.parametrize(
    ("fields", "is_stateful", "id_is_a_handle"),
    [
        ({}, False, False),
        ({"thread": {"type": "create"}}, True, False),
        ({"thread": {"type": "continue", "previous_message_id": "msg_1"}}, True, False),
        ({"thread": None}, False, False),
        ({"container": "container_1"}, True, False),
        ({"container": {"skills": [{"type": "anthropic", "skill_id": "pdf"}]}}, True, False),
        ({"container": None}, False, False),
        ({"fallback_credit_token": "t"}, True, False),
        ({"diagnostics": {"previous_message_id": "msg_1"}}, True, True),
        ({"diagnostics": {"previous_message_id": None}}, False, True),
        ({"diagnostics": None}, False, False),
    ],
)
def test_what_reads_or_leaves_state_at_the_vendor_is_seen(
    fields: dict[str, Any], is_stateful: bool, id_is_a_handle: bool
) -> None:
    traits = ask(**fields).traits
    assert (traits.is_stateful, traits.id_is_a_handle) == (is_stateful, id_is_a_handle)


def test_sampling_is_read() -> None:
    assert (ask(temperature=0.7).traits.temperature, ask().traits.temperature) == (0.7, None)
    assert ask(temperature="hot").traits.temperature is None
    assert ask().traits.choices == 1


# Refusals


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"model": "m"}, "messages", "missing_required_parameter"),
        ({"messages": [USER]}, "model", "missing_required_parameter"),
        ({"model": "m", "messages": "x"}, "messages", "invalid_type"),
        ({"model": "m", "messages": None}, "messages", "invalid_type"),
        ({"model": "m", "messages": []}, "messages", "empty_array"),
        ({"model": "m", "messages": [USER, "x"]}, "messages[1]", "invalid_type"),
        ({"model": 5, "messages": [USER]}, "model", "invalid_type"),
        ({"model": "", "messages": [USER]}, "model", "invalid_type"),
        ({"model": "m", "messages": [USER], "stream": "true"}, "stream", "invalid_type"),
    ],
)
def test_a_refusal_names_the_member_in_the_vendors_shape(body: Any, param: str, code: str) -> None:
    with pytest.raises(ClientError) as refused:
        ask_raw(json.dumps(body).encode())
    assert (refused.value.status, refused.value.param, refused.value.code) == (400, param, code)
    error = json.loads(ANTHROPIC.error_body(refused.value, "req_1"))
    assert error == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": refused.value.message},
        "request_id": "req_1",
    }
    assert f"'{param}'" in refused.value.message


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model":NaN}', b'{"a":1,"a":2}', b"\xff", b"\xef\xbb\xbf{}"])
def test_what_two_parsers_may_read_differently_is_refused(body: bytes) -> None:
    with pytest.raises(ClientError) as refused:
        ask_raw(body)
    assert (refused.value.status, refused.value.code) == (400, "invalid_json")


@pytest.mark.parametrize(
    "fields",
    [{"max_tokens": "many"}, {"system": 5}, {"tools": 5}, {"metadata": "x"}, {"thinking": []}, {"stream": None}],
)
def test_what_need_not_be_understood_is_left_to_the_upstream(fields: dict[str, Any]) -> None:
    found = ask(**fields)
    assert (found.question, found.stream, found.user) == (USER["content"], False, None)
