"""What a request to the Responses API asks: its question, its context, its traits, and what it repeats."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from semcache.errors import ClientError, UpstreamError
from semcache.types import Ask, Traits
from semcache.wire import find_address
from semcache.wire.responses import NOT_CONTEXT, Responses

ADDRESS = find_address("/v1/responses")
assert ADDRESS is not None
DIALECT = ADDRESS.dialect
QUESTION = "How long does a parcel take?"
USER = {"role": "user", "content": QUESTION}
IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "auto"}
FILE = {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}
AUDIO = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}}
CALL = {"type": "function_call", "call_id": "c1", "name": "find_parcel", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "4 days"}
TOOL = {"type": "function", "name": "find_parcel", "parameters": {}}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}
SAID = {"role": "assistant", "content": [{"type": "output_text", "text": "Where to?", "annotations": []}]}


def ask_raw(body: bytes, **headers: str) -> Ask:
    return DIALECT.parse(ADDRESS, body, CIMultiDict({k.replace("_", "-"): v for k, v in headers.items()}))


def ask(given: Any = QUESTION, **members: Any) -> Ask:
    return ask_raw(json.dumps({"model": "m", "input": given, **members}).encode())


def user(*parts: Any, **more: Any) -> dict[str, Any]:
    return {
        "role": "user",
        "content": [{"type": "input_text", "text": p} if type(p) is str else p for p in parts],
        **more,
    }


# Question and context


@pytest.mark.parametrize(
    "given",
    [
        QUESTION,
        [USER],
        [{"type": "message", **USER}],
        [user(QUESTION)],
        [user(QUESTION, IMAGE)],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}, SAID, USER],
        [USER, {"role": "developer", "content": "Be brief."}],
        [USER, {"role": "system", "content": "Be brief."}, {"type": "message", "role": "developer", "content": "!"}],
        [THOUGHT, SAID, USER],
        [CALL, RESULT, USER],
    ],
)
def test_the_question_is_the_last_users_text(given: Any) -> None:
    assert ask(given).question == QUESTION
    assert QUESTION.encode() not in ask(given).context


@pytest.mark.parametrize(
    "given",
    [
        "",
        " \n",
        [],
        None,
        [user("")],
        [user(IMAGE)],
        [user()],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 7}],
        [{"role": "user"}],
        [user({"type": "input_text", "text": 7})],
        [user({"type": "output_text", "text": "x"})],
        [{"role": ["user"], "content": "x"}],
        [{"content": "who says this?"}],
        [{"type": 7, **USER}],
        [USER, SAID],
        [USER, THOUGHT],
        [USER, CALL],
        [USER, CALL, RESULT],
        [{"role": "system", "content": "Be brief."}],
    ],
)
def test_without_a_last_users_text_there_is_no_question(given: Any) -> None:
    assert ask(given).question is None


def test_an_input_may_be_missing() -> None:
    assert ask_raw(b'{"model":"m"}').question is None


def test_requests_that_differ_in_their_question_only_share_the_context() -> None:
    for form in (lambda text: text, lambda text: [{"role": "user", "content": text}], lambda text: [SAID, user(text)]):
        assert ask(form("One?")).context == ask(form("Two?")).context


def test_text_parts_are_joined_and_their_shape_is_context() -> None:
    assert ask([user("How long", "does it take?")]).question == "How long\ndoes it take?"
    shapes = [
        "a\nb",
        [{"role": "user", "content": "a\nb"}],
        [user("a\nb")],
        [user("a", "b")],
        [user("a\nb", id="msg_1")],
    ]
    assert {a.question for a in map(ask, shapes)} == {"a\nb"}
    assert len({a.context for a in map(ask, shapes)}) == len(shapes)


def test_parts_that_would_join_to_one_question_stay_apart() -> None:
    one, other = ask([user("a\nb", "c")]), ask([user("a", "b\nc")])
    assert one.question == other.question
    assert one.context != other.context


@pytest.mark.parametrize("mark", ["?", '"?"', "?1", "\\u003f"])
def test_no_earlier_turn_can_be_written_like_the_mark(mark: str) -> None:
    forged = {"role": "user", "content": mark}
    assert ask([forged, USER]).context != ask([USER, forged]).context
    assert ask([user(mark, IMAGE), USER]).context != ask([USER, user(mark, IMAGE)]).context


@pytest.mark.parametrize(
    "members",
    [
        {"instructions": "Be brief."},
        {"tools": [TOOL]},
        {"tool_choice": "required"},
        {"text": {"format": {"type": "json_object"}}},
        {"reasoning": {"effort": "high"}},
        {"include": ["message.output_text.logprobs"]},
        {"truncation": "auto"},
        {"max_output_tokens": 16},
        {"max_tool_calls": 1},
        {"parallel_tool_calls": False},
        {"temperature": 0},
        {"temperature": 0.0},
        {"top_p": 1},
        {"top_logprobs": 2},
        {"service_tier": "flex"},
        {"store": False},
        {"prompt": {"id": "pmpt_1", "version": "2"}},
        {"prompt_cache_options": {"prewarm": True}},
        {"context_management": [{"type": "compaction"}]},
        {"moderation": {"model": "omni"}},
        {"something_new": None},
    ],
)
def test_all_that_may_change_the_answer_is_context(members: Any) -> None:
    assert ask(**members).context != ask().context
    assert ask(**members).question == QUESTION


VALUES: dict[str, Any] = {
    "stream": True,
    "stream_options": {"include_obfuscation": False},
    "user": "ann",
    "safety_identifier": "a81",
    "prompt_cache_key": "faq",
    "prompt_cache_retention": "24h",
    "metadata": {"trace": "7"},
}


@pytest.mark.parametrize("name", NOT_CONTEXT)
def test_what_is_no_context_changes_no_key(name: str) -> None:
    assert ask(**{name: VALUES[name]}).context == ask().context


def test_marks_for_the_vendors_prompt_cache_change_no_key() -> None:
    mark = {"prompt_cache_breakpoint": {"mode": "explicit"}}
    marked = ask([user({**FILE, **mark}, {"type": "input_text", "text": "x", **mark})])
    assert marked.context == ask([user(FILE, "x")]).context
    result = [{"type": "input_text", "text": "4 days"}]
    assert ask([{**RESULT, "output": [{**result[0], **mark}]}]).context == ask([{**RESULT, "output": result}]).context


def test_headers_that_change_what_is_asked_are_context() -> None:
    body = json.dumps({"model": "m", "input": QUESTION}).encode()
    plain = ask_raw(body).context
    for header in ("OpenAI_Organization", "OpenAI_Project", "OpenAI_Beta", "api_version"):
        assert ask_raw(body, **{header: "x"}).context != plain
    assert ask_raw(body, x_request_id="7", Authorization="Bearer k").context == plain


LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
BODIES = st.dictionaries(
    st.sampled_from(["instructions", "tools", "prompt", "text", "include", "new", *NOT_CONTEXT]), TREES
)


@given(BODIES, BODIES)
def test_contexts_are_equal_if_and_only_if_what_counts_is(one: Any, other: Any) -> None:
    for body in (one, other):
        body.pop("stream", None)  # must be a boolean, and is looked at above

    def counts(body: Any) -> str:
        return json.dumps({k: v for k, v in body.items() if k not in NOT_CONTEXT}, sort_keys=True)

    assert (ask(**one).context == ask(**other).context) == (counts(one) == counts(other))


ITEMS = st.lists(
    st.sampled_from([USER, SAID, CALL, RESULT, THOUGHT, user("a", "b"), user(IMAGE), user("a\nb")]),
    min_size=1,
    max_size=4,
)


@given(ITEMS, ITEMS)
def test_two_inputs_have_equal_keys_only_if_they_are_equal(one: Any, other: Any) -> None:
    a, b = ask(one), ask(other)
    assert ((a.question, a.context) == (b.question, b.context)) == (one == other)


# Media


@pytest.mark.parametrize("part", [IMAGE, FILE, AUDIO, {"type": "input_hologram"}, "text", {"text": "x"}])
def test_other_parts_than_text_are_media(part: Any) -> None:
    message = {"role": "user", "content": [{"type": "input_text", "text": "What is it?"}, part]}
    assert ask([message]).traits.has_media
    assert ask([{**RESULT, "output": [part]}]).traits.has_media
    assert ask([{"role": "user", "content": [part]}, SAID, USER]).traits.has_media


@pytest.mark.parametrize(
    "item", [{"type": "image_generation_call", "result": "AAAA"}, {"type": "computer_call_output"}]
)
def test_pictures_of_earlier_turns_are_media(item: Any) -> None:
    assert ask([item, USER]).traits.has_media


@pytest.mark.parametrize("given", [QUESTION, [USER], [SAID, user("a", "b")], [THOUGHT, USER], [CALL, RESULT]])
def test_texts_are_not_media(given: Any) -> None:
    assert not ask(given).traits.has_media


def test_media_in_a_prompts_variables_count() -> None:
    prompt = {"id": "pmpt_1", "version": "1", "variables": {"city": "Oslo", "seen": IMAGE}}
    assert ask(prompt=prompt).traits.has_media
    prompt["variables"] = {"city": "Oslo"}
    assert not ask(prompt=prompt).traits.has_media


@pytest.mark.parametrize("part", [IMAGE, FILE, AUDIO])
def test_large_data_enter_the_context_by_their_digest(part: dict[str, Any]) -> None:
    def large(letter: str) -> Any:
        text = json.dumps(part).replace("AAAA", letter * 100_000)
        return [user("What is it?", json.loads(text))]

    one, other = ask(large("A")), ask(large("B"))
    assert len(one.context) < 1000
    assert one.context != other.context
    assert one.context == ask(large("A")).context


# Traits


@pytest.mark.parametrize(
    "members",
    [
        {"previous_response_id": "resp_1"},
        {"conversation": "conv_1"},
        {"conversation": {"id": "conv_1"}},
        {"background": True},
        {"store": True},
        {"prompt": {"id": "pmpt_1"}},
        {"prompt": {"id": "pmpt_1", "version": None}},
        {"prompt": "pmpt_1"},
        {"prompt_cache_options": {"comparison_response_id": "resp_1"}},
        {"given": [{"type": "item_reference", "id": "msg_1"}, USER]},
        {"given": [{"id": "msg_1"}, USER]},
        {"given": [{"type": None, "id": "msg_1"}, USER]},
        {"given": [{"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm"}]}, USER]},
    ],
)
def test_what_is_held_at_the_upstream_is_never_answered_from_here(members: Any) -> None:
    traits = ask(**members).traits
    assert traits.is_stateful
    assert not traits.id_is_a_handle


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"store": None},
        {"store": False},
        {"background": False, "conversation": None, "previous_response_id": None, "prompt": None},
        {"prompt": {"id": "pmpt_1", "version": "3"}},
        {"prompt_cache_options": {"ttl": "12h"}},
        {"given": [THOUGHT, {**SAID, "id": "msg_1"}, USER]},
        {"given": [{"type": "reasoning", "summary": []}, USER]},
        {"given": [{"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text"}]}, USER]},
    ],
)
def test_what_says_all_it_means_is_looked_up(members: Any) -> None:
    traits = ask(**members).traits
    assert not traits.is_stateful
    assert traits.id_is_a_handle == (members.get("store") is None)


@pytest.mark.parametrize(
    ("tools", "hosted"),
    [
        ([TOOL], False),
        ([{"type": "custom", "name": "run"}, TOOL], False),
        ([{"type": "namespace", "name": "crm", "tools": [TOOL]}], False),
        ([{"type": "apply_patch"}], False),
        ([{"type": "local_shell"}], False),
        ([{"type": "shell", "environment": {"type": "local"}}], False),
        ([{"type": "tool_search", "execution": "client"}], False),
        ([{"type": "web_search"}], True),
        ([{"type": "web_search_preview_2025_03_11"}], True),
        ([TOOL, {"type": "file_search", "vector_store_ids": ["vs_1"]}], True),
        ([{"type": "code_interpreter", "container": {"type": "auto"}}], True),
        ([{"type": "computer_use_preview"}], True),
        ([{"type": "image_generation"}], True),
        ([{"type": "mcp", "server_label": "x", "server_url": "https://x.example"}], True),
        ([{"type": "shell"}], True),
        ([{"type": "shell", "environment": {"type": "container_auto"}}], True),
        ([{"type": "tool_search"}], True),
        ([{"type": "programmatic_tool_calling"}], True),
        ([{"type": "namespace", "name": "crm", "tools": [{"type": "mcp"}]}], True),
        ([{"type": "namespace", "name": "crm"}], True),
        ([{"type": "someday"}], True),
        ([{"type": ["function"]}], True),
        (["web_search"], True),
        ({"type": "web_search"}, True),
    ],
)
def test_tools_are_told_apart_by_who_carries_out_their_calls(tools: Any, hosted: bool) -> None:
    for traits in (ask(tools=tools).traits, ask([{"type": "additional_tools", "tools": tools}, USER]).traits):
        assert traits.has_tools or hosted
        assert traits.has_hosted_tools == hosted


def test_without_tools_there_are_none() -> None:
    for tools in ([], None):
        assert ask(tools=tools).traits == Traits(id_is_a_handle=True)


@pytest.mark.parametrize(
    ("given", "running"),
    [
        ([USER], False),
        ([USER, SAID, USER], False),
        ([USER, CALL, USER], False),
        ([USER, CALL], True),
        ([USER, CALL, RESULT], True),
        ([USER, CALL, RESULT, SAID, USER], True),
        ([USER, {"type": "custom_tool_call_output"}], True),
        ([USER, {"type": "mcp_approval_response"}, USER], True),
        ([USER, THOUGHT, SAID, USER], False),
    ],
)
def test_results_of_tools_are_a_running_loop(given: Any, running: bool) -> None:
    assert ask(given).traits.has_tool_results == running


@pytest.mark.parametrize(("value", "seen"), [(0.3, 0.3), (1, 1.0), (None, None), ("hot", None)])
def test_the_temperature_is_told(value: Any, seen: float | None) -> None:
    assert ask(temperature=value).traits.temperature == seen


def test_the_end_user_is_known_by_either_name() -> None:
    assert ask(user="ann").user == "ann"
    assert ask(safety_identifier="a81").user == "a81"
    assert ask(user=7).user is None
    assert ask().user is None


# The rest


def test_what_the_answer_repeats_is_told_as_the_vendor_would() -> None:
    absent = {"metadata": b"{}", "user": b"null", "safety_identifier": b"null", "prompt_cache_key": b"null"}
    assert dict(ask().echo) == dict(ask(metadata=None, user=None).echo) == absent
    told = {"metadata": {"b": "ü", "a": "1"}, "user": "ann", "safety_identifier": "s", "prompt_cache_key": "k"}
    echo = dict(ask(**told, prompt_cache_retention="24h").echo)
    assert {name: json.loads(text) for name, text in echo.items()} == {**told, "prompt_cache_retention": "24h"}
    assert echo["metadata"] == '{"b":"ü","a":"1"}'.encode()


@pytest.mark.parametrize(
    "target",
    ["/v1/responses", "/responses", "/openai/v1/responses", "/openai/responses?api-version=2025-03-01-preview"],
)
def test_every_path_of_the_endpoint_speaks_it(target: str) -> None:
    address = find_address(target)
    assert address is not None
    assert isinstance(address.dialect, Responses)
    asked = address.dialect.parse(address, b'{"model":"m","input":"x"}', {})
    assert (asked.endpoint, asked.dialect) == ("responses", "azure" if "openai" in target else "openai")


@pytest.mark.parametrize(
    "target",
    [f"/v1/responses/{rest}" for rest in ("resp_1", "resp_1/input_items", "resp_1/cancel", "input_tokens", "compact")],
)
def test_what_is_below_the_endpoint_passes_through(target: str) -> None:
    assert find_address(target) is None


def test_the_body_goes_upstream_as_it_came() -> None:
    body = b'{ "model":"m", "input":"x", "stream":true }'
    asked = ask_raw(body)
    assert asked.stream
    assert DIALECT.upstream_body(asked, ask_usage=True) == body


def test_a_stored_prompt_may_name_the_model() -> None:
    assert ask_raw(b'{"prompt":{"id":"pmpt_1","version":"1"}}').model == ""


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({"input": "x"}, "Missing required parameter: 'model'.", "model"),
        ({"model": 7, "input": "x"}, "Invalid 'model': expected a non-empty string, got a number.", "model"),
        (
            {"model": "", "input": "x", "prompt": {}},
            "Invalid 'model': expected a non-empty string, got a string.",
            "model",
        ),
        (
            {"model": "m", "input": 7},
            "Invalid 'input': expected a string or an array of objects, got a number.",
            "input",
        ),
        (
            {"model": "m", "input": USER},
            "Invalid 'input': expected a string or an array of objects, got an object.",
            "input",
        ),
        ({"model": "m", "input": [USER, "x"]}, "Invalid 'input[1]': expected an object, got a string.", "input[1]"),
        (
            {"model": "m", "input": "x", "stream": "yes"},
            "Invalid 'stream': expected a boolean, got a string.",
            "stream",
        ),
    ],
)
def test_a_bad_request_is_told_which_member_is_wrong(body: Any, message: str, param: str) -> None:
    with pytest.raises(ClientError) as caught:
        ask_raw(json.dumps(body).encode())
    assert (caught.value.status, caught.value.message, caught.value.param) == (400, message, param)


def test_fresh_ids_are_as_the_vendors_and_never_twice() -> None:
    identities = {DIALECT.fresh_identity(1_800_000_000.7) for _ in range(50)}
    assert len(identities) == 50
    assert {i.created for i in identities} == {1_800_000_000}
    assert all(i.id is not None and i.id.startswith("resp_") and len(i.id) == 53 for i in identities)


def test_an_error_in_a_stream_has_the_vendors_name_and_both_its_shapes() -> None:
    event = DIALECT.error_event(UpstreamError("The model has gone."), "r1")
    name, data, *rest = event.split(b"\n")
    assert (name, rest) == (b"event: error", [b"", b""])
    told = json.loads(data.removeprefix(b"data: "))
    assert told == {
        "type": "error",
        "sequence_number": 0,
        "code": "upstream_error",
        "message": "The model has gone.",
        "param": None,
        "error": {"message": "The model has gone.", "type": "api_error", "param": None, "code": "upstream_error"},
    }
