"""OpenAI's embeddings: a batch in which every input is a request of its own, answered by equality, never by meaning.

Each input has its own entry, whatever batch it came in, and one entry serves both encodings: `float` and `base64` say
the same float32 values. A vendor tells the tokens of a batch only as a whole, so an item's entry has its share of them,
by the length of its text; the shares of a batch that is asked for again add up to what was told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import orjson

from semcache.errors import CacheFault
from semcache.types import Answer, Ask, Form, Traits, Unstorable, Usage
from semcache.wire import strict_json
from semcache.wire.dialect import Address, Rendition, Scribe
from semcache.wire.error_shapes import OpenAIErrors
from semcache.wire.openai import CONTEXT_HEADERS
from semcache.wire.requests import context_of, invalid, model_of, named_headers
from semcache.wire.score import RECORDED, Identity, Score
from semcache.wire.scribes import BodyJudge, start_scribe, usage_in
from semcache.wire.strict_json import Number, Tree
from semcache.wire.vectors import MAX_ITEMS, as_base64, as_floats, is_vector, shares, weight

NOT_CONTEXT = (
    "user",  # identity: the end user's id, for abuse reports
)
_ENCODING = "encoding_format"
_ENCODINGS = ("float", "base64")  # any other is not ours to convert, and belongs to the context


class OpenAIEmbeddings(OpenAIErrors):
    """The dialect of `/v1/embeddings`."""

    def parse(self, address: Address, body: bytes, headers: Mapping[str, str]) -> Ask:
        tree = strict_json.parse(body)
        model = model_of(tree, address)
        inputs = read_inputs(tree, "input")
        user = tree.get("user")
        for name in NOT_CONTEXT:
            tree.pop(name, None)
        echo: tuple[tuple[str, bytes], ...] = ()
        if tree.get(_ENCODING, "float") in (None, *_ENCODINGS):
            echo = ((_ENCODING, orjson.dumps(tree.pop(_ENCODING, None) or "float")),)
        own = self.context_headers(headers)
        ask = Ask(
            dialect=address.vendor,
            endpoint=address.endpoint,
            target=address.target,
            model=model,
            question=None,
            context=context_of(tree, own),
            stream=False,
            include_usage=False,
            user=user if type(user) is str else None,
            traits=Traits(),
            body=body,
            echo=echo,
        )
        return replace(ask, items=split(ask, tree, "input", inputs, own))

    def context_headers(self, headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        return named_headers(headers, CONTEXT_HEADERS)

    def upstream_body(self, ask: Ask, *, ask_usage: bool) -> bytes:
        return ask.body

    def narrow(self, ask: Ask, wanted: Sequence[int]) -> bytes:
        return with_inputs(ask, "input", wanted)

    def scribe(
        self, ask: Ask, status: int, headers: Mapping[str, str], *, store_tools: bool, limit_bytes: int
    ) -> Scribe:
        judge = BodyJudge(partial(_read, len(ask.items)))
        return start_scribe(judge, ask.dialect, status, headers, limit_bytes=limit_bytes, streams={})

    def take_apart(self, answer: Answer, items: Sequence[Ask]) -> tuple[Answer, ...]:
        body = orjson.loads(answer.parts[0])
        results = sorted(body.pop("data"), key=_place)
        if len(results) != len(items):
            raise CacheFault(f"{len(results)} embeddings for {len(items)} inputs")
        body.pop("usage", None)
        frame = orjson.dumps(body)
        tokens = shares(answer.usage.prompt_tokens if answer.usage else 0, [weight(item.body) for item in items])
        return tuple(
            Answer(answer.dialect, Form.JSON, (orjson.dumps(result), frame), usage=Usage(count, 0))
            for result, count in zip(results, tokens, strict=True)
        )

    def assemble(self, ask: Ask, items: Sequence[Answer], usage: Usage) -> Score:
        try:
            results = [orjson.loads(item.parts[0]) for item in items]
            frame = orjson.loads(items[0].parts[1])
            return _score(ask.echo, {**frame, "data": results}, _figures(usage))
        except (ValueError, TypeError, LookupError) as exc:
            raise CacheFault(f"stored embeddings cannot be put together: {type(exc).__name__}") from exc

    def prepare(self, answer: Answer, rendition: Rendition) -> Score:
        try:
            body = orjson.loads(answer.parts[0])
            usage = _figures(Usage(0, 0)) if rendition.zero_usage else body.get("usage")
            body["data"].sort(key=_place)
            return _score(rendition.echo, body, usage)
        except (ValueError, TypeError, LookupError) as exc:
            raise CacheFault(f"stored embeddings cannot be played: {type(exc).__name__}") from exc

    def fresh_identity(self, now: float) -> Identity:
        return RECORDED  # embeddings have neither an id nor a time


def _read(expected: int, body: Mapping[str, Any]) -> Unstorable | Usage | None:
    """Whole is a body with one embedding for each input. 0 are expected of a batch too large to split: any number."""
    results = body.get("data")
    if type(results) is not list or not all(type(result) is dict for result in results):
        return Unstorable.MALFORMED
    if [result.get("index") for result in sorted(results, key=_place)] != list(range(len(results))):
        return Unstorable.MALFORMED
    if not results or not all(is_vector(result.get("embedding")) for result in results):
        return Unstorable.EMPTY
    if expected and len(results) != expected:
        return Unstorable.INCOMPLETE
    return usage_in(body.get("usage"), "prompt_tokens", "completion_tokens")


def read_inputs(tree: Tree, name: str) -> list[Any]:
    """The inputs of a request: a text, several, tokens, or several lists of tokens. Raises ClientError."""
    given = tree.get(name)
    if type(given) is str:
        return [given]
    if type(given) is not list or not given:
        raise invalid(name, "a string or a non-empty array", tree)
    if all(type(item) is Number for item in given):
        return [given]
    if not all(type(item) is str for item in given) and not all(_is_tokens(item) for item in given):
        raise invalid(name, "strings, token ids, or arrays of token ids", tree)
    return given


def split(ask: Ask, tree: Tree, name: str, inputs: list[Any], headers: tuple[tuple[str, str], ...]) -> tuple[Ask, ...]:
    """Each input as a request for itself alone: its body is the input as JSON, its context all that decides its vector.

    Nothing for a batch that is larger than a vendor takes.
    """
    if len(inputs) > MAX_ITEMS:
        return ()
    rest = {key: value for key, value in tree.items() if key != name}
    common = context_of(rest, headers)
    texts = [strict_json.encode(item) for item in inputs]
    return tuple(replace(ask, context=common + b"\n\n" + text, body=text) for text in texts)


def with_inputs(ask: Ask, name: str, wanted: Sequence[int]) -> bytes:
    """The body as received, but for its inputs: these only, as an array."""
    text = ask.body.decode()
    start, end = strict_json.spans(text)[name]
    inputs = b"[" + b",".join(ask.items[place].body for place in wanted) + b"]"
    return text[:start].encode() + inputs + text[end:].encode()


def _is_tokens(item: Any) -> bool:
    return type(item) is list and bool(item) and all(type(token) is Number for token in item)


def _place(result: dict[str, Any]) -> int:
    index = result.get("index")
    return index if type(index) is int else -1


def _figures(usage: Usage) -> dict[str, int]:
    return {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens}


def _score(echo: tuple[tuple[str, bytes], ...], body: dict[str, Any], usage: Any) -> Score:
    """Write the body with its vectors, in order, in the encoding asked for."""
    wanted = dict(echo).get(_ENCODING)
    for place, result in enumerate(body["data"]):
        result["index"] = place
        if wanted is not None:
            result["embedding"] = (as_base64 if wanted == b'"base64"' else as_floats)(result["embedding"])
    # In the vendor's order: what it is, the vectors, the model, what they cost.
    told = {key: value for key, value in body.items() if key not in ("object", "data", "usage")}
    whole = {"object": body.get("object", "list"), "data": body["data"], **told}
    return Score(Form.JSON, [[orjson.dumps(whole if usage is None else {**whole, "usage": usage})]])
