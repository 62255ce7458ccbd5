"""The house has storeys: imports point down, and rooms on one storey do not open into each other.

The table is the order in which the program is read. A module that is missing in it fails: say where it belongs.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "semcache"

# Lowest first; each line of a storey is a room: modules or folders of semcache/ that may import each other.
STOREYS: tuple[tuple[set[str], ...], ...] = (
    ({"types", "errors", "config", "settings", "advice"},),
    ({"tunnel"},),
    (
        {"wire"},
        {"cache"},
        {"backends"},
        {"admit", "access"},
        {"usage"},
        {"audit"},
        {"guardrails"},
        {"telemetry", "request_log", "recent_requests"},
        {"listening"},
        {"status_headers"},
        {"workers"},
        {"children"},
        {"verdicts"},
        {"residency"},
        {"simulate"},
    ),
    (
        {"pipeline", "planning", "forwarding", "batches", "delivery", "pacing", "feedback", "explaining"}
        | {
            "answer_judge",
            "learning",
            "shadow",
            "vouching",
            "reload",
            "metering",
            "keeping",
            "gate",
            "catalogue",
            "route_trial",
        },
    ),
    ({"server", "passing", "replying"}, {"admin"}, {"tuning"}),
    (
        {"core", "inprocess", "threaded", "langchain", "langchain_prompts", "httpx_transport"}
        | {"app", "running", "cli", "commands", "demo", "__main__"},
    ),
)
PLACE = {
    name: (storey, room) for storey, rooms in enumerate(STOREYS) for room, names in enumerate(rooms) for name in names
}

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported(source: str) -> Iterator[str]:
    """The modules and folders of semcache/ that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a name comes from"
            if node.module == "semcache":
                yield from (alias.name for alias in node.names if not alias.name.startswith("__"))
            elif node.module and node.module.startswith("semcache."):
                yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("semcache."):
                    yield alias.name.split(".")[1]


def own_name(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def objections(name: str, source: str) -> list[str]:
    """What is wrong with the imports of a file that lives in `name`."""
    storey, room = PLACE[name]
    wrong = []
    for other in sorted(set(imported(source)) - {name}):
        other_storey, other_room = PLACE[other]
        if other_storey > storey:
            wrong.append(f"{name} imports {other}, which is above it")
        elif other_storey == storey and other_room != room:
            wrong.append(f"{name} imports {other}, its neighbour")
    return wrong


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    name = own_name(path)
    assert name in PLACE, f"{name} has no place in the table of this test"
    assert objections(name, path.read_text(encoding="utf-8")) == []


def test_folders_are_one_deep() -> None:
    deeper = [path for path in MODULES if len(path.relative_to(PACKAGE).parts) > 2]
    assert deeper == []


@pytest.mark.parametrize(
    "name, source",
    [
        ("types", "from semcache.wire import Dialect"),
        ("cache", "from semcache.backends.pool import Pool"),
        ("wire", "import semcache.cache.key"),
        ("backends", "def late():\n    from semcache import telemetry"),
        ("pipeline", "if TYPE_CHECKING:\n    from semcache.app import App"),
        ("server", "from semcache import admin, errors"),
    ],
)
def test_a_forbidden_import_is_found(name: str, source: str) -> None:
    assert len(objections(name, source)) == 1


def test_a_lawful_import_is_not_objected_to() -> None:
    source = "from semcache import __version__, config\nfrom semcache.wire.sse import split\nimport os"
    assert objections("pipeline", source) == []
