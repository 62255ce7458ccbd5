"""`python -m loadtests.quality_twins`: twins that no cache may serve, and harmless rewrites that it should not lose.

Twins are two questions with nearly the same words and other answers: another number, place, direction. They are made
from the frames in twins.txt, which were written apart from the tables of the guards. A twin is served when the shipped
model finds the two near enough and no guard objects.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from loadtests.quality_pairs import VECTORS, Embedding, share
from semcache.cache.guards import GUARDS
from semcache.errors import SemcacheError

FRAMES = Path(__file__).with_name("twins.txt")
NEAR = (0.80, 0.90)  # cosines: the lowest threshold that anybody sets, and the default


class Pair(NamedTuple):
    kind: str
    asked: str
    stored: str


class Frame(NamedTuple):
    kind: str
    slot: str  # what the twins differ in; "-": the words in brackets
    text: str


def read_frames(file: Path = FRAMES) -> tuple[list[Frame], Mapping[str, Sequence[str]]]:
    """The frames, and the words for each slot. Raises ValueError for a line that fits no rule of the file."""
    words: dict[str, list[str]] = {}
    frames: list[Frame] = []
    kind = slot = ""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("<"):
            name, _, entries = line.partition("=")
            words[name.strip(" <>")] = [entry.strip() for entry in entries.split(";")]
        elif line.startswith("== "):
            kind, _, slot = (part.strip() for part in line.removeprefix("== ").partition(":"))
        elif line and not line.startswith("#"):
            if f"{{{slot}}}" not in line and not (slot == "-" and _CHOICE.search(line)):
                raise ValueError(f"{file.name}: {line!r} has nothing that changes in kind {kind!r}")
            frames.append(Frame(kind, slot, line))
    return frames, words


_SLOT = re.compile(r"{(\w+)}")
_CHOICE = re.compile(r"\[([^|\]]+)\|([^|\]]+)\]")


def make_twins(
    frames: Sequence[Frame], words: Mapping[str, Sequence[str]], each: int, draw: random.Random
) -> list[Pair]:
    """At most `each` twins of a kind, shared out evenly among its frames."""
    kinds: dict[str, list[Frame]] = {}
    for frame in frames:
        kinds.setdefault(frame.kind, []).append(frame)
    found: list[Pair] = []
    for kind, own in kinds.items():
        pairs: dict[tuple[str, str], Pair] = {}
        for turn in range(4 * each):  # repeats are drawn again, as often as is worth it
            asked, stored = _fill(own[turn % len(own)], words, draw)
            if asked != stored and len(pairs) < each:
                pairs.setdefault((min(asked, stored), max(asked, stored)), Pair(kind, asked, stored))
        found.extend(pairs.values())
    return found


def _fill(frame: Frame, words: Mapping[str, Sequence[str]], draw: random.Random) -> tuple[str, str]:
    chosen = {slot: draw.choice(words[slot]) for slot in _SLOT.findall(frame.text) if slot != frame.slot}
    text = _SLOT.sub(lambda slot: chosen.get(slot[1], slot[0]), frame.text)
    if frame.slot == "-":
        return _CHOICE.sub(r"\1", text), _CHOICE.sub(r"\2", text)
    one, other = draw.sample(words[frame.slot], 2)
    return text.replace(f"{{{frame.slot}}}", one), text.replace(f"{{{frame.slot}}}", other)


# What people change without meaning anything by it. Each returns None where it has nothing to change.
Rewrite = Callable[[str, random.Random], str | None]


def _swap(table: Sequence[tuple[str, str]]) -> Rewrite:
    def rewrite(text: str, draw: random.Random) -> str | None:
        for one, other in table:
            changed = re.sub(rf"(?<![\w\"`.:-]){one}(?![\w\"`:]|\.\d)", other, text, count=1)
            if changed != text:
                return changed
        return None

    return rewrite


def _frame(*frames: str) -> Rewrite:
    return lambda text, draw: draw.choice(frames).format(text.rstrip("?"), text[0].lower() + text[1:])


def _mistype(text: str, draw: random.Random) -> str | None:
    """Two letters exchanged inside a long word in lower case."""
    long = list(re.finditer(r"(?<![\w\"`-])[a-z]{7,}(?![\w\"`-])", text))
    if not long:
        return None
    word = draw.choice(long)
    at = word.start() + draw.randrange(2, len(word[0]) - 2)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :] if text[at] != text[at + 1] else None


REWRITES: Mapping[str, Rewrite] = {
    "politeness": _frame("Hi, {1}", "{0}, please?", "Hello! {1} Thanks.", "{0}? Thank you", "Please help: {1}"),
    "asked aloud": _frame("I have a question: {1}", "Quick question - {1}", "I was wondering: {1}"),
    "case and marks": lambda text, draw: text.lower().rstrip("?") if text.lower() != text else text + "??",
    "contraction": _swap([("What is", "What's"), ("Where is", "Where's"), ("Who is", "Who's"), ("I want", "I'd like")]),
    "how to": _swap(
        [
            ("How do I", "How can I"),
            ("how do i", "how to"),
            ("How do you", "How does one"),
            ("Can I", "Am I allowed to"),
            ("Is it possible to", "Can I"),
            ("What does", "What exactly does"),
            ("What are", "Tell me what are"),
            ("Where can I", "Where could I"),
        ]
    ),
    "synonym": _swap(
        [
            ("buy", "purchase"),
            ("fix", "repair"),
            ("start", "begin"),
            ("cancel", "call off"),
            ("reset", "restore"),
            ("films", "movies"),
            ("rent", "hire"),
            ("flat", "apartment"),
            ("largest", "biggest"),
            ("safe", "all right"),
            ("home", "my place"),
            ("earn", "make"),
            ("weather", "forecast"),
            ("rules", "regulations"),
            ("appointment", "meeting"),
            ("shops", "stores"),
            ("grow up", "spend childhood"),
            ("mean", "signify"),
            ("phone", "mobile"),
            ("hard", "difficult"),
        ]
    ),
    "typo": _mistype,
    "figures": _swap(
        [
            ("2", "two"),
            ("3", "three"),
            ("4", "four"),
            ("6", "six"),
            ("seven", "7"),
            ("twenty", "20"),
            ("percent", "%"),
            ("13", "thirteen"),
            ("1 pm", "13:00"),
            ("8 pm", "8:00 PM"),
            ("minutes", "mins"),
            ("kg", "kilograms"),
            ("dollars", "USD"),
        ]
    ),
    "spelling": _swap(
        [
            ("metres", "meters"),
            ("kilometres", "kilometers"),
            ("neighbour", "neighbor"),
            ("Summarise", "Summarize"),
            ("centimetres", "centimeters"),
            ("kilometre", "kilometer"),
            ("tap water", "tapwater"),
            ("lasagna", "lasagne"),
            ("two-factor", "two factor"),
        ]
    ),
}


def make_rewrites(
    frames: Sequence[Frame], words: Mapping[str, Sequence[str]], each: int, draw: random.Random
) -> list[Pair]:
    """At most `each` rewrites of a kind, of filled frames. The script stays, the meaning too."""
    found: list[Pair] = []
    usable = [frame for frame in frames if frame.kind != "script"]
    for kind, rewrite in REWRITES.items():
        pairs: dict[str, Pair] = {}
        for frame in draw.sample(usable, len(usable)) * 2:
            text, _ = _fill(frame, words, draw)
            other = rewrite(text, draw)
            if other is not None and other != text and len(pairs) < each:
                pairs.setdefault(text, Pair(kind, text, other))
        found.extend(pairs.values())
    return found


def vetoes(pair: Pair) -> list[str]:
    return [name for name, (differ, _) in GUARDS.items() if differ(pair.asked, pair.stored)]


class Judged(NamedTuple):
    pair: Pair
    cosine: float
    by: Sequence[str]  # the guards that object


def judge(pairs: Sequence[Pair], name: str, embedding: Embedding) -> list[Judged]:
    texts = sorted({text for pair in pairs for text in (pair.asked, pair.stored)})
    vectors = dict(zip(texts, embedding.embed(name, texts), strict=True))
    return [Judged(pair, float(np.dot(vectors[pair.asked], vectors[pair.stored])), vetoes(pair)) for pair in pairs]


def _rows(judged: Sequence[Judged], is_counted: Callable[[Judged], bool]) -> Iterator[Sequence[str]]:
    kinds = dict.fromkeys(each.pair.kind for each in judged)
    for kind in (*kinds, None):
        own = [each for each in judged if kind in (None, each.pair.kind)]
        near = [[each for each in own if each.cosine >= cosine] for cosine in NEAR]
        counted = [sum(map(is_counted, each)) for each in near]
        numbers = [len(own), *map(len, near), *counted]
        yield kind or "all", *(f"{number:,}" for number in numbers), share(counted[0], len(near[0]))


def show(title: str, what: str, judged: Sequence[Judged], is_counted: Callable[[Judged], bool], out: Console) -> None:
    table = Table(title=title)
    table.add_column("kind", no_wrap=True)
    for heading in (
        "pairs",
        *(f">= {cosine:.2f}" for cosine in NEAR),
        *(f"{what} at {cosine:.2f}" for cosine in NEAR),
        "share",
    ):
        table.add_column(heading, justify="right")
    rows = list(_rows(judged, is_counted))
    for number, row in enumerate(rows, start=1):
        table.add_row(*row, end_section=number == len(rows) - 1)
    out.print(table)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--each", type=click.IntRange(1), default=200, show_default=True, help="Pairs of a kind, at most.")
@click.option("--seed", type=int, default=1, show_default=True, help="Which words fill the frames.")
@click.option("--examples", is_flag=True, help="List the twins served and the rewrites lost.")
@click.option("--vectors", type=click.Path(path_type=Path), default=VECTORS, help="Where vectors are kept.")
def main(each: int, seed: int, examples: bool, vectors: Path) -> None:
    """Count the twins that would be served with all guards, and the harmless rewrites that they would lose.

    Exits with 1 when a twin is served.
    """
    frames, words = read_frames()
    draw = random.Random(seed)
    made = {"twins": make_twins(frames, words, each, draw), "rewrites": make_rewrites(frames, words, each, draw)}
    try:
        with Progress(console=Console(stderr=True)) as progress:
            embedding = Embedding(vectors, progress)
            twins, rewrites = (judge(pairs, name, embedding) for name, pairs in made.items())
    except SemcacheError as error:
        sys.exit(f"loadtests.quality_twins: {error.message}")
    served = [each for each in twins if not each.by and each.cosine >= NEAR[0]]
    lost = [each for each in rewrites if each.by and each.cosine >= NEAR[0]]
    out = Console()
    if examples:
        for title, listed in (("served", served), ("lost", lost)):
            for judged in listed:
                pair = judged.pair
                out.print(
                    f"{title} {judged.cosine:.3f} {pair.kind} {','.join(judged.by)}  {pair.asked}  |  {pair.stored}",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )
    show(f"twins from {len(frames)} frames: none may be served", "served", twins, lambda each: not each.by, out)
    show("harmless rewrites: few should be lost", "lost", rewrites, lambda each: bool(each.by), out)
    sys.exit(bool(served))


if __name__ == "__main__":
    main(prog_name="python -m loadtests.quality_twins")
