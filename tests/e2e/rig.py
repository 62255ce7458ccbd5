"""Runs one client's program against the real proxy, as a process, in front of the upstream that plays the vendors."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semcache.children import Child
from tests.e2e.catalog import FEATURES, HERE, ROOT, Client, gap
from tests.e2e.judge import judge
from tests.e2e.upstream import Call, Upstream

PATIENCE_S = 180  # for one client's whole program on a busy machine

_BASES = {"openai": "/v1", "anthropic": "", "ollama": "", "azure": ""}  # what follows the upstream's host, by dialect


@dataclass
class Result:
    """What one client's run showed."""

    client: Client
    versions: dict[str, str] = field(default_factory=dict)
    rows: dict[tuple[str, str], dict[str, str | None]] = field(default_factory=dict)  # (section, api) -> feature -> why
    modes: dict[tuple[str, str], set[str]] = field(default_factory=dict)

    def unexpected(self) -> list[str]:
        """Failures that are no known gap, and gaps that are none any more, a line each."""
        lines = []
        for (_, api), features in self.rows.items():
            for feature, why in features.items():
                known = gap(self.client.name, api, feature)
                if why is not None and known is None:
                    lines.append(f"{self.client.name} {api} {feature}: {why}")
                elif why is None and known is not None:
                    lines.append(f"{self.client.name} {api} {feature}: works, but is listed as a gap ({known})")
        return lines


async def run(client: Client, command: Sequence[str]) -> Result:
    """Run the client's program and judge what it saw. Raises RuntimeError when the program itself breaks."""
    with tempfile.TemporaryDirectory(prefix="semcache-e2e-") as folder:
        async with Upstream().running() as upstream, running_proxy(Path(folder), upstream.url) as proxy:
            lines = await output(client, command, proxy, upstream.url, FEATURES)
            return read(client, lines, lambda said, texts: upstream.about(said["key"], *texts))


async def output(
    client: Client, command: Sequence[str], proxy: str, upstream: str, features: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """What the client's program prints. Raises RuntimeError with its last words when it breaks."""
    given = json.dumps({"proxy": proxy, "upstream": upstream, "features": features})
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=HERE / "clients",
        env={**os.environ, "SEMCACHE_E2E": given},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise RuntimeError(f"the program failed:\n{err.decode(errors='replace')[-3000:]}")
    # Some libraries print of themselves.
    return [json.loads(line) for line in out.decode().splitlines() if line.startswith("{")]


def read(
    client: Client,
    lines: Sequence[Mapping[str, Any]],
    calls_of: Callable[[Mapping[str, Any], Sequence[str]], Sequence[Call]],
) -> Result:
    """Judge each line. `calls_of` finds the calls upstream that one of them made, given the texts it asked for."""
    result = Result(client)
    for said in lines:
        if "versions" in said:
            result.versions = said["versions"]
            continue
        section, api, feature = said["section"], said["api"], said["feature"]
        plan = FEATURES[section][feature]
        why = judge(feature, plan, said["saw"], calls_of(said, plan.get("texts") or [plan["question"]]))
        if why is not None and said["mode"]:
            why = f"{said['mode']}: {why}"
        row = result.rows.setdefault((section, api), {})
        row[feature] = row.get(feature) or why  # of all modes, the first that fails
        result.modes.setdefault((section, api), set()).add(said["mode"])
    return result


@asynccontextmanager
async def running_proxy(folder: Path, upstream: str, **more: Any) -> AsyncIterator[str]:
    """The proxy as users start it: its own process, the real model, any free port. Yields its URL, without `/v1`.

    `more`: settings of its backends.
    """
    pools = {
        dialect: {"backends": [{"url": upstream + base, "dialect": dialect, **more}]}
        for dialect, base in _BASES.items()
    }
    settings = {
        "server": {"port": 0, "admin_port": 0, "request_log": "off", "drain": "1s"},
        # Answers that call tools are kept here, to show that they come back whole.
        "cache": {"store": "memory:", "store_tools": True},
        "embedder": {"deadline": "30s"},  # a busy machine is no reason for a BYPASS here
        "pools": pools,
    }
    (folder / "semcache.yaml").write_text(json.dumps(settings))  # JSON is YAML
    command = [sys.executable, "-m", "semcache", "serve", "-c", str(folder / "semcache.yaml")]
    child = Child(command, folder / "serve.log")
    try:
        found = await asyncio.to_thread(child.wait_for_line, r"listening on (http://[^\s,]+)")
        await asyncio.to_thread(child.wait_until_ready, f"{found[1]}/readyz")
        yield found[1]
    finally:
        await asyncio.to_thread(child.stop)


def light_command(client: Client) -> list[str]:
    """For a client that runs in the project's own environment."""
    assert client.is_light, f"{client.name} has an environment of its own"
    return [sys.executable, str(ROOT / "tests" / "e2e" / "clients" / client.program)]
