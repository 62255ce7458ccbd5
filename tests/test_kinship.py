"""Which stored answers say the same: by their texts, and by what comparisons have shown."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from semcache.cache.kinship import LONG_BYTES, Kin
from semcache.types import Answer, Entry, Form
from tests.entries import digest, make_entry


def saying(question: str, text: str, id: str = "") -> Entry:
    entry = make_entry(question)
    return replace(entry, id=id or entry.id, answer=Answer("openai", Form.JSON, (text.encode(),)))


def read(entry: Entry) -> str | None:
    """An answer that is no text, an image say, is empty here."""
    return entry.answer.parts[0].decode() or None


def test_answers_of_equal_text_are_kin_but_for_white_space() -> None:
    kin = Kin(read)
    one, other = saying("where is it", "In the  cellar.\n"), saying("where do I find it", "In the cellar.")
    assert kin.name(one) == kin.name(other)
    assert kin.name(saying("where was it", "In the attic.")) != kin.name(one)


def test_answers_that_are_no_text_are_kin_of_their_own_question_alone() -> None:
    kin = Kin(read)
    assert kin.name(saying("draw a cat", "")) != kin.name(saying("paint a cat", ""))
    assert kin.name(saying("draw a cat", "", "a1")) == kin.name(saying("draw a cat", "", "a2"))


def test_answers_found_to_say_the_same_are_kin_and_so_are_theirs() -> None:
    kin = Kin(read)
    a, b, c, d = (saying(text, text.upper()) for text in ("a", "b", "c", "d"))
    kin.join(a.key.exact, b.key.exact)
    assert kin.name(a) == kin.name(b) != kin.name(c)
    kin.join(c.key.exact, d.key.exact)
    kin.join(d.key.exact, b.key.exact)
    assert len({kin.name(each) for each in (a, b, c, d)}) == 1
    assert kin.name(saying("z", "B")) == kin.name(a)  # the text of b
    assert kin.name(saying("e", "E")) != kin.name(a)


def test_a_new_answer_to_a_joined_question_is_kin_of_its_question() -> None:
    kin = Kin(read)
    old, new, friend = saying("a", "first", "1"), saying("a", "second", "2"), saying("b", "third")
    kin.join(old.key.exact, friend.key.exact)
    assert kin.name(old) == kin.name(new) == kin.name(friend)


def test_joining_what_is_joined_changes_nothing() -> None:
    kin = Kin(read)
    a, b = saying("a", "A"), saying("b", "B")
    for _ in range(3):
        kin.join(a.key.exact, b.key.exact)
        kin.join(b.key.exact, a.key.exact)
        kin.join(a.key.exact, a.key.exact)
        assert kin.name(a) == kin.name(b)
    assert len(kin) <= 4


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=40))
def test_kin_are_exactly_those_that_a_chain_of_joins_connects(joins: list[tuple[int, int]]) -> None:
    kin = Kin(read)
    entries = [saying(f"question {n}", f"answer {n}") for n in range(13)]
    groups = [{n} for n in range(13)]
    for one, other in joins:
        kin.join(entries[one].key.exact, entries[other].key.exact)
        together = groups[one] | groups[other]
        for n in together:
            groups[n] = together
    for n, entry in enumerate(entries):
        for m, another in enumerate(entries):
            assert (kin.name(entry) == kin.name(another)) is (m in groups[n])


def test_the_oldest_joins_are_forgotten_where_there_are_too_many() -> None:
    kin = Kin(read, kept=100)
    first, second = saying("first", "1"), saying("second", "2")
    kin.join(first.key.exact, second.key.exact)
    for n in range(500):
        kin.join(digest(f"a{n}"), digest(f"b{n}"))
        assert len(kin) <= 100
    assert kin.name(first) != kin.name(second)
    assert kin._root(digest("a499")) == kin._root(digest("b499"))


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=200))
def test_what_is_forgotten_never_makes_strangers_kin(joins: list[tuple[int, int]]) -> None:
    whole, small = Kin(read), Kin(read, kept=8)
    entries = [saying(f"question {n}", f"answer {n}") for n in range(31)]
    for one, other in joins:
        for kin in (whole, small):
            kin.join(entries[one].key.exact, entries[other].key.exact)
    for entry in entries:
        for another in entries:
            assert whole.name(entry) == whole.name(another) or small.name(entry) != small.name(another)
            assert len(small) <= 8


def test_an_answer_is_read_once() -> None:
    reads: list[str] = []

    def count(entry: Entry) -> str | None:
        reads.append(entry.id)
        return read(entry)

    kin = Kin(count)
    entry = saying("a", "A")
    for _ in range(3):
        kin.name(entry)
    assert reads == [entry.id]


def test_an_answer_too_long_to_be_read_on_the_event_loop_is_not_read() -> None:
    kin = Kin(read)
    long = "word " * LONG_BYTES
    assert kin.name(saying("a", long)) != kin.name(saying("b", long))
