"""A whole module as the model of a config, in two lists of blocks that can grow, and another value for each key that it brings."""

from __future__ import annotations

from typing import Any

import torch
from tiny_walks import base
from torch import nn

from stackwise import Built, Loss


class Net(nn.Module):
    """Two lists of blocks between an inlet and an outlet."""

    def __init__(self, lower: int = 1, upper: int = 1, width: int = 4) -> None:
        super().__init__()
        self.inlet, self.outlet = nn.Linear(3, width), nn.Linear(width, 3)
        self.first = nn.ModuleList(nn.Linear(width, width) for _ in range(lower))
        self.second = nn.ModuleList(nn.Linear(width, width) for _ in range(upper))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.inlet(x)
        for block in (*self.first, *self.second):
            hidden = hidden + torch.tanh(block(hidden))
        y: torch.Tensor = self.outlet(hidden)
        return y


def _rows(seed: int) -> torch.Tensor:
    return torch.randn(40, 3, generator=torch.Generator().manual_seed(seed))


def one_module() -> dict[str, Any]:
    """A module whose first list of blocks grows, and whose learning rate follows the number of blocks that are told."""
    return base(
        run={"name": "module", "seed": 3, "horizon": "4 steps", "device": "cpu"},
        task=Loss(nn.functional.mse_loss, "y"),
        data={"sources": {"a": {"use": "data.memory", "arrays": {"x": _rows(0), "y": _rows(1)}}}, "batch_size": 4},
        model={"module": Built(Net, lower=1, upper=1), "blocks": {"first": "lower"}},
        optimizer={"use": "optim.adamw", "lr": 0.01, "lr_scaling": {"depth": {"exponent": -1}}},
        phases={
            "shallow": {"until": "2 steps"},
            "deep": {"model": {"module": {"lower": 2}}, "enter": {"growth": {"use": "transformer.stack"}}},
        },
    )


ROWS: dict[str, list[tuple[Any, str, Any]]] = {
    "model.module": [
        (one_module, "model/module", Built(Net, lower=1, upper=1, width=5)),
        (one_module, "model/rack", {"use": "transformer.decoder"}),
    ],
    "model.blocks": [
        (one_module, "model/blocks", {"first": "lower", "second": "upper"}),
        (one_module, "model/blocks", {}),
        (one_module, "model/blocks", {"first": "upper"}),
    ],
}
"""Core key → (base config, where, another value)."""
