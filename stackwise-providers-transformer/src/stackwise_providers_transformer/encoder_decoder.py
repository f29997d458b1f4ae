"""The encoder-decoder rack.

Shapes: B batch, T time of the target, S source, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from attrs import evolve
from torch import nn

from stackwise import BuildContext, RackSpec, UserError
from stackwise_providers_transformer.cross_attention import CrossAttention
from stackwise_providers_transformer.decoder import Block
from stackwise_providers_transformer.documents import attention_mask
from stackwise_providers_transformer.learned_positions import LearnedPositions
from stackwise_providers_transformer.norms import make_norm
from stackwise_providers_transformer.options import DecoderOptions, check_sizes
from stackwise_providers_transformer.rack_options import EncoderDecoderOptions
from stackwise_providers_transformer.rotary import Rotation, rotation


class CrossBlock(Block):
    """The decoder's block with x + cross(norm(x), memory) before it: the identity when all residual outputs are zero."""

    def __init__(self, options: DecoderOptions) -> None:
        super().__init__(options)
        self.cross_norm = make_norm(options.norm, options.width, bias=options.bias)
        self.cross = CrossAttention(
            width=options.width,
            heads=options.heads,
            kv_heads=options.kv_heads or options.heads,
            bias=options.bias,
            std=options.init_std,
            output_std=options.residual_std,
        )

    def attend(self, hidden_BTD: torch.Tensor, memory_BSD: torch.Tensor, mask_B11S: torch.Tensor | None, dropout: float) -> torch.Tensor:
        """The first branch: hidden [B, T, D] → [B, T, D]."""
        branch_BTD = self.cross(self.cross_norm(hidden_BTD), memory_BSD, mask_B11S)
        return hidden_BTD + (F.dropout(branch_BTD, dropout) if dropout else branch_BTD)


class EncoderDecoder(nn.Module):
    """Stacks that see the whole source, and stacks that write the target causally and attend to what the first ones made
    (arXiv 1706.03762, section 3.1; pre-norm, and the source is attended to before the target).

    Raises:
        UserError: the width is unknown, or a stack has a name that torch keeps for itself.
    """

    def __init__(self, options: EncoderDecoderOptions) -> None:
        super().__init__()
        check_sizes(width=options.width)
        self.options = options
        self.dropout = options.dropout
        self.positions, self.source_positions = self._table(), self._table()
        self.stacks = nn.ModuleDict()
        reading, writing = evolve(options, attention=None), evolve(options, attention="causal")
        object.__setattr__(reading, "attention", "bidirectional")
        for stack in options.stacks:
            if hasattr(self.stacks, stack.name):
                raise UserError(f"stacks: torch keeps the name '{stack.name}' for its modules: call the stack otherwise")
            reads = stack.name in options.encoder
            self.stacks[stack.name] = nn.ModuleList(Block(reading) if reads else CrossBlock(writing) for _ in range(stack.blocks))
        self.source_norm = make_norm(options.norm, options.width, bias=options.bias)
        self.norm = make_norm(options.norm, options.width, bias=options.bias)
