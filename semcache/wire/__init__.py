"""Dialects: what a request asks, what an answer says, and how a stored answer is played again.

Which path speaks which dialect is decided here. A dialect is one class; its vendor's name is on the file.
"""

from __future__ import annotations

from collections.abc import Mapping

from semcache.wire.dialect import Dialect, ErrorShape, Frame, Reading, Scribe
from semcache.wire.error_shapes import AnthropicErrors, OpenAIErrors
from semcache.wire.openai import OpenAIChat
from semcache.wire.score import Identity, Score

__all__ = ["Dialect", "ErrorShape", "Frame", "Identity", "Reading", "Score", "Scribe", "dialect_for", "error_shape"]

_CHAT = OpenAIChat()

_DIALECTS: Mapping[str, Dialect] = {  # endpoint, without /v1/ -> dialect
    "chat/completions": _CHAT,
}

_ERRORS_OPENAI = OpenAIErrors()
_ERRORS_ANTHROPIC = AnthropicErrors()


def _both(endpoint: str) -> tuple[str, str]:
    """SDKs are given base URLs with and without `/v1`."""
    return f"/v1/{endpoint}", f"/{endpoint}"


_BY_PATH = {path: (dialect, endpoint) for endpoint, dialect in _DIALECTS.items() for path in _both(endpoint)}
_ANTHROPIC_PATHS = _both("messages")


def dialect_for(path: str) -> tuple[Dialect, str] | None:
    """Return the dialect and the endpoint of a path (without its query), None where nothing is cached."""
    return _BY_PATH.get(path)


def error_shape(path: str) -> ErrorShape:
    """Return the form in which a client of this path expects errors: Anthropic's for messages, else OpenAI's."""
    if path in _ANTHROPIC_PATHS or path.startswith(tuple(f"{p}/" for p in _ANTHROPIC_PATHS)):
        return _ERRORS_ANTHROPIC
    return _ERRORS_OPENAI
