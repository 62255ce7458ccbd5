"""Multipart forms, read strictly: what clients write is understood, what parsers might read differently is refused."""

from __future__ import annotations

import re

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.errors import ClientError
from semcache.wire.forms import MAX_PARTS, Part, parse_form

TYPE = "multipart/form-data; boundary=b"
END = b"--b--\r\n"


def field(name: str, value: bytes = b"v", *lines: str) -> bytes:
    return raw(f'Content-Disposition: form-data; name="{name}"', *lines, value=value)


def raw(*lines: str, value: bytes = b"v") -> bytes:
    return b"--b\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n" + value + b"\r\n"


def test_fields_and_files_come_out_in_their_order() -> None:
    file = raw('Content-Disposition: form-data; name="file"; filename="a b.mp3"', "Content-Type: audio/mpeg")
    body = field("model", "modèle".encode()) + file + field("tags[]", b"") + field("tags[]", b"\r\n--\r\n") + END
    assert parse_form(TYPE, body) == [
        Part("model", None, "", "modèle".encode()),
        Part("file", "a b.mp3", "audio/mpeg", b"v"),
        Part("tags[]", None, "", b""),
        Part("tags[]", None, "", b"\r\n--\r\n"),
    ]
    assert parse_form(TYPE, body.removesuffix(b"\r\n")) == parse_form(TYPE, body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b--",
        END,
        field("a"),
        field("a")[:-2] + END,
        field("a") + b"--b-",
        b"before\r\n" + field("a") + END,
        b"\r\n" + field("a") + END,
        field("a") + END + b"after",
        field("a") + END + field("a") + END,
        field("a") + b"--b \r\n" + END,
        field("a") + field("a") + END,
        (field("a") + END).replace(b"\r\n", b"\n"),
        b"".join(field(f"f{number}") for number in range(MAX_PARTS + 1)) + END,
        raw("Content-Type: text/plain") + END,
        raw('Content-Disposition: form-data; filename="a"') + END,
        raw('Content-Disposition: form-data; name=""') + END,
        raw("Content-Disposition: form-data; name=a") + END,
        raw('Content-Disposition: attachment; name="a"') + END,
        raw('Content-Disposition: form-data; name="a"; name="b"') + END,
        raw('Content-Disposition: form-data; name="a\\"b"') + END,
        raw('Content-Disposition: form-data; name="a"; filename="x"; filename="y"') + END,
        raw("Content-Disposition: form-data; name=\"a\"; filename*=UTF-8''x") + END,
        raw('Content-Disposition: form-data; name="a"; filename="x"; filename*=UTF-8\'\'y') + END,
        field("a", b"dg==", "Content-Transfer-Encoding: base64") + END,
        field("a", b"v", 'Content-Disposition: form-data; name="b"') + END,
        field("a", b"v", "Content-Type: text/plain", "Content-Type: text/html") + END,
        field("a", b"v", "Content-Length: 9") + END,
        raw('Content-Disposition: form-data;\r\n name="a"') + END,
        b'--b\r\nContent-Disposition: form-data; name="\xff"\r\n\r\nv\r\n' + END,
    ],
)
def test_what_might_be_read_in_another_way_is_refused(body: bytes) -> None:
    with pytest.raises(ClientError, match="not the form this endpoint takes") as refused:
        parse_form(TYPE, body)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/json",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/mixed; boundary=b",
        "multipart/form-data; boundary=" + "b" * 71,
        'multipart/form-data; boundary="a\r\nb"',
        'multipart/form-data; boundary="ä"',
        "multipart/form-data; boundary*=utf-8''b",
    ],
)
def test_a_content_type_that_names_no_boundary_is_refused(content_type: str) -> None:
    with pytest.raises(ClientError, match="not the form this endpoint takes"):
        parse_form(content_type, field("a") + END)


@pytest.mark.parametrize(
    "content_type",
    [
        'multipart/form-data; boundary="b"',
        "Multipart/Form-Data;boundary=b",
        "multipart/form-data; charset=x; Boundary=b",
    ],
)
def test_a_boundary_is_found_however_it_is_written(content_type: str) -> None:
    assert parse_form(content_type, field("a") + END) == [Part("a", None, "", b"v")]


NAMES = st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters='"\\;%'), min_size=1, max_size=20)


@given(st.dictionaries(NAMES, st.binary(max_size=50), max_size=5), st.binary(max_size=2000))
def test_what_the_sdks_write_is_understood(fields: dict[str, bytes], audio: bytes) -> None:
    """They write their forms with httpx."""
    files = {"file": ("a.wav", audio, "audio/wav")}
    request = httpx2.Request("POST", "http://x", data=fields, files=files)  # type: ignore[arg-type]
    parts = parse_form(request.headers["content-type"], request.read())
    assert {part.name: part.value for part in parts} == {"file": audio} | fields
    assert len(parts) == len(fields) + 1 - ("file" in fields)


@given(st.binary(max_size=300) | st.from_regex(rb"(--b(--)?\r\n|\r\n|name=\"a\"|Content-Disposition: form-data; )*"))
def test_no_bytes_do_more_than_be_refused(body: bytes) -> None:
    try:
        parts = parse_form(TYPE, body)
    except ClientError:
        return
    assert all(re.search(re.escape(part.value), body) for part in parts)
