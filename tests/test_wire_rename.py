"""Replacing the model a request names, and nothing else in it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.errors import ClientError
from semcache.wire import find_address
from semcache.wire.rename import rename, rename_model, rename_path

TEXTS = st.text(st.characters(exclude_categories=()), max_size=20)  # halves of surrogate pairs, too
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS | st.just("model"), inner, max_size=4),
    max_leaves=12,
)
REQUESTS = st.dictionaries(TEXTS | st.sampled_from(["model", "messages", "Model", "models"]), VALUES, max_size=6)


def replaced(request: dict[str, Any], model: str) -> dict[str, Any]:
    return {key: model if key.lower() == "model" else value for key, value in request.items()}


@given(REQUESTS, TEXTS, st.booleans(), st.sampled_from([None, 0, 3]))
def test_a_renamed_request_means_the_same_but_for_its_model(
    request: dict[str, Any], model: str, in_ascii: bool, indent: int | None
) -> None:
    body = json.dumps(request, ensure_ascii=in_ascii, indent=indent).encode("utf-8", "surrogatepass")
    try:
        body.decode()
    except UnicodeDecodeError:  # half a pair that is not escaped: no UTF-8, and no JSON
        with pytest.raises(ClientError):
            rename_model(body, model)
        return
    assert json.loads(rename_model(body, model)) == replaced(request, model)


@given(TEXTS, TEXTS, st.lists(st.tuples(TEXTS.filter(lambda key: key.lower() != "model"), VALUES), max_size=5))
def test_no_byte_before_or_after_the_name_changes(old: str, new: str, members: list[tuple[str, Any]]) -> None:
    before, after = [
        "".join(f" {json.dumps(key)} :{json.dumps(value)}{end}" for key, value in half)
        for half, end in ((members[::2], " ,"), (members[1::2], "\n"))
    ]
    after = "".join(f",\t{member}" for member in after.splitlines())
    body, wanted = (f'{{{before}"model"  : {json.dumps(name)} {after}}} \n'.encode() for name in (old, new))
    assert rename_model(body, new) == wanted


@pytest.mark.parametrize(
    "body",
    [
        '{"messages":[{"role":"user","content":"model"}],"model":"old","temperature":1.50e0,"seed":12345678901234567890}',
        '{"model": "old", "prompt": "say \\"model\\": \\"old\\"", "n": 1.0}',
        '{"input":[{"model":"old2"}],"model":"old","metadata":{"model":"old2"}}',
        '{"model":"old","max_tokens":5,"system":"grüße \\ud83d\\ude00 😀","messages":[]}',
        '{"model":"old","messages":[],"options":{"num_ctx":1E+2},"keep_alive":-0}',
        '{"model":"old","input":["model","old2"],"dimensions":' + "9" * 5000 + "}",
    ],
    ids=["chat", "completions", "responses", "messages", "ollama", "embeddings"],
)
def test_requests_of_every_dialect_keep_their_bytes(body: str) -> None:
    assert rename_model(body.encode(), "new") == body.replace('"model":"old"', '"model":"new"').replace(
        '"model": "old"', '"model": "new"'
    ).encode().replace(b'\\"model\\": \\"new\\"', b'\\"model\\": \\"old\\"')


def test_every_spelling_of_the_name_is_replaced() -> None:
    body = b'{"model":"a","mod\\u0065l":"b","Model":null,"MODEL":["c"],"models":"d"}'
    assert rename_model(body, "x") == b'{"model":"x","mod\\u0065l":"x","Model":"x","MODEL":"x","models":"d"}'


def test_what_is_doubled_or_no_number_further_in_is_left_to_the_upstream() -> None:
    body = b'{"model":"a","x":{"k":1,"k":2,"n":NaN}}'
    assert rename_model(body, "b") == body.replace(b'"a"', b'"b"')


@pytest.mark.parametrize("body", [b"{}", b' { "messages" : [ {"model":"a"} ] } '])
def test_no_name_is_added(body: bytes) -> None:
    assert rename_model(body, "x") is body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'"model"',
        b"{",
        b'{"model"',
        b'{"model":}',
        b'{"model":"a"',
        b'{"model":"a",}',
        b'{,"model":"a"}',
        b'{"model":"a"}{"model":"b"}',
        b'{"model":"a" "x":1}',
        b'{model:"a"}',
        b'{1:"a"}',
        b'\xef\xbb\xbf{"model":"a"}',
        '{"model":"a"}'.encode("utf-16"),
        b'{"model":"\xff"}',
        b'{"x":' + b"[" * 100_000,
        b'{"x":[' + b"[]," * 600_000 + b'[]],"model":"a"}',
    ],
    ids=range(18),
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ClientError, match="not a JSON object") as refused:
        rename_model(body, "x")
    assert refused.value.status == 400


@given(st.binary(max_size=40) | st.text('{}[]",:\\model 1', max_size=40).map(str.encode))
def test_what_is_renamed_could_be_read_before_and_can_be_read_after(body: bytes) -> None:
    try:
        renamed = rename_model(body, "x")
    except ClientError:
        with pytest.raises((ValueError, AssertionError)):
            tree = json.loads(body.decode())
            assert isinstance(tree, dict)
    else:
        assert json.loads(renamed) == replaced(json.loads(body), "x")


def test_a_megabyte_is_renamed_wherever_its_name_lies() -> None:
    messages = [{"role": "user", "content": f'number {i}, "model": {{'} for i in range(20_000)]
    for request in ({"model": "a", "messages": messages}, {"messages": messages, "model": "a"}):
        assert json.loads(rename_model(json.dumps(request).encode(), "b")) == request | {"model": "b"}


def test_azure_names_the_model_in_the_path() -> None:
    path = "/openai/deployments/gpt%204/chat/completions?api-version=2024-10-21&x=%2F"
    renamed = rename_path(path, "team/gpt 4.1")
    assert renamed == "/openai/deployments/team%2Fgpt%204.1/chat/completions?api-version=2024-10-21&x=%2F"
    address = find_address(renamed)
    assert address is not None and address.model == "team/gpt 4.1"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions?models=a&x=model=b&my_model=c",
        "/openai/v1/responses",
        "/openai/deployments",
        "/x/openai/deployments/a/b",
    ],
)
def test_a_path_that_names_no_model_stays_as_it_is(path: str) -> None:
    assert rename_path(path, "x") == path


def test_a_websocket_names_the_model_in_its_query() -> None:
    assert rename_path("/v1/realtime?model=gpt-realtime&x=%20", "a b&c") == "/v1/realtime?model=a%20b%26c&x=%20"
    assert rename_path("/v1/realtime?x=1&model=", "y") == "/v1/realtime?x=1&model=y"


FORM = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nold\r\n--b--\r\n'


async def test_a_request_is_renamed_wherever_its_model_stands() -> None:
    async def upload() -> AsyncIterator[bytes]:
        yield FORM

    form = "multipart/form-data; boundary=b"
    assert rename("/v1/x", "application/json", b'{"model":"old"}', "new") == ("/v1/x", b'{"model":"new"}')
    assert rename("/v1/x?model=old", "", b"", "new") == ("/v1/x?model=new", b"")
    assert rename("/v1/x", form, FORM, "new") == ("/v1/x", FORM.replace(b"old", b"new"))
    _, body = rename("/v1/x", form, upload(), "new")
    assert not isinstance(body, bytes)
    assert b"".join([piece async for piece in body]) == FORM.replace(b"old", b"new")
    stream = upload()
    assert rename("/v1/x", "application/octet-stream", stream, "new") == ("/v1/x", stream)
