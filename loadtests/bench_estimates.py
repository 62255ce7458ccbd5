"""How far token estimates are off: `python -m loadtests.bench_estimates --tokenizer tokenizer.json FILE...`

Holds `semcache.usage.estimates.count_tokens` against a real tokenizer (a Hugging Face tokenizer.json of the model that
is asked), over pieces of the texts named: text files as they are, JSON Lines by the strings in them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

from tokenizers import Tokenizer

from semcache.usage.estimates import count_tokens

PIECE_CHARS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("files", type=Path, nargs="+")
    asked = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(asked.tokenizer))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    print(f"{'file':40} {'texts':>6} {'tokens':>9} {'sum':>6} {'median':>7} {'p95':>6} {'ms/1000 chars':>14}")
    for file in asked.files:
        texts = [text for text in texts_of(file) if text.strip()]
        truth = [len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts]
        begun = perf_counter()
        told = [count_tokens(text) for text in texts]
        took_ms = (perf_counter() - begun) * 1e3
        errors = sorted(abs(a - b) / max(b, 1) for a, b in zip(told, truth, strict=True))
        if not errors:
            continue
        print(
            f"{file.name[:40]:40} {len(texts):6} {sum(truth):9} {sum(told) / max(sum(truth), 1) - 1:+6.0%} "
            f"{errors[len(errors) // 2]:7.0%} {errors[int(len(errors) * 0.95)]:6.0%} "
            f"{took_ms / sum(map(len, texts)) * 1000:14.3f}"
        )


def texts_of(file: Path) -> Iterator[str]:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".jsonl":
        for line in text.splitlines():
            yield from _strings(json.loads(line))
    else:
        for start in range(0, len(text), PIECE_CHARS):
            yield text[start : start + PIECE_CHARS]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


if __name__ == "__main__":
    main()
