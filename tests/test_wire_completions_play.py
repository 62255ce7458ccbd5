"""Legacy completions recorded and played, in all four ways, read by the official SDK."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.errors import CacheFault
from semcache.types import Answer, Form, Unstorable, Usage
from semcache.wire import RECORDED, Frame, Identity, Reading, Rendition
from semcache.wire.completions import OpenAICompletions
from tests.recordings_completions import RECORDINGS, USAGE, Json, Recording, added_up
from tests.replies import read_reply

LEGACY = OpenAICompletions()
FRESH = Identity("cmpl-fresh", 1_800_000_000)
JSON = {"content-type": "application/json"}
SSE = {"content-type": "text/event-stream; charset=utf-8"}

EACH = pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.name)
NAMED = {recording.name: recording for recording in RECORDINGS}


def read(
    recording: Recording, *chunks: bytes, form: Form = Form.STREAM, whole: bool = True
) -> tuple[list[Frame], Reading]:
    headers = SSE if form is Form.STREAM else JSON
    return read_reply("/v1/completions", json.dumps(recording.request).encode(), chunks, headers, whole=whole)


def stored(recording: Recording, form: Form) -> Answer:
    reading = read(recording, recording.stream if form is Form.STREAM else recording.body, form=form)[1]
    assert reading.answer is not None
    assert reading.unstorable is recording.why_not
    return reading.answer


def played(answer: Answer, form: Form, identity: Identity = RECORDED, **wish: Any) -> bytes:
    return LEGACY.prepare(answer, Rendition(form, **wish)).play_whole(identity)


def events(stream: bytes) -> list[Json]:
    *chunks, done, rest = stream.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return [json.loads(chunk.removeprefix(b"data: ")) for chunk in chunks]


def sdk(reply: bytes, request: Json) -> Json:
    """What the SDK's reader gets of a reply, its chunks added up where it is a stream."""
    stream = request["stream"]
    headers = SSE if stream else JSON
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=reply, headers=headers))
    with openai.OpenAI(
        api_key="k", base_url="http://proxy.example/v1", http_client=httpx2.Client(transport=transport)
    ) as client:
        answer: Any = client.completions.create(**request)
        return added_up([chunk.to_dict() for chunk in answer]) if stream else answer.to_dict()


def plain(chunks: list[Json]) -> list[Json]:
    """A stream without usage and padding."""
    shown = [chunk for chunk in chunks if chunk["choices"] or not chunk.get("usage")]
    return [{k: v for k, v in chunk.items() if k not in ("obfuscation", "usage")} for chunk in shown]


@EACH
def test_a_stream_is_played_as_it_was_recorded(recording: Recording) -> None:
    answer = stored(recording, Form.STREAM)
    chunks = events(played(answer, Form.STREAM, include_usage=True))
    assert plain(chunks) == plain(list(recording.chunks))
    assert chunks[-1]["usage"]["total_tokens"] == (13 if recording.chunks[-1].get("usage") else 0)


@EACH
def test_a_stream_becomes_the_body_that_the_vendor_would_send(recording: Recording) -> None:
    body = played(stored(recording, Form.STREAM), Form.JSON)
    assert sdk(body, {**recording.request, "stream": False}) == json.loads(body)
    expected = sdk(recording.stream, recording.request)
    assert json.loads(body) == expected == json.loads(recording.body)


@EACH
def test_a_body_becomes_a_stream_that_adds_up_to_it(recording: Recording) -> None:
    answer = stored(recording, Form.JSON)
    stream = played(answer, Form.STREAM, include_usage=True)
    told = sdk(stream, recording.request)
    expected = json.loads(recording.body)
    expected.setdefault("usage", {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0})
    assert told == expected
    again = read(recording, stream)[1]
    assert again.answer is not None
    assert json.loads(played(again.answer, Form.JSON)) == expected


@EACH
def test_a_body_is_played_byte_for_byte(recording: Recording) -> None:
    assert played(stored(recording, Form.JSON), Form.JSON) == recording.body


@EACH
def test_a_replay_has_its_own_id_and_time_and_shows_usage_as_it_is_told_to(recording: Recording) -> None:
    for answer in (stored(recording, Form.STREAM), stored(recording, Form.JSON)):
        for chunk in events(played(answer, Form.STREAM, FRESH, include_usage=True, zero_usage=True)):
            assert (chunk["id"], chunk["created"]) == FRESH
            assert not (chunk.get("usage") or {}).get("total_tokens")
        assert not any("usage" in c for c in events(played(answer, Form.STREAM)) if not recording_tells(recording))
        body = json.loads(played(answer, Form.JSON, FRESH, zero_usage=True))
        assert (body["id"], body["created"]) == FRESH
        assert (body.get("usage") or {}).get("total_tokens", 0) == 0


def recording_tells(recording: Recording) -> bool:
    """Whether the vendor put figures into a content chunk, unasked."""
    return any(chunk.get("usage") and chunk["choices"] for chunk in recording.chunks)


def test_a_body_comes_in_words_or_in_its_tokens() -> None:
    def pieces(name: str) -> list[Any]:
        chunks = events(played(stored(NAMED[name], Form.JSON), Form.STREAM))
        return [(c["choices"][0]["text"], c["choices"][0]["finish_reason"]) for c in chunks]

    assert pieces("text") == [(" four", None), (" days.", None), ("", "stop")]
    assert pieces("log probabilities") == [(" four", None), (" days", None), (".", None), ("", "stop")]
    assert pieces("log probabilities of half characters") == [("", None), ("€", None), ("", "stop")]


# Judging


@EACH
@pytest.mark.parametrize("framing", ["as it is", "CRLF", "CR", "comments", "several lines"])
def test_a_stream_split_at_every_byte_reads_the_same(recording: Recording, framing: str) -> None:
    stream = {
        "as it is": recording.stream,
        "CRLF": recording.stream.replace(b"\n", b"\r\n"),
        "CR": recording.stream.replace(b"\n", b"\r"),
        "comments": b": hi\n\n" + recording.stream.replace(b"\n\n", b"\n: x\n\n"),
        "several lines": recording.stream.replace(b',"choices"', b',\ndata: "choices"'),
    }[framing]
    whole = read(recording, stream)[1]
    apart = read(recording, *(bytes([byte]) for byte in stream))[1]
    assert whole.answer is not None
    assert apart.answer is not None
    assert apart.answer.parts == whole.answer.parts
    assert (apart.unstorable, apart.usage) == (whole.unstorable, whole.usage) == (recording.why_not, whole.usage)
    as_sent = read(recording, recording.stream)[1].answer
    assert as_sent is not None
    assert list(map(json.loads, whole.answer.parts)) == list(map(json.loads, as_sent.parts))


@given(st.sampled_from(RECORDINGS), st.lists(st.integers(0, 4000), max_size=6))
def test_chunks_make_no_difference(recording: Recording, cuts: list[int]) -> None:
    marks = [0, *sorted(min(cut, len(recording.stream)) for cut in cuts), len(recording.stream)]
    frames, reading = read(recording, *(recording.stream[start:end] for start, end in pairwise(marks)))
    assert reading.unstorable is recording.why_not
    assert [frame.raw for frame in frames] == [frame.raw for frame in read(recording, recording.stream)[0]]


@pytest.mark.parametrize("name", ["usage chunk", "choices in turns", "characters", "log probabilities"])
@pytest.mark.parametrize("form", list(Form))
def test_a_reply_cut_at_any_byte_is_never_kept(name: str, form: Form) -> None:
    recording = NAMED[name]
    reply = recording.stream if form is Form.STREAM else recording.body
    for at in range(len(reply)):
        for whole in (True, False):
            reading = read(recording, reply[:at], form=form, whole=whole)[1]
            assert (reading.answer, reading.unstorable is None) == (None, False)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda b: b.replace(b'"text":" four"', b'"text":5'), Unstorable.MALFORMED),
        (lambda b: b.replace(b'"text":" four"', b'"text":null'), Unstorable.MALFORMED),
        (lambda b: b.replace(b'"text":" four"', b'"message":{}'), Unstorable.MALFORMED),
        (lambda b: b.replace(b'"index":0', b'"index":1'), Unstorable.MALFORMED),
        (lambda b: b.replace(b'"stop"', b"null"), Unstorable.FINISH),
        (lambda b: b.replace(b'"stop"', b'"tired"'), Unstorable.FINISH),
        (lambda b: b.replace(b'"id":', b'"error":{"code":500},"id":'), Unstorable.ERROR),
        (lambda b: b.replace(b'"stop"', b'"tool_calls"'), Unstorable.FINISH),
    ],
)
def test_a_body_that_must_not_be_kept_is_relayed_and_not_kept(change: Any, why: Unstorable) -> None:
    recording = NAMED["empty pieces"]
    assert (
        read(recording, change(recording.body.replace(b" four days.", b" four")), form=Form.JSON)[1].unstorable is why
    )


def test_usage_is_read() -> None:
    for form in Form:
        assert stored(NAMED["usage chunk"], form).usage == Usage(USAGE["prompt_tokens"], USAGE["completion_tokens"])


@pytest.mark.parametrize(
    "part", [b"", b"[]", b'{"choices":5}', b'{"choices":[5]}', b'{"choices":[{"text":5}]}', b"\xff"]
)
def test_damaged_parts_are_a_fault_of_the_cache(part: bytes) -> None:
    for recorded, form in ((Form.STREAM, Form.JSON), (Form.JSON, Form.STREAM)):
        with pytest.raises(CacheFault):
            LEGACY.prepare(Answer("openai", recorded, (part,)), Rendition(form))


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80)


@given(texts, st.lists(texts, max_size=3), st.booleans())
def test_any_text_survives_the_way_through_a_stream(text: str, tokens: list[str], fits: bool) -> None:
    probs = {"tokens": tokens, "token_logprobs": [-1.0] * len(tokens), "top_logprobs": None}
    choice = {"text": "".join(tokens) if fits else text, "index": 0, "logprobs": probs, "finish_reason": "stop"}
    body = {"id": "x", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}
    answer = Answer("openai", Form.JSON, (json.dumps(body).encode(),))
    stream = played(answer, Form.STREAM)
    parts = tuple(json.dumps(chunk).encode() for chunk in events(stream))
    assert json.loads(played(Answer("openai", Form.STREAM, parts), Form.JSON)) == body
