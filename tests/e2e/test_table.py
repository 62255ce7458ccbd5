"""The table in README is what the last run saw, of the clients that are pinned."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import table
from tests.e2e.catalog import CLIENTS, COLUMNS, FEATURES, GAPS, ROOT, Client, gap
from tests.e2e.environments import CLIENTS as PROGRAMS
from tests.e2e.environments import LISTS
from tests.e2e.model_server import FEATURES as SERVER_FEATURES


def test_readme_shows_what_the_last_run_saw() -> None:
    readme = table.README.read_text(encoding="utf-8")
    made = table.insert(readme, table.render(table.read_results()))
    assert readme == made, "run python -m tests.e2e.table"


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
def test_the_results_are_those_of_the_pinned_versions(client: Client) -> None:
    told = table.read_results()[client.name]["versions"]
    pinned = dict(_pins(client))
    assert set(client.packages) == set(told)
    assert told == {name: pinned[name] for name in told}, "run make test-clients"


def _pins(client: Client) -> Iterator[tuple[str, str]]:
    if client.environment.startswith("node-"):
        yield from json.loads((PROGRAMS / client.environment / "package.json").read_text())["dependencies"].items()
        return
    is_ours = client.is_light or client.is_server
    path = ROOT / "constraints.txt" if is_ours else LISTS / f"{client.environment}.txt"
    yield from re.findall(r"^([A-Za-z0-9_.-]+)==([^\s#;]+)", path.read_text(), re.MULTILINE)


def test_nothing_fails_but_what_is_known_to() -> None:
    for name, entry in table.read_results().items():
        for row in entry["rows"]:
            for feature, works in row["works"].items():
                known = gap(name, row["api"], feature)
                assert works == (known is None), f"{name} {row['api']} {feature}: {known}"


def test_every_feature_has_a_column_and_every_gap_a_client() -> None:
    for section, columns in COLUMNS.items():
        shown = sorted(feature for group in columns.values() for feature in group)
        assert shown == sorted(SERVER_FEATURES if section == "server" else FEATURES[section])
    assert {client for client, _, _ in GAPS} <= {client.name for client in CLIENTS}


def test_the_lists_name_no_registry() -> None:
    lists = [*LISTS.glob("*.txt"), *PROGRAMS.glob("node-*/package*.json")]
    assert len(lists) >= 9
    for path in lists:
        assert not re.search(r"\"resolved\"|registry|index-url|find-links|https?://(?!.*fund)", _text(path)), path


def _text(path: Path) -> str:
    """Without what packages say of themselves: whom to pay, for one, is an address."""
    return re.sub(r'"(funding|url)": .*', "", path.read_text(encoding="utf-8"))


def test_a_table_marks_what_works_and_says_why_something_does_not() -> None:
    results = {
        "ai-node": {
            "versions": {"@ai-sdk/anthropic": "3.0.138"},
            "rows": [
                {
                    "section": "talk",
                    "api": "messages",
                    "modes": [],
                    "works": {"json": True, "tools": True, "tools_stream": False},
                }
            ],
        }
    }
    head, _, row, _, note = table.render(results).splitlines()
    cells = dict(
        zip((cell.strip() for cell in head.split("|")), (cell.strip() for cell in row.split("|")), strict=True)
    )
    assert cells["JSON"] == "✓" and cells["stream"] == "–" and cells["tools"] == "1"
    assert note.startswith("1. ") and "eager_input_streaming" in note


def test_a_readme_without_its_markers_is_refused() -> None:
    for readme in ("", f"{table.BEGIN}\n", f"{table.END} {table.BEGIN}", f"{table.BEGIN} {table.END} {table.END}"):
        with pytest.raises(ValueError, match="once each"):
            table.insert(readme, "table")
    assert table.insert(f"a\n{table.BEGIN}\nold\n{table.END}\nb", "new") == f"a\n{table.BEGIN}\nnew\n{table.END}\nb"
