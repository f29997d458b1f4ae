"""The decoder rack: named stacks of pre-norm transformer blocks.

Shapes: B batch, T time, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from stackwise import BuildContext, RackSpec, UserError
from stackwise_providers_transformer.attention import Attention
from stackwise_providers_transformer.documents import attention_mask, positions_within
from stackwise_providers_transformer.dropout import Dropout
from stackwise_providers_transformer.kv_cache import KeyValueCache
from stackwise_providers_transformer.learned_positions import LearnedPositions
from stackwise_providers_transformer.mlp import GELU, SwiGLU
from stackwise_providers_transformer.norms import make_norm
from stackwise_providers_transformer.options import DecoderOptions, check_sizes
from stackwise_providers_transformer.rotary import Rotation, rotation


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): the identity when both residual outputs are zero."""

    def __init__(self, options: DecoderOptions) -> None:
        super().__init__()
        width, bias, std, output_std = options.width, options.bias, options.init_std, options.residual_std
        mlp = GELU if options.mlp == "gelu" else SwiGLU
        self.attention_norm = make_norm(options.norm, width, bias=bias)
        self.attention = Attention(
            width=width,
            heads=options.heads,
            kv_heads=options.kv_heads or options.heads,
            causal=options.causal,
            qk_norm=options.norm if options.qk_norm else None,
            bias=bias,
            std=std,
            output_std=output_std,
        )
        self.mlp_norm = make_norm(options.norm, width, bias=bias)
        self.mlp = mlp(width=width, features=options.ff_features, bias=bias, std=std, output_std=output_std)
        self.dropout = Dropout(options.dropout)

    def forward(self, hidden_BTD: torch.Tensor, turn: Rotation | None, mask_B1TT: torch.Tensor | None) -> torch.Tensor:
        """hidden [B, T, D] → [B, T, D]; dropout falls on each branch while the block itself is in training mode."""
        hidden_BTD = hidden_BTD + self.dropout(self.attention(self.attention_norm(hidden_BTD), turn, mask_B1TT))
        added_BTD: torch.Tensor = self.dropout(self.mlp(self.mlp_norm(hidden_BTD)))
        return hidden_BTD + added_BTD


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
        self.positions = LearnedPositions(options.max_positions, options.width, std=options.init_std) if options.max_positions else None
        self.stacks = nn.ModuleDict()
        for stack in options.stacks:
            if hasattr(self.stacks, stack.name):
                raise UserError(f"stacks: torch keeps the name '{stack.name}' for its modules: call the stack otherwise")
            self.stacks[stack.name] = nn.ModuleList(Block(options) for _ in range(stack.blocks))
        self.norm = make_norm(options.norm, options.width, bias=options.bias)
        self._attentions = [module for module in self.modules() if isinstance(module, Attention)]
        self._dropouts = [module for module in self.modules() if isinstance(module, Dropout)]

    def to_spec(self) -> RackSpec:
        """Hidden state in and out; positions, segments, prefix and mask may be given."""
        return self.options.to_spec()

    def apply_values(self, values: Mapping[str, float]) -> None:
        """Take the dropout in force."""
        self.dropout = values.get("dropout", self.dropout)
        for dropout in self._dropouts:
            dropout.set_share(self.dropout)

    @contextmanager
    def caching(self, capacity: int) -> Iterator[None]:
        """Inside, every call continues the rows of the calls before: it is given the new entries only, and no side input.

        Args:
            capacity: the most positions a row will have.

        Raises:
            ValueError: the rack is bidirectional, where earlier entries see later ones.
        """
        if not self.options.causal:
            raise ValueError("a bidirectional rack keeps nothing: every entry changes with those behind it")
        for attention in self._attentions:
            attention.cache = KeyValueCache(capacity)
        try:
            yield
        finally:
            for attention in self._attentions:
                attention.cache = None

    def forward(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor | None = None,
        segments: torch.Tensor | None = None,
        prefix: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Every entry sees those of its own document, as the attention mode says.

        Args:
            hidden: [B, T, D].
            positions: [B, T] integer; when left out 0..T-1, or from 0 on in each segment.
            segments: [B, T] integer, the document of every entry; one document a row when left out.
            prefix: [B] integer, entries at the begin of each row that all see one another; for attention `prefix`, 0 when left out.
            mask: [B, T] bool, whether an entry is real; all are when left out.

        Returns:
            [B, T, D].
        """
        added = None
        if not (segments is None and prefix is None and mask is None):
            added = attention_mask(hidden, segments, causal=self.options.causal, prefix_B=prefix, real_BT=mask)
        if segments is not None and positions is None:
            positions = positions_within(segments)
        if before := self._positions_before():
            if added is not None or positions is not None:
                raise ValueError("entries that continue a row take no side input")
            positions = torch.arange(before, before + hidden.shape[1], device=hidden.device)[None]
            added = _continued(hidden, before)
        if self.positions is not None:
            hidden = self.positions(hidden, positions)
        turn = self._turn(hidden, positions) if self.options.positions == "rope" else None
        for blocks in self.stacks.children():
            for block in blocks.children():
                hidden = block(hidden, turn, added)
        normed: torch.Tensor = self.norm(hidden)
        return normed

    def _positions_before(self) -> int:
        cache = self._attentions[0].cache if self._attentions else None
        return 0 if cache is None else cache.length

    def _turn(self, hidden_BTD: torch.Tensor, positions_BT: torch.Tensor | None) -> Rotation:
        return rotation(hidden_BTD, positions_BT, pairs=self.options.head_features // 2, base=self.options.rotary_base)


def _continued(hidden_BTD: torch.Tensor, before: int) -> torch.Tensor | None:
    """What is added to the scores [1, 1, T, before + T] of entries that continue a row; None for one, which sees all."""
    time = hidden_BTD.shape[1]
    if time == 1:
        return None
    return attention_mask(hidden_BTD.new_empty(1, before + time, 0), None, causal=True)[:, :, before:]


def build_decoder(options: DecoderOptions, context: BuildContext) -> Decoder:
    """The factory of `decoder`."""
    return Decoder(options)
