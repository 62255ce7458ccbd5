"""A proxy with every rule on, for the benchmark, and the same with none of them.

All that a careful operator might switch on at once: a tenant with a virtual key and limits of every kind, the usage
file, the audit log, routes that look at headers, two backends to choose from, guardrails of every kind but a firewall.
"""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from semcache.children import SEMCACHE, Child
from semcache.errors import StartError

# Larger than any round uses up: what is measured is the counting.
_LIMITS = {"requests_per_minute": 10**9, "tokens_per_day": 10**15, "usd_per_month": 10**9}
_GUARDRAILS = {
    "max_prompt_tokens": 100_000,
    "injection": "flag",
    "exfiltration": "flag",
    "secrets": "flag",
    "extraction": "flag",
}


def settings(folder: Path, origin: str, *, has_rules: bool, has_guardrails: bool, mode: str) -> Mapping[str, Any]:
    """`origin`: of the one upstream, without /v1. `has_guardrails`: where there are rules. `mode`: of `match`."""
    one = {"url": f"{origin}/v1", "price": {"input": 1.0, "output": 2.0}}
    plain = {
        "server": {"port": 0, "admin_port": 0},
        "cache": {"store": f"sqlite:{folder / 'cache.db'}"},
        "match": {"mode": mode},
        "usage": {"path": "off"},
        "pools": {"main": {"backends": [one]}},
        "routes": [{"name": "main", "pools": ["main"]}],
    }
    if not has_rules:
        return plain
    return plain | {
        "usage": {"path": str(folder / "usage.db")},
        "audit": {"path": str(folder / "audit.jsonl")},
        "keys": {"path": str(folder / "keys.db"), "pepper": secrets.token_hex(16)},
        "tenants": [{"name": "shop", "limits": _LIMITS}],
        "pools": {"main": {"backends": [one, one | {"url": f"{origin.replace('127.0.0.1', 'localhost')}/v1"}]}},
        "routes": [
            {"name": "batch", "headers": {"x-class": "batch"}, "pools": ["main"]},
            {"name": "main", "pools": ["main"], "guardrails": _GUARDRAILS if has_guardrails else {}},
        ],
    }


def start(
    folder: Path, origin: str, prefix: Sequence[str], *, has_rules: bool, has_guardrails: bool, mode: str
) -> tuple[Child, str, list[str]]:
    """Return the child, its URL, and the fields that its callers send."""
    folder.mkdir(exist_ok=True)
    file = folder / "semcache.yaml"
    chosen = settings(folder, origin, has_rules=has_rules, has_guardrails=has_guardrails, mode=mode)
    file.write_text(yaml.safe_dump(dict(chosen)))
    headers = [f"Authorization: Bearer {_made_key(file)}"] if has_rules else []
    child = Child([*prefix, *SEMCACHE, "serve", "-c", str(file)], folder / "serve.log")
    try:
        url = child.wait_for_line(r"listening on (http://[^\s,]+)")[1]
        child.wait_until_ready(f"{url}/readyz")
    except StartError:
        child.stop()
        raise
    return child, url, headers


def _made_key(file: Path) -> str:
    command = [*SEMCACHE, "keys", "create", "-c", str(file), "--tenant", "shop", "--name", "bench", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StartError(f"no key could be made: {done.stderr.strip()[-300:]}")
    key: str = json.loads(done.stdout)["key"]
    return key
