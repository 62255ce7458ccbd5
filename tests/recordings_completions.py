"""Answers in the format of legacy completions, each as a stream and as the body that the vendor sends for the same.

The bodies are put together here by the vendor's rule, apart from the code under test: the texts of a choice joined, its
lists joined, the last finish reason, and the figures of the usage chunk.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from semcache.types import Unstorable

Json = dict[str, Any]

HEAD: Json = {"id": "cmpl-1", "object": "text_completion", "created": 1_700_000_000, "model": "tiny-instruct"}
USAGE: Json = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
PROMPT = "A parcel to Norway takes"


@dataclass(frozen=True)
class Recording:
    name: str
    chunks: tuple[Json, ...]
    asked: tuple[tuple[str, Any], ...] = ()  # members of the request
    why_not: Unstorable | None = None  # None: it may be stored

    @property
    def request(self) -> Json:
        return {"model": "tiny-instruct", "prompt": PROMPT, "stream": True, **dict(self.asked)}

    @property
    def stream(self) -> bytes:
        return b"".join(b"data: %b\n\n" % _dumps(chunk) for chunk in self.chunks) + b"data: [DONE]\n\n"

    @property
    def body(self) -> bytes:
        return _dumps(added_up(self.chunks))


def _dumps(value: Json) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def added_up(chunks: Sequence[Json]) -> Json:
    """What the vendor sends to a client who wants no stream."""
    body: Json = {}
    choices: dict[int, Json] = {}
    for chunk in chunks:
        body |= {key: value for key, value in chunk.items() if key != "choices" and value is not None}
        for item in chunk["choices"]:
            choice = choices.setdefault(item["index"], {"text": "", "index": item["index"], "finish_reason": None})
            for key, value in item.items():
                if key == "text":
                    choice["text"] += value
                elif key == "logprobs" and value and choice.get(key):
                    for name, values in value.items():
                        choice[key][name] = None if values is None else choice[key][name] + values
                elif type(value) is list:
                    choice[key] = choice.get(key, []) + value
                elif key != "index" and (value is not None or key not in choice):
                    choice[key] = dict(value) if key == "logprobs" and value else value
    body.pop("obfuscation", None)
    return {**body, "choices": [choices[index] for index in sorted(choices)]}


def says(text: str, finish: str | None = None, index: int = 0, probs: Any = None, **more: Any) -> Json:
    return {
        **HEAD,
        "choices": [{"text": text, "index": index, "logprobs": probs, "finish_reason": finish, **more}],
    }


def told(*tokens: str, top: bool = True, start: int = len(PROMPT)) -> list[Json]:
    """Pieces with the log probability of each token."""
    chunks, offset = [], start
    for token in tokens:
        probs = {
            "text_offset": [offset],
            "token_logprobs": [-0.25],
            "tokens": [token],
            "top_logprobs": [{token: -0.25, " five": -1e-05}] if top else None,
        }
        chunks.append(says(token, probs=probs))
        offset += len(token)
    return chunks


END = says("", "stop")
USAGE_CHUNK: Json = {**HEAD, "choices": [], "usage": USAGE}
FINGERPRINT = {"system_fingerprint": "fp_44709d6fcb"}
FILTER = {"hate": {"filtered": False, "severity": "safe"}}
FILTERED = {"id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter_results": [FILTER]}

RECORDINGS = [
    Recording("text", (says(" four"), says(" days"), says("."), END)),
    Recording("usage chunk", (says(" four days."), END, USAGE_CHUNK)),
    Recording("usage null before", tuple({**c, "usage": None} for c in (says(" four"), END)) + (USAGE_CHUNK,)),
    Recording("usage with the end", (says(" four"), {**END, "usage": {**USAGE, "prompt_tokens_details": None}})),
    Recording("the end with the last piece", (says(" four"), says(" days.", "stop"))),
    Recording("empty pieces", (says(""), says(" four"), says(""), says(" days."), END)),
    Recording(
        "no log probabilities member", ({**HEAD, "choices": [{"text": " 4", "index": 0, "finish_reason": "stop"}]},)
    ),
    Recording("fingerprint", tuple({**c, **FINGERPRINT} for c in (says(" four"), END))),
    Recording("padding", tuple({**c, "obfuscation": "aZ"} for c in (says(" four"), END))),
    Recording("characters", (says(" vier – 四天 🚚 👩🏽‍🚀"), says(' \u2028\x85 \\ "\n\t'), END)),
    Recording("log probabilities", (*told(" four", " days", "."), END), (("logprobs", 2),)),
    Recording("log probabilities without others", (*told(" four", ".", top=False), END), (("logprobs", 0),)),
    Recording(
        "the prompt in front",
        (*told("A", " parcel", start=0), *told(" takes", " four", start=8), END),
        (("logprobs", 1), ("echo", True)),
    ),
    Recording(
        "log probabilities of half characters",
        (
            says("", probs={"tokens": ["bytes:\\xe2", "bytes:\\x82\\xac"], "token_logprobs": [-1.5, -0.1]}),
            says("€"),
            END,
        ),
        (("logprobs", 1),),
    ),
    Recording(
        "choices in turns",
        (says(" four"), says(" five", index=1), says(" days", "stop", index=1), says(" days.", "stop")),
        (("n", 2), ("best_of", 2)),
    ),
    Recording(
        "two prompts, two choices each",
        tuple(chunk for i in range(4) for chunk in (says(f" text {i}", index=i), says("", "stop", index=i))),
        (("prompt", ["A parcel", "A letter"]), ("n", 2)),
    ),
    Recording("tokens for a prompt", (says(" four"), END), (("prompt", [32, 1029, 7]),)),
    Recording(
        "two lists of tokens", (says(" a", "stop"), says(" b", "stop", index=1)), (("prompt", [[32, 1029], [7]]),)
    ),
    Recording("text behind", (says(" four"), END), (("suffix", " to arrive."),)),
    Recording(
        "members nobody knows",
        (says(" four", stop_reason=None, token_ids=[1]), says(".", "stop", token_ids=[2], stop_reason=7)),
    ),
    Recording(
        "of a filter",
        (FILTERED, says(" four", content_filter_results=FILTER), says("", "stop", content_filter_results={})),
    ),
    Recording("cut by the limit", (says(" four"), says("", "length")), why_not=Unstorable.FINISH),
    Recording("cut by a filter", (says(" four"), says("", "content_filter")), why_not=Unstorable.FINISH),
    Recording("nothing said", (says("\n"), END), why_not=Unstorable.EMPTY),
    Recording(
        "one of two says nothing", (says(" a", "stop"), says("", "stop", index=1)), (("n", 2),), Unstorable.EMPTY
    ),
    Recording(
        "one of two cut by the limit", (says(" a", "stop"), says(" b", "length", 1)), (("n", 2),), Unstorable.FINISH
    ),
]
