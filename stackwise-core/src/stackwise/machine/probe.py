"""The probe: one batch that judges the model before and after a boundary, to log how a transition changed the function."""

from __future__ import annotations

from collections.abc import Mapping
from math import nan
from typing import Any

import torch
from attrs import frozen

from stackwise.contracts.protocols import Batch
from stackwise.curriculum.schedule import CompiledPhase
from stackwise.machine.evaluation import gradients_if_asked, number
from stackwise.machine.live import LiveState
from stackwise.machine.preparing import judging, prepare
from stackwise.planes.data.randomness import seeded
from stackwise.planes.model.reported import split
from stackwise.timeline.duration import Moment
from stackwise.timeline.streams import step_seed, stream_key


@frozen
class Judgement:
    """Loss and outputs of a model on the batch."""

    loss: float
    outputs: Mapping[str, torch.Tensor]


@frozen
class Verdict:
    """How a boundary changed the function on the batch."""

    loss_before: float | None = None
    """None where the boundary keeps the function, or the models cannot be compared."""
    loss_after: float | None = None
    change: float | None = None
    """Largest absolute difference of any output; None where names or shapes of outputs changed."""


class Probe:
    """Keeps the last batch before a boundary and judges the live model with it."""

    def __init__(self, live: LiveState, seed: int, enabled: bool) -> None:
        self._live, self._key, self._enabled = live, stream_key(seed, "probe"), enabled
        self._last: tuple[Batch, Moment] | None = None
        self.step = -1
        """The step whose batch to keep."""

    def look_out(self, phase: CompiledPhase, steps: int) -> None:
        """Plan to keep the last batch of a phase, unless it is the run's last phase."""
        if self._enabled and phase.stop < steps:
            self.step = phase.stop - 1

    def keep(self, batch: Batch, moment: Moment) -> None:
        """Copy the batch to judge with."""
        self._last = {name: tensor.clone() for name, tensor in batch.items()}, moment

    def before(self, phase: CompiledPhase) -> Judgement | None:
        """Judge the old model; None where the boundary keeps the function, or one batch does not fit both sides."""
        if not self._enabled or self._last is None or phase.transition is None:
            return None
        if not (phase.transition.touches_function and self._live.keeps_task(phase)):
            return None
        return self._judge(*self._last)

    def after(self, before: Judgement | None) -> Verdict:
        """Judge the new model, and compare."""
        if before is None or self._last is None:
            return Verdict()
        return compare(before, self._judge(*self._last))

    def _judge(self, batch: Batch, moment: Moment) -> Judgement:
        """Loss and outputs in evaluation mode; the task draws from the probe's own stream, and training state is untouched."""
        seed = step_seed(self._key, moment.step)
        live, generator = self._live, torch.Generator().manual_seed(seed)
        model, objective = live.model.model, live.objective
        with seeded(seed), live.optimizer.evaluating(), judging(model), live.placement.forward_context():
            prepared = prepare(objective, model, batch, moment, generator)
            with gradients_if_asked(prepared):
                outputs = model(prepared)
                total, weight = objective.judged(model, outputs, prepared)[:2]
        live.rest()
        detached = {name: output.detach() for name, output in split(outputs, getattr(model, "reported", {}))[0].items()}
        return Judgement(number(total) / number(weight) if number(weight) else nan, detached)

    def state(self, step: int) -> dict[str, Any] | None:
        """The batch, where `step` is the boundary that it judges; else None."""
        if self._last is None or self._last[1].step != step - 1:
            return None
        return {"batch": dict(self._last[0])}

    def load_state(self, saved: Mapping[str, Any] | None, moment: Moment) -> None:
        """Load what `state` returned, of the instant of the last step.

        Raises:
            ValueError: it is no batch of the task.
        """
        if saved is not None:
            if missing := [name for name in self._live.objective.task.get_spec().batch if name not in saved["batch"]]:
                raise ValueError(f"the saved last batch has no field '{missing[0]}'")
            batch = {name: tensor.to(self._live.placement.device) for name, tensor in saved["batch"].items()}
            self._last = batch, moment


def compare(before: Judgement, after: Judgement) -> Verdict:
    """The difference between two judgements of the same batch."""
    one, other = before.outputs, after.outputs
    alike = one.keys() == other.keys() and all(one[name].shape == other[name].shape for name in one)
    differences = [float((one[name] - other[name]).abs().max()) for name in one] if alike else []
    return Verdict(before.loss, after.loss, max(differences, default=None))
