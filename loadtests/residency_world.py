"""What `loadtests.residency` asks, of whom, and who answers: three regions, fifty tenants, and backends that fail.

Whether something crossed is judged here, by what was written down when a request was made, and never by asking the
proxy: a request carries who asks and where it may go in a field of its own, half of the questions and answers hold the
same in their words, and every answer carries for whom it was made and where.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from random import Random
from typing import Any, NamedTuple, TypeVar

import numpy as np
from multidict import CIMultiDict

from semcache.backends.fetch import UpstreamRequest
from semcache.backends.target import Target
from semcache.errors import UpstreamError
from semcache.types import Vector

T = TypeVar("T")

REGIONS = ("eu", "us", "ap")
TENANTS = 50
TOPICS = 60
CANARY = "X-Canary"  # of a request: "t07|eu+us"
MADE = re.compile(rb"made:(t\d\d):([a-z]+)-\d+:(\d+)")  # of an answer: for whom, where, about what
BOUND = re.compile(r"\[(t\d\d) ([a-z+]+)\]")  # of a text: whose it is, and where it may go

# By route: who may get whose answers, and where it may go beside what the tenant may.
SHARING = {"team": "namespace", "all": "all", "vouched": "all"}
BOUND_ROUTES = {"europe": frozenset({"eu"})}
ROUTES = ("plain", "team", "all", "vouched", "europe", "fallback", "split", "hedged", "shadow")


def name_of(tenant: int) -> str:
    return f"t{tenant:02d}"


def namespace_of(tenant: int) -> str:
    return f"n{tenant % 7}"


def regions_of(tenant: int, variant: int) -> frozenset[str]:
    """Two of five are bound to one region, two to two, and one to none. A reload binds every third otherwise."""
    kind = (tenant + (variant if tenant % 3 == 0 else 0)) % 5
    first = tenant % 3
    return {
        0: frozenset({REGIONS[first]}),
        1: frozenset({REGIONS[(first + 1) % 3]}),
        2: frozenset(REGIONS) - {REGIONS[first]},
        3: frozenset(REGIONS) - {REGIONS[(first + 1) % 3]},
        4: frozenset(),
    }[kind]


def settings(here: str, variant: int, *, store: str, embedder: str, log: str) -> dict[str, Any]:
    """A node's configuration. `variant`: 0 or 1; a reload goes from one to the other, and moves names of backends to
    other regions."""

    def pool(number: int, balance: str, **more: Any) -> dict[str, Any]:
        places = [*REGIONS[variant:], *REGIONS[:variant]]
        backends: list[dict[str, Any]] = [
            {"url": f"http://{place}-{number}.example/v1", "region": place} for place in places
        ]
        if number == 3:  # one that nobody has placed, and one with several keys
            backends.append({"url": f"http://nowhere-{number}.example/v1"})
            backends[0]["api_keys"] = ["one", "two"]
        health = {"interval": 0, "failures": 3, "open": 2}
        return {"backends": backends, "balance": balance, "health": health, **more}

    spare = {"pool": "spare", "model": "spare-model"}
    return {
        "server": {"region": here, "request_log_region": log, "request_log": "off"},
        "cache": {"store": "memory:", "region": store, "ttl": "10m", "grace": "2m", "stale_if_error": "1h"},
        "embedder": {"engine": "openai", "url": "http://embedder.example/v1", "region": embedder, "deadline": "30s"},
        "match": {"threshold": 0.9, "guards": []},
        "pools": {
            "near": pool(1, "least-load", queue={"size": 4, "deadline": "50ms"}),
            "far": pool(2, "latency"),
            "mixed": pool(3, "weighted"),
            "spare": pool(4, "prefix"),
        },
        "routes": [
            {"name": "team", "models": ["team-*"], "pools": ["near", "far"], "cache": {"sharing": "namespace"}},
            {"name": "all", "models": ["all-*"], "pools": ["far", "mixed"], "cache": {"sharing": "all"}},
            {
                "name": "vouched",
                "models": ["vouched-*"],
                "pools": ["far", "spare"],
                "cache": {"sharing": "all", "min_uses": 2},
            },
            {"name": "europe", "models": ["europe-*"], "pools": ["mixed", "spare"], "regions": ["eu"]},
            {"name": "fallback", "models": ["fallback-*"], "pools": ["near", spare]},
            {
                "name": "split",
                "models": ["split-*"],
                "sticky": "request",
                "split": [
                    {"name": "old", "weight": 1, "pools": ["mixed"]},
                    {"name": "new", "weight": 1, "pools": ["spare"], "model": "newer"},
                ],
            },
            {
                "name": "hedged",
                "models": ["hedged-*"],
                "pools": ["near", "far", "mixed"],
                "order": "nearest",
                "hedge": {"after": 0.001, "budget": 1},
            },
            {"name": "shadow", "models": ["shadow-*"], "match": {"mode": "shadow"}},
            {"name": "plain", "models": ["*"]},
        ],
        "tenants": [
            {
                "name": name_of(tenant),
                "keys": [f"sk-{name_of(tenant)}"],
                "regions": sorted(regions_of(tenant, variant)),
                "namespaces": [namespace_of(tenant)],
            }
            for tenant in range(TENANTS)
        ],
    }


class Asked(NamedTuple):
    """A request, and what it may and may not meet: decided when it is made."""

    tenant: int
    route: str
    topic: int
    allowed: frozenset[str] | None  # empty: any; None: nothing at all, as tenant and route exclude each other
    headers: CIMultiDict[str]
    body: bytes

    def may_get(self, writer: str, place: str) -> tuple[bool, bool]:
        """Whether an answer that was made for this tenant may be given, and one that was made at this place."""
        sharing = SHARING.get(self.route, "tenant")
        is_shared = sharing == "all" or (
            sharing == "namespace" and namespace_of(int(writer[1:])) == namespace_of(self.tenant)
        )
        return writer == name_of(self.tenant) or is_shared, not self.allowed or place in self.allowed


def make_request(chance: Random, tenant: int, variant: int) -> Asked:
    route = chance.choice(ROUTES)
    bound = regions_of(tenant, variant)
    limits = BOUND_ROUTES.get(route, frozenset())
    allowed: frozenset[str] | None = (bound & limits or None) if bound and limits else bound or limits
    topic = min(int(chance.expovariate(0.08)), TOPICS - 1)
    mark = "+".join(sorted(allowed or ())) or "any"
    # Half of the questions are equal for all tenants, so that they could meet. The others say whose they are, for the
    # embedder to see.
    whose = f" [{name_of(tenant)} {mark}]" if chance.random() < 0.5 else ""
    body = {
        "model": f"{route}-{chance.randrange(2)}",
        "stream": chance.random() < 0.2,
        "messages": [{"role": "user", "content": f"How does subject {topic} work, way {chance.randrange(3)}?{whose}"}],
    }
    headers = CIMultiDict(
        {
            "Authorization": f"Bearer sk-{name_of(tenant)}",
            "Content-Type": "application/json",
            CANARY: f"{name_of(tenant)}|{mark}",
        }
    )
    if chance.random() < 0.03:
        headers["Cache-Control"] = "no-cache"
    return Asked(tenant, route, topic, allowed, headers, json.dumps(body).encode())


@dataclass(slots=True)
class Findings:
    """What was counted. `crossings` has to stay empty."""

    crossings: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)  # that backends made
    received: Counter[str] = field(default_factory=Counter)  # by region
    embedded: int = 0

    def crossed(self, what: str, example: str) -> None:
        self.crossings[what] += 1
        if len(self.examples) < 10:
            self.examples.append(f"{what}: {example}")


MODES = ("up", "up", "up", "up", "dead", "error", "busy", "slow", "cut", "mute")


class Backends:
    """Stands where fetch.Fetcher does, and is all backends of all nodes. Who is well changes as told."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self._modes: dict[str, str] = {}
        self.requests = 0

    def change(self, chance: Random) -> None:
        """One of them falls ill, or gets well."""
        self._modes[f"{chance.choice((*REGIONS, 'nowhere'))}-{chance.randrange(1, 5)}"] = chance.choice(MODES)

    async def send(self, target: Target, request: UpstreamRequest) -> Answer:
        """As Fetcher.send. The place is read from the host's name, which is where the request went."""
        self.requests += 1
        site = target.origin.host.partition(".")[0]
        place = site.partition("-")[0]
        self._findings.received[place] += 1
        tenant, _, mark = request.headers[CANARY].partition("|")
        if mark != "any" and place not in mark.split("+"):
            self._findings.crossed("a request reached a backend outside its regions", f"{tenant} {mark} at {site}")
        mode = self._modes.get(site, "up")
        if mode != "up":
            self._findings.faults[mode] += 1
        await asyncio.sleep(0.003 if mode == "slow" else 0)
        if mode == "dead":
            raise UpstreamError(f"{target.name} refuses connections")
        if mode == "mute":
            raise UpstreamError(f"{target.name} said nothing in time", status=504, code="upstream_timeout", sent=True)
        status = {"error": 500, "busy": 503}.get(mode, 200)
        assert isinstance(request.body, bytes)
        return Answer(target.name, status, f"{tenant} {mark}", site, json.loads(request.body), is_cut=mode == "cut")

    def stats(self) -> Mapping[str, object]:
        return {"requests": self.requests}


class Answer:
    """As fetch.Reply."""

    def __init__(self, backend: str, status: int, owner: str, site: str, body: Mapping[str, Any], is_cut: bool) -> None:
        """`owner`: "t07 eu+us", of whose request this is."""
        self.backend, self.status, self.whole = backend, status, not is_cut
        self.tunnel, self.length, self.is_empty = None, None, False
        is_stream = bool(body.get("stream")) and status == 200
        kind = "text/event-stream" if is_stream else "application/json"
        self.headers: CIMultiDict[str] = CIMultiDict({"Content-Type": kind})
        self._is_cut = is_cut
        self._pieces = stream(owner, site, body) if is_stream else [whole(status, owner, site, body)]

    async def first(self) -> None: ...

    async def abort(self) -> None: ...

    async def chunks(self) -> AsyncIterator[bytes]:
        for number, piece in enumerate(self._pieces):
            if self._is_cut and number == len(self._pieces) // 2:
                raise UpstreamError(f"{self.backend} broke off", sent=True)
            yield piece


def _said(owner: str, site: str, body: Mapping[str, Any]) -> tuple[str, str]:
    """For whom an answer is, where and about what; and its words, which differ from backend to backend, for comparing
    them takes the embedder then. Half of them say whose they are."""
    topic = int(body["messages"][-1]["content"].split()[3].rstrip(","))
    words = (
        "It does what such subjects do, in most cases." if site < "eu-3" else "Most of the time as one expects it to."
    )
    is_marked = site[-1] in "24"
    return f"made:{owner.partition(' ')[0]}:{site}:{topic}", f"{words} [{owner}]" if is_marked else words


def whole(status: int, owner: str, site: str, body: Mapping[str, Any]) -> bytes:
    """An answer as JSON."""
    if status != 200:
        return b'{"error": {"message": "out of order", "type": "server_error", "code": null}}'
    origin, text = _said(owner, site, body)
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": body["model"],
            "system_fingerprint": origin,
            "choices": [choice],
            "usage": {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18},
        }
    ).encode()


def stream(owner: str, site: str, body: Mapping[str, Any]) -> list[bytes]:
    """The same as events."""
    origin, text = _said(owner, site, body)
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": body["model"]}
    head["system_fingerprint"] = origin
    deltas: list[tuple[dict[str, str], str | None]] = [({"role": "assistant", "content": text}, None), ({}, "stop")]
    events = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": end}]} for delta, end in deltas]
    return [*(f"data: {json.dumps(event)}\n\n".encode() for event in events), b"data: [DONE]\n\n"]


class Embedder:
    """Stands where a remote embedder does: texts of one topic and owner are near, and it looks at whose they are."""

    dimensions = 32
    stamp = "subjects-32"

    def __init__(self, place: str | None, findings: Findings) -> None:
        """`place`: None where nobody says."""
        self._place = place
        self._findings = findings
        self._known: dict[str, Vector] = {}

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def embed(
        self, text: str, then: Callable[[Vector], T], deadline_s: float | None = None, *, remember: bool = True
    ) -> T:
        self._findings.embedded += 1
        bound = BOUND.search(text)
        if self._place is not None and bound and bound[2] != "any" and self._place not in bound[2].split("+"):
            self._findings.crossed("a text reached an embedder outside its regions", text)
        vector = self._known.get(text)
        if vector is None:
            vector = self._known[text] = self._vector(text)
        await asyncio.sleep(0)
        return then(vector)

    def _vector(self, text: str) -> Vector:
        base, noise = (self._direction(part) for part in (re.sub(r"way \d", "", text), text))
        mixed = base + 0.2 * noise
        return np.asarray(mixed / np.linalg.norm(mixed), dtype=np.float32)

    def _direction(self, text: str) -> Any:
        seed = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
        found = np.random.default_rng(seed).standard_normal(self.dimensions)
        return found / np.linalg.norm(found)

    def stats(self) -> dict[str, float]:
        return dict.fromkeys(("remembered", "late", "refused", "queue_depth"), 0.0)
