"""`python -m loadtests.failover`: kill one of three backends under load, freeze another, and see what callers notice.

Three simulated model servers and the proxy run as processes of their own. Every question is asked once, so every answer
comes from a backend, which names itself in it; a part is streamed. Then, on the clock:

    10 s   one backend is killed (SIGKILL): connections to it are refused
    25 s   it is started again, on its port
    45 s   another is frozen (SIGSTOP): connections to it are accepted, and nothing comes
    60 s   it goes on (SIGCONT)
    75 s   the end

The goals: no error but of streams that had begun, nothing new sent to it after 2 s, and back within one check interval.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import click
import orjson

from loadtests import failover_page
from semcache import children
from semcache.errors import SemcacheError

RATE = 200  # requests a second
STREAMED = 5  # every so many requests one is streamed
NAMES = ("gpu-1", "gpu-2", "gpu-3")
TTFT, TOKENS_PER_S, TOKENS = "30ms", 60.0, 12  # a stream lasts 0.2 s: some are under way whenever a backend dies
PATIENCE_S = 20.0  # of a caller

OFF_WITHIN_S = 2.0
CHECK_INTERVAL_S = 2.0  # of pools with several backends, unless set otherwise
SLACK_S = 0.3  # for the check itself, and until the next request falls to it


@dataclass(frozen=True)
class Fault:
    """What befalls a backend, and until when. Seconds since the load began."""

    kind: str  # killed | frozen
    victim: int
    begin_s: float
    end_s: float


FAULTS = (Fault("killed", 0, 10, 25), Fault("frozen", 1, 45, 60))
SPAN_S = 75.0


@dataclass(slots=True)
class Asked:
    """One request, as its caller saw it."""

    sent_s: float
    stream: bool
    request_id: str = ""
    status: int = 0
    backend: str = ""
    first_byte_s: float | None = None  # after sent_s
    done_s: float | None = None
    error: str | None = None
    attempts: int | None = None  # as the proxy's log tells

    @property
    def is_cut(self) -> bool:
        """It broke after its stream had begun, where nothing can be repeated."""
        return self.error is not None and self.stream and self.first_byte_s is not None and self.status == 200

    @property
    def is_failed(self) -> bool:
        return self.error is not None and not self.is_cut


@dataclass
class Finding:
    """What one fault did to the callers."""

    fault: Fault
    backend: str
    errors: int
    cut_streams: int
    off_after_s: float | None  # the last request that was sent there; None: there was none
    ready_after_s: float  # from the order to come back until it could answer: the start of a process takes a while
    back_after_s: float | None  # from then on, until it served again; None: it did not
    slowest_s: float  # the longest wait for a first byte while it was away

    @property
    def complaints(self) -> list[str]:
        name = f"{self.backend} {self.fault.kind}"
        told = []
        if self.errors:
            told.append(f"{name}: {self.errors} requests failed")
        if self.off_after_s is not None and self.off_after_s > OFF_WITHIN_S:
            told.append(f"{name}: requests went there until {self.off_after_s:.1f} s after")
        if self.back_after_s is None:
            told.append(f"{name}: it never served again")
        elif self.back_after_s > CHECK_INTERVAL_S + SLACK_S:
            told.append(f"{name}: it served again only {self.back_after_s:.1f} s after it could")
        return told


@dataclass
class Run:
    """A whole run. `faults`: as they happened, on the same clock as the requests."""

    requests: list[Asked] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    ready_s: dict[int, float] = field(default_factory=dict)  # victim -> when it could answer again
    findings: list[Finding] = field(default_factory=list)
    span_s: float = SPAN_S

    @property
    def complaints(self) -> list[str]:
        other = [asked for asked in self.requests if asked.is_failed and not self._during(asked)]
        return [line for finding in self.findings for line in finding.complaints] + (
            [f"{len(other)} requests failed while no backend was away: {other[0].error}"] if other else []
        )

    def _during(self, asked: Asked) -> bool:
        return any(_overlaps(asked, fault) for fault in self.faults)


def run(
    *,
    rate: int = RATE,
    faults: Sequence[Fault] = FAULTS,
    span_s: float = SPAN_S,
    pool: Mapping[str, object] | None = None,
) -> Run:
    """Play it; takes `span_s` seconds and some for the start. `pool`: settings of the pool. Raises SemcacheError."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(children.ended_by_signals())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="semcache-failover-")))
        backends = [Backend(folder, name) for name in NAMES]
        for backend in backends:
            stack.callback(backend.stop)
        proxy, url = _start_proxy(folder, backends, pool or {})
        stack.callback(proxy.stop)
        played = asyncio.run(_play(url, backends, rate, faults, span_s))
        proxy.stop()  # its log is then whole
        _read_log(folder / "requests.jsonl", played.requests)
    played.findings = [_find(played, fault) for fault in played.faults]
    return played


class Backend:
    """A simulated server as a process, which comes back on its port."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._folder = folder
        self._starts = 0
        self._port = 0
        self.start()

    def start(self) -> None:
        self._starts += 1
        log = f"{self.name}-{self._starts}"
        self._child, self.url = children.start_simulator(
            self._folder, "--name", self.name, ttft=TTFT, rate=TOKENS_PER_S, port=self._port, name=log
        )
        self._port = int(self.url.rpartition(":")[2].removesuffix("/v1"))

    def begin(self, fault: Fault) -> None:
        if fault.kind == "killed":
            self._child.kill()
        else:
            self._child.freeze()

    def end(self, fault: Fault) -> None:
        """Returns when it can answer."""
        if fault.kind == "killed":
            self.start()
        else:
            self._child.thaw()

    def stop(self) -> None:
        self._child.stop()


def _start_proxy(folder: Path, backends: Sequence[Backend], pool: Mapping[str, object]) -> tuple[children.Child, str]:
    settings = {
        "server": {"port": 0, "admin_port": 0, "request_log": str(folder / "requests.jsonl")},
        "cache": {"store": "memory:"},
        "match": {"mode": "off"},
        "pools": {"gpus": {"backends": [{"url": backend.url} for backend in backends], **pool}},
        "routes": [{"pools": ["gpus"]}],
    }
    file = folder / "semcache.yaml"
    file.write_text(json.dumps(settings))  # JSON is YAML
    child = children.Child([*children.SEMCACHE, "serve", "-c", str(file)], folder / "serve.log")
    try:
        url = child.wait_for_line(r"listening on (http://[^\s,]+)")[1]
        child.wait_until_ready(f"{url}/readyz")
    except BaseException:
        child.stop()
        raise
    return child, url


async def _play(url: str, backends: Sequence[Backend], rate: int, faults: Sequence[Fault], span_s: float) -> Run:
    played = Run(span_s=span_s)
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=PATIENCE_S)
    ) as session:
        begun = time.monotonic()

        def now() -> float:
            return time.monotonic() - begun

        async def befall(fault: Fault) -> None:
            await asyncio.sleep(fault.begin_s - now())
            begin_s = now()
            backends[fault.victim].begin(fault)
            await asyncio.sleep(fault.end_s - now())
            end_s = now()
            await asyncio.to_thread(backends[fault.victim].end, fault)
            played.ready_s[fault.victim] = now()
            played.faults.append(Fault(fault.kind, fault.victim, begin_s, end_s))

        async with asyncio.TaskGroup() as group:
            for fault in faults:
                group.create_task(befall(fault))
            # At its time, whether or not earlier ones are answered: a server that stalls cannot hide it.
            for number in range(int(rate * span_s)):
                if (early_s := number / rate - now()) > 0:
                    await asyncio.sleep(early_s)
                asked = Asked(now(), stream=number % STREAMED == 0)
                played.requests.append(asked)
                group.create_task(_ask(session, url, number, asked, now))
    played.faults.sort(key=_begin)
    return played


async def _ask(session: aiohttp.ClientSession, url: str, number: int, asked: Asked, now: Callable[[], float]) -> None:
    body = {
        "model": "simulated-small",
        "stream": asked.stream,
        "messages": [{"role": "user", "content": f"Where is the parcel of order {number}?"}],
    }
    try:
        async with session.post(
            f"{url}/v1/chat/completions", json=body, headers={"X-Simulate": f"tokens={TOKENS}"}
        ) as reply:
            asked.status = reply.status
            asked.request_id = reply.headers.get("X-Request-Id", "")
            text = bytearray()
            async for chunk in reply.content.iter_any():
                if asked.first_byte_s is None:
                    asked.first_byte_s = now() - asked.sent_s
                text += chunk
    except (aiohttp.ClientError, TimeoutError) as error:
        asked.error = type(error).__name__
    else:
        asked.error = _wrong(asked, bytes(text))
        asked.backend = _backend_of(bytes(text))
    asked.done_s = now() - asked.sent_s


def _wrong(asked: Asked, text: bytes) -> str | None:
    if asked.status != 200:
        return f"status {asked.status}: {text[:200].decode(errors='replace')}"
    if asked.stream and not text.endswith(b"data: [DONE]\n\n"):
        return "the stream has no end"
    return None


def _backend_of(text: bytes) -> str:
    """Who answered: each chunk of a stream says it, as a whole answer does."""
    first = text.removeprefix(b"data: ").partition(b"\n")[0]
    try:
        told = orjson.loads(first)
    except orjson.JSONDecodeError:
        return ""
    return str(told.get("system_fingerprint") or "") if isinstance(told, dict) else ""


def _read_log(path: Path, requests: Sequence[Asked]) -> None:
    """Fill in how many backends were asked for each request."""
    by_id = {asked.request_id: asked for asked in requests if asked.request_id}
    for line in path.read_bytes().splitlines():
        told = orjson.loads(line)
        if (asked := by_id.get(told.get("request_id", ""))) is not None:
            asked.attempts = told.get("attempts")


# What it comes to


def _find(played: Run, fault: Fault) -> Finding:
    name = NAMES[fault.victim]
    ready_s = played.ready_s[fault.victim]
    during = [asked for asked in played.requests if _overlaps(asked, fault)]
    # Sent there and then elsewhere, answered by an error, or held until it came back: each was still sent there.
    went_there = [
        asked.sent_s - fault.begin_s
        for asked in during
        if asked.sent_s >= fault.begin_s and (asked.is_failed or (asked.attempts or 1) > 1 or asked.backend == name)
    ]
    back = [asked.sent_s + (asked.done_s or 0) for asked in played.requests if asked.backend == name]
    back = [at for at in back if at > fault.end_s]
    return Finding(
        fault,
        name,
        errors=sum(asked.is_failed for asked in during),
        cut_streams=sum(asked.is_cut for asked in during),
        off_after_s=max(went_there, default=None),
        ready_after_s=ready_s - fault.end_s,
        back_after_s=max(0.0, min(back) - ready_s) if back else None,
        slowest_s=max((asked.first_byte_s or asked.done_s or 0.0 for asked in during), default=0.0),
    )


def _begin(fault: Fault) -> float:
    return fault.begin_s


def _overlaps(asked: Asked, fault: Fault) -> bool:
    """Some of it happened while the backend was away."""
    ended_s = asked.sent_s + (PATIENCE_S if asked.done_s is None else asked.done_s)
    return asked.sent_s < fault.end_s and ended_s >= fault.begin_s


def told(played: Run) -> Iterator[str]:
    """The table, a line each."""
    answered = sum(asked.error is None for asked in played.requests)
    yield f"{len(played.requests)} requests in {played.span_s:g} s, {answered} answered whole"
    yield f"{'':16} {'errors':>7} {'cut':>4} {'off after':>10} {'back after':>11} {'longest wait':>13}"
    for one in played.findings:
        off = "at once" if one.off_after_s is None else f"{one.off_after_s:.2f} s"
        back = "never" if one.back_after_s is None else f"{one.back_after_s:.2f} s"
        yield (
            f"{one.backend} {one.fault.kind:10} {one.errors:7} {one.cut_streams:4} {off:>10} {back:>11} "
            f"{one.slowest_s:11.2f} s"
        )
    for line in played.complaints:
        yield f"NOT AS WANTED: {line}"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rate", type=click.IntRange(1), default=RATE, show_default=True, help="Requests per second.")
@click.option(
    "--scale", type=click.FloatRange(0.1, 1), default=1.0, show_default=True, help="Of the times: 0.5 takes half."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("var/failover"), show_default=True, help="Folder."
)
def main(rate: int, scale: float, output: Path) -> None:
    """Kill and freeze backends under load; write the timeline as a page, an SVG and a PNG."""
    faults = [Fault(fault.kind, fault.victim, fault.begin_s * scale, fault.end_s * scale) for fault in FAULTS]
    try:
        played = run(rate=rate, faults=faults, span_s=SPAN_S * scale)
    except SemcacheError as error:
        sys.exit(f"loadtests.failover: {error.message}")
    except KeyboardInterrupt:
        sys.exit(130)
    lines = list(told(played))
    click.echo("\n".join(lines))
    click.echo(f"the timeline is in {failover_page.write(played, NAMES, lines, output)}")
    if played.complaints:
        sys.exit(1)


if __name__ == "__main__":
    main(prog_name="python -m loadtests.failover")
