"""Tokens where an upstream tells none: near what tokenizers say, cheap, and never a crash."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from semcache import wire
from semcache.types import Ask, Usage
from semcache.usage.estimates import complete, count_tokens, estimate, estimate_aside, prompt_tokens


def asked(body: dict[str, Any], path: str = "/v1/chat/completions") -> Ask:
    raw = json.dumps(body).encode()
    address = wire.find_address(path)
    assert address is not None
    return address.dialect.parse(address, raw, CIMultiDict())


CHAT = asked({"model": "m", "messages": [{"role": "user", "content": "How do I return a jacket that is too small?"}]})


# The right column: OpenAI's o200k_base, counted once with its own vocabulary.
@pytest.mark.parametrize(
    "text, tokens",
    [
        ("", 0),
        ("How do I return a jacket that is too small?", 11),
        ("Don't put the kettle on until it's been filled, or you'll be sorry!", 15),
        ("def area(radius: float) -> float:\n    return 3.14159 * radius**2\n", 21),
        ('{"order": 20481, "items": [{"sku": "A-77", "count": 2}]}', 25),
        ("Wo finde ich die Rechnung für meine letzte Bestellung?", 10),
        ("昨日の注文をキャンセルしたいのですが、どうすればよいですか。", 19),
        ("Где мой заказ и когда он будет доставлен?", 11),
    ],
)
def test_an_estimate_is_near_what_a_tokenizer_counts(text: str, tokens: int) -> None:
    assert count_tokens(text) == pytest.approx(tokens, rel=0.45)


@given(st.text())
def test_any_text_has_a_count_within_its_bytes(text: str) -> None:
    assert 0 <= count_tokens(text) <= max(1, len(text.encode(errors="replace")))


def test_a_very_long_text_is_counted_by_its_beginning() -> None:
    assert count_tokens("word " * 1_000_000) == pytest.approx(1_000_000, rel=0.01)


def test_an_estimate_says_that_it_is_one() -> None:
    usage = estimate(CHAT, "Within thirty days.")
    assert usage == Usage(prompt_tokens(CHAT), 4, is_estimated=True)


def test_pictures_and_settings_are_not_counted_as_text() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    words = {"type": "text", "text": "What is this?"}
    seen = asked({"model": "m", "messages": [{"role": "user", "content": [words, picture]}], "seed": 1234567})
    assert prompt_tokens(seen) < 15


@pytest.mark.parametrize(
    "path, body",
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Where is my parcel?"}]}),
        ("/v1/completions", {"prompt": "Where is my parcel?"}),
        ("/v1/responses", {"input": "Where is my parcel?"}),
        ("/v1/embeddings", {"input": "Where is my parcel?"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "Where is my parcel?"}], "max_tokens": 9}),
        ("/api/chat", {"messages": [{"role": "user", "content": "Where is my parcel?"}]}),
        ("/api/generate", {"prompt": "Where is my parcel?"}),
    ],
)
def test_the_words_of_a_request_are_found_in_every_dialect(path: str, body: dict[str, Any]) -> None:
    assert 5 <= prompt_tokens(asked({"model": "m", **body}, path)) <= 9


STREAMS: dict[str, list[dict[str, Any]]] = {
    "chat": [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Within thirty"}}]},
        {"choices": [{"index": 0, "delta": {"content": " days."}, "finish_reason": "stop"}]},
    ],
    "completions": [
        {"choices": [{"index": 0, "text": "Within thirty"}]},
        {"choices": [{"index": 0, "text": " days."}]},
    ],
    "responses": [
        {"type": "response.output_text.delta", "delta": "Within thirty"},
        {"type": "response.output_text.delta", "delta": " days."},
        {"type": "response.output_text.done", "text": "Within thirty days."},
        {"type": "response.completed", "response": {"output": [{"content": [{"text": "Within thirty days."}]}]}},
    ],
    "anthropic": [
        {"type": "message_start", "message": {"content": [], "role": "assistant"}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Within thirty"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " days."}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
    ],
    "ollama": [{"message": {"role": "assistant", "content": "Within thirty"}}, {"response": " days."}],
    "chat body": [{"choices": [{"message": {"role": "assistant", "content": "Within thirty days."}}]}],
    "anthropic body": [{"type": "message", "content": [{"type": "text", "text": "Within thirty days."}]}],
}


@pytest.mark.parametrize("events", STREAMS.values(), ids=STREAMS.keys())
def test_an_answers_words_count_once_however_it_was_told(events: list[dict[str, Any]]) -> None:
    assert estimate(CHAT, [json.dumps(event).encode() for event in events]).completion_tokens == 4


values = st.recursive(st.none() | st.text(), st.lists).map(lambda value: json.dumps(value).encode())


@given(st.lists(st.binary(max_size=80) | values))
def test_parts_that_are_no_answer_are_no_crash(parts: list[bytes]) -> None:
    assert estimate(CHAT, parts).completion_tokens >= 0


async def test_what_an_upstream_told_counts_unless_its_answer_was_cut() -> None:
    parts = [json.dumps(event).encode() for event in STREAMS["anthropic"][:4]]
    told = Usage(21, 1, 8)  # as a message begins: the input, and the first token
    assert await complete(told, CHAT, parts, was_cut=False) == told
    assert await complete(told, CHAT, parts, was_cut=True) == Usage(21, 4, 8, is_estimated=True)
    assert await complete(None, CHAT, parts, was_cut=False) == estimate(CHAT, parts)


async def test_a_long_answer_is_counted_on_a_thread_and_comes_to_the_same() -> None:
    answer = "Within thirty days. " * 2_000
    assert await estimate_aside(CHAT, answer) == estimate(CHAT, answer)
