"""Multi-head attention.

Shapes: B batch, T time, D width, N query heads, K key and value heads, H features a head.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch._compile import _disable_dynamo

from stackwise_providers_transformer.attention_precision import attend_precisely
from stackwise_providers_transformer.kv_cache import KeyValueCache
from stackwise_providers_transformer.norms import Norm, make_norm
from stackwise_providers_transformer.options import DecoderOptions
from stackwise_providers_transformer.packed import Attend, Documents
from stackwise_providers_transformer.projection import Projection
from stackwise_providers_transformer.rotary import Rotation, rotate

Seen = torch.Tensor | Documents
"""What is added to the scores, or the documents within which attention stays."""


class Attention(nn.Module):
    """softmax(q·k / sqrt(H))·v for N heads (arXiv 1706.03762, section 3.2); each of K keys and values serves N/K queries (arXiv
    2305.13245, section 2.2). Queries and keys may be normed, head by head or all heads at once (arXiv 2302.05442, section 2).
    """

    def __init__(self, options: DecoderOptions) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.features = options.heads, options.kv_heads or options.heads, options.head_features
        self.causal = options.causal
        self.whole_norm = options.qk_norm == "whole"
        self.neighbours = options.rotary is not None and options.rotary.pairs == "neighbours"
        self.scale = None if options.scores is None else options.scores.scale
        self.cap = None if options.scores is None else options.scores.cap
        std, biases = options.init_std, options.biases
        self.qkv = Projection(options.width, (self.heads + 2 * self.kv_heads) * self.features, std=std, bias=biases.qkv)
        self.query_norm, self.key_norm = self._norm(options, self.heads), self._norm(options, self.kv_heads)
        self.output = Projection(self.heads * self.features, options.width, std=options.residual_std, bias=biases.output)
        self.cache: KeyValueCache | None = None
        """Keys and values of the earlier positions, while a row is generated."""

    def _norm(self, options: DecoderOptions, heads: int) -> Norm | None:
        if not options.qk_norm:
            return None
        return make_norm(options.norms, (heads if self.whole_norm else 1) * self.features, bias=options.biases.norm)

    def forward(self, x_BTD: torch.Tensor, turn: Rotation | None, mask_B1TT: Seen | None) -> torch.Tensor:
        """x [B, T, D] → [B, T, D].

        Args:
            x_BTD: what queries, keys and values are made of.
            turn: rotation of queries and keys by position, if any.
            mask_B1TT: what is added to the scores, causality included, or the documents of the rows; None: none but causality.
        """
        batch, time, _ = x_BTD.shape
        heads = (self.heads, self.kv_heads, self.kv_heads)
        q_BNTH, k_BKTH, v_BKTH = self.qkv(x_BTD).view(batch, time, sum(heads), self.features).transpose(1, 2).split(heads, dim=1)
        if self.query_norm is not None and self.key_norm is not None:
            q_BNTH, k_BKTH = self._normed(self.query_norm, q_BNTH), self._normed(self.key_norm, k_BKTH)
        if turn is not None:
            q_BNTH, k_BKTH = rotate(q_BNTH, turn, neighbours=self.neighbours), rotate(k_BKTH, turn, neighbours=self.neighbours)
        if self.cache is not None:
            k_BKTH, v_BKTH = self.cache.extend(k_BKTH, v_BKTH)
        if isinstance(mask_B1TT, Documents):
            mixed_BNTH = _by_document(mask_B1TT, self._attend, q_BNTH, k_BKTH, v_BKTH)
        else:
            mixed_BNTH = self._attend(q_BNTH, k_BKTH, v_BKTH, mask_B1TT)
        mixed: torch.Tensor = self.output(mixed_BNTH.transpose(1, 2).reshape(batch, time, self.heads * self.features))
        return mixed

    def _normed(self, norm: Norm, x_BNTH: torch.Tensor) -> torch.Tensor:
        """The norm, of each head or of all heads as one vector, in the precision of its weight, which autocast does not change."""
        if self.whole_norm:
            together_BTX = x_BNTH.transpose(1, 2).flatten(2)
            normed_BTX: torch.Tensor = norm(together_BTX.to(norm.weight.dtype))
            return normed_BTX.view(*normed_BTX.shape[:2], -1, self.features).transpose(1, 2)
        normed: torch.Tensor = norm(x_BNTH.to(norm.weight.dtype))
        return normed

    def _attend(self, q_BNTH: torch.Tensor, k_BKTH: torch.Tensor, v_BKTH: torch.Tensor, mask_B1TT: torch.Tensor | None) -> torch.Tensor:
        return attend_precisely(partial(self._mixed, mask_B1TT), q_BNTH, k_BKTH, v_BKTH)

    def _mixed(self, mask_B1TT: torch.Tensor | None, q_BNTH: torch.Tensor, k_BKTH: torch.Tensor, v_BKTH: torch.Tensor) -> torch.Tensor:
        """softmax(q·k)·v, with all inputs in one precision."""
        causal = self.causal and mask_B1TT is None and q_BNTH.shape[2] == k_BKTH.shape[2]  # the last position alone sees all
        if self.cap is not None:
            return _capped(q_BNTH, k_BKTH, v_BKTH, mask_B1TT, causal=causal, scale=self.scale, cap=self.cap)
        return F.scaled_dot_product_attention(
            q_BNTH,
            k_BKTH,
            v_BKTH,
            attn_mask=mask_B1TT,
            is_causal=causal,
            scale=self.scale,
            enable_gqa=self.heads != self.kv_heads,
        )


@_disable_dynamo  # torch.compiler.disable, without importing the compiler: documents have other lengths in every batch, each a graph
def _by_document(documents: Documents, attend: Attend, q_BNTH: torch.Tensor, k_BKTH: torch.Tensor, v_BKTH: torch.Tensor) -> torch.Tensor:
    return documents.attend(attend, q_BNTH, k_BKTH, v_BKTH)


def _capped(
    q_BNTH: torch.Tensor,
    k_BKTH: torch.Tensor,
    v_BKTH: torch.Tensor,
    mask_B1TT: torch.Tensor | None,
    *,
    causal: bool,
    scale: float | None,
    cap: float,
) -> torch.Tensor:
    """Attention whose scores are limited to ±cap; torch has no kernel for it."""
    shared = q_BNTH.shape[1] // k_BKTH.shape[1]
    if shared > 1:
        k_BKTH, v_BKTH = k_BKTH.repeat_interleave(shared, dim=1), v_BKTH.repeat_interleave(shared, dim=1)
    scores = q_BNTH @ k_BKTH.transpose(2, 3) * (q_BNTH.shape[3] ** -0.5 if scale is None else scale)
    scores = cap * torch.tanh(scores / cap)
    if mask_B1TT is not None:
        scores = scores + mask_B1TT
    elif causal:
        ahead = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).triu_(1)
        scores = scores.masked_fill(ahead, -torch.inf)
    return scores.softmax(dim=-1) @ v_BKTH
