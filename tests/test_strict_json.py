"""Strict JSON: what two parsers could read differently is refused, and equal values give equal bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.errors import ClientError
from semcache.wire.strict_json import (
    COMPACT_CHARS,
    MAX_DEPTH,
    MAX_NUMBER,
    Number,
    canonical,
    decode,
    encode,
    parse,
    spans,
)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "empty"),
        (b"[]", "no object"),
        (b'"x"', "no object"),
        (b"1", "no object"),
        (b"null", "no object"),
        (b'{"a":1,"a":1}', "key twice"),
        (b'{"a":{"b":1,"c":2,"b":3}}', "key twice, inside"),
        (b'{"a":1,"\\u0061":2}', "key twice, once escaped"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":Infinity}', "Infinity"),
        (b'{"a":-Infinity}', "minus Infinity"),
        (b'\xef\xbb\xbf{"a":1}', "byte order mark"),
        ('{"a":1}'.encode("utf-16"), "UTF-16"),
        ('{"a":1}'.encode("utf-32"), "UTF-32"),
        (b'{"a":"\xff"}', "not UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', "a surrogate as bytes"),
        (b'{"a":"\\ud800"}', "half a surrogate pair"),
        (b'{"a":["\\uDC00 x"]}', "the other half"),
        (b'{"\\ud83d":1}', "half a surrogate pair in a key"),
        (b'{"a":"\\ude00\\ud83d"}', "a pair the wrong way round"),
        (b'{"a":"line\nend"}', "control character"),
        (b'{"a":01}', "leading zero"),
        (b'{"a":+1}', "plus sign"),
        (b'{"a":.5}', "no digit before the point"),
        (b'{"a":0x10}', "hexadecimal"),
        ('{"a":١}'.encode(), "digits of another script"),
        (b"{'a':1}", "single quotes"),
        (b'{"a":1,}', "comma too many"),
        (b'{"a":1} x', "text after the end"),
        (b'{"a":1}{"a":1}', "two values"),
        (b'\x0b{"a":1}', "vertical tab"),
        (b'{"a":' + b"9" * 100_000 + b"}", "a number of 100,000 digits"),
        (b'{"a":0.' + b"9" * 100_000 + b"}", "a fraction of 100,000 digits"),
        (b'{"a":' + b"[" * 100_000, "100,000 brackets"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "100,000 levels"),
        (b'{"a":' * 100_000, "100,000 objects"),
    ],
)
def test_what_parsers_may_read_differently_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(ClientError) as refused:
        parse(body)
    assert refused.value.status == 400
    assert refused.value.code == "invalid_json"
    assert len(refused.value.message) < 300


@pytest.mark.parametrize(
    "text", ["1", "1.0", "1e0", "1E0", "-0", "0", "10000000000000000000001", "1e999", "0.1", "0.10"]
)
def test_a_number_stays_as_it_was_written(text: str) -> None:
    assert canonical(parse(b'{"a": %b }' % text.encode())) == b'{"a":%b}' % text.encode()


def test_a_number_is_not_taken_for_text_that_looks_like_it() -> None:
    assert canonical(parse(b'{"a":1}')) != canonical(parse(b'{"a":"1"}'))
    assert Number("1") != "1"


def test_the_largest_number_and_the_deepest_nesting_are_taken() -> None:
    parse(b'{"a":%b}' % (b"9" * MAX_NUMBER))
    inner = MAX_DEPTH - 1
    deepest = b'{"a":' + b"[" * inner + b"]" * inner + b"}"
    assert canonical(parse(deepest)) == deepest
    with pytest.raises(ClientError, match="nested"):
        parse(b'{"a":' + b"[" * (inner + 1) + b"]" * (inner + 1) + b"}")


def test_brackets_inside_a_string_are_no_nesting() -> None:
    assert parse(json.dumps({"a": "[{" * 5000}).encode()) == {"a": "[{" * 5000}


def test_many_shallow_objects_are_no_nesting() -> None:
    parse(json.dumps({"a": [{"b": []}] * 1000}).encode())


def test_escapes_and_raw_characters_are_the_same_text() -> None:
    assert canonical(parse(b'{"a":"\\u00e9\\ud83d\\ude00\\/"}')) == canonical(parse('{"a":"é😀/"}'.encode()))


def test_a_refusal_does_not_repeat_the_request() -> None:
    with pytest.raises(ClientError) as refused:
        parse(b'{"secret-word": NaN "secret-word"}')
    assert "secret-word" not in refused.value.message


@given(st.binary(max_size=64) | st.binary(max_size=64).map(lambda raw: b'{"a":"' + raw + b'"}'))
def test_no_bytes_raise_anything_but_a_client_error(body: bytes) -> None:
    try:
        tree = parse(body)
    except ClientError:
        return
    assert json.loads(canonical(tree)) is not None


# A value, as the JSON texts of its leaves, so that two ways of writing it can be told from two values.
numbers = st.from_regex(r"-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,3})?([eE][+-]?[0-9]{1,2})?", fullmatch=True).map(Number)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
leaves = st.none() | st.booleans() | texts | numbers
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)
objects = st.dictionaries(texts, values, max_size=4)


def written(value: Any, random: Any) -> str:
    """Write JSON with members in any order, white space anywhere and escapes at will."""
    space = random.choice(["", " ", "\n\t", "\r\n"])
    if isinstance(value, Number):
        return f"{space}{value.text}{space}"
    if isinstance(value, dict):
        members = list(value.items())
        random.shuffle(members)
        inside = ",".join(f"{space}{written(key, random)}:{written(item, random)}" for key, item in members)
        return f"{space}{{{inside}{space}}}"
    if isinstance(value, list):
        return f"[{space}{','.join(written(item, random) for item in value)}]"
    return json.dumps(value, ensure_ascii=random.random() < 0.5)


@given(objects, st.randoms(use_true_random=False))
def test_one_value_written_two_ways_is_one_canonical_form(value: dict[str, Any], random: Any) -> None:
    first, second = (parse(written(value, random).encode()) for _ in range(2))
    assert canonical(first) == canonical(second) == canonical(value)


@given(objects, objects, st.randoms(use_true_random=False))
def test_two_values_never_share_a_canonical_form(one: dict[str, Any], other: dict[str, Any], random: Any) -> None:
    equal = canonical(parse(written(one, random).encode())) == canonical(parse(written(other, random).encode()))
    assert equal == same(one, other)


def same(one: Any, other: Any) -> bool:
    """Equality in which True is not 1 and lists are not tuples: that of JSON."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@given(objects, st.randoms(use_true_random=False))
def test_spans_show_where_each_value_stands(value: dict[str, Any], random: Any) -> None:
    text = written(value, random)
    found = spans(text)
    assert found.keys() == value.keys()
    for key, (start, end) in found.items():
        assert same(parse(b'{"v":' + text[start:end].encode() + b"}")["v"], value[key])
        assert text[start:end] == text[start:end].strip()


@pytest.mark.parametrize("text", ["", " ", "[]", '{"a"}', '{"a":}', '{"a":1', '{"a":1 "b":2}', '{"a":1,'])
def test_spans_of_what_is_no_object_are_an_error(text: str) -> None:
    with pytest.raises(ValueError):
        spans(text)


LONG = {"text": "x" * COMPACT_CHARS}  # past it, a text may be read the quick way


@given(objects, st.randoms(use_true_random=False))
def test_a_long_text_reads_alike_however_it_is_written(members: dict[str, object], random: Any) -> None:
    tree = {**members, **LONG}
    compact = encode(tree)
    assert canonical(decode(compact.decode())) == canonical(decode(written(tree, random))) == canonical(tree)


@pytest.mark.parametrize("spaces", ["", " "])
@pytest.mark.parametrize(
    "member", ['"a":1,"a":1', '"a":{"b":1,"c":2,"b":1}', '"a":[{"b":1,"\\u0062":1}]', '"a":NaN', '"a":"\\ud800"']
)
def test_what_is_refused_in_a_short_text_is_refused_in_a_long_one(member: str, spaces: str) -> None:
    long = json.dumps(LONG)[1:]
    for text in (f"{{{member}{spaces}}}", f"{{{member},{spaces}{long}", f"{{{long[:-1]},{spaces}{member}}}"):
        with pytest.raises(ValueError):
            decode(text)
