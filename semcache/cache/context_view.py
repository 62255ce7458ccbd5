"""What a context holds, for people: its members, shortened, and without what looks like a secret.

A context is canonical JSON with marks in it for the question and for long data (wire/marks.py), and after a newline
the headers that count. Here it is only shown; keys are made of its bytes alone.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

SHOWN_CHARS = 160  # of a value: enough to recognise a prompt by
ROUGH_CHARS = 1000  # searched for secrets: a context may have megabytes
SHOWN_MEMBERS = 40  # a long conversation has more turns than anybody reads
HIDDEN = "[hidden]"
QUESTION = "(the question)"

# A member of such a name holds a secret whatever it looks like: the tokens of MCP servers travel in requests.
_SECRET_NAME = re.compile(
    r"(?:^|[-_. ])(?:authorization|auth|api[-_]?key|access[-_]?key|private[-_]?key|key|token|secret|password|passwd"
    r"|credentials?|cookie|headers)$|apikey$|token$",
    re.IGNORECASE,
)
# And these are secrets wherever they stand: keys in the vendors' forms, JSON Web Tokens, passwords in URLs.
_SECRET_TEXT = re.compile(
    r"\b(?:sk|pk|rk|ghp|gho|ghs|ghu|github_pat|glpat|xox[abprs]|hf|gsk|AIza|AKIA|ASIA)[-_A-Za-z0-9]{12,}"
    r"|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"
    r"|(?i:\b(?:bearer|basic)\s+[\w.~+/=-]{8,})"
    r"|(?<=://)[^/\s:@\"]+:[^/\s@\"]+(?=@)"
    r"|(?i:(?<=[?&])(?:[\w-]*(?:key|token|secret|sig|signature|password))=[^&\s\"#]+)"
)
_TEXT_OR_MARK = re.compile(r'"(?:[^"\\]|\\.)*"|\?\d*|#[0-9a-f]+')


class Member(NamedTuple):
    name: str  # "model", "messages[0]", "header openai-project"
    value: str


def view_context(context: bytes) -> tuple[Member, ...]:
    """Its members in their order. A context that is no JSON object is one member that tells its size."""
    tree, _, headers = context.partition(b"\n")
    try:
        members = json.loads(_TEXT_OR_MARK.sub(_without_mark, tree.decode()))
        named = json.loads(headers) if headers else []
        found = [*_members_of(members), *(Member(f"header {name}", _shown(name, value)) for name, value in named)]
    except (ValueError, TypeError, AttributeError, RecursionError):
        return (Member("context", f"{len(context):,} bytes"),)
    if len(found) > SHOWN_MEMBERS:
        return (*found[:SHOWN_MEMBERS], Member("...", f"{len(found) - SHOWN_MEMBERS} more"))
    return tuple(found)


def without_secrets(text: str) -> str:
    return _SECRET_TEXT.sub(HIDDEN, text)


def shorten(text: str, limit: int = SHOWN_CHARS) -> str:
    """On one line, cut at the end with its length told."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit]}... ({len(text):,} characters)"


def _without_mark(found: re.Match[str]) -> str:
    """A mark as the JSON text that stands for it; texts stay as they are."""
    text = found[0]
    if text.startswith("?"):
        return f'"{QUESTION}"'
    return f'"digest {text[1:17]}"' if text.startswith("#") else text


def _members_of(tree: dict[str, Any]) -> list[Member]:
    found: list[Member] = []
    for name, value in tree.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            found += [Member(f"{name}[{place}]", _shown(name, item)) for place, item in enumerate(value)]
        else:
            found.append(Member(name, _shown(name, value)))
    return found


def _shown(name: str, value: Any) -> str:
    """Hidden before it is cut: half a key is still a secret. Very long texts are cut roughly first, to save time."""
    value = _hide(name, value)
    if isinstance(value, dict) and isinstance(value.get("role"), str):  # a turn reads better as who says what
        role = value.pop("role")
        said = value.pop("content", "")
        rest = f" {_compact(value)}" if value else ""
        return shorten(f"{role}: {said if isinstance(said, str) else _compact(said)}{rest}")
    return shorten(value if isinstance(value, str) else _compact(value))


def _hide(name: str, value: Any) -> Any:
    if value and not isinstance(value, (bool, int, float)) and _SECRET_NAME.search(name):
        return HIDDEN
    if isinstance(value, dict):
        return {key: _hide(key, item) for key, item in value.items()}
    if isinstance(value, list):
        return [_hide(name, item) for item in value]
    return without_secrets(_cut_at_a_blank(value)) if isinstance(value, str) else value


def _cut_at_a_blank(text: str) -> str:
    """What is shown will be shorter; no secret may be cut in two, so the cut lies before the last word begun."""
    if len(text) <= ROUGH_CHARS:
        return text
    kept = text[:ROUGH_CHARS]
    blank = max(kept.rfind(" "), kept.rfind("\n"))
    return f"{kept[: blank + 1]}... ({len(text):,} characters)"


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))
