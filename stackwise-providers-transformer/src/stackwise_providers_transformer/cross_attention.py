"""Attention from one row to another.

Shapes: B batch, T time, S source, D width, N query heads, K key and value heads, H features a head.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from stackwise_providers_transformer.attention_precision import attend_precisely
from stackwise_providers_transformer.projection import Projection


class CrossAttention(nn.Module):
    """softmax(q·k / sqrt(H))·v with queries of the target and keys and values of the memory (arXiv 1706.03762, section 3.2.3).

    Args:
        width: D.
        heads: N, a divisor of D.
        kv_heads: K, a divisor of N.
        bias: whether the projections add biases.
        std: deviation at which query, key and value start.
        output_std: deviation at which the residual output starts.
    """

    def __init__(self, *, width: int, heads: int, kv_heads: int, bias: bool, std: float, output_std: float) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.features = heads, kv_heads, width // heads
        self.query = Projection(width, width, std=std, bias=bias)
        self.kv = Projection(width, 2 * kv_heads * self.features, std=std, bias=bias)
        self.output = Projection(width, width, std=output_std, bias=bias)
        self.kept: dict[str, tuple[torch.Tensor, torch.Tensor]] | None = None
        """Keys and values of the memory, while a target grows that reads one memory."""

    def forward(self, x_BTD: torch.Tensor, memory_BSD: torch.Tensor, mask_B11S: torch.Tensor | None) -> torch.Tensor:
        """x [B, T, D] → [B, T, D].

        Args:
            x_BTD: what queries are made of.
            memory_BSD: what keys and values are made of.
            mask_B11S: bool, which entries of the memory are seen; all when None.
        """
        batch, time, width = x_BTD.shape
        q_BNTH = self.query(x_BTD).view(batch, time, self.heads, self.features).transpose(1, 2)
        k_BKSH, v_BKSH = self._of(memory_BSD)
        mix = partial(F.scaled_dot_product_attention, attn_mask=mask_B11S, enable_gqa=self.heads != self.kv_heads)
        mixed_BNTH = attend_precisely(mix, q_BNTH, k_BKSH, v_BKSH)
        mixed: torch.Tensor = self.output(mixed_BNTH.transpose(1, 2).reshape(batch, time, width))
        return mixed

    def _of(self, memory_BSD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the memory, [B, K, S, H] each."""
        if self.kept:
            return self.kept["memory"]
        kv = self.kv(memory_BSD).view(*memory_BSD.shape[:2], 2 * self.kv_heads, self.features).transpose(1, 2)
        k_BKSH, v_BKSH = kv.split(self.kv_heads, dim=1)
        if self.kept is not None:
            self.kept["memory"] = k_BKSH, v_BKSH
        return k_BKSH, v_BKSH
