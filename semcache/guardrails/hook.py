"""Asking a model-based firewall of the operator's own over HTTP, before a request is answered.

    POST <url>   {"request_id", "tenant", "route", "model", "endpoint", "texts": [{"role", "text"}, ...]}
    200          {"action": "allow" | "flag" | "refuse", "reason": "jailbreak"}

Anything else is a failure, and so is an answer past the deadline: the settings say whether the request then goes on.
An approval holds for equal requests for a minute; a refusal is asked for again.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, NamedTuple

import aiohttp
import orjson
from cachetools import TTLCache

from semcache.config import Hook
from semcache.guardrails.suspicion import UNAVAILABLE, Action, Check, Suspicion
from semcache.guardrails.texts import read_texts

APPROVAL_S = 60.0
_APPROVALS = 20_000
CONCURRENT = 64  # questions to the hook at once; the others wait, within their deadline
_MAX_ANSWER = 64 * 1024
_REASON = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")  # a name. A sentence may quote the request, and goes nowhere


class Question(NamedTuple):
    """What is asked about: `body` is the request's, secrets cut out already where they are."""

    request_id: str
    tenant: str
    route: str
    model: str
    endpoint: str
    body: bytes


class FirewallHook:
    def __init__(self, settings: Hook, region: str | None, clock: Callable[[], float]) -> None:
        """`region`: of this node, where the hook stands unless its settings say otherwise."""
        self._settings = settings
        self._region = settings.region or region
        self._approved: TTLCache[bytes, None] = TTLCache(_APPROVALS, APPROVAL_S, timer=clock)
        self._room = asyncio.Semaphore(CONCURRENT)
        self._http: aiohttp.ClientSession | None = None
        self.asked = 0
        self.remembered = 0
        self.failed = 0
        self.outside = 0  # not asked, since it stands outside the request's regions

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()

    async def ask(self, question: Question, regions: frozenset[str]) -> Suspicion | None:
        """What the hook says against the request, None: nothing. Waits for at most the deadline.

        `regions`: those that the request is bound to, empty: any. A hook outside of them is never sent its texts, which
        counts as a failure.
        """
        if regions and self._region not in regions:
            self.outside += 1
            return self._failure()
        digest = _digest(question)
        if digest in self._approved:
            self.remembered += 1
            return None
        try:
            async with asyncio.timeout(self._settings.deadline), self._room:
                answer = await self._send(question)
            said = _read(answer)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError):
            self.failed += 1
            return self._failure()
        if said is None:
            self._approved[digest] = None
        return said

    def stats(self) -> dict[str, float]:
        return {
            "asked": self.asked,
            "remembered": self.remembered,
            "failed": self.failed,
            "outside": self.outside,
            "approvals": len(self._approved),
        }

    async def _send(self, question: Question) -> bytes:
        """Raises ValueError for an answer that is none."""
        self.asked += 1
        fields: dict[str, Any] = {name: getattr(question, name) for name in _TOLD}
        fields["texts"] = [{"role": role, "text": text} for role, text in read_texts(question.body)]
        async with self._session().post(
            self._settings.url,
            data=orjson.dumps(fields),
            allow_redirects=False,  # texts go where the operator said, nowhere else
        ) as response:
            if response.status != 200:
                raise ValueError(f"status {response.status}")
            answer = b""
            async for piece in response.content.iter_any():
                answer += piece
                if len(answer) > _MAX_ANSWER:
                    raise ValueError("the answer is too long")
            return answer

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            key = self._settings.api_key.get_secret_value()
            headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
            # Its own deadline is `asyncio.timeout` above, which also bounds the wait for a turn.
            self._http = aiohttp.ClientSession(
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=None),
                connector=aiohttp.TCPConnector(limit=CONCURRENT),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._http

    def _failure(self) -> Suspicion:
        action = Action.FLAG if self._settings.on_failure == "open" else Action.REFUSE
        reason = "the check that every request here has to pass could not be made; try again"
        return Suspicion(Check.HOOK, UNAVAILABLE, action, reason)


_TOLD = ("request_id", "tenant", "route", "model", "endpoint")


def _digest(question: Question) -> bytes:
    """Of all that the hook's word may depend on: everything but the request's id."""
    parts = (*(part.encode("utf-8", "surrogateescape") for part in question[1:5]), question.body)
    return blake2b(b"".join(len(part).to_bytes(8, "big") + part for part in parts), digest_size=16).digest()


def _read(answer: bytes) -> Suspicion | None:
    """Raises ValueError for what is no verdict."""
    verdict = orjson.loads(answer)
    if not isinstance(verdict, dict) or verdict.get("action") not in ("allow", "flag", "refuse"):
        raise ValueError("no verdict")
    if verdict["action"] == "allow":
        return None
    reason = verdict.get("reason")
    rule = reason if isinstance(reason, str) and _REASON.fullmatch(reason) and reason != UNAVAILABLE else "unnamed"
    return Suspicion(Check.HOOK, rule, Action(verdict["action"]), "it did not pass a check of the operator's")
