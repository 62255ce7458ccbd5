"""How `semcache check` prints: the routes and pools of a configuration, and what becomes of a sample request."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from semcache.config import Config, Match, Pool, Route
from semcache.route_trial import Candidate, Step, Trial, rules_of, title_of


def show_config(settings: Config, console: Console) -> None:
    """Every route with its rules and where it goes, every pool with its backends."""
    for number, route in enumerate(settings.routes):
        _print(console, f"{title_of(number, route)}: {rules_of(route)} -> {_goes(route, settings)}", "bold")
        _print(
            console,
            f"    {route.match.mode}, {_decided_by(route.match)}, ttl {route.cache.ttl:g} s, "
            f"grace {route.cache.grace:g} s{_extras(route)}",
        )
    for name, pool in settings.pools.items():
        _print(console, f"pools.{name}: {pool.balance}{_overflow(pool)}", "bold")
        for place, backend in enumerate(pool.backends):
            _print(
                console,
                f"    {name}[{place}] {backend.url}: {', '.join(_backend(pool, place, bool(settings.tenants)))}",
            )


def show_trial(trial: Trial, console: Console) -> None:
    asked = ", ".join(f"{name} {value}" for name, value in trial.asked.items())
    if trial.is_taken:
        _print(console, f"{trial.route} takes it: {asked}", "bold green")
    else:
        _print(console, f"Nothing takes it, the caller gets {trial.status}: {trial.refusal}", "bold red")
        _print(console, f"  asked: {asked}", "dim")
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(trial):
        table.add_row(name, Text(_plain(value)))
    console.print(table)
    for number, step in enumerate(trial.steps):
        _show_step(step, "first" if not number else "then" if trial.order == "written" else "or", console)


def _rows(trial: Trial) -> Iterator[tuple[str, str]]:
    for passed in trial.passed:
        yield "passed over", f"{passed.route}, as {passed.because}"
    if trial.route is None:
        return
    yield "route", f"{trial.route} is for {trial.rules}"
    if trial.regions:
        yield "regions", f"bound to {', '.join(trial.regions)}"
    if trial.arm is not None:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in trial.shares.items())
        yield "split", f"{trial.arm}, by {trial.sticky}; of {shares}"
    yield "cache", trial.lookup
    yield "limits", ", ".join(f"{name} {value:,}" for name, value in trial.limits.items()) or "none of its tenant"
    yield "guardrails", ", ".join(f"{name} {value}" for name, value in trial.guardrails.items()) or "none"
    if trial.flags:
        yield "they say", ", ".join(trial.flags)


def _show_step(step: Step, when: str, console: Console) -> None:
    kept = f", answers kept as {step.stored_as}" if step.stored_as else ""
    _print(console, f"{when} pool {step.pool}, {step.balance}{kept}", "bold")
    table = Table(box=None, padding=(0, 1), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for each in step.candidates:
        table.add_row(*_cells(each))
    console.print(table)


def _cells(each: Candidate) -> Iterator[Text]:
    yield Text(f"  {each.name}")
    yield Text(_plain(each.url + (f" ({each.region})" if each.region else "")))
    if each.obstacle is not None:
        yield Text(_plain(f"no: {each.obstacle}"), "red")
    else:
        asked = f"asked for {each.model}" if each.model else "asked"
        yield Text(_plain(f"{asked}, {each.note}" if each.note else asked), "green")


def _goes(route: Route, settings: Config) -> str:
    """Pools in their order, or the sides of a split."""
    if route.split:
        whole = sum(arm.weight for arm in route.split)
        sides = (f"{arm.name} {arm.weight / whole:.0%} ({', '.join(c.pool for c in arm.pools)})" for arm in route.split)
        return f"{', '.join(sides)} by {route.sticky}"
    pools = ", ".join([choice.pool for choice in route.pools] or settings.pools)
    return pools + (", nearest first" if route.order == "nearest" else "")


def _decided_by(match: Match) -> str:
    """What a candidate has to pass, in a few words."""
    if match.max_error is not None:
        parts = [f"max_error {match.max_error:g}"]
    else:
        parts = [f"threshold {match.threshold:g}"]
        parts += [f"judge {match.judge:g}"] if match.judge is not None else []
    parts += [f"reranker {match.reranker} {match.reranker_min:g}"] if match.reranker is not None else []
    return ", ".join([*parts, f"{len(match.guards)} guards"])


def _extras(route: Route) -> str:
    parts = [f"regions {' '.join(route.regions)}"] if route.regions else []
    parts += [f"asks for {route.model}"] if route.model else []
    parts += ["batch"] if route.priority == "batch" else []
    parts += [f"hedged after {route.hedge.after:g} s"] if route.hedge else []
    return "".join(f", {part}" for part in parts)


def _overflow(pool: Pool) -> str:
    limits = pool.overflow
    parts = [f"{limits.queue} wait"] if limits.queue else []
    parts += [f"the first token is more than {limits.ttft:g} s away"] if limits.ttft is not None else []
    return f", overflows when {' or '.join(parts)}" if parts else ""


def _backend(pool: Pool, place: int, replaces_keys: bool) -> Iterator[str]:
    backend = pool.backends[place]
    yield backend.dialect
    if backend.region:
        yield f"region {backend.region}"
    if isinstance(backend.models, str):
        yield "any model" if backend.models == "any" else "the models that it lists"
    else:
        names = list(backend.models)
        yield f"models {' '.join(names[:5])}" + (" ..." if len(names) > 5 else "")
    if len(backend.api_keys) > 1:
        yield f"{len(backend.api_keys)} keys"
    elif not backend.api_keys and not backend.api_key.get_secret_value():
        yield "no key" if replaces_keys else "the caller's own key"
    if backend.weight != 1:
        yield f"weight {backend.weight:g}"
    if backend.max_in_flight is not None:
        yield f"{backend.max_in_flight} at once"
    if backend.hours:
        yield f"{' '.join(backend.hours)} {backend.timezone}"
    if backend.drain:
        yield "drained"


def _print(console: Console, line: str, style: str = "") -> None:
    console.print(Text(_plain(line, keeps_indent=True), style), soft_wrap=True)


def _plain(text: str, keeps_indent: bool = False) -> str:
    """On one line, and without what a terminal obeys: a body's model is whatever somebody wrote."""
    indent = " " * (len(text) - len(text.lstrip(" "))) if keeps_indent else ""
    return indent + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in " ".join(text.split()))
