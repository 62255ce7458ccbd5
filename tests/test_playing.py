"""What playing takes in any dialect: blanks, figures of zero, texts in pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.types import Form
from semcache.wire import Identity, Score
from semcache.wire.playing import Blanks, with_blanks, words, zeroed, zeroed_member
from semcache.wire.score import RECORDED, Blank, Slot
from semcache.wire.strict_json import Number, decode, encode

SLOTS = {"id": Slot.ID, "created": Slot.CREATED}
FRESH = Identity("fresh", 7)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
names = st.sampled_from(["id", "created", "usage", "a", "b", "\u00e9", "0", ""])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(names, values, max_size=6)


def played(event: Any, identity: Identity) -> bytes:
    return Score(Form.JSON, [event]).play_whole(identity)


# Blanks in a text that stays as it was written


@given(objects, st.sampled_from([None, 0, 3]), st.booleans())
def test_a_text_with_blanks_is_the_text_until_they_are_filled(tree: Any, indent: int | None, escape: bool) -> None:
    body = json.dumps(tree, indent=indent, ensure_ascii=escape).encode()
    event = with_blanks(body, SLOTS)
    assert played(event, RECORDED) == body
    expected = {**tree, **{key: value for key, value in zip(SLOTS, FRESH, strict=True) if key in tree}}
    assert json.loads(played(event, FRESH)) == expected
    assert [piece.slot for piece in event if isinstance(piece, Blank)] == [SLOTS[key] for key in tree if key in SLOTS]


def test_other_members_may_be_replaced_in_the_same_pass() -> None:
    body = b'{"usage" : {"a":1} ,"id":"x", "other": 1.50}'
    event = with_blanks(body, SLOTS, {"usage": b'{"a":0}', "missing": b"1"})
    assert played(event, FRESH) == b'{"usage" : {"a":0} ,"id":"fresh", "other": 1.50}'


def test_a_member_of_the_same_name_further_in_is_no_blank() -> None:
    body = b'{"a":{"id":"inner"},"b":[{"created":1}],"id":"outer"}'
    assert played(with_blanks(body, SLOTS), FRESH) == b'{"a":{"id":"inner"},"b":[{"created":1}],"id":"fresh"}'


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"id"}', b'{"id":1', b'{"id":1 "x":2}', b'"{}"', b"\xff"])
def test_what_is_no_object_has_no_blanks(body: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        with_blanks(body, SLOTS)


# Blanks in a tree


@given(objects, texts, st.integers(0, 10**12))
def test_a_blank_at_any_depth_is_filled_where_it_stood(tree: Any, id_: str, created: int) -> None:
    blanks = Blanks()
    inner = {
        **decode(json.dumps(tree)),
        "message": {"id": blanks.at(Slot.ID, id_), "items": [blanks.at(Slot.CREATED, Number(str(created)))]},
    }
    event = blanks.write({"type": "begin", **inner}, b"data: ", b"\n\n")
    for identity, expected in ((RECORDED, (id_, created)), (FRESH, FRESH)):
        text = played(event, identity)
        assert text.startswith(b"data: ")
        assert text.endswith(b"\n\n")
        told = json.loads(text[6:])
        assert (told["message"]["id"], told["message"]["items"][0]) == expected
        assert told == {"type": "begin", **tree, "message": told["message"]}


def test_one_value_may_stand_in_several_places() -> None:
    blanks = Blanks()
    one = blanks.at(Slot.ID, "x")
    event = blanks.write({"a": one, "b": [one, one]})
    assert played(event, FRESH) == b'{"a":"fresh","b":["fresh","fresh"]}'


def test_no_text_can_be_mistaken_for_a_blank() -> None:
    blanks = Blanks()
    event = blanks.write({"text": "\x000\x00", "id": blanks.at(Slot.ID, "\x001\x00")})
    assert json.loads(played(event, RECORDED)) == {"text": "\x000\x00", "id": "\x001\x00"}
    assert json.loads(played(event, FRESH)) == {"text": "\x000\x00", "id": "fresh"}


# Usage of nothing


def test_figures_become_zero_at_any_depth_and_nothing_else_changes() -> None:
    usage = decode('{"total":13,"details":{"cached":1.5,"tier":"default","none":null},"each":[1,[2]],"ok":true}')
    assert encode(zeroed(usage)) == (
        b'{"total":0,"details":{"cached":0,"tier":"default","none":null},"each":[0,[0]],"ok":true}'
    )


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"usage": {"a": 5}}', {"usage": b'{"a":0}'}),
        (b'{"usage":null}', {}),
        (b'{"other":{"usage":{"a":5}}}', {}),
        (b"{}", {}),
    ],
)
def test_a_member_is_zeroed_where_it_is(body: bytes, expected: dict[str, bytes]) -> None:
    assert zeroed_member(body, "usage") == expected


# Pieces of texts


@given(texts)
def test_pieces_joined_are_the_text(text: str) -> None:
    pieces = words(text)
    assert "".join(pieces) == text
    assert all(pieces)


@given(st.integers(0, 5000), st.sampled_from(["word ", "\u914d\u9001", " ", "\n\n", "x"]))
def test_a_text_of_any_length_comes_in_a_bounded_number_of_pieces(times: int, unit: str) -> None:
    pieces = words(unit * times)
    assert "".join(pieces) == unit * times
    assert len(pieces) <= 512


def test_a_piece_is_a_word_with_the_space_before_it() -> None:
    assert words("Four days,\n\nat  most. ") == ["Four", " days,", "\n\nat", "  most.", " "]
    assert words("\u914d\u9001" * 10) == ["\u914d\u9001" * 8, "\u914d\u9001" * 2]
    assert words("") == []
