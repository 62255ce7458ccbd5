"""What two transcriptions have in common, which replies are transcripts, and how they are played."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.errors import CacheFault, ClientError
from semcache.types import Answer, Ask, Form, Unstorable, Usage
from semcache.wire import Rendition, find_address
from semcache.wire.score import RECORDED
from semcache.wire.transcriptions import Transcriptions

DIALECT = Transcriptions()
JSON_TYPE = "application/json"
TOKENS = {"type": "tokens", "input_tokens": 14, "output_tokens": 9, "total_tokens": 23}


def ask(
    fields: dict[str, Any] | None = None,
    audio: bytes = b"sound",
    name: str = "a.mp3",
    kind: str = "audio/mpeg",
    path: str = "/v1/audio/transcriptions",
    **headers: str,
) -> Ask:
    data = {"model": "whisper-1"} | (fields or {})
    request = httpx2.Request("POST", "http://x", data=data, files={"file": (name, audio, kind)})
    address = find_address(path)
    assert address is not None and address.opt_in == "transcriptions"
    told = {"content-type": request.headers["content-type"]} | headers
    return address.dialect.parse(address, request.read(), told)


def by_hand(*parts: str) -> Ask:
    """A request that no usual client writes."""
    lines = [*parts, 'name="model"\r\n\r\nm', 'name="file"; filename="a.mp3"\r\n\r\nsound']
    body = "".join(f"--b\r\nContent-Disposition: form-data; {line}\r\n" for line in lines) + "--b--\r\n"
    address = find_address("/v1/audio/transcriptions")
    assert address is not None
    return DIALECT.parse(address, body.encode(), {"content-type": "multipart/form-data; boundary=b"})


def read(body: bytes, content_type: str = JSON_TYPE, format: str = "json", *, whole: bool = True, **more: Any) -> Any:
    asked = ask({"response_format": format})
    limit = more.pop("limit_bytes", 1000)
    scribe = DIALECT.scribe(asked, 200, {"content-type": content_type, **more}, store_tools=False, limit_bytes=limit)
    frames = [frame for at in range(len(body)) for frame in scribe.feed(body[at : at + 1], at)]
    last, reading = scribe.finish(whole)
    assert b"".join(frame.raw for frame in [*frames, *last]) == body
    return reading


# What is asked


def test_a_request_has_a_model_and_no_question() -> None:
    asked = ask({"response_format": "text"})
    assert (asked.model, asked.question, asked.stream, asked.traits.has_media) == ("whisper-1", None, False, True)
    assert asked.target == "/v1/audio/transcriptions"


def test_boundary_order_and_file_name_do_not_count() -> None:
    first, second = ask({"language": "de", "prompt": "p"}), ask({"prompt": "p", "language": "de"}, name="other.mp3")
    assert first.body != second.body
    assert first.context == second.context
    assert ask({"stream": "false"}).context == ask().context


@pytest.mark.parametrize(
    "other",
    [
        ask(audio=b"sound "),
        ask(name="a.wav"),
        ask(name="a"),
        ask(kind="audio/mp4"),
        ask({"language": "de"}),
        ask({"language": ""}),
        ask({"model": "other"}),
        ask({"timestamp_granularities[]": "word"}),
        ask({"timestamp_granularities[]": ["word", "segment"]}),
        ask(**{"openai-project": "p"}),
    ],
)
def test_all_else_does(other: Ask) -> None:
    assert other.context != ask().context


FIELDS = st.dictionaries(st.sampled_from(["language", "prompt", "temperature", "new", "new[]"]), st.text(max_size=9))


@given(FIELDS, FIELDS, st.binary(max_size=9), st.binary(max_size=9))
def test_contexts_are_equal_where_fields_and_audio_are(one: Any, two: Any, audio: bytes, other: bytes) -> None:
    assert (ask(one, audio).context == ask(two, other).context) == ((one, audio) == (two, other))


def test_values_cannot_pass_for_one_another() -> None:
    assert ask({"a[]": ["x", "y"]}).context != ask({"a[]": ["x", "y", ""]}).context
    assert ask({"a[]": ["x,y"]}).context != ask({"a[]": ["x", "y"]}).context
    one_part = by_hand('name="a[]"\r\nContent-Type: y\r\n\r\nx')
    assert one_part.context != by_hand('name="a[]"\r\n\r\nx', 'name="a[]"\r\n\r\ny').context
    assert one_part.context != by_hand('name="a[]"\r\n\r\nx').context


@pytest.mark.parametrize("stream", ["true", "True", "1", "", "no"])
def test_whatever_is_not_false_may_mean_a_stream(stream: str) -> None:
    assert ask({"stream": stream}).stream


def test_on_azure_the_path_names_the_model() -> None:
    path = "/openai/deployments/ears/audio/transcriptions?api-version=1"
    assert ask(path=path).model == "ears"
    assert ask(path=path).target == path


@pytest.mark.parametrize(
    "form, message",
    [
        ({"data": {"language": "de"}, "files": {"file": ("a.mp3", b"x")}}, "'model'"),
        ({"data": {"model": ""}, "files": {"file": ("a.mp3", b"x")}}, "'model'"),
        ({"data": {"model": "m"}, "files": {"audio": ("a.mp3", b"x")}}, "'file'"),
        ({"data": {"model": "m"}, "files": [("file", ("a", b"x")), ("more", ("b", b"y"))]}, "'file'"),
        ({"data": {"model": b"\xff"}, "files": {"file": ("a.mp3", b"x")}}, "Invalid 'model': expected text"),
    ],
)
def test_what_is_missing_is_named(form: Any, message: str) -> None:
    request = httpx2.Request("POST", "http://x", **form)
    address = find_address("/v1/audio/transcriptions")
    assert address is not None
    with pytest.raises(ClientError, match=message):
        DIALECT.parse(address, request.read(), {"content-type": request.headers["content-type"]})


# What is answered


@pytest.mark.parametrize(
    "body, content_type, format, why_not",
    [
        (b'{"text": "Good morning."}', JSON_TYPE, "json", None),
        (b'{"text": "Good morning."}', "text/plain", "json", None),  # some servers say so
        (b'{"text": "Hi", "segments": []}', JSON_TYPE, "verbose_json", None),
        (b'{"text": "Hi"}', JSON_TYPE, "text", None),  # it does not know the format, and says the same each time
        (b'{"text": " "}', JSON_TYPE, "json", Unstorable.EMPTY),
        (b'{"text": null}', JSON_TYPE, "json", Unstorable.MALFORMED),
        (b'["text"]', JSON_TYPE, "json", Unstorable.MALFORMED),
        (b"Good morning.", "text/plain", "json", Unstorable.MALFORMED),
        (b'{"error": {"message": "no"}}', JSON_TYPE, "json", Unstorable.ERROR),
        (b'{"text": "x", "status": 500}', JSON_TYPE, "json", Unstorable.ERROR),
        (b'data: {"text": "x"}\n\n', "text/event-stream", "json", Unstorable.MALFORMED),
        (b"Good morning.\n", "text/plain; charset=utf-8", "text", None),
        (b"[1, 2]", "text/plain", "text", None),
        (b"{curly", "text/plain", "text", None),
        (b" \n", "text/plain", "text", Unstorable.EMPTY),
        (b"\xef\xbb\xbf\n", "text/plain", "text", Unstorable.EMPTY),
        (b"<html>busy</html>", "text/html", "text", Unstorable.MALFORMED),
        (b'{"error": {"message": "no"}}', "text/plain", "text", Unstorable.ERROR),
        (b"1\n00:00:00,000 --> 00:00:01,000\nHi\n", "application/x-subrip", "srt", None),
        (b"WEBVTT\n\n00:00.000 --> 00:01.000\nHi\n", "text/vtt", "vtt", None),
        (b"WEBVTT\n\n", "text/vtt", "vtt", Unstorable.EMPTY),
        (b"x" * 1001, "text/plain", "text", Unstorable.TOO_LARGE),
        (b'{"text": "' + b"x" * 1000 + b'"}', JSON_TYPE, "json", Unstorable.TOO_LARGE),
    ],
)
def test_only_a_whole_transcript_that_says_something_is_kept(
    body: bytes, content_type: str, format: str, why_not: Unstorable | None
) -> None:
    assert read(body, content_type, format).unstorable is why_not


def test_a_body_cut_anywhere_is_not_kept() -> None:
    body = b'{"text": "Good morning."}'
    assert read(body, whole=False).unstorable is None, "its end is its own"
    for cut in range(len(body)):
        assert read(body[:cut], whole=False).unstorable is Unstorable.INCOMPLETE


def test_a_text_that_ends_with_its_connection_is_relayed_and_not_kept() -> None:
    reading = read(b"Good mor", "text/plain", "text", whole=False)
    assert (reading.answer, reading.unstorable) == (None, Unstorable.MALFORMED)


def test_what_is_packed_is_not_read() -> None:
    for format, kind in (("text", "text/plain"), ("json", JSON_TYPE)):
        assert read(b"\x1f\x8b", kind, format, **{"content-encoding": "gzip"}).unstorable is Unstorable.ENCODING


def test_tokens_are_counted_where_the_vendor_tells_them() -> None:
    assert read(json.dumps({"text": "x", "usage": TOKENS}).encode()).usage == Usage(14, 9)
    assert read(b'{"text": "x", "usage": {"type": "duration", "seconds": 3}}').usage is None


# How it is played


def played(body: bytes, content_type: str = JSON_TYPE, format: str = "json", *, zero_usage: bool = False) -> Any:
    answer = read(body, content_type, format).answer
    score = DIALECT.prepare(answer, Rendition(Form.JSON, zero_usage=zero_usage))
    return score.content_type, score.play_whole(RECORDED)


def test_every_byte_comes_out_as_it_went_in() -> None:
    body = b'{ "text":"\\u00e9",\n "new": 1.0, "usage":{"seconds":3} }'
    assert played(body) == (JSON_TYPE, body)
    assert played(b"Good\r\nmorning.\n", "text/plain; charset=utf-8", "text") == (
        "text/plain; charset=utf-8",
        b"Good\r\nmorning.\n",
    )


def test_without_usage_only_its_figures_are_others() -> None:
    body = b'{ "text":"x", "usage":{"type":"tokens","input_tokens":14,"input_token_details":{"audio_tokens":9}} }'
    assert played(body, zero_usage=True)[1] == body.replace(b"14", b"0").replace(b"9", b"0")
    assert played(b'{"text": "x"}', zero_usage=True)[1] == b'{"text": "x"}'


def test_what_cannot_be_played_is_a_fault_of_the_cache() -> None:
    with pytest.raises(CacheFault):
        DIALECT.prepare(Answer("openai", Form.JSON, (b"[",)), Rendition(Form.JSON, zero_usage=True))
