"""What the simulated embedding model says: a unit vector that follows from the text alone."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]

DIMENSIONS = 384


def embed(text: str, dimensions: int) -> Vector:
    """The sum of one random direction a word, of length 1: texts that share words are near."""
    words = re.findall(r"\w+", text.lower()) or [""]
    total = np.sum([_direction(word, dimensions) for word in words], axis=0)
    unit: Vector = (total / np.linalg.norm(total)).astype(np.float32)
    return unit


def count_words(text: str) -> int:
    return len(text.split())


@lru_cache(maxsize=4096)
def _direction(word: str, dimensions: int) -> npt.NDArray[np.float64]:
    seed = int.from_bytes(hashlib.blake2b(word.encode(errors="replace"), digest_size=8).digest(), "big")
    return np.random.default_rng(seed).standard_normal(dimensions)
