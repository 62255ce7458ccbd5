"""The cache of one process, without any HTTP: store, embedder, index, and the pipeline that decides about hits.

The proxy (app.py) puts a listener before it and backends behind it; a program that wants no proxy has it to itself
(inprocess.py). It can answer as soon as it has started, from what the index holds by then.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from semcache import wire
from semcache.cache import embedder as embedders
from semcache.cache import reranker
from semcache.cache.bound import Bound
from semcache.cache.embedder import Embedder
from semcache.cache.engines import Bill
from semcache.cache.explain import Explainer
from semcache.cache.index import Index
from semcache.cache.judge import PairJudge
from semcache.cache.kinship import Kin
from semcache.cache.lookup import Lookup
from semcache.cache.store import open_store
from semcache.cache.upkeep import Upkeep
from semcache.cache.verify import Judge, NoJudge, Verifier
from semcache.config import Config
from semcache.errors import CacheFault, ClientError, StoreFault
from semcache.learning import AnswerJudge, Learning
from semcache.pipeline import Pipeline
from semcache.planning import Planner
from semcache.shadow import shadow_report
from semcache.types import Observation
from semcache.usage import PriceList, load_prices

log = logging.getLogger(__name__)

CATCH_UP_PAUSE_S = 1.0
RECALLED = 50_000  # observations read at the start: the windows of eight busy groups


class Core:
    def __init__(
        self,
        config: Config,
        leads: bool = True,
        embedder: Embedder | None = None,
        clock: Callable[[], float] = time.time,
        prices: PriceList | None = None,
        judge: AnswerJudge | None = None,
        chance: Callable[[], float] = random.random,
        bill_embedding: Bill = lambda tokens, texts: None,
    ) -> None:
        """`leads`: it looks after the store that it shares with other processes, and saves the index. `judge`: who says
        whether two answers are the same where texts and vectors do not; None: nobody does. `bill_embedding`: told what
        a remote embedder bills.

        `embedder`, `clock` (unix seconds) and `chance` (uniform in [0, 1): what is explored) are given by tests. Raises
        StartError when the model is not prepared.
        """
        self._leads = leads
        self._routes = config.routes
        self._following: asyncio.Task[None] | None = None
        self.is_ready = False  # the index holds all that the store does
        self._may_save = False  # the last snapshot has been looked at: before, an empty index would take its place
        self.store = open_store(config.cache, clock)
        self.embedder = embedder or embedders.build(config.embedder, bill_embedding)
        self.index = Index(self.embedder.dimensions, self.embedder.stamp, snapshot_folder(config))
        self.planner = Planner(config, self.embedder.stamp)
        pair_judge = build_judge(config, self.embedder.stamp)
        bounds = {route.match.max_error for route in config.routes if route.match.max_error is not None}
        self.bound = Bound(f"{self.embedder.stamp} {pair_judge.stamp}", Kin(wire.say), clock, chance, bounds)
        self.rerankers = reranker.build([route.match.reranker for route in config.routes if route.match.reranker])
        verifier = Verifier(self.store, clock, self.store.quarantine, pair_judge, self.bound, self.rerankers)
        lookup = Lookup(self.index, self.embedder, verifier)
        cost_usd = (prices or load_prices()).cost_usd
        self.learning = Learning(
            config.routes, self.embedder, self.store, clock, cost_usd, judge, on_explored=self.bound.paid
        )
        self.pipeline = Pipeline(lookup, self.embedder, self.store, clock, self.learning)
        self.explainer = Explainer(lookup, self.index, self.store, self.embedder, clock)
        self.upkeep = Upkeep(self.store, self._save_snapshot, leads=leads, clock=clock)
        self.store.on_erase = self._forget_snapshot

    def adopt(self, config: Config) -> None:
        """Go by other routes from the next request on; what needs a restart is the same, says reload.py."""
        self._routes = config.routes
        self.planner.adopt(config)
        self.learning.adopt(config.routes)

    async def start(self) -> None:
        """Open the store and load the model. Raises StartError with one clear line."""
        await self.store.open()
        try:
            await self.embedder.start()
            try:
                await self.rerankers.start()
            except BaseException:
                await self.embedder.close()
                raise
        except BaseException:
            await self.store.close()
            raise
        self.index.start()

    def follow(self) -> None:
        """Begin to follow the store, for good: the index catches up meanwhile."""
        self.upkeep.start()
        self.learning.start()
        self.bound.start()
        self._following = asyncio.create_task(self._catch_up())

    async def caught_up(self) -> None:
        """Wait until the index holds all that the store does."""
        if self._following is not None:
            await self._following

    async def _catch_up(self) -> None:
        """Take the snapshot if it proves itself, then the store's changes since."""
        store, index = self.store, self.index
        await asyncio.to_thread(index.load_snapshot, store.id, store.last_seq, store.floor_seq)
        self._may_save = True
        while True:
            try:
                await store.follow(index.position, index.apply, self.embedder.stamp)
                break
            except StoreFault as fault:  # another program holds the file, say: without its changes nothing is served
                log.warning("the index cannot catch up with the store, and tries again: %s", fault)
                await asyncio.sleep(CATCH_UP_PAUSE_S)
        self.is_ready = True
        await self._recall_evidence()

    async def _recall_evidence(self) -> None:
        """What was learned before this start, and by other processes. Without it the bound begins anew."""
        meanwhile: list[Observation] = []
        self.store.on_observations = meanwhile.extend
        try:
            known = (await self.store.observations(RECALLED))[::-1]
        except StoreFault as fault:
            log.warning("what was learned before cannot be read, and error bounds begin anew: %s", fault)
            known = []
        await self.bound.recall(known)
        self.store.on_observations = self.bound.observe
        last_seq = known[-1].seq if known else 0
        self.bound.observe(it for it in meanwhile if it.seq > last_seq)

    async def stop(self) -> None:
        """Cancel what is being fetched, save the index, close everything."""
        self.is_ready = False
        self.pipeline.flights.cancel()
        await self.pipeline.flights.drain()
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self.upkeep.stop()
        await self.learning.stop()
        await self.bound.stop()
        await self.rerankers.close()
        await self.embedder.close()
        try:
            await asyncio.to_thread(self._save_snapshot)
        except CacheFault as fault:  # a full disk: the next start follows the store from further back
            log.warning("the index was not saved: %s", fault)
        await asyncio.to_thread(self.index.close)
        await self.store.close()

    async def shadow_report(self, route: int | None, target: float | None) -> Mapping[str, Any]:
        """What shadow mode has counted so far, here and in other processes of the same store. Raises StoreFault, and
        ClientError for a route that is not there."""
        routes = self._routes
        if route is not None and route >= len(routes):
            raise ClientError(f"route: there are {len(routes)}, and the first is 0", param="route")
        await self.learning.flush()
        return shadow_report(await self.store.shadow_counts(), routes, route, target)

    def stats(self) -> dict[str, Mapping[str, object]]:
        return {
            "pipeline": {**self.planner.stats(), **self.pipeline.stats()},
            "embedder": self.embedder.stats(),
            "index": self.index.stats(),
            "store": self.store.stats(),
            "upkeep": self.upkeep.stats(),
            "learning": self.learning.stats(),
            "bound": self.bound.stats(),
            "reranker": self.rerankers.stats(),
        }

    async def _forget_snapshot(self) -> None:
        """After an erase nothing may be left of what was erased, in the index's file neither."""
        await asyncio.to_thread(self.index.discard_snapshot)

    def _save_snapshot(self) -> None:
        if self._leads and self._may_save:
            self.index.save_snapshot(self.store.id)


def build_judge(config: Config, embedder: str) -> Judge:
    """The pair judge, where a route asks it. Raises StartError for weights that cannot be read.

    An error bound asks only one that was trained for it: the one that comes with semcache knows no more of a pair than
    its cosine and its guards, which the bound has anyhow.
    """
    matches = [route.match for route in config.routes]
    asking = [match for match in matches if match.judge is not None or (match.max_error and match.judge_weights)]
    if not asking:
        return NoJudge()
    weights = asking[0].judge_weights  # all have the same, says config.py
    return PairJudge.load(None if weights is None else Path(weights), embedder)


def snapshot_folder(config: Config) -> Path | None:
    """Where the index is saved: beside the database. Workers share what the first one saves."""
    scheme, _, path = config.cache.store.partition(":")
    return Path(f"{path}.index") if scheme == "sqlite" and path else None
