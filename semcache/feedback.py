"""FEEDBACK: a caller's word on a hit, `POST /semcache/feedback` on the port of the models.

    {"entry": "8b3e6f2c9d1a47f0b6e2", "request": "5f0c9a31c2a4d0ee0000002a", "verdict": "wrong"}

Only who got a hit may speak of it, so what was served lately is remembered here, by tenant: another tenant's request
is as unknown as one that never was. What follows from a word is the store's to keep (cache/quarantine.py).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from semcache.errors import CacheFault, ClientError
from semcache.types import Effect, Feedback, Outcome, Said, Tenant
from semcache.wire import strict_json

# Below /v1, too: an SDK posts below its base URL, and passed on as any other path there it would be lost upstream.
PATHS = ("/semcache/feedback", "/v1/semcache/feedback")
MAX_BODY = 4096  # bytes: two ids and a word
REMEMBERED = 10_000  # hits, some 2.6 MB; at 100 hits a second those of the last two minutes
_FIELDS = ("entry", "request", "verdict")


class Store(Protocol):
    async def take_feedback(self, feedback: Feedback) -> Effect: ...


@dataclass(slots=True)
class _Served:
    """A hit, as far as a word on it needs it: keys, no text."""

    entry_key: bytes
    asked: bytes
    similarity: float
    effects: dict[Said, Effect] | None = None  # of what was said already: a retry counts once


class FeedbackDesk:
    """Belongs to the event loop. What it remembers is one process's own, and gone after a restart."""

    def __init__(self, store: Store, clock: Callable[[], float], remembered: int = REMEMBERED) -> None:
        """`clock`: unix seconds."""
        self._store = store
        self._clock = clock
        # By the entry, too: a caller may send the same X-Request-Id with many requests. Of two that got the same entry
        # the later one counts.
        self._served: OrderedDict[tuple[str, str, str], _Served] = OrderedDict()  # the oldest first
        self._remembered = remembered
        self._said: Counter[Said] = Counter()
        self._unknown = 0

    def remember(self, tenant: Tenant, asked: bytes, outcome: Outcome) -> None:
        """A hit is about to leave, and pays half a microsecond. `asked`: the exact key of the request."""
        if outcome.entry_id is not None and outcome.entry_key is not None:
            name = (tenant.id, outcome.request_id, outcome.entry_id)
            self._served[name] = _Served(outcome.entry_key, asked, outcome.similarity or 0.0)
            if len(self._served) > self._remembered:
                self._served.popitem(last=False)

    async def take(self, tenant: Tenant, body: bytes, outcome: Outcome) -> dict[str, str]:
        """Do what a body asks, say so in `outcome`, and return the answer to it.

        Raises ClientError: 400 for what is no feedback, 404 for a hit that is not known, 503 if it cannot be kept.
        """
        entry_id, request_id, said = read_feedback(body)
        outcome.entry_id = entry_id
        served = self._served.get((tenant.id, request_id, entry_id))
        if served is None:
            self._unknown += 1
            raise ClientError(
                "no hit with this entry and request is known here for this key: it is too long ago, was before a "
                "restart, or another worker served it. Send the Semcache-Entry and X-Request-Id of one reply, soon and "
                "with the key that asked",
                status=404,
                param="request",
                code="unknown_request",
            )
        effect = served.effects.get(said) if served.effects else None
        if effect is None:
            effect = await self._keep(served, tenant, request_id, entry_id, said)
            served.effects = {**(served.effects or {}), said: effect}
            self._said[said] += 1
        outcome.feedback = {"verdict": said, "request": request_id, "effect": effect}
        return {"entry": entry_id, **outcome.feedback}

    async def _keep(self, served: _Served, tenant: Tenant, request_id: str, entry_id: str, said: Said) -> Effect:
        feedback = Feedback(
            said=said,
            entry_id=entry_id,
            entry_key=served.entry_key,
            asked=served.asked,
            similarity=served.similarity,
            tenant=tenant.id,
            request_id=request_id,
            at=self._clock(),
        )
        try:
            return await self._store.take_feedback(feedback)
        except CacheFault as fault:
            message = "the feedback could not be kept, and nothing has changed; send it again later"
            raise ClientError(message, status=503, code="not_kept") from fault

    def stats(self) -> dict[str, float]:
        return {
            **{str(said): self._said[said] for said in Said},
            "unknown": self._unknown,
            "remembered": len(self._served),
        }


def read_feedback(body: bytes) -> tuple[str, str, Said]:
    """Return the entry's id, the request's id and the word. Raises ClientError 400."""
    tree = strict_json.parse(body)
    for name in tree:
        if name not in _FIELDS:
            raise ClientError(f"{name[:80]}: no such field; there are {', '.join(_FIELDS)}", param=name[:80])
    for name in _FIELDS:
        value = tree.get(name)
        if not (isinstance(value, str) and value):
            raise ClientError(
                f'{name}: write a text, as in {{"entry": ID, "request": ID, "verdict": "wrong"}}', param=name
            )
    try:
        return tree["entry"], tree["request"], Said(tree["verdict"])
    except ValueError as exc:
        raise ClientError('verdict: write "wrong" or "right"', param="verdict") from exc
