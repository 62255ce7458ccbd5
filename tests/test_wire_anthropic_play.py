"""Playing Anthropic's messages: all four ways, judged by the official SDK."""

from __future__ import annotations

import json
import re
from typing import Any

import anthropic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.errors import CacheFault
from semcache.types import Answer, Form, Usage
from semcache.wire import RECORDED, Identity, Rendition, Score, find_address
from tests.recordings_anthropic import (
    RECORDINGS,
    SAID,
    USAGE,
    Recording,
    added_up,
    call,
    citation,
    dumps,
    message,
    text,
    thought,
)
from tests.replies import read_reply

FRESH = Identity("msg_fresh", 1_800_000_000)
NAMED = pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.name)
WITH_BODY = pytest.mark.parametrize(
    "recording", [recording for recording in RECORDINGS if recording.has_body], ids=lambda recording: recording.name
)


def prepare(answer: Answer, form: Form, zero_usage: bool = False) -> Score:
    address = find_address("/v1/messages")
    assert address is not None
    return address.dialect.prepare(answer, Rendition(form, zero_usage=zero_usage))


def streamed(recording: Recording) -> Answer:
    """What the scribe keeps of it."""
    lines = recording.stream.splitlines(keepends=True)
    request, headers = dumps(recording.request), {"content-type": "text/event-stream"}
    _, reading = read_reply("/v1/messages", request, lines, headers, store_tools=recording.store_tools)
    assert reading.answer is not None
    return reading.answer


def bodied(body: Any, usage: Usage | None = None) -> Answer:
    return Answer("anthropic", Form.JSON, (body if isinstance(body, bytes) else dumps(body),), (70,), usage)


def events_of(raw: bytes) -> list[Any]:
    """The events of a played stream, whose framing is checked: a name, then the data that has the same."""
    events = []
    for block in raw.split(b"\n\n")[:-1]:
        name, data = block.split(b"\n")
        event = json.loads(data.removeprefix(b"data: "))
        assert name == b"event: " + event["type"].encode()
        events.append(event)
    assert raw.endswith(b"\n\n")
    return events


def play(answer: Answer, identity: Identity = RECORDED, zero_usage: bool = False) -> bytes:
    """The bytes of a stream."""
    score = prepare(answer, Form.STREAM, zero_usage)
    pieces = score.play(identity)
    assert score.play_whole(identity) == b"".join(pieces)
    assert len(score.offsets_ms) == len(pieces)
    assert (score.form, score.content_type) == (Form.STREAM, "text/event-stream; charset=utf-8")
    return b"".join(pieces)


def body_of(answer: Answer, identity: Identity = RECORDED, zero_usage: bool = False) -> Any:
    score = prepare(answer, Form.JSON, zero_usage)
    assert score.content_type == "application/json"
    return json.loads(score.play_whole(identity))


def as_read(value: Any) -> Any:
    """As the SDK's user finds it: a member that is null and one that is not there are one."""
    if isinstance(value, dict):
        return {name: as_read(item) for name, item in value.items() if item is not None}
    return [as_read(item) for item in value] if isinstance(value, list) else value


# The table


@NAMED
def test_a_stream_replayed_is_the_stream_that_was_recorded(recording: Recording) -> None:
    expected = [event for event in recording.events if event["type"] != "ping"]
    assert events_of(play(streamed(recording))) == expected


@NAMED
def test_each_replay_has_an_id_of_its_own_and_all_else_in_common(recording: Recording) -> None:
    raw = play(streamed(recording), FRESH)
    assert b"msg_01Vendor" not in raw
    assert raw.replace(b"msg_fresh", b"msg_01Vendor") == play(streamed(recording))


@WITH_BODY
def test_a_stream_becomes_the_body_that_the_sdk_makes_of_it(recording: Recording) -> None:
    body, theirs = body_of(streamed(recording)), json.loads(recording.body)
    if recording.name == "unknown members":  # the SDK passes over what stands beside the last delta
        assert body.pop("new") == [1, 2.50]
    assert as_read(body) == as_read(theirs)


@WITH_BODY
def test_a_body_becomes_a_stream_of_which_the_sdk_makes_the_body(recording: Recording) -> None:
    body = json.loads(recording.body)
    again = added_up(play(bodied(body)), recording.is_beta)
    assert as_read(again) == as_read(body)
    assert body_of(streamed_again(play(bodied(body)))) == body


def streamed_again(raw: bytes) -> Answer:
    parts = [line.removeprefix(b"data: ") for line in raw.split(b"\n") if line.startswith(b"data: ")]
    return Answer("anthropic", Form.STREAM, tuple(parts), tuple(range(len(parts))))


@WITH_BODY
def test_a_body_replayed_is_the_recorded_bytes_but_for_its_id(recording: Recording) -> None:
    played = prepare(bodied(recording.body), Form.JSON).play_whole(FRESH)
    assert played == recording.body.replace(b'"msg_01Vendor"', b'"msg_fresh"')


@NAMED
def test_the_sdk_takes_every_replayed_stream_to_its_end(recording: Recording) -> None:
    if recording.has_body:
        assert added_up(play(streamed(recording)), recording.is_beta) == json.loads(recording.body)


def test_a_body_is_not_made_of_pieces_that_nobody_knows() -> None:
    for name in ("an unknown delta", "a call that is not JSON"):
        recording = next(recording for recording in RECORDINGS if recording.name == name)
        with pytest.raises(CacheFault):
            prepare(streamed(recording), Form.JSON)


# A body as a stream


def whole(*content: Any, **more: Any) -> Any:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-2026",
        "content": list(content),
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {**USAGE, "output_tokens": 15},
        **more,
    }


def test_a_body_becomes_events_in_the_vendors_order() -> None:
    content = [
        {"type": "thinking", "thinking": "Parcels, hm.", "signature": "EqQB"},
        {"type": "text", "text": "Four days.", "citations": [citation(0, 4)["citation"]]},
        {"type": "tool_use", "id": "toolu_1", "name": "track", "input": {"parcel": "A-1", "days": 4.0}},
    ]
    events = events_of(play(bodied(whole(*content, stop_reason="tool_use"))))
    assert [event["type"] for event in events] == [
        "message_start",
        *("content_block_start", *["content_block_delta"] * 3, "content_block_stop"),
        *("content_block_start", *["content_block_delta"] * 3, "content_block_stop"),
        *("content_block_start", *["content_block_delta"] * 3, "content_block_stop"),
        "message_delta",
        "message_stop",
    ]
    start = events[0]["message"]
    assert (start["content"], start["stop_reason"], start["stop_sequence"]) == ([], None, None)
    assert start["usage"] == {**USAGE, "output_tokens": 0}
    assert [event["content_block"] for event in events if event["type"] == "content_block_start"] == [
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "text", "text": "", "citations": []},
        {"type": "tool_use", "id": "toolu_1", "name": "track", "input": {}},
    ]
    deltas = [(event["index"], event["delta"]) for event in events if event["type"] == "content_block_delta"]
    assert [(index, delta["type"]) for index, delta in deltas] == [
        *[(0, "thinking_delta")] * 2,
        (0, "signature_delta"),
        *[(1, "text_delta")] * 2,
        (1, "citations_delta"),
        *[(2, "input_json_delta")] * 3,
    ]
    assert deltas[3][1]["text"] == "Four"
    assert "".join(delta["partial_json"] for index, delta in deltas if index == 2) == '{"parcel":"A-1","days":4.0}'
    assert events[-2] == {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": {
            "input_tokens": 21,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 1024,
            "output_tokens": 15,
        },
    }


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(whole({"type": "text", "text": "Four days.", "citations": None}), id="no citations"),
        pytest.param(whole({"type": "text", "text": ""}, {"type": "text", "text": "x"}), id="an empty text"),
        pytest.param(whole({"type": "text", "text": " leading,  double\n\n\tand trailing "}), id="white space"),
        pytest.param(whole({"type": "text", "text": "配送には四日かかります。" * 40}), id="no spaces"),
        pytest.param(whole({"type": "text", "text": "word " * 5000}), id="long"),
        pytest.param(whole({"type": "thinking", "thinking": "", "signature": "EqQB"}), id="thoughts withheld"),
        pytest.param(whole({"type": "tool_use", "id": "t", "name": "f", "input": {}}), id="no arguments"),
        pytest.param(
            whole({"type": "tool_use", "id": "t", "name": "f", "input": {"a": {"b": [1, 2.50, None]}, "é": "\u2028"}}),
            id="arguments",
        ),
        pytest.param(whole(stop_details=None, container=None, context_management=None), id="nulls"),
        pytest.param(
            whole({"type": "text", "text": "x"}, usage={**USAGE, "server_tool_use": None, "new": 4}), id="figures"
        ),
        pytest.param(whole({"type": "drawing", "strokes": [[1, 2]]}, mood="calm"), id="unknown members"),
    ],
)
def test_a_body_survives_the_way_through_a_stream(body: Any) -> None:
    raw = play(bodied(body))
    assert body_of(streamed_again(raw)) == body
    assert as_read(added_up(raw)) == as_read(body)
    assert len(events_of(raw)) < 600


def test_a_message_without_figures_shows_those_of_the_ledger() -> None:
    body = whole({"type": "text", "text": "x"})
    del body["usage"]
    for usage, shown in [(Usage(9, 4), (9, 4)), (None, (0, 0))]:
        made = added_up(play(bodied(body, usage)))["usage"]
        assert (made["input_tokens"], made["output_tokens"]) == shown


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
blocks = st.one_of(
    st.builds(lambda said: {"type": "text", "text": said}, st.text()),
    st.builds(lambda said, by: {"type": "thinking", "thinking": said, "signature": by}, st.text(), st.text()),
    st.builds(
        lambda given: {"type": "tool_use", "id": "toolu_1", "name": "f", "input": given},
        st.dictionaries(st.text(), json_values, max_size=4),
    ),
)


@given(st.lists(blocks, max_size=4))
def test_any_body_survives_the_way_through_a_stream(content: list[Any]) -> None:
    body = whole(*content)
    raw = play(bodied(body))
    assert body_of(streamed_again(raw)) == body
    assert added_up(raw)["content"] == content


# Usage, pace, faults


@pytest.mark.parametrize("form", list(Form))
def test_a_reply_that_cost_nothing_can_say_so_in_every_form(form: Form) -> None:
    recording = next(recording for recording in RECORDINGS if recording.name == "figures in detail")
    for answer in (streamed(recording), bodied(recording.body)):
        if form is Form.JSON:
            shown = [body_of(answer, zero_usage=True)["usage"]]
        else:
            events = events_of(play(answer, zero_usage=True))
            shown = [events[0]["message"]["usage"], events[-2]["usage"]]
        for usage in shown:
            assert set(re.findall(r"\d+", re.sub(r'"[^"]*"', "", json.dumps(usage)))) == {"0"}
        assert shown[0]["service_tier"] == "standard"


def test_a_replay_in_its_own_time_takes_as_long_as_its_tokens() -> None:
    score = prepare(streamed(Recording("", message(SAID))), Form.STREAM)
    due = score.schedule(10.0)  # tokens a second
    assert len(due) == 8
    assert due[-1] == pytest.approx(15 / 10)
    assert list(score.schedule("recorded")) == [offset / 1000 for offset in score.offsets_ms]
    assert score.offsets_ms == tuple(sorted(score.offsets_ms))


@pytest.mark.parametrize(
    "parts",
    [
        (b"x",),
        (b"[]",),
        (b'"x"',),
        (b"{}",),
        (b'{"type":7}',),
        (b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"x"}}',),
        (b'{"type":"message_start","message":[]}',),
        (b"\xff",),
        (b"[" * 100_000,),
    ],
)
@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("recorded", list(Form))
def test_parts_that_cannot_be_rendered_are_a_fault_of_the_cache(
    parts: tuple[bytes, ...], form: Form, recorded: Form
) -> None:
    try:
        prepare(Answer("anthropic", recorded, parts, (0,) * len(parts)), form)
    except CacheFault:
        return
    assert form is recorded  # what only passes through need not be understood


def test_fresh_ids_are_the_vendors_in_form_and_never_the_same() -> None:
    address = find_address("/v1/messages")
    assert address is not None
    made = {address.dialect.fresh_identity(5.9) for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"msg_[0-9a-f]{24}", identity.id or "") and identity.created == 5 for identity in made)


def test_what_a_client_shows_as_it_comes_is_the_same_from_a_body_and_from_a_stream() -> None:
    events = message(thought("Hm, ", "so."), text("Four ", "days."), call('{"a": 1}'), stop="tool_use")
    recording = Recording("", events, store_tools=True)
    shown = [
        [(event.type, getattr(event, "snapshot", None)) for event in _helper_events(raw)][-1]
        for raw in (recording.stream, play(bodied(recording.body)))
    ]
    assert shown[0] == shown[1]


def _helper_events(raw: bytes) -> list[Any]:
    import httpx2

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=raw, headers={"content-type": "text/event-stream"})

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    with anthropic.Anthropic(api_key="k", base_url="http://vendor.example", http_client=http) as client:
        with client.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}]) as reader:
            return list(reader)
