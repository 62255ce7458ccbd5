"""`python -m tests.fidelity`: run the fidelity tables and print what they hold, a line for each dialect.

A table is a list of recordings, each made from the SDK's types. Its tests play every recording in all four ways (stream
as stream, stream as JSON, JSON as stream, JSON as JSON) with the vendor's own SDK as the judge, cut it and split it.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests import recordings_anthropic, recordings_chat, recordings_completions, recordings_ollama, recordings_responses

TABLES: dict[str, tuple[Sequence[Any], Sequence[str]]] = {
    "chat completions": (recordings_chat.RECORDINGS, ["test_chat_fidelity.py"]),
    "legacy completions": (
        recordings_completions.RECORDINGS,
        ["test_wire_completions.py", "test_wire_completions_play.py"],
    ),
    "Responses": (recordings_responses.RECORDINGS, ["test_wire_responses_reply.py", "test_wire_responses_play.py"]),
    "Anthropic messages": (
        recordings_anthropic.RECORDINGS,
        ["test_wire_anthropic_reply.py", "test_wire_anthropic_play.py"],
    ),
    "Ollama chat and generate": (
        recordings_ollama.RECORDINGS,
        ["test_wire_ollama_reply.py", "test_wire_ollama_play.py"],
    ),
}


def main() -> None:
    folder = Path(__file__).parent
    table = Table(title="fidelity tables", title_justify="left", header_style="dim")
    for name in ("dialect", "recordings", "storable", "not storable, by reason", "tests passed", "failed"):
        table.add_column(name, justify="left" if name in ("dialect", "not storable, by reason") else "right")
    worst = 0
    for dialect, (recordings, files) in TABLES.items():
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", *(str(folder / file) for file in files)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        worst = max(worst, done.returncode)
        counts = _counts(done.stdout)
        reasons = Counter(recording.why_not for recording in recordings if recording.why_not is not None)
        table.add_row(
            dialect,
            str(len(recordings)),
            str(len(recordings) - reasons.total()),
            ", ".join(f"{reason} {count}" for reason, count in reasons.most_common()),
            counts.get("passed", "0"),
            counts.get("failed", "0"),
        )
    Console(width=130).print(table)
    sys.exit(worst)


def _counts(output: str) -> dict[str, str]:
    """What pytest's last line says: "3 failed, 120 passed, 1 warning in 2.31s"."""
    last = output.strip().splitlines()[-1].strip("= ")
    return {word: count for count, word in re.findall(r"(\d+) (\w+)", last.rpartition(" in ")[0])}


if __name__ == "__main__":
    main()
