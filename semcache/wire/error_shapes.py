"""Our own errors in each vendor's words, so that the caller's SDK raises what it would raise for the vendor's.

An upstream's errors never come here: they pass byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from semcache.errors import SemcacheError
from semcache.wire import ndjson

_OPENAI_TYPES: Mapping[int, str] = {  # any other status below 500: invalid_request_error
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}

_ANTHROPIC_TYPES: Mapping[int, str] = {  # docs.claude.com/en/api/errors; below 500 else: invalid_request_error
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",  # theirs is 529; ours says the same, that waiting helps
    504: "timeout_error",
    529: "overloaded_error",
}


def _type(types: Mapping[int, str], status: int) -> str:
    return types.get(status) or ("invalid_request_error" if status < 500 else "api_error")


class OpenAIErrors:
    """`{"error": {"message", "type", "param", "code"}}`; the request id travels in a header only."""

    def error_body(self, error: SemcacheError, request_id: str) -> bytes:
        return orjson.dumps(
            {
                "error": {
                    "message": error.message,
                    "type": _type(_OPENAI_TYPES, error.status),
                    "param": getattr(error, "param", None),  # of ClientError only
                    "code": error.code,
                }
            }
        )

    def error_event(self, error: SemcacheError, request_id: str) -> bytes:
        return b"data: %b\n\n" % self.error_body(error, request_id)


class AnthropicErrors:
    """`{"type": "error", "error": {"type", "message"}, "request_id"}`, in a stream as the event `error`."""

    def error_body(self, error: SemcacheError, request_id: str) -> bytes:
        return orjson.dumps(
            {
                "type": "error",
                "error": {"type": _type(_ANTHROPIC_TYPES, error.status), "message": error.message},
                "request_id": request_id,
            }
        )

    def error_event(self, error: SemcacheError, request_id: str) -> bytes:
        return b"event: error\ndata: %b\n\n" % self.error_body(error, request_id)


class OllamaErrors:
    """`{"error": "message"}`, in a stream as its last line."""

    def error_body(self, error: SemcacheError, request_id: str) -> bytes:
        return orjson.dumps({"error": error.message})

    def error_event(self, error: SemcacheError, request_id: str) -> bytes:
        return ndjson.line(self.error_body(error, request_id))
