"""The model that an upload names: a field of a multipart form, looked for at its beginning only.

The rule: an upload is never held to be read. What was looked at goes on as it came, and a form that does not name its
model within the first bytes is routed as one that names none. The SDKs send the fields before the file.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from email.message import Message

LOOKED_AT_BYTES = 64 * 1024

_LONGEST_NAME_BYTES = 256


async def read_form_model(
    content_type: str, body: AsyncIterator[bytes], looked_at_bytes: int = LOOKED_AT_BYTES
) -> tuple[str | None, AsyncIterator[bytes]]:
    """Return the model, None if it is not found, and the whole body, of which the beginning has been waited for."""
    boundary = _parameters(content_type).get("boundary", "")
    seen: list[bytes] = []
    model, settled = None, not boundary
    while not settled:
        piece = await anext(body, None)
        if piece is None:
            break
        seen.append(piece)
        start = b"".join(seen)
        model, settled = find_model(boundary, start[:looked_at_bytes])
        settled = settled or len(start) >= looked_at_bytes
    return model, _joined(seen, body)


async def looks_like_object(body: AsyncIterator[bytes]) -> tuple[bool, AsyncIterator[bytes]]:
    """Whether a body that is not said to be JSON may be a JSON object all the same; and the whole body."""
    seen: list[bytes] = []
    async for piece in body:
        seen.append(piece)
        start = piece.lstrip(b" \t\r\n\xef\xbb\xbf")
        if start or sum(map(len, seen)) >= LOOKED_AT_BYTES:
            return start[:1] in (b"{", b""), _joined(seen, body)
    return False, _joined(seen, body)


def rename_in_form(content_type: str, form: bytes, model: str) -> bytes:
    """The same form with another model; one that does not name its model comes back as it is."""
    found, _ = _find_value(_parameters(content_type).get("boundary", ""), form, past_files=True)
    return form if found is None else form[: found[0]] + model.encode() + form[found[1] :]


async def rename_in_upload(
    content_type: str, body: AsyncIterable[bytes], model: str, looked_at_bytes: int = LOOKED_AT_BYTES
) -> AsyncIterator[bytes]:
    """The same for a form that is still coming, of which the beginning is waited for."""
    boundary = _parameters(content_type).get("boundary", "")
    pieces = aiter(body)
    start = b""
    found, settled = None, not boundary
    while not settled:
        piece = await anext(pieces, None)
        if piece is None:
            break
        start += piece
        found, settled = _find_value(boundary, start[:looked_at_bytes])
        settled = settled or len(start) >= looked_at_bytes
    if found is not None:
        start = start[: found[0]] + model.encode() + start[found[1] :]
    if start:
        yield start
    async for piece in pieces:
        yield piece


def find_model(boundary: str, start: bytes) -> tuple[str | None, bool]:
    """Return the model that the start of a form names, and whether that is settled: more of the form is then no help.

    A file ends the search: what follows may be far away.
    """
    found, settled = _find_value(boundary, start)
    return _as_name(start[found[0] : found[1]]) if found else None, settled


def _find_value(boundary: str, start: bytes, past_files: bool = False) -> tuple[tuple[int, int] | None, bool]:
    """Where the model's name lies, and whether that is settled."""
    delimiter = b"\r\n--" + boundary.encode("utf-8", "surrogateescape")
    _, *parts = (b"\r\n" + start).split(delimiter)
    end = len(start) - sum(len(delimiter) + len(part) for part in parts)
    for number, part in enumerate(parts, 1):
        end += len(delimiter) + len(part)
        head, ended, value = part.partition(b"\r\n\r\n")
        if not ended:
            return None, part.startswith(b"--")
        names = _disposition(head)
        if names.get("filename") is not None:
            if past_files:
                continue
            return None, True
        if names.get("name") == "model":
            if number == len(parts):  # its end is not here yet
                return None, len(value) > _LONGEST_NAME_BYTES
            return (end - len(value), end), True
    return None, False


def _as_name(value: bytes) -> str | None:
    try:
        name = value.decode()
    except UnicodeDecodeError:
        return None
    return name if name and len(value) <= _LONGEST_NAME_BYTES else None


def _disposition(head: bytes) -> dict[str, str]:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            return _parameters(value.decode("utf-8", "replace"))
    return {}


def _parameters(value: str) -> dict[str, str]:
    message = Message()
    message["x"] = value.replace("\r", " ").replace("\n", " ").strip()
    return {name: text for name, text in message.get_params((), "x") or () if isinstance(text, str)}


async def _joined(seen: list[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for piece in seen:
        yield piece
    async for piece in rest:
        yield piece
