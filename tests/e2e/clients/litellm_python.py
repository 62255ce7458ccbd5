"""LiteLLM as a client: its `completion` and `embedding` towards the OpenAI, Anthropic and Ollama providers."""

from __future__ import annotations

import json
import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask a web site for prices

import litellm
from driver import TOOL, TOOL_DESCRIPTION, TOOL_NAME, TOOL_RESULT, drive, seen
from pydantic import BaseModel

litellm.suppress_debug_info = True
litellm.telemetry = False

TOOLS: list[Any] = [
    {"type": "function", "function": {"name": TOOL_NAME, "description": TOOL_DESCRIPTION, "parameters": TOOL}}
]


class Place(BaseModel):
    name: str
    floors: int
    opens_at: list[str]


def _user(question: str) -> list[Any]:
    return [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": question}]


def _seen(answer: Any, **more: Any) -> dict[str, Any]:
    message = answer.choices[0].message
    calls = message.tool_calls or ()
    cache = (getattr(answer, "_hidden_params", None) or {}).get("additional_headers", {})
    return seen(
        message.content or None,
        tool=calls[0].function.name if calls else None,
        arguments=json.loads(calls[0].function.arguments) if calls else None,
        thought=getattr(message, "reasoning_content", None),
        usage=answer.usage.total_tokens,
        cache=cache.get("llm_provider-cache-status"),
        **more,
    )


class Chat:
    model, prefix = "openai/gpt-4o-mini", "/v1"

    def __init__(self, base: str, key: str, headers: dict[str, str]) -> None:
        self.asked = {
            "model": self.model,
            "api_base": f"{base}{self.prefix}",
            "api_key": key,
            "extra_headers": headers,
            "max_retries": 0,
            "num_retries": 0,
        }

    def text(self, question: str, **more: Any) -> dict[str, Any]:
        return _seen(litellm.completion(messages=_user(question), **self.asked, **more))

    def stream(self, question: str, **more: Any) -> dict[str, Any]:
        messages = _user(question)
        chunks = list(
            litellm.completion(
                messages=messages, stream=True, stream_options={"include_usage": True}, **self.asked, **more
            )
        )
        pieces = sum(bool(choice.delta.content or choice.delta.tool_calls) for one in chunks for choice in one.choices)
        return _seen(litellm.stream_chunk_builder(chunks, messages=messages), pieces=pieces)

    def tool(self, question: str) -> dict[str, Any]:
        return self.text(question, tools=TOOLS)

    def tool_stream(self, question: str) -> dict[str, Any]:
        return self.stream(question, tools=TOOLS)

    def loop(self, question: str) -> dict[str, Any]:
        messages = _user(question)
        message = litellm.completion(messages=messages, tools=TOOLS, **self.asked).choices[0].message
        call = message.tool_calls[0]
        messages += [message, {"role": "tool", "tool_call_id": call.id, "name": TOOL_NAME, "content": TOOL_RESULT}]
        return _seen(litellm.completion(messages=messages, tools=TOOLS, **self.asked))

    def object(self, question: str) -> dict[str, Any]:
        saw = self.text(question, response_format=Place)
        return saw | {"object": Place.model_validate_json(saw["text"]).model_dump()}


class ReasoningChat(Chat):
    def thought(self, question: str) -> dict[str, Any]:
        self.asked["model"] = "openai/deepseek-reasoner"
        return self.text(question)

    def thought_stream(self, question: str) -> dict[str, Any]:
        self.asked["model"] = "openai/deepseek-reasoner"
        return self.stream(question)


class AsyncChat:
    model, prefix = Chat.model, Chat.prefix
    __init__ = Chat.__init__

    async def text(self, question: str, **more: Any) -> dict[str, Any]:
        return _seen(await litellm.acompletion(messages=_user(question), **self.asked, **more))

    async def stream(self, question: str) -> dict[str, Any]:
        messages = _user(question)
        asked = await litellm.acompletion(
            messages=messages, stream=True, stream_options={"include_usage": True}, **self.asked
        )
        chunks = [chunk async for chunk in asked]
        pieces = sum(bool(choice.delta.content) for chunk in chunks for choice in chunk.choices)
        return _seen(litellm.stream_chunk_builder(chunks, messages=messages), pieces=pieces)


class Anthropic(Chat):
    model, prefix = "anthropic/claude-sonnet-4-5", ""

    def __init__(self, base: str, key: str, headers: dict[str, str]) -> None:
        super().__init__(base, key, headers)
        self.asked["max_tokens"] = 4000

    def thought(self, question: str) -> dict[str, Any]:
        return self.text(question, thinking={"type": "enabled", "budget_tokens": 1024})

    def thought_stream(self, question: str) -> dict[str, Any]:
        return self.stream(question, thinking={"type": "enabled", "budget_tokens": 1024})


class AsyncAnthropic(AsyncChat):
    model, prefix = Anthropic.model, Anthropic.prefix


class Ollama(Chat):
    model, prefix = "ollama_chat/llama3.2", ""

    def tool_stream(self, question: str) -> dict[str, Any]:
        saw = super().tool_stream(question)
        del saw["pieces"]  # Ollama sends a call whole
        return saw


class AsyncOllama(AsyncChat):
    model, prefix = Ollama.model, Ollama.prefix


class Embeddings:
    model, prefix = "openai/text-embedding-3-small", "/v1"
    __init__ = Chat.__init__

    def embed(self, texts: list[str]) -> dict[str, Any]:
        answer = litellm.embedding(input=texts, **self.asked)
        return seen(vectors=[one["embedding"] for one in answer.data])


class OllamaEmbed(Embeddings):
    model, prefix = "ollama/all-minilm", ""
    sends_headers = sends_key = False  # this provider's embeddings take both and drop them


if __name__ == "__main__":
    drive(
        ["litellm"],
        {
            "chat sync": ReasoningChat,
            "chat async": AsyncChat,
            "messages sync": Anthropic,
            "messages async": AsyncAnthropic,
            "ollama sync": Ollama,
            "ollama async": AsyncOllama,
        },
        {"embeddings sync": Embeddings, "ollama_embed sync": OllamaEmbed},
    )
