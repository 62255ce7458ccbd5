"""Playing chat completions: their pieces, identity, usage and time. That nothing is lost is test_chat_fidelity.py's."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk

from semcache.errors import CacheFault
from semcache.types import Answer, Form, Usage
from semcache.wire import Identity, Rendition
from semcache.wire.openai import OpenAIChat
from tests.recordings_chat import BODIES, Recording

OPENAI = OpenAIChat()
FRESH = Identity("chatcmpl-fresh", 1_800_000_000)
RECORDED = Identity(None, None)
USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 4,
    "total_tokens": 13,
    "completion_tokens_details": {"reasoning_tokens": 2},
}
HEAD = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "created": 5,
    "model": "m-2026",
    "service_tier": "default",
    "system_fingerprint": "fp_1",
}


def play(answer: Answer, form: Form, identity: Identity = FRESH, *, include_usage: bool = False) -> list[Any]:
    """The values played: one body, or the chunks of a stream whose framing has been checked."""
    score = OPENAI.prepare(answer, Rendition(form, include_usage=include_usage))
    events = score.play(identity)
    assert score.play_whole(identity) == b"".join(events)
    assert len(score.offsets_ms) == len(events)
    if form is Form.JSON:
        return [json.loads(event) for event in events]
    assert events[-1] == b"data: [DONE]\n\n"
    for event in events:
        assert event.startswith(b"data: ")
        assert event.index(b"\n") == len(event) - 2
    return [json.loads(event[6:]) for event in events[:-1]]


def streamed(*chunks: Any, usage: Usage | None = None, offsets_ms: tuple[int, ...] = ()) -> Answer:
    return Answer("openai", Form.STREAM, tuple(json.dumps(c).encode() for c in chunks), offsets_ms, usage)


def bodied(body: Any, usage: Usage | None = None) -> Answer:
    return Answer("openai", Form.JSON, (json.dumps(body).encode(),), (70,), usage)


def chunk(delta: Any, finish: Any = None, index: int = 0, choice: Any = None, **more: Any) -> dict[str, Any]:
    one = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish, **(choice or {})}
    return {**HEAD, "choices": [one], **more}


def completion(message: Any, choice: Any = None, **more: Any) -> dict[str, Any]:
    one = {
        "index": 0,
        "message": {"role": "assistant", **message},
        "logprobs": None,
        "finish_reason": "stop",
        **(choice or {}),
    }
    return {**HEAD, "object": "chat.completion", "choices": [one], "usage": USAGE, **more}


def token(text: str, logprob: float = -0.25) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []}


SAID = [
    chunk({"role": "assistant", "content": "", "refusal": None}),
    chunk({"content": "Four "}),
    chunk({"content": "days."}),
]
END = chunk({}, "stop")
USAGE_CHUNK = {**HEAD, "choices": [], "usage": USAGE}


# Body as stream


@pytest.mark.parametrize("recording", [one for one in BODIES if not one.asked or one.asked[0][0] != "n"])
def test_a_body_becomes_a_stream_as_the_vendor_sends_one(recording: Recording) -> None:
    body: Any = recording.said
    chunks = play(bodied(body), Form.STREAM)
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert {(c["id"], c["created"], c["model"], c["service_tier"]) for c in chunks} == {
        (*FRESH, "tiny-2026", "default")
    }
    first, *middle, last = (c["choices"][0] for c in chunks)
    assert first["delta"]["role"] == "assistant"
    assert not first["delta"].get("content")
    assert all("role" not in c["delta"] and c["finish_reason"] is None for c in middle)
    assert (last["delta"], last["finish_reason"]) == ({}, body["choices"][0]["finish_reason"])
    assert all("usage" not in c for c in chunks)
    assert len(chunks) < 600


def test_a_text_is_cut_into_words() -> None:
    chunks = play(bodied(completion({"content": "Four days, at most."})), Form.STREAM)
    assert [c["choices"][0]["delta"].get("content") for c in chunks] == ["", "Four", " days,", " at", " most.", None]


def test_each_token_comes_with_its_own_log_probability() -> None:
    probs = {"content": [token("Four"), token(" days")], "refusal": None}
    chunks = play(bodied(completion({"content": "Four days"}, {"logprobs": probs})), Form.STREAM)
    assert [c["choices"][0]["logprobs"] for c in chunks] == [
        None,
        {"content": [token("Four")], "refusal": None},
        {"content": [token(" days")], "refusal": None},
        None,
    ]


def test_log_probabilities_of_no_text_go_with_the_beginning() -> None:
    probs = {"content": [token("{"), token("}")], "refusal": None}
    chunks = play(bodied(completion({"content": None}, {"logprobs": probs})), Form.STREAM)
    assert [c["choices"][0]["logprobs"] for c in chunks] == [probs, None]


@pytest.mark.parametrize(
    ("message", "deltas"),
    [
        (
            {"tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]},
            [
                {
                    "tool_calls": [
                        {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
                    ]
                },
                {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]},
                {"tool_calls": [{"index": 0, "function": {"arguments": " 1}"}}]},
            ],
        ),
        (
            {"tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "sh", "input": "ls -l"}}]},
            [
                {"tool_calls": [{"index": 0, "id": "c", "type": "custom", "custom": {"name": "sh", "input": ""}}]},
                {"tool_calls": [{"index": 0, "custom": {"input": "ls"}}]},
                {"tool_calls": [{"index": 0, "custom": {"input": " -l"}}]},
            ],
        ),
        (
            {"tool_calls": [{"id": "c", "type": "of tomorrow"}]},
            [{"tool_calls": [{"index": 0, "id": "c", "type": "of tomorrow"}]}],
        ),
        (
            {"function_call": {"name": "f", "arguments": '{"a": 1}'}},
            [
                {"function_call": {"name": "f", "arguments": ""}},
                {"function_call": {"arguments": '{"a":'}},
                {"function_call": {"arguments": " 1}"}},
            ],
        ),
    ],
)
def test_a_call_comes_as_who_is_called_and_then_with_what(message: Any, deltas: list[Any]) -> None:
    chunks = play(bodied(completion({"content": None, **message})), Form.STREAM)
    opening = {"role": "assistant", "content": None}
    assert [c["choices"][0]["delta"] for c in chunks] == [opening, *deltas, {}]


def test_choices_keep_their_indexes_and_come_in_order() -> None:
    two = completion({"content": "a b"})
    two["choices"].append({**two["choices"][0], "index": 1, "message": {"role": "assistant", "content": "c"}})
    chunks = play(bodied(two), Form.STREAM)
    assert [c["choices"][0]["index"] for c in chunks] == [0, 0, 0, 0, 1, 1, 1]
    assert play(streamed(*chunks), Form.JSON, RECORDED)[0]["choices"] == [
        {"index": n, "message": {"role": "assistant", "content": text}, "logprobs": None, "finish_reason": "stop"}
        for n, text in enumerate(["a b", "c"])
    ]


# Identity


def test_a_replay_shows_its_own_id_and_time_everywhere_and_nothing_else_new() -> None:
    for answer in (streamed(*SAID, END, USAGE_CHUNK), bodied(completion({"content": "x", "id": "mine", "created": 1}))):
        for form in Form:
            fresh = play(answer, form, FRESH, include_usage=True)
            recorded = play(answer, form, RECORDED, include_usage=True)
            assert {(v["id"], v["created"]) for v in fresh} == {FRESH}
            assert {(v["id"], v["created"]) for v in recorded} == {("chatcmpl-1", 5)}
            assert [{**v, "id": 0, "created": 0} for v in fresh] == [{**v, "id": 0, "created": 0} for v in recorded]
            only_id = play(answer, form, Identity("chatcmpl-2", None), include_usage=True)
            assert {(v["id"], v["created"]) for v in only_id} == {("chatcmpl-2", 5)}


def test_one_score_plays_any_number_of_times() -> None:
    score = OPENAI.prepare(streamed(*SAID, END), Rendition(Form.STREAM, include_usage=True))
    first = score.play(FRESH)
    score.play_whole(Identity("chatcmpl-other", 7))
    assert score.play(FRESH) == first
    assert score.size_bytes < 2 * sum(map(len, first))
    assert "stream" in repr(score)


def test_fresh_ids_are_unlike_each_other_and_like_the_vendors() -> None:
    made = [OPENAI.fresh_identity(1_800_000_000.9) for _ in range(1000)]
    assert len({one.id for one in made}) == 1000
    assert {one.created for one in made} == {1_800_000_000}
    assert all(one.id is not None and one.id.startswith("chatcmpl-") and len(one.id) > 25 for one in made)


def test_a_body_keeps_every_byte_but_id_and_time() -> None:
    text = (
        b' {\n  "id": "chatcmpl-1" ,"created" : 5,\n "a":"\\u00e9 \xc3\xa9",'
        b' "b": 1.50, "c": 100000000000000000001,"choices":[]} \n'
    )
    answer = Answer("openai", Form.JSON, (text,))
    assert OPENAI.prepare(answer, Rendition(Form.JSON)).play_whole(RECORDED) == text
    expected = text.replace(b'"chatcmpl-1"', b'"chatcmpl-fresh"').replace(b": 5,", b": 1800000000,")
    assert OPENAI.prepare(answer, Rendition(Form.JSON)).play_whole(FRESH) == expected


def test_an_answer_without_id_or_time_gets_none() -> None:
    assert play(Answer("openai", Form.JSON, (b'{"choices":[]}',)), Form.JSON) == [{"choices": []}]


def test_numbers_keep_their_text_in_every_form() -> None:
    part = (
        b'{"id":"x","created":5,"seed":100000000000000000001,'
        b'"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop","p":1.50}]}'
    )
    for form in Form:
        played = OPENAI.prepare(Answer("openai", Form.STREAM, (part,)), Rendition(form)).play_whole(RECORDED)
        assert b":1.50" in played
        assert b":100000000000000000001" in played


# Usage


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(streamed(*SAID, END, USAGE_CHUNK), id="usage chunk"),
        pytest.param(streamed(*({**c, "usage": None} for c in [*SAID, END]), USAGE_CHUNK), id="usage null before"),
        pytest.param(streamed(*SAID, {**END, "usage": USAGE}), id="usage with the finish"),
        pytest.param(
            streamed(*({**c, "usage": {**USAGE, "total_tokens": 1}} for c in SAID), END, USAGE_CHUNK),
            id="usage on the way",
        ),
        pytest.param(bodied(completion({"content": "Four days."})), id="body"),
    ],
)
def test_who_asks_for_usage_gets_one_usage_chunk_last(answer: Answer) -> None:
    *chunks, last = play(answer, Form.STREAM, include_usage=True)
    assert (last["choices"], last["usage"]) == ([], USAGE)
    assert all(c["usage"] is None and c["choices"] for c in chunks)
    assert (last["id"], last["object"], last["model"]) == ("chatcmpl-fresh", "chat.completion.chunk", "m-2026")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(streamed(*SAID, END, USAGE_CHUNK), id="usage chunk"),
        pytest.param(streamed(*({**c, "usage": None} for c in [*SAID, END]), USAGE_CHUNK), id="usage null before"),
        pytest.param(bodied(completion({"content": "Four days."})), id="body"),
    ],
)
def test_who_does_not_ask_for_usage_gets_none(answer: Answer) -> None:
    assert all("usage" not in c and c["choices"] for c in play(answer, Form.STREAM))


def test_figures_that_a_vendor_sends_unasked_stay_where_they_are() -> None:
    assert play(streamed(*SAID, {**END, "usage": USAGE}), Form.STREAM)[-1]["usage"] == USAGE


def test_usage_that_nobody_told_is_none_and_costs_nothing() -> None:
    told = play(streamed(*SAID, END), Form.STREAM, include_usage=True)[-1]
    assert told["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    ChatCompletionChunk.model_validate(told)
    assert "usage" not in play(streamed(*SAID, END), Form.JSON)[0]
    bare = completion({"content": "x"})
    del bare["usage"]
    assert play(bodied(bare), Form.STREAM, include_usage=True)[-1]["usage"]["total_tokens"] == 0


def test_a_streams_usage_is_in_its_body() -> None:
    assert play(streamed(*SAID, END, USAGE_CHUNK), Form.JSON)[0]["usage"] == USAGE
    assert play(streamed(*SAID, {**END, "usage": USAGE}), Form.JSON)[0]["usage"] == USAGE


# Time


def test_offsets_follow_the_events() -> None:
    answer = streamed(*SAID, END, USAGE_CHUNK, offsets_ms=(0, 10, 20, 30, 40))
    assert OPENAI.prepare(answer, Rendition(Form.STREAM, include_usage=True)).offsets_ms == (0, 10, 20, 30, 40, 40)
    assert OPENAI.prepare(answer, Rendition(Form.STREAM)).offsets_ms == (0, 10, 20, 30, 30)
    assert OPENAI.prepare(answer, Rendition(Form.JSON)).offsets_ms == (40,)
    assert set(
        OPENAI.prepare(bodied(completion({"content": "x"})), Rendition(Form.STREAM, include_usage=True)).offsets_ms
    ) == {0}


# What servers send


def test_a_role_repeated_in_every_delta_is_one_role() -> None:
    chunks = [chunk({"role": "assistant", "content": text}) for text in ("Four ", "days.")]
    message = play(streamed(*chunks, END), Form.JSON)[0]["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "Four days."}


def test_a_call_repeated_in_every_delta_is_one_call() -> None:
    pieces = ['{"a"', ":1}"]
    calls = [
        {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": piece}} for piece in pieces
    ]
    chunks = [chunk({"tool_calls": [call]}) for call in calls]
    message = play(streamed(*chunks, END), Form.JSON)[0]["choices"][0]["message"]
    assert message["tool_calls"] == [{"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}]


def test_filter_reports_without_id_do_not_become_the_answers_id() -> None:
    report = {
        "id": "",
        "object": "",
        "created": 0,
        "model": "",
        "choices": [],
        "prompt_filter_results": [{"prompt_index": 0}],
    }
    late = {
        **report,
        "choices": [{"index": 0, "finish_reason": None, "content_filter_results": {"hate": {"filtered": False}}}],
    }
    body = play(streamed(report, *SAID, END, late), Form.JSON, RECORDED)[0]
    assert (body["id"], body["created"], body["model"]) == ("chatcmpl-1", 5, "m-2026")
    assert body["prompt_filter_results"] == [{"prompt_index": 0}]
    assert body["choices"][0]["content_filter_results"] == {"hate": {"filtered": False}}
    assert body["choices"][0]["finish_reason"] == "stop"


def test_lists_without_index_grow_and_other_values_are_the_last() -> None:
    chunks = [
        chunk(
            {"content": "x", "annotations": [{"type": "url_citation"}], "audio": {"id": "a", "data": "AA"}, "score": 1}
        ),
        chunk(
            {
                "annotations": [{"type": "url_citation"}],
                "audio": {"data": "BB", "expires_at": 9},
                "score": 2.0,
                "flag": True,
            }
        ),
        chunk(
            {
                "score": None,
                "details": [{"index": 1, "text": "b"}, {"index": 0, "text": "a"}, {"index": 1, "text": "B"}],
            }
        ),
    ]
    message = play(streamed(*chunks, END), Form.JSON)[0]["choices"][0]["message"]
    assert message["annotations"] == [{"type": "url_citation"}] * 2
    assert message["audio"] == {"id": "a", "data": "AABB", "expires_at": 9}
    assert (message["score"], message["flag"]) == (2.0, True)
    assert message["details"] == [{"index": 0, "text": "a"}, {"index": 1, "text": "bB"}]


def test_a_payload_of_several_lines_is_played_on_one() -> None:
    part = json.dumps(chunk({"content": "a\nb"}, "stop"), indent=1).encode()
    assert play(Answer("openai", Form.STREAM, (part,)), Form.STREAM)[0]["choices"][0]["delta"] == {"content": "a\nb"}


@pytest.mark.parametrize(
    "parts",
    [
        (),
        (b"",),
        (b"{",),
        (b"[]",),
        (b'"x"',),
        (b"\xff",),
        (b'{"choices":5}',),
        (b'{"choices":[5]}',),
        (b'{"choices":[{"delta":5}]}',),
    ],
)
def test_damaged_parts_are_a_fault_of_the_cache(parts: tuple[bytes, ...]) -> None:
    with pytest.raises(CacheFault):
        OPENAI.prepare(Answer("openai", Form.STREAM, parts), Rendition(Form.JSON))
    with pytest.raises(CacheFault):
        OPENAI.prepare(Answer("openai", Form.JSON, parts), Rendition(Form.STREAM))


values = st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=9)
fields = st.dictionaries(
    st.sampled_from(["refusal", "reasoning_content", "annotations", "x", "y"]),
    values | st.lists(values, max_size=2),
    max_size=4,
)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80)


@given(texts, fields, fields)
def test_any_body_survives_the_way_through_a_stream(content: str, own: dict[str, Any], top: dict[str, Any]) -> None:
    body = completion({"content": content, **own}, **top)
    chunks = play(bodied(body), Form.STREAM, RECORDED, include_usage=True)
    assert play(streamed(*chunks), Form.JSON, RECORDED) == [body]
