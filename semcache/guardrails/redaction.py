"""Cutting secrets out of a JSON body: the strings that hold them change, every other byte stays as it came."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

import orjson

from semcache.guardrails.secrets import Secret, SecretRule, find_secrets, may_hold


class Redaction(NamedTuple):
    rules: tuple[str, ...]  # that found something, each once, in the order of the body
    body: bytes  # with what they found replaced


_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_UNIT = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\.|.", re.DOTALL)


def redact(body: bytes) -> Redaction:
    """Replace each secret with `[secret removed: RULE]`, in names of members too.

    A body that is no JSON comes back as it is.
    """
    unchanged = Redaction((), body)
    try:
        text = body.decode()
        # Escapes hide what is looked for from a search of the bytes: "\\/\\/" in URLs, "\\u0073k-".
        rules = may_hold("\n".join(_decoded(found[0]) for found in _STRING.finditer(text)) if _hides(text) else text)
        if not rules:
            return unchanged
        orjson.loads(body)
    except ValueError:
        return unchanged
    found: dict[str, None] = {}
    parts: list[str] = []
    at = 0
    for literal in _STRING.finditer(text):
        secrets = _secrets_in(literal[0], rules)
        if secrets:
            parts += [text[at : literal.start()], _without(literal[0], secrets)]
            at = literal.end()
            found |= dict.fromkeys(secret.rule for secret in secrets)
    return Redaction(tuple(found), "".join([*parts, text[at:]]).encode()) if found else unchanged


def _hides(text: str) -> bool:
    return "\\u" in text or "\\/" in text


def _decoded(literal: str) -> str:
    return literal[1:-1] if "\\" not in literal else str(json.loads(literal, strict=False))


def _secrets_in(literal: str, rules: tuple[SecretRule, ...]) -> list[Secret]:
    return find_secrets(_decoded(literal), rules)


def _without(literal: str, secrets: list[Secret]) -> str:
    """The literal with these places of its text replaced; other characters keep the escapes they came with."""
    inner = literal[1:-1]
    # Where each character of the text begins in the literal.
    starts = range(len(inner) + 1) if "\\" not in inner else [*(u.start() for u in _UNIT.finditer(inner)), len(inner)]
    parts = []
    at = 0
    for rule, start, end in secrets:
        parts += [inner[at : starts[start]], f"[secret removed: {rule}]"]
        at = starts[end]
    return f'"{"".join(parts)}{inner[at:]}"'
