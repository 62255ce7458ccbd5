"""The snapshot: what comes back is what was saved, or nothing."""

from __future__ import annotations

import json
import random
import stat
from pathlib import Path

import numpy as np
import pytest

from semcache.cache.blocks import MAGIC, BlockWriter, Damaged, partial_path, read_blocks
from semcache.cache.index import FILE_NAME, Index
from semcache.cache.partition import Shape
from semcache.cache.snapshot import Head, write_snapshot
from semcache.errors import CacheFault
from semcache.types import Change, Posting, Vector

D = 16
SHAPE = Shape(flat_rows=40, probes=1000)


def vector_of(number: int) -> Vector:
    vector = np.random.default_rng(number).standard_normal(D)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def key(name: int | str) -> bytes:
    return str(name).encode().ljust(32, b".")


def added(seq: int, partition: str | None = "p", exact: int | str | None = None) -> Change:
    name, vector = (None, None) if partition is None else (key(partition), vector_of(seq))
    return Change(seq, Posting(seq, key(seq if exact is None else exact), name, vector))


def an_index(folder: Path) -> Index:
    return Index(D, "stamp", folder, SHAPE)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """One partition in lists with a tail, three small ones, one entry without a vector: 70 changes."""
    index = an_index(tmp_path)
    index.apply([added(seq) for seq in range(1, 51)])
    index.fold_due()
    index.apply([added(seq) for seq in range(51, 56)])
    index.apply([added(seq, f"small-{seq % 3}") for seq in range(56, 69)])
    index.apply([added(69, None), Change(70, removed=(3, 52, 60))])
    assert index.stats()["partitions_in_lists"] == 1
    return index


def assert_same(one: Index, other: Index) -> None:
    assert one.position == other.position
    for number in range(1, 80):
        assert one.find_exact(key(number)) == other.find_exact(key(number))
        for name in ("p", "small-0", "small-1", "small-2"):
            assert one.partition_size(key(name)) == other.partition_size(key(name))
            assert one.search(key(name), vector_of(number), 5) == other.search(key(name), vector_of(number), 5)


def test_loaded_index_answers_as_the_saved_one(index: Index, tmp_path: Path):
    index.save_snapshot("store")
    again = an_index(tmp_path)
    assert again.load_snapshot("store", last_seq=70, floor_seq=0)
    assert_same(index, again)
    changes = [added(71), Change(72, removed=(10, 53, 61, 71))]
    index.apply(changes)
    again.apply(changes)
    assert_same(index, again)


def test_changes_during_a_save_leave_a_snapshot_that_can_be_followed_on(index: Index, tmp_path: Path):
    changes = [added(71), added(72, "new"), Change(73, removed=(5, 54, 61))]
    waiting = iter([changes])

    def exact_of(seq: int) -> bytes | None:
        index.apply(next(waiting, []))
        return index._exact_of.get(seq)

    head = Head("store", "stamp", D, index.position)
    seqs, partitions = list(index._exact_of), list(index._partitions.values())
    write_snapshot(tmp_path / FILE_NAME, head, seqs, exact_of, partitions, index._exact_of.__contains__)
    again = an_index(tmp_path)
    assert again.load_snapshot("store", 73, 0)
    assert again.position == 70
    assert all(c.seq <= 70 for c in again.search(key("p"), vector_of(71), 50))
    again.apply(changes)
    assert_same(index, again)


def test_empty_index_can_be_saved_and_loaded(tmp_path: Path):
    an_index(tmp_path).save_snapshot("store")
    again = an_index(tmp_path)
    assert again.load_snapshot("store", 0, 0)
    assert (again.position, again.stats()["entries"]) == (0, 0)


def test_exact_key_taken_by_a_newer_entry_stays_taken_after_a_restart(tmp_path: Path):
    index = an_index(tmp_path)
    index.apply([added(1, exact="a"), added(2, exact="a"), Change(3, removed=(2,))])
    index.save_snapshot("store")
    again = an_index(tmp_path)
    again.load_snapshot("store", 3, 0)
    assert again.find_exact(key("a")) is None
    assert again.search(key("p"), vector_of(1), 1)[0].seq == 1


def test_large_flat_partition_comes_back_from_several_blocks(tmp_path: Path):
    shape = Shape(flat_rows=10**6)
    index = Index(D, "stamp", tmp_path, shape)
    index.apply([added(seq) for seq in range(1, 10_001)])
    index.save_snapshot("store")
    again = Index(D, "stamp", tmp_path, shape)
    assert again.load_snapshot("store", 10_000, 0)
    assert again.partition_size(key("p")) == 10_000
    for number in (1, 4096, 4097, 10_000):
        assert again.search(key("p"), vector_of(number), 3) == index.search(key("p"), vector_of(number), 3)


@pytest.mark.parametrize(
    "stamp, store, last_seq, floor_seq",
    [
        ("another model", "store", 70, 0),
        ("stamp", "another store", 70, 0),
        ("stamp", "store", 69, 0),  # the store lost its end: a crash of the machine
        ("stamp", "store", 90, 71),  # the store no longer knows what was removed between 70 and 71
    ],
    ids=["embedder", "store", "ahead", "behind"],
)
def test_snapshot_of_something_else_is_not_used(
    index: Index, tmp_path: Path, stamp: str, store: str, last_seq: int, floor_seq: int
):
    index.save_snapshot("store")
    again = Index(D, stamp, tmp_path, SHAPE)
    assert not again.load_snapshot(store, last_seq, floor_seq)
    assert (again.position, again.stats()["entries"], again.stats()["snapshots_foreign"]) == (0, 0, 1)
    assert not (tmp_path / FILE_NAME).exists()


def test_snapshot_of_other_dimensions_is_not_used(index: Index, tmp_path: Path):
    index.save_snapshot("store")
    again = Index(D * 2, "stamp", tmp_path)
    assert not again.load_snapshot("store", 70, 0)
    assert again.stats()["snapshots_foreign"] == 1


def test_damaged_snapshot_is_never_accepted(index: Index, tmp_path: Path):
    """300 damages: flipped bits, cut ends, zeroed and repeated stretches, stretches swapped, bytes appended."""
    index.save_snapshot("store")
    path = tmp_path / FILE_NAME
    whole = path.read_bytes()
    rng = random.Random(4)
    for number in range(300):
        torn = bytearray(whole)
        at = rng.randrange(len(whole))
        length = rng.randrange(1, 200)
        match number % 6:
            case 0 | 1:
                torn[at] ^= 1 << rng.randrange(8)
            case 2:
                del torn[at:]
            case 3:
                torn[at : at + length] = bytes(len(torn[at : at + length]))
            case 4:
                torn[at:at] = torn[max(0, at - length) : at] or b"\0"
            case 5:
                torn += rng.randbytes(length)
        if torn == whole:
            continue
        path.write_bytes(torn)
        again = an_index(tmp_path)
        assert not again.load_snapshot("store", 70, 0), number
        assert again.stats()["snapshots_damaged"] == 1
        assert (again.position, again.stats()["entries"], again.stats()["partitions"]) == (0, 0, 0)
        assert not path.exists()
    path.write_bytes(whole)
    assert an_index(tmp_path).load_snapshot("store", 70, 0)


def test_blocks_of_two_snapshots_cannot_be_mixed(tmp_path: Path):
    """The second file's blocks are all genuine; in the first file's place they are damage."""
    pieces = []
    for number in (1, 2):
        path = tmp_path / str(number)
        with BlockWriter(path) as out:
            sizes = [out.size_bytes]
            for part in range(3):
                out.write("part", {"part": part}, np.full(10, number + part))
                sizes.append(out.size_bytes)
            out.commit()
        whole = path.read_bytes()
        pieces.append([whole[: sizes[0]], *(whole[a:b] for a, b in zip(sizes, [*sizes[1:], None], strict=True))])
    one, two = pieces
    for mixed in (
        [*one[:2], two[2], *one[3:]],  # another file's block
        [one[0], one[2], one[1], *one[3:]],  # swapped
        [*one[:2], one[1], *one[2:]],  # repeated
        [*one[:2], *one[3:]],  # left out
        one[:-1],  # no end
        [*one, one[-1]],  # two ends
    ):
        path.write_bytes(b"".join(mixed))
        with pytest.raises(Damaged):
            list(read_blocks(path))
    path.write_bytes(b"".join(one))
    assert [block.facts["part"] for block in read_blocks(path)] == [0, 1, 2]


def test_gigabytes_in_a_length_are_not_allocated(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(MAGIC + (20).to_bytes(4, "little") + (1 << 62).to_bytes(8, "little") + bytes(100))
    with pytest.raises(Damaged, match="longer than the file"):
        list(read_blocks(path))


def test_arrays_of_unknown_types_are_refused_even_with_a_right_digest(tmp_path: Path):
    path = tmp_path / "file"
    with BlockWriter(path) as out:
        out.write("text", {}, np.array(["a", "b"]))
        out.commit()
    with pytest.raises(Damaged, match="type <U1"):
        list(read_blocks(path))


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda kind, facts, arrays: None if kind == "keys" else (kind, facts, arrays),
        lambda kind, facts, arrays: None if kind == "lists" else (kind, facts, arrays),
        lambda kind, facts, arrays: ("novel", facts, arrays) if kind == "rows" else (kind, facts, arrays),
        lambda kind, facts, arrays: (kind, {**facts, "position": "x"} if kind == "head" else facts, arrays),
        lambda kind, facts, arrays: (kind, facts, [arrays[0] + 9999, *arrays[1:]] if kind == "codes" else arrays),
        lambda kind, facts, arrays: (kind, facts, [*arrays[:2], arrays[2][:, :3]] if kind == "rows" else arrays),
        lambda kind, facts, arrays: (kind, facts, arrays[:1]),
    ],
    ids=["no-keys", "no-centroids", "unknown-kind", "text-for-a-number", "list-out-of-range", "narrow-rows", "too-few"],
)
def test_snapshot_of_a_program_that_lays_it_out_otherwise_is_not_used(index: Index, tmp_path: Path, rewrite):
    index.save_snapshot("store")
    path = tmp_path / FILE_NAME
    blocks = list(read_blocks(path))
    with BlockWriter(path) as out:
        for block in blocks:
            written = rewrite(block.kind, dict(block.facts), list(block.arrays))
            if written is not None:
                out.write(written[0], written[1], *written[2])
        out.commit()
    again = an_index(tmp_path)
    assert not again.load_snapshot("store", 70, 0)
    assert again.stats()["snapshots_damaged"] == 1
    assert (again.position, again.stats()["entries"]) == (0, 0)


def test_removed_vector_and_key_are_not_in_the_next_snapshot(index: Index, tmp_path: Path):
    path = tmp_path / FILE_NAME
    index.apply([Change(71, removed=(20, 55, 66, 69))])
    index.save_snapshot("store")
    whole = path.read_bytes()
    for seq in (20, 55, 66):
        assert vector_of(seq).tobytes() not in whole
        assert vector_of(seq).astype(np.float16).tobytes() not in whole
        assert key(seq) not in whole
    assert key(69) not in whole
    assert key(21) in whole
    assert vector_of(21).astype(np.float16).tobytes() in whole


def test_discarded_snapshot_leaves_no_file(index: Index, tmp_path: Path):
    index.save_snapshot("store")
    partial_path(tmp_path / FILE_NAME).write_bytes(b"what a crash left")
    index.discard_snapshot()
    assert list(tmp_path.iterdir()) == []
    index.discard_snapshot()
    assert not an_index(tmp_path).load_snapshot("store", 70, 0)


def test_crash_while_saving_leaves_the_last_snapshot(index: Index, tmp_path: Path):
    index.save_snapshot("store")
    path = tmp_path / FILE_NAME
    partial_path(path).write_bytes(path.read_bytes()[:1000])
    again = an_index(tmp_path)
    assert again.load_snapshot("store", 70, 0)
    again.save_snapshot("store")
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]


def test_snapshot_that_cannot_be_written_leaves_the_last_one(index: Index, tmp_path: Path):
    index.save_snapshot("store")
    partial_path(tmp_path / FILE_NAME).mkdir()  # stands in for a full disk: the file cannot be made
    index.apply([added(71)])
    with pytest.raises(CacheFault, match="cannot be written"):
        index.save_snapshot("store")
    assert index.stats()["snapshots_saved"] == 1
    again = an_index(tmp_path)
    assert again.load_snapshot("store", 71, 0)
    assert again.position == 70


def test_writer_that_is_left_without_commit_leaves_no_file(tmp_path: Path):
    with pytest.raises(RuntimeError):
        with BlockWriter(tmp_path / "file") as out:
            out.write("part", {}, np.arange(10))
            raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_snapshot_can_be_read_by_its_owner_only(index: Index, tmp_path: Path):
    index.save_snapshot("store")
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600


def test_index_without_a_folder_saves_nothing():
    index = Index(D, "stamp", None)
    index.apply([added(1)])
    index.save_snapshot("store")
    index.discard_snapshot()
    assert not Index(D, "stamp", None).load_snapshot("store", 1, 0)


def test_description_of_a_block_is_plain_json(tmp_path: Path):
    path = tmp_path / "file"
    with BlockWriter(path) as out:
        out.write("part", {"name": "x"}, np.arange(3), np.ones((2, 2), np.float16))
        out.commit()
    whole = path.read_bytes()
    start = len(MAGIC) + 12
    length = int.from_bytes(whole[len(MAGIC) : len(MAGIC) + 4], "little")
    assert json.loads(whole[start : start + length]) == {
        "kind": "part",
        "facts": {"name": "x"},
        "arrays": [["<i8", [3]], ["<f2", [2, 2]]],
    }
