"""Random parts of ids, as the vendors have them: from the kernel, never used before, in whatever process."""

from __future__ import annotations

import os
from collections import deque

_BYTES = 12
_READ_AT_ONCE = 256  # asking the kernel for each was a twentieth of an exact hit

_ready: deque[str] = deque()
os.register_at_fork(after_in_child=_ready.clear)  # workers are forked, and must not hand out the same


def random_hex() -> str:
    """24 hexadecimal digits. Safe on any thread."""
    while True:
        try:
            return _ready.popleft()
        except IndexError:
            digits = os.urandom(_BYTES * _READ_AT_ONCE).hex()
            _ready.extend(digits[at : at + 2 * _BYTES] for at in range(0, len(digits), 2 * _BYTES))
