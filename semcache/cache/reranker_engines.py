"""Engines of the reranker: two questions in, a probability out.

A cross-encoder is prepared as an embedder is (cache/model.py): found, checked, made once into a small ONNX file by
cache/reranker_export.py, and verified at each start. Its manifest says one dimension, and its probes are pairs, one
text after the other.

Text is never cut to fit: what an engine cannot read whole has no probability above 0.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from semcache.cache import model
from semcache.cache.engines import CHARS_PER_TOKEN, cores, unreadable
from semcache.cache.model import Export, Manifest, PreparedModel, Progress
from semcache.errors import StartError

TORCH = "torch"  # the precision of a model that could not be made into a faithful ONNX file
ODD_PROCESSOR = 0.1  # mean distance of the probes' probabilities from the original's; a wrong kernel gives noise


class PairEngine(Protocol):
    """Made from a prepared model; `open` makes it ready to score."""

    stamp: str
    limit_chars: int  # pairs with more characters than this, both texts together, cannot be read
    threads: int

    def open(self) -> None:
        """Blocks. Raises StartError."""

    def score(self, asked: str, stored: str) -> float:
        """Called on several threads; blocks. The probability that one answer serves both. May raise anything."""


def build(name: str) -> PairEngine:
    """Raises StartError when the model was not prepared."""
    prepared = load(name)
    if prepared.manifest.precision == TORCH:
        return TorchPairs(prepared)
    graph, tokenizer = prepared.folder / model.MODEL, prepared.folder / model.TOKENIZER
    return OnnxPairs(prepared.manifest, np.load(prepared.folder / model.PROBES, allow_pickle=False), graph, tokenizer)


def folder() -> Path:
    """Where prepared cross-encoders are kept: beside the embedders."""
    return model.cache_folder().with_name("rerankers")


def prepare(
    name: str, place: Path | None = None, progress: Progress = lambda _: None, export: Export | None = None
) -> PreparedModel:
    """Return the prepared model, making it first where needed. Raises StartError."""
    return model.prepare(name, place or folder(), progress, export or export_in_child)


def load(name: str, place: Path | None = None) -> PreparedModel:
    """Return a model that was prepared before, every file verified. Raises StartError."""
    try:
        return model.load(name, place or folder())
    except StartError as exc:
        remedy = f"run: semcache model prepare --reranker {name}"
        raise StartError(f"match.reranker: {exc.message.partition('; run:')[0]}; {remedy}") from exc


def export_in_child(name: str, source: Path, weights: str, target: Path, progress: Progress) -> None:
    """Run cache/reranker_export.py, so that torch's memory is gone afterwards. Raises StartError with its last line."""
    model.run_export("semcache.cache.reranker_export", name, source, weights, target, progress)


class OnnxPairs:
    """A prepared cross-encoder in onnxruntime: 8-bit weights, one thread a call, no torch.

    Pairs are scored one by one: a batch shares an activation scale, and a score must not depend on its neighbours.
    """

    def __init__(self, manifest: Manifest, probes: np.ndarray, graph: Path, tokenizer: Path) -> None:
        """`probes`: the original's probabilities for the pairs in the manifest."""
        self._manifest = manifest
        self._probes = probes.reshape(-1)
        self._graph = graph
        self._tokenizer_file = tokenizer
        self.stamp = stamp_of(manifest)
        self.limit_chars = manifest.window * CHARS_PER_TOKEN
        self.threads = cores()

    def open(self) -> None:
        import onnxruntime  # only where a reranker is named
        from tokenizers import Tokenizer

        onnxruntime.set_default_logger_severity(3)
        onnxruntime.disable_telemetry_events()  # some builds can report to their vendor
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # a call computes on the thread that makes it; see OnnxEngine
        options.inter_op_num_threads = 1
        try:
            self._tokenizer = Tokenizer.from_file(str(self._tokenizer_file))
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            self._session = onnxruntime.InferenceSession(str(self._graph), options, providers=["CPUExecutionProvider"])
            texts = self._manifest.probes
            scores = [self.score(asked, stored) for asked, stored in zip(texts[::2], texts[1::2], strict=True)]
            distance = float(np.mean(np.abs(np.array(scores) - self._probes)))
        except Exception as exc:  # two native libraries, each with errors of its own
            raise StartError(f"{self._graph}: cannot be loaded: {' '.join(str(exc).split())[:200]}") from exc
        if not distance <= ODD_PROCESSOR:
            raise StartError(
                f"{self._graph}: gives other scores here than where it was made, so either this processor computes "
                f"otherwise or {self._tokenizer_file} is not its tokenizer"
            )

    def score(self, asked: str, stored: str) -> float:
        encoded = self._tokenizer.encode(asked, stored)
        if unreadable(encoded.ids, self._manifest.window, self._manifest.unknown_token):
            return 0.0
        tokens = np.array([encoded.ids, encoded.type_ids], dtype=np.int64)
        (logit,) = self._session.run(None, {"tokens": tokens})
        return sigmoid(float(logit[0, 0]))


class TorchPairs:
    """Any sentence-transformers CrossEncoder whose graph cannot be written, on a GPU if there is one."""

    threads = 1

    def __init__(self, prepared: PreparedModel) -> None:
        self._name = prepared.manifest.name
        self._manifest = prepared.manifest
        self.stamp = stamp_of(prepared.manifest)
        self.limit_chars = prepared.manifest.window * CHARS_PER_TOKEN

    def open(self) -> None:
        try:
            import torch
            from transformers import AutoModelForSequenceClassification, AutoTokenizer

            import semcache.cache.pair_network  # noqa: F401  # makes our own kind known to transformers
        except ImportError as exc:
            raise StartError(f"match.reranker: {self._name} needs torch; pip install semcache-proxy") from exc
        source = str(model.locate(self._name))
        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(source)
            network: Any = AutoModelForSequenceClassification.from_pretrained(source)
            self._network = network.to(self._device).eval()
            self.score(*self._manifest.probes[:2])
        except Exception as exc:  # any of three libraries
            raise StartError(f"{source}: cannot be loaded: {' '.join(str(exc).split())[:200]}") from exc

    def score(self, asked: str, stored: str) -> float:
        tokens = self._tokenizer(asked, stored, truncation=False, return_tensors="pt", verbose=False)
        if unreadable(tokens["input_ids"][0].tolist(), self._manifest.window, self._manifest.unknown_token):
            return 0.0
        with self._torch.inference_mode():
            logits = self._network(**tokens.to(self._device)).logits
        return sigmoid(float(logits[0, 0]))


def stamp_of(manifest: Manifest) -> str:
    return f"{manifest.name}/{manifest.weights[:16]}/{manifest.precision}.{manifest.recipe}"


def sigmoid(logit: float) -> float:
    """Without overflow, and NaN where the logit is: the caller refuses what is no probability."""
    return 0.5 * (1.0 + math.tanh(0.5 * logit))
