"""The judge fails what should fail: a rig that lets everything pass would prove nothing."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.e2e.answers import Asked, Tool, sample, say
from tests.e2e.catalog import FEATURES
from tests.e2e.judge import judge
from tests.e2e.upstream import Call

TALK, EMBEDDINGS = FEATURES["talk"], FEATURES["embeddings"]
ANSWER = {"text": "Answer 1", "cache": "semcache; fwd=miss"}
HIT = {"text": "Answer 1", "cache": "semcache; hit; ttl=9; detail=exact"}


def call(*texts: str) -> Call:
    return Call("/v1/x", "v1/x", "sk", texts, {})


def error(kind: str, status: int, message: str) -> dict[str, Any]:
    return {"error": {"type": kind, "status": status, "message": message}}


@pytest.mark.parametrize(
    "saw, calls, why",
    [
        ([ANSWER, HIT], 1, None),
        ([ANSWER, HIT], 2, "asked 2 times"),
        ([ANSWER, {"text": "Answer 2"}], 1, "text of answer 2 differs"),
        ([{"text": ""}, {"text": ""}], 1, "no text"),
        ([ANSWER, ANSWER], 1, "Cache-Status"),
        ([ANSWER | {"usage": 3}, HIT | {"usage": 0}], 1, "usage of answer 2"),
        ([ANSWER | {"thought": "hm"}, HIT], 1, "thought of answer 2"),
        ([ANSWER, error("X", 500, "no")], 1, "call 2 raised X"),
    ],
)
def test_a_hit_is_the_same_answer_without_a_call(saw: list[Any], calls: int, why: str | None) -> None:
    found = judge("json", TALK["json"], saw, [call("q")] * calls)
    assert found is None if why is None else why in (found or "")


def test_a_stream_has_to_come_in_pieces() -> None:
    assert "one piece" in (judge("stream", TALK["stream"], [HIT | {"pieces": 1}] * 2, [call("q")]) or "")
    assert judge("stream", TALK["stream"], [HIT | {"pieces": 2}] * 2, [call("q")]) is None


@pytest.mark.parametrize("feature, wanted", [("tools", "arguments"), ("object", "object"), ("reasoning", "thought")])
def test_what_was_asked_for_has_to_be_there(feature: str, wanted: str) -> None:
    assert f"no {wanted}" in (judge(feature, TALK[feature], [HIT, HIT], [call("q")]) or "")


def test_an_error_is_right_when_it_is_raised_as_the_vendors_is() -> None:
    plan = TALK["only_if_cached"]
    vendor, ours = error("T", 504, "failed"), error("T", 504, "only-if-cached was asked")
    assert judge("only_if_cached", plan, [vendor, ours], []) is None
    assert "type" in (judge("only_if_cached", plan, [vendor, error("U", 504, "only-if-cached")], []) or "")
    assert "status" in (judge("only_if_cached", plan, [vendor, error("T", 500, "only-if-cached")], []) or "")
    assert "lacks" in (judge("only_if_cached", plan, [vendor, error("T", 504, "failed")], []) or "")
    assert "no exception" in (judge("only_if_cached", plan, [vendor, HIT], []) or "")


def test_of_a_half_known_batch_only_the_other_half_may_be_fetched() -> None:
    plan = EMBEDDINGS["embed_half"]
    one, two, three = plan["texts"]
    saw = [{"vectors": [[1.0], [2.0]]}, {"vectors": [[3.0], [2.0]]}]
    assert judge("embed_half", plan, saw, [call(one, two), call(three)]) is None
    assert "asked for" in (judge("embed_half", plan, saw, [call(one, two), call(three, two)]) or "")
    swapped = [saw[0], {"vectors": [[2.0], [3.0]]}]
    assert "not those" in (judge("embed_half", plan, swapped, [call(one, two), call(three)]) or "")


def test_what_may_not_be_stored_is_asked_each_time() -> None:
    plan = TALK["no_store"]
    assert judge("no_store", plan, [ANSWER, {"text": "Answer 2"}], [call("q")] * 2) is None
    assert "same answer" in (judge("no_store", plan, [ANSWER, ANSWER], [call("q")] * 2) or "")
    assert "asked 1 times" in (judge("no_store", plan, [ANSWER, {"text": "Answer 2"}], [call("q")]) or "")


SCHEMAS = st.recursive(
    st.sampled_from(
        [
            {"type": "string"},
            {"type": "integer"},
            {"type": "number"},
            {"type": "boolean"},
            {"type": "null"},
            {"type": ["string", "null"]},
            {"enum": ["a", 2]},
            {"const": 7},
            {"$ref": "#/$defs/Leaf"},
        ]
    ),
    lambda inner: st.one_of(
        st.builds(lambda item: {"type": "array", "items": item, "minItems": 2}, inner),
        st.builds(lambda item: {"anyOf": [item, {"type": "null"}]}, inner),
        st.dictionaries(st.sampled_from("abc"), inner).map(
            lambda fields: {
                "type": "object",
                "properties": fields,
                "required": sorted(fields),
                "additionalProperties": False,
            }
        ),
    ),
)


@given(SCHEMAS, st.integers(1, 10**6))
def test_what_the_upstream_makes_up_fits_the_schema(schema: dict[str, Any], number: int) -> None:
    whole = {
        **schema,
        "$defs": {"Leaf": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}},
    }
    jsonschema.validate(sample(whole, number), whole)


def test_the_upstream_calls_a_tool_once_and_then_answers() -> None:
    tool = Tool("look", {"type": "object", "properties": {"days": {"type": "integer"}}})
    assert say(Asked("q", [tool]), 5).arguments == {"days": 5}
    assert say(Asked("q", [tool], has_tool_result=True), 6).text.startswith("Answer 6")
    assert say(Asked("q", max_tokens=3), 7).is_cut and say(Asked("please refuse"), 8).is_refusal
    assert say(Asked("q", thinks=True), 9).thought
