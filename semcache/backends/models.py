"""Which models a backend serves, and under which name.

The rule: what the configuration says is decided at once and without a question; only `models: ask` depends on what a
backend has answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

ITS_OWN_NAME = "*"  # as the name a model has at a backend: the one that was asked for


def accepts(models: str | tuple[str, ...] | Mapping[str, str], asked: str) -> str | None:
    """The name that a model has at a backend with this setting; None: it does not serve it.

    The names of a mapping may be globs as well; one that is written out counts before them, then the first that fits.
    `ask` takes every model here: what the backend says of it can change at any time, and `ModelLists` knows.
    """
    if isinstance(models, str):
        return asked
    if isinstance(models, Mapping):
        name = models.get(asked) or next((there for glob, there in models.items() if fnmatchcase(asked, glob)), None)
        return asked if name == ITS_OWN_NAME else name
    return asked if any(fnmatchcase(asked, glob) for glob in models) else None
