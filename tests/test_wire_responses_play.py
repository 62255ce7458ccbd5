"""Playing responses: all four ways, judged by the official SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from semcache.errors import CacheFault
from semcache.types import Answer, Form
from semcache.wire import RECORDED, Identity, Rendition, find_address
from tests.recordings_responses import RECORDINGS, RESPONSE, Recording, call, dumps, message, text
from tests.replies import read_reply

ADDRESS = find_address("/v1/responses")
assert ADDRESS is not None
DIALECT = ADDRESS.dialect
SSE = {"content-type": "text/event-stream; charset=utf-8"}
JSON = {"content-type": "application/json"}
FRESH = Identity("resp_fresh", 1_800_000_000)
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
NAMED = pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.name)


def stored(recording: Recording, form: Form) -> Answer:
    """What a scribe makes of a recording."""
    headers, reply = (SSE, recording.stream) if form is Form.STREAM else (JSON, recording.body)
    chunks = [reply[at : at + 100] for at in range(0, len(reply), 100)]
    request, tools = dumps(recording.request), recording.store_tools
    _, reading = read_reply("/v1/responses", request, chunks, headers, store_tools=tools)
    assert reading.answer is not None
    assert reading.unstorable == recording.why_not
    return reading.answer


def play(answer: Answer, form: Form, identity: Identity = RECORDED, *, zero: bool = False, **asked: Any) -> bytes:
    """What a caller gets who asked with these members."""
    ask = DIALECT.parse(ADDRESS, dumps({"model": "tiny", "input": "x", **asked}), {})
    score = DIALECT.prepare(answer, Rendition(form, zero_usage=zero, echo=ask.echo))
    events = score.play(identity)
    assert score.play_whole(identity) == b"".join(events)
    assert len(score.offsets_ms) == len(events)
    return b"".join(events)


def parsed(stream: bytes) -> list[Any]:
    """The events of a stream whose framing has been checked."""
    events = []
    for block in stream.removesuffix(b"\n\n").split(b"\n\n"):
        name, data = block.split(b"\n")
        event = json.loads(data.removeprefix(b"data: "))
        assert name == b"event: " + event["type"].encode()
        events.append(event)
    return events


def through_sdk(reply: bytes, headers: dict[str, str]) -> openai.OpenAI:
    """The official client, in front of a server that answers with these bytes in small pieces."""

    def pieces() -> Iterator[bytes]:
        for at in range(0, len(reply), 7):
            yield reply[at : at + 7]

    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers=headers, content=pieces())

    client = httpx2.Client(transport=httpx2.MockTransport(answer))
    return openai.OpenAI(base_url="http://upstream/v1", api_key="k", http_client=client, max_retries=0)


def added_up(stream: bytes) -> Response:
    """What the SDK makes of a stream: its last response, for which it has followed every item and piece before."""
    with through_sdk(stream, SSE) as client, client.responses.stream(model="tiny", input="x") as events:
        return events.get_final_response()


def added_up_by_pieces(stream: bytes) -> list[tuple[str, str]]:
    """The texts and arguments that a client shows who only reads what comes in pieces."""
    shown: dict[tuple[int, int, str], str] = {}
    with through_sdk(stream, SSE) as client:
        for event in client.responses.create(model="tiny", input="x", stream=True):
            if event.type.endswith(".delta"):
                part = getattr(event, "content_index", getattr(event, "summary_index", 0))
                key = (event.output_index, part, event.type)
                shown[key] = shown.get(key, "") + event.delta
    return [(key[2], text) for key, text in sorted(shown.items())]


def plain(value: Response) -> Any:
    """A response without what the SDK's parser puts beside texts and calls."""

    def bare(node: Any) -> Any:
        if isinstance(node, dict):
            return {k: bare(v) for k, v in node.items() if k not in ("parsed", "parsed_arguments")}
        return [bare(child) for child in node] if isinstance(node, list) else node

    return bare(value.to_dict(mode="python"))


def zeroed(figures: Any) -> Any:
    return {k: zeroed(v) if isinstance(v, dict) else 0 for k, v in figures.items()}


def is_whole(recording: Recording) -> bool:
    return recording.body_value["status"] == "completed"  # the SDK's helper knows no other end


@pytest.mark.parametrize("recording", [r for r in RECORDINGS if r.conforms], ids=lambda recording: recording.name)
def test_every_recording_is_what_the_sdks_types_say(recording: Recording) -> None:
    for event in recording.events:
        EVENTS.validate_python(event)
    Response.model_validate(recording.body_value)


@NAMED
def test_a_stream_is_replayed_event_by_event(recording: Recording) -> None:
    again = parsed(play(stored(recording, Form.STREAM), Form.STREAM, **recording.asked))
    expected = [{k: v for k, v in event.items() if k != "obfuscation"} for event in recording.events]
    assert again == expected


@NAMED
def test_a_stream_becomes_the_body_that_the_vendor_would_have_sent(recording: Recording) -> None:
    body = play(stored(recording, Form.STREAM), Form.JSON, **recording.asked)
    assert json.loads(body) == recording.body_value
    assert body == recording.body


@NAMED
def test_a_stream_becomes_the_body_that_the_sdk_makes_of_it(recording: Recording) -> None:
    if is_whole(recording):
        body = play(stored(recording, Form.STREAM), Form.JSON, **recording.asked)
        assert json.loads(body) == plain(added_up(recording.stream))


@NAMED
def test_a_body_is_replayed_byte_by_byte(recording: Recording) -> None:
    assert play(stored(recording, Form.JSON), Form.JSON, **recording.asked) == recording.body


@NAMED
def test_a_body_played_as_a_stream_adds_up_to_itself(recording: Recording) -> None:
    stream = play(stored(recording, Form.JSON), Form.STREAM, **recording.asked)
    if is_whole(recording):
        assert plain(added_up(stream)) == recording.body_value
    assert parsed(stream)[-1]["response"] == recording.body_value
    assert added_up_by_pieces(stream) == [(k, t) for k, t in added_up_by_pieces(recording.stream) if t]


@pytest.mark.parametrize("recording", [r for r in RECORDINGS if r.storable], ids=lambda recording: recording.name)
def test_a_body_becomes_a_stream_as_the_vendor_sends_one(recording: Recording) -> None:
    events = parsed(play(stored(recording, Form.JSON), Form.STREAM, **recording.asked))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        if recording.conforms:
            EVENTS.validate_python(event)

    def kinds(told: list[Any]) -> list[str]:
        """Their order, however many pieces a text comes in."""
        names = [event["type"] for event in told]
        return [
            name
            for number, name in enumerate(names)
            if not name.endswith(".delta") or names[number - 1 : number] != [name]
        ]

    blank = [e for e in recording.events if e.get("delta") != ""]
    assert kinds(events) == kinds(blank)

    def told(event: Any) -> Any:
        left = {"sequence_number", "obfuscation"} | ({"item"} if event["type"].endswith("item.added") else set())
        return {k: v for k, v in event.items() if k not in left}

    assert [told(e) for e in events if "delta" not in e] == [told(e) for e in recording.events if "delta" not in e]
    announced = [e["item"] for e in events if e["type"] == "response.output_item.added"]
    for mine, theirs in zip(
        announced, (e["item"] for e in recording.events if e["type"] == "response.output_item.added"), strict=True
    ):
        mine, theirs = ({k: v for k, v in item.items() if k != "encrypted_content"} for item in (mine, theirs))
        assert mine == theirs


@NAMED
@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("recorded_in", Form)
def test_a_replay_has_its_own_id_and_time_in_every_place(recording: Recording, form: Form, recorded_in: Form) -> None:
    reply = play(stored(recording, recorded_in), form, FRESH)
    assert recording.response["id"].encode() + b'"' not in reply
    responses = [json.loads(reply)] if form is Form.JSON else [e["response"] for e in parsed(reply) if "response" in e]
    for response in responses:
        assert (response["id"], response["created_at"]) == FRESH
        assert type(response["created_at"]) is int
        assert response.get("completed_at") in (None, 1_800_000_000)
    assert responses[-1].get("completed_at") == (recording.response.get("completed_at") and 1_800_000_000)
    items = [item["id"] for item in responses[-1]["output"]]
    assert items == [item["id"] for item, _ in recording.items]


@NAMED
def test_nothing_was_paid_where_the_caller_wants_to_see_that(recording: Recording) -> None:
    for recorded_in in Form:
        answer = stored(recording, recorded_in)
        body = json.loads(play(answer, Form.JSON, zero=True))
        last = parsed(play(answer, Form.STREAM, zero=True))[-1]["response"]
        assert body["output"] == last["output"] == recording.body_value["output"]
        if not (usage := recording.body_value.get("usage")):
            assert body.get("usage") == last.get("usage") == usage
            continue
        assert body["usage"] == last["usage"] == zeroed(usage)


# What a response repeats of its request

ASKED = {"metadata": {"trace": "t-2", "n": "1"}, "user": "bob", "safety_identifier": "s", "prompt_cache_key": "k"}
ABSENT = {"metadata": {}, "user": None, "safety_identifier": None, "prompt_cache_key": None}
ECHO = next(recording for recording in RECORDINGS if recording.name == "echo")


def repeated(reply: bytes, form: Form) -> list[Any]:
    responses = [json.loads(reply)] if form is Form.JSON else [e["response"] for e in parsed(reply) if "response" in e]
    return [{name: response[name] for name in ASKED} for response in responses]


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("recorded_in", Form)
def test_a_replay_repeats_the_callers_request_and_not_the_recorders(form: Form, recorded_in: Form) -> None:
    answer = stored(ECHO, recorded_in)
    count = 1 if form is Form.JSON else 3
    assert repeated(play(answer, form, **ASKED), form) == [ASKED] * count
    assert repeated(play(answer, form), form) == [ABSENT] * count
    assert repeated(play(answer, form, metadata=None, user=None), form) == [ABSENT] * count
    assert b"t-1" not in play(answer, form)
    assert b'"ann"' not in play(answer, form)


@pytest.mark.parametrize("form", Form)
def test_a_server_that_writes_null_for_no_metadata_is_left_to_it(form: Form) -> None:
    recording = Recording("x", (message(text("Four")),), response={**RESPONSE, "metadata": None})
    for recorded_in in Form:
        answer = stored(recording, recorded_in)
        assert all(seen["metadata"] is None for seen in repeated(play(answer, form), form))
        assert all(seen["metadata"] == {"a": "b"} for seen in repeated(play(answer, form, metadata={"a": "b"}), form))


def test_how_long_a_prefix_is_kept_is_the_recorded_unless_the_caller_says() -> None:
    recording = Recording("x", (message(text("Four")),), response={**RESPONSE, "prompt_cache_retention": "24h"})
    answer = stored(recording, Form.JSON)
    assert json.loads(play(answer, Form.JSON))["prompt_cache_retention"] == "24h"
    asked = {"prompt_cache_retention": "in_memory"}
    assert json.loads(play(answer, Form.JSON, **asked))["prompt_cache_retention"] == "in_memory"


def test_a_rendition_without_a_request_shows_what_was_recorded() -> None:
    score = DIALECT.prepare(stored(ECHO, Form.JSON), Rendition(Form.JSON))
    assert score.play_whole(RECORDED) == ECHO.body


# Streams of other servers


def test_events_nobody_knows_keep_their_place() -> None:
    recording = RECORDINGS[0]
    events = recording.events
    new = {"type": "response.mood.changed", "mood": {"a": 1.0}, "response_id": "resp_00af", "sequence_number": 99}
    stream = b"".join(
        b"event: %b\ndata: %b\n\n" % (e["type"].encode(), dumps(e)) for e in [*events[:4], new, *events[4:]]
    )
    ask = DIALECT.parse(ADDRESS, dumps(recording.request), {})
    scribe = DIALECT.scribe(ask, 200, SSE, store_tools=False, limit_bytes=1 << 20)
    scribe.feed(stream, 0)
    _, reading = scribe.finish(True)
    assert reading.answer is not None
    assert reading.unstorable is None
    assert parsed(play(reading.answer, Form.STREAM))[4] == new
    assert parsed(play(reading.answer, Form.STREAM, FRESH))[4] == {**new, "response_id": "resp_fresh"}


@pytest.mark.parametrize("left", [{"output": []}, {"output": None}, {}])
def test_a_last_event_without_items_gets_those_that_were_streamed(left: Any) -> None:
    recording = next(r for r in RECORDINGS if r.name == "thoughts in summary")
    events = recording.events
    bare = {key: value for key, value in recording.body_value.items() if key != "output"}
    events[-1] = {**events[-1], "response": {**bare, **left}}
    answer = Answer("openai", Form.STREAM, tuple(map(dumps, events)))
    assert json.loads(play(answer, Form.JSON)) == recording.body_value
    assert parsed(play(answer, Form.STREAM)) == events
    if left != {"output": []}:  # there the SDK takes the last event at its word, and shows nothing
        assert plain(added_up(play(answer, Form.STREAM))) == recording.body_value


@pytest.mark.parametrize("id_", [None, ""])
def test_a_call_without_an_id_is_streamed_all_the_same(id_: str | None) -> None:
    item, _ = call('{"a": 1}')
    body = {**RESPONSE, "output": [{**item, "id": id_}]}
    stream = play(Answer("openai", Form.JSON, (dumps(body),)), Form.STREAM)
    assert plain(added_up(stream)) == body
    assert {e["item_id"] for e in parsed(stream) if "item_id" in e} == {""}


# Pieces


def deltas(body_text: str, **part: Any) -> list[Any]:
    piece, _ = text(body_text)
    item, _ = message(({**piece, **part}, []))
    stream = play(Answer("openai", Form.JSON, (dumps({**RESPONSE, "output": [item]}),)), Form.STREAM)
    return [e for e in parsed(stream) if e["type"] == "response.output_text.delta"]


def test_a_text_is_cut_into_words() -> None:
    assert [d["delta"] for d in deltas("Four days, at most.")] == ["Four", " days,", " at", " most."]
    assert len(deltas("word " * 5000)) <= 512


def test_each_token_comes_with_its_own_log_probability() -> None:
    tokens = [{"token": t, "logprob": -0.5, "bytes": [], "top_logprobs": []} for t in ("Fo", "ur")]
    assert [(d["delta"], d["logprobs"]) for d in deltas("Four", logprobs=tokens)] == [
        ("Fo", [tokens[0]]),
        ("ur", [tokens[1]]),
    ]


def test_half_characters_come_with_the_first_piece() -> None:
    tokens = [{"token": t, "logprob": -0.5, "bytes": [], "top_logprobs": []} for t in ("\\xc3", "\\xa9")]
    assert [(d["delta"], d["logprobs"]) for d in deltas("é è", logprobs=tokens)] == [("é", tokens), (" è", [])]


def test_a_replay_lasts_by_the_tokens_that_were_counted() -> None:
    score = DIALECT.prepare(stored(RECORDINGS[0], Form.JSON), Rendition(Form.STREAM))
    assert score.schedule(2.0)[-1] == pytest.approx(6 / 2.0)


def test_a_stream_keeps_its_times_and_a_body_its_last() -> None:
    answer = stored(RECORDINGS[0], Form.STREAM)
    assert DIALECT.prepare(answer, Rendition(Form.STREAM)).offsets_ms == answer.offsets_ms
    assert DIALECT.prepare(answer, Rendition(Form.JSON)).offsets_ms == answer.offsets_ms[-1:]


# What cannot be played


@pytest.mark.parametrize(
    "recorded_in, form, parts",
    [
        *((one, other, [b"", b"[]", b"\xff", b"{", b"null", b"7", b'"x"']) for one in Form for other in Form),
        (Form.STREAM, Form.STREAM, [b"{}", b'{"type":7}', b'{"type":"x","a":1,"a":2}']),
        (
            Form.STREAM,
            Form.JSON,
            [b"{}", b'{"type":"response.completed"}', b'{"type":"response.created","response":{}}'],
        ),
        (Form.JSON, Form.STREAM, [b"{}", b'{"status":"completed"}', b'{"status":"completed","output":[7]}']),
    ],
)
def test_parts_that_cannot_be_rendered_are_a_fault_of_the_cache(
    recorded_in: Form, form: Form, parts: list[bytes]
) -> None:
    for part in parts:
        with pytest.raises(CacheFault, match="cannot be played"):
            DIALECT.prepare(Answer("openai", recorded_in, (part,), (0,)), Rendition(form, zero_usage=True))


def test_a_job_that_is_not_done_cannot_be_streamed() -> None:
    body = dumps({**RESPONSE, "status": "queued"})
    with pytest.raises(CacheFault):
        DIALECT.prepare(Answer("openai", Form.JSON, (body,)), Rendition(Form.STREAM))
