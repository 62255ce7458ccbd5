"""LlamaIndex: its OpenAI and Anthropic language models, sync and async, and its OpenAI embeddings."""

from __future__ import annotations

from typing import Any

from driver import TOOL_DESCRIPTION, TOOL_NAME, TOOL_RESULT, drive, seen
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.llms.anthropic import Anthropic as AnthropicModel
from llama_index.llms.openai import OpenAI, OpenAIResponses
from pydantic import BaseModel


class Place(BaseModel):
    """A place to visit."""

    name: str
    floors: int
    opens_at: list[str]


def look_up_weather(place: str, days: int) -> str:
    return f"{TOOL_RESULT} ({place}, {days})"


TOOL = FunctionTool.from_defaults(look_up_weather, name=TOOL_NAME, description=TOOL_DESCRIPTION)


def _asked(question: str) -> list[ChatMessage]:
    return [ChatMessage(role="system", content="Answer briefly."), ChatMessage(role="user", content=question)]


def _seen(model: Any, answer: Any, **more: Any) -> dict[str, Any]:
    calls = model.get_tool_calls_from_response(answer, error_on_no_tool_call=False)
    thoughts = [block.content for block in answer.message.blocks if block.block_type == "thinking" and block.content]
    return seen(
        answer.message.content or None,
        tool=calls[0].tool_name if calls else None,
        arguments=calls[0].tool_kwargs if calls else None,
        thought="".join(thoughts) or None,
        **more,
    )


class Chat:
    def __init__(self, base: str, key: str, headers: dict[str, str]) -> None:
        self.model = self.connect(base, key, headers)

    def connect(self, base: str, key: str, headers: dict[str, str]) -> Any:
        return OpenAI(
            model="gpt-4o-mini", api_base=f"{base}/v1", api_key=key, default_headers=headers or None, max_retries=0
        )

    def text(self, question: str) -> dict[str, Any]:
        return _seen(self.model, self.model.chat(_asked(question)))

    def stream(self, question: str) -> dict[str, Any]:
        chunks = list(self.model.stream_chat(_asked(question)))
        return _seen(self.model, chunks[-1], pieces=sum(bool(chunk.delta) for chunk in chunks))

    def tool(self, question: str) -> dict[str, Any]:
        return _seen(self.model, self.model.chat_with_tools([TOOL], chat_history=_asked(question)))

    def loop(self, question: str) -> dict[str, Any]:
        messages = _asked(question)
        first = self.model.chat_with_tools([TOOL], chat_history=messages)
        call = self.model.get_tool_calls_from_response(first)[0]
        told = ChatMessage(role=MessageRole.TOOL, content=TOOL_RESULT, additional_kwargs={"tool_call_id": call.tool_id})
        return _seen(self.model, self.model.chat_with_tools([TOOL], chat_history=[*messages, first.message, told]))

    def object(self, question: str) -> dict[str, Any]:
        return seen(object=self.model.as_structured_llm(Place).chat(_asked(question)).raw.model_dump())


class AsyncChat:
    def __init__(self, base: str, key: str, headers: dict[str, str]) -> None:
        self.model = self.connect(base, key, headers)

    connect = Chat.connect

    async def text(self, question: str) -> dict[str, Any]:
        return _seen(self.model, await self.model.achat(_asked(question)))

    async def stream(self, question: str) -> dict[str, Any]:
        chunks = [chunk async for chunk in await self.model.astream_chat(_asked(question))]
        return _seen(self.model, chunks[-1], pieces=sum(bool(chunk.delta) for chunk in chunks))


class Responses(Chat):
    def connect(self, base: str, key: str, headers: dict[str, str]) -> Any:
        return OpenAIResponses(
            model="gpt-4o-mini",
            api_base=f"{base}/v1",
            api_key=key,
            default_headers=headers or None,
            max_retries=0,
            store=False,
        )


class Messages(Chat):
    def connect(self, base: str, key: str, headers: dict[str, str], **more: Any) -> Any:
        return AnthropicModel(
            model="claude-sonnet-4-5",
            base_url=base,
            api_key=key,
            default_headers=headers or None,
            max_retries=0,
            max_tokens=4000,
            **more,
        )


class AsyncMessages(AsyncChat):
    connect = Messages.connect


class Embeddings:
    def __init__(self, base: str, key: str, headers: dict[str, str]) -> None:
        self.model = OpenAIEmbedding(
            model="text-embedding-3-small",
            api_base=f"{base}/v1",
            api_key=key,
            default_headers=headers or None,
            max_retries=1,  # it takes no 0
        )

    def embed(self, texts: list[str]) -> dict[str, Any]:
        return seen(vectors=self.model.get_text_embedding_batch(texts))


class AsyncEmbeddings(Embeddings):
    async def embed(self, texts: list[str]) -> dict[str, Any]:  # type: ignore[override]
        return seen(vectors=await self.model.aget_text_embedding_batch(texts))


if __name__ == "__main__":
    drive(
        ["llama-index-core", "llama-index-llms-openai", "llama-index-llms-anthropic", "llama-index-embeddings-openai"],
        {
            "chat sync": Chat,
            "chat async": AsyncChat,
            "responses sync": Responses,
            "messages sync": Messages,
            "messages async": AsyncMessages,
        },
        {"embeddings sync": Embeddings, "embeddings async": AsyncEmbeddings},
    )
