"""A file of arrays that proves itself: nothing of it is handed out before its digest was found right.

A file is a chain of blocks. Each block's digest covers the one before it, so a block that was changed, cut off,
swapped, repeated or taken from another file breaks the chain where it stands, and nothing after the break is handed
out. Only the last block says that the file is whole. What the blocks mean is their user's business: see snapshot.py.
No pickle and no FAISS format: plain arrays of a few types, so a reader never runs anything and never asks for more
memory than the file has bytes.

A file appears under its name by rename, after its bytes are on the disk: a crash leaves the old file or none.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

MAGIC = b"semcache-index-1"  # a layout that old readers cannot read gets another number here
_FRAME = struct.Struct("<IQ")  # bytes of description (JSON), bytes of arrays
_DIGEST_BYTES = 32
_MAX_DESCRIPTION_BYTES = 1 << 20
_DTYPES = frozenset({"<i8", "<i4", "<f4", "<f2", "|u1"})
_END = "end"


class Damaged(Exception):
    """The file is not what was written. Nothing of it may be used, blocks read earlier included."""


@dataclass(frozen=True, slots=True)
class Block:
    kind: str
    facts: Mapping[str, Any]  # small JSON values
    arrays: tuple[Array, ...]  # read-only


class BlockWriter:
    """Writes `path` whole or not at all.

    `with BlockWriter(path) as out: out.write(...); out.commit()`. Leaving without `commit` leaves no trace. One
    writer per path at a time. Raises OSError, a full disk for instance.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = partial_path(path)
        self._digest = MAGIC
        self._partial.unlink(missing_ok=True)  # from a crash
        # Vectors give their questions away, so only the owner may read them.
        descriptor = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = os.fdopen(descriptor, "wb", buffering=1 << 20)
        self._file.write(MAGIC)
        self.size_bytes = len(MAGIC)

    def write(self, kind: str, facts: Mapping[str, Any], *arrays: Array) -> None:
        """Append a block. The arrays must not change during the call."""
        arrays = tuple(np.ascontiguousarray(array) for array in arrays)
        layout = [(array.dtype.str, array.shape) for array in arrays]
        description = json.dumps({"kind": kind, "facts": facts, "arrays": layout}, separators=(",", ":")).encode()
        frame = _FRAME.pack(len(description), sum(array.nbytes for array in arrays))
        pieces: list[Any] = [frame, description, *(array.reshape(-1).view(np.uint8).data for array in arrays)]
        self._digest = _chain(self._digest, pieces)
        for piece in (*pieces, self._digest):
            self._file.write(piece)
            self.size_bytes += len(piece)

    def commit(self) -> None:
        """Put the file under its name, durably."""
        self.write(_END, {})
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._partial, self._path)
        sync_folder(self._path.parent)

    def __enter__(self) -> BlockWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._file.closed:
            with suppress(OSError):  # what is still buffered may not fit on the disk; it is thrown away in any case
                self._file.close()
            self._partial.unlink(missing_ok=True)


def read_blocks(path: Path) -> Iterator[Block]:
    """Yield each block after its digest was found right; the end of the iteration says that the file is whole.

    Raises Damaged, possibly after some blocks, and OSError (FileNotFoundError when there is no file).
    """
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size - len(MAGIC)
        if file.read(len(MAGIC)) != MAGIC:
            raise Damaged("not an index snapshot of this version")
        digest = MAGIC
        while True:
            frame = _read(file, _FRAME.size, left)
            left -= _FRAME.size
            description_bytes, array_bytes = _FRAME.unpack(frame)
            # Lengths are not proven yet: nothing is allocated for more than the file can hold.
            if description_bytes > _MAX_DESCRIPTION_BYTES or description_bytes + array_bytes + _DIGEST_BYTES > left:
                raise Damaged("a block is longer than the file")
            description = _read(file, description_bytes, left)
            payload = _read(file, array_bytes, left)
            digest = _chain(digest, [frame, description, payload])
            if _read(file, _DIGEST_BYTES, left) != digest:
                raise Damaged("a digest does not fit")
            left -= description_bytes + array_bytes + _DIGEST_BYTES
            block = _decode(description, payload)
            if block.kind != _END:
                yield block
            elif left:
                raise Damaged("bytes after the end")
            else:
                return


def partial_path(path: Path) -> Path:
    """Where a file stands while it is written."""
    return path.with_name(path.name + ".partial")


def sync_folder(folder: Path) -> None:
    """Make renames and removals in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _chain(before: bytes, pieces: list[Any]) -> bytes:
    state = hashlib.blake2b(before, digest_size=_DIGEST_BYTES)
    for piece in pieces:
        state.update(piece)  # lets other threads run
    return state.digest()


def _read(file: Any, count: int, left: int) -> bytes:
    found: bytes = file.read(count) if count <= left else b""
    if len(found) != count:
        raise Damaged("the file ends early")
    return found


def _decode(description: bytes, payload: bytes) -> Block:
    """Reads what the digest has proven; checked all the same, since an older or newer program may have written it."""
    try:
        whole = json.loads(description)
        arrays, offset = [], 0
        for dtype, shape in whole["arrays"]:
            if dtype not in _DTYPES:
                raise Damaged(f"arrays of type {dtype} are not read")
            count = math.prod(shape)
            arrays.append(np.frombuffer(payload, dtype, count, offset).reshape(shape))
            offset += arrays[-1].nbytes
        return Block(whole["kind"], whole["facts"], tuple(arrays))
    except (ValueError, KeyError, TypeError) as exc:
        raise Damaged("a block cannot be read") from exc
