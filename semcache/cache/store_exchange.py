"""Entries as JSON Lines: what `semcache export` writes and `semcache import` reads.

A header line with the version of the format, then one entry a line with everything in it, vectors as base64 of
little-endian float32. A line is believed only after every field was checked: it comes from a file.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from math import isfinite

import msgspec
import numpy as np

from semcache.cache.entry_codec import vector_bytes, vector_from
from semcache.errors import ClientError
from semcache.types import Answer, Entry, Form, Key, Scope, Usage, Vector

FORMAT = 1
LINE_LIMIT_BYTES = 64 * 2**20
KEY_BYTES = 32
NORM_TOLERANCE = 1e-3
MOST_VOUCHERS = 64  # more than any entry of ours has


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    semcache_export: int
    store: str = ""
    exported_at: float = 0.0  # unix seconds


class _Line(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    id: str
    tenant: str
    namespace: str
    dialect: str
    endpoint: str
    model: str
    exact: bytes
    partition: bytes | None
    embedder: str | None
    question: str | None
    vector: bytes | None
    user: str | None
    writer: str
    created_at: float
    ttl_s: float
    grace_s: float
    answer_dialect: str
    form: Form
    parts: tuple[str, ...] | None = None  # readable where they are UTF-8, as JSON is
    parts_base64: tuple[bytes, ...] | None = None
    offsets_ms: tuple[int, ...] = ()
    # Prompt tokens, completion tokens; where it is told also those of the prompt that the upstream had cached, and 1
    # for figures that were estimated here.
    usage: tuple[int, ...] | None = None
    vouchers: tuple[str, ...] = ()
    request_id: str = ""
    backend: str = ""
    turns: tuple[str, ...] = ()
    turns_vector: bytes | None = None


_IS_ID = re.compile(r"[A-Za-z0-9_-]{1,64}").fullmatch
_encode = msgspec.json.Encoder().encode
_decode_header = msgspec.json.Decoder(_Header).decode
_decode_line = msgspec.json.Decoder(_Line).decode


def header_line(store_id: str, exported_at: float) -> bytes:
    return bytes(_encode(_Header(FORMAT, store_id, exported_at))) + b"\n"


def entry_line(entry: Entry) -> bytes:
    scope, answer, usage = entry.scope, entry.answer, entry.answer.usage
    line = _Line(
        id=entry.id,
        tenant=scope.tenant,
        namespace=scope.namespace,
        dialect=scope.dialect,
        endpoint=scope.endpoint,
        model=scope.model,
        exact=entry.key.exact,
        partition=entry.key.partition,
        embedder=entry.embedder,
        question=entry.question,
        vector=None if entry.vector is None else vector_bytes(entry.vector),
        user=entry.user,
        writer=entry.writer,
        created_at=entry.created_at,
        ttl_s=entry.ttl_s,
        grace_s=entry.grace_s,
        answer_dialect=answer.dialect,
        form=answer.form,
        offsets_ms=answer.offsets_ms,
        usage=None if usage is None else _told(usage),
        vouchers=entry.vouchers,
        request_id=entry.request_id,
        backend=entry.backend,
        turns=entry.turns,
        turns_vector=None if entry.turns_vector is None else vector_bytes(entry.turns_vector),
    )
    try:
        line.parts = tuple(part.decode() for part in answer.parts)
    except UnicodeDecodeError:
        line.parts_base64 = answer.parts
    return bytes(_encode(line)) + b"\n"


def _told(usage: Usage) -> tuple[int, ...]:
    """A pair where that is all: earlier versions read it."""
    pair = (usage.prompt_tokens, usage.completion_tokens)
    return (*pair, usage.cached_tokens, int(usage.is_estimated)) if usage.cached_tokens or usage.is_estimated else pair


def _usage(told: tuple[int, ...] | None) -> Usage | None:
    if told is None:
        return None
    prompt, completion, *more = told
    return Usage(prompt, completion, more[0] if more else 0, any(more[1:]))


async def read_entries(lines: AsyncIterable[bytes] | Iterable[bytes]) -> AsyncIterator[Entry]:
    """Yield the entries of an export, checked. Raises ClientError that names the line."""
    number = 0
    async for line in _each(lines):
        number += 1
        if number == 1:
            _check_header(line)
        elif line.strip():
            yield _entry_from(line, number)
    if number == 0:
        raise ClientError("line 1: an export begins with a header line; this file is empty")


def _check_header(line: bytes) -> None:
    try:
        header = _decode_header(line)
    except msgspec.MsgspecError as exc:
        raise ClientError(f"line 1: not the header of a semcache export: {exc}") from exc
    if header.semcache_export != FORMAT:
        raise ClientError(f"line 1: export format {header.semcache_export}; this version reads format {FORMAT}")


def _entry_from(line: bytes, number: int) -> Entry:
    if len(line) > LINE_LIMIT_BYTES:
        raise ClientError(f"line {number}: longer than {LINE_LIMIT_BYTES} bytes")
    try:
        raw = _decode_line(line)
        vector = None if raw.vector is None else vector_from(raw.vector)
        turns_vector = None if raw.turns_vector is None else vector_from(raw.turns_vector)
        _check(raw, vector, turns_vector)
    except (msgspec.MsgspecError, ValueError) as exc:
        raise ClientError(f"line {number}: {exc}") from exc
    parts = raw.parts_base64 if raw.parts is None else tuple(part.encode() for part in raw.parts)
    return Entry(
        id=raw.id,
        scope=Scope(raw.tenant, raw.namespace, raw.dialect, raw.endpoint, raw.model),
        key=Key(raw.exact, raw.partition),
        question=raw.question,
        vector=vector,
        embedder=raw.embedder,
        answer=Answer(raw.answer_dialect, raw.form, parts or (), raw.offsets_ms, _usage(raw.usage)),
        created_at=raw.created_at,
        ttl_s=raw.ttl_s,
        grace_s=raw.grace_s,
        user=raw.user,
        writer=raw.writer,
        vouchers=raw.vouchers,
        request_id=raw.request_id,
        backend=raw.backend,
        turns=raw.turns,
        turns_vector=turns_vector,
    )


def _check(raw: _Line, vector: Vector | None, turns_vector: Vector | None) -> None:
    """Raises ValueError. The rules that types cannot say."""
    parts = raw.parts if raw.parts is not None else raw.parts_base64
    rules = (
        (_IS_ID(raw.id) is not None, "id must be 1 to 64 letters, digits, - and _: it goes into a header"),
        (len(raw.exact) == KEY_BYTES, f"exact must be {KEY_BYTES} bytes in base64"),
        (raw.partition is None or len(raw.partition) == KEY_BYTES, f"partition must be {KEY_BYTES} bytes in base64"),
        ((vector is None) == (raw.embedder is None), "vector and embedder go together"),
        (raw.partition is None or vector is not None, "a partition needs a vector"),
        (raw.created_at >= 0 and isfinite(raw.created_at), "created_at must be a unix time"),
        (raw.ttl_s >= 0 and isfinite(raw.ttl_s), "ttl_s must be 0 or more seconds"),
        (raw.grace_s >= 0 and isfinite(raw.grace_s), "grace_s must be 0 or more seconds"),
        ((raw.parts is None) != (raw.parts_base64 is None), "exactly one of parts and parts_base64 must be there"),
        (bool(parts), "the answer has no parts"),
        (raw.form is not Form.JSON or len(parts or ()) == 1, "an answer in JSON form has one part"),
        (len(raw.offsets_ms) in {0, len(parts or ())}, "offsets_ms must have one number for each part"),
        (all(offset >= 0 for offset in raw.offsets_ms), "offsets_ms must not be negative"),
        (raw.usage is None or 2 <= len(raw.usage) <= 4, "usage must be two to four numbers"),
        (raw.usage is None or min(raw.usage, default=0) >= 0, "usage must not be negative"),
        (len(raw.vouchers) <= MOST_VOUCHERS, f"vouchers must be {MOST_VOUCHERS} at most"),
        (vector is None or _is_unit(vector), "vector must be finite and of length 1"),
        (bool(raw.turns) == (turns_vector is not None), "turns and turns_vector go together"),
        (turns_vector is None or _is_unit(turns_vector), "turns_vector must be finite and of length 1"),
    )
    for holds, complaint in rules:
        if not holds:
            raise ValueError(complaint)


def _is_unit(vector: Vector) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(abs(float(np.linalg.norm(vector)) - 1.0) <= NORM_TOLERANCE)  # false for NaN


async def _each(lines: AsyncIterable[bytes] | Iterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(lines, AsyncIterable):
        async for line in lines:
            yield line
    else:
        for line in lines:
            yield line
