"""Which stored answers say the same: by their texts, and by what comparisons have shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
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
    kin.join(b.key.exact, c.key.exact)
    kin.join(c.key.exact, d.key.exact)
    assert len({kin.name(each) for each in (a, b, c, d)}) == 1
    assert kin.name(saying("z", "B")) == kin.name(a)  # the text of b
    assert kin.name(saying("e", "E")) != kin.name(a)


def test_a_new_answer_to_a_joined_question_is_kin_of_its_question() -> None:
    kin = Kin(read)
    old, new, friend = saying("a", "first", "1"), saying("a", "second", "2"), saying("b", "third")
    kin.join(old.key.exact, friend.key.exact)
    assert kin.name(old) == kin.name(new) == kin.name(friend)


def test_a_refusal_said_to_many_questions_makes_no_kin_of_their_other_answers() -> None:
    """Each of two topics was refused once, in equal words, and then answered."""
    kin = Kin(read)
    topics = []
    for topic in ("tents", "taxes"):
        first, second = f"{topic} 1", f"{topic} 2"
        refused = saying(first, "I cannot help with that.", f"{topic} refused")
        kin.join(refused.key.exact, digest_of(second))
        kin.name(refused)
        topics.append([saying(first, f"About {topic}."), saying(second, f"{topic}, as they are.")])
    names = [{kin.name(entry) for entry in topic} for topic in topics]
    assert [len(each) for each in names] == [1, 1]
    assert names[0] != names[1]


def digest_of(question: str) -> bytes:
    return make_entry(question).key.exact


def test_wrong_joins_add_up_and_do_not_multiply() -> None:
    """Each question is compared with two, and one comparison in a hundred is wrong."""
    rng = np.random.default_rng(1)
    kin = Kin(read)
    topics: list[list[Entry]] = [[] for _ in range(40)]
    entries: list[tuple[int, Entry]] = []
    for number in range(4000):
        topic = number % 40
        entry = saying(f"question {number}", f"answer {number}")
        for _ in range(2):
            if topics[topic]:
                near = topics[topic] if rng.random() > 0.01 else [each for _, each in entries]
                kin.join(near[int(rng.integers(len(near)))].key.exact, entry.key.exact)
        topics[topic].append(entry)
        entries.append((topic, entry))
    pairs = rng.integers(0, len(entries), (20_000, 2))
    strangers = [(entries[a][1], entries[b][1]) for a, b in pairs if entries[a][0] != entries[b][0]]
    assert np.mean([kin.name(one) == kin.name(other) for one, other in strangers]) < 0.01
    friends = [(entries[a][1], entries[b][1]) for a, b in pairs if entries[a][0] == entries[b][0]]
    assert np.mean([kin.name(one) == kin.name(other) for one, other in friends]) > 0.9


def test_joining_what_is_joined_changes_nothing() -> None:
    kin = Kin(read)
    a, b = saying("a", "A"), saying("b", "B")
    for _ in range(3):
        kin.join(a.key.exact, b.key.exact)
        kin.join(b.key.exact, a.key.exact)
        kin.join(a.key.exact, a.key.exact)
        assert kin.name(a) == kin.name(b)
    assert len(kin) == 4


def test_the_oldest_joins_are_forgotten_where_there_are_too_many() -> None:
    kin = Kin(read, kept=100)
    first, second = saying("first", "1"), saying("second", "2")
    kin.join(first.key.exact, second.key.exact)
    for n in range(500):
        kin.join(digest(f"a{n}"), digest(f"b{n}"))
        assert len(kin) <= 100
    assert kin.name(first) != kin.name(second)
    assert kin._root(digest("a499")) == kin._root(digest("b499"))


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), max_size=60), st.sampled_from([4, 1000]))
def test_strangers_that_no_chain_of_joins_connects_are_never_kin(joins: list[tuple[int, int]], kept: int) -> None:
    kin = Kin(read, kept)
    groups = [{n} for n in range(16)]
    for one, other in joins:
        kin.join(ENTRIES[one].key.exact, ENTRIES[other].key.exact)
        together = groups[one] | groups[other]
        for n in together:
            groups[n] = together
        kin.name(ENTRIES[other])
        assert len(kin) <= kept
    names = [kin.name(entry) for entry in ENTRIES]
    assert all(names[n] != names[m] for n in range(16) for m in range(16) if m not in groups[n])


ENTRIES = [saying(f"question {n}", f"answer {n}") for n in range(16)]


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
