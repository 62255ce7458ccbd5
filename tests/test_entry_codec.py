"""What a sealed row gives back, and what it refuses to give back."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.cache.entry_codec import COLUMNS, DamagedRow, EntryCodec
from semcache.types import Answer, Entry, Form, Key, Scope, Usage

CODEC = EntryCodec(b"k" * 32)
ENTRY = Entry(
    id="e-1",
    scope=Scope("shop", "faq", "openai", "chat/completions", "gpt-4o"),
    key=Key(b"x" * 32, b"p" * 32),
    question="How do I return shoes?",
    vector=np.array([0.6, 0.8], np.float32),
    embedder="words-2",
    answer=Answer("openai", Form.STREAM, (b'{"a":1}', b'{"b":2}'), (0, 12), Usage(7, 9)),
    created_at=1_800_000_000.25,
    ttl_s=60.0,
    grace_s=5.0,
    user="u-1",
    writer="shop",
    vouchers=("shop", "rival"),
    request_id="r-1",
    backend="gpu-1",
)

texts = st.text(st.characters(codec="utf-8"), max_size=40)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    floats = st.floats(-1, 1, width=32)
    vector = draw(st.none() | st.lists(floats, min_size=1, max_size=8).map(lambda v: np.array(v, np.float32)))
    parts = draw(st.lists(st.binary(max_size=60), min_size=1, max_size=4).map(tuple))
    return Entry(
        id=draw(texts),
        scope=Scope(*(draw(texts) for _ in range(5))),
        key=Key(draw(st.binary(min_size=32, max_size=32)), draw(st.none() | st.binary(min_size=32, max_size=32))),
        question=draw(st.none() | texts),
        vector=vector,
        embedder=draw(st.none() | texts),
        answer=Answer(
            draw(texts),
            draw(st.sampled_from(Form)),
            parts,
            draw(st.just(()) | st.just(tuple(range(len(parts))))),
            draw(st.none() | st.builds(Usage, *[st.integers(0, 2**40)] * 3, st.booleans())),
        ),
        created_at=draw(st.floats(0, 1e11)),
        ttl_s=draw(st.floats(0, 1e9)),
        grace_s=draw(st.floats(0, 1e9)),
        user=draw(st.none() | texts),
        writer=draw(texts),
        vouchers=draw(st.lists(texts, max_size=3).map(tuple)),
        request_id=draw(texts),
        backend=draw(texts),
        turns=draw(st.lists(texts, max_size=3).map(tuple)),
        turns_vector=draw(st.none() | st.lists(floats, max_size=8).map(lambda v: np.array(v, np.float32))),
    )


def same(one: Entry, other: Entry) -> bool:
    def values(entry: Entry) -> list[Any]:
        found = [getattr(entry, f.name) for f in fields(entry)]
        return [value.tobytes() if isinstance(value, np.ndarray) else value for value in found]

    return values(one) == values(other)


@given(entries(), st.integers(1, 2**62))
def test_an_entry_comes_back_as_it_went_in(entry: Entry, seq: int) -> None:
    row = CODEC.to_row(entry, seq)
    assert len(row) == len(COLUMNS)
    assert same(CODEC.to_entry(row), replace(entry, seq=seq))


@given(st.data())
def test_no_flipped_bit_in_any_field_is_believed(data: st.DataObject) -> None:
    row = list(CODEC.to_row(ENTRY, 7))
    column = data.draw(st.integers(0, len(row) - 1))
    value = row[column]
    if isinstance(value, bytes):
        bit = data.draw(st.integers(0, 8 * len(value) - 1))
        row[column] = bytes(b ^ (1 << bit % 8 if i == bit // 8 else 0) for i, b in enumerate(value))
    elif isinstance(value, str):
        row[column] = value + data.draw(st.sampled_from(["\x00", "x", "\ufffd"]))
    else:
        row[column] = value + 1
    with pytest.raises(DamagedRow):
        CODEC.to_entry(tuple(row))


@pytest.mark.parametrize("column", range(len(COLUMNS)))
@pytest.mark.parametrize("value", [None, 0, 1.5, "text", b"bytes", b""])
def test_a_field_of_another_type_is_damage_and_no_crash(column: int, value: object) -> None:
    row = list(CODEC.to_row(ENTRY, 7))
    row[column] = value
    with pytest.raises(DamagedRow):
        CODEC.to_entry(tuple(row))


def test_bytes_do_not_move_between_neighbouring_fields_unseen() -> None:
    row = list(CODEC.to_row(ENTRY, 7))
    vector, answer = COLUMNS.index("vector"), COLUMNS.index("answer")
    row[vector], row[answer] = row[vector] + row[answer][:4], row[answer][4:]
    with pytest.raises(DamagedRow):
        CODEC.to_entry(tuple(row))


def test_a_row_of_another_scope_question_or_number_is_not_believed() -> None:
    row, seal = CODEC.to_row(ENTRY, 7), COLUMNS.index("seal")
    for other in (
        CODEC.to_row(replace(ENTRY, scope=replace(ENTRY.scope, tenant="rival")), 7),
        CODEC.to_row(replace(ENTRY, question="How do I return boots?"), 7),
        CODEC.to_row(ENTRY, 8),
    ):
        with pytest.raises(DamagedRow):
            CODEC.to_entry((*row[:seal], other[seal], *row[seal + 1 :]))
        with pytest.raises(DamagedRow):
            CODEC.to_entry((*other[:seal], row[seal], *other[seal + 1 :]))


def test_vouchers_of_another_row_are_not_believed() -> None:
    row, other = (CODEC.to_row(replace(ENTRY, vouchers=vouchers), 7) for vouchers in (("shop",), ("shop", "rival")))
    for more in (other[-1], None):
        with pytest.raises(DamagedRow):
            CODEC.to_entry((*row[:-1], more))


def test_a_row_sealed_with_another_key_is_not_believed() -> None:
    with pytest.raises(DamagedRow):
        CODEC.to_entry(EntryCodec(b"j" * 32).to_row(ENTRY, 7))


@pytest.mark.parametrize(
    "blob",
    [pickle.dumps({"run": print}), b"\xc6\x40\x00\x00\x00", b"\xdd\xff\xff\xff\xff", b""],
    ids=["pickle", "bin32 of 1 GB", "array32 of 4 G", "nothing"],
)
def test_a_hostile_answer_is_not_even_decoded(blob: bytes) -> None:
    row = list(CODEC.to_row(ENTRY, 7))
    row[COLUMNS.index("answer")] = blob
    with pytest.raises(DamagedRow, match="seal"):
        CODEC.to_entry(tuple(row))


@pytest.mark.parametrize(
    "change",
    [{"question": "\ud800"}, {"user": "\udfff"}, {"created_at": float("nan")}, {"ttl_s": float("inf")}],
    ids=str,
)
def test_what_cannot_be_written_is_refused_before_it_is(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        CODEC.to_row(replace(ENTRY, **change), 1)


def test_digests_of_texts_tell_texts_apart_and_not_what_they_are() -> None:
    assert CODEC.digest("u-1") == CODEC.digest("u-1") != CODEC.digest("u-2")
    assert CODEC.digest("u-1") != EntryCodec(b"j" * 32).digest("u-1")
    assert CODEC.digest("\ud800")
