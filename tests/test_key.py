"""Two requests share a key only if everything that must be equal is equal, however the parts are cut."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semcache.cache.key import derive_key, derive_scope
from semcache.types import Ask, Scope, Tenant, Traits

PATH = "/v1/chat/completions"
ASK = Ask("openai", "chat/completions", PATH, "m", "Where is my parcel?", b"{}", False, False, None, Traits(), b"")
SCOPE = Scope("shop", "faq", "openai", "chat/completions", "m")


@pytest.mark.parametrize("field", ["tenant", "namespace", "dialect", "endpoint", "model"])
def test_every_field_of_the_scope_parts_both_tiers(field: str) -> None:
    key = derive_key(ASK, SCOPE, "minilm")
    other = derive_key(ASK, replace(SCOPE, **{field: "other"}), "minilm")
    assert key.exact != other.exact
    assert key.partition != other.partition


def test_the_context_parts_both_tiers() -> None:
    key, other = (derive_key(replace(ASK, context=context), SCOPE, "minilm") for context in (b"{}", b"[]"))
    assert key.exact != other.exact
    assert key.partition != other.partition


def test_the_path_and_query_part_both_tiers() -> None:
    paths = [
        PATH,
        "/openai/v1/chat/completions",
        "/openai/deployments/a/chat/completions?api-version=2024-10-21",
        "/openai/deployments/b/chat/completions?api-version=2024-10-21",
        "/openai/deployments/a/chat/completions?api-version=2025-01-01",
    ]
    keys = [derive_key(replace(ASK, target=path), SCOPE, "minilm") for path in paths]
    assert len({key.exact for key in keys}) == len({key.partition for key in keys}) == len(paths)


def test_the_question_parts_the_exact_tier_only() -> None:
    key, other = (derive_key(replace(ASK, question=text), SCOPE, "minilm") for text in ("a", "b"))
    assert key.exact != other.exact
    assert key.partition == other.partition


def test_another_embedder_never_meets_old_vectors_but_finds_old_answers() -> None:
    key, other = (derive_key(ASK, SCOPE, stamp) for stamp in ("minilm", "e5"))
    assert key.exact == other.exact
    assert key.partition != other.partition


def test_delivery_and_identity_are_no_part_of_the_key() -> None:
    streamed = replace(ASK, stream=True, include_usage=True, user="ann", body=b"other")
    assert derive_key(ASK, SCOPE, "minilm") == derive_key(streamed, SCOPE, "minilm")


def test_no_question_is_not_an_empty_question() -> None:
    nothing = derive_key(replace(ASK, question=None), SCOPE, "minilm")
    assert nothing.partition is None
    assert nothing.exact != derive_key(replace(ASK, question=""), SCOPE, "minilm").exact


@given(st.lists(st.text(max_size=5), min_size=5, max_size=5), st.lists(st.text(max_size=5), min_size=5, max_size=5))
def test_parts_never_run_together(left: list[str], right: list[str]) -> None:
    keys = [derive_key(ASK, Scope(*fields), None).exact for fields in (left, right)]
    assert (keys[0] == keys[1]) == (left == right)


@pytest.mark.parametrize(
    ("sharing", "namespace", "owner", "group"),
    [
        ("tenant", "", "shop", ""),
        ("tenant", "faq", "shop", "faq"),
        ("namespace", "faq", "", "faq"),
        ("namespace", "", "shop", ""),
        ("all", "faq", "", ""),
    ],
)
def test_who_shares_with_whom(sharing: str, namespace: str, owner: str, group: str) -> None:
    scope = derive_scope(ASK, Tenant("shop"), namespace, sharing)
    assert (scope.tenant, scope.namespace) == (owner, group)


def test_a_context_without_some_turns_makes_the_partition_and_not_the_exact_key() -> None:
    key = derive_key(ASK, SCOPE, "minilm")
    short, other = (derive_key(replace(ASK, context=context), SCOPE, "minilm", b"?") for context in (b"{}", b"[]"))
    assert short.exact == key.exact != other.exact
    assert short.partition == other.partition != key.partition
