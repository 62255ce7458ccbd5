"""semcache: a semantic caching reverse proxy for LLM APIs, and the same cache for a program that wants no proxy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semcache.inprocess import Answered, Cache

__all__ = ["Answered", "Cache", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load the cache when it is asked for: the command line's `--help` has no need of an embedder."""
    if name in ("Answered", "Cache"):
        from semcache import inprocess

        return getattr(inprocess, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
