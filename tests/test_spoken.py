"""What an answer says: the same text from a body and from a stream, and none where it is more than a text."""

from __future__ import annotations

import json

import pytest

from semcache import wire
from semcache.types import Answer, Form
from semcache.wire import SpokenDialect
from semcache.wire.plain import PlainText
from tests import recordings_anthropic, recordings_chat, recordings_completions
from tests.replies import read_reply
from tests.stage import PARTS, Part

JSON = {"content-type": "application/json"}


def answer_to(part: Part, stream: bool) -> Answer:
    kind = "application/x-ndjson" if part.name == "ollama" else "text/event-stream"
    headers = {"content-type": kind} if stream else JSON
    asked = json.dumps(part.asking(stream)).encode()
    _, reading = read_reply(part.path, asked, part.stream if stream else part.body, headers)
    assert reading.answer is not None
    return reading.answer


def spoken(path: str, answer: Answer) -> str | None:
    address = wire.find_address(path)
    assert address is not None and isinstance(address.dialect, SpokenDialect)
    return address.dialect.spoken(answer)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_a_stream_says_what_its_body_says(part: Part) -> None:
    said = [spoken(part.path, answer_to(part, stream)) for stream in (True, False)]
    assert said[0] is not None and said[0] == said[1]
    assert said[0].strip().lower().startswith("four days")


def body(tree: object) -> Answer:
    return Answer("openai", Form.JSON, (json.dumps(tree).encode(),))


@pytest.mark.parametrize(
    "path, tree",
    [
        ("/v1/chat/completions", recordings_chat.completion({"content": "a", "tool_calls": [{"id": "1"}]})),
        ("/v1/chat/completions", recordings_chat.completion({"content": None, "refusal": "I cannot help."})),
        ("/v1/chat/completions", recordings_chat.completion({"content": " \n"})),
        ("/v1/chat/completions", {"choices": []}),
        ("/v1/chat/completions", {"choices": [{"message": {"content": "a"}, "finish_reason": "length"}]}),
        ("/v1/chat/completions", {"choices": [{"message": {"content": t}, "finish_reason": "stop"} for t in "ab"]}),
        ("/v1/completions", {"choices": [recordings_completions.says("a", "length")]}),
        ("/v1/messages", {"stop_reason": "tool_use", "content": [{"type": "text", "text": "a"}]}),
        ("/v1/messages", {"stop_reason": "end_turn", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}),
        ("/v1/responses", {"status": "completed", "output": [{"type": "function_call", "arguments": "{}"}]}),
        ("/v1/responses", {"status": "incomplete", "output": []}),
        ("/api/chat", {"message": {"content": "", "tool_calls": [{}]}, "done_reason": "stop"}),
        ("/api/generate", {"response": "a", "done_reason": "length"}),
        ("/api/generate", {}),
    ],
)
def test_what_is_no_plain_text_says_nothing(path: str, tree: object) -> None:
    assert spoken(path, body(tree)) is None


def test_thoughts_are_not_said() -> None:
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "x"}
    tree = {"stop_reason": "end_turn", "content": [thought, {"type": "text", "text": "Four days."}]}
    assert spoken("/v1/messages", body(tree)) == "Four days."


def test_a_message_of_several_blocks_is_one_text() -> None:
    stream = recordings_anthropic.message(recordings_anthropic.text("Four"), recordings_anthropic.text(" days."))
    answer = Answer("anthropic", Form.STREAM, tuple(json.dumps(event).encode() for event in stream))
    assert spoken("/v1/messages", answer) == "Four days."


def test_parts_that_cannot_be_read_say_nothing() -> None:
    assert spoken("/v1/chat/completions", Answer("openai", Form.JSON, (b"{",))) is None


def test_a_program_gets_its_text() -> None:
    assert PlainText().spoken(Answer("program", Form.JSON, ("Größe: 5".encode(),))) == "Größe: 5"
    assert PlainText().spoken(Answer("program", Form.JSON, (b"",))) is None
