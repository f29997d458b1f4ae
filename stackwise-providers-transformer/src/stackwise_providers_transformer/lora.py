"""Low-rank adaptation of one frozen matrix (LoRA, arXiv 2106.09685, section 4.1).

Shapes: I features in, O features out, R rank; any dimensions before them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from stackwise import BuildContext, UserError
from stackwise_providers_transformer.dropout import Dropout
from stackwise_providers_transformer.lora_options import LoRAOptions


class LoRA(nn.Module):
    """What is added to the output of a matrix W: scale · B·A·dropout(x), so that the whole computes (W + scale · B·A)·x.

    A starts from a normal distribution of variance 1/I, B at zero, so that nothing is added at first. The scale is alpha/R, or
    alpha/sqrt(R), which keeps the learning of high ranks stable (rsLoRA, arXiv 2312.03732, theorem 3.2).

    Args:
        options: rank, alpha, scaling, dropout.
        weight: W [O, I], on any device; A and B are made beside it, in its dtype.

    Raises:
        UserError: no matrix, rows that it does not have, or a rank above the one it can have.
    """

    def __init__(self, options: LoRAOptions, weight: torch.Tensor) -> None:
        super().__init__()
        if weight.dim() != 2:
            raise UserError(f"lora stands beside matrices, and this parameter has the shape {list(weight.shape)}: select matrices only")
        every, inputs = weight.shape
        self.first, self.end = options.rows or (0, every)
        if self.end > every:
            raise UserError(f"rows: {[self.first, self.end]} are not in a matrix {[every, inputs]}: give rows up to {every}")
        outputs = self.end - self.first
        if options.rank > min(outputs, inputs):
            raise UserError(
                f"rank: {options.rank} is above {min(outputs, inputs)}, the rank of a matrix {[outputs, inputs]}: "
                "lower it, or select others"
            )
        self.options, self.scale, self._behind = options, options.scale, every - self.end
        self.a = nn.Parameter(weight.new_empty(options.rank, inputs))
        self.b = nn.Parameter(weight.new_empty(outputs, options.rank))
        self.dropout = Dropout(options.dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw A anew, and begin again with B at zero."""
        nn.init.normal_(self.a, std=self.a.shape[1] ** -0.5)
        nn.init.zeros_(self.b)

    def apply_values(self, values: Mapping[str, float]) -> None:
        """Take the dropout in force."""
        if "dropout" in values:
            self.dropout.set_share(values["dropout"])

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input [..., I] → what is added to the output, [..., O]."""
        added = F.linear(F.linear(self.dropout(input), self.a), self.b) * self.scale
        return F.pad(added, (self.first, self._behind)) if self.first or self._behind else added

    def merged(self, weight: torch.Tensor) -> torch.Tensor:
        """W [O, I] → W + scale · B·A, summed in float32 or better and rounded once to the dtype of W."""
        precise = torch.promote_types(weight.dtype, torch.float32)
        whole = weight.to(precise, copy=True)
        whole[self.first : self.end] += self.b.to(precise) @ self.a.to(precise) * self.scale
        return whole.to(weight.dtype)


def build_lora(options: LoRAOptions, context: BuildContext, weight: torch.Tensor) -> LoRA:
    """The factory of `lora`."""
    return LoRA(options, weight)
