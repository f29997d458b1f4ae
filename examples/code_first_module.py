"""A torch user's own module, loader, loss and optimizer, with phases: one stack of blocks that grows, then a learning rate that falls.

python examples/code_first_module.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import stackwise
from stackwise import Built, Loss, Phase


class Block(nn.Module):
    """One residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[batch, width] → the same."""
        added: torch.Tensor = self.outer(torch.relu(self.inner(self.norm(hidden))))
        return hidden + added


class Net(nn.Module):
    """Any module: what stands before and after the blocks is its own business."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.inlet, self.outlet = nn.Linear(2, width), nn.Linear(width, 2)
        self.layers = nn.Sequential(*(Block(width) for _ in range(depth)))

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """[batch, 2] → scores of the two classes, [batch, 2]."""
        scores: torch.Tensor = self.outlet(self.layers(self.inlet(points)))
        return scores


def make_loader() -> DataLoader[tuple[torch.Tensor, ...]]:
    """Points of two spirals, one class each."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1024) % 2
    turn = torch.rand(1024, generator=generator) * 6
    angle = turn + torch.pi * labels
    points = torch.stack([turn * angle.cos(), turn * angle.sin()], dim=1) / 6 + 0.02 * torch.randn(1024, 2, generator=generator)
    return DataLoader(TensorDataset(points, labels), batch_size=64, shuffle=True)


def accuracy(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """One entry a row: 1 where the class is right."""
    return (scores.argmax(dim=1) == labels).float()


def make_experiment() -> stackwise.Experiment:
    """Two blocks, then four (the new ones copies), then an annealed learning rate."""
    return stackwise.experiment(
        run={"name": "spirals", "seed": 1, "horizon": "12 epochs"},
        task=Loss(nn.CrossEntropyLoss(), "labels", metrics={"accuracy": accuracy}),
        data={"sources": {"spirals": make_loader()}, "fields": ["points", "labels"]},
        model={"module": Built(Net, width=32, depth=2), "blocks": {"layers": "depth"}},
        optimizer=Built(torch.optim.AdamW, lr=3e-3),
        phases=[
            Phase("shallow", until="50%"),
            Phase("deep", until="75%", model={"module": {"depth": 4}}, enter={"growth": {"use": "transformer.stack"}}),
            Phase("annealed", optimizer={"lr": {"linear": {"to": 0, "over": "phase"}}}, model={"freeze": ["rack.inlet"]}),
        ],
    )


def main(output: Path | None = None) -> Net:
    """Train as `stackwise run` does, and load the final weights into the plain module."""
    result = stackwise.run(make_experiment(), output=output)
    net = Net(width=32, depth=4)
    net.load_state_dict(load_file(result.directory / "final" / "weights.safetensors"))
    return net


if __name__ == "__main__":
    main()
