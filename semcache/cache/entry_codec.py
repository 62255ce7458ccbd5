"""How an entry lies on disk: one flat row, sealed by a keyed digest over everything in it.

The seal is checked each time a row comes back. It catches damage (a flipped bit in a vector, an answer or a key) and
rows that were edited, or copied under another number, scope or question, by somebody who can write the database but not
read the key file beside it (a mounted volume, a restored backup, a SQL injection elsewhere). It is no protection from
somebody who can read the key file, and it does not hide anything. Nothing is decoded before its seal is found whole,
and nothing that is decoded can run code.
"""

from __future__ import annotations

from hashlib import blake2b
from hmac import compare_digest
from math import isfinite
from typing import Any

import msgspec
import numpy as np

from semcache.types import Answer, Entry, Form, Key, Scope, Usage, Vector

# The order of a row, and of the table's columns. `answer` comes late because readers that only want postings then stop
# before it. `more` came with a later schema, and is NULL in rows that were written before.
COLUMNS = (
    "seq",
    "exact_key",
    "partition_key",
    "embedder",
    "vector",
    "id",
    "tenant",
    "namespace",
    "dialect",
    "endpoint",
    "model",
    "question",
    "user",
    "writer",
    "created_at",
    "ttl_s",
    "grace_s",
    "answer",
    "seal",
    "more",
)
SEAL_BYTES = 16
_VECTOR, _ANSWER = COLUMNS.index("vector"), COLUMNS.index("answer")
_DISK_FLOAT = np.dtype("<f4")

Row = tuple[Any, ...]


class DamagedRow(ValueError):
    """A row is not what was written."""


class _PackedAnswer(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    dialect: str
    form: str
    parts: tuple[bytes, ...]
    offsets_ms: tuple[int, ...]
    usage: tuple[int, int] | None


class _More(msgspec.Struct, omit_defaults=True):
    """What few readers ask for, by name: a field that is added here needs no column, and older rows lack it."""

    vouchers: tuple[str, ...] = ()
    request_id: str = ""
    backend: str = ""
    turns: tuple[str, ...] = ()
    turns_vector: bytes | None = None
    region: str | None = None
    # Of the usage, beside the pair in the answer.
    cached_tokens: int = 0
    is_estimated: bool = False


_NOTHING_MORE = _More()


class EntryCodec:
    """Turns entries into rows and back, with the key of one database."""

    def __init__(self, mac_key: bytes) -> None:
        self._mac_key = mac_key
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode_answer = msgspec.msgpack.Decoder(_PackedAnswer).decode
        self._decode_more = msgspec.msgpack.Decoder(_More).decode

    def to_row(self, entry: Entry, seq: int) -> Row:
        """Raises ValueError for what cannot be written, such as text with lone surrogates, or a time that is none."""
        if not isfinite(entry.created_at + entry.ttl_s + entry.grace_s):
            raise ValueError("created_at, ttl_s and grace_s must be finite")
        scope, answer, usage = entry.scope, entry.answer, entry.answer.usage
        packed = self._encode(
            (
                answer.dialect,
                answer.form.value,
                answer.parts,
                answer.offsets_ms,
                None if usage is None else (usage.prompt_tokens, usage.completion_tokens),
            )
        )
        fields = (
            seq,
            entry.key.exact,
            entry.key.partition,
            entry.embedder,
            None if entry.vector is None else vector_bytes(entry.vector),
            entry.id,
            scope.tenant,
            scope.namespace,
            scope.dialect,
            scope.endpoint,
            scope.model,
            entry.question,
            entry.user,
            entry.writer,
            float(entry.created_at),
            float(entry.ttl_s),
            float(entry.grace_s),
            packed,
        )
        turns_vector = None if entry.turns_vector is None else vector_bytes(entry.turns_vector)
        extra = _More(entry.vouchers, entry.request_id, entry.backend, entry.turns, turns_vector, entry.region)
        if usage is not None:
            extra.cached_tokens, extra.is_estimated = usage.cached_tokens, usage.is_estimated
        more = None if extra == _NOTHING_MORE else self._encode(extra)
        return (*fields, self._seal(fields, more), more)

    def to_entry(self, row: Row) -> Entry:
        """Raises DamagedRow unless the row is, bit for bit, one that `to_row` made with this key."""
        *fields, seal, packed_more = row
        try:
            whole = compare_digest(self._seal(tuple(fields), packed_more), seal)
        except (TypeError, ValueError) as exc:  # damage can change a column's type, too
            raise DamagedRow("a field has the wrong type") from exc
        if not whole:
            raise DamagedRow("the seal does not fit")
        (
            seq,
            exact,
            partition,
            embedder,
            vector,
            entry_id,
            tenant,
            namespace,
            dialect,
            endpoint,
            model,
            question,
            user,
            writer,
            created_at,
            ttl_s,
            grace_s,
            packed,
        ) = fields
        try:
            stored = self._decode_answer(packed)
            form = Form(stored.form)
            more = _NOTHING_MORE if packed_more is None else self._decode_more(packed_more)
        except (msgspec.MsgspecError, ValueError) as exc:  # sealed by another version of this program
            raise DamagedRow(f"the answer cannot be read: {exc}") from exc
        return Entry(
            id=entry_id,
            scope=Scope(tenant, namespace, dialect, endpoint, model),
            key=Key(exact, partition),
            question=question,
            vector=None if vector is None else vector_from(vector),
            embedder=embedder,
            answer=Answer(
                stored.dialect,
                form,
                stored.parts,
                stored.offsets_ms,
                None if stored.usage is None else Usage(*stored.usage, more.cached_tokens, more.is_estimated),
            ),
            created_at=created_at,
            ttl_s=ttl_s,
            grace_s=grace_s,
            user=user,
            writer=writer,
            vouchers=more.vouchers,
            request_id=more.request_id,
            backend=more.backend,
            turns=more.turns,
            region=more.region,
            turns_vector=None if more.turns_vector is None else vector_from(more.turns_vector),
            seq=seq,
        )

    def vouchers_in(self, more: object) -> tuple[str, ...]:
        """Those that a row's last column names, its seal not checked: for telling and removing, never for serving."""
        try:
            return self._decode_more(more).vouchers if isinstance(more, bytes) else ()
        except msgspec.MsgspecError:
            return ()

    def digest(self, text: str) -> bytes:
        """A keyed digest that stands for `text` where the text itself must not lie (see purges in store_log.py)."""
        return blake2b(text.encode("utf-8", "surrogatepass"), key=self._mac_key, digest_size=16).digest()

    def _seal(self, fields: Row, more: bytes | None) -> bytes:
        # msgpack says type and length of every field, and the two long ones, which follow it unpacked, stand in it with
        # their lengths: two different rows never give the same bytes. Packing them, too, would cost as much as hashing.
        vector, packed = fields[_VECTOR], fields[_ANSWER]
        small = self._encode(
            (
                *fields[:_VECTOR],
                vector and len(vector),
                *fields[_VECTOR + 1 : _ANSWER],
                len(packed),
                *(() if more is None else (more,)),  # as the rows were sealed that have none
            )
        )
        seal = blake2b(small, key=self._mac_key, digest_size=SEAL_BYTES, person=b"semcache row")
        if vector:
            seal.update(vector)
        seal.update(packed)
        return seal.digest()


def vector_bytes(vector: Vector) -> bytes:
    return np.ascontiguousarray(vector, dtype=_DISK_FLOAT).tobytes()


def vector_from(blob: bytes) -> Vector:
    """A read-only view, shape (d,). Raises ValueError when the bytes are not whole floats."""
    return np.frombuffer(blob, dtype=_DISK_FLOAT)
