"""How a task prepares a batch; where it asks for that, with the model at hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from stackwise.contracts.answers import mark
from stackwise.contracts.protocols import Batch, PreparesEvaluations
from stackwise.machine.buffers import KeptBuffers
from stackwise.planes.model.reported import split
from stackwise.planes.objective import Objective
from stackwise.timeline.duration import Moment


@contextmanager
def judging(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode; afterwards every module has its mode and every buffer its values back."""
    modes, buffers = {module: module.training for module in model.modules()}, KeptBuffers(model)
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        buffers.put_back()


def prepare(
    objective: Objective, model: nn.Module, batch: Batch, moment: Moment, generator: torch.Generator, *, evaluates: bool = False
) -> Batch:
    """The batch as embedding and loss read it.

    Args:
        objective: has the task.
        model: as it is now; a task with `uses_model` asks it, in eval mode and without gradients.
        batch: of the data plane.
        moment: the instant.
        generator: of all randomness.
        evaluates: whether it is for an evaluation, which some tasks prepare otherwise.

    Raises:
        ProviderError: the task returned no map of tensors; UserError for a task given in code.
    """
    task: Any = objective.task
    make, callback = task.prepare, "prepare"
    if evaluates and isinstance(task, PreparesEvaluations):
        make, callback = task.prepare_evaluation, "prepare_evaluation"
    try:
        if not objective.uses_model:
            prepared: Batch = make(batch, moment, generator)
        else:
            with judging(model), torch.no_grad():
                prepared = make(batch, moment, generator, model=_Asked(model))
        objective.check_prepared(prepared)
    except BaseException as error:
        mark(error, objective.name, callback)
        raise
    return prepared


class _Asked:
    """The model as a task sees it: batch → outputs by name, without what parts report beside them."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        outputs: Mapping[str, torch.Tensor] = self._model(batch)
        return split(outputs, getattr(self._model, "reported", {}))[0]
