"""A rack of blocks that a test writes itself, and growth that begins new ones afresh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tiny_walks import VOCAB, base
from torch import nn

from stackwise import BlockOrigin, Built

WIDTH = 8


class Rack(nn.Module):
    """Blocks as a test wants them."""

    def __init__(self, stacks: dict[str, int], block: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stacks = nn.ModuleDict({name: nn.ModuleList(block() for _ in range(count)) for name, count in stacks.items()})
        self.table = torch.randn(4)  # a plain attribute, which no state dict holds

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for stack in self.stacks.children():
            for block in stack.children():
                hidden = hidden + block(hidden)
        return hidden + 0 * self.table.sum()


def linear() -> nn.Linear:
    return nn.Linear(WIDTH, WIDTH)


def config(block: Callable[[], nn.Module] = linear, base_blocks: int = 2, **changes: Any) -> dict[str, Any]:
    rack = Built(Rack, stacks=[{"base": base_blocks}], block=block)
    model = {**base()["model"], "embedding": {"use": "transformer.token", "width": WIDTH, "vocab": VOCAB}, "rack": rack}
    return base(model=model, **changes)


class Deeper:
    """New blocks are fresh."""

    preserves_function = False

    def map_blocks(self, request: Any) -> dict[tuple[str, int], BlockOrigin]:
        old = request.old_stacks["base"]
        return {("base", i): BlockOrigin(source=("base", i) if i < old else None) for i in range(request.new_stacks["base"])}
