"""`semcache tune train`: the pair judge's weights, from labelled pairs.

What it is worth is told by what it has not seen: each source of pairs is judged by a network that was trained on all
others. With fewer than three sources, parts of their pairs take their place. The same figures choose what the final
network looks at (VIEWS): more always fits better what was seen, and often less what was not. And what those networks
say of what they have not seen calibrates the final one.

Each source has an offset of its own while it is trained on, which is not kept: in one nearly every near pair has the
same answer, in another half of them, and a network would otherwise learn to tell the sources apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from semcache.cache.judge import COSINES, FARTHEST, FEATURES, FORMAT, Arrays
from semcache.cache.judge_features import NAMES
from semcache.errors import ConfigError
from semcache.tuning.figures import Figures, measure
from semcache.tuning.judge_examples import FOLDS, GENERATED, Example, Examples, Floats, Report, make_examples
from semcache.tuning.labelled import Embed, LabelledPairs

# What a network may look at, from the least to the most.
VIEWS = {
    "signs": "cosine and guards",
    "words": "cosine, guards and words",
    "vectors": "cosine, guards, words and vectors",
}

HIDDEN = 8  # twice as many, or two, make no difference that was measured
EPOCHS = 8
BATCH = 512
RATE = 5e-3
DECAY = 1e-3
DROPOUT = 0.4  # of what is seen of the vectors
SIZE_POWER = 0.3  # a source counts by this power of its size: large ones more, not many times more

UNCALIBRATED = np.array([1, 0], np.float32)
PULL = 1e-6  # of the calibration towards 0: a source may hold pairs of one kind alone

# What speaks against the same answer the more there is of it, and what for. All else may do either.
_AGAINST = frozenset(
    "worst_least worst_most lacking_least lacking_most words_least words_most rare_least rare_most "
    "figures asking denials".split()
)
_SIGNS = np.array(
    [-1 if name in _AGAINST or name not in FEATURES[: FEATURES.index("denials")] else 1 for name in FEATURES],
    np.float32,
)


@dataclass(frozen=True, slots=True)
class Training:
    seed: int = 7
    views: tuple[str, ...] = ("signs", "words")  # to choose from
    embedder: str = ""  # whose vectors they are
    generated: bool = True  # learn from generated variants too


class Trained(NamedTuple):
    arrays: Arrays  # the file
    unseen: Mapping[str, Mapping[str, Figures]]  # of each source, by the cosine and by each view
    view: str  # the one chosen
    is_better: bool  # than the cosine alone, in the mean of the sources


def train(
    sources: Sequence[LabelledPairs], embed: Embed, training: Training, report: Report = lambda line: None
) -> Trained:
    """Raises ConfigError when there is too little to learn from."""
    examples = _prepare(sources, embed, training, report)
    real = [example for example in examples.all if example.name != GENERATED]
    figures = {each.name: {"cosine": measure(each.same[each.met], each.cosine[each.met])} for each in real}
    unseen: dict[str, dict[str, Floats]] = {}
    for view in training.views:
        report(f"training on {VIEWS[view]}, once for each source left out")
        unseen[view] = dict(_leave_out(examples, view, training.seed))
        for each in real:
            figures[each.name][view] = measure(each.same[each.met], unseen[view][each.name][each.met])
    areas = {way: _mean([row[way].area for row in figures.values()]) for way in ("cosine", *training.views)}
    best = max(training.views, key=lambda view: areas[view])
    # Vectors of other embedders are judged without looking at them.
    views = {"texts": "words", "vectors": "vectors"} if best == "vectors" else {"texts": best}
    parts: dict[str, npt.NDArray[Any]] = {}
    for name, view in views.items():
        network = fit([_seen(example, view) for example in examples.all], training.seed)
        parts |= _named(name, network, calibrate(real, unseen[view]))
    return Trained(_pack(examples, best, training, parts), figures, best, areas[best] > areas["cosine"])


def train_without_each(
    sources: Sequence[LabelledPairs], embed: Embed, training: Training, report: Report = lambda line: None
) -> dict[str, Arrays]:
    """For each source the weights, of the first view and not calibrated, that have not seen it."""
    examples = _prepare(sources, embed, training, report)
    view = training.views[0]
    found = {}
    for example in examples.all:
        if example.name != GENERATED:
            report(f"training without {example.name}")
            network = fit([_seen(other, view) for other in examples.without(example.name)], training.seed)
            found[example.name] = _pack(examples, view, training, _named("texts", network, UNCALIBRATED))
    return found


def _prepare(sources: Sequence[LabelledPairs], embed: Embed, training: Training, report: Report) -> Examples:
    vectors = "vectors" in training.views
    return make_examples(
        sources, embed, seed=training.seed, generated=training.generated, vectors=vectors, report=report
    )


def _pack(examples: Examples, view: str, training: Training, parts: Arrays) -> Arrays:
    """The arrays of the file."""
    about: dict[str, Any] = {
        "format": FORMAT,
        "features": FEATURES,
        "view": view,
        "embedder": training.embedder,
        "dimensions": examples.dimensions,
        "seed": training.seed,
        "trained": {example.name: len(example.same) for example in examples.all},
    }
    tables = {} if view == "signs" else examples.tables
    return {"about": np.frombuffer(json.dumps(about).encode(), np.uint8), **tables, **parts}


def _mean(areas: Sequence[float]) -> float:
    """Of those that are there; sources with pairs of one kind have none."""
    known = [area for area in areas if not np.isnan(area)]
    return float(np.mean(known)) if known else 0.0


def _seen(example: Example, view: str) -> Example:
    """The features of a view; what it does not look at is the same for all pairs, and so without effect."""
    if view == "vectors":
        return example
    rows = example.rows[:, : len(FEATURES)].copy()
    if view == "signs":
        rows[:, COSINES : len(NAMES)] = 0
    return example._replace(rows=rows)


# Networks


class Network(NamedTuple):
    """The parts of a network as judge.py names them."""

    mean: Floats
    scale: Floats
    linear: Floats
    hidden: Floats
    shift: Floats
    out: Floats

    def odds(self, rows: Floats) -> Floats:
        """Log-odds, not calibrated."""
        turn = np.where(np.arange(len(self.out)) < len(self.out) // 2, 1, -1)
        scaled = np.clip((rows - self.mean) * self.scale, -FARTHEST, FARTHEST)
        hidden = np.maximum((scaled @ self.hidden + self.shift) * turn, 0) * turn
        return scaled @ self.linear + hidden @ self.out  # type: ignore[no-any-return]


def _named(name: str, network: Network, calibration: Floats) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a network, in half the bits but for what scales its input."""
    parts = {f"{name}_{part}": array.astype(np.float16) for part, array in network._asdict().items()}
    exact = {f"{name}_mean": network.mean, f"{name}_scale": network.scale, f"{name}_calibration": calibration}
    return {**parts, **exact}


def _leave_out(examples: Examples, view: str, seed: int) -> Iterator[tuple[str, Floats]]:
    """Each real source by name, with the log-odds by networks that have not seen it."""
    real = [_seen(example, view) for example in examples.all if example.name != GENERATED]
    if len(real) >= 3:
        for example in real:
            network = fit([_seen(other, view) for other in examples.without(example.name)], seed)
            yield example.name, network.odds(example.rows)
        return
    made = [_seen(example, view) for example in examples.all if example.name == GENERATED]
    unseen = {example.name: np.zeros(len(example.same), np.float32) for example in real}
    for part in range(FOLDS):
        network = fit([*(example.where(example.parts != part) for example in real), *made], seed)
        for example in real:
            mine = example.parts == part
            unseen[example.name][mine] = network.odds(example.rows[mine])
    yield from unseen.items()


def fit(examples: Sequence[Example], seed: int) -> Network:
    """Learn a network that is monotone in every feature of FEATURES. What comes after them, vectors, may do either."""
    import torch

    torch.set_num_threads(
        1
    )  # batches are too small to be shared: on a busy machine two threads took twenty times as long
    torch.manual_seed(seed)
    examples = [example for example in examples if 0 < example.same.sum() < len(example.same)]
    if not examples:
        raise ConfigError("a part of the pairs has one kind only: more pairs of both kinds are needed")
    rows = np.vstack([example.rows for example in examples])
    signs = np.append(_SIGNS, np.zeros(rows.shape[1] - len(_SIGNS), np.float32))
    mean, scale = rows.mean(axis=0), 1 / (rows.std(axis=0) + 1e-3)
    inputs = torch.from_numpy(np.clip((rows - mean) * scale, -FARTHEST, FARTHEST))
    labels = torch.from_numpy(np.concatenate([example.same for example in examples]).astype(np.float32))
    origin = torch.from_numpy(np.repeat(np.arange(len(examples)), [len(example.same) for example in examples]))
    weight = torch.from_numpy(np.concatenate([_weights(example.same) for example in examples]).astype(np.float32))
    weight = weight / weight.mean()
    sign = torch.from_numpy(signs)
    seen = torch.where(sign == 0, 1 - DROPOUT, 1.0)

    start = torch.where(sign == 0, 0.0, 0.05)
    linear = torch.nn.Parameter(start)
    hidden = torch.nn.Parameter(torch.randn(len(signs), HIDDEN) * torch.where(sign == 0, 0.03, 0.2)[:, None])
    shift = torch.nn.Parameter(torch.randn(HIDDEN) * 0.5)
    out = torch.nn.Parameter(torch.full((HIDDEN,), 0.1))
    offsets = torch.nn.Parameter(torch.zeros(len(examples)))
    turn = torch.where(torch.arange(HIDDEN) < HIDDEN // 2, 1.0, -1.0)

    def held(weights: torch.Tensor) -> torch.Tensor:
        side = sign if weights.dim() == 1 else sign[:, None]
        return torch.where(side == 0, weights, side * torch.relu(weights))

    optimizer = torch.optim.AdamW([linear, hidden, shift, out, offsets], lr=RATE, weight_decay=DECAY)
    batches = -(-len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * batches)
    for _ in range(EPOCHS):
        for places in torch.randperm(len(rows)).split(BATCH):
            batch = inputs[places] * torch.bernoulli(seen.expand(len(places), -1)) / seen
            layer = torch.relu((batch @ held(hidden) + shift) * turn) * turn
            odds = batch @ held(linear) + layer @ torch.relu(out) + offsets[origin[places]]
            losses = torch.nn.functional.binary_cross_entropy_with_logits(odds, labels[places], reduction="none")
            optimizer.zero_grad()
            (losses * weight[places]).mean().backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        parts = [part.numpy() for part in (held(linear), held(hidden), shift, torch.relu(out))]
    return Network(mean, scale, *parts)


def _weights(same: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Both kinds of a source together count the same."""
    share = same.mean()
    each: npt.NDArray[np.float64] = np.where(same, 0.5 / share, 0.5 / (1 - share)) * len(same) ** (SIZE_POWER - 1)
    return each


def calibrate(examples: Sequence[Example], unseen: Mapping[str, Floats]) -> Floats:
    """Slope and offset that make log-odds of what networks said of sources they had not seen (Platt 1999).

    Each source counts the same, and has an offset of its own while the slope is fitted: how many near pairs have the
    same answer differs more between domains than anything a pair can show. The offset kept is that of a middling one.
    """
    met = [example for example in examples if example.met.any()]
    if not met:
        return UNCALIBRATED
    sizes = [int(example.met.sum()) for example in met]
    odds = np.concatenate([unseen[example.name][example.met] for example in met]).astype(np.float64)
    same = np.concatenate([example.same[example.met] for example in met])
    columns = np.column_stack([odds, np.repeat(np.eye(len(met)), sizes, axis=0)])
    weights = np.repeat(1 / np.array(sizes) / len(met), sizes)
    found = np.append(1.0, np.zeros(len(met)))
    for _ in range(50):  # Newton's method
        guess = 1 / (1 + np.exp(-np.clip(columns @ found, -30, 30)))
        gradient = columns.T @ (weights * (guess - same)) + PULL * found
        bend = (columns * (weights * guess * (1 - guess))[:, None]).T @ columns + PULL * np.eye(len(found))
        step = np.linalg.solve(bend, gradient)
        found = found - np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-9:
            break
    return np.array([max(found[0], 1e-3), found[1:].mean()], np.float32)  # a slope below 0 would turn the judge round
