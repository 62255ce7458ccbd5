"""What the upstream says to a request, whichever vendor it plays: decided here, rendered by the vendor's own file.

Every text and every value carries the number of the call, so two answers are equal only when one was stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TOO_FEW_TOKENS = 8  # an answer that may be no longer than this is cut


@dataclass(frozen=True)
class Tool:
    name: str
    schema: Mapping[str, Any]


@dataclass(frozen=True)
class Asked:
    """A request as every vendor's can be read."""

    question: str  # the last text of the user
    tools: Sequence[Tool] = ()
    has_tool_result: bool = False
    schema: Mapping[str, Any] | None = None  # of a structured output; {} for any JSON object
    max_tokens: int | None = None
    thinks: bool = False


@dataclass(frozen=True)
class Said:
    """An answer before it has a wire format."""

    pieces: Sequence[str] = ()  # of the text, as a stream brings them
    thoughts: Sequence[str] = ()
    call: Tool | None = None
    arguments: Mapping[str, Any] | None = None  # of the call
    is_refusal: bool = False
    is_cut: bool = False  # the limit of tokens ended it

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def thought(self) -> str:
        return "".join(self.thoughts)

    @property
    def tokens(self) -> int:
        return len(self.pieces) + len(self.thoughts) + (12 if self.call else 0)


def say(asked: Asked, number: int) -> Said:
    """Answer the call with this number.

    1. Asked to refuse: a refusal. 2. Tools and no result of one yet: a call of the first. 3. A schema: JSON that fits.
    4. Else a text, cut when it may not be long.
    """
    thoughts = _in_words(f"Thought {number}: weigh both sides, then answer.") if asked.thinks else ()
    if "please refuse" in asked.question.lower():
        return Said(_in_words(f"I cannot help with that, call {number}."), thoughts, is_refusal=True)
    if asked.tools and not asked.has_tool_result:
        tool = asked.tools[0]
        return Said((), thoughts, call=tool, arguments=sample(tool.schema, number))
    if asked.schema is not None:
        from json import dumps

        return Said(_in_words(dumps(sample(asked.schema, number) or {"number": number}, ensure_ascii=False)), thoughts)
    # Letters beyond ASCII and one beyond the basic plane: a stream may be split inside any of them.
    words = _in_words(f"Answer {number}: it is in the café, on the left — naïve but true 🥐, as always.")
    if asked.max_tokens is not None and asked.max_tokens <= TOO_FEW_TOKENS:
        return Said(words[: asked.max_tokens], thoughts, is_cut=True)
    return Said(words, thoughts)


def sample(schema: Mapping[str, Any], number: int, root: Mapping[str, Any] | None = None) -> Any:
    """A value that fits a JSON schema as the SDKs write them, with the call's number wherever there is room for it."""
    root = schema if root is None else root
    if "$ref" in schema:
        target: Any = root
        for step in schema["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        return sample(target, number, root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    for choice in ("anyOf", "oneOf", "allOf"):
        if choice in schema:
            return sample(schema[choice][0], number, root)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = next(name for name in kind if name != "null")
    match kind:
        case "object":
            return {name: sample(field, number, root) for name, field in schema.get("properties", {}).items()}
        case "array":
            return [sample(schema.get("items", {}), number, root) for _ in range(max(1, schema.get("minItems", 1)))]
        case "integer":
            return number
        case "number":
            return number + 0.5
        case "boolean":
            return True
        case "null":
            return None
    return f"value {number}, “quoted”"


def _in_words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\S+\s*", text))
