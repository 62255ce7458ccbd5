"""`semcache check`: what is wrong with a configuration, where requests would go by it, and why."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from semcache import config
from semcache.commands.shared import FILE, examples, screen, speaks_plainly
from semcache.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from semcache.config import Config


@click.command(
    epilog=examples(
        "semcache check config/semcache.yaml",
        "semcache check semcache.yaml --try 'model=llama-3 tenant=shop header:X-Team=blue prompt=1200'",
        "semcache check semcache.yaml --try 'model=gpt-4o at=2026-03-01T23:30' --try 'model=gpt-4o path=/v1/responses'",
        "semcache check semcache.yaml --try '@request.json path=/v1/messages tenant=shop' --json",
    )
)
@click.argument("file", type=FILE)
@click.option(
    "--try",
    "samples",
    multiple=True,
    metavar="SAMPLE",
    help="Say which route a request takes, and why: words of model=, path=, tenant=, header:NAME=, prompt= (tokens), "
    "user=, at= (a time, UTC), or @FILE with its body. Repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what --try found as JSON.")
@speaks_plainly
def check(file: Path, samples: tuple[str, ...], as_json: bool) -> None:
    """Read a configuration file and say what is wrong with it, or how requests would be routed.

    Certificates, judge weights and rerankers that it names are looked for: a proxy here could not start without them.
    A note is no error: the file works, and does something that one might not expect.

    With --try the exit status is 1 when a sample would be refused. Nothing is sent: whether backends are well, have
    room and list a model is known to a running proxy only (`semcache backends`).
    """
    if as_json and not samples:
        raise click.UsageError("--json prints what --try found: write --try, too")
    settings = config.load(file)
    console = screen(160, highlight=False)
    if samples:
        _try_all(settings, samples, as_json, console)
        return
    from semcache.advice import advise
    from semcache.commands.route_screen import show_config
    from semcache.listening.tls import Certificates

    show_config(settings, console)
    for line in advise(settings):
        click.echo(f"note: {line}")
    if settings.server.tls is not None:
        Certificates(settings.server.tls)
    _find_models(settings)
    click.echo(f"{file}: ok")


def _try_all(settings: Config, samples: tuple[str, ...], as_json: bool, console: Console) -> None:
    from semcache.commands.route_screen import show_trial
    from semcache.route_trial import read_sample, try_route

    now = datetime.now(UTC)
    trials = [try_route(settings, read_sample(sample, _read), now) for sample in samples]
    if as_json:
        click.echo(json.dumps([asdict(trial) | {"is_taken": trial.is_taken} for trial in trials], indent=2))
    else:
        for number, trial in enumerate(trials):
            if number:
                console.print()
            show_trial(trial, console)
    if not all(trial.is_taken for trial in trials):
        sys.exit(1)


def _read(name: str) -> bytes:
    try:
        return Path(name).read_bytes()
    except OSError as exc:
        raise ConfigError(f"--try: {name}: cannot be read: {exc.strerror}") from exc


def _find_models(settings: Config) -> None:
    """What a start would look for. Raises StartError, with what to do."""
    matches = [route.match for route in settings.routes]
    asks_judge = [match for match in matches if match.judge is not None or match.max_error is not None]
    for weights in dict.fromkeys(match.judge_weights for match in asks_judge if match.judge_weights):
        from semcache.cache.judge import PairJudge

        PairJudge.load(Path(weights))
    for name in dict.fromkeys(match.reranker for match in matches if match.reranker):
        from semcache.cache import reranker_engines

        reranker_engines.build(name)
