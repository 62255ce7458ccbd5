"""From a sentence-transformers model to one small ONNX file. Run as a process of its own by `cache/model.py`.

The only file that needs torch without serving from it; as a child process it gives torch's gigabyte back when it ends.
The graph takes token ids of one text and gives its unit vector, so pooling and normalising cost no Python.

Quantised plainly (8-bit weights and activations, one scale an activation tensor) this model family loses a lot: a few
channels carry values 20 times the median and use up the scale. So each linear layer's input is first divided, channel
by channel, by what its weights are multiplied with (SmoothQuant, arXiv 2211.10438): the same function, even ranges.
docs/decisions.md has the figures. What comes out is judged against the original on sentences not used for it, and the
first precision that is near enough is kept.
"""

from __future__ import annotations

import argparse
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
from semcache.errors import StartError

ALPHA = 0.8  # share of the range moved into the weights; 0.7 and 0.9 lose as much again, 0.5 more than doing nothing
NEAR_ENOUGH = 0.993  # mean cosine to the original; below it, thresholds mean something else than they did
FAITHFUL = 0.9999  # the unquantised graph is the original up to rounding, or it is not this model
PRECISIONS: dict[str, dict[str, bool]] = {
    "int8": {"per_channel": True},
    "int7": {"per_channel": True, "reduce_range": True},  # processors without VNNI add 8-bit products with saturation
}

CALIBRATION = (
    "How do I reset my password?",
    "where is my parcel",
    "Can I return shoes that I have worn once?",
    "What is the difference between a savings account and a fixed deposit?",
    "My invoice from March shows 49.90 EUR but I was charged 59.90 EUR, why?",
    "cancel my subscription please",
    "Do you deliver to Norway, and how much does it cost for a parcel of 3 kg?",
    "How can I change the name on a booking for the train at 7:45 tomorrow?",
    "the app crashes when i open the camera on android 14",
    "Is it safe to take the tablets twice a day after a meal?",
    "Write a polite reply to a customer who received the wrong colour.",
    "What time does the museum open on Sundays?",
    "Explain how a hash table resolves collisions.",
    "How many calories are in a bowl of lentil soup?",
    "Translate 'see you next week' into Portuguese.",
    "Why did the central bank raise interest rates again?",
    "What's the capital of Mongolia?",
    "def add(a, b): return a + b  # why does this fail for strings and numbers?",
    "ORDER 88-1203-X: STILL NOT SHIPPED!!!",
    "hello",
    "thanks, that worked",
    "Which plants survive in a dark bathroom?",
    "I lost my card abroad and need it blocked now. Will I get cash somewhere until a new one comes?",
    "How long must a contract be kept by a company with fewer than ten employees?",
    "Give me three ideas for a birthday dinner without gluten or nuts.",
    "Who wrote the opera about a barber?",
    "How do I merge two branches in git without losing the history of either?",
    "What is the boiling point of water at 3,000 metres?",
    "Please summarise the following: the committee met on Tuesday, agreed on the budget for the coming year, and put "
    "off the decision about the new building until the architect has answered the questions about heating and noise.",
    "Can my landlord keep the deposit because of a small scratch in the floor?",
    "set an alarm for half past six",
    "Where can I see how much data I have left this month?",
)
JUDGING = (
    "I forgot my login, how can I get back in?",
    "What does delivery to Sweden cost?",
    "Is there a fee for paying in another currency?",
    "Could you tell me when the swimming pool closes on public holidays?",
    "How can I get my money back for a ticket I did not use?",
    "turn off the lights in the kitchen",
    "Why is my internet slow in the evening, although the speed test in the morning showed 250 Mbit per second?",
    "What is photosynthesis?",
    "best way to remove red wine from a carpet",
    "How old do you have to be to rent a car in Spain?",
    "My order arrived with one chair missing and a broken table leg.",
    "Sort a list of dictionaries by a key in Python",
    "Which vaccines do I need for a trip to Kenya in January?",
    "The heating shows error E19 and restarts every ten minutes; what can I check before I call somebody?",
    "change my address",
    "Is a tomato a fruit or a vegetable?",
)
PROBED = 4  # of JUDGING: kept with their original vectors, compared at every start


class Smooth(nn.Module):
    """A linear layer whose input is evened out: (x / s) @ (s * W) = x @ W."""

    def __init__(self, linear: nn.Linear, scale: torch.Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.inverse = nn.Parameter(1 / scale, requires_grad=False)
        linear.weight.data *= scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x * self.inverse)


class Graph(nn.Module):
    """The whole model for texts without padding: token ids (n, t) -> unit vectors (n, d)."""

    def __init__(self, model: Any, token_types: bool) -> None:
        super().__init__()
        self.model = model
        self.token_types = token_types

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        features = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        if self.token_types:
            features["token_type_ids"] = torch.zeros_like(input_ids)
        vectors = self.model(features)["sentence_embedding"]
        return nn.functional.normalize(vectors, dim=-1)


def export(source: Path, target: Path, name: str, weights: str, precision: str) -> Manifest:
    """Fill the folder `target`. `precision`: "auto", "fp32" or one of PRECISIONS. Raises StartError."""
    from sentence_transformers import SentenceTransformer  # after the banner: importing takes seconds

    _say(0.10, "loading the original")
    # The plain attention is what the exporter and the quantiser understand; the fused kinds compute the same.
    model = SentenceTransformer(str(source), device="cpu", model_kwargs={"attn_implementation": "eager"}).eval()
    prompt = model.prompts.get(model.default_prompt_name or "", "")
    tokenizer = getattr(model.tokenizer, "backend_tokenizer", None)
    if tokenizer is None or not model.max_seq_length:
        raise StartError(f"{name}: has no fast tokenizer or no length limit; use embedder.engine: torch for it")
    tokenizer.no_truncation()  # a cut text must be seen to be too long, never embedded
    tokenizer.no_padding()
    (target / TOKENIZER).write_text(tokenizer.to_str(), encoding="utf-8")

    tokens = [torch.tensor([tokenizer.encode(prompt + text).ids]) for text in CALIBRATION]
    judging = [tokenizer.encode(prompt + text).ids for text in JUDGING]
    with torch.no_grad():
        original = model.encode(list(JUDGING), normalize_embeddings=True, convert_to_numpy=True).astype(np.float32)
        features = model.preprocess([JUDGING[0]]) if hasattr(model, "preprocess") else model.tokenize([JUDGING[0]])
        graph = Graph(model, token_types="token_type_ids" in features)
        if precision != "fp32":
            _say(0.35, "evening out the ranges of its layers")
            smooth(graph, tokens)
        _say(0.45, "writing the graph")
        _write(graph, tokens[0], target / "fp32.onnx")
    if _cosine(target / "fp32.onnx", judging, original) < FAITHFUL:
        raise StartError(f"{name}: the exported graph computes something else; use embedder.engine: torch for it")

    kept, cosine = _quantise(target, judging, original, precision)
    np.save(target / PROBES, original[:PROBED])
    files = {file: sha256_of(target / file) for file in (MODEL, TOKENIZER, PROBES)}
    manifest = Manifest(
        name=name,
        weights=weights,
        precision=kept,
        dimensions=original.shape[1],
        window=int(model.max_seq_length),
        prompt=prompt,
        unknown_token=model.tokenizer.unk_token_id,
        cosine=cosine,
        probes=JUDGING[:PROBED],
        files=files,
    )
    (target / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    _say(1.0, f"{kept}, mean cosine {cosine:.4f} to the original")
    return manifest


def smooth(graph: nn.Module, tokens: Sequence[torch.Tensor]) -> None:
    """Move the uneven ranges of each linear layer's input into its weights, by what the calibration texts show."""
    layers = {name: module for name, module in graph.named_modules() if isinstance(module, nn.Linear)}
    peaks = {name: torch.zeros(layer.in_features) for name, layer in layers.items()}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            peaks[name] = torch.maximum(peaks[name], inputs[0].abs().flatten(0, -2).amax(0))

        return hook

    watching = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    for ids in tokens:
        graph(ids)
    for hook in watching:
        hook.remove()
    for name, layer in layers.items():
        if not peaks[name].any():
            continue  # not on the way from tokens to vector
        reach = layer.weight.data.abs().amax(0).clamp(min=1e-5)  # (in,)
        scale = (peaks[name].clamp(min=1e-5) ** ALPHA / reach ** (1 - ALPHA)).clamp(min=1e-3)
        parent, _, own = name.rpartition(".")
        setattr(graph.get_submodule(parent), own, Smooth(layer, scale / scale.mean()))


def _write(graph: nn.Module, example: torch.Tensor, path: Path) -> None:
    torch.onnx.export(
        graph.eval(),
        (example,),
        str(path),
        input_names=["input_ids"],
        output_names=["embedding"],
        dynamic_axes={"input_ids": {0: "texts", 1: "tokens"}, "embedding": {0: "texts"}},
        opset_version=17,
        dynamo=False,  # the newer exporter gives the same graph here and needs one more package
    )


def _quantise(target: Path, judging: list[list[int]], original: np.ndarray, precision: str) -> tuple[str, float]:
    """Leave MODEL in `target`: in the first precision that is near enough, else as it is."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    candidates = PRECISIONS if precision == "auto" else {k: v for k, v in PRECISIONS.items() if k == precision}
    for number, (kind, options) in enumerate(candidates.items()):
        _say(0.60 + 0.15 * number, f"quantising to {kind}")
        quantize_dynamic(target / "fp32.onnx", target / MODEL, weight_type=QuantType.QInt8, **options)
        cosine = _cosine(target / MODEL, judging, original)
        if cosine >= NEAR_ENOUGH:
            (target / "fp32.onnx").unlink()
            return kind, cosine
        _say(0.70 + 0.15 * number, f"{kind} is too far from the original (mean cosine {cosine:.4f})")
    (target / "fp32.onnx").replace(target / MODEL)
    return "fp32", _cosine(target / MODEL, judging, original)


def _cosine(path: Path, texts: list[list[int]], original: np.ndarray) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    vectors = [session.run(None, {"input_ids": np.array([ids], dtype=np.int64)})[0][0] for ids in texts]
    return float(np.mean(np.sum(np.stack(vectors) * original, axis=1)))


def _say(share: float, step: str) -> None:
    print(f"{share:.2f} {step}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m semcache.cache.model_export", description=__doc__)
    parser.add_argument("source", type=Path, help="folder of a sentence-transformers model")
    parser.add_argument("target", type=Path, help="empty folder")
    parser.add_argument("--name", required=True)
    parser.add_argument("--weights", required=True, help="digest, for the manifest")
    parser.add_argument("--precision", choices=["auto", "fp32", *PRECISIONS], default="auto")
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
