"""Usage: what was billed, replayed and avoided, in tokens and money.

`prices` says what tokens cost, `ledger` adds up what happens, `estimates` counts where an upstream tells nothing,
`rollups` keeps the sums in a file by minute, hour and day, `flushing` writes there now and then, `report` asks it.
"""

from __future__ import annotations

from semcache.usage.ledger import MAX_MODELS, OTHER, OWN_PURPOSES, Fetched, Ledger, Purpose, Source, Spent
from semcache.usage.prices import NANO, Price, PriceList, load_prices, prices_of

__all__ = [
    "MAX_MODELS",
    "NANO",
    "OTHER",
    "OWN_PURPOSES",
    "Fetched",
    "Ledger",
    "Price",
    "PriceList",
    "Purpose",
    "Source",
    "Spent",
    "load_prices",
    "prices_of",
]
