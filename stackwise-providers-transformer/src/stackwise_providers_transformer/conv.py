"""A rack without attention: depthwise convolutions over time.

Shapes: B batch, T time, D width, K positions of the kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from stackwise import BuildContext, RackSpec
from stackwise_providers_transformer.block_options import NormOptions
from stackwise_providers_transformer.dropout import Dropout, apply_dropout
from stackwise_providers_transformer.mlp import PlainMLP
from stackwise_providers_transformer.named_stacks import named_stacks
from stackwise_providers_transformer.norms import make_norm
from stackwise_providers_transformer.options import check_sizes
from stackwise_providers_transformer.projection import Projection
from stackwise_providers_transformer.rack_options import ConvOptions


class Mixing(nn.Module):
    """output(gelu(Σ_k kernel_k · x_{t+k})): every feature is mixed over time by K weights of its own (arXiv 1610.02357), then all
    features with one another.

    Args:
        offsets: position of each weight, relative to the one that is made.
    """

    def __init__(self, width: int, offsets: Sequence[int], *, std: float) -> None:
        super().__init__()
        self.offsets = tuple(offsets)
        self.kernel = nn.Parameter(torch.empty(width, len(self.offsets)))
        self.bias = nn.Parameter(torch.empty(width))
        self.output = Projection(width, width, std=std)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the kernel anew so that the mixed features have the deviation of the unmixed ones."""
        nn.init.normal_(self.kernel, std=len(self.offsets) ** -0.5)
        nn.init.zeros_(self.bias)

    def forward(self, x_BTD: torch.Tensor, seen_BTK: torch.Tensor | None) -> torch.Tensor:
        """x [B, T, D] → [B, T, D]; `seen_BTK` says which neighbours count, all inside the row when None."""
        mixed_BTD = self._whole(x_BTD) if seen_BTK is None else self._parts(x_BTD, seen_BTK)
        made: torch.Tensor = self.output(F.gelu(mixed_BTD))
        return made

    def _whole(self, x_BTD: torch.Tensor) -> torch.Tensor:
        padded = F.pad(x_BTD.transpose(1, 2), (-self.offsets[0], self.offsets[-1]))
        return F.conv1d(padded, self.kernel[:, None], self.bias, groups=len(self.kernel)).transpose(1, 2)

    def _parts(self, x_BTD: torch.Tensor, seen_BTK: torch.Tensor) -> torch.Tensor:
        mixed_BTD = self.bias.expand_as(x_BTD)
        for k, offset in enumerate(self.offsets):
            mixed_BTD = mixed_BTD + shifted(x_BTD, offset) * self.kernel[:, k] * seen_BTK[:, :, k, None]
        return mixed_BTD


class Block(nn.Module):
    """x + mixing(norm(x)), then x + mlp(norm(x)): the identity when both residual outputs are zero."""

    def __init__(self, options: ConvOptions, offsets: Sequence[int]) -> None:
        super().__init__()
        width, std = options.width, options.init_std
        self.mixing_norm = make_norm(NormOptions(kind=options.norm), width, bias=False)
        self.mixing = Mixing(width, offsets, std=std)
        self.mlp_norm = make_norm(NormOptions(kind=options.norm), width, bias=False)
        self.mlp = PlainMLP(width=width, features=options.ff or 4 * width, bias=False, std=std, output_std=std)
        self.dropout = Dropout(options.dropout)

    def forward(self, hidden_BTD: torch.Tensor, seen_BTK: torch.Tensor | None) -> torch.Tensor:
        """hidden [B, T, D] → [B, T, D]."""
        hidden_BTD = hidden_BTD + self.dropout(self.mixing(self.mixing_norm(hidden_BTD), seen_BTK))
        made: torch.Tensor = hidden_BTD + self.dropout(self.mlp(self.mlp_norm(hidden_BTD)))
        return made


class Conv(nn.Module):
    """Stacks of blocks, one after the other, and a final norm.

    Raises:
        UserError: the width is unknown, or a stack has a name that torch keeps for itself.
    """

    def __init__(self, options: ConvOptions) -> None:
        super().__init__()
        check_sizes(width=options.width)
        self.options = options
        last = 0 if options.causal else options.kernel // 2
        self.offsets = tuple(range(last - options.kernel + 1, last + 1))
        self.stacks = named_stacks(options.stacks, lambda stack: (Block(options, self.offsets) for _ in range(stack.blocks)))
        self.norm = make_norm(NormOptions(kind=options.norm), options.width, bias=False)

    def to_spec(self) -> RackSpec:
        """Hidden state in and out; segments and mask may be given."""
        return self.options.to_spec()

    def apply_values(self, values: Mapping[str, float]) -> None:
        """Take the dropout in force."""
        apply_dropout(self.modules(), values)

    def forward(
        self,
        hidden: torch.Tensor,
        segments: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Every entry sees neighbours of its own document.

        Args:
            hidden: [B, T, D].
            segments: [B, T] integer, the document of every entry; one document a row when left out.
            positions: not used; a convolution knows places by their distance.
            mask: [B, T] bool, whether an entry is real; all are when left out.

        Returns:
            [B, T, D].
        """
        seen = self._seen([part for part in (segments, mask) if part is not None])
        for blocks in self.stacks.children():
            for block in blocks.children():
                hidden = block(hidden, seen)
        normed: torch.Tensor = self.norm(hidden)
        return normed

    def _seen(self, parts_BT: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Whether each neighbour lies inside the row and in all the same parts of it; [B, T, K]."""
        if not parts_BT:
            return None
        inside_BT = torch.ones_like(parts_BT[0], dtype=torch.bool)
        taps = []
        for offset in self.offsets:
            seen_BT = shifted(inside_BT, offset)
            for part_BT in parts_BT:
                seen_BT = seen_BT & (shifted(part_BT, offset) == part_BT)
            taps.append(seen_BT)
        return torch.stack(taps, dim=-1)


def shifted(x: torch.Tensor, offset: int) -> torch.Tensor:
    """x [B, T, …] with entry t + offset at t, zero (False) where there is none."""
    if offset == 0:
        return x
    out = torch.zeros_like(x)
    if abs(offset) < x.shape[1]:
        if offset > 0:
            out[:, :-offset] = x[:, offset:]
        else:
            out[:, -offset:] = x[:, :offset]
    return out


def build_conv(options: ConvOptions, context: BuildContext) -> Conv:
    """The factory of `conv`."""
    return Conv(options)
