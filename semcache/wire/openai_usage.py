"""Asking an upstream for a stream's usage where the caller did not: the figures are for the entry and the ledger.

One member of the request is changed, and every other byte goes up as it was received.
"""

from __future__ import annotations

from semcache.wire.strict_json import spans


def asking_for_usage(body: bytes) -> bytes:
    """A streaming request's body with `stream_options.include_usage` set to true.

    As it was where it says true already, or says it in a way that is for the upstream to complain of.
    """
    if b"stream_options" not in body and b"\\u" not in body:  # not even written with an escape
        return _insert(body, b'"stream_options":{"include_usage":true},')
    text = body.decode()
    start, end = spans(text).get("stream_options", (0, 0))
    if not end:
        return _insert(body, b'"stream_options":{"include_usage":true},')
    if text[start:end] == "null":
        return _replace(text, start, end, '{"include_usage":true}')
    if text[start] != "{":
        return body  # the upstream will say what is wrong with it
    options = spans(text, start)
    if "include_usage" not in options:
        member = '"include_usage":true' + ("," if options else "")
        return _replace(text, start + 1, start + 1, member)
    start, end = options["include_usage"]
    if text[start:end] not in ("false", "null"):
        return body
    return _replace(text, start, end, "true")


def _insert(body: bytes, member: bytes) -> bytes:
    """Put a member first in the object: a request has others, its model at least, so a comma follows."""
    start = body.index(b"{") + 1
    return body[:start] + member + body[start:]


def _replace(text: str, start: int, end: int, by: str) -> bytes:
    return (text[:start] + by + text[end:]).encode()
