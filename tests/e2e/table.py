"""The compatibility table: results.json, written by a run, becomes the README's part between two markers.

`python -m tests.e2e.table` writes it. Nothing in the table is typed by hand but the reasons of known gaps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tests.e2e.catalog import APIS, CLIENTS, COLUMNS, RESULTS, ROOT, Client, gap
from tests.e2e.rig import Result

README = ROOT / "README.md"
BEGIN, END = "<!-- clients: begin -->", "<!-- clients: end -->"

_HEADS = {"talk": "Chat and text", "embeddings": "Embeddings", "server": "A real model server"}


def write_results(results: Sequence[Result]) -> None:
    """Put these results over those of earlier runs; clients that are no more are dropped."""
    known = {client.name for client in CLIENTS}
    kept = {name: entry for name, entry in read_results().items() if name in known}
    kept |= {result.client.name: entry(result) for result in results}
    ordered = {client.name: kept[client.name] for client in CLIENTS if client.name in kept}
    RESULTS.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def entry(result: Result) -> dict[str, Any]:
    return {
        "versions": result.versions,
        "rows": [
            {
                "section": section,
                "api": api,
                "modes": sorted(mode for mode in result.modes[section, api] if mode),
                "works": {feature: why is None for feature, why in features.items()},
            }
            for (section, api), features in result.rows.items()
        ],
    }


def read_results() -> dict[str, Any]:
    return dict(json.loads(RESULTS.read_text(encoding="utf-8"))) if RESULTS.exists() else {}


def render(results: Mapping[str, Any]) -> str:
    """What stands between the markers."""
    notes: list[str] = []
    parts = [_section(section, results, notes) for section in COLUMNS]
    if notes:
        parts.append("\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1)))
    return "\n\n".join(part for part in parts if part)


def _section(section: str, results: Mapping[str, Any], notes: list[str]) -> str:
    columns = COLUMNS[section]
    lines = [f"| {_HEADS[section]} | {' | '.join(columns)} |", "| --- |" + " :-: |" * len(columns)]
    for client in CLIENTS:
        for row in results.get(client.name, {"rows": ()})["rows"]:
            if row["section"] == section:
                cells = [_cell(client, row, features, notes) for features in columns.values()]
                versions = results[client.name]["versions"]
                lines.append(f"| {_row_title(client, versions, row)} | {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _row_title(client: Client, versions: Mapping[str, str], row: Mapping[str, Any]) -> str:
    package = client.package(row["api"])
    modes = ", sync and async" if set(row["modes"]) == {"sync", "async"} else ""
    return f"`{package}` {versions[package]} ({client.family}): {APIS[row['api']]}{modes}"


def _cell(client: Client, row: Mapping[str, Any], features: Sequence[str], notes: list[str]) -> str:
    """A check mark, a dash where the client has no such feature, or the number of a note."""
    tried = [feature for feature in features if feature in row["works"]]
    if not tried:
        return "–"
    reasons = []
    for feature in tried:
        if not row["works"][feature]:
            reasons.append(gap(client.name, row["api"], feature) or "fails, and nobody has said why")
    if not reasons:
        return "✓"
    for reason in reasons:
        if reason not in notes:
            notes.append(reason)
    return ", ".join(str(number) for number in sorted({notes.index(reason) + 1 for reason in reasons}))


def insert(readme: str, table: str) -> str:
    """The README with the table between the markers. Raises ValueError when they are not there, once each, in order."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after:
        raise ValueError(f"README.md needs {BEGIN} and {END}, once each, in this order")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(insert(README.read_text(encoding="utf-8"), render(read_results())), encoding="utf-8")
