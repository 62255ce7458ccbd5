"""Active checks: when a backend is asked, by a clock that is moved by hand, and what it is asked, on real sockets."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from semcache.backends.checks import Checks, check_over_http
from semcache.backends.fetch import Fetcher, UpstreamRequest
from semcache.backends.health import State, Vitals
from semcache.backends.target import Target, targets_of
from semcache.config import Backend, Health, Pool
from tests.fakes import Clock
from tests.harness import until
from tests.scripted_upstream import Expect, Reset, ScriptedUpstream, Send, Step, Wait, WaitForClose, answer

HEALTH = Health(timeout=0.6, unhealthy_after=2, healthy_after=1)
SHORT_S = 0.05  # a deadline that is meant to pass


@dataclass(eq=False)
class Ward:
    """A backend that answers checks as the test says, now or later."""

    vitals: Vitals
    says: bool | Exception | None = True  # None: nothing, until `answer`
    asked: int = 0
    cancelled: int = 0
    waiting: list[asyncio.Future[bool]] = field(default_factory=list)

    async def ask(self) -> bool:
        self.asked += 1
        if isinstance(self.says, Exception):
            raise self.says
        if self.says is not None:
            return self.says
        self.waiting.append(asyncio.get_running_loop().create_future())
        try:
            return await self.waiting[-1]
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


class Clinic:
    """Checks whose time passes by hand, in steps as long as they ask for themselves."""

    def __init__(self) -> None:
        self.clock = Clock(1000.0)
        self.took: list[float] = []
        self.lost: list[Ward] = []
        self.checks: Checks[Ward] = Checks(
            Ward.ask,
            answered=lambda ward, took_s: self.took.append(took_s),
            lost=self.lost.append,
            clock=self.clock,
            chance=lambda: 1.0,  # intervals are whole, and a first check comes after a quarter of one
        )

    def admit(self, says: bool | Exception | None = True, interval_s: float = 2.0, health: Health = HEALTH) -> Ward:
        ward = Ward(Vitals(health, chance=lambda: 0.0), says)
        self.checks.adopt({ward: interval_s})
        return ward

    async def pass_time(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while True:
            delay_s = self.checks.sweep()
            for _ in range(3):  # a check that is answered at once takes two turns of the loop
                await asyncio.sleep(0)
            delay_s = min(delay_s, self.checks.sweep())
            if self.clock.now + delay_s > end:
                self.clock.now = end
                return
            self.clock.now += delay_s


@pytest.fixture
async def clinic() -> AsyncIterator[Clinic]:
    clinic = Clinic()
    yield clinic
    await clinic.checks.stop()


async def test_a_quiet_backend_is_asked_once_an_interval(clinic: Clinic) -> None:
    ward = clinic.admit()
    await clinic.pass_time(20.4)
    assert ward.asked == 10
    assert ward.vitals.state(clinic.clock.now) is State.WELL
    assert clinic.took == [0.0] * 10


async def test_no_interval_is_no_check(clinic: Clinic) -> None:
    ward = clinic.admit(interval_s=0.0)
    clinic.checks.look_now(ward)
    await clinic.pass_time(60.0)
    assert ward.asked == 0


async def test_a_refused_check_is_repeated_soon_and_the_second_ejects(clinic: Clinic) -> None:
    ward = clinic.admit(says=False)
    await clinic.pass_time(0.5)
    assert not ward.vitals.is_ejected()
    await clinic.pass_time(0.5)
    assert ward.vitals.is_ejected()
    assert clinic.lost == [ward]


async def test_an_ejected_backend_is_asked_once_an_interval_and_back_within_one(clinic: Clinic) -> None:
    ward = clinic.admit(says=False)
    await clinic.pass_time(1.0)
    await clinic.pass_time(20.0)
    assert ward.asked == 12
    ward.says = True
    await clinic.pass_time(2.0)
    assert ward.vitals.state(clinic.clock.now) is State.WELL


async def test_a_frozen_backend_that_holds_requests_is_out_within_two_seconds(clinic: Clinic) -> None:
    ward = clinic.admit()
    await clinic.pass_time(0.6)  # the check has just been answered: the worst moment
    ward.vitals.begin(clinic.clock.now)
    ward.says = None
    await clinic.pass_time(1.6)
    assert not ward.vitals.is_ejected()
    await clinic.pass_time(0.11)
    assert ward.vitals.is_ejected()
    assert clinic.lost == [ward]


async def test_a_thawed_backend_is_back_as_soon_as_it_answers_what_it_was_asked(clinic: Clinic) -> None:
    ward = clinic.admit(says=None)
    await clinic.pass_time(10.0)
    assert ward.vitals.is_ejected()
    clinic.clock.advance(0.01)
    ward.waiting[-1].set_result(True)
    await until(lambda: not ward.vitals.is_ejected())


async def test_checks_of_a_frozen_backend_do_not_pile_up(clinic: Clinic) -> None:
    ward = clinic.admit(says=None)
    await clinic.pass_time(60.0)
    assert ward.asked > 20
    assert ward.asked - ward.cancelled == 2


async def test_those_who_wait_at_an_ejected_backend_are_told_at_each_check_that_fails(clinic: Clinic) -> None:
    """In panic requests go there all the same, and must not hang for all of `first_byte`."""
    clinic.admit(says=None)
    await clinic.pass_time(1.71)
    assert len(clinic.lost) == 1
    await clinic.pass_time(6.0)
    assert len(clinic.lost) == 4


async def test_a_late_answer_shows_that_a_backend_is_busy_and_not_dead(clinic: Clinic) -> None:
    ward = clinic.admit(says=None)
    for _ in range(20):
        await clinic.pass_time(1.3)  # the first is late by now, the second is under way
        for waiting in ward.waiting:
            if not waiting.done():
                waiting.set_result(True)
        await clinic.pass_time(0.7)
    assert not ward.vitals.is_ejected()
    assert clinic.lost == []
    assert clinic.checks.stats()["unanswered"] > 0


async def test_a_backend_that_sends_answers_is_not_ejected_for_being_slow_to_say_so(clinic: Clinic) -> None:
    ward = clinic.admit(says=None)
    for _ in range(100):
        spell = ward.vitals.begin(clinic.clock.now)
        await clinic.pass_time(0.3)
        ward.vitals.succeeded(clinic.clock.now, spell)
    assert not ward.vitals.is_ejected()


async def test_whoever_asks_for_a_look_gets_one_soon_and_no_storm_of_them(clinic: Clinic) -> None:
    ward = clinic.admit()
    await clinic.pass_time(1.1)  # asked at 0.5
    clinic.checks.look_now(ward)
    await clinic.pass_time(0.0)
    assert ward.asked == 2
    for _ in range(100):
        clinic.checks.look_now(ward)
        await clinic.pass_time(0.01)
    assert ward.asked <= 4


async def test_a_check_that_breaks_counts_as_failed(clinic: Clinic) -> None:
    ward = clinic.admit(says=RuntimeError("no such thing"))
    await clinic.pass_time(2.0)
    assert ward.vitals.is_ejected()


async def test_a_check_that_times_out_by_itself_counts_once(clinic: Clinic) -> None:
    ward = clinic.admit(says=TimeoutError())
    await clinic.pass_time(1.2)
    assert clinic.checks.stats()["failed"] == 1
    assert not ward.vitals.is_ejected()


async def test_a_reload_keeps_what_is_known_and_forgets_what_is_gone(clinic: Clinic) -> None:
    stays, goes = (Ward(Vitals(HEALTH), None) for _ in range(2))
    clinic.checks.adopt({stays: 2.0, goes: 2.0})
    await clinic.pass_time(0.6)
    clinic.checks.adopt({stays: 2.0})
    await until(lambda: goes.cancelled == 1)
    assert (stays.asked, stays.cancelled) == (1, 0)
    await clinic.pass_time(5.0)
    assert stays.vitals.is_ejected()
    assert goes.asked == 1
    clinic.checks.adopt({stays: 1.0})
    asked = stays.asked
    await clinic.pass_time(10.0)
    assert stays.asked - asked == 10


async def test_checks_of_many_backends_are_spread() -> None:
    numbers = iter(range(10_000))
    times: list[float] = []
    clock = Clock(0.0)

    async def ask(ward: Ward) -> bool:
        times.append(clock.now)
        return True

    checks: Checks[Ward] = Checks(ask, clock=clock, chance=lambda: next(numbers) * 0.618 % 1)
    checks.adopt({Ward(Vitals(HEALTH)): 2.0 for _ in range(100)})
    for _ in range(200):
        checks.sweep()
        await asyncio.sleep(0)
        clock.advance(0.05)
    await checks.stop()
    busiest = max(times.count(moment) for moment in set(times))
    assert 500 <= len(times) <= 650  # each every 1.6 to 2 s, for 10 s
    assert busiest <= 15


# On real sockets.


@asynccontextmanager
async def fetching() -> AsyncIterator[Fetcher]:
    fetcher = Fetcher()
    await fetcher.start()
    try:
        yield fetcher
    finally:
        await fetcher.close()


def at(port: int, path: str = "/v1", **settings: object) -> Target:
    backend = Backend.model_validate({"url": f"http://127.0.0.1:{port}{path}", "proxy": "none", **settings})
    return next(iter(targets_of("gpu", Pool(backends=(backend,)))))


@pytest.mark.parametrize(
    "status, is_well",
    [
        ("200 OK", True),
        ("301 Moved Permanently", True),
        ("401 Unauthorized", True),
        ("404 Not Found", True),
        ("429 Too Many Requests", True),
        ("500 Internal Server Error", False),
        ("503 Service Unavailable", False),
        ("529 Overloaded", False),
    ],
)
async def test_a_status_below_500_is_a_sign_of_life(status: str, is_well: bool) -> None:
    async with ScriptedUpstream([[Expect(), answer(b"{}", status=status)]]) as upstream, fetching() as fetcher:
        assert await check_over_http(fetcher, at(upstream.port), None, 5.0) is is_well


@pytest.mark.parametrize(
    "base, path, asked",
    [
        ("/v1", None, "/v1/models"),
        ("/team/v1", None, "/team/v1/models"),
        ("/v1", "/health", "/health"),
        ("/v1", "/v1/health/ready", "/v1/health/ready"),
        ("/team/v1", "/v1", "/v1"),
        ("/v1", "/api/tags", "/api/tags"),
        ("/v1", "/health?deep=/v1", "/health?deep=/v1"),
        ("/v1", "/", "/"),
    ],
)
async def test_a_path_is_asked_at_the_root_and_models_below_the_base_url(
    base: str, path: str | None, asked: str
) -> None:
    async with ScriptedUpstream([[Expect(), answer()]]) as upstream, fetching() as fetcher:
        assert await check_over_http(fetcher, at(upstream.port, base), path, 5.0)
        assert upstream.requests[0].line == f"GET {asked} HTTP/1.1"


async def test_the_key_of_the_backend_goes_along_and_its_connection_is_used_again() -> None:
    script: list[Step] = [Expect(), answer(b"x" * 100_000), Expect(), answer()]
    async with ScriptedUpstream([script]) as upstream, fetching() as fetcher:
        target = at(upstream.port, api_key="sk-of-the-backend")
        for _ in range(2):
            assert await check_over_http(fetcher, target, None, 5.0)
        assert [request.all("authorization") for request in upstream.requests] == [["Bearer sk-of-the-backend"]] * 2
        assert upstream.connections == 1


async def test_an_answer_without_end_is_not_read_to_its_end() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    endless = Send(head + b"%x\r\n" % 2_000_000 + b"x" * 2_000_000)
    async with ScriptedUpstream([[Expect(), endless, WaitForClose()]]) as upstream, fetching() as fetcher:
        assert await check_over_http(fetcher, at(upstream.port), None, 5.0)


async def test_a_backend_that_hangs_up_or_is_not_there_is_not_well() -> None:
    async with ScriptedUpstream([[Expect(), Reset()]]) as upstream, fetching() as fetcher:
        target = at(upstream.port)
        assert not await check_over_http(fetcher, target, None, 5.0)
    async with fetching() as fetcher:
        assert not await check_over_http(fetcher, target, None, 5.0)  # nobody listens there any more


async def test_a_backend_that_accepts_and_never_answers_is_late() -> None:
    async with ScriptedUpstream([[Expect(), Wait(asyncio.Event())]]) as upstream, fetching() as fetcher:
        with pytest.raises(TimeoutError, match="gpu"):
            await check_over_http(fetcher, at(upstream.port), None, SHORT_S)


async def test_checks_have_connections_of_their_own() -> None:
    """Where requests hold every connection that a backend may have, it is busy and not dead."""
    async with ScriptedUpstream([[Expect(), Wait(asyncio.Event())], [Expect(), answer()]]) as upstream:
        async with fetching() as fetcher:
            target = replace(at(upstream.port), max_connections=1)
            stuck = asyncio.ensure_future(fetcher.fetch([target], UpstreamRequest("POST", "/v1/chat/completions", {})))
            await until(lambda: len(upstream.requests) == 1)
            assert await check_over_http(fetcher, target, None, 5.0)
            stuck.cancel()
            await asyncio.gather(stuck, return_exceptions=True)


SERVER = """
import http.server, socketserver
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "2"); self.end_headers(); self.wfile.write(b"{}")
    def log_message(self, *words): pass
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
server = Server(("127.0.0.1", PORT), Answer)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@asynccontextmanager
async def process(port: int = 0) -> AsyncIterator[tuple[int, int]]:
    """A server in a process of its own: its port and its process id."""
    source = SERVER.replace("PORT", str(port))
    running = await asyncio.create_subprocess_exec(sys.executable, "-c", source, stdout=subprocess.PIPE)
    assert running.stdout is not None
    try:
        yield int(await running.stdout.readline()), running.pid
    finally:
        running.kill()
        await running.wait()


@dataclass(eq=False)
class Real:
    vitals: Vitals
    target: Target


async def test_a_process_that_is_frozen_and_thawed_and_killed_and_started_again() -> None:
    health = Health(timeout=0.2, unhealthy_after=2, open=60.0)
    async with fetching() as fetcher:
        checks: Checks[Real] = Checks(lambda real: check_over_http(fetcher, real.target, None))
        async with process() as (port, pid):
            real = Real(Vitals(health), at(port))
            vitals = real.vitals
            checks.start()
            checks.adopt({real: 0.4})
            await until(lambda: checks.asked >= 2)
            assert not vitals.is_ejected()

            os.kill(pid, signal.SIGSTOP)
            await until(vitals.is_ejected)
            assert checks.unanswered >= 2
            os.kill(pid, signal.SIGCONT)
            await until(lambda: not vitals.is_ejected())
        for _ in range(5):  # requests that met the killed process
            vitals.failed(asyncio.get_running_loop().time())
        checks.look_now(real)
        await until(vitals.is_ejected)
        async with process(port):
            await until(lambda: vitals.may_take(asyncio.get_running_loop().time()))
            assert vitals.state(asyncio.get_running_loop().time()) is State.HALF_OPEN
        await checks.stop()
