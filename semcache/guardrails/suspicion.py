"""What a check can say of a request, and what the caller is told of it: which rule, never which words."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from semcache.errors import ClientError


class Check(StrEnum):
    """What was looked for; the setting of the same name says what is done about it."""

    PROMPT_SIZE = "prompt-size"
    INJECTION = "injection"
    EXFILTRATION = "exfiltration"
    SECRETS = "secrets"
    EXTRACTION = "extraction"
    HOOK = "hook"


class Action(StrEnum):
    """What is done about it."""

    FLAG = "flag"  # logged, counted and let through
    REDACT = "redact"  # cut out of the body, then let through
    REFUSE = "refuse"


class Suspicion(NamedTuple):
    check: Check
    rule: str  # its id: "override-instructions", "github-token"
    action: Action
    reason: str  # for the caller and the operator; holds none of the request's text

    @property
    def flag(self) -> str:
        """How logs and metrics name it. There are as many as rules: few."""
        return f"{self.check}/{self.rule}"


def refusal(suspicion: Suspicion) -> ClientError:
    """The answer to a request that is refused for it.

    A prompt that is too long gets the code that clients know for it, and shorten their history at.
    """
    if suspicion.check is Check.PROMPT_SIZE:
        return ClientError(suspicion.reason, code="context_length_exceeded")
    if suspicion.rule == UNAVAILABLE:  # no word about the request: asking again may help
        return ClientError(suspicion.reason, status=503, code="guardrail_unavailable", headers={"Retry-After": "1"})
    code = f"guardrail_{suspicion.check.replace('-', '_')}"
    return ClientError(f"a guardrail refused this request: {suspicion.reason}", status=403, code=code)


UNAVAILABLE = "unavailable"  # the rule of a hook that could not be asked
