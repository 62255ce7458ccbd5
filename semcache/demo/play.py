"""`semcache demo`: a simulated backend and the proxy, and some hundred questions of customers asked as a service would.

Both servers are processes of their own, so what is shown is what a service would see, and they are stopped however the
demo ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from semcache import children
from semcache.demo.asking import Caller, Question, Tally, ask_all, write_script
from semcache.demo.questions import load_groups
from semcache.demo.screen import Lines, LiveTable, summarize
from semcache.errors import StartError

TTFT = "250ms"
TOKENS_PER_S = 120.0
MODEL = "all-MiniLM-L6-v2"


def run(*, leave: bool, port: int, console: Console | None = None) -> int:
    """Play the demo; return the exit status. `leave`: stop after the summary. Raises StartError."""
    console = console or Console(width=None if sys.stdout.isatty() else 110)
    try:
        with children.ended_by_signals(), tempfile.TemporaryDirectory(prefix="semcache-demo-") as folder:
            return _play(Path(folder), leave, port, console)
    except KeyboardInterrupt:
        console.print("\nstopped", style="dim")
        return 130


def _play(folder: Path, leave: bool, port: int, console: Console) -> int:
    with contextlib.ExitStack() as stack:
        _prepare_model(console)
        with _step(console, "simulated backend"):
            simulator, upstream = children.start_simulator(folder, ttft=TTFT, rate=TOKENS_PER_S)
            stack.callback(simulator.stop)
        with _step(console, "proxy"):
            proxy, url, metrics = children.start_proxy(folder, upstream, port=port)
            stack.callback(proxy.stop)
        script = write_script(load_groups())
        console.print(f"asking {len(script)} questions through {url}, half of them as streams\n", highlight=False)
        tally = asyncio.run(_ask(url, script, console))
        summarize(tally, console)
        if not leave:
            _stay_up(url, metrics, console)
        return 1 if tally.failures or not tally.replies else 0


def _prepare_model(console: Console) -> None:
    from semcache.cache.model import prepare

    with _step(console, "embedding model"):
        prepare(MODEL, progress=lambda line: console.print(f"  {line}", style="dim", highlight=False))


@contextlib.contextmanager
def _step(console: Console, name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    console.print(f"[green]✓[/] {name} [dim]{time.perf_counter() - began:.1f} s[/]", highlight=False)


async def _ask(url: str, script: Sequence[Question], console: Console) -> Tally:
    try:
        from openai import AsyncOpenAI
    except ImportError as exc:
        raise StartError("the demo asks through the openai package: pip install openai") from exc

    # No retries: what fails should be seen to fail.
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="demo", max_retries=0) as client:
        caller = Caller(client, script)
        if not console.is_terminal:
            return await ask_all(caller, script, Lines(console))
        with Live(console=console, refresh_per_second=12) as live:
            return await ask_all(caller, script, LiveTable(live))


def _stay_up(url: str, metrics: str, console: Console) -> None:
    console.print()
    console.rule("[bold]Still running", align="left")
    ask = (
        f"curl -si {url}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        '    -d \'{{"model": "demo", "messages": [{{"role": "user", "content": "{question}"}}]{stream}}}\''
    )
    lines = [
        ("base URL", f"{url}/v1"),
        ("metrics", metrics),
        ("ask", ask.format(question="How do I return my jacket?", stream="")),
        ("ask again", ask.format(question="How can I return my jacket?", stream=', "stream": true')),
    ]
    for name, value in lines:
        console.print(f"[dim]{name:10}[/]", Text(value), soft_wrap=True, highlight=False)
    console.print("\nCtrl-C stops everything.", style="dim")
    sys.stdout.flush()
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)
