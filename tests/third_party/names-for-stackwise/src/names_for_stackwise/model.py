"""The model in three parts. Shapes: B batch, T letters, D width, K kinds."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from names_for_stackwise.names import ALPHABET, KINDS
from names_for_stackwise.options import KindsOptions, LettersOptions, ReaderOptions
from stackwise import BuildContext, EmbeddingSpec, HeadSpec, RackSpec


class Letters(nn.Module):
    """What stood in front of the blocks."""

    def __init__(self, options: LettersOptions) -> None:
        super().__init__()
        self.options = options
        self.letters = nn.Embedding(1 + len(ALPHABET), options.width)

    def get_spec(self) -> EmbeddingSpec:
        """As the options say."""
        return self.options.to_spec()

    def forward(self, letters: Tensor) -> Tensor:
        """[B, T] → [B, T, D]."""
        hidden: Tensor = self.letters(letters)
        return hidden


class Block(nn.Module):
    """x + out(gelu(conv(norm(x))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, 5, padding=2)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] → the same."""
        seen = self.conv(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + self.out(F.gelu(seen))


class Reader(nn.Module):
    """The blocks, in stacks that have names."""

    def __init__(self, options: ReaderOptions) -> None:
        super().__init__()
        self.options = options
        made = {stack.name: nn.ModuleList(Block(options.width) for _ in range(stack.blocks)) for stack in options.stacks}
        self.stacks = nn.ModuleDict(made)

    def to_spec(self) -> RackSpec:
        """As the options say."""
        return self.options.to_spec()

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, D] → the same."""
        for blocks in self.stacks.children():
            for block in blocks.children():
                hidden = block(hidden)
        return hidden


class Kinds(nn.Module):
    """What stood behind the blocks."""

    def __init__(self, options: KindsOptions) -> None:
        super().__init__()
        self.options = options
        self.kinds = nn.Linear(options.width, len(KINDS))

    def get_spec(self) -> HeadSpec:
        """As the options say."""
        return self.options.to_spec()

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        """[B, T, D] → logits [B, K]."""
        return {"logits": self.kinds(hidden.amax(1))}


def build_letters(options: LettersOptions, context: BuildContext) -> Letters:
    """The factory of embedding `names.letters`."""
    return Letters(options)


def build_reader(options: ReaderOptions, context: BuildContext) -> Reader:
    """The factory of rack `names.reader`."""
    return Reader(options)


def build_kinds(options: KindsOptions, context: BuildContext) -> Kinds:
    """The factory of head `names.kinds`."""
    return Kinds(options)
