"""Multi-head attention.

Shapes: B batch, T time, D width, N query heads, K key and value heads, H features a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from stackwise_providers_transformer.kv_cache import KeyValueCache
from stackwise_providers_transformer.norms import make_norm
from stackwise_providers_transformer.projection import Projection
from stackwise_providers_transformer.rotary import Rotation, rotate


class Attention(nn.Module):
    """softmax(q·k / sqrt(H))·v for N heads (arXiv 1706.03762, section 3.2).

    Args:
        width: D.
        heads: N, a divisor of D.
        kv_heads: K, a divisor of N: each key and value serves N/K queries (arXiv 2305.13245, section 2.2).
        causal: whether a position sees only itself and those before it.
        qk_norm: kind of norm over the features of every query and key (arXiv 2302.05442, section 2), if any.
        bias: whether the projections and norms add biases.
        std: deviation at which query, key and value start.
        output_std: deviation at which the residual output starts.
    """

    def __init__(
        self, *, width: int, heads: int, kv_heads: int, causal: bool, qk_norm: str | None, bias: bool, std: float, output_std: float
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.features = heads, kv_heads, width // heads
        self.causal = causal
        self.qkv = Projection(width, (heads + 2 * kv_heads) * self.features, std=std, bias=bias)
        self.query_norm = make_norm(qk_norm, self.features, bias=bias) if qk_norm else None
        self.key_norm = make_norm(qk_norm, self.features, bias=bias) if qk_norm else None
        self.output = Projection(width, width, std=output_std, bias=bias)
        self.cache: KeyValueCache | None = None
        """Keys and values of the positions before those that come, while a row grows."""

    def forward(self, x_BTD: torch.Tensor, turn: Rotation | None, mask_B1TT: torch.Tensor | None) -> torch.Tensor:
        """x [B, T, D] → [B, T, D].

        Args:
            x_BTD: what queries, keys and values are made of.
            turn: rotation of queries and keys by position, if any.
            mask_B1TT: what is added to the scores, causality included; None: none but causality.
        """
        batch, time, width = x_BTD.shape
        heads = (self.heads, self.kv_heads, self.kv_heads)
        q_BNTH, k_BKTH, v_BKTH = self.qkv(x_BTD).view(batch, time, sum(heads), self.features).transpose(1, 2).split(heads, dim=1)
        if self.query_norm is not None and self.key_norm is not None:
            q_BNTH, k_BKTH = _normed(self.query_norm, q_BNTH), _normed(self.key_norm, k_BKTH)
        if turn is not None:
            q_BNTH, k_BKTH = rotate(q_BNTH, turn), rotate(k_BKTH, turn)
        if self.cache is not None:
            k_BKTH, v_BKTH = self.cache.extend(k_BKTH, v_BKTH)
        mixed_BNTH = _attend(q_BNTH, k_BKTH, v_BKTH, mask_B1TT, causal=self.causal)
        mixed: torch.Tensor = self.output(mixed_BNTH.transpose(1, 2).reshape(batch, time, width))
        return mixed


def _normed(norm: nn.RMSNorm | nn.LayerNorm, x_BNTH: torch.Tensor) -> torch.Tensor:
    """The norm in the precision of its weight, which autocast leaves as it is."""
    normed: torch.Tensor = norm(x_BNTH.to(norm.weight.dtype))
    return normed


def _attend(
    q_BNTH: torch.Tensor, k_BKTH: torch.Tensor, v_BKTH: torch.Tensor, mask_B1TT: torch.Tensor | None, *, causal: bool
) -> torch.Tensor:
    """Attend in the precision of v; on a CPU in float32 or better, because its kernels of low precision are slow."""
    dtype, device = v_BKTH.dtype, v_BKTH.device.type
    grouped = q_BNTH.shape[1] != k_BKTH.shape[1]
    causal = causal and mask_B1TT is None and q_BNTH.shape[2] == k_BKTH.shape[2]  # the last position alone sees all

    def attend(to: torch.dtype) -> torch.Tensor:
        return F.scaled_dot_product_attention(
            q_BNTH.to(to), k_BKTH.to(to), v_BKTH.to(to), attn_mask=mask_B1TT, is_causal=causal, enable_gqa=grouped
        )

    if device != "cpu":
        return attend(dtype)
    precise = torch.promote_types(dtype, torch.float32)
    if dtype == precise and not torch.is_autocast_enabled(device):
        return attend(dtype)
    with torch.autocast(device, enabled=False):
        return attend(precise).to(dtype)
