"""What the pair judge learns from: labelled pairs, and pairs made of their texts, as rows of features."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from semcache.cache import model
from semcache.cache.judge import FEATURES, compare_vectors, read_features, read_words
from semcache.cache.judge_features import Reader
from semcache.cache.words import MARKS, stem
from semcache.cache.words import read_words as words_of
from semcache.errors import ConfigError
from semcache.tuning.labelled import NEIGHBOURS, Drawing, Embed, LabelledPairs, read_pairs
from semcache.tuning.variants import make_variants

Floats = npt.NDArray[np.float32]
Report = Callable[[str], None]

DRAWING = Drawing(neighbours=4, same=3, different=4, across=2)
NEAR = 0.65  # least cosine of a pair to learn from; a cache meets nearer ones
MET = 0.70  # and of one to be measured by
LEAST_PAIRS = 200
MOST_PAIRS = 48_000  # of all sources, an equal share of each: with eight, twice as many changed nothing
FOLDS = 4  # where there are too few sources to leave one out
GENERATED = "generated"
VARIED = 700  # texts of each source that variants are made of

MOST_WORDS = 12_000  # with a vector
DIMENSIONS = 32  # of it
RAREST = 2e-4  # the share of texts from which on a word has full weight


class Example(NamedTuple):
    """One source, ready to learn from."""

    name: str
    rows: Floats  # (pairs, features)
    same: npt.NDArray[np.bool_]
    parts: npt.NDArray[np.integer[Any]]  # which of FOLDS parts it belongs to; of GENERATED: which source it is made of
    cosine: Floats
    met: npt.NDArray[np.bool_]  # what a cache would meet: it is measured and calibrated by these

    def where(self, mask: npt.NDArray[np.bool_]) -> Example:
        return Example(self.name, self.rows[mask], self.same[mask], self.parts[mask], self.cosine[mask], self.met[mask])


class Examples(NamedTuple):
    all: list[Example]  # the sources in their order, then perhaps GENERATED
    tables: dict[str, npt.NDArray[Any]]  # of words, for the file
    dimensions: int  # of a vector

    def without(self, name: str) -> list[Example]:
        """All but a source and what was made of its texts."""
        number = [example.name for example in self.all].index(name)
        return [
            example.where(example.parts != number) if example.name == GENERATED else example
            for example in self.all
            if example.name != name
        ]


def make_examples(
    sources: Sequence[LabelledPairs], embed: Embed, *, seed: int, generated: bool, vectors: bool, report: Report
) -> Examples:
    """`vectors`: the rows go on with what a network that sees vectors is shown. Raises ConfigError: too few pairs."""
    sources = [source.near(NEAR) for source in sources]
    sources = [
        _sample(source, MOST_PAIRS // len(sources), seed) for source in sources if 0 < source.same.sum() < len(source)
    ]
    if sum(map(len, sources)) < LEAST_PAIRS:
        raise ConfigError(f"at least {LEAST_PAIRS} pairs with a cosine of {NEAR} or more, of both kinds, are needed")
    report("reading words")
    tables = make_words(sources, embed)
    reader = Reader(read_words(tables))
    examples = []
    for source in sources:
        report(f"comparing {len(source):,} pairs of {source.name}")
        examples.append(_example(source, reader, _parts(source), vectors=vectors))
    if generated:
        report("making variants")
        made, origins = generate(sources, embed, seed)
        examples.append(_example(made, reader, origins, vectors=vectors))
    return Examples(examples, tables, sources[0].vectors.shape[1])


def _sample(source: LabelledPairs, most: int, seed: int) -> LabelledPairs:
    """About `most`, in their order: all of an asked text or none."""
    share = min(1.0, most / len(source))
    return source.chosen(np.random.default_rng(seed).random(len(source.texts))[source.asked] < share)


def generate(
    sources: Sequence[LabelledPairs], embed: Embed, seed: int
) -> tuple[LabelledPairs, npt.NDArray[np.integer[Any]]]:
    """Pairs of a text and a variant of it, and the number of the source that each is made of."""
    draw = np.random.default_rng(seed)
    rows, origins = [], []
    for number, source in enumerate(sources):
        texts = [source.texts[place] for place in draw.permutation(len(source.texts))[:VARIED]]
        for variant in make_variants(texts, seed + number):
            rows.append({"a": variant.text, "b": variant.copy, "duplicate": int(variant.same)})
            origins.append(number)
    return read_pairs(GENERATED, rows, embed), np.array(origins)


def _example(source: LabelledPairs, reader: Reader, parts: npt.NDArray[np.integer[Any]], *, vectors: bool) -> Example:
    rows = np.empty((len(source), len(FEATURES)), np.float32)
    for places in _by_asked(source):
        stored = [source.texts[place] for place in source.stored[places]]
        rows[places] = read_features(reader, source.texts[source.asked[places[0]]], stored, source.cosine[places])
    if vectors:
        rows = np.hstack([rows, compare_vectors(source.vectors[source.asked], source.vectors[source.stored])])
    return Example(source.name, rows, source.same, parts, source.cosine, _is_met(source))


def _parts(source: LabelledPairs) -> npt.NDArray[np.integer[Any]]:
    """FOLDS parts of which none asks what another one learns from, as far as the pairs allow.

    A file of pairs falls into many groups of texts without a pair between them; a stream is one, and is cut by time.
    """
    group = list(range(len(source.texts)))

    def find(text: int) -> int:
        while group[text] != text:
            group[text] = text = group[group[text]]
        return text

    for asked, stored in zip(source.asked.tolist(), source.stored.tolist(), strict=True):
        group[find(asked)] = find(stored)
    groups = np.array([find(text) for text in source.asked.tolist()])
    _, numbers, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if sizes.max(initial=0) * FOLDS > len(groups):
        return source.asked * FOLDS // len(source.texts)
    return numbers % FOLDS


def _is_met(source: LabelledPairs) -> npt.NDArray[np.bool_]:
    """Of each asked text the nearest few, if they are near: not what was drawn besides to learn from."""
    order = np.lexsort((-source.cosine, source.asked))
    starts = np.flatnonzero(np.diff(source.asked[order], prepend=-1))
    rank = np.empty(len(order), np.intp)
    rank[order] = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return (rank < NEIGHBOURS) & (source.cosine >= MET)


def _by_asked(source: LabelledPairs) -> Iterator[npt.NDArray[np.intp]]:
    """The places of the pairs, those of one asked text together."""
    order = np.argsort(source.asked, kind="stable")
    if len(order):
        yield from np.split(order, np.flatnonzero(np.diff(source.asked[order])) + 1)


# Words


def make_words(sources: Sequence[LabelledPairs], embed: Embed) -> dict[str, npt.NDArray[Any]]:
    """The tables of words: how much each tells, and short vectors of the common ones.

    A word tells the more the fewer texts have it, each source counting the same. Its short vector is the embedder's of
    the word alone, turned to where common words differ most.
    """
    shares: defaultdict[str, float] = defaultdict(float)
    for source in sources:
        seen = Counter(found for text in source.texts for found in {word.stem for word in words_of(text)} - _MARKS)
        for word, times in seen.items():
            shares[word] += times / len(source.texts) / len(sources)
    common = _common_words()
    forms = {stem(word): word for word in reversed(common)}
    for word in sorted(shares, key=lambda word: -shares[word]):
        if word.isalpha() and len(word) > 1:
            forms.setdefault(word, word)
    vectored = list(dict.fromkeys([*map(stem, common), *forms]))[:MOST_WORDS]
    known = list(dict.fromkeys([*vectored, *shares]))
    vectors = embed("words", [forms[word] for word in vectored])
    vectors = vectors - vectors.mean(axis=0)
    _, _, axes = np.linalg.svd(vectors[: MOST_WORDS // 2], full_matrices=False)
    short = vectors @ axes[:DIMENSIONS].T
    short /= np.maximum(np.linalg.norm(short, axis=1, keepdims=True), 1e-6)
    weights = [np.log(max(shares.get(word, 0.0), RAREST)) / np.log(RAREST) for word in known]
    return {
        "words": np.frombuffer("\n".join(known).encode(), np.uint8),
        "word_weights": np.clip(np.round(np.array(weights) * 255), 0, 255).astype(np.uint8),
        "word_vectors": np.round(short * 127).astype(np.int8),
    }


_MARKS = {mark.stem for mark in MARKS}


def _common_words() -> list[str]:
    """English words, the most frequent first: a word-piece vocabulary is in that order."""
    folder = model.load(model.DEFAULT).folder
    vocabulary: dict[str, int] = json.loads((folder / model.TOKENIZER).read_bytes())["model"]["vocab"]
    ranked = sorted(vocabulary, key=lambda word: vocabulary[word])
    return [word for word in ranked if word.isascii() and word.isalpha() and len(word) > 1]
