"""Which requests are refused by their head, and in what words. Decisions only: no IO.

The parser refuses most of what is ambiguous, and its errors quote the request; here its errors become ours, which never
do. What it lets through and we do not serve is listed in `objection`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from aiohttp.http import HttpVersion10, HttpVersion11, RawRequestMessage
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from yarl import URL

from semcache.errors import ClientError, SemcacheError

MAX_LINE_BYTES = 8190  # the request line's target, and each field: what nginx and Apache take
MAX_FIELDS = 128
MAX_HEAD_BYTES = 64 * 1024  # of fields that are each short enough

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST_LINE = re.compile(rb"\S+ (\S+) HTTP/(\d+(?:\.\d+)?)\r?")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Stands in the queue where a request would have stood; always the last."""

    error: SemcacheError
    path: str  # as far as it could be read: it chooses the form of the error


def objection(message: RawRequestMessage, all_ascii: bool) -> ClientError | None:
    """Why a request that the parser let through is not served all the same."""
    version = message.version
    if version != HttpVersion11:
        if version < HttpVersion10:
            return malformed()
        if version > HttpVersion11:
            return _version()
        if message.chunked:  # RFC 9112 section 6.1: faulty framing
            return malformed()
    if message.method not in _METHODS:
        return ClientError("this method is not served", status=501, code="unknown_method")
    if message.chunked and message.headers["Transfer-Encoding"].strip().lower() != "chunked":
        return ClientError("this transfer coding is not understood", status=501, code="unknown_transfer_coding")
    if not all_ascii and not all(_is_text(name) and _is_text(value) for name, value in message.raw_headers):
        return ClientError("a header field is not UTF-8", code="malformed")
    return None


def in_origin_form(message: RawRequestMessage) -> RawRequestMessage:
    """The request as sent to a server, if it was sent as if to a proxy: where it goes is not for its sender to say."""
    if message.path[0] == "/" or not message.url.absolute:
        return message
    path, query = message.url.raw_path or "/", message.url.raw_query_string
    url = URL.build(path=path, query_string=query, encoded=True)
    return message._replace(path=f"{path}?{query}" if query else path, url=url)


def judge(exc: HttpProcessingError, head: bytes) -> ClientError:
    """What the parser stumbled over. Its own words quote the request, so they are never used."""
    line, ended, _ = head.lstrip(b"\r\n").partition(b"\n")
    if isinstance(exc, LineTooLong):
        if not ended or len(line) > MAX_LINE_BYTES:
            return ClientError("the request's target is too long", status=414, code="uri_too_long")
        return head_too_large()
    if exc.message == "Too many headers received":
        return head_too_large()
    found = _REQUEST_LINE.fullmatch(line)
    if found and found[2] > b"1.1":
        return _version()
    return malformed()


def malformed() -> ClientError:
    return ClientError("the request is not well-formed HTTP/1.1", code="malformed")


def _version() -> ClientError:
    return ClientError("only HTTP/1.1 is spoken here", status=505, code="http_version")


def head_too_large() -> ClientError:
    return ClientError("the request's header fields are too large or too many", status=431, code="head_too_large")


def is_request_line(line: bytes) -> bool:
    return _REQUEST_LINE.fullmatch(line) is not None


def path_of(head: bytes) -> str:
    """The path of an unfinished or faulty head, as far as it can be seen: it only chooses the form of the error."""
    found = re.match(rb"\s*\S+ (/[!-~]*)", head[:MAX_LINE_BYTES])
    return found[1].split(b"?")[0].decode("ascii") if found else ""


def _is_text(value: bytes) -> bool:
    if value.isascii():
        return True
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
