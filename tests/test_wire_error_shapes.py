"""Our own errors, judged by what the vendors' SDKs raise for them."""

from __future__ import annotations

import json
from collections.abc import Callable

import anthropic
import httpx2
import openai
import pytest

from semcache.errors import ClientError, SemcacheError, UpstreamError
from semcache.wire.error_shapes import AnthropicErrors, OpenAIErrors

OPENAI = OpenAIErrors()
ANTHROPIC = AnthropicErrors()


def answering(status: int, body: bytes, media_type: str) -> httpx2.Client:
    """An HTTP client whose server gives this one answer."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, content=body, headers={"content-type": media_type})

    return httpx2.Client(transport=httpx2.MockTransport(answer))


def ask_openai(http: httpx2.Client, *, stream: bool) -> None:
    with openai.OpenAI(api_key="k", base_url="http://proxy.example/v1", http_client=http, max_retries=0) as client:
        reply = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], stream=stream)
        if stream:
            list(reply)


def ask_anthropic(http: httpx2.Client, *, stream: bool) -> None:
    with anthropic.Anthropic(api_key="k", base_url="http://proxy.example", http_client=http, max_retries=0) as client:
        reply = client.messages.create(
            model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}], stream=stream
        )
        if stream:
            list(reply)


@pytest.mark.parametrize(
    ("error", "raised", "kind"),
    [
        (ClientError("no", param="n", code="invalid_type"), openai.BadRequestError, "invalid_request_error"),
        (ClientError("no", status=401, code="invalid_api_key"), openai.AuthenticationError, "authentication_error"),
        (ClientError("no", status=403), openai.PermissionDeniedError, "permission_error"),
        (ClientError("no", status=404), openai.NotFoundError, "invalid_request_error"),
        (ClientError("no", status=408, code="timeout"), openai.APIStatusError, "invalid_request_error"),
        (ClientError("no", status=413), openai.APIStatusError, "invalid_request_error"),
        (ClientError("no", status=415), openai.APIStatusError, "invalid_request_error"),
        (ClientError("no", status=429), openai.RateLimitError, "rate_limit_error"),
        (ClientError("no", status=504, code="only_if_cached"), openai.InternalServerError, "api_error"),
        (UpstreamError("no"), openai.InternalServerError, "api_error"),
        (UpstreamError("no", status=503), openai.InternalServerError, "api_error"),
        (UpstreamError("no", status=504, code="timeout"), openai.InternalServerError, "api_error"),
        (SemcacheError("no"), openai.InternalServerError, "api_error"),
    ],
)
def test_the_openai_sdk_raises_what_it_would_for_the_vendor(
    error: SemcacheError, raised: type[openai.APIStatusError], kind: str
) -> None:
    with pytest.raises(raised) as found:
        ask_openai(answering(error.status, OPENAI.error_body(error, "r"), "application/json"), stream=False)
    assert found.value.status_code == error.status
    assert (found.value.type, found.value.code) == (kind, error.code)
    assert found.value.param == getattr(error, "param", None)
    assert found.value.body == json.loads(OPENAI.error_body(error, "r"))["error"]


@pytest.mark.parametrize(
    ("error", "raised", "kind"),
    [
        (ClientError("no"), anthropic.BadRequestError, "invalid_request_error"),
        (ClientError("no", status=401), anthropic.AuthenticationError, "authentication_error"),
        (ClientError("no", status=403), anthropic.PermissionDeniedError, "permission_error"),
        (ClientError("no", status=404), anthropic.NotFoundError, "not_found_error"),
        (ClientError("no", status=405), anthropic.APIStatusError, "invalid_request_error"),
        (ClientError("no", status=408), anthropic.RequestTimeoutError, "invalid_request_error"),
        (ClientError("no", status=413), anthropic.ContentTooLargeError, "request_too_large"),
        (ClientError("no", status=415), anthropic.APIStatusError, "invalid_request_error"),
        (ClientError("no", status=429), anthropic.RateLimitError, "rate_limit_error"),
        (ClientError("no", status=504, code="not_cached"), anthropic.GatewayTimeoutError, "timeout_error"),
        (SemcacheError("no"), anthropic.InternalServerError, "api_error"),
        (UpstreamError("no"), anthropic.InternalServerError, "api_error"),
        (UpstreamError("no", status=503), anthropic.ServiceUnavailableError, "overloaded_error"),
        (UpstreamError("no", status=504), anthropic.GatewayTimeoutError, "timeout_error"),
        (UpstreamError("no", status=529), anthropic.OverloadedError, "overloaded_error"),
    ],
)
def test_the_anthropic_sdk_raises_what_it_would_for_the_vendor(
    error: SemcacheError, raised: type[anthropic.APIStatusError], kind: str
) -> None:
    with pytest.raises(raised) as found:
        ask_anthropic(answering(error.status, ANTHROPIC.error_body(error, "req_1"), "application/json"), stream=False)
    assert (found.value.status_code, found.value.api_message) == (error.status, "no")
    assert found.value.body == {"type": "error", "error": {"type": kind, "message": "no"}, "request_id": "req_1"}


CUT = b'data: {"id":"c","object":"chat.completion.chunk","created":5,"model":"m","choices":[]}\n\n'
ERROR = UpstreamError('the backend said "stop"\nand left', code="upstream_error")


@pytest.mark.parametrize(
    ("ask", "stream", "raised"),
    [
        (ask_openai, CUT + OPENAI.error_event(ERROR, "r"), openai.APIError),
        (ask_anthropic, b"event: ping\ndata: {}\n\n" + ANTHROPIC.error_event(ERROR, "r"), anthropic.APIStatusError),
    ],
)
def test_an_error_inside_a_stream_is_raised(ask: Callable[..., None], stream: bytes, raised: type[Exception]) -> None:
    with pytest.raises(raised, match="the backend said"):
        ask(answering(200, stream, "text/event-stream"), stream=True)
