"""What a simulated endpoint is made of: the request it takes and the answer it gives; and how a vendor tells of errors.

A `Speaking` endpoint has the model write an answer, whole or as a stream; a `Telling` one knows its answer at once.
Neither does any IO: pace, faults and sockets are server.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from semcache.simulate.answers import Json, Reply, sse

Timed = tuple[int, bytes]  # tokens written so far, and the event that is due then

EVENT_STREAM = "text/event-stream; charset=utf-8"
NDJSON = "application/x-ndjson"


class Request(BaseModel):
    """What is checked of a request before anything reads it. Fields that are not named pass."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str = Field(min_length=1)
    stream: bool | None = None


class Fault(Exception):
    """An error answer, told in the form of the path's vendor. `code`, `kind`: where the usual ones do not fit."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, kind: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.kind = kind


class Vendor(NamedTuple):
    """How a vendor tells of errors."""

    error: Callable[[Fault], Json]  # the body of an error answer
    event: Callable[[str, int], bytes]  # the same in a stream: what went wrong, and how many events came before
    unknown_model: Callable[[str], Fault]


@dataclass(frozen=True, slots=True)
class Speaking:
    """An endpoint whose answer the model writes. `events` end with the one without which a stream is cut."""

    request: type[Request]
    read: Callable[[Json], Sequence[Json]]  # the request as chat requests, one a prompt
    whole: Callable[[Reply, Json], bytes]
    events: Callable[[Reply, Json], Iterator[Timed]]
    thinks: Callable[[Json], bool] = lambda body: False
    media_type: str = EVENT_STREAM
    streams_unasked: bool = False


@dataclass(frozen=True, slots=True)
class Telling:
    """An endpoint that takes no time. No `request`: a GET, which is told `{"models": [names]}` in place of a body."""

    request: type[Request] | None
    tell: Callable[[Json], bytes]


def read_body(raw: bytes, shape: type[Request], extra: Mapping[str, str]) -> Json:
    """The JSON body of a request with the `extra` fields set. Raises Fault (400) that names the field."""
    try:
        body: Any = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        raise Fault(400, f"the body is not JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise Fault(400, "the body is not a JSON object")
    body |= extra
    try:
        shape.model_validate(body)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Fault(400, f"{place}: {first['msg']}", param=place) from exc
    return body


# The vendors


_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_ANTHROPIC_KINDS = {
    **_KINDS,
    413: "request_too_large",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def _openai_error(fault: Fault) -> Json:
    kind = fault.kind or _KINDS.get(fault.status, "server_error" if fault.status >= 500 else "invalid_request_error")
    return {"error": {"message": str(fault), "type": kind, "param": fault.param, "code": fault.code}}


def _openai_event(message: str, place: int) -> bytes:
    return sse(_openai_error(Fault(500, message)))


def _openai_unknown(model: str) -> Fault:
    text = f"The model `{model}` does not exist or you do not have access to it."
    return Fault(404, text, code="model_not_found", kind="invalid_request_error")


def _responses_event(message: str, place: int) -> bytes:
    payload = {"type": "error", "code": "server_error", "message": message, "param": None, "sequence_number": place}
    return sse(payload, "error")


def _anthropic_error(fault: Fault) -> Json:
    usual = "api_error" if fault.status >= 500 else "invalid_request_error"
    kind = _ANTHROPIC_KINDS.get(fault.status, usual)
    return {"type": "error", "error": {"type": kind, "message": str(fault)}, "request_id": "req_simulated"}


def _anthropic_event(message: str, place: int) -> bytes:
    return sse(_anthropic_error(Fault(500, message)), "error")


def _ollama_error(fault: Fault) -> Json:
    return {"error": str(fault)}


def _ollama_event(message: str, place: int) -> bytes:
    return orjson.dumps({"error": message}) + b"\n"


OPENAI = Vendor(_openai_error, _openai_event, _openai_unknown)
RESPONSES = OPENAI._replace(event=_responses_event)
AZURE = OPENAI._replace(
    unknown_model=lambda name: Fault(
        404, "The API deployment for this resource does not exist.", code="DeploymentNotFound"
    )
)
ANTHROPIC = Vendor(_anthropic_error, _anthropic_event, lambda model: Fault(404, f"model: {model}"))
OLLAMA = Vendor(_ollama_error, _ollama_event, lambda model: Fault(404, f"model '{model}' not found"))
