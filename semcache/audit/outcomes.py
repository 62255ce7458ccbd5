"""What of a request's outcome belongs into the audit log: a pure table, so that nobody has to ask at each place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from semcache.audit.record import Event
from semcache.types import Outcome, Tier, Verdict

RESIDENCY_CODE = "region_not_allowed"  # of the refusals that keep a request inside its regions


def events_of(outcome: Outcome, question: str | None) -> Iterator[tuple[Event, dict[str, Any]]]:
    """The events of one request with their facts; most requests have none."""
    if outcome.tier is Tier.SEMANTIC and outcome.verdict in (Verdict.HIT, Verdict.STALE):
        hit = {
            "entry": outcome.entry_id,
            "similarity": outcome.similarity,
            "verdict": outcome.verdict,
            "age_s": None if outcome.age_s is None else round(outcome.age_s, 3),
            "model": outcome.model,
            "question": question,
        }
        yield Event.HIT, _who(outcome) | hit
    if outcome.code == RESIDENCY_CODE:
        yield Event.RESIDENCY_REFUSAL, _who(outcome) | {"status": outcome.status, "model": outcome.model}
    if outcome.flags:
        refused = outcome.code if outcome.verdict is Verdict.REFUSED else None
        yield Event.GUARDRAIL, _who(outcome) | {"flags": outcome.flags, "refused": refused}
    if outcome.feedback is not None:
        said = {name: value for name, value in outcome.feedback.items() if name != "request"}
        yield (
            Event.FEEDBACK,
            _who(outcome) | {"entry": outcome.entry_id, "about": outcome.feedback.get("request"), **said},
        )


def _who(outcome: Outcome) -> dict[str, Any]:
    return {
        "request_id": outcome.request_id,
        "tenant": outcome.tenant or None,
        "namespace": outcome.namespace or None,
        "key": outcome.key or None,
        "route": outcome.route or None,
    }
