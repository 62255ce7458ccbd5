"""What a run showed, as numbers (JSON) and as one page that needs nothing else (HTML with its charts inside).

The false-hit rate is given twice, of the hits and of the requests, each with its 95 % Wilson interval, since a handful
of events has no rate worth reading without one.
"""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from loadtests import charts
from loadtests.driver import Result, Run
from semcache.shadow import wilson as wilson  # one formula for the reports of servers and of load tests
from semcache.types import Tier

PERCENTILES = (50, 90, 95, 99, 99.9)
SHOWN_FALSE_HITS = 200  # on the page; the JSON has all
_PAGE = Path(__file__).with_name("report.html")


def summarize(run: Run, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Everything the report says, as plain values. `about`: what was run, shown as given."""
    results = run.results
    hits = [result for result in results if result.is_hit]
    false = [result for result in hits if result.right is False]
    unknown = sum(result.right is None for result in hits)
    crossed = [r for r in results if not r.is_hit and r.error is None and r.right is False]
    return {
        "about": dict(about or {}),
        "workload": run.workload.name,
        "requests": len(results),
        "groups": len({result.request.group for result in results}),
        "wall_s": round(run.wall_s, 2),
        "requests_per_s": round(len(results) / run.wall_s, 1) if run.wall_s else None,
        "streams": sum(result.request.stream for result in results),
        "verdicts": dict(Counter(result.verdict.value for result in results)),
        "details": dict(Counter(result.detail for result in results if not result.is_hit and result.detail)),
        "hit_rate": _rate(len(hits), len(results)),
        "exact_hits": sum(result.tier is Tier.EXACT for result in hits),
        "semantic_hits": sum(result.tier is Tier.SEMANTIC for result in hits),
        "ceilings": {
            "knows_the_groups": run.workload.hit_ceiling,
            "equal_texts_only": run.workload.exact_ceiling,
        },
        "false_hits_of_hits": _rate(len(false), len(hits)),
        "false_hits_of_requests": _rate(len(false), len(results)),
        "hits_of_unknown_origin": unknown,
        "answers_of_another_question_without_a_hit": len(crossed),  # anything but 0 is a defect of the server
        "errors": dict(Counter(result.error for result in results if result.error)),
        "latency_ms": {name: _latency(rows) for name, rows in _by_verdict(results).items()},
        "driver_late_ms_p99": _percentiles([result.late_ms for result in results]).get("p99"),
        "false_hits": [_false_hit(result) for result in false],
    }


def write_json(summary: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_html(summary: Mapping[str, Any], run: Run, path: Path) -> None:
    page = Template(_PAGE.read_text(encoding="utf-8"))
    path.write_text(
        page.substitute(
            title=html.escape(f"Load test: {summary['workload']}"),
            about=" · ".join(html.escape(f"{name} {value}") for name, value in summary["about"].items()),
            tiles="".join(_tiles(summary)),
            over_time=charts.verdicts_over_time(run.results),
            running_rate=charts.running_hit_rate(run.results, run.workload),
            first_byte=charts.latency_curves(run.results),
            similarity=charts.similarities(run.results),
            latency=_table(
                ["verdict", "requests", "", *(f"p{p:g}" for p in PERCENTILES), "mean"], _latency_rows(summary)
            ),
            reasons=_table(["why not from the cache", "requests"], _counted(summary["details"])),
            errors=_table(["error", "requests"], _counted(summary["errors"])) if summary["errors"] else "<p>None.</p>",
            false_hits=_false_hits(summary["false_hits"]),
        ),
        encoding="utf-8",
    )


def as_text(summary: Mapping[str, Any]) -> str:
    """The summary for a terminal, in a dozen lines."""
    hit, wrong, wrong_all = (summary[k] for k in ("hit_rate", "false_hits_of_hits", "false_hits_of_requests"))
    ceilings = summary["ceilings"]
    lines = [
        f"{summary['requests']} requests in {summary['wall_s']:.1f} s, {summary['requests_per_s']} a second, "
        f"{summary['streams']} of them streams",
        f"hit rate          {hit['rate']:7.1%}   (equal texts only: at most {ceilings['equal_texts_only']:.1%}; "
        f"a cache that knows the groups: {ceilings['knows_the_groups']:.1%})",
        f"false hits        {wrong['rate']:7.2%} of hits       95 %: {_span(wrong)}   "
        f"({wrong['events']} of {wrong['of']})",
        f"                  {wrong_all['rate']:7.2%} of requests   95 %: {_span(wrong_all)}",
    ]
    for name, row in summary["latency_ms"].items():
        first, total = row["first_byte"], row["total"]
        lines.append(
            f"{name:17} {row['requests']:7}   first byte p50 {_ms(first.get('p50'))}  p99 {_ms(first.get('p99'))}"
            f"   total p50 {_ms(total.get('p50'))}  p99 {_ms(total.get('p99'))}"
        )
    errors = ", ".join(f"{name}: {count}" for name, count in summary["errors"].items()) or "none"
    lines.append(f"errors            {errors}")
    if summary["answers_of_another_question_without_a_hit"]:
        lines.append(
            f"CROSSED ANSWERS   {summary['answers_of_another_question_without_a_hit']}: a defect of the server"
        )
    return "\n".join(lines)


def _rate(events: int, trials: int) -> dict[str, Any]:
    low, high = wilson(events, trials)
    return {"rate": events / trials if trials else 0.0, "events": events, "of": trials, "low": low, "high": high}


def _by_verdict(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Finished requests by verdict, hits apart by tier: an exact hit and a semantic hit are different work."""
    rows: dict[str, list[Result]] = {}
    for result in results:
        if result.error is None:
            rows.setdefault(charts.verdict_name(result), []).append(result)
    return dict(sorted(rows.items(), key=lambda item: charts.ORDER.index(item[0])))


def _latency(rows: Sequence[Result]) -> dict[str, Any]:
    return {
        "requests": len(rows),
        "first_byte": _percentiles([row.ttfb_ms for row in rows if row.ttfb_ms is not None]),
        "total": _percentiles([row.total_ms for row in rows if row.total_ms is not None]),
    }


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    points = np.percentile(values, PERCENTILES)
    named = {f"p{p:g}": round(float(v), 3) for p, v in zip(PERCENTILES, points, strict=True)}
    return {**named, "mean": round(float(np.mean(values)), 3)}


def _false_hit(result: Result) -> dict[str, Any]:
    return {
        "asked": result.request.text,
        "group": result.request.group,
        "answered_for": result.answered_for,
        "similarity": result.similarity,
        "tier": result.tier.value if result.tier else None,
    }


def _tiles(summary: Mapping[str, Any]) -> Iterable[str]:
    hit, wrong, wrong_all = (summary[k] for k in ("hit_rate", "false_hits_of_hits", "false_hits_of_requests"))
    ceilings, latency = summary["ceilings"], summary["latency_ms"]
    yield _tile("Hit rate", f"{hit['rate']:.1%}", f"of at most {ceilings['knows_the_groups']:.1%} in this workload")
    yield _tile(
        "False hits / hits",
        f"{wrong['rate']:.2%}",
        f"{wrong['events']} of {wrong['of']} · 95 %: {_span(wrong)}",
        wrong["events"] > 0,
    )
    yield _tile(
        "False hits / requests",
        f"{wrong_all['rate']:.2%}",
        f"{wrong['events']} of {wrong_all['of']} · 95 %: {_span(wrong_all)}",
        wrong["events"] > 0,
    )
    for name, label in (("semantic hit", "Semantic hit"), ("miss", "Miss")):
        total = latency.get(name, {}).get("total", {})
        yield _tile(label, _ms(total.get("p50")), f"median · p99 {_ms(total.get('p99'))}")
    errors = sum(summary["errors"].values())
    yield _tile("Errors", str(errors), f"of {summary['requests']} requests", errors > 0)


def _tile(label: str, figure: str, note: str, is_alarming: bool = False) -> str:
    kind = " alarming" if is_alarming else ""
    return f'<div class="tile{kind}"><h2>{label}</h2><strong>{figure}</strong><p>{html.escape(note)}</p></div>'


def _latency_rows(summary: Mapping[str, Any]) -> Iterable[list[str]]:
    for name, row in summary["latency_ms"].items():
        for number, (kind, label) in enumerate((("first_byte", "first byte"), ("total", "total"))):
            values = row[kind]
            figures = [_ms(values.get(f"p{p:g}")) for p in PERCENTILES]
            heads = [name, str(row["requests"])] if number == 0 else ["", ""]
            yield [*heads, label, *figures, _ms(values.get("mean"))]


def _counted(counts: Mapping[str, int]) -> Iterable[list[str]]:
    return ([name, str(count)] for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def _false_hits(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "<p>None seen.</p>"
    shown = sorted(rows, key=lambda row: -(row["similarity"] or 0))[:SHOWN_FALSE_HITS]
    cells = ([row["asked"], row["answered_for"] or "?", f"{row['similarity'] or 1:.3f}"] for row in shown)
    more = f"<p>The {SHOWN_FALSE_HITS} nearest of {len(rows)}.</p>" if len(rows) > SHOWN_FALSE_HITS else ""
    return _table(["asked", "answered with the answer to", "similarity"], cells) + more


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _ms(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms" if value < 100 else f"{value:,.0f} ms"


def _span(rate: Mapping[str, float]) -> str:
    return f"{rate['low']:.2%} – {rate['high']:.2%}"
