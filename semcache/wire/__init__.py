"""Dialects: what a request asks, what an answer says, and how a stored answer is played again.

Which path speaks which dialect is decided here. A dialect is one class; its vendor's name is on the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Literal
from urllib.parse import unquote

from semcache.errors import ClientError
from semcache.types import Entry
from semcache.wire import strict_json
from semcache.wire.anthropic import AnthropicMessages
from semcache.wire.completions import OpenAICompletions
from semcache.wire.dialect import (
    Address,
    BatchDialect,
    Dialect,
    ErrorShape,
    Frame,
    Reading,
    Rendition,
    Scribe,
    SpokenDialect,
)
from semcache.wire.embeddings import OpenAIEmbeddings
from semcache.wire.error_shapes import AnthropicErrors, OllamaErrors, OpenAIErrors
from semcache.wire.ollama import OllamaChat, OllamaGenerate
from semcache.wire.ollama_embed import OllamaEmbed
from semcache.wire.openai import OpenAIChat
from semcache.wire.plain import PlainText
from semcache.wire.requests import other_model_in
from semcache.wire.responses import Responses
from semcache.wire.score import RECORDED, Identity, Score
from semcache.wire.transcriptions import Transcriptions

__all__ = [
    "RECORDED",
    "Address",
    "BatchDialect",
    "Dialect",
    "ErrorShape",
    "Frame",
    "Identity",
    "Reading",
    "Rendition",
    "Score",
    "Scribe",
    "SpokenDialect",
    "error_shape",
    "find_address",
    "is_model_path",
    "read_model",
    "refuse_disguise",
    "say",
    "vendor_of",
]

# Below /v1/, with and without it in the path, for SDKs are given base URLs of both kinds.
_OPENAI: Mapping[str, Dialect] = {
    "chat/completions": OpenAIChat(),
    "completions": OpenAICompletions(),
    "responses": Responses(),
    "embeddings": OpenAIEmbeddings(),
    "audio/transcriptions": Transcriptions(),
    "audio/translations": Transcriptions(),
}
_ANTHROPIC: Mapping[str, Dialect] = {
    "messages": AnthropicMessages(),
}
_PROGRAM: Mapping[str, Dialect] = {"ask": PlainText()}
_OLLAMA: Mapping[str, Dialect] = {  # below /api/
    "chat": OllamaChat(),
    "generate": OllamaGenerate(),
    "embed": OllamaEmbed(),
}

# Uploads, which are only read where a route says so; see Address.opt_in.
_OPT_IN: Mapping[str, Literal["transcriptions"]] = {
    "audio/transcriptions": "transcriptions",
    "audio/translations": "transcriptions",
}

_ERRORS_OPENAI = OpenAIErrors()
_ERRORS_ANTHROPIC = AnthropicErrors()
_ERRORS_OLLAMA = OllamaErrors()

_ENDPOINT = re.compile(r"/(?:v1/)?(.+)")
_AZURE_DEPLOYMENT = re.compile(r"/openai/deployments/([^/]+)/(.+)")

# First segments of the vendors' paths, for base URLs without /v1.
_BARE = frozenset(
    "agents assistants audio batches chat chatkit completions containers content_provenance_checks conversations "
    "decisions embeddings evals files fine_tuning images live messages models moderations organization projects "
    "realtime responses safety skills threads uploads vaults vector_stores videos webhook_endpoints "
    "webhook_event_types".split()
)


@lru_cache(maxsize=512)  # services call a few paths, with a query or without; a search takes as long as a lookup
def find_address(target: str) -> Address | None:
    """Return what a request's path and query say, both as they were sent; None where nothing is cached.

    The query stays with the request and belongs to its key: Azure's `api-version`, Anthropic's `beta=true`.
    """
    path, mark, query = target.partition("?")
    if path.startswith("/openai/"):
        return _find_azure(path, target)
    if path.startswith("/api/"):
        ollama = _OLLAMA.get(path.removeprefix("/api/"))
        return Address(ollama, "ollama", path[1:], target) if ollama else None
    if not (found := _ENDPOINT.fullmatch(path)):
        return None
    endpoint = found[1]
    for vendor, dialects in (("openai", _OPENAI), ("anthropic", _ANTHROPIC)):
        if dialect := dialects.get(endpoint):
            return Address(dialect, vendor, endpoint, f"/v1/{endpoint}{mark}{query}", opt_in=_OPT_IN.get(endpoint))
    return None


def refuse_disguise(target: str) -> None:
    """Refuse an endpoint that is known here, spelled in a way that is not. An upstream that reads it otherwise would
    answer it, and limits, guardrails and the count of its tokens would have been passed by. Raises ClientError 404."""
    plain = _plain(target)
    if find_address(target) is None and find_address(plain) is not None:
        raise ClientError(f"no such path here; write it as {plain}", status=404, code="not_found")


@lru_cache(maxsize=512)
def _plain(target: str) -> str:
    """A path as the most lenient upstream might read it: decoded, without capitals, empty segments, "..", parameters
    and a slash at its end."""
    path = re.sub(r"^\w+://[^/]*", "", target)
    for _ in range(4):  # each server on the way may decode once
        path = unquote(path)
    segments: list[str] = []
    for segment in re.split(r"[/\\]", re.split(r"[?#]", path)[0]):
        name = segment.partition(";")[0].strip().lower()
        if name == "..":
            del segments[-1:]
        elif name not in ("", "."):
            segments.append(name)
    return "/" + "/".join(segments)


def say(entry: Entry) -> str | None:
    """The text of a stored answer, None where it is no plain text. Takes as long as playing it."""
    endpoint = entry.scope.endpoint
    match entry.scope.dialect:
        case "openai" | "azure":
            dialect = _OPENAI.get(endpoint)
        case "anthropic":
            dialect = _ANTHROPIC.get(endpoint)
        case "ollama":
            dialect = _OLLAMA.get(endpoint.removeprefix("api/"))
        case _:
            dialect = _PROGRAM.get(endpoint)
    return dialect.spoken(entry.answer) if isinstance(dialect, SpokenDialect) else None


def _find_azure(path: str, target: str) -> Address | None:
    """OpenAI's endpoints under Azure's paths. There a deployment takes the place of the model."""
    model = None
    if found := _AZURE_DEPLOYMENT.fullmatch(path):
        model, endpoint = unquote(found[1]), found[2]
    else:
        endpoint = path.removeprefix("/openai/").removeprefix("v1/")
    dialect = _OPENAI.get(endpoint)
    return Address(dialect, "azure", endpoint, target, model, _OPT_IN.get(endpoint)) if dialect else None


def is_model_path(path: str) -> bool:
    """Whether a path belongs to a model API: anything below /v1/, /openai/ (Azure) and /api/ (Ollama), and what SDKs
    ask for whose base URL lacks the version."""
    return path.startswith(("/v1/", "/openai/", "/api/")) or path.removeprefix("/").partition("/")[0] in _BARE


def vendor_of(path: str, headers: Mapping[str, str]) -> str:
    """Return the dialect of a path that passes through: whose it is, and so who may see the caller's key."""
    if path.startswith("/openai/"):
        return "azure"
    if path.startswith("/api/"):
        return "ollama"
    if _is_anthropic(path) or "anthropic-version" in headers:  # /v1/files and /v1/models are paths of both vendors
        return "anthropic"
    return "openai"


def read_model(body: bytes) -> str | None:
    """Return the model that a JSON body of any dialect names. None when it names none, or is not fit to be read."""
    try:
        tree = strict_json.parse(body)
    except ClientError:  # it passes through all the same: judging it is for the upstream
        return None
    model = tree.get("model")
    return model if isinstance(model, str) and not other_model_in(tree) else None


def error_shape(path: str) -> ErrorShape:
    """Return the form in which a client of this path expects errors: Anthropic's, Ollama's, else OpenAI's."""
    if path.startswith("/api/"):
        return _ERRORS_OLLAMA
    return _ERRORS_ANTHROPIC if _is_anthropic(path) else _ERRORS_OPENAI


def _is_anthropic(path: str) -> bool:
    """Whole segments: OpenAI has /v1/threads/ID/messages."""
    return re.match(r"(?:/v1)?/messages(?:/|$)", path) is not None
