"""The decoder rack: named stacks of pre-norm transformer blocks.

Shapes: B batch, T time, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from stackwise import BuildContext, RackSpec, UserError
from stackwise_providers_transformer.attention import Attention
from stackwise_providers_transformer.mlp import GELU, SwiGLU
from stackwise_providers_transformer.options import DecoderOptions, check_sizes
from stackwise_providers_transformer.rotary import Rotation, rotation

_NORM_EPS = 1e-6


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): the identity when both residual outputs are zero."""

    def __init__(self, options: DecoderOptions) -> None:
        super().__init__()
        width, std, output_std = options.width, options.init_std, options.residual_std
        mlp = GELU if options.mlp == "gelu" else SwiGLU
        self.attention_norm = nn.RMSNorm(width, eps=_NORM_EPS)
        self.attention = Attention(
            width=width, heads=options.heads, causal=options.attention != "bidirectional", std=std, output_std=output_std
        )
        self.mlp_norm = nn.RMSNorm(width, eps=_NORM_EPS)
        self.mlp = mlp(width=width, features=options.ff_features, std=std, output_std=output_std)

    def forward(self, hidden_BTD: torch.Tensor, turn: Rotation, dropout: float) -> torch.Tensor:
        """hidden [B, T, D] → [B, T, D]; `dropout` is the share of each branch to zero, 0 outside training."""
        branch_BTD = self.attention(self.attention_norm(hidden_BTD), turn)
        hidden_BTD = hidden_BTD + (F.dropout(branch_BTD, dropout) if dropout else branch_BTD)
        branch_BTD = self.mlp(self.mlp_norm(hidden_BTD))
        return hidden_BTD + (F.dropout(branch_BTD, dropout) if dropout else branch_BTD)


class Decoder(nn.Module):
    """Stacks of blocks, one after the other, and a final norm.

    Raises:
        UserError: the width is unknown, or a stack has a name that torch keeps for itself.
    """

    def __init__(self, options: DecoderOptions) -> None:
        super().__init__()
        check_sizes(width=options.width)
        self.options = options
        self.dropout = options.dropout
        self.stacks = nn.ModuleDict()
        for stack in options.stacks:
            if hasattr(self.stacks, stack.name):
                raise UserError(f"stacks: torch keeps the name '{stack.name}' for its modules: call the stack otherwise")
            self.stacks[stack.name] = nn.ModuleList(Block(options) for _ in range(stack.blocks))
        self.norm = nn.RMSNorm(options.width, eps=_NORM_EPS)

    def to_spec(self) -> RackSpec:
        """Hidden state in and out; positions may be given."""
        return self.options.to_spec()

    def apply_values(self, values: Mapping[str, float]) -> None:
        """Take the dropout in force."""
        self.dropout = values.get("dropout", self.dropout)

    def forward(self, hidden: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """hidden [B, T, D] → [B, T, D]; positions [B, T] integer, 0..T-1 when left out."""
        turn = rotation(hidden, positions, pairs=self.options.width // self.options.heads // 2, base=self.options.rope_base)
        dropout = self.dropout if self.training else 0.0
        for blocks in self.stacks.children():
            for block in blocks.children():
                hidden = block(hidden, turn, dropout)
        normed: torch.Tensor = self.norm(hidden)
        return normed


def build_decoder(options: DecoderOptions, context: BuildContext) -> Decoder:
    """The factory of `decoder`."""
    return Decoder(options)
