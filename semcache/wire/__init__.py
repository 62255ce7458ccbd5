"""Dialects: what a request asks, what an answer says, and how a stored answer is played again.

Which path speaks which dialect is decided here. A dialect is one class; its vendor's name is on the file.
"""

from __future__ import annotations

from collections.abc import Mapping

from semcache.errors import ClientError
from semcache.wire import strict_json
from semcache.wire.dialect import Dialect, ErrorShape, Frame, Reading, Scribe
from semcache.wire.error_shapes import AnthropicErrors, OpenAIErrors
from semcache.wire.openai import OpenAIChat
from semcache.wire.score import Identity, Score

__all__ = [
    "Dialect",
    "ErrorShape",
    "Frame",
    "Identity",
    "Reading",
    "Score",
    "Scribe",
    "dialect_for",
    "error_shape",
    "is_model_path",
    "read_model",
    "vendor_of",
]

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
_BELOW_ANTHROPIC = tuple(f"{path}/" for path in _ANTHROPIC_PATHS)

# First segments of the vendors' paths, for base URLs without /v1.
_BARE = frozenset(
    "assistants audio batches chat completions conversations embeddings evals files fine_tuning images messages models "
    "moderations realtime responses threads uploads vector_stores videos".split()
)


def dialect_for(path: str) -> tuple[Dialect, str] | None:
    """Return the dialect and the endpoint of a path (without its query), None where nothing is cached."""
    return _BY_PATH.get(path)


def is_model_path(path: str) -> bool:
    """Whether a path belongs to a model API: anything below /v1/, and what SDKs ask for whose base URL lacks it."""
    return path.startswith("/v1/") or path.split("/", 2)[1] in _BARE


def vendor_of(path: str, headers: Mapping[str, str]) -> str:
    """Return the dialect of a path that passes through: whose it is, and so who may see the caller's key."""
    if _is_anthropic(path) or (path.endswith("/models") and "anthropic-version" in headers):
        return "anthropic"
    return "openai"


def read_model(body: bytes) -> str | None:
    """Return the model that a JSON body of any dialect names. None when it names none, or is not fit to be read."""
    try:
        model = strict_json.parse(body).get("model")
    except ClientError:  # it passes through all the same: judging it is for the upstream
        return None
    return model if isinstance(model, str) else None


def error_shape(path: str) -> ErrorShape:
    """Return the form in which a client of this path expects errors: Anthropic's for messages, else OpenAI's."""
    return _ERRORS_ANTHROPIC if _is_anthropic(path) else _ERRORS_OPENAI


def _is_anthropic(path: str) -> bool:
    """Whole segments: OpenAI has /v1/threads/ID/messages."""
    return path in _ANTHROPIC_PATHS or path.startswith(_BELOW_ANTHROPIC)
