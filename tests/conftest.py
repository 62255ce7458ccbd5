"""Fixtures that more than one module needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

from semcache.cache import model


@pytest.fixture(scope="session")
def prepared_model() -> model.PreparedModel:
    """The default model from the user's cache; `make test` has prepared it, else this takes half a minute once."""
    return model.prepare()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "both_loops: run on uvloop as well as on Python's own event loop")


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Python's own loop, and for what depends on how a loop treats its sockets the one that serves in production."""
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if item.get_closest_marker("both_loops"):
        loops["uvloop"] = uvloop.new_event_loop
    return loops
