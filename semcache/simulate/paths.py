"""Which simulated endpoint answers a path: the table of them, and Azure's way of writing paths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from semcache.simulate import answers, messages, ollama, openai, responses, vllm
from semcache.simulate.forms import (
    ANTHROPIC,
    AZURE,
    NDJSON,
    OLLAMA,
    OPENAI,
    RESPONSES,
    Fault,
    Speaking,
    Telling,
    Vendor,
)

MODELS = ("simulated-small", "simulated-large")

Endpoint = Speaking | Telling

_CHAT = Speaking(openai.ChatRequest, openai.read_chat, answers.openai_json, openai.chat_events)
_COMPLETIONS = Speaking(
    openai.CompletionRequest, openai.read_completion, openai.completion_json, openai.completion_events
)
_RESPONSES = Speaking(
    responses.ResponsesRequest,
    responses.read_responses,
    responses.responses_json,
    responses.responses_events,
    thinks=responses.thinks,
)
_MESSAGES = Speaking(
    messages.MessagesRequest,
    messages.read_messages,
    messages.messages_json,
    messages.messages_events,
    thinks=messages.thinks,
)
_OLLAMA_CHAT = Speaking(
    ollama.ChatRequest,
    ollama.read_chat,
    ollama.chat_json,
    ollama.chat_events,
    thinks=ollama.thinks,
    media_type=NDJSON,
    streams_unasked=True,
)
_OLLAMA_GENERATE = Speaking(
    ollama.GenerateRequest,
    ollama.read_generate,
    ollama.generate_json,
    ollama.generate_events,
    thinks=ollama.thinks,
    media_type=NDJSON,
    streams_unasked=True,
)
_EMBEDDINGS = Telling(openai.EmbeddingsRequest, openai.embeddings_json)

ENDPOINTS: Mapping[tuple[str, str], Endpoint] = {
    ("POST", "/v1/chat/completions"): _CHAT,
    ("POST", "/v1/chat/completions/render"): Telling(openai.ChatRequest, vllm.render_json),
    ("POST", "/tokenize"): Telling(vllm.TokenizeRequest, vllm.tokenize_json),
    ("POST", "/v1/completions"): _COMPLETIONS,
    ("POST", "/v1/responses"): _RESPONSES,
    ("POST", "/v1/embeddings"): _EMBEDDINGS,
    ("GET", "/v1/models"): Telling(None, openai.models_json),
    ("POST", "/v1/messages"): _MESSAGES,
    ("POST", "/v1/messages/count_tokens"): Telling(messages.CountRequest, messages.count_tokens),
    ("POST", "/api/chat"): _OLLAMA_CHAT,
    ("POST", "/api/generate"): _OLLAMA_GENERATE,
    ("POST", "/api/embed"): Telling(ollama.EmbedRequest, ollama.embed_json),
    ("GET", "/api/tags"): Telling(None, ollama.tags_json),
    ("GET", "/api/version"): Telling(None, ollama.version_json),
    ("POST", "/api/show"): Telling(ollama.ShowRequest, ollama.show_json),
}

# Azure names the model in the path, and has such paths for these three only; for the rest it has /openai/v1.
_DEPLOYMENT = re.compile(r"/openai/deployments/([^/]+)/(chat/completions|completions|embeddings)")
_OPENAI_V1 = re.compile(r"/openai(/v1/.+)")

_VENDORS: Mapping[str, Vendor] = {  # the start of a path -> its vendor; any other: OpenAI
    "/v1/messages": ANTHROPIC,
    "/v1/responses": RESPONSES,
    "/api/": OLLAMA,
    "/openai/deployments/": AZURE,
}


class Found(NamedTuple):
    endpoint: Endpoint
    extra: Mapping[str, str]  # what the path says of the request, over the body


def find(method: str, path: str, query: Mapping[str, str]) -> Found:
    """Return who answers. Raises Fault (404)."""
    azure = _DEPLOYMENT.fullmatch(path)
    if azure and "api-version" not in query:
        raise Fault(404, "Resource not found", code="404")
    endpoint = ENDPOINTS.get((method, f"/v1/{azure[2]}" if azure else _without_azure(path)))
    if endpoint is None:
        raise Fault(404, f"no such path: {method} {path}")
    return Found(endpoint, {"model": azure[1]} if azure else {})


def vendor_of(path: str) -> Vendor:
    """In whose form errors of this path are told."""
    plain = _without_azure(path)
    return next((vendor for start, vendor in _VENDORS.items() if plain.startswith(start)), OPENAI)


def _without_azure(path: str) -> str:
    return _OPENAI_V1.sub(r"\1", path)
