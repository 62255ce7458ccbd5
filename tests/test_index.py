"""The index: compared with a dict and brute force, whatever happens in between."""

from __future__ import annotations

import operator
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from semcache.cache.index import FILE_NAME, Index
from semcache.cache.lists import Abandoned
from semcache.cache.partition import Partition, Rows, Shape
from semcache.errors import CacheFault
from semcache.types import Change, Posting, Vector

D = 16
SLACK = 2e-3  # of a similarity: codes are half-precision floats
SMALL = Shape(flat_rows=24, probes=1000)  # folds early, and reads every list: exact but for the codes


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def vector_of(number: int, dimensions: int = D) -> Vector:
    """The same number, the same unit vector; numbers that are equal modulo 7 lie near each other."""
    centre = np.random.default_rng(number % 7).standard_normal(dimensions)
    return unit(centre + 0.3 * np.random.default_rng(1000 + number).standard_normal(dimensions))


def clusters(count: int, dimensions: int, seed: int = 0) -> np.ndarray:
    """Topics, intents within them and wordings of those, some asked far more often than others."""
    rng = np.random.default_rng(seed)
    topics = unit(rng.standard_normal((max(4, count // 500), dimensions)))
    near = rng.standard_normal((max(16, count // 20), dimensions))
    intents = unit(topics[rng.integers(len(topics), size=len(near))] + 0.9 * unit(near))
    popular = rng.zipf(1.3, count) % len(intents)
    spread = rng.uniform(0.2, 0.8, (count, 1))
    return unit(intents[popular] + spread * unit(rng.standard_normal((count, dimensions))))


def key(name: int | str) -> bytes:
    return str(name).encode().ljust(32, b".")


def added(
    seq: int, vector: Vector | None = None, partition: str | None = "p", exact: int | str | None = None
) -> Change:
    name = None if partition is None else key(partition)
    vector = vector_of(seq) if vector is None and partition is not None else vector
    return Change(seq, Posting(seq, key(seq if exact is None else exact), name, vector))


def filled(count: int, shape: Shape = SMALL, folder: Path | None = None) -> Index:
    index = Index(D, "stamp", folder, shape)
    index.apply([added(seq) for seq in range(1, count + 1)])
    index.fold_due()
    return index


def in_lists(index: Index) -> float:
    return index.stats()["partitions_in_lists"]


# The exact tier.


def test_exact_key_leads_to_the_newest_entry():
    index = Index(D, "stamp", None)
    index.apply([added(1, exact="a", partition=None), added(2, exact="a", partition=None)])
    assert index.find_exact(key("a")) == 2
    assert index.find_exact(key("b")) is None


def test_removing_the_replaced_entry_leaves_the_newer_one():
    index = Index(D, "stamp", None)
    index.apply([added(1, exact="a"), added(2, exact="a"), Change(3, removed=(1,))])
    assert index.find_exact(key("a")) == 2


def test_replaced_entry_does_not_come_back_when_the_newer_one_goes():
    index = Index(D, "stamp", None)
    index.apply([added(1, exact="a"), added(2, exact="a"), Change(3, removed=(2,))])
    assert index.find_exact(key("a")) is None


# The semantic tier.


def test_same_question_is_found_first_and_with_similarity_one():
    index = filled(10)
    found = index.search(key("p"), vector_of(4), 3)
    assert found[0].seq == 4
    assert found[0].similarity == pytest.approx(1.0, abs=1e-5)
    assert [c.similarity for c in found] == sorted((c.similarity for c in found), reverse=True)


def test_neighbour_from_another_partition_is_never_seen():
    index = Index(D, "stamp", None, SMALL)
    for seq in range(1, 101):
        index.apply([added(seq, vector_of(seq), "even" if seq % 2 == 0 else "odd")])
    index.fold_due()
    assert in_lists(index) == 2
    for number in range(1, 101):
        assert all(c.seq % 2 == 0 for c in index.search(key("even"), vector_of(number), 64))
        assert all(c.seq % 2 == 1 for c in index.search(key("odd"), vector_of(number), 64))
    assert index.search(key("unknown"), vector_of(1), 4) == []
    assert (index.partition_size(key("even")), index.partition_size(key("unknown"))) == (50, 0)


@pytest.mark.parametrize(
    "vector",
    [
        np.full(D, np.nan, np.float32),
        np.zeros(D, np.float32),
        np.full(D, np.inf, np.float32),
        vector_of(1) * 1.5,
        vector_of(1, D + 1),
        vector_of(1).reshape(1, D),
        vector_of(1).astype(np.float64),
        np.stack([vector_of(1), vector_of(2)], axis=1)[:, 0],
    ],
    ids=["nan", "zero", "infinite", "long", "wrong-size", "matrix", "double", "strided"],
)
def test_query_that_is_no_unit_vector_is_refused(vector: np.ndarray):
    index = filled(3)
    with pytest.raises(CacheFault):
        index.search(key("p"), vector, 4)
    with pytest.raises(CacheFault):
        index.search(key("unknown"), vector, 4)


def test_what_points_away_is_no_neighbour():
    index = Index(D, "stamp", None)
    index.apply([added(1, vector_of(1)), added(2, -vector_of(1))])
    assert [c.seq for c in index.search(key("p"), vector_of(1), 4)] == [1]


def test_entry_removed_while_it_was_compared_is_not_returned():
    index = filled(5)

    class RemovedMeanwhile(Partition):
        def search(self, vector: Vector, k: int) -> list[tuple[float, int]]:
            found = super().search(vector, k)
            index.apply([Change(6, removed=(3,))])
            return found

    partition = RemovedMeanwhile(key("p"), index._partitions[key("p")].view[1])
    index._partitions[key("p")] = partition
    assert 3 not in [c.seq for c in index.search(key("p"), vector_of(3), 5)]


def test_entry_with_a_vector_of_another_size_stays_in_the_exact_tier():
    index = Index(D, "stamp", None)
    index.apply([added(1, vector_of(1, D + 8)), added(2, np.full(D, np.nan, np.float32)), added(3)])
    assert [index.find_exact(key(seq)) for seq in (1, 2, 3)] == [1, 2, 3]
    assert index.partition_size(key("p")) == 1
    assert index.stats()["vectors_refused"] == 2
    index.apply([Change(4, removed=(1, 2))])
    assert [index.find_exact(key(seq)) for seq in (1, 2, 3)] == [None, None, 3]


def test_changes_seen_before_are_passed_over():
    index = filled(3)
    index.apply([Change(4, removed=(2,))])
    index.apply([added(seq) for seq in (1, 2, 3)])
    assert index.position == 4
    assert index.find_exact(key(2)) is None
    assert {c.seq for c in index.search(key("p"), vector_of(2), 10)} <= {1, 3}


def test_partition_without_entries_is_gone():
    index = filled(2)
    index.apply([Change(3, removed=(1, 2, 2, 77))])
    stats = index.stats()
    assert (stats["entries"], stats["vectors"], stats["partitions"]) == (0, 0, 0)
    assert index.search(key("p"), vector_of(1), 4) == []


# Growing.


def test_partition_is_folded_when_it_grows_and_unfolded_when_it_shrinks():
    index = filled(24)
    assert in_lists(index) == 0
    index.apply([added(25)])
    index.fold_due()
    assert in_lists(index) == 1
    index.apply([Change(26 + seq, removed=(seq,)) for seq in range(1, 20)])
    index.fold_due()
    assert in_lists(index) == 0
    assert {c.seq for c in index.search(key("p"), vector_of(21), 50)} <= set(range(20, 26))


def test_builder_thread_folds_what_has_grown():
    index = Index(D, "stamp", None, SMALL)
    index.start()
    index.apply([added(seq) for seq in range(1, 41)])
    while index.stats()["folds"] == 0:
        os.sched_yield()  # the suite's timeout is the limit
    index.close()
    assert in_lists(index) == 1
    assert index.search(key("p"), vector_of(7), 1)[0].seq == 7


def test_failed_fold_is_counted_and_leaves_the_partition_as_it_was():
    index = Index(D, "stamp", None, Shape(flat_rows=24, probes=None))  # type: ignore[arg-type]
    index.start()
    index.apply([added(seq) for seq in range(1, 41)])
    while index.stats()["folds_failed"] == 0:
        os.sched_yield()
    assert index.search(key("p"), vector_of(7), 1)[0].seq == 7
    index.apply([added(41)])  # tried again, by the same thread
    while index.stats()["folds_failed"] == 1:
        os.sched_yield()
    index.close()
    assert in_lists(index) == 0


def test_search_uses_one_core_in_whatever_thread_it_runs():
    index = filled(40)
    threads: list[int] = []

    def search() -> None:
        index.search(key("p"), vector_of(1), 1)
        threads.append(faiss.omp_get_max_threads())

    thread = threading.Thread(target=search)
    thread.start()
    thread.join()
    assert threads == [1]


class Meanwhile(threading.Event):
    """Never set; does something the second time a build asks whether to go on: in the middle of it."""

    def __init__(self, change: Callable[[], None]) -> None:
        super().__init__()
        self._change = change
        self._asked = 0

    def is_set(self) -> bool:
        self._asked += 1
        if self._asked == 2:
            self._change()
        return super().is_set()


@pytest.mark.parametrize("already_in_lists", [False, True])
@pytest.mark.parametrize("moment", ["reading", "building"])
def test_changes_during_a_fold_are_not_lost(already_in_lists: bool, moment: str):
    register = set(range(1, 61))
    lock = threading.Lock()
    partition = Partition(b"p", Rows.empty(D))
    for seq in range(1, 61):
        partition.add(seq, vector_of(seq))
    if already_in_lists:
        partition.fold(SMALL, register.__contains__, lock, threading.Event())
        for seq in range(61, 101):
            register.add(seq)
            partition.add(seq, vector_of(seq))

    def change() -> None:
        with lock:
            for seq in range(101, 131):
                register.add(seq)
                partition.add(seq, vector_of(seq))
            for seq in [*range(1, 41, 3), 105, *(range(62, 100, 2) if already_in_lists else ())]:
                register.remove(seq)
                partition.remove(seq, SMALL, register.__contains__)

    changed = iter([False])

    def is_live(seq: int) -> bool:
        if not next(changed, True):
            change()
        return seq in register

    if moment == "reading":
        partition.fold(SMALL, is_live, lock, threading.Event())
    else:
        partition.fold(SMALL, register.__contains__, lock, Meanwhile(change))
    assert partition.live == len(register)
    for number in range(1, 131):
        found = [seq for similarity, seq in partition.search(vector_of(number), 200) if similarity > 0.05]
        wanted = {seq for seq in register if vector_of(seq) @ vector_of(number) > 0.06}
        assert wanted <= set(found) <= register
        assert len(found) == len(set(found))


def test_abandoned_fold_leaves_the_partition_as_it_was():
    register = set(range(1, 61))
    partition = Partition(b"p", Rows.empty(D))
    for seq in register:
        partition.add(seq, vector_of(seq))
    stopping = threading.Event()
    stopping.set()
    with pytest.raises(Abandoned):
        partition.fold(SMALL, register.__contains__, threading.Lock(), stopping)
    assert partition.view[0] is None
    assert partition.is_due(SMALL)
    assert partition.search(vector_of(9), 1)[0][1] == 9


def test_removed_vector_is_in_no_memory_of_the_partition():
    index = filled(40)
    index.apply([added(seq) for seq in range(41, 45)])
    index.apply([Change(45, removed=(7, 43))])
    lists, rows = index._partitions[key("p")].view
    assert lists is not None
    held = rows.vectors.tobytes() + b"".join(codes.tobytes() for _, _, codes in lists.pieces())
    for seq in (7, 43):
        assert vector_of(seq).tobytes() not in held
        assert vector_of(seq).astype(np.float16).tobytes() not in held
    assert vector_of(8).astype(np.float16).tobytes() in held
    assert vector_of(44).tobytes() in held


def test_recall_of_lists_is_that_of_brute_force_where_it_matters():
    count, dimensions = 16_000, 96
    vectors = clusters(count, dimensions)
    index = Index(dimensions, "stamp", None, Shape(flat_rows=3000))
    index.apply([added(seq + 1, vector) for seq, vector in enumerate(vectors)])
    index.fold_due()
    lists, rows = index._partitions[key("p")].view
    assert lists is not None and rows.count == 0
    assert len(lists.centroids) > 5 * index._shape.probes  # else there is nothing to miss

    rng = np.random.default_rng(5)
    near = rng.uniform(0.1, 0.75, (500, 1)) * unit(rng.standard_normal((500, dimensions)))
    queries = unit(vectors[rng.integers(count, size=500)] + near)
    best = np.sort(queries @ vectors.T, axis=1)[:, ::-1][:, :4]
    wanted = found = 0
    for query, similarities in zip(queries, best, strict=True):
        candidates = index.search(key("p"), query, 4)
        for rank, similarity in enumerate(similarities[similarities >= 0.8]):
            wanted += 1
            found += candidates[rank].similarity >= similarity - SLACK
    assert wanted > 500
    assert found >= 0.99 * wanted


# Many threads.


def test_searches_changes_folds_and_snapshots_go_on_together(tmp_path: Path):
    """A search never returns what was removed before it began, nor a similarity that is not the entry's own."""
    shape = Shape(flat_rows=200, probes=1000)
    index = Index(D, "stamp", tmp_path, shape)
    vectors = np.stack([vector_of(number) for number in range(500)])
    total, kept, together = 3000, 700, 25
    gone = 0  # entries up to this number were removed, and that has returned
    done = threading.Event()
    complaints: list[str] = []
    searches = [0, 0, 0]

    def search(number: int) -> None:
        rng = np.random.default_rng(number)
        try:
            while not done.is_set():
                query = vectors[rng.integers(len(vectors))]
                before = gone
                for candidate in index.search(key("p"), query, 8):
                    if candidate.seq <= before:
                        complaints.append(f"{candidate.seq} was removed, up to {before}")
                    if abs(candidate.similarity - float(vectors[candidate.seq % 500] @ query)) > SLACK:
                        complaints.append(f"{candidate.seq} came with a similarity of {candidate.similarity}")
                searches[number] += 1
        except Exception as exc:
            complaints.append(repr(exc))

    def save() -> None:
        try:
            while not done.is_set():
                index.save_snapshot("store")
        except Exception as exc:
            complaints.append(repr(exc))

    def progress() -> list[float]:
        return [index.stats()["folds"], index.stats()["snapshots_saved"], *searches]

    index.start()
    before = progress()
    threads = [threading.Thread(target=search, args=(number,)) for number in range(3)] + [threading.Thread(target=save)]
    for thread in threads:
        thread.start()
    changes = []
    for first in range(1, total, together):
        batch = [added(seq, vectors[seq % 500]) for seq in range(first, first + together)]
        oldest = first + together - kept
        removed = tuple(range(max(1, oldest - together), max(1, oldest)))
        batch[-1] = Change(batch[-1].seq, batch[-1].added, removed)
        index.apply(batch)
        changes += batch
        gone = max(gone, oldest - 1)
        if first % 500 == 1 and first > 1:  # let the others come along, however the cores are shared
            while not complaints and not all(map(operator.gt, progress(), before)):
                os.sched_yield()
            before = progress()
    done.set()
    for thread in threads:
        thread.join()
    index.close()
    assert not complaints
    assert index.stats()["folds_failed"] == 0

    again = Index(D, "stamp", tmp_path, shape)
    assert again.load_snapshot("store", total, 0)
    again.apply(changes)
    assert again.position == index.position
    for query in vectors[::50]:
        wanted = [c.similarity for c in index.search(key("p"), query, 8)]
        assert [c.similarity for c in again.search(key("p"), query, 8)] == pytest.approx(wanted, abs=SLACK)


# Everything in any order.


class IndexAgainstModel(RuleBasedStateMachine):
    """The model: the log, a dict of what is live, a dict of exact keys, and brute force."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self.index = self.fresh()
        self.log: list[Change] = []
        self.live: dict[int, Posting] = {}
        self.exact: dict[bytes, int] = {}
        self.saved_at: int | None = None

    def teardown(self) -> None:
        self._folder.cleanup()

    def fresh(self) -> Index:
        return Index(D, "stamp", self.folder, Shape(flat_rows=6, probes=1000))

    def follow(self, change: Change) -> None:
        self.log.append(change)
        if change.added is not None:
            self.live[change.added.seq] = change.added
            self.exact[change.added.exact] = change.added.seq
        for seq in change.removed:
            posting = self.live.pop(seq, None)
            if posting is not None and self.exact.get(posting.exact) == seq:
                del self.exact[posting.exact]
        self.index.apply([change])

    partitions = st.sampled_from(["a", "a", "a", "b", None])  # one that grows, a small one, exact tier only
    numbers = st.integers(0, 30)

    @rule(partition=partitions, numbers=st.lists(numbers, min_size=1, max_size=8))
    def add(self, partition: str | None, numbers: list[int]) -> None:
        for number in numbers:
            self.follow(added(len(self.log) + 1, vector_of(number), partition, exact=number))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), number=numbers)
    def replace(self, data: st.DataObject, number: int) -> None:
        old = data.draw(st.sampled_from(sorted(self.live)))
        posting = added(len(self.log) + 1, vector_of(number), "a", exact=number).added
        self.follow(Change(len(self.log) + 1, posting, (old,)))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        gone = data.draw(st.lists(st.sampled_from(sorted(self.live)), min_size=1, max_size=6))
        self.follow(Change(len(self.log) + 1, None, tuple(gone)))

    @rule()
    def fold(self) -> None:
        self.index.fold_due()

    @rule()
    def save(self) -> None:
        self.index.save_snapshot("store")
        self.saved_at = self.index.position

    @rule()
    def discard(self) -> None:
        self.index.discard_snapshot()
        self.saved_at = None

    @rule()
    def restart(self) -> None:
        self.index = self.fresh()
        assert self.index.load_snapshot("store", len(self.log), 0) == (self.saved_at is not None)
        assert self.index.position == (self.saved_at or 0)
        self.index.apply(self.log)

    @precondition(lambda self: self.saved_at is not None)
    @rule(place=st.floats(0, 1, exclude_max=True), cut=st.booleans())
    def crash_and_damage(self, place: float, cut: bool) -> None:
        path = self.folder / FILE_NAME
        whole = bytearray(path.read_bytes())
        at = int(place * len(whole))
        if cut:
            del whole[at:]
        else:
            whole[at] ^= 0x10
        path.write_bytes(whole)
        self.index = self.fresh()
        assert not self.index.load_snapshot("store", len(self.log), 0)
        assert not path.exists()
        assert self.index.position == 0
        self.saved_at = None
        self.index.apply(self.log)

    @invariant()
    def exact_keys_agree(self) -> None:
        for number in range(31):
            assert self.index.find_exact(key(number)) == self.exact.get(key(number))

    @invariant()
    def neighbours_agree(self) -> None:
        for name in ("a", "b"):
            live = {p.seq: p.vector for p in self.live.values() if p.partition == key(name) and p.vector is not None}
            assert self.index.partition_size(key(name)) == len(live)
            for number in (3, 50):
                query = vector_of(number)
                true = {seq: float(vector @ query) for seq, vector in live.items()}
                found = self.index.search(key(name), query, 4)
                assert len({c.seq for c in found}) == len(found)
                for candidate in found:
                    assert candidate.similarity == pytest.approx(true[candidate.seq], abs=SLACK)
                wanted = [s for s in sorted(true.values(), reverse=True) if s > SLACK][:4]
                assert [c.similarity for c in found][: len(wanted)] == pytest.approx(wanted, abs=SLACK)


TestIndexAgainstModel = IndexAgainstModel.TestCase
TestIndexAgainstModel.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
