"""Which models a backend serves, and under which name.

The rule: what the configuration says is decided at once and without a question; only `models: ask` depends on what a
backend has answered. Everything here is pure; model_lists.py asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import orjson

Models = Mapping[str, Mapping[str, Any]]  # by name, each as its backend describes it

ITS_OWN_NAME = "*"  # as the name a model has at a backend: the one that was asked for


def accepts(models: str | tuple[str, ...] | Mapping[str, str], asked: str) -> str | None:
    """The name that a model has at a backend with this setting; None: it does not serve it.

    The names of a mapping may be globs as well; one that is written out counts before them, then the first that fits.
    `ask` takes every model here: what the backend says of it can change at any time, and `ModelLists` knows.
    """
    if isinstance(models, str):
        return asked
    if isinstance(models, Mapping):
        name = models.get(asked) or next((there for glob, there in models.items() if fnmatchcase(asked, glob)), None)
        return asked if name == ITS_OWN_NAME else name
    return asked if any(fnmatchcase(asked, glob) for glob in models) else None


def is_alias(name: str) -> bool:
    """Whether a name in a mapping stands for one model, and not for all that fit it."""
    return not any(mark in name for mark in "*?[")


def read_page(body: bytes) -> tuple[Models, str | None]:
    """The models that a backend lists, and after which one the next page begins: None on the last.

    OpenAI and all who follow it: `data`; Anthropic the same in pages; Ollama's own: `models`. Raises ValueError.
    """
    page = orjson.loads(body)
    if not isinstance(page, dict):
        raise ValueError("no object")
    entries = page["data"] if "data" in page else page.get("models")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("no list of models")
    found = {}
    for entry in entries:
        name = entry.get("id") or entry.get("model") or entry.get("name")
        if not isinstance(name, str):
            raise ValueError("a model has no name")
        found[name] = entry
    last = page.get("last_id")
    return found, last if page.get("has_more") is True and isinstance(last, str) and found else None


def is_listed(name: str, models: Models) -> bool:
    """Ollama lists `llama3.2:latest`, and is asked for `llama3.2`."""
    return name in models or f"{name}:latest" in models


def offered(setting: str | tuple[str, ...] | Mapping[str, str], listed: Models) -> Models:
    """The models that callers may ask a backend for, under the names they use. `listed`: what it says itself."""
    if isinstance(setting, str):
        return listed
    found = {name: entry for name, entry in listed.items() if accepts(setting, name) == name}
    if isinstance(setting, Mapping):
        for alias, name in setting.items():
            if is_alias(alias):
                found[alias] = listed.get(alias if name == ITS_OWN_NAME else name, {})
    else:
        found |= {name: {} for name in setting if is_alias(name) and name not in found}
    return found


def merge_models(lists: Iterable[Models], dialect: str, is_allowed: Callable[[str], bool]) -> bytes:
    """One list of several, each model once, in the form that the dialect's clients read.

    `is_allowed`: whether this caller may ask for a model. One that several have is described as the first has it.
    """
    merged: dict[str, dict[str, Any]] = {}
    for models in lists:
        for name, entry in models.items():
            if is_allowed(name):
                merged.setdefault(name, _under(name, entry, dialect))
    entries = list(merged.values())
    if dialect == "ollama":
        return orjson.dumps({"models": entries})
    if dialect == "anthropic":
        first, last = (next(iter(merged)), next(reversed(merged))) if merged else (None, None)
        return orjson.dumps({"data": entries, "has_more": False, "first_id": first, "last_id": last})
    return orjson.dumps({"object": "list", "data": entries})


def _under(name: str, entry: Mapping[str, Any], dialect: str) -> dict[str, Any]:
    if dialect == "ollama":
        return {**entry, "name": name, "model": name}
    least: dict[str, Any]
    if dialect == "anthropic":
        least = {"type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z"}
    else:
        least = {"id": name, "object": "model", "created": 0, "owned_by": "semcache"}
    return {**least, **entry, "id": name}
