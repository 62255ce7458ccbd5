"""Which models a backend serves: what is configured, and what it says itself."""

from __future__ import annotations

import pytest

from semcache.backends.models import accepts
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
