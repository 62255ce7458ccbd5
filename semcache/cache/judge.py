"""VERIFY: the pair judge sees both questions and says how probable it is that the stored answer serves.

A cosine knows how near two questions are, not where they differ. The judge adds what the guards say, which to it is no
veto but one sign among others, and, where its weights have tables of words, how these meet (judge_features.py). Weights
are one file of arrays, made by `semcache tune train` and read without torch; judge.md is about those that come with
semcache, which look at the cosine and the guards alone. A file holds one network for questions as such, and may hold
another that looks at their vectors too: that one is asked for vectors of the embedder it was trained with only.

The first is monotone: more that two questions lack of each other never makes an answer more probable. So it cannot
learn from one domain that a changed word is welcome, and be wrong about it in all others.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from semcache.cache.guards import GUARDS
from semcache.cache.judge_features import NAMES, Reader, Words, stretch
from semcache.errors import StartError
from semcache.types import Vector

Floats = npt.NDArray[np.float32]
Arrays = Mapping[str, npt.NDArray[Any]]

FEATURES = (*NAMES, *GUARDS)
COSINES = 2  # features, the first ones, that need no words
FORMAT = 1  # of the file; features of another meaning are another format
FARTHEST = 4.0  # standard deviations: a feature further out than in any training pair says no more than this
_SURE = 15.0  # log-odds: past it a float32 probability is 0 or 1, and log-odds cannot be had back


class PairJudge:
    """Thread-safe: a call changes nothing but what is remembered of questions."""

    def __init__(self, arrays: Arrays, embedder: str = "") -> None:
        """`arrays`: as `load` reads them. `embedder`: the stamp of the embedder whose vectors will be judged."""
        about = json.loads(bytes(arrays["about"]))
        if about["format"] != FORMAT or about["features"] != list(FEATURES):
            raise ValueError("it was made by another version of semcache")
        self.about: Mapping[str, Any] = about
        self.stamp = _digest(arrays)
        # Without tables of words it was found best to look at none.
        self._reader = Reader(read_words(arrays)) if "words" in arrays else None
        self._texts = _Network(arrays, "texts", len(FEATURES))
        sees_vectors = bool(embedder) and about.get("embedder") == embedder and "vectors_mean" in arrays
        self._vectors = (
            _Network(arrays, "vectors", len(FEATURES) + int(about["dimensions"]) * 2) if sees_vectors else None
        )

    @classmethod
    def load(cls, path: Path | None = None, embedder: str = "") -> PairJudge:
        """From a file of `semcache tune train`; None: the weights that come with semcache. Raises StartError."""
        shown = "the pair judge's own weights" if path is None else str(path)
        try:
            with resources.as_file(resources.files("semcache.cache").joinpath("judge.npz")) as shipped:
                with open(path or shipped, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                    return cls(dict(arrays), embedder)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as exc:
            why = f"lacks {exc}" if isinstance(exc, KeyError) else " ".join(str(exc).split())[:200]
            raise StartError(f"match.judge_weights: {shown}: cannot be used: {why}") from exc

    def judge(
        self, asked: str, vector: Vector, stored: Sequence[str], vectors: Floats, *, guards_passed: bool = False
    ) -> Floats:
        """Return for each stored question the probability, shape (n,), that its answer serves. `vectors`: (n, d).

        `guards_passed`: all of GUARDS were asked and let every pair pass, so asking them again is time lost.
        """
        if not stored:
            return np.zeros(0, np.float32)
        rows = read_features(self._reader, asked, stored, vectors @ vector, guards_passed=guards_passed)
        if self._vectors is None:
            return self._texts.judge(rows)
        return self._vectors.judge(np.hstack([rows, compare_vectors(vector, vectors)]))

    @property
    def sees_vectors(self) -> bool:
        return self._vectors is not None


def read_features(
    reader: Reader | None, asked: str, stored: Sequence[str], cosines: Floats, *, guards_passed: bool = False
) -> Floats:
    """Return a row for each stored question, shape (n, len(FEATURES)); `n` is at least 1. No reader: no words."""
    rows = np.zeros((len(stored), len(FEATURES)), np.float32)
    if reader is None:
        rows[:, 0], rows[:, 1] = cosines, stretch(cosines)
    else:
        rows[:, : len(NAMES)] = reader.compare(asked, stored, cosines)
    if not guards_passed:
        rows[:, len(NAMES) :] = [[differ(asked, each) for differ, _ in GUARDS.values()] for each in stored]
    return rows


def compare_vectors(one: Floats, other: Floats) -> Floats:
    """What a network that sees vectors gets of two, or of rows of them: shape (n, 2 d)."""
    return np.hstack([np.abs(one - other), one * other])


class _Network:
    """Features, scaled, to a probability: a linear part, a hidden layer of which the second half bends the other way
    (so that a monotone network can bend both ways), and a calibration."""

    def __init__(self, arrays: Arrays, name: str, features: int) -> None:
        def read(part: str, *shape: int) -> Floats:
            array = arrays[f"{name}_{part}"].astype(np.float32)
            if array.shape != shape or not np.isfinite(array).all():
                raise ValueError(f"{name}_{part} has shape {array.shape}, not {shape}, or is not finite")
            return array

        hidden = len(arrays[f"{name}_out"])
        self._mean, self._scale = read("mean", features), read("scale", features)
        self._linear = read("linear", features)
        self._hidden, self._shift, self._out = (
            read("hidden", features, hidden),
            read("shift", hidden),
            read("out", hidden),
        )
        self._slope, self._offset = map(float, read("calibration", 2))
        half = hidden // 2
        self._turn = np.where(np.arange(hidden) < half, 1, -1).astype(np.float32)

    def judge(self, rows: Floats) -> Floats:
        scaled = np.clip((rows - self._mean) * self._scale, -FARTHEST, FARTHEST)
        hidden = np.maximum((scaled @ self._hidden + self._shift) * self._turn, 0) * self._turn
        odds = (scaled @ self._linear + hidden @ self._out) * self._slope + self._offset
        return 1 / (1 + np.exp(-np.clip(odds, -_SURE, _SURE)))  # type: ignore[no-any-return]


def read_words(arrays: Arrays) -> Words:
    """The tables of words in a file of weights."""
    known = bytes(arrays["words"]).decode().split("\n")
    weights = arrays["word_weights"].astype(np.float32) / 255
    vectors = arrays["word_vectors"].astype(np.float32)  # of the first words
    if len(weights) != len(known) or len(vectors) > len(known):
        raise ValueError("its tables of words do not fit each other")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.vstack([vectors / np.maximum(lengths, 1e-6), np.zeros((1, vectors.shape[1]), np.float32)])
    places = {word: place for place, word in enumerate(known[: len(vectors) - 1])}
    return Words(dict(zip(known, weights.tolist(), strict=True)), 1.0, places, vectors)


def _digest(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return f"pairs/{digest.hexdigest()[:16]}"
