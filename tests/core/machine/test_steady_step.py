"""What a steady step asks of our own code: a count of calls, which no load on the machine moves."""

from __future__ import annotations

import sys
from collections import Counter
from types import FrameType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stackwise
from stackwise import Built, StepDone, TaskSpec, TensorSpec

Batch = dict[str, torch.Tensor]


class Regression:
    """Mean squared error."""

    def get_spec(self) -> TaskSpec:
        x = TensorSpec("batch width", "float32")
        return TaskSpec(batch={"x": x, "y": x}, inputs={"x": x}, outputs={"out": x})

    def prepare(self, batch: Batch, moment: object, generator: torch.Generator) -> Batch:
        return batch

    def loss(self, outputs: Batch, batch: Batch) -> tuple[torch.Tensor, int, dict[str, Any]]:
        return F.mse_loss(outputs["out"], batch["y"], reduction="sum"), batch["y"].numel(), {}


class First(nn.Module):
    """Features to hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.inner(x)
        return hidden


class Last(First):
    """Hidden to the output."""

    def forward(self, hidden: torch.Tensor) -> Batch:  # type: ignore[override]  # another part of the model
        return {"out": self.inner(hidden)}


def calls_of_a_step(lr: object) -> Counter[str]:
    """Our own functions that the 20th step calls, and how often."""
    experiment = stackwise.experiment(
        run={"horizon": "30 steps", "device": "cpu"},
        task=Regression(),
        data=[{"x": torch.randn(2, 4), "y": torch.randn(2, 4)} for _ in range(5)],
        model={"embedding": Built(First), "rack": Built(nn.Identity), "head": Built(Last)},
        optimizer=Built(torch.optim.AdamW, lr=lr),
    )
    steps = (event for event in stackwise.assemble(experiment).train() if isinstance(event, StepDone))
    for _ in range(19):
        next(steps)
    calls: Counter[str] = Counter()

    def count(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_globals.get("__name__", "").startswith("stackwise."):
            calls[frame.f_code.co_qualname] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        next(steps)
    finally:
        sys.setprofile(before)
    return calls


@pytest.mark.parametrize(("lr", "most"), [(1e-3, 58), ({"linear": {"from": 1e-3, "to": 0}}, 62)])
def test_a_steady_step_makes_few_calls(lr: object, most: int) -> None:
    calls = calls_of_a_step(lr)
    assert 40 < calls.total() <= most, calls


def test_what_stands_still_is_not_asked_for_its_values() -> None:
    still, moving = calls_of_a_step(1e-3), calls_of_a_step({"linear": {"from": 1e-3, "to": 0}})
    assert not {name for name in still if name.endswith("apply_values")}
    assert {name for name in moving if name.endswith("apply_values")} == {"OptimizerPlane.apply_values"}
