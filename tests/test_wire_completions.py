"""What a legacy completions request asks: its question, its context, its choices, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from semcache.errors import ClientError
from semcache.types import Ask
from semcache.wire import Address
from semcache.wire.completions import NOT_CONTEXT, OpenAICompletions

LEGACY = OpenAICompletions()
AT = Address(LEGACY, "openai", "completions", "/v1/completions")
PROMPT = "A parcel to Norway takes"


def ask(prompt: Any = PROMPT, headers: Any = (), **fields: Any) -> Ask:
    return LEGACY.parse(AT, json.dumps({"model": "m", "prompt": prompt, **fields}).encode(), CIMultiDict(headers))


# Question and context


@pytest.mark.parametrize(
    ("fields", "question"),
    [
        ({}, PROMPT),
        ({"prompt": [PROMPT]}, PROMPT),
        ({"echo": False, "logprobs": None, "suffix": ""}, PROMPT),
        ({"best_of": 3, "stop": ["\n"]}, PROMPT),
        ({"prompt": None}, None),
        ({"prompt": " \n"}, None),
        ({"prompt": [PROMPT, PROMPT]}, None),
        ({"prompt": [32, 1029]}, None),
        ({"prompt": [[32, 1029]]}, None),
        ({"prompt": [PROMPT, [32]]}, None),
        ({"echo": True}, None),  # the answer repeats this prompt, letter for letter
        ({"logprobs": 0}, None),  # its offsets count this prompt's characters
        ({"suffix": " to arrive."}, None),
    ],
)
def test_the_question_is_the_one_prompt_of_which_no_letter_shows_in_the_answer(
    fields: dict[str, Any], question: str | None
) -> None:
    assert ask(**fields).question == question


def test_requests_that_differ_in_their_question_only_share_the_context() -> None:
    assert ask("One?").context == ask("Two?").context
    assert ask(["One?"]).context == ask(["Two?"]).context
    assert ask("One?").context != ask(["One?"]).context
    assert ask("One?", echo=True).context != ask("Two?", echo=True).context


DIFFERENT: list[dict[str, Any]] = [
    {},
    {"prompt": [PROMPT]},
    {"prompt": [PROMPT, "x"]},
    {"prompt": ["x", PROMPT]},
    {"prompt": [1, 2]},
    {"prompt": [[1, 2]]},
    {"prompt": [[1], [2]]},
    {"prompt": None},
    {"prompt": "?", "echo": True},
    {"suffix": "x"},
    {"suffix": "y"},
    {"echo": True},
    {"echo": False},
    {"logprobs": 1},
    {"logprobs": 2},
    {"n": 2},
    {"best_of": 2},
    {"n": 2, "best_of": 2},
    {"max_tokens": 5},
    {"temperature": 1},
    {"temperature": 1.0},
    {"top_p": 0.5},
    {"seed": 10**20},
    {"seed": 10**20 + 1},
    {"stop": "x"},
    {"stop": ["x"]},
    {"presence_penalty": 1},
    {"frequency_penalty": 1},
    {"logit_bias": {"50256": -100}},
    {"a_field_of_tomorrow": None},
    {"model": "m2"},
]


def test_whatever_may_change_the_answer_is_context_or_its_model() -> None:
    asks = [ask(**fields) for fields in DIFFERENT]
    contexts = [(one.model, one.context) for one in asks]
    assert len(set(contexts)) == len(contexts)


@pytest.mark.parametrize("name", NOT_CONTEXT)
def test_delivery_and_identity_are_not_context(name: str) -> None:
    value = {"stream": True, "stream_options": {"include_usage": True}}.get(name, "ann")
    assert ask(**{name: value}).context == ask().context


names = st.sampled_from(["suffix", "echo", "logprobs", "n", "stop", "seed", "user", "stream_options", "tomorrow"])
values = st.none() | st.booleans() | st.integers(1, 5) | st.sampled_from(["a", "b"]) | st.lists(st.text(max_size=1))


@given(st.dictionaries(names, values, max_size=4), names, values)
def test_equal_contexts_mean_equal_requests_but_for_the_list(fields: dict[str, Any], name: str, value: Any) -> None:
    other = {**fields, name: value}
    try:
        one, two = ask(**fields), ask(**other)
    except ClientError:
        return

    def counted(tree: dict[str, Any]) -> str:
        kept = {key: item for key, item in tree.items() if key not in NOT_CONTEXT}
        return json.dumps(kept, sort_keys=True)

    same = counted(fields) == counted(other)
    assert ((one.context, one.question) == (two.context, two.question)) == same


def test_headers_that_change_the_request_are_context() -> None:
    plain = ask().context
    assert ask(headers={"Authorization": "Bearer x", "User-Agent": "y"}).context == plain
    assert ask(headers={"OpenAI-Organization": "o"}).context != plain


# Traits and delivery


@pytest.mark.parametrize(
    ("fields", "choices"),
    [
        ({}, 1),
        ({"n": 3}, 3),
        ({"n": None}, 1),
        ({"best_of": 5}, 1),
        ({"prompt": ["a"]}, 1),
        ({"prompt": ["a", "b"]}, 2),
        ({"prompt": ["a", "b"], "n": 3}, 6),
        ({"prompt": [1, 2, 3], "n": 2}, 2),
        ({"prompt": [[1], [2], [3]], "n": 2}, 6),
        ({"prompt": None}, 1),
    ],
)
def test_every_prompt_has_its_own_choices(fields: dict[str, Any], choices: int) -> None:
    assert ask(**fields).traits.choices == choices


def test_sampling_delivery_and_the_end_user_are_read() -> None:
    found = ask(temperature=0.7, user="ann", stream=True, stream_options={"include_usage": True})
    assert (found.traits.temperature, found.user, found.stream, found.include_usage) == (0.7, "ann", True, True)
    plain = ask(user=5, temperature="hot", stream_options={"include_usage": True})
    assert (plain.traits.temperature, plain.user, plain.stream, plain.include_usage) == (None, None, False, False)


def test_a_stream_is_asked_for_its_usage_where_the_caller_did_not() -> None:
    found = ask(stream=True)
    assert LEGACY.upstream_body(found, ask_usage=False) == found.body
    sent = LEGACY.upstream_body(found, ask_usage=True)
    assert json.loads(sent) == {**json.loads(found.body), "stream_options": {"include_usage": True}}
    assert LEGACY.upstream_body(ask(), ask_usage=True) == ask().body


def test_fresh_ids_are_unlike_each_other_and_like_the_vendors() -> None:
    one, two = LEGACY.fresh_identity(5.9), LEGACY.fresh_identity(5.9)
    assert one.id != two.id
    assert one.created == 5
    assert one.id is not None
    assert one.id.startswith("cmpl-")


# Refusals


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": None}, "model", "invalid_type"),
        ({"model": 5}, "model", "invalid_type"),
        ({"prompt": []}, "prompt", "empty_array"),
        ({"prompt": {}}, "prompt", "invalid_type"),
        ({"prompt": 5}, "prompt", "invalid_type"),
        ({"prompt": True}, "prompt", "invalid_type"),
        ({"n": 0}, "n", "invalid_type"),
        ({"n": "2"}, "n", "invalid_type"),
        ({"stream": "yes"}, "stream", "invalid_type"),
    ],
)
def test_a_refusal_names_the_field_and_the_sdk_raises_its_own_exception(
    fields: dict[str, Any], param: str, code: str
) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        try:
            LEGACY.parse(AT, request.content, request.headers)
        except ClientError as refused:
            return httpx2.Response(refused.status, content=LEGACY.error_body(refused, "r"))
        return httpx2.Response(200, json={})

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    client = openai.OpenAI(api_key="k", base_url="http://proxy.example/v1", http_client=http, max_retries=0)
    with pytest.raises(openai.BadRequestError, match=f"'{param}'") as raised:
        client.completions.create(**{"model": "m", "prompt": PROMPT, **fields})
    assert (raised.value.param, raised.value.code, raised.value.type) == (param, code, "invalid_request_error")


@pytest.mark.parametrize("prompt", [None, ["a", 5], [None], [[]], [["x"]], [1, "a"]])
def test_what_need_not_be_understood_is_left_to_the_upstream(prompt: Any) -> None:
    assert ask(prompt).question is None
