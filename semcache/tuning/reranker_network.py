"""The training itself: a cross-encoder from the weights of an embedder, on whatever processor there is.

Every weight is trained. Pairs go in as "[CLS] one [SEP] other [SEP]" in either order, since which of two questions was
stored first says nothing about whether they share their answer. Batches hold pairs of like length, so little of them is
padding. A checkpoint is kept now and then, whole or not at all: a training that is stopped leaves a usable model.

Importing this takes seconds, for torch.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from semcache.cache.pair_network import PairForSequenceClassification
from semcache.tuning.labelled import Pair

WARM_UP = 0.06  # share of the training in which the rate rises
LARGEST_STEP = 1.0  # norm of a gradient
PADDED_TO = 8  # lengths of batches are multiples of it: fewer shapes to plan for
SORTED = 64  # batches are made of so many batches' pairs, sorted by length; all of them sorted would be no random order


@dataclass(frozen=True, slots=True)
class Plan:
    """The rate falls with the share of pairs or of minutes that is over, whichever is more, so both ends are smooth."""

    rate: float = 3e-5
    head_rate: float = 20.0  # times the rate, for what is new
    batch: int = 32
    minutes: float = math.inf
    window: int = 96  # tokens of a pair with its three marks; longer pairs are left out
    smoothing: float = 0.02  # labels are noisy, so the network is not asked for 0 and 1 but for this far from them
    weight_decay: float = 0.01
    seed: int = 7
    kept_every: int = 100  # steps between checkpoints


class Tokens(NamedTuple):
    """A pair without its marks."""

    first: list[int]
    second: list[int]
    same: bool

    def __len__(self) -> int:
        return len(self.first) + len(self.second) + 3


def train(source: Path, examples: Sequence[Pair], plan: Plan, target: Path, say: Callable[[str], None]) -> int:
    """Leave a transformers model in the folder `target`, and return how many pairs it has seen.

    `source`: a folder with the weights to begin with, of an embedder or of a cross-encoder to go on with. Runs are
    equal for equal arguments on one kind of processor, unless the minutes cut them short.
    """
    torch.manual_seed(plan.seed)
    tokenizer: Any = AutoTokenizer.from_pretrained(source, model_max_length=plan.window)
    network: Any = begin(source)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network.to(device).train()
    # Half precision where the processor multiplies in it, which doubles the speed; elsewhere it is only emulated.
    halves = device == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    optimiser = _optimiser(network, plan)
    steps = math.ceil(len(examples) / plan.batch)
    begun = time.monotonic()
    seen, mean = 0, 0.0
    for step, chosen in enumerate(batches(examples, tokenizer, plan), start=1):
        over = max(step / steps, (time.monotonic() - begun) / 60 / plan.minutes)
        if over > 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = group["rate"] * min(over / WARM_UP, (1 - over) / (1 - WARM_UP))
        features, labels = collate(chosen, tokenizer, device)
        with torch.autocast(device, torch.bfloat16, enabled=halves):
            logits = network(**features).logits[:, 0]
        wanted = labels * (1 - 2 * plan.smoothing) + plan.smoothing
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), wanted)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), LARGEST_STEP)
        optimiser.step()
        optimiser.zero_grad()
        seen += len(chosen)
        mean += (loss.item() - mean) * max(1 / step, 0.02)
        if step % 25 == 0:
            say(f"{seen:,} of {len(examples):,} pairs, loss {mean:.4f}, {(time.monotonic() - begun) / 60:.1f} minutes")
        if step % plan.kept_every == 0:
            keep(network, tokenizer, target)
    keep(network, tokenizer, target)
    return seen


def begin(source: Path) -> Any:
    """A cross-encoder is gone on with; of an embedder one is made."""
    kinds = json.loads((source / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    if kinds[0].endswith("ForSequenceClassification"):
        return AutoModelForSequenceClassification.from_pretrained(source)
    return PairForSequenceClassification.begin(source)


def _optimiser(network: Any, plan: Plan) -> Any:
    """What the embedder brought learns slowly: it knows more than the pairs show. Biases and norms do not decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, each in network.named_parameters():
        rate = plan.rate if name.startswith(network.base_model_prefix) else plan.head_rate * plan.rate
        groups.setdefault((rate, plan.weight_decay if each.ndim > 1 else 0.0), []).append(each)
    return torch.optim.AdamW(
        [{"params": some, "rate": rate, "weight_decay": decay} for (rate, decay), some in groups.items()],
        lr=plan.rate,
        fused=True,
    )


def batches(examples: Sequence[Pair], tokenizer: Any, plan: Plan) -> Iterator[list[Tokens]]:
    """Each pair once, in random order."""
    draw = random.Random(plan.seed)
    order = list(examples)
    draw.shuffle(order)
    known: dict[str, list[int]] = {}

    def pieces(text: str) -> list[int]:
        if text not in known:
            known[text] = tokenizer.encode(text, add_special_tokens=False)
        return known[text]

    for start in range(0, len(order), SORTED * plan.batch):
        pairs = []
        for asked, stored, same, _ in order[start : start + SORTED * plan.batch]:
            one, other = (asked, stored) if draw.random() < 0.5 else (stored, asked)
            pair = Tokens(pieces(one), pieces(other), same)
            if len(pair) <= plan.window:
                pairs.append(pair)
        pairs.sort(key=len)
        cut = [pairs[at : at + plan.batch] for at in range(0, len(pairs), plan.batch)]
        draw.shuffle(cut)
        yield from cut


def collate(chosen: Sequence[Tokens], tokenizer: Any, device: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What the network takes, and the labels."""
    longest = math.ceil(max(map(len, chosen)) / PADDED_TO) * PADDED_TO
    ids = torch.full((len(chosen), longest), tokenizer.pad_token_id)
    kinds, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, pair in enumerate(chosen):
        whole = [tokenizer.cls_token_id, *pair.first, tokenizer.sep_token_id, *pair.second, tokenizer.sep_token_id]
        ids[row, : len(whole)] = torch.tensor(whole)
        kinds[row, len(pair.first) + 2 : len(whole)] = 1
        mask[row, : len(whole)] = 1
    features = {"input_ids": ids.to(device), "token_type_ids": kinds.to(device), "attention_mask": mask.to(device)}
    return features, torch.tensor([float(pair.same) for pair in chosen], device=device)


def keep(network: Any, tokenizer: Any, target: Path) -> None:
    part = target.with_name(f"{target.name}.part")
    network.save_pretrained(part)
    tokenizer.save_pretrained(part)
    target.mkdir(parents=True, exist_ok=True)
    for file in part.iterdir():
        file.replace(target / file.name)
    part.rmdir()
