"""The official Python SDKs, each against the real proxy as a process: every feature of theirs is a test.

The clients that need an environment of their own are run by `make test-clients`, in the same way. What is expected is
results.json, which that wrote, and the list of known gaps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from semcache.cache.model import PreparedModel
from tests.e2e import rig, table
from tests.e2e.catalog import CLIENTS, find, gap
from tests.e2e.rig import Result

pytestmark = pytest.mark.timeout(rig.PATIENCE_S + 60)

LIGHT = [client.name for client in CLIENTS if client.is_light]
CELLS = [
    (name, row["section"], row["api"], feature)
    for name in LIGHT
    for row in table.read_results()[name]["rows"]
    for feature in row["works"]
]


@pytest.fixture(scope="session")
def result_of(prepared_model: PreparedModel) -> Callable[[str], Result]:
    """What a client's program saw; it runs once."""
    results: dict[str, Result] = {}

    def run(name: str) -> Result:
        if name not in results:
            client = find(name)
            results[name] = asyncio.run(rig.run(client, rig.light_command(client)))
        return results[name]

    return run


@pytest.mark.parametrize("name, section, api, feature", CELLS)
def test_a_client_works_unchanged(
    name: str, section: str, api: str, feature: str, result_of: Callable[[str], Result]
) -> None:
    why = result_of(name).rows[section, api][feature]
    assert (why is None) == (gap(name, api, feature) is None), why or "works, but is listed as a gap"


@pytest.mark.parametrize("name", LIGHT)
def test_a_run_sees_what_the_table_says(name: str, result_of: Callable[[str], Result]) -> None:
    assert table.entry(result_of(name)) == table.read_results()[name], "run make test-clients"
