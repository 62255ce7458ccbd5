"""A report of `semcache tune` as one page that needs nothing else: charts inside, no script, no network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from semcache.tuning import charts
from semcache.tuning.report import GAINED, SIZED, percent

_PAGE = Path(__file__).with_name("page.html")


def write_page(report: Mapping[str, Any]) -> str:
    about = f"At most {percent(report['target'])} of hits by meaning may be false. Written {report['written']}."
    studies = "".join(_study(study) for study in report["studies"])
    return Template(_PAGE.read_text(encoding="utf-8")).substitute(about=escape(about), studies=studies)


def _study(study: Mapping[str, Any]) -> str:
    kind = study["kind"]
    gained = GAINED[kind]
    found = study["recommendation"]
    parts = [f"<h2>{escape(study['name'])}: {study[SIZED[kind]]:,} {SIZED[kind]}</h2>"]
    parts += [f'<p class="note">{escape(note)}</p>' for note in study["notes"]]
    lines = f"<pre>{escape(found['yaml'])}</pre>" if found["yaml"] else ""
    other = f"<p>{escape(found['or'])}</p>" if found["or"] else ""
    parts.append(f'<div class="advice{"" if lines else " none"}"><p>{escape(found["says"])}</p>{lines}{other}</div>')
    figures = [_figure("Gained against false, by strategy", charts.trade(study, gained))]
    if study["bounds"]:
        figures.append(_figure("Error-bounded: allowed and seen", charts.promised(study["bounds"])))
    figures += [
        _figure(f"{name}, by setting", charts.by_setting(name, curve, study, gained))
        for name, curve in study["curves"].items()
    ]
    parts.append(f'<div class="charts">{"".join(figures)}</div>')
    parts += [_curve(name, curve, study) for name, curve in study["curves"].items()]
    if study["bounds"]:
        parts.append(_bounds(study["bounds"]))
    return "".join(parts)


def _figure(caption: str, chart: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{chart}</figure>"


def _curve(name: str, curve: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    found = study["recommendation"]
    width = None if study["kind"] == "stream" else -2  # without shares of all hits and requests
    heads = (curve["setting"], GAINED[study["kind"]], *_HEADS)[:width]
    rows = [
        (
            point["setting"] == found["setting"] and name == found["strategy"],
            [f"{point['setting']:g}", *_cells(point)][:width],
        )
        for point in curve["points"]
    ]
    return _table(f"{name}: every setting", heads, rows)


def _bounds(bounds: Sequence[Mapping[str, Any]]) -> str:
    first = bounds[0]
    rows = [
        (False, [percent(each["max_error"]), *_cells(each), f"{each['explored']:,}", "yes" if each["within"] else "no"])
        for each in bounds
    ]
    title = f"error-bounded: {first['rows']:,} rows through the whole cache, after {first['warm_up']} to learn"
    return _table(title, ("max_error", "hit rate", *_HEADS, "explored", "kept"), rows)


_HEADS = ("by meaning", "false", "of them", "95 % interval", "of hits", "of requests")


def _cells(point: Mapping[str, Any]) -> list[str]:
    rate = point["false_of_by_meaning"]
    low, high = map(percent, rate["95%"])
    served = [percent(point["hit_rate"]), f"{point['by_meaning']:,.0f}", f"{point['false']:,.0f}"]
    if not point["by_meaning"]:
        return [*served, "", "", "", ""]
    shares = [percent(point["false_of_hits"]), percent(point["false_of_requests"])]
    return [*served, percent(rate["value"]), f"{low} to {high}", *shares]


def _table(title: str, heads: Iterable[str], rows: Iterable[tuple[bool, Sequence[str]]]) -> str:
    head = "".join(f"<th>{escape(each)}</th>" for each in heads)
    body = "".join(
        f"<tr{' class=chosen-row' if is_chosen else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for is_chosen, cells in rows
    )
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    return f"<section><details><summary>{escape(title)}</summary>{table}</details></section>"
