"""How the demo shows itself: a live table on a terminal, lines elsewhere, and the summary at the end."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from semcache.demo.asking import USD_PER_MTOK_IN, USD_PER_MTOK_OUT, Reply, Tally
from semcache.types import Reason, Tier, Verdict
from semcache.verdicts import Seen

SHOWN_ROWS = 14
# Reasons of a question's own why only its equal is answered.
_WORD_FOR_WORD = frozenset({Reason.PERSONAL, Reason.FOLLOW_UP, Reason.TIME_BOUND})
_STYLES = {
    Verdict.HIT: "green",
    Verdict.STALE: "yellow",
    Verdict.COALESCED: "magenta",
    Verdict.MISS: "dim",
    Verdict.BYPASS: "yellow",
    Verdict.REFUSED: "red",
}


class Lines:
    """A line for each reply, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def show(self, reply: Reply, tally: Tally) -> None:
        similarity = f"{reply.seen.similarity:.3f}" if reply.seen.similarity else "     "
        wrong = f"  FALSE: answer to {reply.answered_for!r}" if reply.is_false else ""
        self._console.print(
            f"{len(tally.replies):4} {_verdict_text(reply.seen):21} {similarity} {reply.total_ms:8.1f} ms  "
            f"{reply.question.text}{wrong}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


class LiveTable:
    """The latest replies in a table that stays in place, with the running counts above it."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._rows: deque[Reply] = deque(maxlen=SHOWN_ROWS)

    def show(self, reply: Reply, tally: Tally) -> None:
        self._rows.append(reply)
        self._live.update(self._draw(tally))

    def _draw(self, tally: Tally) -> Group:
        done = len(tally.replies) + sum(tally.failures.values())
        heading = Text.assemble(
            (f" {done}/{tally.expected} ", "bold"),
            (f"  hits {len(tally.hits)}", "green"),
            f" ({tally.count(Verdict.HIT, Tier.SEMANTIC)} by meaning)",
            ("   misses ", "dim"),
            str(tally.count(Verdict.MISS)),
            ("   false hits ", "dim"),
            (str(len(tally.false_hits)), "bold red" if tally.false_hits else ""),
        )
        table = Table(box=None, padding=(0, 1), expand=True, header_style="dim")
        table.add_column("verdict", width=21)
        table.add_column("cosine", width=6, justify="right")
        table.add_column("latency", width=10, justify="right")
        table.add_column("", width=6)
        table.add_column("question", ratio=1, no_wrap=True, overflow="ellipsis")
        for reply in self._rows:
            similarity = f"{reply.seen.similarity:.3f}" if reply.seen.similarity else ""
            kind = "stream" if reply.question.stream else "json"
            style = "red" if reply.is_false else _STYLES[reply.seen.verdict]
            table.add_row(
                Text(_verdict_text(reply.seen), style), similarity, f"{reply.total_ms:.1f} ms", Text(kind, "dim"),
                Text(reply.question.text),
            )  # fmt: skip
        bar = Padding(ProgressBar(tally.expected, done))  # a bar alone does not end its line
        return Group(heading, bar, table)


def _verdict_text(seen: Seen) -> str:
    how = seen.tier.value if seen.tier else seen.detail
    return f"{seen.verdict.value} {how}".strip()


def summarize(tally: Tally, console: Console) -> None:
    """Print what it all came to. False hits are shown with both questions, so that a person can judge them."""
    asked, hits, false = len(tally.replies), tally.hits, tally.false_hits
    rewordings, answered = _rewordings(tally.replies)
    console.print()
    console.rule("[bold]What the cache did", align="left")
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for name in ("", "requests", "first token p50", "p99", "whole p50", "p99"):
        table.add_column(name, justify="left" if not name else "right")
    for label, rows in _rows_by_kind(tally.replies):
        times = [sorted(reply.first_ms for reply in rows), sorted(reply.total_ms for reply in rows)]
        shown = [f"{_quantile(one, share):.1f} ms" for one in times for share in (0.5, 0.99)]
        table.add_row(label, str(len(rows)), *shown)
    console.print(table)
    console.print("  [dim]as the SDK saw it, its own time for reading an answer chunk by chunk included[/]")
    prompt, completion, usd = tally.saved()
    facts = [
        ("hit rate", f"{len(hits) / max(1, asked):.1%} of {asked} requests"),
        ("in other words", f"{answered} of {rewordings} questions that had been asked before in other words were hits"),
        ("false hits", f"{len(false)}: {len(false) / max(1, len(hits)):.1%} of hits, "
                       f"{len(false) / max(1, asked):.1%} of requests"),
        ("saved", f"{prompt + completion:,} tokens ({prompt:,} in, {completion:,} out), {usd:.4f} USD at "
                  f"{USD_PER_MTOK_IN:.2f}/{USD_PER_MTOK_OUT:.2f} USD per million in/out"),
    ]  # fmt: skip
    vetoes = Counter(r.seen.detail for r in tally.replies if r.seen.detail.startswith("guard-"))
    if vetoes:
        vetoed = ", ".join(f"{name} {count}" for name, count in vetoes.most_common())
        facts.append(("near, but vetoed", vetoed))
    held = Counter(r.seen.detail for r in tally.replies if r.seen.detail in _WORD_FOR_WORD)
    if held:
        facts.append(("only word for word", ", ".join(f"{name} {count}" for name, count in held.most_common())))
    if tally.failures:
        facts.append(("failed", ", ".join(f"{name} {count}" for name, count in tally.failures.items())))
    grid = Table.grid(padding=(0, 2))
    for name, value in facts:
        grid.add_row(Text(name, "dim"), Text(value))
    console.print(grid)
    if false:
        console.print()
        console.rule("[bold]False hits", align="left", style="red")
        for reply in sorted(false, key=lambda reply: -(reply.seen.similarity or 1)):
            console.print(
                f"  [red]{reply.seen.similarity or 1:.3f}[/]  asked   {escape(reply.question.text)}", highlight=False
            )
            console.print(
                f"         got the answer to   {escape(reply.answered_for or 'something else')}", highlight=False
            )


def _rewordings(replies: Sequence[Reply]) -> tuple[int, int]:
    """Questions whose group had been answered before in other words only, and how many of them were right hits."""
    texts: dict[str, set[str]] = {}
    asked = answered = 0
    for reply in replies:
        before = texts.setdefault(reply.question.group.name, set())
        if before and reply.question.text not in before:
            asked += 1
            answered += reply.seen.is_from_store and not reply.is_false
        before.add(reply.question.text)
    return asked, answered


def _rows_by_kind(replies: Sequence[Reply]) -> Iterator[tuple[str, list[Reply]]]:
    kinds: list[tuple[str, Callable[[Seen], bool]]] = [
        ("hit, same words", lambda seen: seen.verdict is Verdict.HIT and seen.tier is Tier.EXACT),
        ("hit, same meaning", lambda seen: seen.verdict is Verdict.HIT and seen.tier is Tier.SEMANTIC),
        *((verdict.value, _is(verdict)) for verdict in Verdict if verdict is not Verdict.HIT),
    ]
    for label, belongs in kinds:
        rows = [reply for reply in replies if belongs(reply.seen)]
        if rows:
            yield label, rows


def _is(verdict: Verdict) -> Callable[[Seen], bool]:
    return lambda seen: seen.verdict is verdict


def _quantile(in_order: Sequence[float], share: float) -> float:
    return in_order[min(len(in_order) - 1, int(share * len(in_order)))]
