"""The table of ways to score pairs: what each way makes of a source, and which weights judge it."""

import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from loadtests.quality_judge import as_json, score, show
from semcache.tuning.labelled import Vectors

PAIRS = [
    ("How do I enable alerts?", "How do I disable alerts?", 0),
    ("How do I enable alerts?", "How can I enable alerts?", 1),
    ("Take 5 mg", "Take 50 mg", 0),
    ("Where do I park?", "Where can I park?", 1),
]


def embed(_name: str, texts: Sequence[str]) -> Vectors:
    """The more a text looks like any other, the nearer: twins are nearer than paraphrases."""
    angles = [0.1 * ("can" in text) for text in texts]
    return np.array([[np.cos(angle), np.sin(angle)] for angle in angles], np.float32)


class Right:
    def score(self, asked: str, stored: str) -> float:
        return float((asked, stored, 1) in PAIRS)


def test_each_way_has_its_figures_and_a_veto_is_the_lowest_score(tmp_path: Path) -> None:
    path = tmp_path / "pairs_mine.jsonl.gz"
    with gzip.open(path, "wt") as file:
        for a, b, duplicate in PAIRS:
            file.write(json.dumps({"a": a, "b": b, "duplicate": duplicate}) + "\n")
    rows = score(tmp_path, {"pairs_mine": path}, embed, tmp_path, Right(), lambda line: None)
    (row,) = rows.values()
    assert (row.pairs, row.same, row.seen) == (4, 2, False)
    areas = {way: found.area for way, found in row.figures.items()}
    assert areas == {"cosine": 0, "+ guards": 1, "judge": 1, "+ guards + judge": 1, "+ guards + reranker": 1}

    shown = io.StringIO()
    show(rows, {"1": 20.0}, Console(file=shown, width=120))
    assert "2 of 4 same" in shown.getvalue()
    told = as_json(rows, {"1": 20.0})["sources"]["pairs_mine"]
    assert told["ways"]["judge"]["recall_at_precision"]["0.95"]["value"] == 1
    assert not told["in_training"]
