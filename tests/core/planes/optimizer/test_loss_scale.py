"""The scale of the loss of a float16 model: a power of two that falls at an overflow and rises after a long time without one."""

from __future__ import annotations

from collections.abc import Mapping
from math import log2

import pytest
import torch
from small_planes import adam, named, state
from torch import nn

from stackwise import PhaseSchedule, StepDone, TrainingMachine
from stackwise.builtin.loss import LossTask
from stackwise.planes.optimizer.loss_scale import FIRST, LARGEST, PATIENCE_STEPS, LossScale
from stackwise.planes.optimizer.plane import OptimizerPlane


def test_it_falls_at_every_overflow_as_long_as_it_can() -> None:
    scale = LossScale()
    falls = [scale.watch(finite=False) for _ in range(int(log2(FIRST)) + 2)]
    assert falls == [True] * int(log2(FIRST)) + [False] * 2 and scale.factor == 1.0


def test_it_doubles_after_its_patience_and_never_beyond_its_largest() -> None:
    scale = LossScale()
    for _ in range(PATIENCE_STEPS - 1):
        scale.watch(finite=True)
    assert scale.factor == FIRST
    restored = LossScale()
    restored.load_state_dict(scale.state_dict())
    restored.watch(finite=True)
    assert restored.factor == 2 * FIRST
    for _ in range(20 * PATIENCE_STEPS):
        restored.watch(finite=True)
    assert restored.factor == LARGEST


def test_a_plane_has_one_where_anything_is_float16_frozen_or_not() -> None:
    for dtype, frozen, scaled in ((torch.float32, False, False), (torch.bfloat16, False, False), (torch.float16, True, True)):
        parameters = {**named("a"), **named("b", dtype=dtype)}
        parameters["b"].requires_grad_(not frozen)
        plane = OptimizerPlane(adam)
        plane.enter(state(), parameters, 0.0)
        assert (plane.loss_scale is not None) == scaled


class ThroughHalf(nn.Module):
    """A trained number, seen through a frozen one in float16; the gradient that arrives there is 1e-8, below float16."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.ones(1))
        self.gain = nn.Parameter(torch.ones(1, dtype=torch.float16), requires_grad=False)

    def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"output": (self.own.half() * self.gain).float() * batch["x"]}


def test_a_finished_optimizer_has_one_where_gradients_pass_through_frozen_float16() -> None:
    model = ThroughHalf()
    machine = TrainingMachine(
        model=model,
        data=[{"x": torch.full((1,), 1e-8)}],
        task=LossTask(torch.sum, (), {}),
        optimizer=torch.optim.SGD([model.own], lr=0.1),
        schedule=PhaseSchedule.single(steps=1),
    )
    (step,) = [event for event in machine.train() if isinstance(event, StepDone)]
    assert step.grad_norm == pytest.approx(1e-8, rel=1e-2) and not step.skipped
