"""LangChain's `langchain-openai` and `langchain-anthropic`, sync and async, and its embeddings."""

from __future__ import annotations

from typing import Any

from driver import TOOL_DESCRIPTION, TOOL_NAME, TOOL_RESULT, cache_status, drive, seen
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import AzureChatOpenAI, ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel


class Place(BaseModel):
    """A place to visit."""

    name: str
    floors: int
    opens_at: list[str]


@tool(TOOL_NAME, description=TOOL_DESCRIPTION)
def look_up_weather(place: str, days: int) -> str:
    return f"{TOOL_RESULT} ({place}, {days})"


def _asked(question: str) -> list[Any]:
    return [SystemMessage("Answer briefly."), HumanMessage(question)]


def _seen(message: Any, **more: Any) -> dict[str, Any]:
    call = message.tool_calls[0] if message.tool_calls else None
    blocks = message.content if isinstance(message.content, list) else ()
    thoughts = [block.get("thinking", "") for block in blocks if block["type"] == "thinking"]
    for block in blocks:
        if block["type"] == "reasoning":
            thoughts += [part["text"] for part in block["summary"]]
    headers = message.response_metadata.get("headers")
    usage = message.usage_metadata
    return seen(
        message.text or None,
        tool=call["name"] if call else None,
        arguments=call["args"] if call else None,
        thought="".join(thoughts) or None,
        usage=usage["total_tokens"] if usage else None,
        cache=cache_status(headers) if headers else None,
        **more,
    )


class Chat:
    """What LangChain gives every model alike: invoke, stream, tools and structured output."""

    def __init__(self, base: str, key: str, headers: dict[str, str]) -> None:
        self.model = self.connect(base, key, headers)

    def connect(self, base: str, key: str, headers: dict[str, str], **more: Any) -> Any:
        return ChatOpenAI(
            model="gpt-4o-mini",
            base_url=f"{base}/v1",
            api_key=key,  # type: ignore[arg-type]
            default_headers=headers,
            max_retries=0,
            include_response_headers=True,
            stream_usage=True,
            **more,
        )

    def text(self, question: str) -> dict[str, Any]:
        return _seen(self.model.invoke(_asked(question)))

    def stream(self, question: str, model: Any = None) -> dict[str, Any]:
        whole, pieces = None, 0
        for chunk in (model or self.model).stream(_asked(question)):
            pieces += bool(chunk.content)
            whole = chunk if whole is None else whole + chunk
        return _seen(whole, pieces=pieces)

    def tool(self, question: str) -> dict[str, Any]:
        return _seen(self.model.bind_tools([look_up_weather]).invoke(_asked(question)))

    def tool_stream(self, question: str) -> dict[str, Any]:
        whole, pieces = None, 0
        for chunk in self.model.bind_tools([look_up_weather]).stream(_asked(question)):
            pieces += bool(chunk.tool_call_chunks)
            whole = chunk if whole is None else whole + chunk
        return _seen(whole, pieces=pieces)

    def loop(self, question: str) -> dict[str, Any]:
        model, messages = self.model.bind_tools([look_up_weather]), _asked(question)
        first = model.invoke(messages)
        assert isinstance(first, AIMessage)
        messages += [first, *(ToolMessage(TOOL_RESULT, tool_call_id=call["id"]) for call in first.tool_calls)]
        return _seen(model.invoke(messages))

    def object(self, question: str) -> dict[str, Any]:
        model = self.model.with_structured_output(Place, method="json_schema")
        return seen(object=model.invoke(_asked(question)).model_dump())


class AsyncChat(Chat):
    async def text(self, question: str) -> dict[str, Any]:  # type: ignore[override]
        return _seen(await self.model.ainvoke(_asked(question)))

    async def stream(self, question: str) -> dict[str, Any]:  # type: ignore[override]
        whole, pieces = None, 0
        async for chunk in self.model.astream(_asked(question)):
            pieces += bool(chunk.content)
            whole = chunk if whole is None else whole + chunk
        return _seen(whole, pieces=pieces)

    async def object(self, question: str) -> dict[str, Any]:  # type: ignore[override]
        model = self.model.with_structured_output(Place, method="json_schema")
        return seen(object=(await model.ainvoke(_asked(question))).model_dump())


class Azure(Chat):
    def connect(self, base: str, key: str, headers: dict[str, str], **more: Any) -> Any:
        return AzureChatOpenAI(
            azure_deployment="gpt-4o-mini",
            azure_endpoint=base,
            api_version="2024-10-21",
            api_key=key,  # type: ignore[arg-type]
            default_headers=headers,
            max_retries=0,
            stream_usage=True,
        )


class Responses(Chat):
    def connect(self, base: str, key: str, headers: dict[str, str], **more: Any) -> Any:
        return super().connect(base, key, headers, use_responses_api=True, store=False, **more)

    def thought(self, question: str) -> dict[str, Any]:
        return _seen(self.model.bind(reasoning={"effort": "low", "summary": "auto"}).invoke(_asked(question)))

    def thought_stream(self, question: str) -> dict[str, Any]:
        return self.stream(question, self.model.bind(reasoning={"effort": "low", "summary": "auto"}))


class Anthropic(Chat):
    def connect(self, base: str, key: str, headers: dict[str, str], **more: Any) -> Any:
        return ChatAnthropic(
            model="claude-sonnet-4-5",  # type: ignore[call-arg]
            base_url=base,
            api_key=key,  # type: ignore[arg-type]
            default_headers=headers,
            max_retries=0,
            max_tokens=4000,  # type: ignore[call-arg]
        )

    def thought(self, question: str) -> dict[str, Any]:
        return _seen(self.model.bind(thinking={"type": "enabled", "budget_tokens": 1024}).invoke(_asked(question)))

    def thought_stream(self, question: str) -> dict[str, Any]:
        return self.stream(question, self.model.bind(thinking={"type": "enabled", "budget_tokens": 1024}))


class AsyncAnthropic(AsyncChat):
    connect = Anthropic.connect


class Embeddings:
    """Texts as they are: by default LangChain cuts them into tokens, with a vocabulary that it has to download."""

    def __init__(self, base: str, key: str, headers: dict[str, str]) -> None:
        self.model = OpenAIEmbeddings(
            model="text-embedding-3-small",
            base_url=f"{base}/v1",
            api_key=key,  # type: ignore[arg-type]
            default_headers=headers,
            max_retries=0,
            check_embedding_ctx_length=False,
        )

    def embed(self, texts: list[str]) -> dict[str, Any]:
        return seen(vectors=self.model.embed_documents(texts))


class AsyncEmbeddings(Embeddings):
    async def embed(self, texts: list[str]) -> dict[str, Any]:  # type: ignore[override]
        return seen(vectors=await self.model.aembed_documents(texts))


if __name__ == "__main__":
    drive(
        ["langchain-openai", "langchain-anthropic", "langchain-core"],
        {
            "chat sync": Chat,
            "chat async": AsyncChat,
            "responses sync": Responses,
            "azure sync": Azure,
            "messages sync": Anthropic,
            "messages async": AsyncAnthropic,
        },
        {"embeddings sync": Embeddings, "embeddings async": AsyncEmbeddings},
    )
