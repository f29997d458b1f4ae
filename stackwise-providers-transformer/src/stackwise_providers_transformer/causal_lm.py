"""Causal language modelling.

Shapes: B batch, T time, V vocab.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log

import torch
import torch.nn.functional as F

from stackwise import BuildContext, Moment, TaskSpec
from stackwise_providers_transformer.options import CausalLMOptions

_BITS_PER_NAT = 1 / log(2)


class CausalLM:
    """-log p(x_t | x_<t), summed over every target (GPT, section 3.1, equation 1).

    Args:
        unit: what one token stands for; `byte` makes the metric `bits_per_byte`, anything else `bits_per_token`.
    """

    def __init__(self, options: CausalLMOptions, *, unit: str | None = None) -> None:
        self.options = options
        self.metric = "bits_per_byte" if unit == "byte" else "bits_per_token"

    def get_spec(self) -> TaskSpec:
        """One entry beyond seq_len, causal attention."""
        return self.options.to_spec()

    def prepare(self, batch: Mapping[str, torch.Tensor], moment: Moment, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """tokens [B, T+1] of any integer dtype → tokens [B, T] and targets [B, T], the same entries one later, int64."""
        tokens = batch["tokens"].long()
        return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}

    def loss(
        self, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, float, dict[str, tuple[torch.Tensor, float]]]:
        """Sum of nats in float32, number of targets, and the same in bits."""
        logits, targets = outputs["logits"], batch["targets"]
        nats = F.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), targets.reshape(-1), reduction="sum")
        count = float(targets.numel())
        return nats, count, {self.metric: (nats.detach() * _BITS_PER_NAT, count)}


def build_causal_lm(options: CausalLMOptions, context: BuildContext) -> CausalLM:
    """The factory of `causal-lm`; the loader says what a token stands for."""
    spec = context.specs.get("batch")
    tokens = spec.fields.get("tokens") if spec is not None else None
    return CausalLM(options, unit=tokens.unit if tokens is not None else None)
