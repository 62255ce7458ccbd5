"""The demo asks what it says, knows a false hit when it sees one, and leaves nothing running."""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI
from rich.console import Console
from rich.live import Live

from semcache.cache.personal import find_personal
from semcache.cache.time_bound import is_time_bound
from semcache.children import Child, start_simulator
from semcache.demo.asking import Caller, Question, Tally, ask_all, write_script
from semcache.demo.questions import Group, load_groups
from semcache.demo.screen import Lines, LiveTable, summarize
from semcache.errors import StartError
from semcache.simulate import Simulator
from semcache.types import Tier, Verdict
from semcache.verdicts import read_verdict
from tests.careless_cache import CarelessCache
from tests.harness import running_proxy

PRICE = Group("price", "topic", "price", ("What is the price?", "what is the price"))
ORDER_1 = Group("order/1", "template", "order", ("Where is order 1?",))
ORDER_2 = Group("order/2", "template", "order", ("Where is order 2?",))


@pytest.fixture
async def client() -> AsyncIterator[AsyncOpenAI]:
    async with (
        Simulator() as backend,
        CarelessCache(backend.url) as cache,
        AsyncOpenAI(base_url=cache.url, api_key="none", max_retries=0) as sdk,
    ):
        yield sdk


def test_every_wording_belongs_to_one_group() -> None:
    owners = Counter(wording for group in load_groups() for wording in group.wordings)
    assert [wording for wording, count in owners.items() if count > 1] == []


def test_the_script_asks_again_in_other_words_and_sets_traps() -> None:
    script = write_script(load_groups())
    assert script == write_script(load_groups())
    assert 200 <= len(script) <= 500
    assert sum(question.stream for question in script) * 2 == len(script) + len(script) % 2
    wordings = {group: {q.text for q in script if q.group.name == group} for group in {q.group.name for q in script}}
    assert sum(len(texts) > 1 for texts in wordings.values()) > len(wordings) / 2
    assert {"negation", "number", "product"} <= {question.group.kind for question in script}


async def test_right_hits_and_false_hits_are_told_apart(client: AsyncOpenAI) -> None:
    script = [
        Question("What is the price?", PRICE, stream=True),
        Question("what is the price", PRICE, stream=True),
        Question("Where is order 1?", ORDER_1, stream=False),
        Question("Where is order 2?", ORDER_2, stream=False),
        Question("Where is order 1?", ORDER_1, stream=False),
    ]
    out = io.StringIO()
    tally = await ask_all(Caller(client, script), script, Lines(Console(file=out, width=200)), callers=1)
    assert [reply.seen.verdict for reply in tally.replies] == [
        Verdict.MISS,
        Verdict.HIT,
        Verdict.MISS,
        Verdict.HIT,
        Verdict.HIT,
    ]
    (false,) = tally.false_hits
    assert (false.question.text, false.answered_for) == ("Where is order 2?", "Where is order 1?")
    assert "FALSE: answer to 'Where is order 1?'" in out.getvalue()
    tokens = [reply.prompt_tokens + reply.completion_tokens for reply in tally.replies]
    assert all(tokens)
    assert sum(tally.saved()[:2]) == sum(tokens[place] for place in (1, 3, 4))


async def test_the_summary_shows_false_hits_with_both_questions(client: AsyncOpenAI) -> None:
    script = [Question("Where is order 1?", ORDER_1, False), Question("Where is order 2?", ORDER_2, False)]
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    with Live(console=console) as live:
        tally = await ask_all(Caller(client, script), script, LiveTable(live), callers=1)
    summarize(tally, console)
    shown = console.file.getvalue()
    assert "50.0% of 2 requests" in shown
    assert "asked   Where is order 2?" in shown
    assert "got the answer to   Where is order 1?" in shown


async def test_questions_that_only_their_equals_answer_are_counted_by_reason(tmp_path: Path) -> None:
    asked = ("Where is my order 48213?", "And what does it weigh?", "What are your shop hours?")
    group = Group("any", "topic", "any", asked)
    script = [Question(text, group, stream=False) for text in asked]
    async with running_proxy(tmp_path) as proxy, AsyncOpenAI(base_url=proxy.url, api_key="demo") as sdk:
        tally = await ask_all(Caller(sdk, script), script, Lines(Console(file=io.StringIO())), callers=1)
    out = io.StringIO()
    summarize(tally, Console(file=out, width=120))
    assert "personal 1, follow-up 1" in out.getvalue()


def test_what_should_be_a_hit_is_nobodys_own_and_not_about_now() -> None:
    """Else the demo would show misses for its best pairs; orders and follow-ups are there to show just that."""
    apart = {"order-status", "order-cancel-number"}
    common = [group for group in load_groups() if group.family not in apart and group.kind != "follow-up"]
    wordings = [text for group in common for text in group.wordings]
    assert [text for text in wordings if find_personal(text) or is_time_bound(text)] == []


async def test_a_question_that_fails_is_counted_and_the_rest_goes_on() -> None:
    async with Simulator() as backend:
        unfit = {"X-Simulate": "status=500"}
        async with AsyncOpenAI(base_url=backend.url, api_key="none", max_retries=0, default_headers=unfit) as sdk:
            script = [Question("What is the price?", PRICE, True), Question("what is the price", PRICE, False)]
            tally = await ask_all(Caller(sdk, script), script, Lines(Console(file=io.StringIO())))
    assert tally.failures == {"InternalServerError": 2}
    summarize(tally, Console(file=io.StringIO()))  # of nothing: no division by zero


def test_an_empty_tally_saved_nothing() -> None:
    assert Tally(expected=0).saved() == (0, 0, 0.0)


@pytest.mark.parametrize(
    "header, verdict, tier, similarity, detail",
    [
        ("semcache; hit; ttl=12; detail=exact", Verdict.HIT, Tier.EXACT, None, "exact"),
        ("cdn; fwd=miss, semcache; hit; ttl=12; detail=semantic/0.964", Verdict.HIT, Tier.SEMANTIC, 0.964, "semantic"),
        ("semcache; hit; ttl=-4; detail=stale", Verdict.STALE, None, None, "stale"),
        ("semcache; fwd=miss; fwd-status=200; stored; detail=no-entry", Verdict.MISS, None, None, "no-entry"),
        ("semcache; fwd=request; fwd-status=200; detail=no-cache", Verdict.MISS, None, None, "no-cache"),
        ("semcache; fwd=stale; fwd-status=200; detail=expired", Verdict.MISS, None, None, "expired"),
        ("semcache; fwd=miss; collapsed", Verdict.COALESCED, None, None, ""),
        ("semcache; fwd=miss; collapsed=?0", Verdict.MISS, None, None, ""),
        ("semcache; fwd=bypass; detail=endpoint", Verdict.BYPASS, None, None, "endpoint"),
        ("semcache; hit; ttl=1; detail=exact, other; fwd=miss", Verdict.BYPASS, None, None, ""),
        ("", Verdict.BYPASS, None, None, ""),
    ],
)
def test_verdicts_are_read_from_the_last_member(
    header: str, verdict: Verdict, tier: Tier | None, similarity: float | None, detail: str
) -> None:
    assert read_verdict(200, {"Cache-Status": header}) == (verdict, tier, similarity, detail, None)


def test_an_error_that_no_cache_signed_is_refused() -> None:
    assert read_verdict(401, {}).verdict is Verdict.REFUSED


def test_a_started_simulator_tells_its_address_and_stops(tmp_path: Path) -> None:
    child, url = start_simulator(tmp_path, ttft="0", rate=0)
    try:
        child.wait_until_ready(f"{url}/models")
    finally:
        child.stop()
    with pytest.raises(StartError, match="ended"):
        child.wait_until_ready(f"{url}/models")


def test_a_child_that_fails_is_told_in_its_own_words(tmp_path: Path) -> None:
    child = Child([sys.executable, "-c", "print('semcache: the port is taken')"], tmp_path / "log")
    with pytest.raises(StartError, match="ended: the port is taken"):
        child.wait_for_line("listening")
    child.stop()
