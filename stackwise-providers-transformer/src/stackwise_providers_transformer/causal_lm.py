"""Causal language modelling.

Shapes: B batch, T time, V vocab.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import and_

import torch

from stackwise import BuildContext, Moment, TaskSpec
from stackwise_providers_transformer.continuation import ContinuesPrompts, Forward
from stackwise_providers_transformer.options import CausalLMOptions
from stackwise_providers_transformer.token_nats import Logits, summed_nats
from stackwise_providers_transformer.token_units import BITS_PER_NAT, bits_of, token_unit


class CausalLM(ContinuesPrompts):
    """-log p(x_t | x_<t), summed over every target that counts (GPT, section 3.1, equation 1).

    Args:
        unit: what one token stands for; `byte` makes the metric `bits_per_byte`, anything else `bits_per_token`.
    """

    def __init__(self, options: CausalLMOptions, *, unit: str | None = None) -> None:
        self.options = options
        self.metric = bits_of().of(unit)

    def get_spec(self) -> TaskSpec:
        """One entry beyond seq_len, causal attention; documents inside rows, padding and prompts where a loader marks them."""
        return self.options.to_spec()

    def prepare(self, batch: Mapping[str, torch.Tensor], moment: Moment, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """tokens [B, T+1] of any integer dtype → tokens [B, T] and targets [B, T], the same entries one later, int64.

        Segments and positions [B, T+1] come along with the tokens. `counted` [B, T] is added where some targets do not count: the first
        token of a document (segments), tokens that are not real (mask [B, T+1]), the prompt of a row (prefix [B], its number of tokens)
        and what others than the assistant say in a conversation (loss_mask [B, T+1], false there): supervised fine-tuning predicts
        the response alone, its end included. A mask gives `routed` [B, T] too: experts do not count padding.
        """
        tokens = batch["tokens"].long()
        prepared = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
        prepared |= {name: batch[name][:, :-1] for name in ("segments", "positions") if name in batch}
        if "mask" in batch:
            prepared["routed"] = batch["mask"][:, :-1]
        counted = [batch[name][:, 1:] for name in ("mask", "loss_mask") if name in batch]
        if (segments := batch.get("segments")) is not None:
            counted.append(segments[:, 1:] == segments[:, :-1])
        if (prefix := batch.get("prefix")) is not None and self.options.targets != "all":
            counted.append(torch.arange(1, tokens.shape[1], device=tokens.device) >= prefix[:, None])
        if counted:
            prepared["counted"] = reduce(and_, counted)
        return prepared

    def loss(
        self, outputs: Mapping[str, Logits], batch: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | float, dict[str, tuple[torch.Tensor, torch.Tensor | float]]]:
        """Sum of nats in float32 over the targets that count, their number, and the same in bits."""
        nats, count, _ = summed_nats(outputs["logits"], batch["targets"], batch.get("counted"))
        return nats, count, {self.metric: (nats.detach() * BITS_PER_NAT, count)}

    def score(self, model: Forward, rows: Sequence[torch.Tensor], given: Sequence[int]) -> list[tuple[float, bool]]:
        """Σ ln p(x_t | x_<t) over what follows the given entries of each row [T], and whether each of these is the likeliest."""
        tokens_BT = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        with torch.inference_mode():
            nats_BTV = model({"tokens": tokens_BT[:, :-1]})["logits"].float().log_softmax(-1)
        targets_BT = tokens_BT[:, 1:]
        taken_BT = nats_BTV.gather(-1, targets_BT[..., None])[..., 0].double()
        likeliest_BT = nats_BTV.argmax(-1) == targets_BT
        spans = [slice(begin - 1, len(row) - 1) for row, begin in zip(rows, given, strict=True)]
        return [(float(taken_BT[i, span].sum()), bool(likeliest_BT[i, span].all())) for i, span in enumerate(spans)]


def build_causal_lm(options: CausalLMOptions, context: BuildContext) -> CausalLM:
    """The factory of `causal-lm`; the loader says what a token stands for."""
    return CausalLM(options, unit=token_unit(context))
