"""What the demo asks, through the vendor's own SDK, and whether the answers are those of the questions.

Each question belongs to a group that one answer serves, and each answer of the simulated backend says for which
question it was written. So a false hit is known, not guessed.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from semcache.demo.questions import Group
from semcache.simulate.answers import question_digest, read_reference
from semcache.types import Tier, Verdict
from semcache.verdicts import Seen, read_verdict

if TYPE_CHECKING:
    from openai import AsyncOpenAI

SEED = 11
CALLERS = 6  # questions in flight
MODEL = "simulated-small"
SYSTEM = "You help customers of an outdoor shop."
USD_PER_MTOK_IN, USD_PER_MTOK_OUT = 2.50, 10.00  # what large vendors ask for a mid-sized model: a scale, not a quote


@dataclass(frozen=True, slots=True)
class Question:
    text: str
    group: Group
    stream: bool


@dataclass(frozen=True, slots=True)
class Reply:
    question: Question
    seen: Seen
    first_ms: float  # to the first token of a stream, to the whole of a JSON answer
    total_ms: float
    prompt_tokens: int
    completion_tokens: int
    answered_for: str | None  # the question the answer was written for
    is_false: bool  # it was written for another group


@dataclass(slots=True)
class Tally:
    """The replies so far, and what they add up to."""

    expected: int
    replies: list[Reply] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def hits(self) -> list[Reply]:
        return [reply for reply in self.replies if reply.seen.is_from_store]

    @property
    def false_hits(self) -> list[Reply]:
        return [reply for reply in self.hits if reply.is_false]

    def count(self, verdict: Verdict, tier: Tier | None = None) -> int:
        return sum(r.seen.verdict is verdict and tier in (None, r.seen.tier) for r in self.replies)

    def saved(self) -> tuple[int, int, float]:
        """Prompt tokens, completion tokens and USD that no backend was asked for."""
        free = [r for r in self.replies if r.seen.is_from_store or r.seen.verdict is Verdict.COALESCED]
        prompt, completion = sum(r.prompt_tokens for r in free), sum(r.completion_tokens for r in free)
        return prompt, completion, (prompt * USD_PER_MTOK_IN + completion * USD_PER_MTOK_OUT) / 1e6


class Screen(Protocol):
    """Where the demo shows itself: a live table on a terminal, lines elsewhere."""

    def show(self, reply: Reply, tally: Tally) -> None: ...


def write_script(groups: Sequence[Group], seed: int = SEED) -> list[Question]:
    """What is asked, in order: each topic in some of its wordings and some of them again, and every trap."""
    rng = random.Random(seed)
    asked: list[tuple[str, Group]] = []
    for group in groups:
        count = rng.choice((2, 3, 4, 5)) if group.kind == "topic" else min(2, len(group.wordings))
        if group.kind == "template" and rng.random() < 0.5:
            continue  # half of the fillings: they are many, and all of a kind
        wordings = rng.sample(group.wordings, min(count, len(group.wordings)))
        again = [rng.choice(wordings)] if rng.random() < 0.4 else []  # word for word
        asked += [(text, group) for text in wordings + again]
    rng.shuffle(asked)
    return [Question(text, group, stream=place % 2 == 0) for place, (text, group) in enumerate(asked)]


class Caller:
    """Asks questions through the official SDK. `client`: an AsyncOpenAI that points at the proxy."""

    def __init__(self, client: AsyncOpenAI, script: Sequence[Question]) -> None:
        self._client = client
        self._groups: dict[str, tuple[str, set[str]]] = {}  # digest -> the text, and the groups it belongs to
        for question in script:
            _, names = self._groups.setdefault(question_digest(question.text), (question.text, set()))
            names.add(question.group.name)

    async def ask(self, question: Question) -> Reply:
        """Raises what the SDK raises."""
        messages: Any = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question.text}]
        began = time.perf_counter()
        first_ms: float | None = None
        text, usage = "", None
        if question.stream:
            async with self._client.chat.completions.with_streaming_response.create(
                model=MODEL, messages=messages, stream=True, stream_options={"include_usage": True}
            ) as response:
                seen = read_verdict(response.status_code, response.headers)
                async for chunk in await response.parse():
                    first_ms = first_ms or (time.perf_counter() - began) * 1000
                    usage = chunk.usage or usage
                    text += "".join(choice.delta.content or "" for choice in chunk.choices)
        else:
            raw = await self._client.chat.completions.with_raw_response.create(model=MODEL, messages=messages)
            seen = read_verdict(raw.status_code, raw.headers)
            whole = raw.parse()
            text, usage = whole.choices[0].message.content or "", whole.usage
        total_ms = (time.perf_counter() - began) * 1000
        reference = read_reference(text)
        answered_for, groups = self._groups.get(reference.question if reference else "", (None, set()))
        return Reply(
            question,
            seen,
            first_ms or total_ms,
            total_ms,
            usage.prompt_tokens if usage else 0,
            usage.completion_tokens if usage else 0,
            answered_for,
            is_false=question.group.name not in groups,
        )


async def ask_all(caller: Caller, script: Sequence[Question], screen: Screen, callers: int = CALLERS) -> Tally:
    """Ask everything in order, so many at a time. A question that fails is counted, and the rest goes on."""
    from openai import OpenAIError

    tally = Tally(len(script))
    waiting = iter(script)

    async def one() -> None:
        for question in waiting:
            try:
                reply = await caller.ask(question)
            except OpenAIError as exc:
                tally.failures[type(exc).__name__] += 1
                continue
            tally.replies.append(reply)
            screen.show(reply, tally)

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(one())
    return tally
