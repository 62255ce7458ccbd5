"""How a report of `semcache tune` looks on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from semcache.tuning.report import GAINED, SIZED, percent

ROWS = 9  # of a strategy's settings, evenly chosen; the JSON and the page have all


def show(report: Mapping[str, Any], console: Console) -> None:
    for study in report["studies"]:
        size = study[SIZED[study["kind"]]]
        console.print(Text(f"{study['name']}: {size:,} {SIZED[study['kind']]}", "bold"))
        for note in study["notes"]:
            console.print(f"  {note}", highlight=False)
        for name, curve in study["curves"].items():
            console.print(_curve(name, curve, study))
        if study["bounds"]:
            console.print(_bounds(study["bounds"]))
        console.print(Text(study["recommendation"]["says"], "bold"))
        if study["recommendation"]["yaml"]:
            console.print(study["recommendation"]["yaml"], highlight=False)
        if study["recommendation"]["or"]:
            console.print(study["recommendation"]["or"], highlight=False)
        console.print()


def _curve(name: str, curve: Mapping[str, Any], study: Mapping[str, Any]) -> Table:
    table = _table(name)
    table.add_column(curve["setting"], justify="right", no_wrap=True)
    is_stream = study["kind"] == "stream"
    heads = [GAINED[study["kind"]], "by meaning", "false", "of them", "95 % interval"]
    for head in (*heads, "of hits", "of requests") if is_stream else heads:
        table.add_column(head, justify="right", no_wrap=True)
    chosen = study["recommendation"]
    for point in _some(curve["points"], chosen["setting"] if chosen["strategy"] == name else None):
        table.add_row(
            f"{point['setting']:.3f}".rstrip("0"),
            percent(point["hit_rate"]),
            *_of_meaning(point, is_stream),
            style="bold" if (chosen["strategy"], chosen["setting"]) == (name, point["setting"]) else "",
        )
    return table


def _bounds(bounds: Sequence[Mapping[str, Any]]) -> Table:
    first = bounds[0]
    table = _table(f"error-bounded: {first['rows']:,} rows through the whole cache, after {first['warm_up']} to learn")
    for head in ("max_error", "hit rate", "by meaning", "false", "of them", "95 % interval", "of hits", "of requests"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("explored", justify="right")
    table.add_column("kept")
    for bound in bounds:
        table.add_row(
            percent(bound["max_error"]),
            percent(bound["hit_rate"]),
            *_of_meaning(bound),
            f"{bound['explored']:,}",
            "yes" if bound["within"] else Text("no", "bold red"),
        )
    return table


def _of_meaning(count: Mapping[str, Any], of_all: bool = True) -> list[str]:
    rate = count["false_of_by_meaning"]
    low, high = (percent(each).removesuffix(" %") for each in rate["95%"])
    served = [f"{count['by_meaning']:,.0f}", f"{count['false']:,.0f}"]
    if not count["by_meaning"]:
        return [*served, "", "", *[""] * 2 * of_all]
    shares = [percent(count["false_of_hits"]), percent(count["false_of_requests"])] if of_all else []
    return [*served, percent(rate["value"]), f"{low} to {high} %", *shares]


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))


def _some(points: Sequence[Mapping[str, Any]], chosen: float | None) -> list[Mapping[str, Any]]:
    """Evenly spread ones, with the first that serves anything, the last, and the chosen one."""
    told = [point for point in points if point["by_meaning"]] or list(points)
    stride = max(1, round(len(told) / ROWS))
    return [
        point
        for place, point in enumerate(told)
        if place % stride == 0 or place == len(told) - 1 or point["setting"] == chosen
    ]
