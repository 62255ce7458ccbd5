"""OpenAI's transcriptions and translations of audio: the same bytes with the same fields have the same answer.

Requests are multipart forms. Equal are those with equal fields and equal audio, whatever their boundaries and the order
of their fields. Nothing here has a question that could be compared: an answer is found by equality alone.

A form that cannot be read, or asks for a stream, is no request of ours: it passes through, see `Address.opt_in`.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import PurePath
from typing import Any

import orjson

from semcache.errors import CacheFault, ClientError
from semcache.types import Answer, Ask, Form, Traits, Unstorable, Usage
from semcache.wire.dialect import Address, Frame, Reading, Rendition, Scribe
from semcache.wire.error_shapes import OpenAIErrors
from semcache.wire.forms import Part, parse_form
from semcache.wire.openai import CONTEXT_HEADERS
from semcache.wire.playing import with_blanks, zeroed_member
from semcache.wire.requests import context_of, named_headers
from semcache.wire.score import RECORDED, Identity, Score
from semcache.wire.scribes import Relay, Took, is_error, start_scribe

_FORMAT = "response_format"
TEXT_FORMATS = frozenset({"text", "srt", "vtt"})  # any other is an object of JSON
_TEXT_TYPES = frozenset({"text/plain", "text/vtt", "text/srt", "application/x-subrip"})


class Transcriptions(OpenAIErrors):
    """The dialect of `/v1/audio/transcriptions` and `/v1/audio/translations`."""

    def parse(self, address: Address, body: bytes, headers: Mapping[str, str]) -> Ask:
        parts = parse_form(headers.get("content-type", ""), body)
        files = [part for part in parts if part.filename is not None]
        if [part.name for part in files] != ["file"]:
            raise ClientError("Missing required parameter: 'file'.", param="file", code="missing_required_parameter")
        fields = _texts(part for part in parts if part.filename is None)
        model = address.model or _first(fields, "model")
        if not model:
            raise ClientError("Missing required parameter: 'model'.", param="model", code="missing_required_parameter")
        stream = _first(fields, "stream") not in (None, "false")
        fields.pop("stream", None)
        return Ask(
            dialect=address.vendor,
            endpoint=address.endpoint,
            target=address.target,
            model=model,
            question=None,
            context=context_of({"fields": fields, "file": _file(files[0])}, self.context_headers(headers)),
            stream=stream,
            include_usage=False,
            user=None,
            traits=Traits(has_media=True),
            body=body,
        )

    def context_headers(self, headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        return named_headers(headers, CONTEXT_HEADERS)

    def upstream_body(self, ask: Ask, *, ask_usage: bool) -> bytes:
        return ask.body

    def scribe(
        self, ask: Ask, status: int, headers: Mapping[str, str], *, store_tools: bool, limit_bytes: int
    ) -> Scribe:
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if status == 200 and media_type in _TEXT_TYPES and _wanted(ask) in TEXT_FORMATS:
            if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
                return Relay(Unstorable.ENCODING)
            return _TextScribe(ask.dialect, headers["content-type"], limit_bytes)
        return start_scribe(_Judge(), ask.dialect, status, headers, limit_bytes=limit_bytes, streams={})

    def prepare(self, answer: Answer, rendition: Rendition) -> Score:
        if len(answer.parts) == 2:
            text, content_type = answer.parts
            return Score(Form.JSON, [[text]], content_type=content_type.decode("utf-8", "surrogateescape"))
        (body,) = answer.parts
        if not rendition.zero_usage:
            return Score(Form.JSON, [[body]])
        try:
            return Score(Form.JSON, [with_blanks(body, {}, zeroed_member(body, "usage"))])
        except ValueError as exc:
            raise CacheFault("a stored transcript cannot be played") from exc

    def fresh_identity(self, now: float) -> Identity:
        return RECORDED  # a transcript has neither an id nor a time


def _texts(parts: Iterable[Part]) -> dict[str, list[tuple[str, str]]]:
    """The values of each field, each with its content type: it may say how the value is meant."""
    fields: dict[str, list[tuple[str, str]]] = {}
    for part in parts:
        try:
            value = part.value.decode()
        except UnicodeDecodeError as exc:
            raise ClientError(f"Invalid '{part.name}': expected text.", param=part.name, code="invalid_type") from exc
        fields.setdefault(part.name, []).append((value, part.content_type))
    return fields


def _first(fields: Mapping[str, Sequence[Sequence[str]]], name: str) -> str | None:
    return fields[name][0][0] if name in fields else None


def _file(part: Part) -> dict[str, Any]:
    """What of the audio decides its transcript. Upstreams learn the format from the name's extension and the content
    type; the rest of the name is the caller's own affair."""
    return {
        "blake2b": blake2b(part.value, digest_size=32).hexdigest(),
        "bytes": str(len(part.value)),
        "extension": PurePath(part.filename or "").suffix,
        "type": part.content_type,
    }


def _wanted(ask: Ask) -> str | None:
    """The format asked for, read back from the context."""
    return _first(orjson.loads(ask.context.partition(b"\n")[0])["fields"], _FORMAT)


class _Judge:
    """Whole is an object with a text."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.wrong: Unstorable | None = None

    def take_event(self, name: bytes, data: bytes) -> Took:
        self.wrong = Unstorable.MALFORMED  # streams pass through
        return Took.FOREIGN

    def take_body(self, value: Any) -> bool:
        self.wrong = self._look(value)
        return self.wrong is None

    def _look(self, value: Any) -> Unstorable | None:
        if type(value) is not dict:
            return Unstorable.MALFORMED
        if is_error(value):
            return Unstorable.ERROR
        text, usage = value.get("text"), value.get("usage")
        if type(text) is not str:
            return Unstorable.MALFORMED
        if not text.strip():
            return Unstorable.EMPTY
        if type(usage) is dict:
            tokens = usage.get("input_tokens"), usage.get("output_tokens")
            if type(tokens[0]) is int and type(tokens[1]) is int:
                self.usage = Usage(tokens[0], tokens[1])
        return None

    def has_ended(self) -> bool:
        return True

    def is_finished(self) -> bool:
        return True

    def why_not_keep(self) -> Unstorable | None:
        return None

    def forget(self) -> None: ...


class _TextScribe:
    """A transcript as bare text, with nothing in it that says where it ends: whole is what the framing proves whole."""

    def __init__(self, dialect: str, content_type: str, limit_bytes: int) -> None:
        self._dialect = dialect
        self._content_type = content_type
        self._limit_bytes = limit_bytes
        self._chunks: list[bytes] = []
        self._size_bytes = 0

    def feed(self, chunk: bytes, offset_ms: int) -> Sequence[Frame]:
        self._size_bytes += len(chunk)
        if self._size_bytes <= self._limit_bytes:
            self._chunks.append(chunk)
        else:
            self._chunks.clear()
        return (Frame(chunk),) if chunk else ()

    def finish(self, whole: bool) -> tuple[Sequence[Frame], Reading]:
        return (), self._reading(whole)

    def _reading(self, whole: bool) -> Reading:
        if not whole:  # ended with its connection, as it may. Nobody can tell, so it is relayed for what it is
            return Reading(None, Unstorable.MALFORMED)
        if self._size_bytes > self._limit_bytes:
            return Reading(None, Unstorable.TOO_LARGE)
        text = b"".join(self._chunks)
        if _is_error_text(text):
            return Reading(None, Unstorable.ERROR)
        answer = Answer(self._dialect, Form.JSON, (text, self._content_type.encode("utf-8", "surrogateescape")))
        return Reading(answer, Unstorable.EMPTY if _is_blank(text) else None)


def _is_blank(text: bytes) -> bool:
    """Nothing was said: no text, or subtitles without a cue."""
    said = text.removeprefix(codecs.BOM_UTF8).strip()
    return not said or (said.startswith(b"WEBVTT") and b"-->" not in said)


def _is_error_text(text: bytes) -> bool:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return type(value) is dict and is_error(value)
