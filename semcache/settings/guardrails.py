"""The settings of what is looked at in a request before anything answers it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SecretStr

from semcache.settings.primitives import Seconds, Section

Action = Literal["off", "flag", "refuse"]  # flag: logged, counted and let through


class Hook(Section):
    """A model-based firewall of yours, asked over HTTP; docs/tenants.md has what is sent and what it answers."""

    url: str = Field(pattern="^https?://")
    api_key: SecretStr = SecretStr("")
    deadline: Seconds = 0.5
    on_failure: Literal["open", "closed"] = "closed"  # closed: what could not be checked is refused
    region: str | None = None  # where it stands; null: with this node


class Guardrails(Section):
    max_prompt_tokens: Annotated[int, Field(ge=1)] | None = None  # estimated; more is refused
    injection: Action = "off"  # known phrases that try to override instructions
    exfiltration: Action = "off"  # known phrases that try to carry out secrets: system prompts, links with data
    secrets: Literal["off", "flag", "redact", "refuse"] = "off"  # API keys, private keys, passwords in URLs
    extraction: Action = "off"  # rates that look like copying a model: many different questions, few repeated
    extraction_per_hour: int = Field(default=2000, ge=1)  # different questions of one key
    hook: Hook | None = None
