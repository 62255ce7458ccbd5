"""`python -m loadtests.quality_conversations FILE`: what each way to count earlier turns brings, and gets wrong.

FILE has dialogues as chat messages, one JSON object with `messages` a line (.jsonl or .jsonl.gz). They are played one
after the other, every user turn with all that was said before it, through the cache that programs use
(semcache.inprocess); what the assistant says next in the dialogue is the answer that is stored.

A semantic hit is false when the answer served is not what the assistant says next: in other words where the model sees
another meaning, too. People who write dialogues put one answer in many words, so the first count is too high, and the
second, for it sees "at 5 pm" and "at 6 pm" as near, too low. Counted are turns that come after others.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
from multidict import CIMultiDict
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from loadtests.quality_pairs import share
from loadtests.report import wilson
from semcache import config
from semcache.cache import embedder as embedders
from semcache.cache.embedder import Embedder
from semcache.cache.guards import GUARDS, find_veto
from semcache.errors import SemcacheError, TooLong
from semcache.forwarding import answer_limit
from semcache.inprocess import Cache, find_address
from semcache.planning import Plan
from semcache.types import Vector
from semcache.wire.dialect import Reading
from semcache.wire.recording import Recording

CHAT = "https://api.openai.com/v1/chat/completions"
CONTEXTS = ("equal", "similar", "last: 1", "last: 2", "last: 4")
SAME = 0.80  # cosine of two answers, from which on they say the same where no guard tells them apart
_DETAIL = re.compile(r"detail=([a-z-]+)")

Message = Mapping[str, str]


class Wrong(NamedTuple):
    turns: Sequence[Message]  # the question is the last
    served: str
    right: str


class Played(NamedTuple):
    """What became of the turns that come after others."""

    turns: int
    exact: int
    semantic: int
    other_words: int  # semantic hits whose answer is not, letter for letter, what the assistant says next
    wrong: Sequence[Wrong]  # of them, those that mean something else
    reasons: Mapping[str, int]


def read_dialogues(file: Path, limit: int) -> list[list[Message]]:
    raw = file.read_bytes()
    lines = (gzip.decompress(raw) if file.suffix == ".gz" else raw).splitlines()
    return [json.loads(line)["messages"] for line in lines[:limit] if line.strip()]


def questions_of(dialogue: Sequence[Message]) -> Iterator[tuple[Sequence[Message], str]]:
    """Each user turn with all before it, and what the assistant says next."""
    for place, message in enumerate(dialogue[:-1]):
        if message["role"] == "user" and dialogue[place + 1]["role"] == "assistant":
            yield dialogue[: place + 1], dialogue[place + 1]["content"]


class Remembering(Embedder):
    """The shipped model, of which every text is asked once for all settings."""

    def __init__(self) -> None:
        self._model = embedders.build(config.Embedder(deadline=60, remember=1_000_000))
        self.stamp, self.dimensions = self._model.stamp, self._model.dimensions
        self.opened = self._model.start
        self.closed = self._model.close
        self.embed = self._model.embed  # type: ignore[method-assign]

    async def start(self) -> None:
        """It was, for all settings."""

    async def close(self) -> None:
        """It will be, after all of them."""

    def stats(self) -> dict[str, float]:
        return self._model.stats()


async def play(
    dialogues: Sequence[Sequence[Message]], context: str, threshold: float, embedder: Remembering, progress: Progress
) -> Played:
    """Ask every turn of a cache that is empty at first."""
    address = find_address(CHAT)
    assert address is not None
    count: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    wrong: list[Wrong] = []
    settings = {"match": {"context": context, "threshold": threshold}}
    async with Cache(settings, store="memory:", embedder=embedder) as cache:
        for dialogue in progress.track(dialogues, description=context):
            for messages, right in questions_of(dialogue):
                body = json.dumps({"model": "m", "messages": list(messages)}).encode()
                delivery = await cache.respond(address, CIMultiDict(), body, _says(right))
                served = json.loads(b"".join([piece async for piece in delivery.pieces()]))
                delivery.close()
                await cache.settle()
                if len(messages) == 1:
                    continue
                status = dict(delivery.headers)["Cache-Status"]
                found = _DETAIL.search(status)
                reason = found[1] if found else "none"
                count["turns"] += 1
                if "; hit" not in status:
                    reasons[reason] += 1
                    continue
                count[reason] += 1
                said = served["choices"][0]["message"]["content"]
                if reason == "semantic" and said != right:
                    count["other words"] += 1
                    if not await says_the_same(said, right, embedder):
                        wrong.append(Wrong(messages, said, right))
    return Played(
        count["turns"], count["exact"], count["semantic"], count["other words"], wrong, dict(reasons.most_common())
    )


async def says_the_same(one: str, other: str, embedder: Embedder) -> bool:
    try:
        vectors: list[Vector] = [await embedder.embed(text, lambda vector: vector) for text in (one, other)]
    except TooLong:
        return False
    return float(vectors[0] @ vectors[1]) >= SAME and find_veto(one, other, GUARDS) is None


def _says(text: str) -> Any:
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }

    async def write(plan: Plan, recording: Recording) -> Reading:
        scribe = plan.dialect.scribe(
            plan.ask, 200, {"content-type": "application/json"}, store_tools=False, limit_bytes=answer_limit(plan)
        )
        recording.begin(200, {"content-type": "application/json"}, "dialogue")
        await recording.extend(scribe.feed(json.dumps(answer).encode(), 0))
        frames, reading = scribe.finish(True)
        await recording.extend(frames)
        return reading

    return write


def show(played: Mapping[str, Played], examples: int, console: Console) -> None:
    table = Table(title="turns that come after others, by match.context")
    table.add_column("context")
    headings = ("turns", "exact", "semantic", "other words", "wrong", "of hits", "95 %", "follow-ups")
    for heading in headings:
        table.add_column(heading, justify="right")
    for context, each in played.items():
        hits, wrong = each.exact + each.semantic, len(each.wrong)
        low, high = wilson(wrong, hits) if hits else (0.0, 1.0)
        table.add_row(
            context,
            f"{each.turns:,}",
            f"{each.exact:,}",
            f"{each.semantic:,}",
            f"{each.other_words:,}",
            f"{wrong:,}",
            share(wrong, hits),
            f"{low:.1%}-{high:.1%}",
            f"{each.reasons.get('follow-up', 0):,}",
        )
    console.print(table)
    for context, each in played.items():
        for found in each.wrong[:examples]:
            console.rule(context)
            for message in found.turns[-3:]:
                console.print(f"{message['role']}: {escape(message['content'])}", highlight=False)
            console.print(f"[green]right[/green]:  {escape(found.right)}", highlight=False)
            console.print(f"[red]served[/red]: {escape(found.served)}", highlight=False)


async def measure(
    dialogues: Sequence[Sequence[Message]], contexts: Sequence[str], threshold: float
) -> dict[str, Played]:
    embedder = Remembering()
    await embedder.opened()
    try:
        with Progress(console=Console(stderr=True)) as progress:
            return {each: await play(dialogues, each, threshold, embedder, progress) for each in contexts}
    finally:
        await embedder.closed()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--context", "contexts", multiple=True, metavar="CONTEXT", help="This one only; repeatable.")
@click.option("--threshold", type=click.FloatRange(0, 1), default=0.9, show_default=True, help="Cosine of a hit.")
@click.option(
    "--dialogues", type=click.IntRange(1), default=600, show_default=True, help="Of the file, from its start."
)
@click.option("--examples", type=click.IntRange(0), default=0, help="Wrong hits to show of each setting.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the counts here too.")
def main(
    file: Path, contexts: tuple[str, ...], threshold: float, dialogues: int, examples: int, json_path: Path | None
) -> None:
    """Play the dialogues in FILE, and count what is served from earlier ones."""
    try:
        played = asyncio.run(measure(read_dialogues(file, dialogues), contexts or CONTEXTS, threshold))
    except SemcacheError as error:
        sys.exit(f"loadtests.quality_conversations: {error.message}")
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"loadtests.quality_conversations: {file}: {type(error).__name__}: {error}")
    show(played, examples, Console())
    if json_path:
        counts = {context: {**each._asdict(), "wrong": len(each.wrong)} for context, each in played.items()}
        json_path.write_text(json.dumps(counts, indent=1) + "\n")


if __name__ == "__main__":
    main(prog_name="python -m loadtests.quality_conversations")
