"""The modules. Shapes: B batch, T time, D width."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stackwise import AdapterSpec, BuildContext, EmbeddingSpec, HeadSpec, RackSpec
from waves_for_stackwise.options import CalmOptions, ConvOptions, EchoOptions, LevelInOptions, LevelOutOptions, SquashOptions


class LevelIn(nn.Module):
    """One linear map from a level to a hidden state."""

    def __init__(self, options: LevelInOptions) -> None:
        super().__init__()
        self.options = options
        self.linear = nn.Linear(1, options.width)

    def get_spec(self) -> EmbeddingSpec:
        """As the options say."""
        return self.options.to_spec()

    def forward(self, levels: Tensor) -> Tensor:
        """[B, T] → [B, T, D]."""
        hidden: Tensor = self.linear(levels[..., None])
        return hidden


class Block(nn.Module):
    """x + dropout(out(gelu(conv(norm(x))))), where position t sees t and those before it."""

    def __init__(self, options: ConvOptions) -> None:
        super().__init__()
        self.past = options.kernel - 1
        self.norm = nn.LayerNorm(options.width)
        self.conv = nn.Conv1d(options.width, options.width, options.kernel)
        self.out = nn.Linear(options.width, options.width)
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, D] → the same."""
        seen = F.pad(self.norm(hidden).transpose(1, 2), (self.past, 0))
        added: Tensor = self.dropout(self.out(F.gelu(self.conv(seen)).transpose(1, 2)))
        return hidden + added


class Conv(nn.Module):
    """Named stacks of blocks. Parameters are called `stacks.<stack>.<i>.…`, as the core expects."""

    def __init__(self, options: ConvOptions) -> None:
        super().__init__()
        self.options = options
        made = {stack.name: nn.ModuleList(Block(options) for _ in range(stack.blocks)) for stack in options.stacks}
        self.stacks = nn.ModuleDict(made)

    def to_spec(self) -> RackSpec:
        """As the options say."""
        return self.options.to_spec()

    def apply_values(self, values: Mapping[str, float]) -> None:
        """Take the values in force of the options that follow time."""
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = values["dropout"]

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, D] → the same."""
        for blocks in self.stacks.children():
            for block in blocks.children():
                hidden = block(hidden)
        return hidden


class Calm(Conv):
    """Convolutions that report how much their blocks add: the loss `size`, and the share of features that hardly move, `still`."""

    def forward(self, hidden: Tensor) -> tuple[Tensor, dict[str, tuple[Tensor, float]]]:  # type: ignore[override]  # its spec says so
        """[B, T, D] → the same, and sums with their denominators: every feature at every position counts as one."""
        after = super().forward(hidden)
        added = after - hidden
        return after, {
            "size": (added.square().sum(), float(added.numel())),
            "still": ((added.detach().abs() < 0.1).sum().float(), float(added.numel())),
        }


class Echo(Conv):
    """Convolutions over what comes and a decaying mean of what came: row i of a batch goes on from row i of the batches before.

    The memory is a buffer, so that checkpoints hold it and growth carries it over. An evaluation begins at rest and leaves it as it is.
    """

    def __init__(self, options: EchoOptions, rows: int) -> None:
        super().__init__(options)
        self._keep = options.keep
        self.register_buffer("memory", torch.zeros(rows, options.width))

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, D] → the same."""
        if not self.training:
            return super().forward(hidden)
        rows = len(hidden)
        memory = self.memory[:rows].clone()  # the step's gradient must not see what is written below
        self.memory[:rows] = self._keep * memory + (1 - self._keep) * hidden.detach().mean(1)
        return super().forward(hidden + memory[:, None])


class LevelOut(nn.Module):
    """One level for every position."""

    def __init__(self, options: LevelOutOptions) -> None:
        super().__init__()
        self.options = options
        self.linear = nn.Linear(options.width, 1)

    def get_spec(self) -> HeadSpec:
        """As the options say."""
        return self.options.to_spec()

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        """[B, T, D] → levels [B, T]."""
        return {"levels": self.linear(hidden)[..., 0]}


class Squash(nn.Module):
    """Every feature between -limit and limit."""

    def __init__(self, options: SquashOptions) -> None:
        super().__init__()
        self.options = options

    def get_spec(self) -> AdapterSpec:
        """As the options say."""
        return self.options.to_spec()

    def forward(self, hidden: Tensor) -> Tensor:
        """[B, T, D] → the same."""
        return self.options.limit * torch.tanh(hidden / self.options.limit)


def build_level_in(options: LevelInOptions, context: BuildContext) -> LevelIn:
    """The factory of embedding `waves.level`."""
    return LevelIn(options)


def build_conv(options: ConvOptions, context: BuildContext) -> Conv:
    """The factory of rack `waves.conv`."""
    return Conv(options)


def build_calm(options: CalmOptions, context: BuildContext) -> Calm:
    """The factory of rack `waves.calm`."""
    return Calm(options)


def build_level_out(options: LevelOutOptions, context: BuildContext) -> LevelOut:
    """The factory of head `waves.level`."""
    return LevelOut(options)


def build_squash(options: SquashOptions, context: BuildContext) -> Squash:
    """The factory of adapter `waves.squash`."""
    return Squash(options)


def build_echo(options: EchoOptions, context: BuildContext) -> Echo:
    """The factory of rack `waves.echo`."""
    return Echo(options, context.max_rows or 1)
