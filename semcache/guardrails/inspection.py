"""All that can be said of one request from its body alone: equal bytes under equal settings get an equal inspection.

So it is remembered with the plan of equal bytes, and a request that is repeated is not looked at again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from semcache.config import Guardrails
from semcache.guardrails.exfiltration import EXFILTRATION
from semcache.guardrails.injection import INJECTION
from semcache.guardrails.normal import hidden, normal
from semcache.guardrails.phrases import decoded, find
from semcache.guardrails.redaction import redact
from semcache.guardrails.suspicion import Action, Check, Suspicion
from semcache.guardrails.texts import Text, estimate_tokens, read_texts

# Whose words may try to instruct. What the operator says of phrases like these ("never follow ..."), and what the model
# said about them, is no attempt.
_TRUSTED = frozenset({"system", "developer", "tools", "assistant"})


@dataclass(frozen=True, slots=True)
class Inspection:
    suspicions: tuple[Suspicion, ...] = ()
    body: bytes | None = None  # what to go on with instead, secrets cut out; None: the body as it came

    @property
    def refused(self) -> Suspicion | None:
        """Why the request must not be answered; None: it may."""
        return next((each for each in self.suspicions if each.action is Action.REFUSE), None)

    @property
    def flags(self) -> tuple[str, ...]:
        return tuple(each.flag for each in self.suspicions)


NOTHING = Inspection()


def inspect(body: bytes, settings: Guardrails) -> Inspection:
    """Look at one JSON body as a route's settings say. Other bodies are not looked into.

    Takes some 0.6 ms for 4 KB of prose; a body of megabytes belongs on a thread.
    """
    if not inspects(settings):
        return NOTHING
    suspicions: list[Suspicion] = []
    rest = None
    if settings.secrets != "off":
        redaction = redact(body)
        action = Action(settings.secrets)
        suspicions += [Suspicion(Check.SECRETS, rule, action, _SECRET % rule) for rule in redaction.rules]
        if redaction.rules and action is Action.REDACT:
            rest = redaction.body
    if settings.max_prompt_tokens is None and settings.injection == settings.exfiltration == "off":
        return Inspection(tuple(suspicions), rest) if suspicions else NOTHING
    texts = read_texts(body if rest is None else rest)
    suspicions += _too_long(texts, settings.max_prompt_tokens)
    suspicions += _phrases(texts, settings)
    return Inspection(tuple(suspicions), rest) if suspicions else NOTHING


def inspects(settings: Guardrails) -> bool:
    """Whether anything is looked for in bodies at all."""
    return not (
        settings.max_prompt_tokens is None and settings.injection == settings.exfiltration == settings.secrets == "off"
    )


_SECRET = "it holds a secret (%s); take it out, and change it where it was sent before"


def _too_long(texts: tuple[Text, ...], most: int | None) -> Iterator[Suspicion]:
    if most is None:
        return
    tokens = estimate_tokens(texts)
    if tokens > most:
        reason = f"the prompt has about {tokens} tokens, and {most} is the most that may be sent here; shorten it"
        yield Suspicion(Check.PROMPT_SIZE, "too-long", Action.REFUSE, reason)


def _phrases(texts: tuple[Text, ...], settings: Guardrails) -> Iterator[Suspicion]:
    tables = [
        (Check.INJECTION, settings.injection, INJECTION),
        (Check.EXFILTRATION, settings.exfiltration, EXFILTRATION),
    ]
    tables = [(check, action, rules) for check, action, rules in tables if action != "off"]
    if not tables:
        return
    said = [text for role, text in texts if role not in _TRUSTED]
    secretly = "\n".join(filter(None, map(hidden, said)))
    packed = filter(None, map(decoded, said))
    # All texts at once: a search costs more than the few letters that it goes through.
    view = _APART.join([*map(normal, said), *packed, normal(secretly)])
    for check, action, rules in tables:
        for rule in find(view, rules):
            yield Suspicion(check, rule.id, Action(action), rule.reason)
    if len(secretly) >= HIDDEN_CHARS and settings.injection != "off":
        yield Suspicion(Check.INJECTION, "hidden-text", Action(settings.injection), "it holds text that nobody sees")


HIDDEN_CHARS = 6  # less is a flag of a region that we do not know of
_APART = " .。######## "  # more than may stand between two words of a phrase: none goes from one text into the next
