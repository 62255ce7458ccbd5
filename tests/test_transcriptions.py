"""Transcripts through the whole proxy, asked for by the official SDK: kept for equal audio where a route says so."""

from __future__ import annotations

import asyncio
import io
import json
import wave
from asyncio import gather
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web

from tests.fakes import ModelServer
from tests.harness import Proxy, running_proxy, until

FORMATS = ("json", "verbose_json", "diarized_json", "text", "srt", "vtt")
ON = "cache: {transcriptions: true}"
SEGMENT = {"id": 0, "start": 0.0, "end": 1.5, "text": " Good morning.", "tokens": [50364, 1]}


def sound(seconds: float = 0.1) -> bytes:
    """A true file, silent."""
    file = io.BytesIO()
    with wave.open(file, "wb") as recording:
        recording.setnchannels(1)
        recording.setsampwidth(2)
        recording.setframerate(8000)
        recording.writeframes(bytes(int(16000 * seconds)))
    return file.getvalue()


AUDIO = ("morning.wav", sound(), "audio/wav")


class AudioServer(ModelServer):
    """Says in every format which call this was, and what the form held as aiohttp reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.said: str | None = None  # instead of the text
        self.closes = False  # a text ends with its connection
        self.forms: list[dict[str, Any]] = []
        self.sizes: list[str | None] = []

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(request.raw_path)
        self.sizes.append(request.headers.get("Content-Length"))
        form = await request.post()
        self.forms.append({name: value for name, value in form.items() if isinstance(value, str)})
        upload = form["file"]
        assert isinstance(upload, web.FileField)
        self.bodies.append({"bytes": len(upload.file.read())})
        if self.status != 200:
            return web.Response(
                body=self.error_body, status=self.status, headers=self.error_headers, content_type="application/json"
            )
        if self.gate is not None:
            await self.gate.wait()
        text = f"call {self.requests}" if self.said is None else self.said
        usage = {"type": "tokens", "input_tokens": 14, "output_tokens": 9, "total_tokens": 23}
        match form.get("response_format", "json"):
            case "text" if self.closes:
                assert request.transport is not None
                request.transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + text.encode())
                request.transport.close()
                return web.Response()
            case "text":
                return web.Response(text=f"{text}\n")
            case "srt":
                return web.Response(text=f"1\n00:00:00,000 --> 00:00:01,500\n{text}\n\n" if text else "")
            case "vtt":
                cue = f"00:00.000 --> 00:01.500\n{text}\n\n" if text else ""
                return web.Response(text=f"WEBVTT\n\n{cue}", content_type="text/vtt")
            case "verbose_json":
                lasts = {"type": "duration", "seconds": 2}
                whole = {"task": "transcribe", "language": "english", "duration": 1.5, "text": text, "usage": lasts}
                return web.json_response({**whole, "segments": [SEGMENT]})
            case "diarized_json":
                spoken = {"type": "transcript.text.segment", "speaker": "A", **SEGMENT, "id": "seg_0"}
                whole = {"task": "transcribe", "duration": 1.5, "text": text, "segments": [spoken]}
                return web.json_response({**whole, "usage": usage})
            case _ if form.get("stream") == "true":
                delta = json.dumps({"type": "transcript.text.delta", "delta": text})
                done = json.dumps({"type": "transcript.text.done", "text": text})
                return web.Response(text=f"data: {delta}\n\ndata: {done}\n\n", content_type="text/event-stream")
        return web.json_response({"text": text, "usage": usage})


@asynccontextmanager
async def transcribing(folder: Path, settings: str = ON) -> AsyncIterator[tuple[Proxy, AudioServer]]:
    server = AudioServer()
    async with running_proxy(folder, settings, backend=server) as proxy:
        yield proxy, server


Said = tuple[Any, str, dict[str, str]]


async def ask(proxy: Proxy, file: Any = AUDIO, *, key: str = "sk-test", **fields: Any) -> Said:
    """What the SDK makes of a transcript, what Cache-Status says, and the header."""
    client = proxy.client.with_options(api_key=key)
    raw = await client.audio.transcriptions.with_raw_response.create(file=file, **({"model": "whisper-1"} | fields))
    told = raw.headers["cache-status"]
    status = "hit" if "; hit" in told else told.partition("fwd=")[2].partition(";")[0]
    return raw.parse(), status, dict(raw.headers)


# Off, as by default


async def test_by_default_an_upload_passes_through_as_it_comes(tmp_path: Path) -> None:
    async with transcribing(tmp_path, "") as (proxy, server):
        for number in (1, 2):
            answer, status, headers = await ask(proxy)
            assert (answer.text, status) == (f"call {number}", "bypass")
            assert "detail=endpoint" in headers["cache-status"]
        assert server.bodies == [{"bytes": len(AUDIO[1])}] * 2


async def test_a_route_has_it_for_its_own_models_only(tmp_path: Path) -> None:
    routes = "routes: [{models: [whisper-*], cache: {transcriptions: true}}, {models: ['*']}]"
    async with transcribing(tmp_path, routes) as (proxy, server):
        statuses = [(await ask(proxy, model=model))[1] for model in ("whisper-1", "whisper-1", "other", "other")]
        assert statuses == ["miss", "hit", "bypass", "bypass"]
        assert server.bodies == [{"bytes": len(AUDIO[1])}] * 3
        assert all(size is not None for size in server.sizes), "what was read goes on with its length"


# On


async def test_equal_audio_is_transcribed_once(tmp_path: Path) -> None:
    """Each request of the SDK has a boundary of its own."""
    async with transcribing(tmp_path) as (proxy, server):
        first, status, headers = await ask(proxy)
        assert status == "miss" and "stored" in headers["cache-status"]
        again, status, headers = await ask(proxy)
        assert status == "hit" and "detail=exact" in headers["cache-status"]
        assert headers["age"] == "0" and headers["semcache-entry"]
        assert again.to_dict() == first.to_dict()
        assert again.text == "call 1"
        assert server.requests == 1


@pytest.mark.parametrize(
    "change",
    [
        {"file": ("morning.wav", sound(0.2), "audio/wav")},
        {"file": ("morning.mp3", AUDIO[1], "audio/wav")},
        {"file": ("morning.wav", AUDIO[1], "audio/x-wav")},
        {"language": "de"},
        {"prompt": "Ålesund"},
        {"model": "gpt-4o-transcribe"},
        {"temperature": 0.5},
        {"response_format": "text"},
        {"timestamp_granularities": ["word"]},
        {"timestamp_granularities": ["word", "segment"]},
        {"include": ["logprobs"]},
        {"extra_body": {"unheard_of": "1"}},
        {"extra_headers": {"OpenAI-Project": "p"}},
        {"extra_query": {"beta": "1"}},
        {"key": "sk-other"},
    ],
    ids=lambda change: json.dumps(change, default=str)[:40],
)
async def test_whatever_may_change_the_transcript_is_asked_anew(tmp_path: Path, change: dict[str, Any]) -> None:
    async with transcribing(tmp_path) as (proxy, server):
        await ask(proxy)
        assert (await ask(proxy, **change))[1] == "miss"
        assert (await ask(proxy, **change))[1] == "hit"
        assert server.requests == 2


async def test_a_files_name_is_the_callers_own_affair(tmp_path: Path) -> None:
    async with transcribing(tmp_path) as (proxy, server):
        await ask(proxy)
        assert (await ask(proxy, file=("evening.wav", *AUDIO[1:])))[1] == "hit"
        assert server.requests == 1


@pytest.mark.parametrize("format", FORMATS)
async def test_every_format_is_kept_as_it_came(tmp_path: Path, format: str) -> None:
    async with transcribing(tmp_path) as (proxy, _):
        first, status, miss = await ask(proxy, response_format=format)
        again, status, hit = await ask(proxy, response_format=format)
        assert status == "hit"
        assert again == first
        assert hit["content-type"].partition(";")[0] == miss["content-type"].partition(";")[0]
        assert ("call 1" in again) if format in ("text", "srt", "vtt") else again.text == "call 1"


async def test_a_translation_is_no_transcription(tmp_path: Path) -> None:
    async with transcribing(tmp_path) as (proxy, server):
        await ask(proxy)
        for expected in ("miss", "hit"):
            with pytest.warns(DeprecationWarning, match="deprecated"):  # the SDK's own, of the model
                raw = await proxy.client.audio.translations.with_raw_response.create(file=AUDIO, model="whisper-1")
            assert (f"fwd={expected}" in raw.headers["cache-status"]) == (expected == "miss")
            assert raw.parse().text == "call 2"
        assert server.paths == ["/v1/audio/transcriptions", "/v1/audio/translations"]


async def test_azures_paths_are_kept_too(tmp_path: Path) -> None:
    async with transcribing(tmp_path) as (proxy, server):
        root = proxy.url.removesuffix("/v1")
        async with openai.AsyncAzureOpenAI(
            azure_endpoint=root, api_key="k", api_version="2024-10-21", max_retries=0
        ) as client:
            said = [await client.audio.transcriptions.create(file=AUDIO, model="ears") for _ in range(2)]
        assert [answer.text for answer in said] == ["call 1", "call 1"]
        (path,) = server.paths
        assert path == "/openai/deployments/ears/audio/transcriptions?api-version=2024-10-21"


async def test_a_stream_passes_through(tmp_path: Path) -> None:
    async with transcribing(tmp_path) as (proxy, _):
        for number in (1, 2):
            stream = await proxy.client.audio.transcriptions.create(file=AUDIO, model="gpt-4o-transcribe", stream=True)
            events = [event async for event in stream]
            assert [event.type for event in events] == ["transcript.text.delta", "transcript.text.done"]
            assert events[0].delta == f"call {number}"  # type: ignore[union-attr]
        assert (await ask(proxy, model="gpt-4o-transcribe", stream=False))[1] == "miss"
        assert (await ask(proxy, model="gpt-4o-transcribe"))[1] == "hit", "no stream is no stream, said or not"


async def test_a_burst_of_equal_uploads_costs_one_fetch(tmp_path: Path) -> None:
    async with transcribing(tmp_path) as (proxy, server):
        server.gate = asyncio.Event()
        asking = [asyncio.create_task(ask(proxy)) for _ in range(5)]
        await until(lambda: proxy.app.listener.requests == 5 and server.requests == 1)
        server.gate.set()
        said = await gather(*asking)
        assert {answer.text for answer, _, _ in said} == {"call 1"}
        assert server.requests == 1


# What callers say of the cache


async def test_callers_directives_hold_here_as_everywhere(tmp_path: Path) -> None:
    async with transcribing(tmp_path) as (proxy, server):

        def saying(value: str) -> dict[str, Any]:
            return {"extra_headers": {"Cache-Control": value}}

        with pytest.raises(openai.APIStatusError) as refused:
            await ask(proxy, **saying("only-if-cached"))
        assert refused.value.status_code == 504
        assert (await ask(proxy, **saying("no-store")))[1] == "bypass"
        assert (await ask(proxy))[1] == "miss", "no-store left nothing"
        assert (await ask(proxy, **saying("no-cache")))[1] == "request"
        proxy.clock.advance(10)
        assert (await ask(proxy, **saying("max-age=5")))[1] == "request"
        assert server.requests == 4
        assert (await ask(proxy, **saying("only-if-cached")))[1] == "hit"
        with pytest.raises(openai.BadRequestError, match="Semcache-Control"):
            await ask(proxy, extra_headers={"Semcache-Control": "replay=fast"})


# What is not kept


@pytest.mark.parametrize(
    "format, said",
    [(format, "") for format in FORMATS] + [(format, "  \n") for format in FORMATS[:4]],  # a cue of a blank is a cue
)
async def test_a_transcript_of_nothing_is_not_kept(tmp_path: Path, format: str, said: str) -> None:
    async with transcribing(tmp_path) as (proxy, server):
        server.said = said
        for number in (1, 2):
            _, status, headers = await ask(proxy, response_format=format)
            assert status in ("miss", "bypass") and "stored" not in headers["cache-status"]
            assert server.requests == number


async def test_a_text_that_ends_with_its_connection_is_relayed_and_not_kept(tmp_path: Path) -> None:
    async with transcribing(tmp_path) as (proxy, server):
        server.closes = True
        for number in (1, 2):
            answer, _, headers = await ask(proxy, response_format="text")
            assert answer == f"call {number}"
            assert "stored" not in headers["cache-status"]


async def test_an_upstreams_error_is_relayed_and_not_kept(tmp_path: Path) -> None:
    async with transcribing(tmp_path) as (proxy, server):
        server.status = 429
        with pytest.raises(openai.RateLimitError, match="slow down") as refused:
            await ask(proxy)
        assert refused.value.response.content == server.error_body
        assert refused.value.response.headers["retry-after"] == "7"
        server.status = 200
        assert (await ask(proxy))[1] == "miss"


async def test_without_usage_a_hit_shows_that_it_cost_nothing(tmp_path: Path) -> None:
    async with transcribing(tmp_path, "cache: {transcriptions: true, usage: zero}") as (proxy, _):
        miss, _, _ = await ask(proxy)
        hit, status, _ = await ask(proxy)
        assert status == "hit" and miss.usage.output_tokens == 9
        assert hit.usage.to_dict() == {"type": "tokens", "input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
        assert hit.text == miss.text


# What passes through although it could be kept


async def test_an_upload_larger_than_the_limit_passes_through(tmp_path: Path) -> None:
    settings = "server: {max_body: 2KB}\n" + ON
    async with transcribing(tmp_path, settings) as (proxy, server):
        large = ("morning.wav", sound(1), "audio/wav")
        assert [(await ask(proxy, file=large))[1] for _ in range(2)] == ["bypass", "bypass"]
        assert server.bodies == [{"bytes": len(large[1])}] * 2
        small = ("morning.wav", sound(0.01), "audio/wav")
        assert [(await ask(proxy, file=small))[1] for _ in range(2)] == ["miss", "hit"]


async def test_one_without_a_length_is_read_as_far_as_the_limit(tmp_path: Path) -> None:
    settings = "server: {max_body: 100KB}\n" + ON
    async with transcribing(tmp_path, settings) as (proxy, server), aiohttp.ClientSession() as http:

        async def send(size_bytes: int) -> str:
            async def file() -> AsyncIterator[bytes]:
                for _ in range(size_bytes // 1000):
                    yield b"s" * 1000

            form = aiohttp.MultipartWriter("form-data")
            form.append("whisper-1").set_content_disposition("form-data", name="model")
            form.append(file(), {"Content-Type": "audio/wav"}).set_content_disposition(
                "form-data", name="file", filename="a.wav"
            )
            async with http.post(f"{proxy.url}/audio/transcriptions", data=form) as response:
                assert response.status == 200
                return response.headers["Cache-Status"]

        assert "fwd=miss" in await send(50_000)
        assert "; hit" in await send(50_000)
        assert "fwd=bypass" in await send(300_000)
        assert [body["bytes"] for body in server.bodies] == [50_000, 300_000]


@pytest.mark.parametrize(
    "form",
    [
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nx\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nw\r\n'
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nv\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nx\r\n--b--\r\n',
    ],
    ids=["no model", "two models"],
)
async def test_a_form_that_is_none_of_ours_is_for_the_upstream_to_judge(tmp_path: Path, form: bytes) -> None:
    async with transcribing(tmp_path) as (proxy, server), aiohttp.ClientSession() as http:
        for _ in range(2):
            fields = {"Content-Type": "multipart/form-data; boundary=b"}
            async with http.post(f"{proxy.url}/audio/transcriptions", data=form, headers=fields) as response:
                assert "fwd=bypass" in response.headers["Cache-Status"]
                assert response.status == 200
        assert server.requests == 2
