"""docs/inprocess.md: its programs run as they stand, and print what it says they print."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from semcache.cache.model import PreparedModel
from semcache.simulate import Simulator

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "inprocess.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)


def test_every_program_of_the_page_says_what_it_prints() -> None:
    assert len(EXAMPLES) == PAGE.count("```python") == 4


@pytest.mark.parametrize("program, printed", EXAMPLES, ids=["ask", "threaded", "langchain", "httpx"])
async def test_the_pages_programs_print_what_it_says(
    program: str, printed: str, prepared_model: PreparedModel, tmp_path: Path
) -> None:
    async with Simulator() as server:
        known = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "sk-test", "PYTHONPATH": str(ROOT)}
        running = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-c", program),
            cwd=tmp_path,
            env={**os.environ, **known},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await running.communicate()
    assert (out.decode(), err.decode(), running.returncode) == (printed, "", 0)
