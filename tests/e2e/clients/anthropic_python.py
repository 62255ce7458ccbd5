"""The official `anthropic` package, sync and async: plain calls, the stream helper, parsed outputs, the tool runner."""

from __future__ import annotations

import json
from typing import Any

import anthropic
from driver import TOOL, TOOL_DESCRIPTION, TOOL_NAME, TOOL_RESULT, cache_status, drive, seen
from pydantic import BaseModel

TOOLS: list[Any] = [{"name": TOOL_NAME, "description": TOOL_DESCRIPTION, "input_schema": TOOL}]
THINKING: Any = {"type": "enabled", "budget_tokens": 1024}


class Place(BaseModel):
    name: str
    floors: int
    opens_at: list[str]


@anthropic.beta_tool(name=TOOL_NAME, description=TOOL_DESCRIPTION)
def look_up_weather(place: str, days: int) -> str:
    return f"{TOOL_RESULT} ({place}, {days})"


@anthropic.beta_async_tool(name=TOOL_NAME, description=TOOL_DESCRIPTION)
async def look_up_weather_async(place: str, days: int) -> str:
    return f"{TOOL_RESULT} ({place}, {days})"


def _asked(question: str) -> dict[str, Any]:
    """With a breakpoint for the vendor's own prompt cache, as services write it."""
    return {
        "model": "claude-sonnet-4-5",
        "max_tokens": 4000,
        "system": [{"type": "text", "text": "Answer briefly.", "cache_control": {"type": "ephemeral"}}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": question}]}],
    }


def _seen(message: Any, headers: Any = None, **more: Any) -> dict[str, Any]:
    blocks = {block.type: block for block in message.content}
    tool, thinking = blocks.get("tool_use"), blocks.get("thinking")
    parsed = getattr(message, "parsed_output", None)
    usage = message.usage
    return seen(
        "".join(block.text for block in message.content if block.type == "text") or None,
        tool=tool.name if tool else None,
        arguments=tool.input if tool else None,
        thought=f"{thinking.thinking} [{thinking.signature}]" if thinking else None,
        object=parsed.model_dump() if parsed else None,
        usage=[usage.input_tokens, usage.output_tokens, usage.cache_read_input_tokens],
        cache=cache_status(headers) if headers is not None else None,
        **more,
    )


class Messages:
    def __init__(self, base: str, key: str, headers: dict[str, str]) -> None:
        self.client = anthropic.Anthropic(base_url=base, api_key=key, default_headers=headers, max_retries=0)

    def text(self, question: str, **more: Any) -> dict[str, Any]:
        raw = self.client.messages.with_raw_response.create(**_asked(question), **more)
        return _seen(raw.parse(), raw.headers)

    def stream(self, question: str, **more: Any) -> dict[str, Any]:
        with self.client.messages.stream(**_asked(question), **more) as stream:
            pieces = list(stream.text_stream)
            message = stream.get_final_message()
            if "".join(pieces) != "".join(block.text for block in message.content if block.type == "text"):
                raise ValueError("the text as it came is not the text of the message")
            return _seen(message, stream.response.headers, pieces=len(pieces))

    def tool(self, question: str) -> dict[str, Any]:
        return self.text(question, tools=TOOLS)

    def tool_stream(self, question: str) -> dict[str, Any]:
        return self.stream(question, tools=TOOLS)

    def loop(self, question: str) -> dict[str, Any]:
        return self._run_tools(question, thread=False)

    def state(self, question: str) -> dict[str, Any]:
        """As the runner goes by default: the vendor keeps the conversation, and is sent what is new."""
        return self._run_tools(question)

    def _run_tools(self, question: str, **more: Any) -> dict[str, Any]:
        runner = self.client.beta.messages.tool_runner(**_asked(question), tools=[look_up_weather], **more)
        return _seen(runner.until_done())

    def object(self, question: str) -> dict[str, Any]:
        return _seen(self.client.messages.parse(**_asked(question), output_format=Place))

    def object_stream(self, question: str) -> dict[str, Any]:
        return self.stream(question, output_format=Place)

    def thought(self, question: str) -> dict[str, Any]:
        return self.text(question, thinking=THINKING)

    def thought_stream(self, question: str) -> dict[str, Any]:
        return self.stream(question, thinking=THINKING)

    def other(self, question: str) -> dict[str, Any]:
        counted = self.client.messages.count_tokens(
            model="claude-sonnet-4-5", messages=[{"role": "user", "content": question}]
        )
        return seen(f"{counted.input_tokens} tokens")


class AsyncMessages:
    def __init__(self, base: str, key: str, headers: dict[str, str]) -> None:
        self.client = anthropic.AsyncAnthropic(base_url=base, api_key=key, default_headers=headers, max_retries=0)

    async def text(self, question: str, **more: Any) -> dict[str, Any]:
        raw = await self.client.messages.with_raw_response.create(**_asked(question), **more)
        return _seen(await raw.parse(), raw.headers)

    async def stream(self, question: str) -> dict[str, Any]:
        async with self.client.messages.stream(**_asked(question)) as stream:
            pieces = [piece async for piece in stream.text_stream]
            return _seen(await stream.get_final_message(), stream.response.headers, pieces=len(pieces))

    async def tool(self, question: str) -> dict[str, Any]:
        return await self.text(question, tools=TOOLS)

    async def tool_stream(self, question: str) -> dict[str, Any]:
        """The events as they are: no helper puts the message together."""
        raw = await self.client.messages.create(**_asked(question), tools=TOOLS, stream=True)
        kinds, text, given = [], "", ""
        async for event in raw:
            kinds.append(event.type)
            if event.type == "content_block_delta":
                text += getattr(event.delta, "text", "")
                given += getattr(event.delta, "partial_json", "")
        if kinds[0] != "message_start" or kinds[-2:] != ["message_delta", "message_stop"]:
            raise ValueError(f"events in a wrong order: {kinds}")
        return seen(text, tool=TOOL_NAME, arguments=json.loads(given), pieces=kinds.count("content_block_delta"))

    async def loop(self, question: str) -> dict[str, Any]:
        runner = self.client.beta.messages.tool_runner(**_asked(question), tools=[look_up_weather_async], thread=False)
        return _seen(await runner.until_done())

    async def object(self, question: str) -> dict[str, Any]:
        return _seen(await self.client.messages.parse(**_asked(question), output_format=Place))

    async def thought(self, question: str) -> dict[str, Any]:
        return await self.text(question, thinking=THINKING)


if __name__ == "__main__":
    drive(["anthropic"], {"messages sync": Messages, "messages async": AsyncMessages})
