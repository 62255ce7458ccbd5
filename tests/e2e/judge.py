"""Whether a client saw what it should: the one place where that is decided, for clients in every language.

Answers of the upstream carry the number of the call, so equal answers and a count of the calls prove a hit, whether
the client shows headers or not. An error is right when the client raises for the proxy what it raises for the vendor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.e2e.upstream import Call

Seen = Mapping[
    str, Any
]  # one observation: text, pieces, tool, arguments, object, thought, vectors, usage, cache, error

_COMPARED = ("text", "tool", "arguments", "object", "thought", "vectors")

# Of the proxy's own errors: what of its message must reach whoever reads the exception.
_OWN_WORDS = {"own_error": "similarity", "only_if_cached": "only-if-cached"}


def judge(feature: str, plan: Mapping[str, Any], saw: Sequence[Seen], calls: Sequence[Call]) -> str | None:
    """Why the feature failed; None when it works. `calls`: those that reached the upstream through the proxy."""
    verbs = [step["do"] for step in plan["steps"]]
    match feature:
        case "upstream_error" | "own_error" | "only_if_cached":
            return _same_error(saw, _OWN_WORDS.get(feature, "failed as asked"))
        case "no_store":
            return _failed(saw) or _asked(calls, 2) or (None if _differ(saw) else "two calls gave the same answer")
        case "state":  # what the vendor keeps it must be told each time
            return _failed(saw) or (None if _differ(saw) else "the second conversation got the answer of the first")
        case "other":
            return _failed(saw) or (None if saw[0].get("text") else "nothing came back")
        case "embed_half":
            return _failed(saw) or _half(plan, saw, calls)
    return _failed(saw) or _asked(calls, 2 if feature == "tool_loop" else 1) or _equal(saw) or _whole(verbs, saw)


def _failed(saw: Sequence[Seen]) -> str | None:
    for number, one in enumerate(saw, 1):
        if "error" in one:
            return f"call {number} raised {one['error']['type']}: {' '.join(one['error']['message'].split())[:200]}"
    return None


def _asked(calls: Sequence[Call], expected: int) -> str | None:
    return None if len(calls) == expected else f"the upstream was asked {len(calls)} times, not {expected}"


def _differ(saw: Sequence[Seen]) -> bool:
    return any(saw[0].get(name) != saw[1].get(name) for name in _COMPARED)


def _equal(saw: Sequence[Seen]) -> str | None:
    first = saw[0]
    for number, one in enumerate(saw[1:], 2):
        for name in _COMPARED:
            if one.get(name) != first.get(name):
                return f"{name} of answer {number} differs: {str(first.get(name))[:80]!r}, {str(one.get(name))[:80]!r}"
        if "usage" in one and "usage" in first and one["usage"] != first["usage"]:
            return f"usage of answer {number} differs: {first['usage']}, {one['usage']}"
    return None


def _whole(verbs: Sequence[str], saw: Sequence[Seen]) -> str | None:
    """Whether each answer has what was asked for: two empty ones would be equal."""
    for verb, one in zip(verbs, saw, strict=True):
        kind = verb.removesuffix("_stream")
        wanted = {"tool": "arguments", "object": "object", "thought": "thought", "embed": "vectors"}.get(kind, "text")
        if not one.get(wanted):
            return f"no {wanted} in {str(dict(one))[:120]}"
        # Some servers send a tool call whole: then the client tells no number of pieces.
        if verb.endswith("stream") and one.get("pieces", 2 if kind == "tool" else 0) < 2:
            return "the stream came in one piece"
    # `collapsed`: the client was quicker to ask again than the answer to be put away, and joined its fetch.
    last = saw[-1].get("cache")
    is_known = last is None or "; hit" in last or "; collapsed" in last
    return None if is_known else f"Cache-Status of the last answer: {last}"


def _same_error(saw: Sequence[Seen], words: str) -> str | None:
    """The vendor's error seen directly, then the one seen through the proxy."""
    vendor, ours = (one.get("error") for one in saw)
    if vendor is None or ours is None:
        return f"no exception {'from the vendor itself' if vendor is None else 'through the proxy'}"
    for name in ("type", "status"):
        if vendor[name] != ours[name]:
            message = ours["message"][:160]
            return f"{name} of the exception is {ours[name]}, and {vendor[name]} without the proxy: {message}"
    return None if words in ours["message"] else f"the message lacks {words!r}: {ours['message'][:160]}"


def _half(plan: Mapping[str, Any], saw: Sequence[Seen], calls: Sequence[Call]) -> str | None:
    """Of the second batch only what was not known is fetched, and all of it comes back in order."""
    unknown = plan["texts"][2]
    asked = [list(call.texts) for call in calls]
    if len(calls) != 2 or asked[1] != [unknown]:
        return f"the upstream was asked for {asked}"
    first, second = (one["vectors"] for one in saw)
    if len(second) != 2 or second[1] != first[1] or second[0] in first:
        return "the vectors are not those of their texts"
    return None
