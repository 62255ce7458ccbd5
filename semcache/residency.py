"""RESIDENCY: where this node, its store and its embedder are, and so what may be done here with whom.

The rule: of a request that is bound to regions nothing leaves them, whatever fails. A node outside refuses it before
its body is read; a store or an embedder outside takes no part in it, and logs outside leave it out (request_log.py and
audit/log.py see to that). What the configuration does not place is where the node is. A node that is not placed is
taken to be wherever its tenants may be: there is only one to speak of.
"""

from __future__ import annotations

from semcache.config import Config
from semcache.errors import OutOfRegion

Regions = frozenset[str]  # that a request is bound to; empty: any


class Residency:
    def __init__(self, config: Config) -> None:
        here = config.server.region
        self.here = here
        self.store = config.cache.region or here
        self.embedder = config.embedder.region or here if config.embedder.engine == "openai" else here
        self.refused = 0

    def refuse_outsiders(self, regions: Regions) -> None:
        """Raises OutOfRegion for a request that may not be here."""
        self._refuse(self.here, "this node", regions)

    def refuse_store(self, regions: Regions) -> None:
        """The same for a request that is of no use without the store."""
        self._refuse(self.store, "the store of this node", regions)

    def _refuse(self, place: str | None, what: str, regions: Regions) -> None:
        if not _is_within(place, regions):
            self.refused += 1
            raise OutOfRegion(f"this key may use {', '.join(sorted(regions))} only, and {what} is in {place}", regions)

    def may_store(self, regions: Regions) -> bool:
        return _is_within(self.store, regions)

    def may_embed(self, regions: Regions) -> bool:
        return _is_within(self.embedder, regions)


def _is_within(place: str | None, regions: Regions) -> bool:
    return not regions or place is None or place in regions
