"""The official `ollama` package, sync and async: chat, generate and embed of the native API."""

from __future__ import annotations

import json
from typing import Any

import ollama
from driver import TOOL, TOOL_DESCRIPTION, TOOL_NAME, TOOL_RESULT, drive, seen
from pydantic import BaseModel

MODEL = "llama3.2"
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
    message = answer.message
    call = message.tool_calls[0].function if message.tool_calls else None
    return seen(
        message.content or None,
        tool=call.name if call else None,
        arguments=dict(call.arguments) if call else None,
        thought=message.thinking,
        usage=[answer.prompt_eval_count, answer.eval_count],
        **more,
    )


def _gathered(chunks: list[Any]) -> dict[str, Any]:
    """A stream as its readers put it together: the package has no helper for that."""
    last = chunks[-1]
    if not last.done or last.done_reason != "stop":
        raise ValueError(f"the stream ended with {last}")
    calls = [call.function for chunk in chunks for call in chunk.message.tool_calls or ()]
    return seen(
        "".join(chunk.message.content or "" for chunk in chunks) or None,
        tool=calls[0].name if calls else None,
        arguments=dict(calls[0].arguments) if calls else None,
        thought="".join(chunk.message.thinking or "" for chunk in chunks) or None,
        usage=[last.prompt_eval_count, last.eval_count],
        pieces=len(chunks),
    )


class Chat:
    def __init__(self, base: str, key: str, headers: dict[str, str]) -> None:
        self.client = ollama.Client(host=base, headers={"Authorization": f"Bearer {key}", **headers})

    def text(self, question: str, **more: Any) -> dict[str, Any]:
        return _seen(self.client.chat(model=MODEL, messages=_user(question), **more))

    def stream(self, question: str, **more: Any) -> dict[str, Any]:
        return _gathered(list(self.client.chat(model=MODEL, messages=_user(question), stream=True, **more)))

    def tool(self, question: str) -> dict[str, Any]:
        return self.text(question, tools=TOOLS)

    def tool_stream(self, question: str) -> dict[str, Any]:
        return self.stream(question, tools=TOOLS)

    def loop(self, question: str) -> dict[str, Any]:
        messages = _user(question)
        first = self.client.chat(model=MODEL, messages=messages, tools=TOOLS)
        messages += [first.message, {"role": "tool", "tool_name": TOOL_NAME, "content": TOOL_RESULT}]
        return _seen(self.client.chat(model=MODEL, messages=messages, tools=TOOLS))

    def object(self, question: str) -> dict[str, Any]:
        saw = self.text(question, format=Place.model_json_schema())
        return saw | {"object": Place.model_validate_json(saw["text"]).model_dump()}

    def object_stream(self, question: str) -> dict[str, Any]:
        saw = self.stream(question, format=Place.model_json_schema())
        return saw | {"object": json.loads(saw["text"])}

    def thought(self, question: str) -> dict[str, Any]:
        return self.text(question, think=True)

    def thought_stream(self, question: str) -> dict[str, Any]:
        return self.stream(question, think=True)

    def other(self, question: str) -> dict[str, Any]:
        return seen(", ".join(model.model or "" for model in self.client.list().models))


class AsyncChat:
    def __init__(self, base: str, key: str, headers: dict[str, str]) -> None:
        self.client = ollama.AsyncClient(host=base, headers={"Authorization": f"Bearer {key}", **headers})

    async def text(self, question: str, **more: Any) -> dict[str, Any]:
        return _seen(await self.client.chat(model=MODEL, messages=_user(question), **more))

    async def stream(self, question: str) -> dict[str, Any]:
        return _gathered(
            [chunk async for chunk in await self.client.chat(model=MODEL, messages=_user(question), stream=True)]
        )

    async def tool(self, question: str) -> dict[str, Any]:
        return await self.text(question, tools=TOOLS)


class Generate:
    def __init__(self, base: str, key: str, headers: dict[str, str]) -> None:
        self.client = ollama.Client(host=base, headers={"Authorization": f"Bearer {key}", **headers})

    def text(self, question: str, **more: Any) -> dict[str, Any]:
        answer = self.client.generate(model=MODEL, prompt=question, system="Answer briefly.", **more)
        return seen(answer.response, thought=answer.thinking, usage=[answer.prompt_eval_count, answer.eval_count])

    def stream(self, question: str, **more: Any) -> dict[str, Any]:
        asked = self.client.generate(model=MODEL, prompt=question, system="Answer briefly.", stream=True, **more)
        chunks = list(asked)
        return seen(
            "".join(chunk.response or "" for chunk in chunks),
            thought="".join(chunk.thinking or "" for chunk in chunks) or None,
            usage=[chunks[-1].prompt_eval_count, chunks[-1].eval_count],
            pieces=len(chunks),
        )

    def object(self, question: str) -> dict[str, Any]:
        saw = self.text(question, format=Place.model_json_schema())
        return saw | {"object": Place.model_validate_json(saw["text"]).model_dump()}

    def thought(self, question: str) -> dict[str, Any]:
        return self.text(question, think=True)

    def thought_stream(self, question: str) -> dict[str, Any]:
        return self.stream(question, think=True)


class Embed:
    def __init__(self, base: str, key: str, headers: dict[str, str]) -> None:
        self.client = ollama.Client(host=base, headers={"Authorization": f"Bearer {key}", **headers})

    def embed(self, texts: list[str]) -> dict[str, Any]:
        return seen(vectors=[list(one) for one in self.client.embed(model="all-minilm", input=texts).embeddings])


class AsyncEmbed:
    def __init__(self, base: str, key: str, headers: dict[str, str]) -> None:
        self.client = ollama.AsyncClient(host=base, headers={"Authorization": f"Bearer {key}", **headers})

    async def embed(self, texts: list[str]) -> dict[str, Any]:
        answer = await self.client.embed(model="all-minilm", input=texts, dimensions=6)
        return seen(vectors=[list(one) for one in answer.embeddings])


if __name__ == "__main__":
    drive(
        ["ollama"],
        {"ollama sync": Chat, "ollama async": AsyncChat, "generate sync": Generate},
        {"ollama_embed sync": Embed, "ollama_embed async": AsyncEmbed},
    )
