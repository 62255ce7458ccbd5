"""From a cross-encoder to one small ONNX file. Run as a process of its own by `cache/reranker_engines.py`.

Any transformers model "for sequence classification" with one logit, which is what a sentence-transformers CrossEncoder
is. The graph takes the tokens of one pair, ids above token types, shape (2, t), and gives its logit. It is quantised as
the embedder is (cache/model_export.py), and judged against the original on pairs not used for it. A model whose graph
cannot be written, or computes something else, is served by torch: its manifest says so.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from semcache.cache.model import MANIFEST, MODEL, PROBES, TOKENIZER, Manifest, sha256_of
from semcache.cache.model_export import CALIBRATION, PRECISIONS, smooth
from semcache.cache.reranker_engines import TORCH, sigmoid
from semcache.errors import StartError

NEAR_ENOUGH = 0.03  # mean distance of the probabilities; past it, match.reranker_min means something else
FAITHFUL = 0.001  # the unquantised graph is the original up to rounding
JUDGING = (
    ("I forgot my login, how can I get back in?", "How do I get in again without my password?"),
    ("What does delivery to Sweden cost?", "How much is shipping to Sweden?"),
    ("What does delivery to Sweden cost?", "What does delivery to Finland cost?"),
    ("Is there a fee for paying in another currency?", "Is there a fee for paying late?"),
    ("Could you tell me when the pool closes on public holidays?", "when does the pool close on holidays"),
    ("change my address", "I have moved, please update where I live"),
    ("turn the heating on at six", "turn the heating off at six"),
    ("How old must I be to rent a car in Spain?", "What is the least age for renting a car in Spain?"),
    ("Is a tomato a fruit or a vegetable?", "Why is the sky blue?"),
    ("My order arrived with one chair missing.", "My order has not arrived."),
    ("Sort a list of dictionaries by a key in Python", "python: order list of dicts by key"),
    ("Do you ship from Oslo to Bergen?", "Do you ship from Bergen to Oslo?"),
)


class Graph(nn.Module):
    def __init__(self, network: Any, token_types: bool) -> None:
        super().__init__()
        self.network = network
        self.token_types = token_types

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        ids, types = tokens[0:1], tokens[1:2]
        features = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if self.token_types:
            features["token_type_ids"] = types
        logits: torch.Tensor = self.network(**features).logits
        return logits


def export(source: Path, target: Path, name: str, weights: str, precision: str = "auto") -> Manifest:
    """Fill the folder `target`. `precision`: "auto", "fp32", "torch" or one of PRECISIONS. Raises StartError."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer  # importing takes seconds

    import semcache.cache.pair_network  # noqa: F401  # makes our own kind known to transformers

    _say(0.10, "loading the original")
    config = _read_config(name, source)
    fast: Any = AutoTokenizer.from_pretrained(str(source))
    # The plain attention is what the exporter and the quantiser understand; the fused kinds compute the same.
    network = AutoModelForSequenceClassification.from_pretrained(str(source), attn_implementation="eager").eval()
    tokenizer = getattr(fast, "backend_tokenizer", None)
    if tokenizer is None:
        raise StartError(f"{name}: has no fast tokenizer, so its tokens cannot be made without torch")
    tokenizer.no_truncation()  # a cut text must be seen to be too long, never scored
    tokenizer.no_padding()
    (target / TOKENIZER).write_text(tokenizer.to_str(), encoding="utf-8")

    def tokens_of(asked: str, stored: str) -> torch.Tensor:
        encoded = tokenizer.encode(asked, stored)
        return torch.tensor([encoded.ids, encoded.type_ids])

    window = min(int(fast.model_max_length), int(config.get("max_position_embeddings", 512)))
    judging = [tokens_of(*pair) for pair in JUDGING]
    pairs = itertools.chain(itertools.pairwise(CALIBRATION), zip(CALIBRATION, CALIBRATION, strict=True))
    calibration = [tokens for pair in pairs if (tokens := tokens_of(*pair)).shape[1] <= window]
    graph = Graph(network, token_types="token_type_ids" in fast.model_input_names)
    with torch.no_grad():
        original = np.array([sigmoid(float(graph(tokens)[0, 0])) for tokens in judging], np.float32)
        kept, distance = _write(graph, target, calibration, judging, original, precision)
    np.save(target / PROBES, original)
    files = [file for file in (MODEL, TOKENIZER, PROBES) if (target / file).exists()]
    manifest = Manifest(
        name=name,
        weights=weights,
        precision=kept,
        dimensions=1,
        window=window,
        prompt="",
        unknown_token=fast.unk_token_id,
        cosine=1.0 - distance,
        probes=tuple(text for pair in JUDGING for text in pair),
        files={file: sha256_of(target / file) for file in files},
    )
    (target / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    _say(1.0, f"{kept}, probabilities {distance:.3f} from the original's on average")
    return manifest


def _read_config(name: str, source: Path) -> dict[str, Any]:
    """Raises StartError for what is no cross-encoder: loaded all the same, it would get a head of random weights."""
    config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    kinds = config.get("architectures") or ["?"]
    if not kinds[0].endswith("ForSequenceClassification"):
        raise StartError(f"{name}: is a {kinds[0]}, not a cross-encoder (a model for sequence classification)")
    labels = len(config.get("id2label") or (0, 1))
    if labels != 1:
        raise StartError(f"{name}: tells {labels} labels apart; a reranker has one, that one answer serves both")
    return config


def _write(
    graph: Graph,
    target: Path,
    calibration: Sequence[torch.Tensor],
    judging: Sequence[torch.Tensor],
    original: np.ndarray,
    precision: str,
) -> tuple[str, float]:
    """Leave MODEL in `target`, in the first precision that is near enough; none at all when only torch will do."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    plain = target / "fp32.onnx"
    try:
        if precision == TORCH:
            return TORCH, 0.0
        if precision != "fp32":
            _say(0.35, "evening out the ranges of its layers")
            smooth(graph, calibration)
        _say(0.45, "writing the graph")
        torch.onnx.export(
            graph.eval(),
            (judging[0],),
            str(plain),
            input_names=["tokens"],
            output_names=["logit"],
            dynamic_axes={"tokens": {1: "tokens"}},
            opset_version=17,
            dynamo=False,  # see cache/model_export.py
        )
        if (distance := _distance(plain, judging, original)) > FAITHFUL:
            raise ValueError(f"the graph's probabilities are {distance:.3f} from the original's")
    except Exception as exc:  # an exporter for hundreds of kinds of models fails in as many ways
        _say(0.90, f"served by torch, since its graph cannot be written: {' '.join(str(exc).split())[:200]}")
        plain.unlink(missing_ok=True)
        return TORCH, 0.0
    for number, (kind, options) in enumerate(PRECISIONS.items()):
        if precision in ("auto", kind):
            _say(0.60 + 0.15 * number, f"quantising to {kind}")
            quantize_dynamic(plain, target / MODEL, weight_type=QuantType.QInt8, **options)
            distance = _distance(target / MODEL, judging, original)
            if distance <= NEAR_ENOUGH:
                plain.unlink()
                return kind, distance
            _say(0.70 + 0.15 * number, f"{kind} is too far from the original ({distance:.3f})")
    plain.replace(target / MODEL)
    return "fp32", _distance(target / MODEL, judging, original)


def _distance(path: Path, judging: Sequence[torch.Tensor], original: np.ndarray) -> float:
    """Between the probabilities of two models, on average."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    scores = [sigmoid(float(session.run(None, {"tokens": tokens.numpy()})[0][0, 0])) for tokens in judging]
    return float(np.mean(np.abs(np.array(scores) - original)))


def _say(share: float, step: str) -> None:
    print(f"{share:.2f} {step}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m semcache.cache.reranker_export", description=__doc__)
    parser.add_argument("source", type=Path, help="folder of a cross-encoder")
    parser.add_argument("target", type=Path, help="empty folder")
    parser.add_argument("--name", required=True)
    parser.add_argument("--weights", required=True, help="digest, for the manifest")
    parser.add_argument("--precision", choices=["auto", "fp32", TORCH, *PRECISIONS], default="auto")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # torch and transformers warn about themselves, many lines of it
    logging.disable(logging.WARNING)
    try:
        export(args.source, args.target, args.name, args.weights, args.precision)
    except StartError as exc:
        print(exc.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
