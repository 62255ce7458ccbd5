"""Reading a multipart form so that two parsers cannot disagree about it (RFC 7578).

A form decides a cache key, so it must mean to us what it means to the upstream. Beyond what the parser finds broken, a
form is refused that others might read in another way: text before or after it, a field that is given twice, parts with
headers or quoting of rare kinds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from email.message import Message
from typing import NamedTuple

from multipart import MultipartError, MultipartSegment, PushMultipartParser

from semcache.errors import ClientError

MAX_PARTS = 200  # no endpoint has so many fields

_HEADERS = frozenset({"Content-Disposition", "Content-Type", "Content-Length"})
# As every known client writes it: nothing escaped, nothing given twice, no `filename*`.
_DISPOSITION = re.compile(r'form-data; ?name="[^"\\;]+"(; ?filename="[^"\\;]*")?', re.IGNORECASE)


class Part(NamedTuple):
    name: str
    filename: str | None  # None: a field; a file has one, be it empty
    content_type: str  # as it was written; "" where nothing was
    value: bytes


def parse_form(content_type: str, body: bytes) -> Sequence[Part]:
    """Read a whole form, its parts in order. Raises ClientError (400).

    Only a name that ends with [] may come more than once.
    """
    boundary = _boundary(content_type)
    _, ended, after = body.partition(b"\r\n--" + boundary + b"--")
    if not body.startswith(b"--" + boundary + b"\r\n") or not ended or after not in (b"", b"\r\n"):
        raise _refusal("it does not begin and end with its boundary")
    parts: list[Part] = []
    pieces: list[bytes] = []
    head: MultipartSegment | None = None
    try:
        with PushMultipartParser(boundary, max_segment_count=MAX_PARTS, strict=True) as parser:
            for event in parser.parse(body):
                if isinstance(event, MultipartSegment):
                    head, pieces = event, []
                elif event is not None:
                    pieces.append(bytes(event))
                elif head is not None:
                    parts.append(_part(head, b"".join(pieces)))
    except MultipartError as exc:
        raise _refusal(str(exc.args[0]) if exc.args else "it is broken") from exc
    names = [part.name for part in parts if not part.name.endswith("[]")]
    if len(names) != len(set(names)):
        raise _refusal("a field is given twice")
    return parts


def _boundary(content_type: str) -> bytes:
    message = Message()
    message["Content-Type"] = content_type.replace("\r", " ").replace("\n", " ")
    boundary = message.get_param("boundary")
    if message.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
        raise _refusal("its Content-Type is not multipart/form-data with a boundary")
    if not re.fullmatch(r"[0-9A-Za-z'()+_,./:=?-]{1,70}", boundary):  # RFC 2046, less the blank
        raise _refusal("its boundary is not one")
    return boundary.encode()


def _part(head: MultipartSegment, value: bytes) -> Part:
    headers: Mapping[str, str] = dict(head.headerlist)
    if len(headers) != len(head.headerlist) or not headers.keys() <= _HEADERS:
        raise _refusal("a part has headers other than Content-Disposition and Content-Type")
    if head.name is None or not _DISPOSITION.fullmatch(headers["Content-Disposition"]):
        raise _refusal("a part is not named in the usual way")
    return Part(head.name, head.filename, headers.get("Content-Type", ""), value)


def _refusal(reason: str) -> ClientError:
    return ClientError(f"The request body is not the form this endpoint takes: {reason}.", code="invalid_form")
