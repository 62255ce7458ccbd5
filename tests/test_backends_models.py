"""Which models a backend serves: what is configured, and what it says itself."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.backends.models import accepts, read_page
from semcache.config import Backend

ALIASES = {"gpt-*": "llama-small", "gpt-4o": "llama-large", "qwen": "*", "team/*": "*"}


@pytest.mark.parametrize(
    "models, asked, name",
    [
        ("any", "whatever", "whatever"),
        ("ask", "whatever", "whatever"),  # asking is for ModelLists
        (("llama-*", "qwen"), "llama-8b", "llama-8b"),
        (("llama-*", "qwen"), "qwen", "qwen"),
        (("llama-*", "qwen"), "Qwen", None),
        (("llama-*", "qwen"), "my-llama-8b", None),
        (ALIASES, "gpt-4o", "llama-large"),  # though the glob comes first
        (ALIASES, "gpt-4o-mini", "llama-small"),
        (ALIASES, "qwen", "qwen"),
        (ALIASES, "team/a", "team/a"),
        (ALIASES, "llama-large", None),
        ({}, "a", None),
        ((), "a", None),
    ],
)
def test_a_setting_says_which_models_are_served_and_under_which_name(
    models: object, asked: str, name: str | None
) -> None:
    assert accepts(Backend(url="http://h/v1", models=models).models, asked) == name  # type: ignore[arg-type]


VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
NESTED = st.recursive(VALUES, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner), max_leaves=5)
ENTRIES = st.lists(st.dictionaries(st.sampled_from(["id", "name", "model", "x"]), NESTED, max_size=3) | NESTED)
PAGES = st.fixed_dictionaries(
    {}, optional={"data": ENTRIES | NESTED, "models": ENTRIES, "has_more": NESTED, "last_id": NESTED}
)


@given(st.binary() | PAGES.map(lambda page: json.dumps(page).encode()))
def test_a_list_is_read_or_refused(body: bytes) -> None:
    try:
        models, last = read_page(body)
    except ValueError:
        return
    page: dict[str, Any] = json.loads(body)
    entries = page["data"] if "data" in page else page["models"]
    assert {entry.get("id") or entry.get("model") or entry.get("name") for entry in entries} == set(models)
    assert last is None or (page["has_more"] is True and last == page["last_id"])
