"""What stands in a context for what was taken out of it: a mark for the question's text, a digest for long data.

No JSON value is written like either, so no client can send an equal context.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import orjson

from semcache.wire.strict_json import Tree

MARK = orjson.Fragment(b"?")  # for a question that is one text

# Texts in media that are longer stand there by their digests: a picture has megabytes, sent again with every turn.
_SHORT_CHARS = 256


def take_text(holder: Tree, name: str) -> str | None:
    """Return a member that says something and leave its mark; None, and the member as it was, where it does not."""
    text = holder.get(name)
    if type(text) is not str or not text.strip():
        return None
    holder[name] = MARK
    return text


def take_content(message: Tree, text_kind: str) -> str | None:
    """Return what a message says, as a text or in parts of type `text_kind`, and leave marks in it.

    None, and the message as it was, where it says nothing. Parts are joined by line ends. Where those do not tell the
    parts apart any more, the marks carry lengths, so that ["a\\nb", "c"] and ["a", "b\\nc"], one question, are two
    contexts.
    """
    content = message.get("content")
    if type(content) is not list:
        return take_text(message, "content")
    parts: list[Tree] = [
        part
        for part in content
        if type(part) is dict and part.get("type") == text_kind and type(part.get("text")) is str
    ]
    texts = [part["text"] for part in parts]
    question = "\n".join(texts)
    if not question.strip():
        return None
    tells_apart = len(texts) == 1 or question.count("\n") == len(texts) - 1
    for part in parts:
        part["text"] = MARK if tells_apart else orjson.Fragment(b"?%d" % len(part["text"]))
    return question


def sealed(value: Any) -> Any:
    """A picture, a document, a part of any kind, with digests for its long texts: equal ones, and only those, stay
    equal."""
    if type(value) is str:
        return value if len(value) <= _SHORT_CHARS else by_digest(value)
    if type(value) is dict:
        return {key: sealed(item) for key, item in value.items()}
    if type(value) is list:
        return [sealed(item) for item in value]
    return value


def by_digest(text: str) -> orjson.Fragment:
    """What stands for a text too long to be kept."""
    return orjson.Fragment(b"#" + blake2b(text.encode(), digest_size=32).hexdigest().encode())
