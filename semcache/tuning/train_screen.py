"""What `semcache tune train` reads, shows and writes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from semcache import config
from semcache.cache.engines import Engine
from semcache.cache.judge import PairJudge
from semcache.errors import ConfigError, SemcacheError
from semcache.tuning.embedding import Embedding
from semcache.tuning.figures import PRECISIONS, Figures
from semcache.tuning.judge_examples import DRAWING
from semcache.tuning.labelled import load, name_of
from semcache.tuning.train_judge import VIEWS, Trained, Training, train

LABELLED = ("pairs_*.jsonl*", "stream_*.jsonl*", "pairs_*.csv*", "stream_*.csv*")  # what is read of a folder


def find_files(data: Sequence[Path], only: Sequence[str], leave_out: Sequence[str]) -> list[Path]:
    """Raises ConfigError when nothing is left."""
    files = []
    for path in data:
        inside = sorted({file for pattern in LABELLED for file in path.glob(pattern)}) if path.is_dir() else [path]
        files += [
            file for file in inside if not path.is_dir() or any(fnmatch(name_of(file), each) for each in only or ("*",))
        ]
    files = [file for file in files if not any(fnmatch(name_of(file), each) for each in leave_out)]
    if not files:
        raise ConfigError(
            f"{', '.join(map(str, data))}: no file to learn from; folders are read for {LABELLED[0]} and alike"
        )
    return files


def run_training(
    files: Sequence[Path],
    settings: config.Config,
    make: Callable[[], Engine],
    output: Path | None,
    seed: int,
    vectors: Path | None,
    json_file: Path | None,
    console: Console,
) -> None:
    with Progress(console=Console(stderr=True), transient=True) as progress:
        embedding = Embedding(make, vectors, progress)
        sources = [load(file, embedding.embed, DRAWING) for file in files]
        plan = Training(seed=seed, views=tuple(VIEWS), embedder=embedding.stamp)
        task = progress.add_task("", total=None)
        trained = train(sources, embedding.embed, plan, lambda line: progress.update(task, description=line))
    show(trained, console)
    if json_file:
        _write(json_file, (json.dumps(as_json(trained), indent=1) + "\n").encode())
    if output:
        packed = io.BytesIO()
        np.savez_compressed(packed, allow_pickle=False, **trained.arrays)
        _write(output, packed.getvalue())
        judge = PairJudge.load(output, embedding.stamp)
        console.print(f"{output}: written, {len(packed.getvalue()) / 1024:.0f} KB, {judge.stamp}")


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as exc:
        raise SemcacheError(f"{path}: cannot be written: {exc.strerror or exc}") from exc


def show(trained: Trained, console: Console) -> None:
    table = Table(title="pairs a cache would meet, judged by what was not trained on them")
    for heading in ("source", "by", "AUC", *(f"recall at {least:.0%}" for least in PRECISIONS)):
        table.add_column(heading, justify="left" if heading in ("source", "by") else "right")
    for name, figures in trained.unseen.items():
        for number, (view, found) in enumerate(figures.items(), start=1):
            cells = [f"{value:.3f}" for value in (found.area, *found.recalls)]
            table.add_row(
                name if number == 1 else "", VIEWS.get(view, view), *cells, end_section=number == len(figures)
            )
    console.print(table)
    console.print(f"chosen: {VIEWS[trained.view]}")
    if not trained.is_better:
        console.print("It ranks pairs no better than the cosine alone: leave match.judge off, or label more pairs.")


def as_json(trained: Trained) -> Mapping[str, object]:
    def row(found: Figures) -> dict[str, object]:
        return {"auc": found.area, "recall": dict(zip(map(str, PRECISIONS), found.recalls, strict=True))}

    unseen = {name: {view: row(found) for view, found in figures.items()} for name, figures in trained.unseen.items()}
    return {"view": trained.view, "better_than_cosine": trained.is_better, "unseen": unseen}
