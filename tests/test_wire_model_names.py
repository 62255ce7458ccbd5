"""The model that a request names must be the one that its backend reads: Go's JSON reader does not mind capitals."""

from __future__ import annotations

import pytest

from semcache.errors import ClientError
from semcache.wire import find_address, read_model

ASKED = '"messages":[{"role":"user","content":"Hi"}],"input":"Hi","prompt":"Hi","max_tokens":9'
PATHS = ["/api/chat", "/api/generate", "/api/embed", "/v1/chat/completions", "/v1/responses", "/v1/messages"]


@pytest.mark.parametrize(
    "path", [*PATHS, "/v1/completions", "/v1/embeddings", "/openai/deployments/d/chat/completions"]
)
@pytest.mark.parametrize("name", ["Model", "MODEL", "mode\\u004c"])
def test_a_second_model_in_other_letters_is_refused(path: str, name: str) -> None:
    address = find_address(path)
    assert address is not None
    body = f'{{"model":"small","{name}":"large",{ASKED}}}'.encode()
    with pytest.raises(ClientError, match="would read it as 'model'") as refused:
        address.dialect.parse(address, body, {})
    assert refused.value.status == 400


@pytest.mark.parametrize("path", PATHS)
def test_names_that_only_begin_alike_are_the_upstreams_to_judge(path: str) -> None:
    address = find_address(path)
    assert address is not None
    body = f'{{"model":"small","models":"x","Mode":"y",{ASKED}}}'.encode()
    assert address.dialect.parse(address, body, {}).model == "small"


def test_what_passes_through_names_no_model_if_it_may_name_two() -> None:
    assert read_model(b'{"model":"small","Model":"large"}') is None
    assert read_model(b'{"model":"small","models":"large"}') == "small"
