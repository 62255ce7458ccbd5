"""How well cosine, guards, pair judge and reranker tell pairs with the same answer: the second table of quality_pairs.

A judge is worth what it makes of domains that it was not trained on. So each source that the shipped weights learned
from is judged by others, trained on all the rest; those are kept beside the vectors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from loadtests.report import wilson
from semcache.cache.guards import GUARDS, find_veto
from semcache.cache.judge import PairJudge
from semcache.tuning import judge_examples, train_judge, variants
from semcache.tuning.figures import PRECISIONS, Figures, measure
from semcache.tuning.judge_examples import DRAWING
from semcache.tuning.labelled import Embed, LabelledPairs, load
from semcache.tuning.train_judge import Training, train_without_each

# What the shipped weights are trained on; everything else is for measuring.
LEARNED = (
    "pairs_checklist_qqp",
    "pairs_paws",
    "stream_banking77",
    "stream_bitext_support",
    "stream_clinc150",
    "stream_dstc11_insurance",
    "stream_hint3_retail",
    "stream_sgd_slots",
)
NEAR = 0.70  # least cosine of what a cache would meet: below it no threshold in use lies
MOST = 20_000  # pairs of a source: the figures have two digits either way
CODE = (judge_examples.__file__, train_judge.__file__, variants.__file__)  # decides what weights come out
CALLS = 200  # of the judge, timed


class Scorer(Protocol):
    """A reranker: reads two questions together."""

    def score(self, asked: str, stored: str) -> float: ...


class Row(NamedTuple):
    """What the ways to score make of one source."""

    pairs: int
    same: int
    seen: bool  # whether the shipped weights were trained on it, so that others judge it here
    figures: Mapping[str, Figures]  # by way


def score(
    data: Path,
    files: Mapping[str, Path],
    embed: Embed,
    vectors: Path,
    reranker: Scorer | None,
    tell: Callable[[str], None],
) -> dict[str, Row]:
    """A row for each of `files`; `data` is the folder that they are from. Raises SemcacheError."""
    rows = {}
    learned = {name: path for name in LEARNED if (path := data / f"{name}.jsonl.gz").exists()}
    shipped = PairJudge.load()
    others = judges_without(learned, embed, vectors, tell) if learned.keys() & files.keys() else {}
    for name, path in files.items():
        tell(f"scoring {name}")
        pairs = sample(load(path, embed).near(NEAR))
        judge = others.get(name, shipped)
        vetoed = np.array([find_veto(pair.asked, pair.stored, GUARDS) is not None for pair in pairs], bool)
        ways = {"cosine": pairs.cosine, "+ guards": np.where(vetoed, -1, pairs.cosine)}
        judged = ask(judge, pairs)
        ways |= {"judge": judged, "+ guards + judge": np.where(vetoed, -1, judged)}
        if reranker is not None:
            reread = np.array([reranker.score(pair.asked, pair.stored) for pair in pairs])
            ways["+ guards + reranker"] = np.where(vetoed, -1, reread)
        figures = {way: measure(pairs.same, np.asarray(scores)) for way, scores in ways.items()}
        rows[name] = Row(len(pairs), int(pairs.same.sum()), name in learned, figures)
    return rows


def sample(pairs: LabelledPairs) -> LabelledPairs:
    return pairs.chosen(np.sort(np.random.default_rng(7).permutation(len(pairs))[:MOST]))


def ask(judge: PairJudge, pairs: LabelledPairs) -> NDArray[np.float32]:
    found = [
        judge.judge(pairs.texts[asked], pairs.vectors[asked], [pairs.texts[stored]], pairs.vectors[stored][np.newaxis])
        for asked, stored in zip(pairs.asked, pairs.stored, strict=True)
    ]
    return np.concatenate([np.zeros(0, np.float32), *found])


def judges_without(
    learned: Mapping[str, Path], embed: Embed, folder: Path, tell: Callable[[str], None]
) -> dict[str, PairJudge]:
    """For each source a judge that never saw it, and looks at what the shipped one looks at."""
    view = str(PairJudge.load().about["view"])
    digest = hashlib.sha256(view.encode())
    for file in (*CODE, *learned.values()):
        digest.update(Path(file).read_bytes())
    kept = {name: folder / f"judge-without-{name}-{digest.hexdigest()[:16]}.npz" for name in learned}
    if not all(path.exists() for path in kept.values()):
        sources = [load(path, embed, DRAWING) for path in learned.values()]
        folder.mkdir(parents=True, exist_ok=True)
        for name, arrays in train_without_each(sources, embed, Training(views=(view,)), tell).items():
            part = kept[name].with_suffix(".part.npz")
            np.savez(part, allow_pickle=False, **arrays)
            part.replace(kept[name])
    return {name: PairJudge.load(path) for name, path in kept.items() if path.exists()}


def time_judge(texts: Sequence[str], vectors: NDArray[np.float32]) -> dict[str, float]:
    """Microseconds a call, median, of texts read before: for one candidate and for eight, without and with guards."""
    judge = PairJudge.load()
    took = {}
    for count in (1, 8):
        for passed in (True, False):
            times = []
            for turn in range(2 * CALLS):
                at = turn % CALLS  # the second round is warm
                stored = slice(at + 1, at + 1 + count)
                begun = perf_counter_ns()
                judge.judge(texts[at], vectors[at], texts[stored], vectors[stored], guards_passed=passed)
                times.append(perf_counter_ns() - begun)
            took[f"{count}, {'after guards' if passed else 'asks guards'}"] = float(np.median(times[CALLS:])) / 1000
    return took


def show(rows: Mapping[str, Row], took_us: Mapping[str, float], console: Console) -> None:
    table = Table(
        title=f"pairs with cosine >= {NEAR:.2f}: same answers told from others",
        caption="* in training: judged here by weights that were trained on all the others",
    )
    table.add_column("source and way", no_wrap=True)
    for heading in ("AUC", *(f"recall at precision {least:.0%}" for least in PRECISIONS)):
        table.add_column(heading, justify="right")
    for name, row in rows.items():
        table.add_row(f"[bold]{name}{' *' if row.seen else ''}[/bold]", f"{row.same:,} of {row.pairs:,} same")
        ways = list(row.figures.items())
        for way, found in ways:
            cells = [f"{value:.3f}" for value in (found.area, *found.recalls)]
            table.add_row(f"  {way}", *cells, end_section=way == ways[-1][0])
    console.print(table)
    console.print("microseconds a call of the judge: " + ", ".join(f"{what} {us:.0f}" for what, us in took_us.items()))


def as_json(rows: Mapping[str, Row], took_us: Mapping[str, float]) -> dict[str, Any]:
    """Areas and recalls; a recall has its 95 % interval."""

    def figures(row: Row, found: Figures) -> dict[str, Any]:
        recalls = {
            f"{least}": {"value": value, "95%": wilson(round(value * row.same), row.same)}
            for least, value in zip(PRECISIONS, found.recalls, strict=True)
        }
        return {"auc": found.area, "recall_at_precision": recalls}

    return {
        "near": NEAR,
        "judge_us": dict(took_us),
        "sources": {
            name: {
                "pairs": row.pairs,
                "same": row.same,
                "in_training": row.seen,
                "ways": {way: figures(row, found) for way, found in row.figures.items()},
            }
            for name, row in rows.items()
        },
    }
