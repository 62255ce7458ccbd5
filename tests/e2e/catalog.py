"""The clients that prove it, the features asked of each, and what is known not to work yet, with its reason."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results.json"

FEATURES: Mapping[str, Mapping[str, Any]] = json.loads((HERE / "features.json").read_text())

# Columns of the table, and the features that a check mark there stands for.
COLUMNS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "talk": {
        "JSON": ("json",),
        "stream": ("stream",),
        "one entry for both": ("stream_after_json", "json_after_stream"),
        "tools": ("tools", "tools_stream", "tool_loop"),
        "structured output": ("object", "object_stream"),
        "reasoning": ("reasoning", "reasoning_stream"),
        "state upstream": ("state",),
        "errors": ("upstream_error", "own_error"),
        "`only-if-cached`": ("only_if_cached",),
        "`no-store`": ("no_store",),
        "other calls": ("other",),
    },
    "embeddings": {
        "known batch": ("embed",),
        "half-known batch": ("embed_half",),
        "errors": ("upstream_error", "own_error"),
        "`only-if-cached`": ("only_if_cached",),
        "`no-store`": ("no_store",),
    },
    "server": {
        "JSON": ("json",),
        "stream": ("stream",),
        "one entry for both": ("stream_after_json", "json_after_stream"),
        "`no-store`": ("no_store",),
    },
}

APIS: Mapping[str, str] = {
    "chat": "chat completions",
    "responses": "Responses",
    "completions": "legacy completions",
    "azure": "Azure OpenAI",
    "messages": "Anthropic messages",
    "ollama": "Ollama chat",
    "generate": "Ollama generate",
    "embeddings": "OpenAI embeddings",
    "ollama_embed": "Ollama embed",
}


@dataclass(frozen=True)
class Client:
    """One program of tests/e2e/clients/, in an environment of its own."""

    name: str
    family: str  # whose it is, or for which language, as the table says beside the package
    environment: str  # "main": the project's own; a name in environments/; or "node-" and a folder of clients/
    program: str
    packages: tuple[str, ...]  # whose versions are told; the first speaks every API but those below
    speaks: Mapping[str, str] = field(default_factory=dict)  # API -> package

    @property
    def is_light(self) -> bool:
        """Part of `make test`: its packages are installed for development anyhow."""
        return self.environment == "main"

    @property
    def is_server(self) -> bool:
        """Not a client but a model server, asked through the proxy by one of the clients."""
        return self.environment == "serve"

    def package(self, api: str) -> str:
        return self.speaks.get(api, self.packages[0])


_LLAMA = tuple(f"llama-index-{part}" for part in ("llms-openai", "llms-anthropic", "embeddings-openai", "core"))

CLIENTS = (
    Client("openai-python", "Python", "main", "openai_python.py", ("openai",)),
    Client("anthropic-python", "Python", "main", "anthropic_python.py", ("anthropic",)),
    Client("ollama-python", "Python", "main", "ollama_python.py", ("ollama",)),
    Client("openai-node", "Node", "node-openai", "openai.mjs", ("openai",)),
    Client("anthropic-node", "Node", "node-anthropic", "anthropic.mjs", ("@anthropic-ai/sdk",)),
    Client(
        "ai-node",
        "Vercel `ai`, Node",
        "node-ai",
        "ai.mjs",
        ("@ai-sdk/openai", "@ai-sdk/anthropic", "ai"),
        {"messages": "@ai-sdk/anthropic"},
    ),
    Client(
        "langchain",
        "LangChain",
        "langchain",
        "langchain_python.py",
        ("langchain-openai", "langchain-anthropic", "langchain-core"),
        {"messages": "langchain-anthropic"},
    ),
    Client(
        "llama-index",
        "LlamaIndex",
        "llama-index",
        "llama_index_python.py",
        _LLAMA,
        {"messages": _LLAMA[1], "embeddings": _LLAMA[2]},
    ),
    Client("litellm", "Python", "litellm", "litellm_python.py", ("litellm",)),
    Client("model-server", "Hugging Face", "serve", "openai_python.py", ("transformers",)),
)

# (client, API, feature) as globs -> why. A feature named here that works after all fails the run: take it out then.
GAPS: Mapping[tuple[str, str, str], str] = {
    ("ai-node", "messages", "tools_stream"): (
        "In a stream the provider declares its tools with `eager_input_streaming`, as JSON without: two different "
        "requests, so a tool call that came as one does not answer the other. Each is cached by itself."
    ),
    ("litellm", "ollama", "tool_loop"): (
        "LiteLLM makes up an id for each tool call of Ollama's and sends it back with the tool's result, so no two "
        "requests with a result are equal. The calls themselves are cached."
    ),
}


def gap(client: str, api: str, feature: str) -> str | None:
    """Why this feature is known not to work."""
    for (clients, apis, features), reason in GAPS.items():
        if fnmatchcase(client, clients) and fnmatchcase(api, apis) and fnmatchcase(feature, features):
            return reason
    return None


def find(name: str) -> Client:
    """Raises LookupError with the names there are."""
    for client in CLIENTS:
        if client.name == name:
            return client
    raise LookupError(f"no client {name!r}; there are {', '.join(client.name for client in CLIENTS)}")
