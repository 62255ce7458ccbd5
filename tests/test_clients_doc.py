"""docs/clients.md says what the program does: which paths are cached, what stays out of keys, what passes through."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from semcache.wire import anthropic, completions, embeddings, find_address, ollama, ollama_embed, openai, responses

TEXT = (Path(__file__).parent.parent / "docs" / "clients.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith(("| `/v1/", "| `/api/"))
]
ASKED = {row[0].strip("`"): row for row in ROWS if len(row) == 4}
NEVER = {path for row in ROWS if len(row) == 3 for path in re.findall(r"`(/\S+)`", row[0])}
LEFT_OUT = {
    "/v1/chat/completions": (*openai.NOT_CONTEXT, openai.CACHE_MARK),
    "/v1/completions": completions.NOT_CONTEXT,
    "/v1/responses": (*responses.NOT_CONTEXT, openai.CACHE_MARK),
    "/v1/embeddings": (*embeddings.NOT_CONTEXT, "encoding_format"),
    "/v1/messages": (*anthropic.NOT_CONTEXT, "metadata.user_id"),
    "/api/chat": ollama.NOT_CONTEXT,
    "/api/generate": ollama.NOT_CONTEXT,
    "/api/embed": ollama_embed.NOT_CONTEXT,
}


def test_both_tables_have_every_path() -> None:
    assert set(ASKED) == NEVER == set(LEFT_OUT)


@pytest.mark.parametrize("path", ASKED)
def test_a_path_of_the_table_is_cached(path: str) -> None:
    assert find_address(path) is not None


@pytest.mark.parametrize("path", ASKED)
def test_what_stays_out_of_a_key_is_what_the_table_says(path: str) -> None:
    assert set(re.findall(r"`([a-z_.]+)`", ASKED[path][3])) == set(LEFT_OUT[path])


@pytest.mark.parametrize("path", [path for path in ASKED if path.startswith("/v1/") and path != "/v1/messages"])
def test_azure_has_the_same_endpoints(path: str) -> None:
    endpoint = path.removeprefix("/v1/")
    azure = [f"/openai/deployments/NAME/{endpoint}?api-version=2024-10-21", f"/openai/v1/{endpoint}"]
    assert [address.vendor for target in azure if (address := find_address(target))] == ["azure", "azure"]


@pytest.mark.parametrize(
    "path", ["/v1/messages/count_tokens", "/v1/messages/batches", "/v1/files", "/api/tags", "/api/show"]
)
def test_what_passes_through_has_no_dialect(path: str) -> None:
    assert find_address(path) is None


def test_every_setting_and_header_that_is_named_exists() -> None:
    reference = (Path(__file__).parent.parent / "config" / "reference.yaml").read_text(encoding="utf-8")
    for setting in ("max_answer", "store_tools", "max_temperature", "replay"):
        assert setting in TEXT
        assert re.search(rf"^\s*{setting}:", reference, re.MULTILINE), setting
    for name in {*openai.CONTEXT_HEADERS, *anthropic.CONTEXT_HEADERS}:
        assert f"`{name}`" in TEXT.lower()
