"""RULE: whether a request is a step of a program that works on, rather than somebody's question.

An agent's last user turn is often no question at all: the output of a tool, or the same words again that drive it on.
Such a turn means what the work before it has come to, so only an equal request may be answered from the store. What
dialects can see (tool results, calls) is in `Traits`; here is what only the texts show.

A cache can also keep an agent turning in a circle: it asks again because the answer did not help, and is given the
same answer. That is told without a memory: the stored answer stands in the conversation already, as what the assistant
said last. Counting equal requests would not do, for a popular question comes a thousand times a minute, too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b

from semcache.types import Turn

_ENDS = 400  # characters read at either end of a text; scaffolds write their marks there
_REPEATS = 2  # earlier turns with the very words of this one, from which on it only drives a loop

# What frameworks put before a tool's output when they hand it over as the user's turn, and a model's own account of its
# steps, handed back to it.
_OBSERVATION = re.compile(
    r"\A\s*[\[<(*#_ ]*(?:observations?|(?:tool|function)[ _](?:output|result|response|call result)s?"
    r"|(?:action|command|execution)[ _](?:output|result)s?|environment_details|returncode)\b[^\n]{0,40}?[:>\])\n]"
    r"|\A\s*\[[a-z_]{3,40}(?: for '[^'\n]{0,200}')?\] (?:result|error)\b"
    r"|^\s*(?:observation|action input|agent_scratchpad)\s*:",
    re.IGNORECASE | re.MULTILINE,
)

# How a model asks for a tool in its text, where the request declares none.
_CALL = re.compile(
    r"^\s*action\s*:\s*\S.*\n\s*action[ _]input\s*:|<(?:tool_call|function_call|invoke|execute_\w+|use_mcp_tool)\b"
    r"|<function=|```(?:tool_code|tool_call|action)\b",
    re.IGNORECASE | re.MULTILINE,
)


def is_agent_step(question: str, turns: Sequence[Turn]) -> bool:
    """1. The turn is a tool's output. 2. The assistant has just asked for a tool. 3. The same words drive it on."""
    if _OBSERVATION.search(_ends_of(question)):
        return True
    if not turns:
        return False
    last = turns[-1]
    if last.role == "assistant" and last.text is not None and _calls(_ends_of(last.text)):
        return True
    return sum(turn.role == "user" and turn.text == question for turn in turns) >= _REPEATS


def _calls(said: str) -> bool:
    lower = said.lower()  # looked at first, for it is quick, and most answers have nothing of the kind
    return ("<" in lower or "action" in lower or "```" in lower) and _CALL.search(said) is not None


def said_last(turns: Sequence[Turn]) -> str | None:
    """What the assistant said last; None where that is nothing, or more than a text."""
    return next((turn.text for turn in reversed(turns) if turn.role == "assistant"), None)


def digest_of(said: str) -> bytes:
    """Equal for texts that differ in white space at their ends only, which programs take off."""
    return blake2b(said.strip().encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _ends_of(text: str) -> str:
    return text if len(text) <= 2 * _ENDS else f"{text[:_ENDS]}\n{text[-_ENDS:]}"
