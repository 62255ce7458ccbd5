"""The pages for operators are true where a machine can tell: every YAML block loads, every link leads somewhere, every
command and option exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from semcache.cli import main
from semcache.config import Config, parse
from semcache.usage.prices import load_prices

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = ["operating.md", "routing.md", "tenants.md", "matching.md"]
LINKED = [*PAGES, "trust.md", "clients.md", "inprocess.md", "architecture.md", "../README.md", "../CHANGELOG.md"]


def blocks(page: str, language: str) -> Iterator[tuple[int, str]]:
    """Each fenced block with the line it begins in."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for found in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text[: found.start()].count("\n") + 2, found[1]


def load(block: str) -> Config:
    """With every variable that it names set, as an operator would."""
    variables = {name: f"value-of-{name.lower()}" for name in re.findall(r"\$\{([A-Z_]+)", block)}
    return parse(block, variables)


YAML = [(page, line, block) for page in [*PAGES, "../README.md"] for line, block in blocks(page, "yaml")]


@pytest.mark.parametrize("page, line, block", YAML, ids=[f"{page}:{line}" for page, line, _ in YAML])
def test_every_recipe_loads_as_it_is_written(page: str, line: int, block: str, tmp_path: Path) -> None:
    if block.startswith("prices:"):
        file = tmp_path / "prices.yaml"
        file.write_text(block)
        assert load_prices(file)
    else:
        load(block)


def test_there_are_recipes_for_what_is_asked_for_most() -> None:
    loaded = [load(block) for _, _, block in YAML if not block.startswith("prices:")]
    routes = [route for config in loaded for route in config.routes]
    backends = [backend for config in loaded for pool in config.pools.values() for backend in pool.backends]
    assert any(config.pools[name].overflow.ttft for config in loaded for name in config.pools)
    assert any(backend.hours for backend in backends)
    assert any(backend.api_keys for backend in backends)
    assert any(abs(arm.weight / sum(a.weight for a in r.split) - 0.05) < 1e-9 for r in routes for arm in r.split)
    assert {route.sticky for route in routes if route.split} >= {"user", "request"}
    assert any(route.model for route in routes)
    assert any(route.regions for route in routes)
    assert any(tenant.limits.usd_per_day for config in loaded for tenant in config.tenants)
    assert all(any(getattr(c, section) is not None for c in loaded) for section in ("keys", "jwt", "chain", "audit"))


def anchors(file: Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", LINKED)
def test_every_link_leads_somewhere(page: str) -> None:
    source = DOCS / page
    for target in re.findall(r"\]\(([^)\s]+)\)", source.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (source.parent / name).resolve() if name else source
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES)
def test_every_section_is_in_the_table_of_contents(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    listed = re.findall(r"^- \[(.+?)\]\(#", text, re.MULTILINE)
    assert listed == re.findall(r"^## (.+)$", text, re.MULTILINE)


def commands() -> Iterator[tuple[str, str]]:
    for page in [*PAGES, "../README.md"]:
        for language in ("sh", "console"):
            for _, block in blocks(page, language):
                for line in block.replace("\\\n", " ").splitlines():
                    line = line.removeprefix("$ ")
                    for part in re.split(r"&&|\|\||\||;", line.partition("  #")[0]):
                        part = re.sub(r"^(\w+=\S+ )+", "", part.strip().rstrip("&").strip())
                        if part.startswith("semcache "):
                            yield page, part


@pytest.mark.parametrize("page, line", sorted(set(commands())))
def test_every_command_exists_with_its_options(page: str, line: str) -> None:
    words = shlex.split(re.sub(r"<[^>]*>|> \S+", "", line), comments=True)[1:]
    command: click.Command = main
    while isinstance(command, click.Group) and words:
        if words[0].startswith("-"):
            break
        found = command.get_command(click.Context(command), words[0])
        if found is None:
            break
        command, words = found, words[1:]
    assert command is not main, line
    known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    asked = [word.partition("=")[0] for word in words if re.match(r"-{1,2}[a-zA-Z]", word)]
    assert set(asked) <= known | {"--help", "-h"}, line
