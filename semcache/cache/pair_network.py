"""A cross-encoder that begins as the embedder it is made of.

Trained from scratch to read pairs, a network forgets most of what its embedder knew of questions in general: on sources
it never saw it was worse than the embedder's cosine (docs/decisions.md). So this one keeps it. The lower layers read
each question alone, as the embedder does. In the upper ones the questions see each other, at first hardly. What comes
out is the cosine of the two means, scaled, and what a small head adds, at first nothing.

To transformers it is one more model for sequence classification, with one logit; importing this makes it known there.
Torch is needed, so only training and exporting import it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig, BertModel, BertPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

HIDDEN = 64  # of the head
SCALE, ZERO = 12.0, 0.75  # the logit begins as SCALE * (cosine - ZERO)
SHY = -2.0  # what is added, at first, to the attention that one question pays to the other
NEVER = -1e4  # ... and to all that must not be seen


class PairConfig(BertConfig):
    model_type = "semcache-pair"

    def __init__(self, joint_layers: int = 3, **others: Any) -> None:
        """`joint_layers`: the upper ones, in which the questions see each other."""
        super().__init__(**{"num_labels": 1, **others})
        self.joint_layers = joint_layers


class PairForSequenceClassification(BertPreTrainedModel):
    config_class = PairConfig

    def __init__(self, config: PairConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.shyness = nn.Parameter(torch.full((config.joint_layers, config.num_attention_heads), SHY))
        self.scale = nn.Parameter(torch.tensor([SCALE, -SCALE * ZERO]))
        self.head = nn.Linear(4 * config.hidden_size, HIDDEN)
        self.out = nn.Linear(HIDDEN, 1)
        self.post_init()

    @classmethod
    def begin(cls, embedder: Path) -> PairForSequenceClassification:
        """With the weights of an embedder of the BERT family."""
        config = PairConfig.from_pretrained(embedder)
        network: PairForSequenceClassification = cls.from_pretrained(embedder, config=config)
        with torch.no_grad():  # what the embedder has no weights for is left as memory was found
            network.shyness.fill_(SHY)
            network.scale.copy_(torch.tensor([SCALE, -SCALE * ZERO]))
            nn.init.xavier_uniform_(network.head.weight)
            for rest in (network.head.bias, network.out.weight, network.out.bias):
                rest.zero_()
        return network

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor, **_: Any
    ) -> SequenceClassifierOutput:
        """Each of shape (n, t); the pair's second question is where `token_type_ids` is 1."""
        second = token_type_ids * attention_mask
        first = attention_mask - second
        # Both have the places and the type that they are embedded with; the mark before the first is before both.
        places = (torch.cumsum(first, 1) - 1) * first + torch.cumsum(second, 1) * second
        x = self.bert.embeddings(
            input_ids=input_ids,
            token_type_ids=torch.zeros_like(input_ids),
            position_ids=places,
        )
        padding = (1 - attention_mask).to(x.dtype)[:, None, None, :] * NEVER
        other = (token_type_ids[:, :, None] != token_type_ids[:, None, :]).to(x.dtype)[:, None]
        other = torch.cat([torch.zeros_like(other[..., :1]), other[..., 1:]], -1)
        layers = self.bert.encoder.layer
        for number, layer in enumerate(layers, start=self.config.joint_layers - len(layers)):
            shyness = self.shyness[number][None, :, None, None] if number >= 0 else NEVER
            x = layer(x, padding + other * shyness)
            x = x[0] if isinstance(x, tuple) else x
        x = x.float()
        one, two = _mean(x, first), _mean(x, second)
        cosine = (one * two).sum(-1, keepdim=True)
        # Brought to about the same size, that of what a linear layer expects.
        seen = torch.cat([10 * (one - two).abs(), 20 * one * two, 5 * (one + two), 0.5 * x[:, 0]], -1)
        added = self.out(nn.functional.gelu(self.head(seen)))
        return SequenceClassifierOutput(logits=self.scale[0] * cosine + self.scale[1] + added)


def _mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The unit vector of the tokens in `mask`."""
    weights = mask.unsqueeze(-1).to(x.dtype)
    return nn.functional.normalize((x * weights).sum(1) / weights.sum(1).clamp(min=1), dim=-1)


AutoConfig.register(PairConfig.model_type, PairConfig)
AutoModelForSequenceClassification.register(PairConfig, PairForSequenceClassification)
