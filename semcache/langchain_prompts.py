"""What LangChain asks and what a model said, as far as a cache must know: question, context, what may be kept."""

from __future__ import annotations

import json
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.outputs import Generation

_WORDS = frozenset(("text", "reasoning", "thinking", "redacted_thinking"))
_NATURAL_ENDS = frozenset(("stop", "end_turn", "stop_sequence", "completed"))


def take_question(prompt: str, llm_string: str) -> tuple[str, Any]:
    """The question and its context. "" where near is not near enough: with tools, with media; all is context then."""
    try:
        messages = [{"class": message["id"], **message["kwargs"]} for message in json.loads(prompt)]
        last = messages[-1]
    except (ValueError, TypeError, LookupError):
        return prompt, llm_string  # of a model that is no chat model
    for message in messages:
        message.pop("usage_metadata", None)  # a hit shows other figures than its miss, and no model sees them
    is_text = all(map(_is_text, messages)) and not any(f"('{name}', " in llm_string for name in ("functions", "tools"))
    question = ""
    if is_text and last["type"] == "human":
        parts = [last["content"]] if isinstance(last["content"], str) else last["content"]
        texts = [part if isinstance(part, str) else part["text"] for part in parts]
        question = "\n".join(texts)
        # The lengths tell ["a\nb", "c"] from ["a", "b\nc"].
        last["content"] = [[isinstance(part, dict) and {**part, "text": ""} for part in parts], [*map(len, texts[1:])]]
    return question, [llm_string, json.dumps(messages)]


def _is_text(message: dict[str, Any]) -> bool:
    """Nothing but text, and no part of an agent's loop."""
    parts = message["content"] if isinstance(message["content"], list) else ()
    is_text = all(isinstance(part, str) or (part.get("type") == "text" and "text" in part) for part in parts)
    return is_text and not message.get("tool_calls") and message["type"] in ("system", "human", "ai")


def may_keep(generation: Generation) -> bool:
    """As the proxy does: whole answers in words, and no calls of tools."""
    message = getattr(generation, "message", None) or AIMessage(generation.text)
    told = {**(generation.generation_info or {}), **message.response_metadata}
    ends = [told[name] for name in ("finish_reason", "stop_reason", "done_reason", "status") if told.get(name)]
    calls = [getattr(message, name, None) for name in ("tool_calls", "invalid_tool_calls")]
    kinds = {part.get("type") for part in message.content if isinstance(part, dict)}
    is_whole = all(str(end).lower() in _NATURAL_ENDS for end in ends)
    return is_whole and bool(generation.text.strip()) and not any(calls) and kinds <= _WORDS
