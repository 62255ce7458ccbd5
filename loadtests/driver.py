"""Ask a workload of a server, as fast as the clock or the concurrency says, and note what came back.

Whether a hit is false is decided by whose answer came. Two sources, the first that knows: the simulated backend signs
every answer with a digest of its question; with any other backend, the answers of forwarded requests are remembered by
their content, with the groups they were given to. An answer seen from neither counts as unknown, never as right.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp
import orjson

from loadtests.workload import Request, Workload
from semcache.simulate.answers import question_digest, read_reference
from semcache.types import Tier, Verdict
from semcache.verdicts import read_verdict


@dataclass(slots=True)
class Result:
    """What became of one request. Times in milliseconds, from the moment it was due to be sent."""

    request: Request
    started_s: float  # since the start of the run
    verdict: Verdict = Verdict.REFUSED
    tier: Tier | None = None
    similarity: float | None = None
    detail: str = ""
    status: int = 0
    ttfb_ms: float | None = None
    total_ms: float | None = None
    late_ms: float = 0.0  # how late the driver itself was: a large value means the driver is the bottleneck
    error: str | None = None
    answered_for: str | None = None  # the question the answer was written for, where that is known
    right: bool | None = None  # the answer belongs to the request's group; None: not known

    @property
    def is_hit(self) -> bool:
        return self.verdict in (Verdict.HIT, Verdict.STALE) and self.error is None

    @property
    def is_false_hit(self) -> bool:
        return self.is_hit and self.right is False


@dataclass(slots=True)
class Run:
    """A workload and its results, in the order of completion."""

    workload: Workload
    results: list[Result] = field(default_factory=list)
    wall_s: float = 0.0


class Provenance:
    """Whose answer is this? Learned from the workload's texts, and from the answers of forwarded requests."""

    def __init__(self, workload: Workload) -> None:
        self._by_digest: dict[str, tuple[str, set[str]]] = {}
        for request in workload.requests:
            _, groups = self._by_digest.setdefault(question_digest(request.text), (request.text, set()))
            groups.add(request.group)
        self._by_content: defaultdict[bytes, dict[str, str]] = defaultdict(dict)  # -> {group: question}

    def learn(self, content: str, request: Request) -> None:
        """Note that this answer was fetched for this request."""
        self._by_content[_digest(content)].setdefault(request.group, request.text)

    def judge(self, content: str, request: Request) -> tuple[bool | None, str | None]:
        """Return (right, question the answer was written for); None where it cannot be told."""
        reference = read_reference(content)
        if reference is not None and reference.question in self._by_digest:
            text, groups = self._by_digest[reference.question]
            return request.group in groups, text
        known = self._by_content.get(_digest(content))
        if not known:
            return None, None
        return request.group in known, known.get(request.group, next(iter(known.values())))


def _digest(content: str) -> bytes:
    return hashlib.blake2b(content.encode(errors="replace"), digest_size=16).digest()


class Driver:
    """`base_url` ends in /v1. One driver may play several workloads, one after another."""

    def __init__(
        self,
        base_url: str,
        *,
        model: str = "simulated-small",
        api_key: str = "load-test",
        system: str = "You help customers of an outdoor shop.",
        timeout_s: float = 120.0,
        on_result: Callable[[Result], None] = lambda result: None,
        same_answers: bool = False,
    ) -> None:
        """`same_answers`: the simulated backend is told each question's group, and answers all questions of a group
        alike, as a model would; so answers can be held against each other."""
        self._same_answers = same_answers
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._model = model
        self._system = system
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._on_result = on_result

    async def open_loop(self, workload: Workload) -> Run:
        """Send each request at its time, whether or not earlier ones are answered: how real callers behave.

        Latency counts from the time a request was due, so a server that stalls cannot hide it (coordinated omission).
        """
        run, judge = Run(workload), Provenance(workload)
        clock = time.perf_counter
        async with self._session(0) as session, asyncio.TaskGroup() as group:
            began = clock()
            for request in workload.requests:
                due = began + (request.at_s or 0.0)
                if (delay_s := due - clock()) > 0:
                    await asyncio.sleep(delay_s)
                group.create_task(self._ask(session, request, run, judge, began, due))
        run.wall_s = clock() - began
        return run

    async def closed_loop(self, workload: Workload, concurrency: int) -> Run:
        """Keep so many requests in flight; the next starts when one ends."""
        run, judge = Run(workload), Provenance(workload)
        clock = time.perf_counter
        waiting = iter(workload.requests)
        async with self._session(concurrency) as session:
            began = clock()

            async def caller() -> None:
                for request in waiting:
                    await self._ask(session, request, run, judge, began, clock())

            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(caller())
        run.wall_s = clock() - began
        return run

    def _session(self, limit: int) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=limit), timeout=self._timeout, headers=self._headers
        )

    async def _ask(
        self,
        session: aiohttp.ClientSession,
        request: Request,
        run: Run,
        provenance: Provenance,
        began: float,
        due: float,
    ) -> None:
        clock = time.perf_counter
        due = min(due, clock())  # a timer may fire a little early, and nothing takes less than no time
        result = Result(request, due - began, late_ms=(clock() - due) * 1000)
        try:
            content = await self._exchange(session, request, result, due)
        except (aiohttp.ClientError, TimeoutError, ValueError) as exc:
            result.error = type(exc).__name__
        else:
            self._judge(content, result, provenance)
        result.total_ms = (clock() - due) * 1000
        run.results.append(result)
        self._on_result(result)

    async def _exchange(self, session: aiohttp.ClientSession, request: Request, result: Result, due: float) -> str:
        clock = time.perf_counter
        messages = [{"role": "system", "content": self._system}, {"role": "user", "content": request.text}]
        body = {"model": self._model, "messages": messages, "stream": request.stream}
        about = re.sub(r"[^\w .-]+", "-", request.group, flags=re.ASCII)
        headers = {"X-Simulate": f"about={about}"} if self._same_answers else None
        async with session.post(self._url, json=body, headers=headers) as response:
            raw = bytearray()
            async for chunk in response.content.iter_any():
                if result.ttfb_ms is None:
                    result.ttfb_ms = (clock() - due) * 1000
                raw += chunk
            seen = read_verdict(response.status, response.headers)
            result.status, result.verdict, result.tier = response.status, seen.verdict, seen.tier
            result.similarity, result.detail = seen.similarity, seen.detail
            if response.status != 200:
                result.error = f"status {response.status}"
                return ""
            return read_stream(bytes(raw)) if request.stream else read_whole(bytes(raw))

    def _judge(self, content: str, result: Result, provenance: Provenance) -> None:
        if result.error is not None:
            return
        result.right, result.answered_for = provenance.judge(content, result.request)
        if not result.is_hit and result.right is None:
            provenance.learn(content, result.request)
            result.right, result.answered_for = True, result.request.text


def read_whole(raw: bytes) -> str:
    """The text of a JSON answer. Raises ValueError when it has none."""
    try:
        return str(orjson.loads(raw)["choices"][0]["message"]["content"])
    except (KeyError, IndexError, TypeError) as exc:
        raise ValueError("not a chat completion") from exc


def read_stream(raw: bytes) -> str:
    """The text of a streamed answer. Raises ValueError when it does not end as it should."""
    text, ended = [], False
    for line in raw.split(b"\n"):
        if line == b"data: [DONE]":
            ended = True
        elif line.startswith(b"data: "):
            event = orjson.loads(line[6:])
            if "error" in event:
                raise ValueError("an error event")
            for choice in event.get("choices", ()):
                text.append(choice["delta"].get("content") or "")
    if not ended:
        raise ValueError("the stream was cut")
    return "".join(text)
