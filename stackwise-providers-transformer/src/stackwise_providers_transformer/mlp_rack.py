"""A rack that reads every position by itself.

Shapes: B batch, T time, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from stackwise import BuildContext, RackSpec
from stackwise_providers_transformer.block_options import NormOptions
from stackwise_providers_transformer.dropout import Dropout, apply_dropout
from stackwise_providers_transformer.mlp import make_mlp
from stackwise_providers_transformer.named_stacks import named_stacks
from stackwise_providers_transformer.norms import make_norm
from stackwise_providers_transformer.options import check_sizes
from stackwise_providers_transformer.table_options import MLPOptions


class Block(nn.Module):
    """x + mlp(norm(x)): the identity when its residual output is zero (ResNet for tables, arXiv 2106.11959, section 3.2)."""

    def __init__(self, options: MLPOptions) -> None:
        super().__init__()
        width, std = options.width, options.init_std
        self.norm = make_norm(NormOptions(kind=options.norm), width, bias=True)
        self.mlp = make_mlp(options.mlp, width=width, features=options.ff or 2 * width, bias=True, std=std, output_std=std)
        self.dropout = Dropout(options.dropout)

    def forward(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """hidden [B, T, D] → [B, T, D]."""
        made: torch.Tensor = hidden_BTD + self.dropout(self.mlp(self.norm(hidden_BTD)))
        return made


class MLPRack(nn.Module):
    """Stacks of blocks, one after the other, and a final norm.

    Raises:
        UserError: the width is unknown, or a stack has a name that torch keeps for itself.
    """

    def __init__(self, options: MLPOptions) -> None:
        super().__init__()
        check_sizes(width=options.width)
        self.options = options
        self.stacks = named_stacks(options.stacks, lambda stack: (Block(options) for _ in range(stack.blocks)))
        self.norm = make_norm(NormOptions(kind=options.norm), options.width, bias=True)

    def to_spec(self) -> RackSpec:
        """Hidden state in and out."""
        return self.options.to_spec()

    def apply_values(self, values: Mapping[str, float]) -> None:
        """Take the dropout in force."""
        apply_dropout(self.modules(), values)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [B, T, D] → [B, T, D]."""
        for blocks in self.stacks.children():
            for block in blocks.children():
                hidden = block(hidden)
        normed: torch.Tensor = self.norm(hidden)
        return normed


def build_mlp(options: MLPOptions, context: BuildContext) -> MLPRack:
    """The factory of `mlp`."""
    return MLPRack(options)
