"""Which words of a request are looked at: those of a prompt, each with who speaks them.

One reading for all dialects, by the names that OpenAI's, Anthropic's and Ollama's APIs give things. What is not known
counts as the user's words, so that a new kind of content is looked at before anybody teaches it here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson


class Text(NamedTuple):
    role: str  # "user", "assistant", "system", "developer", "tool"; "tools": the definitions of tools
    text: str


_SPEAKERS = {"system": "system", "instructions": "system", "tools": "tools", "functions": "tools"}
_PROMPTS = frozenset({"messages", "input", "prompt", "suffix", "documents", *_SPEAKERS})
# Names of members that hold no words: identifiers, kinds, and media as base64.
_NO_WORDS = frozenset(
    {"role", "type", "id", "tool_call_id", "call_id", "tool_use_id", "item_id", "status", "detail", "media_type"}
    | {"mime_type", "data", "images", "file_data", "b64_json", "signature", "encrypted_content", "cache_control"}
)
# Where a data: URL is a picture or a sound. Elsewhere it is words: anybody can begin a prompt with "data:".
_ADDRESSES = frozenset({"url", "image_url", "video_url", "audio_url", "file_url"})
_TOOL_RESULTS = frozenset({"tool_result", "function_call_output"})  # `type` of what comes without a role


def read_texts(body: bytes) -> tuple[Text, ...]:
    """The texts of a request in their order; none for what is no JSON object."""
    try:
        tree = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ()
    if not isinstance(tree, dict):
        return ()
    prompts = ((_SPEAKERS.get(name, "user"), value) for name, value in tree.items() if name in _PROMPTS)
    return tuple(text for role, value in prompts for text in _walk(value, role))


def estimate_tokens(texts: tuple[Text, ...]) -> int:
    """Tokens of all texts at four bytes each, about what English takes; images and files are not counted."""
    return -(-sum(len(text) if text.isascii() else len(text.encode()) for _, text in texts) // 4)


def _walk(value: Any, role: str) -> Iterator[Text]:
    """Without recursion: a body may be nested deeper than Python calls."""
    waiting = [("", value, role)]
    while waiting:
        name, value, role = waiting.pop()
        if isinstance(value, str):
            if value and not (name in _ADDRESSES and value.startswith("data:")):
                yield Text(role, value)
        elif isinstance(value, list):
            waiting += [(name, item, role) for item in reversed(value)]
        elif isinstance(value, dict):
            if role != "tools":  # a tool's definition may have a member `role`, which says nothing of who speaks
                own = value.get("role")
                role = own if isinstance(own, str) else "tool" if value.get("type") in _TOOL_RESULTS else role
            waiting += [(name, item, role) for name, item in reversed(value.items()) if name not in _NO_WORDS]
