"""Ollama's `/api/embed`: embeddings as OpenAI's are cached (see embeddings.py), in Ollama's own form."""

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
from semcache.wire.embeddings import read_inputs, split, with_inputs
from semcache.wire.error_shapes import OllamaErrors
from semcache.wire.requests import context_of, model_of
from semcache.wire.score import RECORDED, Identity, Score
from semcache.wire.scribes import BodyJudge, start_scribe
from semcache.wire.vectors import is_vector, shares, weight

NOT_CONTEXT = (
    "keep_alive",  # delivery: how long the model stays in memory
)


class OllamaEmbed(OllamaErrors):
    """The dialect of `/api/embed`."""

    def parse(self, address: Address, body: bytes, headers: Mapping[str, str]) -> Ask:
        tree = strict_json.parse(body)
        model = model_of(tree, address)
        is_load = tree.get("input") in (None, "", [])  # of the model into memory, or out of it: nothing is embedded
        inputs = [] if is_load else read_inputs(tree, "input")
        for name in NOT_CONTEXT:
            tree.pop(name, None)
        ask = Ask(
            dialect=address.vendor,
            endpoint=address.endpoint,
            target=address.target,
            model=model,
            question=None,
            context=context_of(tree, ()),
            stream=False,
            include_usage=False,
            user=None,
            traits=Traits(is_stateful=is_load),
            body=body,
        )
        return replace(ask, items=split(ask, tree, "input", inputs, ()))

    def context_headers(self, headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        return ()

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
        vectors = body.pop("embeddings")
        if len(vectors) != len(items):
            raise CacheFault(f"{len(vectors)} embeddings for {len(items)} inputs")
        frame = orjson.dumps(body)
        tokens = shares(answer.usage.prompt_tokens if answer.usage else 0, [weight(item.body) for item in items])
        return tuple(
            Answer(answer.dialect, Form.JSON, (orjson.dumps(vector), frame), usage=Usage(count, 0))
            for vector, count in zip(vectors, tokens, strict=True)
        )

    def assemble(self, ask: Ask, items: Sequence[Answer], usage: Usage) -> Score:
        """Durations are those of the first item's fetch."""
        try:
            body = orjson.loads(items[0].parts[1])
            vectors = [orjson.Fragment(item.parts[0]) for item in items]
            return _score({**body, "embeddings": vectors}, usage.prompt_tokens)
        except (ValueError, TypeError, LookupError) as exc:
            raise CacheFault(f"stored embeddings cannot be put together: {type(exc).__name__}") from exc

    def prepare(self, answer: Answer, rendition: Rendition) -> Score:
        try:
            body = orjson.loads(answer.parts[0])
            return _score(body, 0 if rendition.zero_usage else body.get("prompt_eval_count"))
        except (ValueError, TypeError, LookupError) as exc:
            raise CacheFault(f"stored embeddings cannot be played: {type(exc).__name__}") from exc

    def fresh_identity(self, now: float) -> Identity:
        return RECORDED  # embeddings have neither an id nor a time


def _read(expected: int, body: Mapping[str, Any]) -> Unstorable | Usage | None:
    """Whole is a body with one vector for each input. 0 are expected of a batch too large to split: any number."""
    vectors = body.get("embeddings")
    if type(vectors) is not list:
        return Unstorable.MALFORMED
    if not vectors or not all(is_vector(vector) for vector in vectors):
        return Unstorable.EMPTY
    if expected and len(vectors) != expected:
        return Unstorable.INCOMPLETE
    tokens = body.get("prompt_eval_count")
    return Usage(tokens, 0) if type(tokens) is int else None


def _score(body: dict[str, Any], tokens: int | None) -> Score:
    """Write the body in Ollama's order: the model, the vectors, what they took."""
    first = {key: body[key] for key in ("model", "embeddings") if key in body}
    rest = {key: value for key, value in body.items() if key not in first}
    if tokens is not None:
        rest["prompt_eval_count"] = tokens
    return Score(Form.JSON, [[orjson.dumps({**first, **rest})]])
