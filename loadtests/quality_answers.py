"""`python -m loadtests.quality_answers [DATA]`: how well comparing tells answers that say the same from others.

The pairs beside this file are answers as models give them: paraphrases, and others to questions that are nearly the
same. DATA is a folder of labelled text as for quality_pairs; of its answers (`answers` of stream_nqopen, `answer` of
prompts_templated) each is held against the nearest other one. Those are mostly the same thing written otherwise, so
what is told apart there is an upper bound of the errors.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from loadtests.quality_pairs import read_rows
from semcache import config
from semcache.cache.compare import SHORT_CHARS, Cuts, Texts, compare_texts, compare_vectors, joined, pieces_of
from semcache.cache.engines import OnnxEngine
from semcache.types import Vector

PAIRS = Path(__file__).parent / "answer_pairs.jsonl"
ALIKE = (0.80, 0.85, 0.90, 0.95)
MOST_ANSWERS = 3000  # of a source, by chance


class Embedding:
    def __init__(self) -> None:
        self._engine = OnnxEngine(config.Embedder())
        asyncio.run(self._engine.open())

    def vector(self, text: str) -> Vector | None:
        pieces = pieces_of(text)
        vectors = [reply for reply in self._engine.embed(pieces or []) if isinstance(reply, np.ndarray)]
        return joined(vectors) if pieces and len(vectors) == len(pieces) else None


def told(embedding: Embedding, fresh: str, stored: str, cuts: Cuts) -> bool | None:
    texts = compare_texts(fresh, stored)
    if isinstance(texts, bool):
        return texts
    one, other = (embedding.vector(text) for text in texts)
    return None if one is None or other is None else compare_vectors(texts, float(one @ other), cuts)


def nearest_others(embedding: Embedding, answers: Sequence[str]) -> Iterator[tuple[str, str, float]]:
    """Each answer with the nearest other one."""
    known = [(text, vector) for text in answers if (vector := embedding.vector(text)) is not None]
    vectors = np.stack([vector for _, vector in known])
    cosines = vectors @ vectors.T  # (n, d) @ (d, n)
    np.fill_diagonal(cosines, -1.0)
    for place, nearest in enumerate(cosines.argmax(axis=1)):
        yield known[place][0], known[nearest][0], float(cosines[place, nearest])


def sources(data: Path) -> Iterator[tuple[str, list[str]]]:
    for name, field in (("stream_nqopen", "answers"), ("prompts_templated", "answer")):
        file = data / f"{name}.jsonl.gz"
        if file.exists():
            answers = [row[field][0] if field == "answers" else row[field] for row in read_rows(file)]
            unique = sorted({" ".join(answer.split()) for answer in answers if answer.strip()})
            random.Random(1).shuffle(unique)
            yield name, unique[:MOST_ANSWERS]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("data", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(data: Path | None) -> None:
    """Print what comparing says of pairs of answers, for some cuts."""
    embedding, console = Embedding(), Console(width=120)
    differ = config.Match().answers_differ
    rows = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    table = Table("answers_alike", "answers", "pairs", "the same", "different", "doubt", title="pairs beside this file")
    for alike in ALIKE:
        counts: dict[tuple[str, bool], Counter[bool | None]] = {}
        for row in rows:
            length = "short" if max(len(row["a"]), len(row["b"])) <= SHORT_CHARS else "long"
            verdict = told(embedding, row["a"], row["b"], Cuts(alike, differ))
            counts.setdefault((length, row["same"]), Counter())[verdict] += 1
        for (length, same), count in sorted(counts.items()):
            name = f"{length}, say {'the same' if same else 'something else'}"
            figures = (count.total(), count[True], count[False], count[None])
            table.add_row(f"{alike:.2f}", name, *map(str, figures))
    console.print(table)
    for name, answers in sources(data) if data else ():
        pairs = list(nearest_others(embedding, answers))
        table = Table("answers_alike", "the same", "different", "doubt", title=f"{name}: nearest other answer")
        for alike in ALIKE:
            count = Counter(compare_vectors(Texts(a, b), cosine, Cuts(alike, differ)) for a, b, cosine in pairs)
            table.add_row(f"{alike:.2f}", *(f"{count[verdict] / len(pairs):.1%}" for verdict in (True, False, None)))
        console.print(table)


if __name__ == "__main__":
    main(prog_name="python -m loadtests.quality_answers")
