"""The encoder-decoder rack.

Shapes: B batch, T time of the target, S source, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from stackwise import BuildContext, RackSpec, Stack
from stackwise_providers_transformer.cross_attention import CrossAttention
from stackwise_providers_transformer.decoder import Block
from stackwise_providers_transformer.documents import attention_mask
from stackwise_providers_transformer.dropout import apply_dropout
from stackwise_providers_transformer.kv_cache import KeyValueCache
from stackwise_providers_transformer.learned_positions import LearnedPositions
from stackwise_providers_transformer.named_stacks import named_stacks
from stackwise_providers_transformer.norms import make_norm
from stackwise_providers_transformer.options import DecoderOptions, check_sizes
from stackwise_providers_transformer.rack_options import EncoderDecoderOptions
from stackwise_providers_transformer.rotary import Rotation, rotation


class CrossBlock(Block):
    """The decoder's block with x + cross(norm(x), memory) in its middle: the identity when all residual outputs are zero."""

    def __init__(self, options: DecoderOptions) -> None:
        super().__init__(options)
        self.cross_norm = make_norm(options.norms, options.width, bias=options.biases.norm)
        self.cross = CrossAttention(
            width=options.width,
            heads=options.heads,
            kv_heads=options.kv_heads or options.heads,
            bias=options.biases.output,
            std=options.init_std,
            output_std=options.residual_std,
        )

    def forward(  # type: ignore[override]  # no mask of its own, a memory besides
        self, hidden_BTD: torch.Tensor, turn: Rotation | None, memory_BSD: torch.Tensor, mask_B11S: torch.Tensor | None
    ) -> torch.Tensor:
        """hidden [B, T, D] and memory [B, S, D] → [B, T, D]."""
        assert self.attention_norm is not None  # its options keep it
        hidden_BTD = hidden_BTD + self.dropout(self.attention(self.attention_norm(hidden_BTD), turn, None))
        hidden_BTD = hidden_BTD + self.dropout(self.cross(self.cross_norm(hidden_BTD), memory_BSD, mask_B11S))
        added_BTD: torch.Tensor = self.dropout(self.mlp(self.mlp_norm(hidden_BTD)))
        return hidden_BTD + added_BTD


class EncoderDecoder(nn.Module):
    """Stacks that see the whole source, and stacks that write the target causally and attend to what the first ones made
    (arXiv 1706.03762, section 3.1, with the norms before the branches).

    Raises:
        UserError: the width is unknown, or a stack has a name that torch keeps for itself.
    """

    def __init__(self, options: EncoderDecoderOptions) -> None:
        super().__init__()
        check_sizes(width=options.width)
        self.options = options
        self._read: dict[str, tuple[torch.Tensor, torch.Tensor | None]] | None = None
        """What was read of the source, while targets grow."""
        self.positions, self.source_positions = self._table(), self._table()
        reading, writing = options.as_decoder("bidirectional"), options.as_decoder("causal")

        def blocks(stack: Stack) -> Iterator[nn.Module]:
            for _ in range(stack.blocks):
                yield Block(reading) if stack.name in options.encoder else CrossBlock(writing)

        self.stacks = named_stacks(options.stacks, blocks)
        self.source_norm = make_norm(options.norms, options.width, bias=options.biases.norm)
        self.norm = make_norm(options.norms, options.width, bias=options.biases.norm)

    def to_spec(self) -> RackSpec:
        """Hidden state of the target in and out; that of the source comes as `memory`."""
        return self.options.to_spec()

    def apply_values(self, values: Mapping[str, float]) -> None:
        """Take the dropout in force."""
        apply_dropout(self.modules(), values)

    @contextmanager
    def caching(self, capacity: int) -> Iterator[None]:
        """Inside, every call continues the targets of the calls before: it is given the new entries only, and the first call the memory,
        which is read once.

        Args:
            capacity: the most positions a target will have.
        """
        blocks = [block for block in self._blocks(reading=False) if isinstance(block, CrossBlock)]
        for block in blocks:
            block.attention.cache, block.cross.kept = KeyValueCache(capacity), {}
        self._read = {}
        try:
            yield
        finally:
            self._read = None
            for block in blocks:
                block.attention.cache = block.cross.kept = None

    def forward(self, hidden: torch.Tensor, memory: torch.Tensor | None = None, memory_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Read the source, then write the target.

        Args:
            hidden: [B, T, D], the embedded target.
            memory: [B, S, D], the embedded source; left out where a target goes on.
            memory_mask: [B, S] bool, which entries of the source are real; all are when left out. A source without any is seen whole.

        Returns:
            [B, T, D].
        """
        blocks, kept = [block for block in self._blocks(reading=False) if isinstance(block, CrossBlock)], self._read
        if memory is not None:
            seen = None if memory_mask is None else (memory_mask | ~memory_mask.any(dim=1, keepdim=True))[:, None, None, :]
            memory = self.read(memory, memory_mask)
            if kept is not None:
                kept["memory"] = memory, seen
        elif kept:
            memory, seen = kept["memory"]
        else:
            raise ValueError("an encoder-decoder reads a memory")
        cache = blocks[0].attention.cache if blocks else None
        hidden, turn = self._placed(hidden, self.positions, 0 if cache is None else cache.length)
        for block in blocks:
            hidden = block(hidden, turn, memory, seen)
        normed: torch.Tensor = self.norm(hidden)
        return normed

    def read(self, source: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The embedded source [B, S, D] → what the target attends to [B, S, D]."""
        added = None if mask is None else attention_mask(source, None, causal=False, real_BT=mask)
        source, turn = self._placed(source, self.source_positions)
        for block in self._blocks(reading=True):
            source = block(source, turn, added)
        normed: torch.Tensor = self.source_norm(source)
        return normed

    def _blocks(self, *, reading: bool) -> Iterator[nn.Module]:
        for name, blocks in self.stacks.items():
            if (name in self.options.encoder) == reading:
                yield from blocks.children()

    def _placed(self, hidden_BTD: torch.Tensor, table: LearnedPositions | None, before: int = 0) -> tuple[torch.Tensor, Rotation | None]:
        """The hidden state with its positions, after those that were before, and how queries and keys turn."""
        positions_1T = torch.arange(before, before + hidden_BTD.shape[1], device=hidden_BTD.device)[None] if before else None
        if table is not None:
            return table(hidden_BTD, positions_1T), None
        if self.options.positions != "rope":
            return hidden_BTD, None
        return hidden_BTD, rotation(hidden_BTD, positions_1T, pairs=self.options.head_features // 2, base=self.options.rotary_base)

    def _table(self) -> LearnedPositions | None:
        longest = self.options.max_positions
        return LearnedPositions(longest, self.options.width, std=self.options.init_std) if longest else None


def build_encoder_decoder(options: EncoderDecoderOptions, context: BuildContext) -> EncoderDecoder:
    """The factory of `encoder-decoder`."""
    return EncoderDecoder(options)
