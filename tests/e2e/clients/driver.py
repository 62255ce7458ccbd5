"""Drives one Python client through the list of features, and prints a line of JSON for each.

A client's program gives adapters: classes made for one call with a base URL (without `/v1`), a key and headers, whose
methods are the verbs of features.json. A verb returns what the client saw; a feature whose verbs an adapter lacks is
left out, as is one that takes headers where the client cannot send any (`sends_headers = False`). Nothing is judged
here: that is done in one place, for all languages (tests/e2e/judge.py).
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

# What the adapters ask for: the same tool and the same record in every language.
TOOL = {
    "type": "object",
    "properties": {"place": {"type": "string", "description": "where to look"}, "days": {"type": "integer"}},
    "required": ["place", "days"],
    "additionalProperties": False,
}
TOOL_NAME = "look_up_weather"
TOOL_DESCRIPTION = "Look up the weather of a place."
TOOL_RESULT = "Dry, and 18 degrees."


def drive(packages: Sequence[str], talk: Mapping[str, type], embeddings: Mapping[str, type] | None = None) -> None:
    """Run everything. Adapters by name: `chat sync` is the API and the mode, which may be left out.

    The command line names the APIs to run; none: all.
    """
    given = json.loads(os.environ["SEMCACHE_E2E"])
    _say(versions={name: version(name) for name in packages})
    wanted = sys.argv[1:]
    with asyncio.Runner() as runner:  # one loop for all: libraries keep connections that belong to it
        for section, adapters in (("talk", talk), ("embeddings", embeddings or {})):
            for name, adapter in adapters.items():
                api, _, mode = name.partition(" ")
                if wanted and api not in wanted:
                    continue
                for feature, plan in given["features"][section].items():
                    if _can(adapter, plan["steps"]):
                        key = f"sk-{api}-{mode}"
                        saw = _play(given, runner, adapter, key, plan)
                        key = key if getattr(adapter, "sends_key", True) else ""
                        _say(section=section, api=api, mode=mode, feature=feature, key=key, saw=saw)


def _can(adapter: type, steps: Sequence[Mapping[str, Any]]) -> bool:
    sends_headers = getattr(adapter, "sends_headers", True)
    return all(hasattr(adapter, step["do"]) and (sends_headers or "headers" not in step) for step in steps)


def _play(
    given: Mapping[str, str], runner: asyncio.Runner, adapter: type, key: str, plan: Mapping[str, Any]
) -> list[dict[str, Any]]:
    saw = []
    for step in plan["steps"]:
        is_direct = step.get("via") == "upstream"
        base = given["upstream"] if is_direct else given["proxy"]
        texts = [plan["texts"][number] for number in step["texts"]] if "texts" in step else plan["question"]
        try:
            client = adapter(base, f"{key}-direct" if is_direct else key, dict(step.get("headers", {})))
            seen = getattr(client, step["do"])(texts)
            saw.append(runner.run(seen) if inspect.iscoroutine(seen) else seen)
        except Exception as exc:  # whatever a client raises is what is to be seen
            saw.append({"error": _describe(exc)})
    return saw


def _describe(exc: BaseException) -> dict[str, Any]:
    status = getattr(exc, "status_code", None)
    return {
        "type": f"{type(exc).__module__.split('.')[0]}.{type(exc).__name__}",
        "status": status if isinstance(status, int) else None,
        "message": str(exc)[:2000],
    }


def _say(**line: Any) -> None:
    print(json.dumps(line, ensure_ascii=False, default=str), flush=True)


def seen(text: str | None = None, **more: Any) -> dict[str, Any]:
    """An observation, without what the client did not show."""
    return {name: value for name, value in {"text": text, **more}.items() if value is not None}


def cache_status(headers: Mapping[str, str]) -> str | None:
    return {name.lower(): value for name, value in headers.items()}.get("cache-status")
