"""Nothing is lost: whatever form a chat was recorded in, the official SDK reads from a replay what the vendor said."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.types import Answer, Form
from semcache.wire import RECORDED, Frame, Reading, Rendition
from semcache.wire.openai import OpenAIChat
from tests.recordings_chat import BODIES, RECORDINGS, STREAMS, Json, Recording
from tests.replies import read_reply

OPENAI = OpenAIChat()
MEDIA_TYPES = {Form.JSON: "application/json", Form.STREAM: "text/event-stream; charset=utf-8"}


def _name(recording: Recording) -> str:
    return f"{recording.form}: {recording.name}"


EACH = pytest.mark.parametrize("recording", RECORDINGS, ids=_name)
EACH_STREAM = pytest.mark.parametrize("recording", STREAMS, ids=_name)
EACH_BODY = pytest.mark.parametrize("recording", BODIES, ids=_name)


def read(recording: Recording, *chunks: bytes, form: Form | None = None) -> tuple[list[Frame], Reading]:
    """What a scribe makes of a reply to the recording's request."""
    request, headers = json.dumps(recording.request).encode(), {"content-type": MEDIA_TYPES[form or recording.form]}
    return read_reply("/v1/chat/completions", request, chunks, headers, store_tools=recording.store_tools)


def stored(recording: Recording, reply: bytes | None = None, form: Form | None = None) -> Answer:
    reading = read(recording, recording.reply if reply is None else reply, form=form)[1]
    assert reading.answer is not None
    assert reading.unstorable is recording.why_not
    return reading.answer


def played(answer: Answer, form: Form, **wish: Any) -> bytes:
    return OPENAI.prepare(answer, Rendition(form, **wish)).play_whole(RECORDED)


def events(stream: bytes) -> list[Json]:
    *chunks, done, rest = stream.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return [json.loads(chunk.removeprefix(b"data: ")) for chunk in chunks]


def sdk(reply: bytes, form: Form, recording: Recording) -> Json:
    """What the SDK hands to its user: of a body what it says, of a stream what its own helper adds up."""
    request = {key: value for key, value in recording.request.items() if key != "stream"}
    response = httpx2.Response(200, content=reply, headers={"content-type": MEDIA_TYPES[form]})
    http = httpx2.Client(transport=httpx2.MockTransport(lambda _: response))
    with openai.OpenAI(api_key="k", base_url="http://proxy.example/v1", http_client=http, max_retries=0) as client:
        if form is Form.JSON:
            return settled(client.chat.completions.create(**request))
        with client.chat.completions.stream(**request) as stream:
            stream.until_done()
            return settled(stream.current_completion_snapshot)


def settled(completion: Any) -> Json:
    """A completion without what the SDK's sum of a stream alone has, or has wrong.

    It leaves the calls their `index`, and doubles a role that is said twice, or has none where none is said.
    """
    told: Json = completion.model_dump(exclude_none=True, warnings=False)
    for choice in told["choices"]:
        choice["message"]["role"] = "assistant"
        for call in choice["message"].get("tool_calls", []):
            call.pop("index", None)
    return told


def choices_as_summed(told: Json, summed: Json) -> Json:
    """What is told, as far as the SDK's sum holds it: of a choice's other members it keeps those of the first chunk."""
    own = ("index", "message", "logprobs", "finish_reason")
    for one in (told, summed):
        one["choices"] = [{key: choice[key] for key in own if key in choice} for choice in one["choices"]]
    return told


# Stream as stream


def content(chunks: list[Json]) -> list[Json]:
    """A stream without its usage and padding."""
    shown = [chunk for chunk in chunks if chunk["choices"] or not chunk.get("usage")]
    return [{k: v for k, v in chunk.items() if k not in ("obfuscation", "usage")} for chunk in shown]


@EACH_STREAM
@pytest.mark.parametrize("include_usage", [True, False])
def test_a_stream_is_played_event_by_event_as_it_came(recording: Recording, include_usage: bool) -> None:
    chunks = events(played(stored(recording), Form.STREAM, include_usage=include_usage))
    assert content(chunks) == content(recording.chunks)
    usage = [chunk for chunk in chunks if not chunk["choices"] and chunk.get("usage")]
    assert usage == chunks[-1:] if include_usage else not usage


@EACH_STREAM
def test_the_sdk_adds_a_replayed_stream_up_to_what_it_made_of_the_first(recording: Recording) -> None:
    first = sdk(recording.reply, Form.STREAM, recording)
    replay = sdk(played(stored(recording), Form.STREAM), Form.STREAM, recording)
    for told in (first, replay):
        told.pop("usage", None)  # who did not ask for it gets none
    assert replay == first


# Stream as body


@EACH_STREAM
def test_a_stream_becomes_the_body_that_the_sdk_makes_of_it(recording: Recording) -> None:
    body = played(stored(recording), Form.JSON)
    told, summed = sdk(body, Form.JSON, recording), sdk(recording.reply, Form.STREAM, recording)
    # Of the top level the SDK's sum has what stands in the first chunk, and figures. Its helper skips reports of Azure.
    first = next(chunk for chunk in recording.chunks if chunk["object"])
    for name in {name for chunk in recording.chunks for name in chunk} - first.keys() - {"usage"}:
        told.pop(name, None)
        summed.pop(name, None)
    assert choices_as_summed(told, summed) == summed


@EACH_STREAM
def test_a_body_made_of_a_stream_holds_every_member_of_it(recording: Recording) -> None:
    body = json.loads(played(stored(recording), Form.JSON))
    assert body["object"] == "chat.completion"
    for chunk in recording.chunks:
        assert body.keys() >= {k for k, v in chunk.items() if v is not None} - {"obfuscation"}
        for item in chunk["choices"]:
            choice = body["choices"][item["index"]]
            assert choice.keys() >= item.keys() - {"delta"}
            assert choice["message"].keys() >= (item.get("delta") or {}).keys()


@EACH_STREAM
def test_such_a_body_played_as_a_stream_adds_up_to_the_same_again(recording: Recording) -> None:
    body = played(stored(recording), Form.JSON)
    answer = stored(recording, body, Form.JSON)
    stream = played(answer, Form.STREAM, include_usage="usage" in json.loads(body))
    told = sdk(body, Form.JSON, recording)
    summed = sdk(stream, Form.STREAM, recording)
    assert choices_as_summed(told, summed) == summed
    assert json.loads(played(stored(recording, stream, Form.STREAM), Form.JSON)) == json.loads(body)


# Body as stream


@EACH_BODY
def test_a_body_played_as_a_stream_adds_up_to_itself(recording: Recording) -> None:
    stream = played(stored(recording), Form.STREAM, include_usage=True)
    told, summed = sdk(recording.reply, Form.JSON, recording), sdk(stream, Form.STREAM, recording)
    if "another form" in recording.name:  # the SDK's type of log probabilities has no place for it
        del told["choices"][0]["logprobs"], summed["choices"][0]["logprobs"]
    assert choices_as_summed(told, summed) == summed
    again = played(stored(recording, stream, Form.STREAM), Form.JSON)
    assert json.loads(again) == recording.said


@EACH_BODY
def test_a_body_is_played_byte_for_byte(recording: Recording) -> None:
    assert played(stored(recording), Form.JSON) == recording.reply


@EACH
def test_who_wants_no_figures_gets_zeros_and_all_else(recording: Recording) -> None:
    answer = stored(recording)
    for form in Form:
        shown = played(answer, form, include_usage=True)
        zeroed = played(answer, form, include_usage=True, zero_usage=True)
        values = [[json.loads(reply)] if form is Form.JSON else events(reply) for reply in (shown, zeroed)]
        assert [{**v, "usage": 0} for v in values[0]] == [{**v, "usage": 0} for v in values[1]]
        assert not any((value.get("usage") or {}).get("total_tokens") for value in values[1])


# However it is written


@EACH_STREAM
@pytest.mark.parametrize("framing", ["as it is", "CRLF", "CR", "comments", "several lines", "named"])
def test_a_stream_split_at_every_byte_reads_the_same(recording: Recording, framing: str) -> None:
    stream = {
        "as it is": recording.reply,
        "CRLF": recording.reply.replace(b"\n", b"\r\n"),
        "CR": recording.reply.replace(b"\n", b"\r"),
        "comments": b": hi\n\n" + recording.reply.replace(b"\n\n", b"\n: x\n\n"),
        "several lines": recording.reply.replace(b',"choices"', b',\ndata: "choices"'),
        "named": recording.reply.replace(b"data: ", b"event: message\nid: 7\ndata: "),
    }[framing]
    frames, whole = read(recording, stream)
    pieces, apart = read(recording, *(bytes([byte]) for byte in stream))
    assert [frame.raw for frame in pieces] == [frame.raw for frame in frames]
    assert whole.answer is not None
    assert apart.answer is not None
    assert apart.answer.parts == whole.answer.parts
    assert (apart.unstorable, apart.usage) == (whole.unstorable, whole.usage)
    assert whole.unstorable is recording.why_not
    assert list(map(json.loads, whole.answer.parts)) == recording.chunks


@given(st.sampled_from(RECORDINGS), st.lists(st.integers(0, 5000), max_size=6))
def test_chunks_make_no_difference(recording: Recording, cuts: list[int]) -> None:
    reply = recording.reply
    marks = [0, *sorted(min(cut, len(reply)) for cut in cuts), len(reply)]
    reading = read(recording, *(reply[start:end] for start, end in pairwise(marks)))[1]
    assert reading.unstorable is recording.why_not
    assert reading.answer is not None
    assert reading.answer.parts == stored(recording).parts


@EACH
def test_a_reply_cut_about_the_end_of_any_event_is_never_kept(recording: Recording) -> None:
    reply = recording.reply
    ends = [at for at in range(len(reply)) if reply.startswith(b"\n\n", at)] or [len(reply) // 2, len(reply) - 2]
    for cut in {end + step for end in ends for step in (-1, 0, 1, 2, 3)}:
        if cut >= len(reply):
            continue
        reading = read(recording, reply[:cut])[1]
        assert reading.answer is None
        assert reading.unstorable is not None
