"""Chained hashes of prompts, and the LRU that guesses what a KV cache holds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from semcache.backends.prefix import MOST_CHUNKS, PrefixMap, chain, prompt_of


@given(st.binary(max_size=200), st.binary(max_size=50), st.integers(1, 20))
def test_a_longer_prompt_begins_with_the_hashes_of_its_beginning(begin: bytes, rest: bytes, chunk: int) -> None:
    short, long = chain(begin, chunk), chain(begin + rest, chunk)
    assert long[: len(short)] == short
    assert len(short) == len(begin) // chunk, "only whole chunks have a hash"


@given(st.binary(min_size=64, max_size=64), st.integers(0, 63))
def test_a_changed_byte_changes_its_chunk_and_all_that_follow(prompt: bytes, place: int) -> None:
    changed = bytearray(prompt)
    changed[place] ^= 1
    before, after = chain(prompt, 8), chain(bytes(changed), 8)
    same = place // 8
    assert before[:same] == after[:same]
    assert not set(before[same:]) & set(after[same:])


def test_equal_chunks_at_other_places_are_other_chunks() -> None:
    assert len(set(chain(b"again..." * 50, 8))) == 50


def test_hashes_have_64_bits() -> None:
    assert all(-(2**63) <= value < 2**63 for value in chain(bytes(8192), 16))
    assert max(abs(value) for value in chain(bytes(8192), 16)) > 2**60


def test_a_huge_prompt_has_a_bounded_number_of_chunks() -> None:
    assert len(chain(bytes(40_000), 16)) == MOST_CHUNKS


def shared(one: bytes, other: bytes, models: tuple[str, str] = ("m", "m")) -> int:
    known = PrefixMap(1000)
    known.insert(chain(prompt_of(one, models[0]), 16))
    return known.match(chain(prompt_of(other, models[1]), 16))


def test_the_next_turn_of_a_conversation_begins_as_the_last_one_did() -> None:
    turn = b'{"role": "user", "content": "' + b"How do trees drink? " * 10 + b'"}'
    first = b'{"model": "m", "user": "ann", "temperature": 0.2, "messages": [' + turn + b"]}"
    second = b'{"model": "m", "temperature": 0.7, "messages": [' + turn + b', {"role": "assistant"'
    assert shared(first, second) >= len(turn) // 16
    assert shared(first, second, ("m", "another")) == 0, "each model has KV blocks of its own"


def test_a_body_of_no_known_form_is_hashed_from_its_beginning() -> None:
    assert shared(b"plain text " * 10, b"plain text " * 20) == 112 // 16
    assert prompt_of(b"", None) == b"\0"


def test_a_prompt_is_known_as_far_as_it_agrees() -> None:
    known = PrefixMap(100)
    known.insert((1, 2, 3, 4))
    assert [known.match(chunks) for chunks in [(1, 2, 3, 4, 5), (1, 2, 9, 9), (9, 2, 3), ()]] == [4, 2, 0, 0]


def test_the_end_of_a_prompt_is_forgotten_before_its_beginning() -> None:
    known = PrefixMap(4)
    known.insert((1, 2, 3))
    known.insert((11, 12))
    assert (known.match((1, 2, 3)), known.match((11, 12))) == (2, 2)


def test_what_is_used_again_stays() -> None:
    known = PrefixMap(4)
    known.insert((1, 2))
    known.insert((11, 12))
    known.insert((1, 2))
    known.insert((21, 22))
    assert (known.match((1, 2)), known.match((11, 12))) == (2, 0)


def test_of_a_prompt_longer_than_all_that_is_remembered_the_beginning_is() -> None:
    known = PrefixMap(3)
    known.insert((1, 2, 3, 4, 5))
    assert known.match((1, 2, 3, 4, 5)) == 3


def test_a_restarted_backend_knows_nothing() -> None:
    known = PrefixMap(10)
    known.insert((1, 2, 3))
    known.forget()
    assert (known.match((1, 2, 3)), len(known)) == (0, 0)


class Remembering(RuleBasedStateMachine):
    """Against a list that is searched and sorted by hand. Prompts are words over two letters, so that they share."""

    LIMIT = 12

    def __init__(self) -> None:
        super().__init__()
        self.known = PrefixMap(self.LIMIT)
        self.by_age: list[int] = []  # oldest first

    @rule(word=st.text("ab", max_size=20))
    def insert(self, word: str) -> None:
        chunks = chain(word.encode(), 1)
        self.known.insert(chunks)
        kept = chunks[: self.LIMIT]
        self.by_age = ([chunk for chunk in self.by_age if chunk not in kept] + [*reversed(kept)])[-self.LIMIT :]

    @rule(word=st.text("ab", max_size=20))
    def match(self, word: str) -> None:
        chunks = chain(word.encode(), 1)
        known = [chunk in self.by_age for chunk in chunks]
        assert self.known.match(chunks) == (known + [False]).index(False)
        assert True not in known[self.known.match(chunks) :], "a chunk is known without one before it"

    @rule()
    def forget(self) -> None:
        self.known.forget()
        self.by_age = []

    @invariant()
    def holds_no_more_than_it_may(self) -> None:
        assert len(self.known) == len(self.by_age) <= self.LIMIT


TestRemembering = Remembering.TestCase
TestRemembering.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
