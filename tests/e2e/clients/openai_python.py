"""The official `openai` package: every API it has, sync and async, through its plain calls and its helpers."""

from __future__ import annotations

import json
import os
from typing import Any

import openai
from driver import TOOL, TOOL_DESCRIPTION, TOOL_NAME, TOOL_RESULT, cache_status, drive, seen
from pydantic import BaseModel

MODEL = os.environ.get("SEMCACHE_E2E_MODEL", "gpt-4o-mini")
COMPLETION_MODEL = os.environ.get("SEMCACHE_E2E_MODEL", "gpt-3.5-turbo-instruct")


class Place(BaseModel):
    name: str
    floors: int
    opens_at: list[str]


def _user(question: str) -> list[Any]:
    return [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": question}]


CHAT_TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {"name": TOOL_NAME, "description": TOOL_DESCRIPTION, "parameters": TOOL, "strict": True},
    }
]


def _chat_seen(answer: Any, headers: Any = None, **more: Any) -> dict[str, Any]:
    message = answer.choices[0].message
    calls = message.tool_calls or ()
    return seen(
        message.content,
        tool=calls[0].function.name if calls else None,
        arguments=json.loads(calls[0].function.arguments) if calls else None,
        thought=getattr(message, "reasoning_content", None),
        object=message.parsed.model_dump() if getattr(message, "parsed", None) else None,
        usage=answer.usage.total_tokens if answer.usage else None,
        cache=cache_status(headers) if headers is not None else None,
        **more,
    )


class _Chat:
    def __init__(self, base: str, key: str, headers: dict[str, str]) -> None:
        self.client = self.connect(base, key, headers)
        self.model = MODEL

    def connect(self, base: str, key: str, headers: dict[str, str]) -> Any:
        return openai.OpenAI(base_url=f"{base}/v1", api_key=key, default_headers=headers, max_retries=0)

    def text(self, question: str, **more: Any) -> dict[str, Any]:
        raw = self.client.chat.completions.with_raw_response.create(model=self.model, messages=_user(question), **more)
        return _chat_seen(raw.parse(), raw.headers)

    def stream(self, question: str, **more: Any) -> dict[str, Any]:
        raw = self.client.chat.completions.with_raw_response.create(
            model=self.model, messages=_user(question), stream=True, stream_options={"include_usage": True}, **more
        )
        pieces, thoughts, usage = [], [], None
        for chunk in raw.parse():
            usage = chunk.usage or usage
            for choice in chunk.choices:
                pieces.append(choice.delta.content or "")
                thoughts.append(getattr(choice.delta, "reasoning_content", None) or "")
        return seen(
            "".join(pieces),
            pieces=len([piece for piece in pieces if piece]),
            thought="".join(thoughts) or None,
            usage=usage.total_tokens if usage else None,
            cache=cache_status(raw.headers),
        )

    def tool(self, question: str) -> dict[str, Any]:
        return self.text(question, tools=CHAT_TOOLS)

    def tool_stream(self, question: str) -> dict[str, Any]:
        with self.client.chat.completions.stream(
            model=self.model, messages=_user(question), tools=CHAT_TOOLS, stream_options={"include_usage": True}
        ) as stream:
            pieces = sum(event.type == "tool_calls.function.arguments.delta" for event in stream)
            return _chat_seen(stream.get_final_completion(), stream._response.headers, pieces=pieces)

    def loop(self, question: str) -> dict[str, Any]:
        messages = _user(question)
        message = (
            self.client.chat.completions.create(model=self.model, messages=messages, tools=CHAT_TOOLS)
            .choices[0]
            .message
        )
        call = message.tool_calls[0]
        messages += [message, {"role": "tool", "tool_call_id": call.id, "content": TOOL_RESULT}]
        raw = self.client.chat.completions.with_raw_response.create(
            model=self.model, messages=messages, tools=CHAT_TOOLS
        )
        return _chat_seen(raw.parse(), raw.headers)

    def object(self, question: str) -> dict[str, Any]:
        raw = self.client.chat.completions.with_raw_response.parse(
            model=self.model, messages=_user(question), response_format=Place
        )
        return _chat_seen(raw.parse(), raw.headers)

    def object_stream(self, question: str) -> dict[str, Any]:
        with self.client.chat.completions.stream(
            model=self.model, messages=_user(question), response_format=Place
        ) as stream:
            pieces = sum(event.type == "content.delta" for event in stream)
            return _chat_seen(stream.get_final_completion(), stream._response.headers, pieces=pieces)


class Chat(_Chat):
    def thought(self, question: str) -> dict[str, Any]:
        self.model = "deepseek-reasoner"
        return self.text(question)

    def thought_stream(self, question: str) -> dict[str, Any]:
        self.model = "deepseek-reasoner"
        return self.stream(question)

    def other(self, question: str) -> dict[str, Any]:
        return seen(", ".join(model.id for model in self.client.models.list()))


class _AsyncChat:
    def __init__(self, base: str, key: str, headers: dict[str, str]) -> None:
        self.client = self.connect(base, key, headers)
        self.model = MODEL

    def connect(self, base: str, key: str, headers: dict[str, str]) -> Any:
        return openai.AsyncOpenAI(base_url=f"{base}/v1", api_key=key, default_headers=headers, max_retries=0)

    async def text(self, question: str, **more: Any) -> dict[str, Any]:
        raw = await self.client.chat.completions.with_raw_response.create(
            model=self.model, messages=_user(question), **more
        )
        return _chat_seen(raw.parse(), raw.headers)

    async def stream(self, question: str) -> dict[str, Any]:
        async with self.client.chat.completions.stream(
            model=self.model, messages=_user(question), stream_options={"include_usage": True}
        ) as stream:
            pieces = 0
            async for event in stream:
                pieces += event.type == "content.delta"
            return _chat_seen(await stream.get_final_completion(), stream._response.headers, pieces=pieces)

    async def tool(self, question: str) -> dict[str, Any]:
        return await self.text(question, tools=CHAT_TOOLS)

    async def tool_stream(self, question: str) -> dict[str, Any]:
        async with self.client.chat.completions.stream(
            model=self.model, messages=_user(question), tools=CHAT_TOOLS, stream_options={"include_usage": True}
        ) as stream:
            pieces = 0
            async for event in stream:
                pieces += event.type == "tool_calls.function.arguments.delta"
            return _chat_seen(await stream.get_final_completion(), stream._response.headers, pieces=pieces)

    async def object(self, question: str) -> dict[str, Any]:
        raw = await self.client.chat.completions.with_raw_response.parse(
            model=self.model, messages=_user(question), response_format=Place
        )
        return _chat_seen(raw.parse(), raw.headers)


class AsyncChat(_AsyncChat):
    async def other(self, question: str) -> dict[str, Any]:
        return seen(", ".join([model.id async for model in self.client.models.list()]))


class Azure(_Chat):
    def connect(self, base: str, key: str, headers: dict[str, str]) -> Any:
        return openai.AzureOpenAI(
            azure_endpoint=base, api_key=key, api_version="2024-10-21", default_headers=headers, max_retries=0
        )


class AsyncAzure(_AsyncChat):
    def connect(self, base: str, key: str, headers: dict[str, str]) -> Any:
        return openai.AsyncAzureOpenAI(
            azure_endpoint=base, api_key=key, api_version="2024-10-21", default_headers=headers, max_retries=0
        )


RESPONSE_TOOLS: list[Any] = [
    {
        "type": "function",
        "name": TOOL_NAME,
        "description": TOOL_DESCRIPTION,
        "parameters": TOOL,
        "strict": True,
    }
]


def _response_seen(answer: Any, headers: Any, **more: Any) -> dict[str, Any]:
    calls = [item for item in answer.output if item.type == "function_call"]
    thoughts = [part.text for item in answer.output if item.type == "reasoning" for part in item.summary]
    parsed = getattr(answer, "output_parsed", None)
    return seen(
        answer.output_text or None,
        tool=calls[0].name if calls else None,
        arguments=json.loads(calls[0].arguments) if calls else None,
        thought="".join(thoughts) or None,
        object=parsed.model_dump() if parsed else None,
        usage=answer.usage.total_tokens,
        cache=cache_status(headers),
        **more,
    )


class Responses:
    def __init__(self, base: str, key: str, headers: dict[str, str]) -> None:
        self.client = openai.OpenAI(base_url=f"{base}/v1", api_key=key, default_headers=headers, max_retries=0)
        self.asked: dict[str, Any] = {"model": MODEL, "instructions": "Answer briefly.", "store": False}

    def text(self, question: str, **more: Any) -> dict[str, Any]:
        # `stream=False` goes without saying for the vendor; `transformers serve` streams unless told not to.
        raw = self.client.responses.with_raw_response.create(input=question, stream=False, **self.asked, **more)
        return _response_seen(raw.parse(), raw.headers)

    def stream(self, question: str, **more: Any) -> dict[str, Any]:
        with self.client.responses.stream(input=question, **self.asked, **more) as stream:
            pieces = sum(event.type.endswith(".delta") for event in stream)
            return _response_seen(stream.get_final_response(), stream._response.headers, pieces=pieces)

    def tool(self, question: str) -> dict[str, Any]:
        return self.text(question, tools=RESPONSE_TOOLS)

    def tool_stream(self, question: str) -> dict[str, Any]:
        return self.stream(question, tools=RESPONSE_TOOLS)

    def loop(self, question: str) -> dict[str, Any]:
        items: list[Any] = [{"role": "user", "content": question}]
        first = self.client.responses.create(input=items, tools=RESPONSE_TOOLS, **self.asked)
        call = first.output[-1]
        items += [*first.output, {"type": "function_call_output", "call_id": call.call_id, "output": TOOL_RESULT}]
        raw = self.client.responses.with_raw_response.create(input=items, tools=RESPONSE_TOOLS, **self.asked)
        return _response_seen(raw.parse(), raw.headers)

    def state(self, question: str) -> dict[str, Any]:
        """The vendor keeps the conversation, and is sent what is new."""
        self.asked["store"] = True
        first = self.client.responses.create(input=question, **self.asked)
        return self.text(f"{question} Say more.", previous_response_id=first.id)

    def object(self, question: str) -> dict[str, Any]:
        raw = self.client.responses.with_raw_response.parse(input=question, text_format=Place, **self.asked)
        return _response_seen(raw.parse(), raw.headers)

    def object_stream(self, question: str) -> dict[str, Any]:
        return self.stream(question, text_format=Place)

    def thought(self, question: str) -> dict[str, Any]:
        return self.text(question, reasoning={"effort": "low", "summary": "auto"})

    def thought_stream(self, question: str) -> dict[str, Any]:
        return self.stream(question, reasoning={"effort": "low", "summary": "auto"})


class AsyncResponses:
    def __init__(self, base: str, key: str, headers: dict[str, str]) -> None:
        self.client = openai.AsyncOpenAI(base_url=f"{base}/v1", api_key=key, default_headers=headers, max_retries=0)
        self.asked: dict[str, Any] = {"model": MODEL, "instructions": "Answer briefly.", "store": False}

    async def text(self, question: str, **more: Any) -> dict[str, Any]:
        raw = await self.client.responses.with_raw_response.create(
            input=[{"role": "user", "content": [{"type": "input_text", "text": question}]}],
            stream=False,
            **self.asked,
            **more,
        )
        return _response_seen(raw.parse(), raw.headers)

    async def stream(self, question: str) -> dict[str, Any]:
        """The events as they are, and what the last one holds: no helper puts the text together."""
        raw = await self.client.responses.with_raw_response.create(
            input=[{"role": "user", "content": [{"type": "input_text", "text": question}]}], stream=True, **self.asked
        )
        pieces, numbers, last = 0, [], None
        async for event in raw.parse():
            pieces += event.type == "response.output_text.delta"
            numbers.append(event.sequence_number)
            last = event
        if numbers != list(range(len(numbers))):
            raise ValueError(f"sequence numbers {numbers}")
        return _response_seen(last.response, raw.headers, pieces=pieces)  # type: ignore[union-attr]

    async def object(self, question: str) -> dict[str, Any]:
        raw = await self.client.responses.with_raw_response.parse(input=question, text_format=Place, **self.asked)
        return _response_seen(raw.parse(), raw.headers)


class Completions:
    def __init__(self, base: str, key: str, headers: dict[str, str]) -> None:
        self.client = openai.OpenAI(base_url=f"{base}/v1", api_key=key, default_headers=headers, max_retries=0)
        self.asked: dict[str, Any] = {"model": COMPLETION_MODEL, "max_tokens": 200}

    def text(self, question: str) -> dict[str, Any]:
        raw = self.client.completions.with_raw_response.create(prompt=question, **self.asked)
        answer = raw.parse()
        return seen(answer.choices[0].text, usage=answer.usage.total_tokens, cache=cache_status(raw.headers))

    def stream(self, question: str) -> dict[str, Any]:
        raw = self.client.completions.with_raw_response.create(
            prompt=question, stream=True, stream_options={"include_usage": True}, **self.asked
        )
        chunks = list(raw.parse())
        pieces = [choice.text for chunk in chunks for choice in chunk.choices if choice.text]
        usage = [chunk.usage.total_tokens for chunk in chunks if chunk.usage]
        return seen("".join(pieces), pieces=len(pieces), usage=usage[0], cache=cache_status(raw.headers))


class AsyncCompletions:
    def __init__(self, base: str, key: str, headers: dict[str, str]) -> None:
        self.client = openai.AsyncOpenAI(base_url=f"{base}/v1", api_key=key, default_headers=headers, max_retries=0)
        self.asked: dict[str, Any] = {"model": COMPLETION_MODEL, "max_tokens": 200}

    async def text(self, question: str) -> dict[str, Any]:
        raw = await self.client.completions.with_raw_response.create(prompt=question, **self.asked)
        return seen(raw.parse().choices[0].text, cache=cache_status(raw.headers))

    async def stream(self, question: str) -> dict[str, Any]:
        raw = await self.client.completions.with_raw_response.create(prompt=question, stream=True, **self.asked)
        pieces = [choice.text async for chunk in raw.parse() for choice in chunk.choices if choice.text]
        return seen("".join(pieces), pieces=len(pieces), cache=cache_status(raw.headers))


class Embeddings:
    """As the SDK asks by default (base64, which it decodes), then the same as floats: one entry for both."""

    def __init__(self, base: str, key: str, headers: dict[str, str]) -> None:
        self.client = openai.OpenAI(base_url=f"{base}/v1", api_key=key, default_headers=headers, max_retries=0)

    def embed(self, texts: list[str]) -> dict[str, Any]:
        raw = self.client.embeddings.with_raw_response.create(model="text-embedding-3-small", input=texts)
        answer = raw.parse()
        return seen(vectors=[one.embedding for one in answer.data], cache=cache_status(raw.headers))


class AsyncEmbeddings:
    def __init__(self, base: str, key: str, headers: dict[str, str]) -> None:
        self.client = openai.AsyncOpenAI(base_url=f"{base}/v1", api_key=key, default_headers=headers, max_retries=0)

    async def embed(self, texts: list[str]) -> dict[str, Any]:
        raw = await self.client.embeddings.with_raw_response.create(
            model="text-embedding-3-small", input=texts, encoding_format="float", dimensions=6
        )
        return seen(vectors=[one.embedding for one in raw.parse().data], cache=cache_status(raw.headers))


if __name__ == "__main__":
    drive(
        ["openai"],
        {
            "chat sync": Chat,
            "chat async": AsyncChat,
            "responses sync": Responses,
            "responses async": AsyncResponses,
            "completions sync": Completions,
            "completions async": AsyncCompletions,
            "azure sync": Azure,
            "azure async": AsyncAzure,
        },
        {"embeddings sync": Embeddings, "embeddings async": AsyncEmbeddings},
    )
