import pytest
from multidict import CIMultiDict

from semcache.backends.headers import forwarded_headers, new_node, refuse_unforwardable, returned_headers
from semcache.backends.target import Target, targets_of
from semcache.config import Backend, Pool
from semcache.errors import ClientError


def target(api_key: str = "", dialect: str = "openai", **headers: str) -> Target:
    backend = Backend(url="http://h/v1", api_key=api_key, dialect=dialect, headers=headers)  # type: ignore[arg-type]
    return next(targets_of("p", Pool(backends=(backend,))))


def forwarded(*fields: tuple[str, str], to: Target | None = None, recording: bool = False) -> list[tuple[str, str]]:
    return forwarded_headers(CIMultiDict(fields), to or target(), recording)


VIA = ("Via", "1.1 semcache")


def test_fields_unknown_to_us_pass_in_their_order_and_number() -> None:
    fields = [("X-B", "2"), ("OpenAI-Beta", "x"), ("X-A", "1"), ("X-B", "3"), ("Cookie", "c"), ("User-Agent", "u")]
    assert forwarded(*fields) == [*fields, VIA]


@pytest.mark.parametrize(
    "name",
    [
        "Connection",
        "Keep-Alive",
        "Proxy-Connection",
        "TE",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
        "Proxy-Authenticate",
        "Proxy-Authorization",
        "Host",
        "CONTENT-LENGTH",
        "Expect",
        "Cache-Control",
        "Semcache-Control",
        "Cache-Status",
        "Forwarded",
        "X-Forwarded-For",
        "x-forwarded-host",
        "X-Forwarded-Client-Cert",
        "X-Real-IP",
    ],
)
def test_fields_of_the_connection_and_fields_for_us_stay_here(name: str) -> None:
    assert forwarded((name, "x"), ("Accept", "*/*")) == [("Accept", "*/*"), VIA]


@pytest.mark.parametrize("name", ["Content-Encoding", "Content-MD5", "Digest", "Content-Digest", "Repr-Digest"])
def test_what_was_true_of_a_packed_body_goes_only_with_its_packed_bytes(name: str) -> None:
    packed = CIMultiDict([("Content-Encoding", "gzip"), (name, "x")])
    assert forwarded_headers(packed, target(), True, is_unpacked=False)[:2] == list(packed.items())
    plain = CIMultiDict([("Content-Type", "application/json"), *packed.items()])
    assert forwarded_headers(plain, target(), False, is_unpacked=True) == [("Content-Type", "application/json"), VIA]


def test_a_plain_body_keeps_what_is_said_of_it() -> None:
    fields = [("Content-MD5", "x"), ("Digest", "y")]
    assert forwarded_headers(CIMultiDict(fields), target(), False, is_unpacked=True) == [*fields, VIA]


def test_fields_listed_in_any_connection_field_are_removed() -> None:
    fields = [
        ("X-Secret", "1"),
        ("Connection", "close, X-Secret"),
        ("x-other", "2"),
        ("connection", "X-OTHER,,"),
        ("X", "3"),
    ]
    assert forwarded(*fields) == [("X", "3"), VIA]


@pytest.mark.parametrize(
    "name",
    ["authorization", "Content-Length", "host", "content-type", "X-API-Key", "transfer-encoding", "Via", "cookie"],
)
def test_listing_a_field_that_carries_meaning_is_refused(name: str) -> None:
    with pytest.raises(ClientError, match=name.lower()) as refused:
        forwarded(("Connection", f"keep-alive, {name}"))
    assert refused.value.status == 400


@pytest.mark.parametrize("via", ["1.1 semcache", "1.0 edge, 1.1 SemCache (v2)", "HTTP/1.1 semcache"])
def test_a_request_that_has_been_here_is_a_loop(via: str) -> None:
    with pytest.raises(ClientError) as refused:
        forwarded(("Via", via))
    assert refused.value.status == 508


def test_other_proxies_via_is_kept_and_ours_comes_after() -> None:
    assert forwarded(("Via", "1.1 edge, 1.1 semcache-like")) == [("Via", "1.1 edge, 1.1 semcache-like"), VIA]


def via_of(*fields: tuple[str, str], node: str = "semcache-00000001") -> str:
    sent = forwarded_headers(CIMultiDict(fields), target(), False, node=node)
    return ", ".join(value for name, value in sent if name == "Via")


def test_semcaches_in_a_row_are_no_loop_and_each_says_its_name() -> None:
    first = via_of()
    second = via_of(("Via", first), node="semcache-00000002")
    assert second == "1.1 semcache-00000001, 1.1 semcache-00000002"
    with pytest.raises(ClientError, match="this semcache already") as refused:
        via_of(("Via", second))
    assert (refused.value.status, refused.value.code) == (508, "loop")
    with pytest.raises(ClientError):
        refuse_unforwardable(CIMultiDict({"Via": second}), "semcache-00000001")
    refuse_unforwardable(CIMultiDict({"Via": second}), "semcache-00000003")


def test_a_row_of_semcaches_has_an_end() -> None:
    fields = [("Via", f"1.1 semcache-0000000{number}, 1.1 cdn") for number in range(2, 7)]
    assert via_of(*fields[:4]).endswith("1.1 semcache-00000001")
    with pytest.raises(ClientError, match="5 semcaches") as refused:
        via_of(*fields)
    assert (refused.value.status, refused.value.code) == (508, "loop")


def test_nodes_are_told_apart() -> None:
    assert len({new_node() for _ in range(100)}) == 100
    with pytest.raises(ClientError):
        via_of(("Via", f"1.1 {(node := new_node())}"), node=node)


def test_who_asks_is_signed_for_backends_that_are_semcaches_and_a_callers_word_on_it_goes_nowhere() -> None:
    lines = iter(["line 1", "line 2"])
    fields = CIMultiDict({"semcache-identity": "forged", "Connection": "Semcache-Identity"})
    edge = Backend(url="http://h/v1", chain=True)
    to = next(targets_of("p", Pool(backends=(edge,))))
    for expected in ("line 1", "line 2"):  # each attempt has its own
        sent = forwarded_headers(fields, to, False, identity=lambda: next(lines))
        assert sent == [("Semcache-Identity", expected), VIA]
    assert forwarded_headers(fields, to, False) == [VIA]
    assert forwarded_headers(fields, target(), False, identity=lambda: next(lines)) == [VIA]


def test_an_answer_to_be_read_is_asked_for_unencoded() -> None:
    assert forwarded(("Accept-Encoding", "br, gzip"), recording=True) == [("Accept-Encoding", "identity"), VIA]
    assert forwarded(("Accept-Encoding", "br, gzip")) == [("Accept-Encoding", "br, gzip"), VIA]


def test_the_callers_key_is_passed_where_the_backend_has_none() -> None:
    keys = [("Authorization", "Bearer caller"), ("x-api-key", "caller")]
    assert forwarded(*keys) == [*keys, VIA]


def test_a_key_of_ours_never_leaves() -> None:
    fields = CIMultiDict([("Authorization", "Bearer ours"), ("x-api-key", "ours"), ("api-key", "ours")])
    assert forwarded_headers(fields, target(), False, pass_key=False) == [VIA]


@pytest.mark.parametrize(
    "dialect, own",
    [
        ("openai", ("Authorization", "Bearer backend-key")),
        ("anthropic", ("x-api-key", "backend-key")),
        ("azure", ("api-key", "backend-key")),
    ],
)
def test_the_backends_key_replaces_every_key_of_the_caller(dialect: str, own: tuple[str, str]) -> None:
    sent = forwarded(
        ("authorization", "Bearer caller"),
        ("X-Api-Key", "caller"),
        ("api-key", "caller"),
        to=target("backend-key\n", dialect),  # as read from a file
    )
    assert sent == [own, VIA]


def test_a_backends_own_fields_are_sent_in_place_of_the_callers() -> None:
    to = target("key", **{"OpenAI-Organization": "ours", "X-Team": "search"})
    fields = [("openai-organization", "theirs"), ("X-Other", "1"), ("OPENAI-ORGANIZATION", "theirs"), ("X-Team", "x")]
    own = [("OpenAI-Organization", "ours"), ("X-Team", "search"), ("Authorization", "Bearer key")]
    assert forwarded(*fields, to=to) == [("X-Other", "1"), *own, VIA]


@pytest.mark.parametrize("name", ["Host", "Connection", "te", "Upgrade", "Accept-Encoding", "Via", "Authorization"])
def test_fields_that_are_written_here_are_no_setting(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be set here"):
        target(**{name: "x"})


def test_a_caller_cannot_have_a_backends_own_field_removed() -> None:
    to = target(**{"X-Team": "search"})
    assert forwarded(("Connection", "X-Team"), ("X-Team", "x"), to=to) == [("X-Team", "search"), VIA]


def test_each_key_of_a_backend_is_sent_alone() -> None:
    backend = Backend(url="http://h/v1", api_keys=("one", "two"))  # type: ignore[arg-type]
    first, second = targets_of("p", Pool(backends=(backend,)))
    assert forwarded(to=first) == [("Authorization", "Bearer one"), VIA]
    assert forwarded(to=second) == [("Authorization", "Bearer two"), VIA]


def test_an_upstreams_own_fields_reach_the_client() -> None:
    kept = [
        ("Content-Type", "text/event-stream"),
        ("Content-Length", "5"),
        ("Content-Encoding", "gzip"),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
        ("Cache-Status", "cdn; hit"),
        ("x-ratelimit-remaining-tokens", "9"),
        ("retry-after-ms", "20"),
        ("request-id", "r"),
        ("Server", "uvicorn"),
    ]
    assert list(returned_headers(kept).items()) == kept


def test_an_upstreams_connection_fields_and_origin_claims_stay_here() -> None:
    fields = [
        ("Connection", "keep-alive, X-Secret"),
        ("X-Secret", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Transfer-Encoding", "chunked"),
        ("Trailer", "X-Sum"),
        ("TE", "x"),
        ("Upgrade", "h2c"),
        ("Proxy-Authenticate", "Basic"),
        ("Semcache-Entry", "forged"),
        ("Alt-Svc", 'h3=":443"'),
        ("Strict-Transport-Security", "max-age=1; includeSubDomains"),
        ("X-Kept", "1"),
    ]
    assert list(returned_headers(CIMultiDict(fields)).items()) == [("X-Kept", "1")]
