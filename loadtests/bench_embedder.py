"""What embedding costs: the bare model, the model behind `Embedder`, and whether 8 bits decide as 32 do.

    python -m loadtests.bench_embedder
    python -m loadtests.bench_embedder --agreement FOLDER    # pairs_*.jsonl.gz of {"a", "b", "duplicate": 0 | 1}

Every figure is the best of several rounds, so that other work on the machine disturbs least; ratios are of one run.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from semcache import config
from semcache.cache import embedder, model
from semcache.cache.engines import OnnxEngine
from semcache.types import Vector

TEXTS = 300  # a round
ROUNDS = 5
THRESHOLDS = (0.80, 0.85, 0.88, 0.90, 0.92, 0.95, 0.97)

console = Console(width=110)


def questions() -> Iterator[str]:
    """Different questions without end, 12 to 14 tokens each with the two marks."""
    verbs = ("return", "exchange", "repair", "insure", "track", "cancel", "change", "renew")
    things = ("phone", "jacket", "ticket", "laptop", "chair", "parcel", "bike", "card", "camera", "table", "invoice")
    times = ("today", "tomorrow", "on Monday", "next week", "in June", "this month", "after lunch", "at night")
    for number in itertools.count(100):
        for verb, thing, when in itertools.product(verbs, things, times):
            yield f"How can I {verb} the {thing} {number} {when}?"


def best(times: Sequence[float]) -> float:
    return min(times)


def bare(session: Any, tokenizer: Any, texts: Sequence[str]) -> None:
    """What an embedding takes at least: tokenise, run."""
    for text in texts:
        session.run(None, {"input_ids": np.array([tokenizer.encode(text).ids], dtype=np.int64)})


def open_session(path: Path, threads: int = 1) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_threads(count: int, work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def in_batches(session: Any, ids: Any, size: int) -> Callable[[], None]:
    def run() -> None:
        for start in range(0, len(ids) - size + 1, size):
            session.run(None, {"input_ids": ids[start : start + size]})

    return run


def in_parallel(*work: Callable[[], None]) -> Callable[[], None]:
    return lambda: in_threads(len(work), lambda number: work[number]())


def bench_shapes(graphs: dict[str, Path], tokenizer: Any) -> None:
    """One text a call or many, one thread or two: the same texts, the bare model."""
    source = questions()
    texts = [next(source) for _ in range(TEXTS)]
    tokens = [tokenizer.encode(text).ids for text in texts]
    common = Counter(map(len, tokens)).most_common(1)[0][0]
    even = np.array([ids for ids in tokens if len(ids) == common], dtype=np.int64)
    table = Table("graph", "shape", "ms a text", "texts/s", title=f"the bare model, {common} tokens a text")
    for name, path in graphs.items():
        one, two = open_session(path), open_session(path, threads=2)
        other = open_session(path)

        singly = in_batches(one, even, 1)
        shapes: dict[str, tuple[Callable[[], None], int]] = {
            "1 thread, batch 1": (singly, len(even)),
            "1 thread, batch 8": (in_batches(one, even, 8), len(even) // 8 * 8),
            "1 thread, batch 32": (in_batches(one, even, 32), len(even) // 32 * 32),
            "2 threads in a call, batch 1": (in_batches(two, even, 1), len(even)),
            "2 threads in a call, batch 8": (in_batches(two, even, 8), len(even) // 8 * 8),
            "2 sessions, a thread each": (
                in_parallel(in_batches(one, even, 1), in_batches(other, even, 1)),
                2 * len(even),
            ),
            "1 session, 2 threads calling": (
                in_parallel(in_batches(one, even, 1), in_batches(one, even, 1)),
                2 * len(even),
            ),
        }
        for shape, (run, count) in shapes.items():
            seconds = best([timed(run) for _ in range(ROUNDS)])
            table.add_row(name, shape, f"{seconds / count * 1e3:.2f}", f"{count / seconds:,.0f}")
    console.print(table)


async def bench_embedder(prepared: model.PreparedModel) -> None:
    """The model behind Embedder against the bare model, on the cores this process has."""
    from tokenizers import Tokenizer

    settings = config.Embedder(deadline=60.0, remember=100_000)
    under_test = embedder.Embedder(settings, OnnxEngine(settings, prepared))
    await under_test.start()
    session, tokenizer = (
        open_session(prepared.folder / model.MODEL),
        Tokenizer.from_file(str(prepared.folder / model.TOKENIZER)),
    )
    source = questions()
    bare(session, tokenizer, [next(source) for _ in range(50)])
    vectors: list[Vector] = []
    alone, bare_one, throughput, ceiling, again = [], [], [], [], []
    cores = len(os.sched_getaffinity(0))

    async def ask(text: str) -> float:
        started = time.perf_counter()
        vectors.append(await under_test.embed(text, lambda vector: vector))
        return time.perf_counter() - started

    async def worker(texts: Iterator[str]) -> None:
        for text in texts:
            await ask(text)

    # Both sides in turn and only then compared: the machine's speed changes more between minutes than between rounds.
    for _ in range(ROUNDS):
        texts = [next(source) for _ in range(TEXTS)]
        bare_one.append(np.median([timed(partial(bare, session, tokenizer, [text])) for text in texts]))
        alone.append(np.median([await ask(text) for text in texts]))
        again.append(np.median([await ask(text) for text in texts]))
        texts = [next(source) for _ in range(TEXTS)]
        shares = [partial(bare, session, tokenizer, texts[number::cores]) for number in range(cores)]
        ceiling.append(timed(in_parallel(*shares)))
        shared = iter(texts)
        started = time.perf_counter()
        await asyncio.gather(*(worker(shared) for _ in range(32)))
        throughput.append(time.perf_counter() - started)
    await under_test.close()

    table = Table("measure", "bare model", "Embedder", "", title=f"on {cores} core{'s' * (cores > 1)}")
    extra_ms = (best(alone) - best(bare_one)) * 1e3
    table.add_row(
        "one at a time, p50", f"{best(bare_one) * 1e3:.2f} ms", f"{best(alone) * 1e3:.2f} ms", f"+{extra_ms:.2f} ms"
    )
    ratio = best(ceiling) / best(throughput)
    table.add_row(
        "32 at a time", f"{TEXTS / best(ceiling):,.0f}/s", f"{TEXTS / best(throughput):,.0f}/s", f"ratio {ratio:.2f}"
    )
    table.add_row("remembered, p50", "", f"{best(again) * 1e3:.3f} ms", "")
    console.print(table)


def read_pairs(folder: Path, limit: int) -> dict[str, list[tuple[str, str, bool]]]:
    pairs: dict[str, list[tuple[str, str, bool]]] = {}
    for file in sorted(folder.glob("pairs_*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        random.Random(7).shuffle(rows)
        name = file.name.removeprefix("pairs_").removesuffix(".jsonl.gz")
        pairs[name] = [(row["a"], row["b"], bool(row["duplicate"])) for row in rows[:limit]]
    return pairs


def agreement(folder: Path, limit: int, graphs: dict[str, Path], prepared: model.PreparedModel) -> dict[str, Any]:
    """Cosines of both graphs for every pair, and how often a threshold decides alike."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(prepared.folder / model.TOKENIZER))
    pairs = read_pairs(folder, limit)
    texts = sorted({text for rows in pairs.values() for pair in rows for text in pair[:2]})
    readable = {t: ids for t in texts if len(ids := tokenizer.encode(t).ids) <= prepared.manifest.window}
    console.print(f"{sum(map(len, pairs.values())):,} pairs, {len(readable):,} texts, embedding each with each graph")
    place = {text: number for number, text in enumerate(readable)}
    vectors = {}
    for name, path in graphs.items():
        vectors[name] = embed_all(open_session(path), list(readable.values()), prepared.manifest.dimensions)
    result: dict[str, Any] = {"mean_cosine_to_fp32": {}, "sets": {}}
    others = [name for name in graphs if name != "fp32"]
    for name in others:
        same = np.sum(vectors["fp32"] * vectors[name], axis=1)
        result["mean_cosine_to_fp32"][name] = float(same.mean())
    every: dict[str, list[Any]] = {name: [] for name in graphs}
    labels: list[Any] = []
    for label, rows in pairs.items():
        at = np.array([(place[a], place[b], same) for a, b, same in rows if a in place and b in place])
        cosines = {name: np.sum(v[at[:, 0]] * v[at[:, 1]], axis=1) for name, v in vectors.items()}
        labels.append(at[:, 2])
        for name in graphs:
            every[name].append(cosines[name])
        result["sets"][label] = {name: compare(cosines["fp32"], cosines[name], at[:, 2]) for name in others}
    whole = {name: np.concatenate(cosines) for name, cosines in every.items()}
    result["all"] = {name: compare(whole["fp32"], whole[name], np.concatenate(labels)) for name in others}
    return result


def embed_all(session: Any, texts: Sequence[Sequence[int]], dimensions: int) -> Any:
    vectors = np.empty((len(texts), dimensions), np.float32)

    def share(number: int) -> None:
        for row in range(number, len(texts), 2):
            vectors[row] = session.run(None, {"input_ids": np.array([texts[row]], dtype=np.int64)})[0][0]

    in_threads(2, share)
    return vectors


def compare(fp32: Any, other: Any, same: Any) -> dict[str, Any]:
    """`hits`, `wrong`: pairs at or above each threshold, and those of them that differ, by each graph."""
    different = same == 0
    near = fp32 >= 0.75  # where thresholds lie; below, differences decide nothing
    shift = np.abs(other - fp32)[near]
    return {
        "pairs": len(fp32),
        "near": int(near.sum()),
        "agree": {str(t): float(np.mean((fp32 >= t) == (other >= t))) for t in THRESHOLDS},
        "hits": {str(t): [int((fp32 >= t).sum()), int((other >= t).sum())] for t in THRESHOLDS},
        "wrong": {str(t): [int((different & (v >= t)).sum()) for v in (fp32, other)] for t in THRESHOLDS},
        "shift": {
            "mean": float(np.mean(other[near] - fp32[near])) if near.any() else 0.0,
            **{f"p{p}": float(np.percentile(shift, p)) if near.any() else 0.0 for p in (50, 95, 99)},
            "max": float(shift.max(initial=0.0)),
        },
    }


def show_agreement(result: dict[str, Any]) -> None:
    for name, mean in result["mean_cosine_to_fp32"].items():
        table = Table(
            "pairs",
            "number",
            *(f"{t:.2f}" for t in THRESHOLDS),
            "|shift| p50",
            "p99",
            "max",
            title=f"{name}: % of pairs on the same side of a threshold as with fp32 (mean cosine {mean:.4f})",
        )
        for label, by in [*result["sets"].items(), ("all", result["all"])]:
            row = by[name]
            cells = [f"{100 * row['agree'][str(t)]:.2f}" for t in THRESHOLDS]
            shift = row["shift"]
            table.add_row(
                label, f"{row['pairs']:,}", *cells, f"{shift['p50']:.4f}", f"{shift['p99']:.4f}", f"{shift['max']:.3f}"
            )
        whole = result["all"][name]
        for number, graph in enumerate(("fp32", name)):
            counts = [(whole["hits"][str(t)][number], whole["wrong"][str(t)][number]) for t in THRESHOLDS]
            table.add_row(f"hits, {graph}", "", *(f"{hits:,}" for hits, _ in counts))
            table.add_row("of them wrong, %", "", *(f"{100 * wrong / max(hits, 1):.1f}" for hits, wrong in counts))
        console.print(table)


def write_fp32(folder: Path) -> Path:
    """The graph before quantising, by the same exporter. Returns its path."""
    source = model.locate(model.DEFAULT)
    weights = model.check_weights(model.DEFAULT, source)
    command = [sys.executable, "-m", "semcache.cache.model_export", str(source), str(folder), "--name", model.DEFAULT]
    subprocess.run([*command, "--weights", weights, "--precision", "fp32"], check=True, capture_output=True)
    return folder / model.MODEL


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench_embedder", description=__doc__)
    parser.add_argument(
        "--agreement", type=Path, metavar="FOLDER", help="compare decisions on pairs_*.jsonl.gz instead"
    )
    parser.add_argument("--pairs", type=int, default=4000, help="at most so many of each file (default 4000)")
    parser.add_argument("--json", type=Path, help="write the comparison here too")
    parser.add_argument("--one-core", action="store_true", help="only the Embedder on one core")
    args = parser.parse_args()
    prepared = model.prepare(progress=console.print)
    if args.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        uvloop.run(bench_embedder(prepared))
        return
    with tempfile.TemporaryDirectory() as folder:
        graphs = {"fp32": write_fp32(Path(folder)), prepared.manifest.precision: prepared.folder / model.MODEL}
        if args.agreement:
            result = agreement(args.agreement, args.pairs, graphs, prepared)
            show_agreement(result)
            if args.json:
                args.json.write_text(json.dumps(result, indent=1))
            return
        from tokenizers import Tokenizer

        bench_shapes(graphs, Tokenizer.from_file(str(prepared.folder / model.TOKENIZER)))
    uvloop.run(bench_embedder(prepared))
    # Another process: the number of threads is chosen from the cores there are at the start.
    subprocess.run([sys.executable, "-m", "loadtests.bench_embedder", "--one-core"], check=True)


if __name__ == "__main__":
    main()
