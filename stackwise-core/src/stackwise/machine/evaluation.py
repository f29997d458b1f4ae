"""Evaluations: fixed data, length and corruption across phases, so that curves compare."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import Factory, frozen
from torch import nn

from stackwise.contracts.protocols import PreparesEvaluations
from stackwise.curriculum.states import DataState
from stackwise.errors import DataError
from stackwise.machine.placement import Placement
from stackwise.planes.data.plane import DataPlane
from stackwise.planes.data.randomness import seed_others
from stackwise.planes.objective import Objective
from stackwise.timeline.duration import Moment
from stackwise.timeline.streams import step_seed, stream_key


@frozen(kw_only=True)
class Evaluation:
    """One named evaluation on a data plane of its own."""

    name: str
    data: DataPlane
    state: DataState
    batches: int
    values: Mapping[str, Mapping[str, float]] = Factory(dict)
    """Task id → fixed values of its options that follow time in training."""
    seed: int = 0
    weights: str = "live"
    """`live`, or `ema` for the averaged ones."""

    def run(self, model: nn.Module, objective: Objective, placement: Placement, moment: Moment) -> dict[str, float]:
        """Means weighted by their own denominators over the same batches every time; training streams are not touched.

        Raises:
            DataError: no target in all the batches.
        """
        self.data.enter(self.state, lookahead=objective.lookahead)
        start = self.data.state_dict()
        key, generator = stream_key(self.seed, "evaluate", self.name), torch.Generator()
        sums: dict[str, list[float]] = {}
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            with objective.fixed(self.values) as task, torch.inference_mode(), placement.forward_context():
                prepare = task.prepare_evaluation if isinstance(task, PreparesEvaluations) else task.prepare
                for i in range(self.batches):
                    fixed = moment._replace(step=i, t=0.0, phase_t=0.0)
                    for batch in self.data.batches(fixed):
                        seed_others(step_seed(key, i))
                        for process_wide in placement.generators():  # for a model that draws even when it evaluates
                            process_wide.manual_seed(step_seed(key, i))
                        prepared = prepare(batch, fixed, generator.manual_seed(step_seed(key, i)))
                        total, weight, metrics = objective.loss(model, prepared)
                        for name, (value, count) in {"loss": (total, weight), **metrics}.items():
                            line = sums.setdefault(name, [0.0, 0.0])
                            line[0] += float(value)
                            line[1] += float(count)
        finally:
            for module, mode in modes.items():
                module.training = mode
            self.data.load_state_dict(start)
        return _means(self.name, sums)


def _means(name: str, sums: Mapping[str, list[float]]) -> dict[str, float]:
    if not sums or sums["loss"][1] == 0:
        raise DataError(f"evaluation '{name}' found no target in its batches")
    return {metric: total / weight for metric, (total, weight) in sums.items() if weight}
