"""What a path says: whose API it is, which endpoint, which model. Anything else passes through."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.errors import ClientError
from semcache.wire import error_shape, find_address, is_model_path, read_model, vendor_of

AZURE = "/openai/deployments/prod/chat/completions"


@pytest.mark.parametrize(
    ("target", "vendor", "endpoint", "sent", "model"),
    [
        ("/v1/chat/completions", "openai", "chat/completions", "/v1/chat/completions", None),
        ("/chat/completions", "openai", "chat/completions", "/v1/chat/completions", None),
        ("/v1/chat/completions?a=%41&b", "openai", "chat/completions", "/v1/chat/completions?a=%41&b", None),
        ("/chat/completions?", "openai", "chat/completions", "/v1/chat/completions?", None),
        ("/v1/completions", "openai", "completions", "/v1/completions", None),
        ("/completions?a=b", "openai", "completions", "/v1/completions?a=b", None),
        ("/openai/deployments/p/completions?api-version=1", "azure", "completions", None, "p"),
        (f"{AZURE}?api-version=2024-10-21", "azure", "chat/completions", f"{AZURE}?api-version=2024-10-21", "prod"),
        (AZURE, "azure", "chat/completions", AZURE, "prod"),
        ("/openai/deployments/a%20b%2Fc/chat/completions", "azure", "chat/completions", None, "a b/c"),
        ("/openai/deployments/p%C3%A9/chat/completions", "azure", "chat/completions", None, "p\u00e9"),
        ("/openai/v1/chat/completions", "azure", "chat/completions", None, None),
        ("/openai/v1/chat/completions?api-version=preview", "azure", "chat/completions", None, None),
    ],
)
def test_a_path_that_is_cached(target: str, vendor: str, endpoint: str, sent: str | None, model: str | None) -> None:
    found = find_address(target)
    assert found is not None
    assert (found.vendor, found.endpoint, found.target, found.model) == (vendor, endpoint, sent or target, model)


@pytest.mark.parametrize(
    "target",
    [
        "",
        "/",
        "*",
        "/v1",
        "/v1/",
        "/v1/models",
        "/v1/chat",
        "/v1/chat/completions/",
        "/v1/chat/completions/chatcmpl-1",
        "/v1/Chat/Completions",
        "/v1//chat/completions",
        "//chat/completions",
        "/v1/v1/chat/completions",
        "/v2/chat/completions",
        "/v1chat/completions",
        "/v1xchat/completions",
        "xchat/completions",
        "chat/completions",
        "/v1/chat%2Fcompletions",
        "/v1/chat/completions%3Fa",
        "/v1/chat/completions#x",
        "/v1/chat/completions;x",
        "/v1/./chat/completions",
        "/v1/x/../chat/completions",
        "/v1/chat/completions\n",
        "?/v1/chat/completions",
        "/x?/v1/chat/completions",
        "http://other.example/v1/chat/completions",
        "/openai",
        "/openai/",
        "/openai/deployments",
        "/openai/deployments/",
        "/openai/deployments//chat/completions",
        "/openai/deployments/a/b/chat/completions",
        "/openai/deployments/a/",
        "/openai/deployments/a/audio/speech",
        "/openai/deployments/a/images/generations?api-version=1",
        "/openai/deployments/a/v1/chat/completions",
        "/openai/files",
        "/openai/v1/v1/chat/completions",
        "/openai//chat/completions",
        "/OpenAI/v1/chat/completions",
        "/api",
        "/api/",
        "/api/pull",
        "/api/v1/chat/completions",
    ],
)
def test_a_path_that_is_not(target: str) -> None:
    assert find_address(target) is None


def test_both_forms_of_a_vendors_base_url_are_one_address() -> None:
    assert find_address("/v1/chat/completions") == find_address("/chat/completions")


def test_what_tells_azures_requests_apart_stays_in_the_target() -> None:
    targets = [
        f"{AZURE}?api-version=2024-10-21",
        f"{AZURE}?api-version=2025-01-01",
        f"{AZURE.replace('prod', 'test')}?api-version=2024-10-21",
        f"{AZURE.replace('prod', 'p%72od')}?api-version=2024-10-21",  # equal to Azure, perhaps; not to us
        "/openai/v1/chat/completions",
    ]
    found = [find_address(target) for target in targets]
    assert [address.target for address in found if address] == targets


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.sampled_from(["", "/v1/", "/openai/", AZURE]))
def test_no_path_breaks_it(rest: str, head: str) -> None:
    target = head + rest
    found = find_address(target)
    assert found is None or found.target.partition("?")[2] == target.partition("?")[2]
    path = target.partition("?")[0]
    vendor_of(path, {})
    error_shape(path)
    is_model_path(path)


# What passes through


@pytest.mark.parametrize(
    ("path", "headers", "vendor"),
    [
        ("/v1/files", {}, "openai"),
        ("/files", {}, "openai"),
        ("/v1/models", {}, "openai"),
        ("/v1/models", {"anthropic-version": "2023-06-01"}, "anthropic"),
        ("/v1/messages/batches", {}, "anthropic"),
        ("/messages/count_tokens", {}, "anthropic"),
        ("/v1/threads/t/messages", {}, "openai"),
        ("/v1/messages-of-mine", {}, "openai"),
        ("/openai/files", {}, "azure"),
        ("/openai/models", {}, "azure"),
        ("/openai/deployments/d/audio/transcriptions", {}, "azure"),
        ("/openai/v1/messages", {}, "azure"),
        ("/openai/models", {"anthropic-version": "2023-06-01"}, "azure"),
        ("/api/tags", {}, "ollama"),
    ],
)
def test_who_may_see_the_key_of_a_request_that_passes_through(path: str, headers: dict[str, str], vendor: str) -> None:
    assert vendor_of(path, headers) == vendor


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/anything", True),
        ("/openai/files", True),
        ("/api/tags", True),
        ("/files", True),
        ("/files/f1/content", True),
        ("/embeddings", True),
        ("/filesystem", False),
        ("/healthz", False),
        ("/metrics", False),
        ("/", False),
        ("/openai", False),
        ("/v1", False),
    ],
)
def test_which_paths_are_a_model_apis(path: str, expected: bool) -> None:
    assert is_model_path(path) is expected


def test_errors_have_the_form_of_the_vendor_whose_path_it_is() -> None:
    error = ClientError("no")
    for path in ("/v1/messages", "/messages", "/v1/messages/count_tokens"):
        assert json.loads(error_shape(path).error_body(error, "r"))["type"] == "error"
    for path in ("/v1/chat/completions", "/v1/anything", "/v1/messages-of-mine", "/nowhere", "/openai/v1/messages"):
        assert json.loads(error_shape(path).error_body(error, "r"))["error"]["message"] == "no"
    assert json.loads(error_shape("/api/chat").error_body(error, "r")) == {"error": "no"}


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model":"m"}', "m"),
        (b'{"model":"a","model":"b"}', None),
        (b'{"model":5}', None),
        (b"{}", None),
        (b"[]", None),
        (b"", None),
        (b"--boundary", None),
        (b"\xff", None),
    ],
)
def test_the_model_of_a_body_is_read_where_it_can_be(body: bytes, model: str | None) -> None:
    assert read_model(body) == model
