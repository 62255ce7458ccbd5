"""The model of an upload is found in its first bytes, however they are cut, and the bytes go on as they came."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.wire.form_model import find_model, read_form_model, rename_in_form, rename_in_upload

TYPE = "multipart/form-data; boundary=b"


def field(name: str, value: bytes, *lines: str) -> bytes:
    head = "\r\n".join([f'Content-Disposition: form-data; name="{name}"', *lines])
    return b"--b\r\n" + head.encode() + b"\r\n\r\n" + value + b"\r\n"


FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"x" * 1000 + b"\r\n"
END = b"--b--\r\n"


async def read(body: bytes, cuts: list[int], content_type: str = TYPE, limit: int = 65536) -> tuple[str | None, int]:
    """The model, and how many pieces had to be waited for; the body is checked to be what it was."""
    taken = 0
    edges = [0, *sorted(cuts), len(body)]

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal taken
        for start, end in pairwise(edges):
            taken += 1
            yield body[start:end]

    model, whole = await read_form_model(content_type, pieces(), limit)
    waited_for = taken
    assert b"".join([piece async for piece in whole]) == body
    return model, waited_for


@pytest.mark.parametrize(
    "body, model",
    [
        (field("purpose", b"x") + field("model", b"whisper-1") + FILE + END, "whisper-1"),
        (b"preamble\r\n" + field("model", b"whisper-1") + END, "whisper-1"),
        (field("model", b"gpt-4o", "Content-Type: text/plain", "X: 1") + END, "gpt-4o"),
        (b"--b\r\ncontent-disposition:form-data;name=model\r\n\r\nm\r\n" + END, "m"),
        (field("model", "modèle".encode()) + END, "modèle"),
        (field("model", b"two\r\nlines") + END, "two\r\nlines"),
        (FILE + field("model", b"whisper-1") + END, None),  # too far to look for
        (field("model", b"\xff") + END, None),
        (field("model", b"") + END, None),
        (field("model", b"m" * 300) + END, None),
        (field("modell", b"m") + field("Model", b"m") + END, None),
        (field("model", b"never ends")[:-2], None),
        (b'--b\r\nContent-Disposition: form-data; name="model"; filename="model"\r\n\r\nm\r\n' + END, None),
        (b"--b\r\n\r\nno head\r\n" + END, None),
        (b"--c\r\n" + field("model", b"m")[5:] + END, None),
        (b"", None),
    ],
)
async def test_the_first_model_before_a_file_is_found_at_every_cut(body: bytes, model: str | None) -> None:
    for cut in range(len(body) + 1):
        assert (await read(body, [cut]))[0] == model


async def test_nothing_is_waited_for_that_could_not_matter() -> None:
    body = field("model", b"m") + FILE + END
    end = len(field("model", b"m")) + 5
    assert await read(body, [end, end + 10]) == ("m", 1)
    start = len(FILE) - 900
    assert await read(FILE + END, [start]) == (None, 1)
    assert await read(field("other", b"x" * 500) + field("model", b"m") + END, [100, 200, 300], limit=150) == (None, 2)
    assert await read(body, [10], content_type="multipart/form-data") == (None, 0)


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=4))
async def test_no_bytes_are_lost_or_raise(body: bytes, cuts: list[int]) -> None:
    await read(body, [min(cut, len(body)) for cut in cuts])
    find_model("b", b"--b" + body)


async def test_what_the_sdks_send_is_understood() -> None:
    """They write their forms with httpx."""
    files = {"file": ("a.mp3", b"\r\n--not" * 100, "audio/mpeg")}
    request = httpx2.Request("POST", "http://x", data={"model": "whisper-1", "language": "de"}, files=files)
    assert (await read(request.read(), [70], request.headers["content-type"]))[0] == "whisper-1"


async def renamed(body: bytes, cuts: list[int], model: str, limit: int = 65536) -> bytes:
    edges = [0, *sorted(cuts), len(body)]

    async def pieces() -> AsyncIterator[bytes]:
        for start, end in pairwise(edges):
            yield body[start:end]

    return b"".join([piece async for piece in rename_in_upload(TYPE, pieces(), model, limit)])


@given(st.binary(max_size=40).filter(lambda value: b"--b" not in value), st.text(max_size=20), st.data())
async def test_a_form_is_renamed_however_it_is_cut(value: bytes, model: str, data: st.DataObject) -> None:
    before, after = field("purpose", value), field("prompt", value) + FILE + END
    body = before + field("model", b"whisper-1") + after
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=8))
    wanted = before + field("model", model.encode()) + after
    assert await renamed(body, cuts, model) == wanted
    assert rename_in_form(TYPE, body, model) == wanted


async def test_a_form_that_is_at_hand_may_name_its_model_behind_the_file() -> None:
    body = FILE + field("model", b"whisper-1") + END
    assert rename_in_form(TYPE, body, "w") == FILE + field("model", b"w") + END
    assert await renamed(body, [], "w") == body


@pytest.mark.parametrize(
    "body", [b"", b"no form", FILE + END, field("model", b"never ends")[:-2], field("modell", b"m")]
)
async def test_a_form_without_a_model_stays_as_it_is(body: bytes) -> None:
    assert await renamed(body, [1] if body else [], "w") == body
    assert rename_in_form(TYPE, body, "w") == body
    assert rename_in_form("multipart/form-data", body, "w") == body
