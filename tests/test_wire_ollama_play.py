"""Playing Ollama's answers: all four ways, read by the official SDK, judged by what the server itself sends."""

from __future__ import annotations

import json
from typing import Any

import httpx
import ollama
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.errors import CacheFault
from semcache.types import Answer, Form, Usage
from semcache.wire import RECORDED, Dialect, Identity, Rendition, Score, find_address
from tests.recordings_ollama import RECORDINGS, STOP, Recording, added_up, dumps

FRESH = Identity(None, 1_800_000_000)
FRESH_TEXT = "2027-01-15T08:00:00Z"
STORABLE = [recording for recording in RECORDINGS if recording.why_not is None]
NAMED = pytest.mark.parametrize("recording", STORABLE, ids=lambda recording: recording.name)


def dialect_of(endpoint: str) -> Dialect:
    address = find_address(f"/api/{endpoint}")
    assert address is not None
    return address.dialect


def streamed(recording: Recording) -> Answer:
    parts = tuple(recording.stream.splitlines())
    return Answer("ollama", Form.STREAM, parts, tuple(range(0, 10 * len(parts), 10)), Usage(26, 5))


def bodied(recording: Recording) -> Answer:
    return Answer("ollama", Form.JSON, (recording.body,), (70,), Usage(26, 5))


def prepare(recording: Recording, answer: Answer, form: Form, *, zero_usage: bool = False) -> Score:
    score = dialect_of(recording.endpoint).prepare(answer, Rendition(form, zero_usage=zero_usage))
    assert score.form is form
    assert score.content_type == ("application/x-ndjson" if form is Form.STREAM else "application/json; charset=utf-8")
    assert score.play_whole(FRESH) == b"".join(score.play(FRESH))
    return score


def shown(recording: Recording, score: Score, identity: Identity = FRESH) -> list[Any]:
    """What the SDK hands to a program: the parts of a stream, or the one answer."""
    reply = httpx.Response(200, content=score.play_whole(identity), headers={"content-type": score.content_type})
    client = ollama.Client(transport=httpx.MockTransport(lambda request: reply))
    ask = client.chat if recording.endpoint == "chat" else client.generate
    answer = ask(model="tiny", stream=score.form is Form.STREAM)
    return list(answer) if score.form is Form.STREAM else [answer]


def parsed(recording: Recording, lines: list[Any]) -> list[Any]:
    kind = ollama.ChatResponse if recording.endpoint == "chat" else ollama.GenerateResponse
    return [kind(**line) for line in lines]


def at(time: str, *lines: Any) -> list[Any]:
    return [{**line, "created_at": time} for line in lines]


def body_of(recording: Recording) -> Any:
    return added_up(recording.endpoint, recording.lines)


# What was recorded, in the form it was recorded in


@NAMED
def test_a_stream_is_played_as_it_was_but_for_its_times(recording: Recording) -> None:
    score = prepare(recording, streamed(recording), Form.STREAM)
    assert score.play_whole(RECORDED) == recording.stream
    assert [json.loads(event) for event in score.play(FRESH)] == at(FRESH_TEXT, *recording.lines)
    assert all(event.endswith(b"\n") and event.count(b"\n") == 1 for event in score.play(FRESH))
    assert shown(recording, score) == parsed(recording, at(FRESH_TEXT, *recording.lines))
    assert score.offsets_ms == tuple(range(0, 10 * len(recording.lines), 10))


@NAMED
def test_a_body_is_played_as_it_was_but_for_its_time(recording: Recording) -> None:
    score = prepare(recording, bodied(recording), Form.JSON)
    assert score.play_whole(RECORDED) == recording.body
    assert shown(recording, score) == parsed(recording, at(FRESH_TEXT, body_of(recording)))


# And in the other


@NAMED
def test_a_stream_is_added_up_as_the_server_does(recording: Recording) -> None:
    score = prepare(recording, streamed(recording), Form.JSON)
    assert json.loads(score.play_whole(FRESH)) == {**body_of(recording), "created_at": FRESH_TEXT}
    assert shown(recording, score) == parsed(recording, at(FRESH_TEXT, body_of(recording)))


@NAMED
def test_a_body_is_played_as_a_stream_that_adds_up_to_it(recording: Recording) -> None:
    score = prepare(recording, bodied(recording), Form.STREAM)
    lines = [json.loads(event) for event in score.play(FRESH)]
    assert added_up(recording.endpoint, lines) == {**body_of(recording), "created_at": FRESH_TEXT}
    assert shown(recording, score) == parsed(recording, lines)
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert all({"model", "created_at"} <= set(line) for line in lines)
    again = Answer("ollama", Form.STREAM, tuple(score.play(RECORDED)))
    back = prepare(recording, again, Form.JSON)
    assert json.loads(back.play_whole(RECORDED)) == body_of(recording)


@NAMED
def test_every_way_reads_as_a_whole_answer_that_may_be_kept(recording: Recording) -> None:
    dialect, address = dialect_of(recording.endpoint), find_address(f"/api/{recording.endpoint}")
    assert address is not None
    ask = dialect.parse(address, dumps(recording.request), {})
    for answer in (streamed(recording), bodied(recording)):
        for form in Form:
            score = prepare(recording, answer, form)
            headers = {"content-type": score.content_type}
            scribe = dialect.scribe(ask, 200, headers, store_tools=recording.store_tools, limit_bytes=1 << 20)
            scribe.feed(score.play_whole(FRESH), 0)
            assert scribe.finish(True)[1].unstorable is None


def one(*lines: Any, endpoint: Any = "chat") -> Recording:
    return Recording("", endpoint, lines)


def chat_body(**message: Any) -> Recording:
    return one({"model": "m", "created_at": "x", "message": {"role": "assistant", **message}, "done": True, **STOP})


def test_a_body_becomes_words_then_a_line_of_figures() -> None:
    score = prepare(chat_body(), bodied(chat_body(content="Four days.", thinking="Hm, so.")), Form.STREAM)
    messages = [json.loads(event)["message"] for event in score.play(RECORDED)]
    assert messages == [
        {"role": "assistant", "content": "", "thinking": "Hm,"},
        {"role": "assistant", "content": "", "thinking": " so."},
        {"role": "assistant", "content": "Four"},
        {"role": "assistant", "content": " days."},
        {"role": "assistant", "content": ""},
    ]
    assert json.loads(score.play(RECORDED)[-1]) == {
        "model": "m", "created_at": "x", "message": messages[-1], "done": True, **STOP
    }  # fmt: skip


@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "thinking": None, "tool_calls": None},
        {"content": "", "thinking": "", "tool_calls": []},
        {"content": "Four", "images": None, "seal": [1]},
    ],
)
def test_members_without_a_value_come_through(message: dict[str, Any]) -> None:
    recording = chat_body(**message)
    stream = prepare(recording, bodied(recording), Form.STREAM)
    back = prepare(recording, Answer("ollama", Form.STREAM, tuple(stream.play(RECORDED))), Form.JSON)
    assert json.loads(back.play_whole(RECORDED)) == json.loads(recording.body)


def test_log_probabilities_come_with_their_tokens() -> None:
    told = next(r for r in STORABLE if r.name == "chat: log probabilities")
    lines = [json.loads(event) for event in prepare(told, bodied(told), Form.STREAM).play(RECORDED)]
    assert [(line["message"]["content"], [t["token"] for t in line.get("logprobs", [])]) for line in lines] == [
        ("Four", ["Four"]), (" days", [" days"]), (".", ["."]), ("", []),
    ]  # fmt: skip


def test_a_played_line_is_one_line_to_the_sdk() -> None:
    text = "a\u2028b\u2029c\x85d"  # written as they are in a body, where a server may
    recording = chat_body(content=text)
    parts = shown(recording, prepare(recording, bodied(recording), Form.STREAM))
    assert "".join(part.message.content for part in parts) == text


# Usage, pace and faults


@NAMED
def test_usage_set_to_nothing_leaves_the_durations(recording: Recording) -> None:
    for answer in (streamed(recording), bodied(recording)):
        for form in Form:
            usual = shown(recording, prepare(recording, answer, form))
            zeroed = shown(recording, prepare(recording, answer, form, zero_usage=True))
            last = usual[-1]
            if last.eval_count is not None:
                assert zeroed[-1].eval_count == 0
                last.eval_count = 0
            if last.prompt_eval_count is not None:
                last.prompt_eval_count = 0
            assert zeroed == usual


def test_a_replay_at_a_pace_lasts_as_long_as_its_tokens() -> None:
    recording = STORABLE[0]
    due = prepare(recording, streamed(recording), Form.STREAM).schedule(5.0)
    assert due == pytest.approx([0, 1 / 3, 2 / 3, 1])  # 5 tokens in 4 lines


def test_an_identity_of_its_own_is_a_time() -> None:
    assert dialect_of("chat").fresh_identity(1.9) == Identity(None, 1)


NOT_JSON_OBJECTS: list[tuple[bytes, ...]] = [(), (b"",), (b"{",), (b"[]",), (b'"x"',), (b"\xff",)]
NOT_ANSWERS: list[tuple[bytes, ...]] = [
    (b'{"message":7,"response":7,"done":true}',),
    (b'{"message":{"content":7},"response":[7],"done":true}',),
    (b'{"message":{"content":"a"},"response":"a","logprobs":[7],"done":true}',),
    (b'{"model":"a","model":"b","message":{"content":"a"},"response":"a","done":true}',),
]


@pytest.mark.parametrize("endpoint", ["chat", "generate"])
@pytest.mark.parametrize("parts", NOT_JSON_OBJECTS)
def test_parts_that_are_no_objects_are_a_fault_of_the_cache(endpoint: str, parts: tuple[bytes, ...]) -> None:
    for stored in Form:
        for form in Form:
            with pytest.raises(CacheFault, match=f"a stored {stored} answer cannot be played as {form}"):
                dialect_of(endpoint).prepare(Answer("ollama", stored, parts), Rendition(form))


@pytest.mark.parametrize("endpoint", ["chat", "generate"])
@pytest.mark.parametrize("parts", NOT_ANSWERS)
def test_a_body_that_cannot_be_cut_into_lines_is_one_too(endpoint: str, parts: tuple[bytes, ...]) -> None:
    with pytest.raises(CacheFault):
        dialect_of(endpoint).prepare(Answer("ollama", Form.JSON, parts), Rendition(Form.STREAM))


texts = st.text(max_size=30)


@given(texts, texts, st.lists(st.dictionaries(texts, texts, max_size=2), max_size=2))
def test_any_texts_survive_the_change_of_form(content: str, thinking: str, arguments: list[Any]) -> None:
    calls = [{"function": {"name": "f", "arguments": each}} for each in arguments]
    said = {"content": content, "thinking": thinking, "tool_calls": calls}
    for recording in (
        chat_body(**said),
        one({"model": "m", "response": content, "thinking": thinking, "done": True}, endpoint="generate"),
    ):
        whole = json.loads(dumps(recording.lines[0]))
        body = Answer("ollama", Form.JSON, (dumps(recording.lines[0]),))
        stream = prepare(recording, body, Form.STREAM).play(RECORDED)
        back = prepare(recording, Answer("ollama", Form.STREAM, tuple(stream)), Form.JSON)
        assert json.loads(back.play_whole(RECORDED)) == whole
