"""`python -m loadtests.guardrails DATA`: how often the guardrails flag ordinary text, and what they cost.

DATA: a folder of `prompts_*`, `stream_*` or `chats_*` files, JSON lines packed with gzip, with `text` or `messages`.
Hardly any of it is an attack, so that what is flagged is mostly a false positive.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

import click
from rich.console import Console
from rich.table import Table

from semcache.config import Guardrails
from semcache.guardrails.inspection import inspect

SETTINGS = Guardrails(injection="flag", exfiltration="flag", secrets="flag")


def bodies(file: Path) -> Iterator[bytes]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            messages = row.get("messages") or [{"role": "user", "content": row.get("text") or ""}]
            yield json.dumps({"model": "m", "messages": messages}, ensure_ascii=False).encode()


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--show", is_flag=True, help="Print each text that is flagged, as far as its first 300 characters.")
def main(data: Path, show: bool) -> None:
    """Print for each file what share of its texts is flagged, by which rules, and how long one takes."""
    console = Console(width=160)
    table = Table("file", "texts", "median bytes", "flagged", "share", "median ms", "99 % ms", "rules")
    files = sorted(file for kind in ("prompts_*", "stream_*", "chats_*") for file in data.glob(f"{kind}.jsonl.gz"))
    for file in files:
        rules: Counter[str] = Counter()
        sizes, times, flagged = [], [], 0
        for body in bodies(file):
            begun = perf_counter()
            flags = inspect(body, SETTINGS).flags
            times.append((perf_counter() - begun) * 1000)
            sizes.append(len(body))
            flagged += bool(flags)
            rules.update(flags)
            if flags and show:
                console.print(f"{', '.join(flags)}: {body[:300].decode(errors='replace')}", markup=False)
        if not sizes:
            continue
        told = ", ".join(f"{rule} {count}" for rule, count in rules.most_common())
        share = f"{flagged / len(sizes):.3%}"
        late = sorted(times)[int(0.99 * (len(times) - 1))]
        row = (file.name, f"{len(sizes):,}", f"{median(sizes):.0f}", str(flagged), share)
        table.add_row(*row, f"{median(times):.3f}", f"{late:.3f}", told)
    console.print(table)


if __name__ == "__main__":
    main()
