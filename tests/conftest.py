"""Fixtures that more than one module needs."""

from __future__ import annotations

import pytest

from semcache.cache import model


@pytest.fixture(scope="session")
def prepared_model() -> model.PreparedModel:
    """The default model from the user's cache; `make test` has prepared it, else this takes half a minute once."""
    return model.prepare()
