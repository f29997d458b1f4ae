"""The decoder rack: named stacks of transformer blocks.

Shapes: B batch, T time, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from stackwise import BuildContext, RackSpec
from stackwise_providers_transformer.attention import Attention, Seen
from stackwise_providers_transformer.block_options import repeated_pattern
from stackwise_providers_transformer.documents import attention_mask, positions_within
from stackwise_providers_transformer.dropout import Dropout
from stackwise_providers_transformer.experts import Experts, Reported
from stackwise_providers_transformer.kv_cache import KeyValueCache
from stackwise_providers_transformer.learned_positions import LearnedPositions
from stackwise_providers_transformer.mlp import make_mlp
from stackwise_providers_transformer.named_stacks import named_stacks
from stackwise_providers_transformer.norms import make_norm
from stackwise_providers_transformer.options import DecoderOptions, check_sizes
from stackwise_providers_transformer.packed import find_documents
from stackwise_providers_transformer.rotary import Rotation, rotation


class Block(nn.Module):
    """Attention and an MLP, each a branch beside the residual stream, with norms where `norm.at` places them.

    Args:
        options: of the rack.
        first: whether it is the first block of the rack, which may have no norm before its attention.
    """

    def __init__(self, options: DecoderOptions, *, first: bool = False) -> None:
        super().__init__()
        norms, biases = options.norms, options.biases
        self.at, self.parallel = norms.at, options.residual == "parallel"
        self.attention_norm = None if first and not norms.first else make_norm(norms, options.width, bias=biases.norm)
        self.attention = Attention(options)
        self.mlp_norm = make_norm(norms, options.width, bias=biases.norm)
        sizes: dict[str, Any] = {"width": options.width, "features": options.ff_features, "bias": biases.mlp}
        sizes |= {"std": options.init_std, "output_std": options.residual_std}
        self.mlp = make_mlp(options.mlp, **sizes) if options.experts is None else Experts(options.experts, options.mlp, **sizes)
        self.attention_output_norm = make_norm(norms, options.width, bias=biases.norm) if self.at == "sandwich" else None
        self.mlp_output_norm = make_norm(norms, options.width, bias=biases.norm) if self.at == "sandwich" else None
        self.dropout = Dropout(options.dropout)

    def forward(
        self, hidden_BTD: torch.Tensor, turn: Rotation | None, mask_B1TT: Seen | None, real_BT: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, Reported]:
        """hidden [B, T, D] → [B, T, D]; dropout falls on each branch while the block itself is in training mode.

        Args:
            hidden_BTD: the hidden state.
            turn: of queries and keys.
            mask_B1TT: added to the scores of attention, or the documents that it stays inside of.
            real_BT: for experts: whether a position is real.

        Returns:
            [B, T, D]; with experts a pair, of that and what they report.
        """
        reported: Reported = {}

        def think(x_BTD: torch.Tensor) -> torch.Tensor:
            if not isinstance(self.mlp, Experts):
                thought: torch.Tensor = self.mlp(x_BTD)
                return thought
            thought, sums = self.mlp(x_BTD, real_BT)
            reported.update(sums)
            return thought

        def attend(x_BTD: torch.Tensor) -> torch.Tensor:
            mixed: torch.Tensor = self.attention(x_BTD, turn, mask_B1TT)
            return mixed

        if self.parallel:
            mixed_BTD = hidden_BTD + self.dropout(attend(_normed(self.attention_norm, hidden_BTD)))
            hidden_BTD = mixed_BTD + self.dropout(think(self.mlp_norm(hidden_BTD)))
        else:
            hidden_BTD = self._branch(hidden_BTD, attend, self.attention_norm, self.attention_output_norm)
            hidden_BTD = self._branch(hidden_BTD, think, self.mlp_norm, self.mlp_output_norm)
        return (hidden_BTD, reported) if isinstance(self.mlp, Experts) else hidden_BTD

    def _branch(
        self, x_BTD: torch.Tensor, branch: Callable[[torch.Tensor], torch.Tensor], norm: nn.Module | None, output_norm: nn.Module | None
    ) -> torch.Tensor:
        """x with what a branch adds to it."""
        if self.at == "post":
            return _normed(norm, x_BTD + self.dropout(branch(x_BTD)))
        made_BTD = _normed(norm, branch(x_BTD)) if self.at == "output" else branch(_normed(norm, x_BTD))
        added_BTD: torch.Tensor = self.dropout(_normed(output_norm, made_BTD))
        return x_BTD + added_BTD


def _normed(norm: nn.Module | None, x_BTD: torch.Tensor) -> torch.Tensor:
    if norm is None:
        return x_BTD
    normed: torch.Tensor = norm(x_BTD)
    return normed


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
        norms, norm_bias = options.norms, options.biases.norm
        self.positions = LearnedPositions(options.max_positions, options.width, std=options.init_std) if options.max_positions else None
        self.embedding_norm = make_norm(norms, options.width, bias=norm_bias) if norms.embedding else None
        first = options.stacks[0]
        self.stacks = named_stacks(
            options.stacks, lambda stack: (Block(options, first=stack is first and i == 0) for i in range(stack.blocks))
        )
        self.norm = None if norms.at == "post" else make_norm(norms, options.width, bias=norm_bias)
        self._turns = repeated_pattern(options.rotary.blocks if options.rotary else None, options.blocks)
        self._windows = repeated_pattern(options.window.blocks, options.blocks) if options.window else (False,) * options.blocks
        self._widths = (None, options.window.size if options.window else None)
        """How near an entry has to be to be seen, in blocks without and with the window; any when None."""
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
            raise ValueError("a bidirectional rack keeps nothing: every entry changes with those after it")
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
        routed: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Reported]:
        """Every entry sees those of its own document, as the attention mode says.

        Args:
            hidden: [B, T, D].
            positions: [B, T] integer; when left out 0..T-1, or from 0 on in each segment.
            segments: [B, T] integer, the document of every entry; one document a row when left out.
            prefix: [B] integer, entries at the begin of each row that all see one another; for attention `prefix`, 0 when left out.
            mask: [B, T] bool, whether an entry is real; all are when left out.
            routed: [B, T] bool, whether experts count an entry that attention sees anyway, such as padding at the end of a causal row; all
                that are real when left out.

        Returns:
            [B, T, D]; with experts a pair, of that and the sums of their losses over all blocks.
        """
        return self.forward_blocks(hidden, 0, None, positions=positions, segments=segments, prefix=prefix, mask=mask, routed=routed)

    def forward_blocks(
        self,
        hidden: torch.Tensor,
        start: int,
        stop: int | None,
        *,
        positions: torch.Tensor | None = None,
        segments: torch.Tensor | None = None,
        prefix: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        routed: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Reported]:
        """The same through some blocks alone, counted over all stacks: what comes before them with `start` 0, what comes after them
        with `stop` None."""
        before = self._positions_before()
        if segments is not None and positions is None:
            positions = positions_within(segments)
        if before:
            if not (segments is None and prefix is None and mask is None and positions is None):
                raise ValueError("entries that continue a row take no side input")
            positions = torch.arange(before, before + hidden.shape[1], device=hidden.device)[None]
        turns = [self._turn(hidden, positions, windowed=windowed) for windowed in (False, True)]
        if not start:
            hidden = hidden if self.positions is None else self.positions(hidden, positions)
            hidden = _normed(self.embedding_norm, hidden)
        masks: Sequence[Seen | None] = [_continued(hidden, before, window) for window in self._widths] if before else ()
        masks = masks or self._seen(hidden, segments, prefix, mask)
        real = mask if routed is None else routed if mask is None else mask & routed
        reported: Reported = {}
        blocks = [block for stack in self.stacks.children() for block in stack.children()]
        for block, turned, windowed in list(zip(blocks, self._turns, self._windows, strict=True))[start:stop]:
            turn = turns[windowed] if turned else None
            if self.options.experts is None:
                hidden = block(hidden, turn, masks[windowed])
                continue
            hidden, sums = block(hidden, turn, masks[windowed], real)
            for name, (total, count) in sums.items():
                so_far = reported.get(name)
                reported[name] = (total, count) if so_far is None else (so_far[0] + total, so_far[1] + count)
        if stop is None:
            hidden = _normed(self.norm, hidden)
        return hidden if self.options.experts is None else (hidden, reported)

    def _seen(
        self, hidden: torch.Tensor, segments: torch.Tensor | None, prefix: torch.Tensor | None, mask: torch.Tensor | None
    ) -> Sequence[Seen | None]:
        """What attention sees without and with the window: documents where every entry sees its own alone, else a mask."""
        parts, causal = [part for part in (segments, mask) if part is not None], self.options.causal
        if prefix is None and (documents := find_documents(hidden, parts, causal=causal, windows=self._widths)) is not None:
            return documents

        def whole(window: int | None) -> torch.Tensor | None:
            narrow = window is not None and window < hidden.shape[1]
            if prefix is None and not parts and not narrow:
                return None
            return attention_mask(hidden, segments, causal=causal, prefix_B=prefix, real_BT=mask, window=window)

        return [whole(window) for window in self._widths]

    def _positions_before(self) -> int:
        cache = self._attentions[0].cache if self._attentions else None
        return 0 if cache is None else cache.length

    def _turn(self, hidden_BTD: torch.Tensor, positions_BT: torch.Tensor | None, *, windowed: bool) -> Rotation | None:
        """How queries and keys turn, in blocks with the window or in the others; None where they do not, or where there are no such."""
        options = self.options
        if options.positions != "rope" or windowed not in self._windows:
            return None
        base, scaling = options.rotary_base, options.rotary.scaling if options.rotary else None
        if windowed and options.window is not None and options.window.base is not None:
            base, scaling = options.window.base, None
        return rotation(hidden_BTD, positions_BT, pairs=options.turned_features // 2, base=base, scaling=scaling)


def _continued(hidden_BTD: torch.Tensor, before: int, window: int | None) -> torch.Tensor | None:
    """What is added to the scores [1, 1, T, before + T] of entries that continue a row; None for one that sees all."""
    time = hidden_BTD.shape[1]
    if time == 1 and (window is None or window > before):
        return None
    return attention_mask(hidden_BTD.new_empty(1, before + time, 0), None, causal=True, window=window)[:, :, before:]


def build_decoder(options: DecoderOptions, context: BuildContext) -> Decoder:
    """The factory of `decoder`."""
    return Decoder(options)
