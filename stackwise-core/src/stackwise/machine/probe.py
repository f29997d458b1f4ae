"""The probe: one batch that judges the model before and after a boundary, so that the log says what a transition did to the function."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import frozen
from torch import nn

from stackwise.contracts.protocols import Batch
from stackwise.machine.placement import Placement
from stackwise.planes.objective import Objective
from stackwise.timeline.duration import Moment
from stackwise.timeline.streams import step_seed, stream_key


@frozen
class Judged:
    """What a model made of the batch."""

    loss: float
    outputs: Mapping[str, torch.Tensor]


@frozen
class Verdict:
    """What a boundary did to the function on the batch."""

    loss_before: float
    loss_after: float
    change: float | None
    """Largest absolute difference of any output; None where outputs changed their names or shapes."""


def judge(batch: Batch, model: nn.Module, objective: Objective, placement: Placement, moment: Moment, seed: int) -> Judged:
    """Loss and outputs in evaluation mode, with the task's own draws from a stream of the probe; nothing of training is touched."""
    generator = torch.Generator().manual_seed(step_seed(stream_key(seed, "probe"), moment.step))
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode(), placement.forward_context():
            prepared = objective.task.prepare(batch, moment, generator)
            outputs = model(prepared)
            total, weight, _ = objective.judge(outputs, prepared)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return Judged(float(total) / float(weight) if float(weight) else float("nan"), outputs)


def compare(before: Judged, after: Judged) -> Verdict:
    """The difference between two judgements of the same batch."""
    alike = before.outputs.keys() == after.outputs.keys() and all(
        before.outputs[name].shape == after.outputs[name].shape for name in before.outputs
    )
    differences = [float((before.outputs[name] - after.outputs[name]).abs().max()) for name in before.outputs] if alike else []
    return Verdict(before.loss, after.loss, max(differences, default=None))
