"""Putting the answer to a batch together: what was stored, what was just fetched, and what both have cost."""

from __future__ import annotations

from collections.abc import Sequence

from semcache.planning import Plan
from semcache.types import Answer, Match, Usage
from semcache.wire import BatchDialect, Score

NOTHING = Usage(0, 0)


def assemble_stored(plan: Plan, matches: Sequence[Match]) -> tuple[Score, Usage]:
    """A batch of which everything is stored. Raises CacheFault when what is stored cannot be rendered."""
    assert isinstance(plan.dialect, BatchDialect)
    answers = [match.entry.answer for match in matches]
    usage = _stored_usage(plan, answers)
    return plan.dialect.assemble(plan.ask, answers, usage), usage


def assemble_partly(
    plan: Plan, known: Sequence[Match | None], missing: Plan, fetched: Answer, fetched_usage: Usage | None
) -> tuple[Score, Usage]:
    """A batch of which `missing` was fetched, and came as one answer: each item back in its place.

    Raises CacheFault when the fetched answer has not exactly one result for each item that was missing.
    """
    assert isinstance(plan.dialect, BatchDialect)
    fresh = iter(plan.dialect.take_apart(fetched, [item.ask for item in missing.items]))
    answers = [next(fresh) if match is None else match.entry.answer for match in known]
    stored = _stored_usage(plan, [match.entry.answer for match in known if match is not None])
    usage = _sum(stored, fetched_usage or NOTHING)
    return plan.dialect.assemble(plan.ask, answers, usage), usage


def _stored_usage(plan: Plan, answers: Sequence[Answer]) -> Usage:
    """What the stored items are shown to have cost: their shares of what was paid then, or nothing."""
    if plan.route.cache.usage == "zero":
        return NOTHING
    total = NOTHING
    for answer in answers:
        total = _sum(total, answer.usage or NOTHING)
    return total


def _sum(one: Usage, other: Usage) -> Usage:
    return Usage(one.prompt_tokens + other.prompt_tokens, one.completion_tokens + other.completion_tokens)
