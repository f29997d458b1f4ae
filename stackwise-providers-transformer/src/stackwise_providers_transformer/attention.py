"""Multi-head attention over rotary positions.

Shapes: B batch, T time, D width, N heads, H features a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from stackwise_providers_transformer.projection import Projection
from stackwise_providers_transformer.rotary import Rotation, rotate


class Attention(nn.Module):
    """softmax(q·k / sqrt(H))·v for N heads (arXiv 1706.03762, section 3.2), without biases.

    Args:
        width: D.
        heads: N, a divisor of D.
        causal: whether a position sees only itself and those before it.
        std: deviation at which query, key and value start.
        output_std: deviation at which the residual output starts.
    """

    def __init__(self, *, width: int, heads: int, causal: bool, std: float, output_std: float) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.qkv = Projection(width, 3 * width, std=std)
        self.output = Projection(width, width, std=output_std)

    def forward(self, x_BTD: torch.Tensor, turn: Rotation) -> torch.Tensor:
        """x [B, T, D] → [B, T, D]."""
        batch, time, width = x_BTD.shape
        q_BNTH, k_BNTH, v_BNTH = self.qkv(x_BTD).view(batch, time, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed_BNTH = _attend(rotate(q_BNTH, turn), rotate(k_BNTH, turn), v_BNTH, causal=self.causal)
        mixed: torch.Tensor = self.output(mixed_BNTH.transpose(1, 2).reshape(batch, time, width))
        return mixed


def _attend(q_BNTH: torch.Tensor, k_BNTH: torch.Tensor, v_BNTH: torch.Tensor, *, causal: bool) -> torch.Tensor:
    """Attend in the precision of v; on a CPU in that of q and k (float32 or better), because its kernels of low precision are slow."""
    dtype = v_BNTH.dtype
    device = v_BNTH.device.type
    if device != "cpu":
        return F.scaled_dot_product_attention(q_BNTH.to(dtype), k_BNTH.to(dtype), v_BNTH, is_causal=causal)
    if dtype == q_BNTH.dtype and not torch.is_autocast_enabled(device):
        return F.scaled_dot_product_attention(q_BNTH, k_BNTH, v_BNTH, is_causal=causal)
    with torch.autocast(device, enabled=False):
        return F.scaled_dot_product_attention(q_BNTH, k_BNTH, v_BNTH.to(q_BNTH.dtype), is_causal=causal).to(dtype)
