"""How the report of shadow mode looks on a terminal: what each threshold would have done, and which one to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from semcache.shadow import Strategy

Report = Mapping[str, Any]  # as shadow_report gives it

_NAMES = {Strategy.THRESHOLD: "threshold alone", Strategy.GUARDS: "threshold and guards, as configured"}


def show(report: Report, console: Console) -> None:
    if not report["routes"]:
        console.print("No route has been in shadow mode: write `match: {mode: shadow}` for one, and let traffic come.")
    for route in report["routes"]:
        _show_route(route, console)


def _show_route(route: Mapping[str, Any], console: Console) -> None:
    title = f"routes[{route['route']}] {' '.join(route['models'])}"
    if not route["requests"]:
        console.print(Text(f"{title}: nothing was looked up in shadow mode yet", "bold"))
        return
    since, until = (datetime.fromtimestamp(route[name], UTC).strftime("%Y-%m-%d %H:%M") for name in ("since", "until"))
    console.print(Text(f"{title}: {route['requests']:,} requests looked up, {since} to {until} UTC", "bold"))
    exact = route["exact"]
    line = f"  equal requests: {_percent(exact['hit_rate'])} hits at any threshold"
    if exact["compared"]:
        line += f"; {_percent(exact['different_rate'])} of {exact['compared']:,} fresh answers said something else"
    console.print(line, highlight=False)
    if route["left_out"]:
        console.print(
            f"  {route['left_out']:,} requests from before a change of models, guards or embedder are left out",
            highlight=False,
        )
    for strategy, name in _NAMES.items():
        console.print(_table(name, route["curves"][strategy], route["recommendation"].get("threshold")))
    console.print(Text(recommended(route), "bold"))
    if route["max_error"] is not None:
        console.print(
            "With max_error no threshold is asked: what was learned meanwhile decides, and `semcache explain` shows it."
        )
    if lines := route["recommendation"].get("yaml"):
        console.print(lines, highlight=False)
    console.print()


def _table(name: str, curve: Sequence[Mapping[str, Any]], chosen: float | None) -> Table:
    """Every second threshold, to fit on a screen; and the one that is recommended."""
    table = Table(title=name, title_justify="left", title_style="", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 0))
    for head in ("", "hits", "semantic", "compared", "false", "95 %", "tokens", "USD", "time"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in curve:
        if round(row["threshold"] * 100) % 2 and row["threshold"] != chosen:
            continue
        compared = f"{row['compared']:,}"
        if row["not_compared"] > 0:
            compared += f" ({_percent(row['not_compared'])} not)"
        table.add_row(
            f"{row['threshold']:.2f}",
            _percent(row["hit_rate"]),
            f"{row['semantic_hits']:,}",
            compared,
            _percent(row["false_rate"]) if row["compared"] else "",
            _interval(row) if row["compared"] else "",
            f"{row['tokens']:,}",
            f"{row['usd']:.2f}" + ("+" if row["unpriced"] else ""),
            _duration(row["fetch_s"]),
            style="bold" if row["threshold"] == chosen else "",
        )
    return table


def recommended(route: Mapping[str, Any]) -> str:
    """The recommendation as a sentence."""
    found = route["recommendation"]
    target, row = _percent(found["target"]), found["row"]
    if found["threshold"] is not None:
        return (
            f"For at most {target} false hits: at {row['threshold']:.2f} there are {_percent(row['hit_rate'])} hits, "
            f"{_percent(row['false_rate'])} of those by meaning false "
            f"({_percent(row['false_low'])} to {_percent(row['false_high'])}), {row['compared']:,} compared."
        )
    if row is None:
        return f"For at most {target} false hits: no hit by meaning was compared yet; it takes {found['more']:,}."
    seen = (
        f"at {row['threshold']:.2f}, the best so far, {_percent(row['false_rate'])} are false "
        f"({_percent(row['false_low'])} to {_percent(row['false_high'])}), {row['compared']:,} compared"
    )
    if found["more"] is None:
        return (
            f"For at most {target} false hits no threshold will do: {seen}. Allow more of them, or set match.max_error."
        )
    return f"For at most {target} false hits there is not enough evidence: {seen}. {found['more']:,} more would tell."


def _percent(share: float) -> str:
    return f"{share * 100:.2g} %" if 0 < share < 0.1 else f"{share * 100:.0f} %"


def _interval(row: Mapping[str, Any]) -> str:
    low, high = (_percent(row[name]).removesuffix(" %") for name in ("false_low", "false_high"))
    return f"{low}-{high} %"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:,.1f} min"
