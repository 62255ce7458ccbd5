"""Runs one client's program against the real proxy, as a process, in front of the upstream that plays the vendors."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from semcache.children import Child
from semcache.config import Backend
from tests.e2e.catalog import FEATURES, HERE, ROOT, Client, gap
from tests.e2e.judge import judge
from tests.e2e.upstream import Upstream

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


async def run(client: Client, command: Sequence[str], environ: Mapping[str, str] | None = None) -> Result:
    """Run the client's program and judge what it saw. Raises RuntimeError when the program itself breaks."""
    with tempfile.TemporaryDirectory(prefix="semcache-e2e-") as folder:
        async with Upstream().running() as upstream, running_proxy(Path(folder), upstream.url) as proxy:
            given = json.dumps({"proxy": proxy, "upstream": upstream.url, "features": FEATURES})
            process = await asyncio.create_subprocess_exec(
                *command,
                cwd=HERE / "clients",
                env={**os.environ, **(environ or {}), "SEMCACHE_E2E": given},
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
                raise RuntimeError(f"{client.name}: the program failed:\n{err.decode(errors='replace')[-3000:]}")
            return _read(client, out.decode(), upstream)


def _read(client: Client, output: str, upstream: Upstream) -> Result:
    result = Result(client)
    for line in output.splitlines():
        if not line.startswith("{"):
            continue  # some libraries print of themselves
        said: dict[str, Any] = json.loads(line)
        if "versions" in said:
            result.versions = said["versions"]
            continue
        section, api, feature = said["section"], said["api"], said["feature"]
        plan = FEATURES[section][feature]
        texts = plan.get("texts") or [plan["question"]]
        why = judge(feature, plan, said["saw"], upstream.about(said["key"], *texts))
        if why is not None and said["mode"]:
            why = f"{said['mode']}: {why}"
        row = result.rows.setdefault((section, api), {})
        row[feature] = row.get(feature) or why  # of all modes, the first that fails
        result.modes.setdefault((section, api), set()).add(said["mode"])
    return result


@asynccontextmanager
async def running_proxy(folder: Path, upstream: str) -> AsyncIterator[str]:
    """The proxy as users start it: its own process, the real model, any free port. Yields its URL, without `/v1`."""
    pools = {
        dialect: {"backends": [{"url": upstream + _BASES[dialect], "dialect": dialect}]}
        for dialect in get_args(Backend.model_fields["dialect"].annotation)
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
