"""OpenAI's chat completions, legacy completions, embeddings and models, built from the SDK's own types.

A field that those types require cannot be missing here; a field that they do not know is one that other servers of
this API send (`reasoning_content`), or padding that the vendor's own streams carry (`obfuscation`).
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from json import dumps
from typing import Any

import numpy as np
from openai.types import Completion, CompletionChoice, CompletionUsage, CreateEmbeddingResponse, Embedding, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage, ChatCompletionTokenLogprob
from openai.types.chat import chat_completion_chunk as chunks
from openai.types.chat.chat_completion import Choice, ChoiceLogprobs
from openai.types.chat.chat_completion_message_function_tool_call import (
    ChatCompletionMessageFunctionToolCall,
    Function,
)
from openai.types.completion_usage import CompletionTokensDetails, PromptTokensDetails
from openai.types.create_embedding_response import Usage

from tests.e2e.answers import Asked, Said, Tool

DIMENSIONS = 12  # of an embedding, where the request asks for no other number
_PADDING = "XXXXXXXXXXXX"


def sse(payload: str, event: str | None = None) -> bytes:
    return (f"event: {event}\n" if event else "").encode() + f"data: {payload}\n\n".encode()


def text_of(content: Any) -> str:
    """The text of a message's content: a string, or parts of which some are text."""
    if isinstance(content, str):
        return content
    return " ".join(part.get("text", "") for part in content or () if isinstance(part, dict))


# Chat completions


def read_chat(body: Mapping[str, Any]) -> Asked:
    messages = body["messages"]
    users = [text_of(message["content"]) for message in messages if message["role"] == "user"]
    form = body.get("response_format") or {}
    schema = form["json_schema"].get("schema") if form.get("type") == "json_schema" else None
    return Asked(
        question=users[-1] if users else "",
        tools=[
            Tool(tool["function"]["name"], tool["function"].get("parameters") or {})
            for tool in body.get("tools") or ()
            if tool.get("type") == "function"
        ],
        has_tool_result=messages[-1]["role"] == "tool",
        schema={} if form.get("type") == "json_object" else schema,
        max_tokens=body.get("max_completion_tokens") or body.get("max_tokens"),
        thinks="reason" in body["model"],
    )


def chat(body: Mapping[str, Any], said: Said, number: int) -> ChatCompletion:
    choices = [
        Choice(
            index=index,
            finish_reason=_finish(said),
            logprobs=ChoiceLogprobs(content=_logprobs(said.pieces, body), refusal=None)
            if body.get("logprobs")
            else None,
            message=_message(said, number),
        )
        for index in range(body.get("n") or 1)
    ]
    return ChatCompletion(
        id=f"chatcmpl-{number:06d}",
        object="chat.completion",
        created=int(time.time()),
        model=body["model"],
        choices=choices,
        usage=_usage(body, said),
        service_tier="default",
        system_fingerprint="fp_44709d6fcb",
    )


def _message(said: Said, number: int) -> ChatCompletionMessage:
    fields: dict[str, Any] = {"role": "assistant", "content": said.text or None, "refusal": None, "annotations": []}
    if said.is_refusal:
        fields |= {"content": None, "refusal": said.text}
    if said.thoughts:
        fields["reasoning_content"] = said.thought
    if said.call:
        function = Function(name=said.call.name, arguments=dumps(said.arguments))
        call = ChatCompletionMessageFunctionToolCall(id=f"call_{number:06d}", type="function", function=function)
        fields["tool_calls"] = [call]
    return ChatCompletionMessage(**fields)


def chat_stream(body: Mapping[str, Any], said: Said, number: int) -> Iterator[bytes]:
    """The role, thoughts, text or a call in pieces, the finish reason, and the usage to whoever asked for it."""
    options = body.get("stream_options") or {}
    includes_usage = options.get("include_usage", False)
    pads = options.get("include_obfuscation", True)
    created = int(time.time())

    def chunk(choices: list[chunks.Choice], usage: CompletionUsage | None = None) -> bytes:
        made = ChatCompletionChunk(
            id=f"chatcmpl-{number:06d}",
            object="chat.completion.chunk",
            created=created,
            model=body["model"],
            choices=choices,
            service_tier="default",
            system_fingerprint="fp_44709d6fcb",
            usage=usage,
        ).model_dump(exclude_unset=True)
        if not includes_usage:
            del made["usage"]
        for choice in made["choices"]:
            choice.setdefault("finish_reason", None)
        if pads and choices:
            made["obfuscation"] = _PADDING[: 1 + len(dumps(made)) % 11]
        return sse(dumps(made, ensure_ascii=False))

    for index in range(body.get("n") or 1):

        def delta(index: int = index, logprobs: chunks.ChoiceLogprobs | None = None, **fields: Any) -> bytes:
            return chunk(
                [chunks.Choice(index=index, delta=chunks.ChoiceDelta(**fields), logprobs=logprobs, finish_reason=None)]
            )

        yield delta(role="assistant", content=None if said.call else "", refusal=None)
        for piece in said.thoughts:
            yield delta(reasoning_content=piece)
        for piece in said.pieces:
            if said.is_refusal:
                yield delta(refusal=piece)
            else:
                wanted = body.get("logprobs")
                logprobs = chunks.ChoiceLogprobs(content=_logprobs([piece], body), refusal=None) if wanted else None
                yield delta(content=piece, logprobs=logprobs)
        if said.call:
            first = chunks.ChoiceDeltaToolCallFunction(name=said.call.name, arguments="")
            yield delta(
                tool_calls=[
                    chunks.ChoiceDeltaToolCall(index=0, id=f"call_{number:06d}", type="function", function=first)
                ]
            )
            for piece in in_pieces(dumps(said.arguments)):
                more = chunks.ChoiceDeltaToolCallFunction(arguments=piece)
                yield delta(tool_calls=[chunks.ChoiceDeltaToolCall(index=0, function=more)])
        last = chunks.Choice(index=index, delta=chunks.ChoiceDelta(), logprobs=None, finish_reason=_finish(said))
        yield chunk([last])
    if includes_usage:
        yield chunk([], _usage(body, said))
    yield sse("[DONE]")


def in_pieces(text: str, size: int = 7) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def _finish(said: Said) -> Any:
    return "tool_calls" if said.call else "length" if said.is_cut else "stop"


def _logprobs(pieces: Sequence[str], body: Mapping[str, Any]) -> list[ChatCompletionTokenLogprob]:
    top = body.get("top_logprobs") or 0
    made = []
    for piece in pieces:
        one = {"token": piece, "logprob": -0.125, "bytes": list(piece.encode())}
        made.append(ChatCompletionTokenLogprob(**one, top_logprobs=[one] * top))  # type: ignore[arg-type,list-item]
    return made


def _usage(body: Mapping[str, Any], said: Said) -> CompletionUsage:
    asked = len(dumps(body.get("messages") or body.get("prompt"))) // 4
    return CompletionUsage(
        prompt_tokens=asked,
        completion_tokens=said.tokens,
        total_tokens=asked + said.tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=0, audio_tokens=0),
        completion_tokens_details=CompletionTokensDetails(
            reasoning_tokens=len(said.thoughts),
            audio_tokens=0,
            accepted_prediction_tokens=0,
            rejected_prediction_tokens=0,
        ),
    )


# Legacy completions


def read_completion(body: Mapping[str, Any]) -> Asked:
    prompt = body["prompt"]
    return Asked(question=prompt if isinstance(prompt, str) else str(prompt[0]), max_tokens=body.get("max_tokens", 16))


def completion(body: Mapping[str, Any], said: Said, number: int) -> Completion:
    choice = CompletionChoice(index=0, text=said.text, logprobs=None, finish_reason=_finish(said))
    return Completion(
        id=f"cmpl-{number:06d}",
        object="text_completion",
        created=int(time.time()),
        model=body["model"],
        choices=[choice],
        usage=_usage(body, said),
    )


def completion_stream(body: Mapping[str, Any], said: Said, number: int) -> Iterator[bytes]:
    includes_usage = (body.get("stream_options") or {}).get("include_usage", False)
    created = int(time.time())

    def chunk(choices: list[dict[str, Any]], usage: CompletionUsage | None = None) -> bytes:
        made = Completion.construct(  # the type has no streamed choice, whose finish reason is null until the last
            id=f"cmpl-{number:06d}",
            object="text_completion",
            created=created,
            model=body["model"],
            choices=choices,
            usage=usage,
        ).model_dump(warnings=False)
        made.pop("system_fingerprint")
        if not includes_usage:
            del made["usage"]
        return sse(dumps(made, ensure_ascii=False))

    for piece in said.pieces:
        yield chunk([{"index": 0, "text": piece, "logprobs": None, "finish_reason": None}])
    yield chunk([{"index": 0, "text": "", "logprobs": None, "finish_reason": _finish(said)}])
    if includes_usage:
        yield chunk([], _usage(body, said))
    yield sse("[DONE]")


# Embeddings and models


def inputs_of(body: Mapping[str, Any]) -> list[Any]:
    """The inputs one by one: a text, texts, tokens, or lists of tokens."""
    given = body["input"]
    return [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else list(given)


def vector(text: Any, number: int, dimensions: int) -> list[float]:
    """A unit vector of float32 values that depends on the text and on the call."""
    seed = int.from_bytes(hashlib.sha256(f"{text} {number}".encode()).digest()[:8], "big")
    made = np.random.default_rng(seed).standard_normal(dimensions).astype(np.float32)
    made /= np.linalg.norm(made)
    return [float(value) for value in made]


def embeddings(body: Mapping[str, Any], number: int) -> CreateEmbeddingResponse:
    inputs = inputs_of(body)
    vectors = [vector(text, number, body.get("dimensions") or DIMENSIONS) for text in inputs]
    tokens = sum(max(1, len(text) // 4) if isinstance(text, str) else len(text) for text in inputs)
    coded: list[Any] = vectors
    if body.get("encoding_format") == "base64":
        coded = [base64.b64encode(np.asarray(made, dtype="<f4").tobytes()).decode() for made in vectors]
    return CreateEmbeddingResponse.construct(  # base64 is a string where the type, which the SDK fills, has numbers
        object="list",
        data=[Embedding.construct(object="embedding", index=index, embedding=made) for index, made in enumerate(coded)],
        model=body["model"],
        usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
    )


def models() -> dict[str, Any]:
    names = ("gpt-4o-mini", "text-embedding-3-small")
    made = [Model(id=name, object="model", created=1721172741, owned_by="system") for name in names]
    return {"object": "list", "data": [model.model_dump() for model in made]}


# Errors


def error(status: int, message: str) -> dict[str, Any]:
    """The vendor's body for a status."""
    kind = {
        400: "invalid_request_error",
        401: "invalid_request_error",
        404: "invalid_request_error",
        429: "requests",
        500: "server_error",
        503: "server_error",
    }.get(status, "server_error" if status >= 500 else "invalid_request_error")
    code = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}.get(status)
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
