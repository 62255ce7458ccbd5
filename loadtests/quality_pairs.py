"""`python -m loadtests.quality_pairs DATA`: which wrong hits each guard vetoes, and which right hits it loses; then
how well cosine, guards, pair judge and reranker tell same answers from others (quality_judge.py).

DATA is a folder of labelled text: `pairs_NAME.jsonl.gz` with `a`, `b` and `duplicate`, and `stream_NAME.jsonl.gz` with
`text` and `class`. The pairs of a stream are those that a cache would look at: each text with the texts nearest to it
among those that came before. Of all pairs only those count whose cosine reaches the threshold: the others are no hits.

Texts are embedded once, by the shipped model, a thousand a second on two cores; the vectors are kept in a folder.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from time import perf_counter_ns
from typing import Any, NamedTuple

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from loadtests import quality_judge
from loadtests.report import wilson
from semcache import config
from semcache.cache import reranker_engines
from semcache.cache.engines import OnnxEngine, cores
from semcache.cache.guards import GUARDS
from semcache.errors import SemcacheError, TooLong

Vectors = NDArray[np.float32]
Embed = Callable[[str, Sequence[str]], Vectors]  # the source's name, its texts -> a unit vector for each

THRESHOLD = 0.85  # below the default of 0.90, so that what a guard makes possible is seen too
NEIGHBOURS = 4  # of a text in a stream: what match.neighbours looks at by default
VECTORS = Path(tempfile.gettempdir()) / "semcache-quality"  # 1.5 KB a text
BLOCK = 1024  # texts embedded, or compared with all others, between two steps of the progress bar
ALL, TOGETHER = "all guards", "all sources"
CAPTION = "alone: by no other guard"
# Streams that give no pairs worth counting.
LEFT_OUT = {
    "stream_qqp*": "the questions of pairs_qqp again",
    "stream_reuters": "classes are tags, not answers",
    "stream_agnews": "classes are tags, not answers",
    "stream_nqopen": "each text is a class of its own",
    "stream_ecommerce*": "each text is a class of its own",
}


class Pair(NamedTuple):
    asked: str
    stored: str
    same: bool  # whether the stored answer is right for the asked question
    cosine: float


class Count(NamedTuple):
    """What one guard does to the pairs of one source."""

    wrong: int  # pairs that would be wrong hits
    vetoed: int  # of them, those the guard vetoes
    vetoed_alone: int  # of them, those no other guard vetoes
    right: int
    lost: int
    lost_alone: int
    us: float  # microseconds a pair, of texts read for the first time


def read_rows(file: Path) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def sources(data: Path, only: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Each file to count, with its name: `qqp` for pairs_qqp, `stream_clinc150` for a stream."""
    for file in sorted([*data.glob("pairs_*.jsonl.gz"), *data.glob("stream_*.jsonl.gz")]):
        name = file.name.removesuffix(".jsonl.gz")
        if any(fnmatch(name, pattern) for pattern in only or ("*",)) and (
            only or not any(fnmatch(name, pattern) for pattern in LEFT_OUT)
        ):
            yield name, file


class Embedding:
    """Vectors of the shipped model, kept in a folder by the digest of the texts."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self._folder = folder
        self._progress = progress
        self._engine = OnnxEngine(config.Embedder())
        self._open = False

    def embed(self, name: str, texts: Sequence[str]) -> Vectors:
        """Return one unit vector per text, shape (len(texts), d); zeros for a text that the model cannot read."""
        digest = hashlib.sha256(json.dumps([self._engine.stamp, *texts]).encode()).hexdigest()
        path = self._folder / f"{name}-{digest[:16]}.npy"
        if path.exists():
            return np.load(path)  # type: ignore[no-any-return]
        vectors = self._compute(name, texts)
        self._folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npy")
        np.save(part, vectors)
        part.replace(path)
        return vectors

    def _compute(self, name: str, texts: Sequence[str]) -> Vectors:
        if not self._open:
            asyncio.run(self._engine.open())
            self._open = True
        vectors = np.zeros((len(texts), self._engine.dimensions), np.float32)
        task = self._progress.add_task(f"embedding {name}", total=len(texts))

        def share(start: int) -> None:
            chosen = texts[start : start + BLOCK]
            for row, reply in enumerate(self._engine.embed(chosen), start=start):
                if not isinstance(reply, TooLong):
                    vectors[row] = reply
            self._progress.advance(task, len(chosen))

        with ThreadPoolExecutor(cores()) as threads:
            list(threads.map(share, range(0, len(texts), BLOCK)))
        self._progress.remove_task(task)
        return vectors


def read_pairs(name: str, rows: Iterable[Mapping[str, Any]], embed: Embed) -> list[Pair]:
    """The labelled pairs, without those of equal texts, which are hits of the exact tier."""
    labelled = [(row["a"], row["b"], bool(row["duplicate"])) for row in rows if row["a"] != row["b"]]
    texts = sorted({text for a, b, _ in labelled for text in (a, b)})
    place = {text: number for number, text in enumerate(texts)}
    vectors = embed(name, texts)
    return [Pair(a, b, same, float(vectors[place[a]] @ vectors[place[b]])) for a, b, same in labelled]


def draw_pairs(name: str, rows: Iterable[Mapping[str, Any]], embed: Embed) -> list[Pair]:
    """Each text of a stream with its nearest predecessors."""
    classes: dict[str, str] = {}
    for number, row in enumerate(rows):
        # What fits no intent has an answer of its own; with slots, another city or date is another answer.
        label = f"row {number}" if row.get("oos") else row.get("class_slots", row["class"])
        classes.setdefault(row["text"], label)
    texts = list(classes)
    vectors = embed(name, texts)
    pairs = []
    for start in range(0, len(texts), BLOCK):
        block = vectors[start : start + BLOCK] @ vectors[: start + BLOCK].T  # (block, all until its end)
        block[np.triu_indices(len(block), k=start, m=block.shape[1])] = -1  # itself and what came later
        nearest = np.argsort(block, axis=1)[:, : -NEIGHBOURS - 1 : -1]
        for at, others in enumerate(nearest):
            asked = texts[start + at]
            for other in others[others < start + at]:
                same = classes[asked] == classes[texts[other]]
                pairs.append(Pair(asked, texts[other], same, float(block[at, other])))
    return pairs


def load(name: str, file: Path, embed: Embed) -> list[Pair]:
    read = read_pairs if name.startswith("pairs_") else draw_pairs
    return read(name, read_rows(file), embed)


def count(pairs: Sequence[Pair]) -> dict[str, Count]:
    """What each guard does, and all together, to pairs that are near enough."""
    vetoed: dict[str, set[int]] = {}
    took_us = {}
    for name, (differ, _) in GUARDS.items():
        begun = perf_counter_ns()
        vetoed[name] = {number for number, pair in enumerate(pairs) if differ(pair.asked, pair.stored)}
        took_us[name] = (perf_counter_ns() - begun) / 1000 / max(len(pairs), 1)
    vetoed[ALL], took_us[ALL] = set().union(*vetoed.values()), sum(took_us.values())
    by_how_many = Counter(number for name in GUARDS for number in vetoed[name])
    right = {number for number, pair in enumerate(pairs) if pair.same}
    counts = {}
    for name, numbers in vetoed.items():
        alone = numbers if name == ALL else {number for number in numbers if by_how_many[number] == 1}
        counts[name] = Count(
            wrong=len(pairs) - len(right),
            vetoed=len(numbers - right),
            vetoed_alone=len(alone - right),
            right=len(right),
            lost=len(numbers & right),
            lost_alone=len(alone & right),
            us=round(took_us[name], 1),
        )
    return counts


def added(counts: Sequence[Count]) -> Count:
    """The same for all sources together; the time is that of a pair."""
    pairs = [each.wrong + each.right for each in counts]
    us = sum(each.us * number for each, number in zip(counts, pairs, strict=True)) / max(sum(pairs), 1)
    return Count(*(sum(column) for column in zip(*counts, strict=True)))._replace(us=round(us, 1))


def share(events: int, trials: int) -> str:
    return f"{events / trials:.2%}" if trials else "-"


def show(counts: Mapping[str, Mapping[str, Count]], threshold: float, console: Console) -> None:
    """What is gained and what it costs, a section for each source, without the guards that say nothing there."""
    table = Table(title=f"pairs with cosine >= {threshold:.2f}: what the guards do to hits", caption=CAPTION)
    table.add_column("source and guard", no_wrap=True)
    for heading in ("wrong hits vetoed", "share", "alone", "right hits lost", "share", "alone"):
        table.add_column(heading, justify="right")
    for source, by_guard in counts.items():
        whole = by_guard[ALL]
        table.add_row(f"[bold]{source}[/bold]", f"of {whole.wrong:,}", "", "", f"of {whole.right:,}", "", "")
        for name, each in by_guard.items():
            if each.vetoed or each.lost or name == ALL:
                gained = f"{each.vetoed:,}", share(each.vetoed, each.wrong), f"{each.vetoed_alone:,}"
                paid = f"{each.lost:,}", share(each.lost, each.right), f"{each.lost_alone:,}"
                table.add_row(f"  {name}", *gained, *paid, end_section=name == ALL)
    console.print(table)
    spent = list(counts.values())[-1]
    console.print("microseconds a pair: " + ", ".join(f"{name} {each.us}" for name, each in spent.items()))


def show_examples(guard: str, found: Mapping[str, Sequence[Pair]], number: int, console: Console) -> None:
    """Some right hits that the guard loses, and some wrong ones that it vetoes, in an order that stays the same."""
    differ = GUARDS[guard][0]
    for title, same in (("right hits lost", True), ("wrong hits vetoed", False)):
        console.rule(f"{guard}: {title}")
        for source, pairs in found.items():
            chosen = [pair for pair in pairs if pair.same == same and differ(pair.asked, pair.stored)]
            for pair in random.Random(7).sample(chosen, min(number, len(chosen))):
                console.print(
                    f"[dim]{source} {pair.cosine:.3f}[/dim]  {escape(pair.asked)}  [dim]|[/dim]  {escape(pair.stored)}",
                    soft_wrap=True,
                    highlight=False,
                )


def as_json(counts: Mapping[str, Mapping[str, Count]], threshold: float) -> dict[str, Any]:
    """The counts as they are, and each share with its 95 % interval."""
    return {
        "threshold": threshold,
        "sources": {
            source: {
                name: {
                    **each._asdict(),
                    "vetoed_share": {"value": each.vetoed / max(each.wrong, 1), "95%": wilson(each.vetoed, each.wrong)},
                    "lost_share": {"value": each.lost / max(each.right, 1), "95%": wilson(each.lost, each.right)},
                }
                for name, each in by_guard.items()
            }
            for source, by_guard in counts.items()
        },
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--threshold", type=click.FloatRange(0, 1), default=THRESHOLD, show_default=True, help="Cosine of a hit.")
@click.option("--only", multiple=True, metavar="NAME", help="This file, such as pairs_qqp; * allowed; repeatable.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the counts here too.")
@click.option("--examples", type=click.Choice(list(GUARDS)), help="Show pairs that this guard vetoes instead.")
@click.option("--number", type=click.IntRange(1), default=10, show_default=True, help="Of examples, from each file.")
@click.option("--vectors", type=click.Path(path_type=Path), default=VECTORS, help="Where vectors are kept.")
@click.option("--judge/--no-judge", default=True, help="Show the second table, too. Trains judges the first time.")
@click.option("--reranker", metavar="NAME", help='Measure this one, too: "shipped", a hub name, a folder. 4 ms a pair.')
def main(
    data: Path,
    threshold: float,
    only: tuple[str, ...],
    json_path: Path | None,
    examples: str | None,
    number: int,
    vectors: Path,
    judge: bool,
    reranker: str | None,
) -> None:
    """Count what the guards do to the labelled pairs in the folder DATA that are near enough to be hits.

    Read are pairs_NAME.jsonl.gz, with "a", "b" and "duplicate" in each line, and stream_NAME.jsonl.gz, with "text" and
    "class", or "class_slots", in the order of time.
    """
    files = dict(sources(data, only))
    if not files:
        sys.exit(f"loadtests.quality_pairs: {data} has no pairs_*.jsonl.gz or stream_*.jsonl.gz to count")
    found = {}
    try:
        with Progress(console=Console(stderr=True)) as progress:
            embedding = Embedding(vectors, progress)
            for name, file in files.items():
                found[name] = [pair for pair in load(name, file, embedding.embed) if pair.cosine >= threshold]
    except SemcacheError as error:
        sys.exit(f"loadtests.quality_pairs: {error.message}")
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"loadtests.quality_pairs: {data}: {type(error).__name__}: {error}")
    console = Console()
    if examples:
        show_examples(examples, found, number, console)
        return
    counts = {name: count(pairs) for name, pairs in found.items()}
    counts[TOGETHER] = {name: added([each[name] for each in counts.values()]) for name in (*GUARDS, ALL)}
    show(counts, threshold, console)
    told = as_json(counts, threshold)
    if judge:
        told["ways"] = compare_ways(data, files, vectors, reranker, console)
    if json_path:
        json_path.write_text(json.dumps(told, indent=1) + "\n")


def compare_ways(
    data: Path, files: Mapping[str, Path], vectors: Path, reranker: str | None, console: Console
) -> dict[str, Any]:
    try:
        scorer = None
        if reranker is not None:
            scorer = reranker_engines.build(reranker)
            scorer.open()
        with Progress(console=Console(stderr=True)) as progress:
            embed = Embedding(vectors, progress).embed
            task = progress.add_task("", total=None)
            rows = quality_judge.score(
                data, files, embed, vectors, scorer, lambda line: progress.update(task, description=line)
            )
            texts = list(
                dict.fromkeys(row["a" if "a" in row else "text"] for row in read_rows(next(iter(files.values()))))
            )
            took_us = quality_judge.time_judge(texts[:250], embed("timed", texts[:250])) if len(texts) >= 250 else {}
    except SemcacheError as error:
        sys.exit(f"loadtests.quality_pairs: {error.message}")
    quality_judge.show(rows, took_us, console)
    return quality_judge.as_json(rows, took_us)


if __name__ == "__main__":
    main(prog_name="python -m loadtests.quality_pairs")
