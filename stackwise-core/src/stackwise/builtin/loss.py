"""A loss function as a task, for whole modules in code: the batch stays as it is, and the function compares output and targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stackwise.contracts.components import Built
from stackwise.contracts.protocols import Batch, Totals
from stackwise.contracts.specs import TaskSpec
from stackwise.errors import UserError

if TYPE_CHECKING:
    import torch

Function = Callable[..., Any]
"""(output of the module, target fields of the batch …) → a tensor."""


def Loss(function: Function, *targets: str, metrics: Mapping[str, Function] | None = None) -> Built:
    """The task that a loss function makes: `task=Loss(nn.CrossEntropyLoss(), "labels")`.

    The function is called with the module's output (its tensor, or the map of tensors that it returns) and the target fields. A number
    that it returns is taken for the mean over the rows of the batch; a tensor with dimensions, as of `reduction="none"`, is summed over,
    and each of its entries counts as one; a pair is a sum and its denominator. So a mean over anything but rows (`ignore_index`, weighted
    classes) is to be given as a pair, or accumulation would weigh it by rows.

    Args:
        function: as those of `torch.nn.functional`, or a loss module without parameters.
        targets: batch fields, in the order of its further arguments.
        metrics: name → a function like it, reported beside the loss and not trained on.

    Raises:
        UserError: a loss with parameters, which no optimizer would train.
    """
    if any(True for _ in getattr(function, "parameters", tuple)()):
        raise UserError(f"the loss {type(function).__name__} has parameters, which no optimizer trains: put it into the module")
    return Built(LossTask, function=function, targets=targets, metrics=dict(metrics or {}))


class LossTask:
    """The task of a `Loss`."""

    def __init__(self, function: Function, targets: Sequence[str], metrics: Mapping[str, Function]) -> None:
        self._function, self._targets, self._metrics = function, tuple(targets), dict(metrics)

    def get_spec(self) -> TaskSpec:
        """Nothing is known of the fields before the first batch."""
        return TaskSpec(batch={}, inputs={}, outputs={}, metrics=tuple(self._metrics))

    def prepare(self, batch: Batch, moment: object, generator: torch.Generator) -> Batch:
        """The batch as it is.

        Raises:
            UserError: it has not the target fields.
        """
        if missing := [name for name in self._targets if name not in batch]:
            raise UserError(f"the loss compares with the field '{missing[0]}', and the batch has {', '.join(batch)}: name one of these")
        return batch

    def loss(self, outputs: Mapping[str, torch.Tensor], batch: Batch) -> tuple[torch.Tensor, torch.Tensor | float, Mapping[str, Totals]]:
        """Sum over what the function counts, and how many it counts."""
        output = outputs["output"] if outputs.keys() == {"output"} else outputs
        total, weight = self._totals(self._function, output, batch)
        if not self._metrics:
            return total, weight, {}
        fixed = {name: value.detach() for name, value in outputs.items() if hasattr(value, "detach")}
        output = fixed["output"] if outputs.keys() == {"output"} else fixed
        return total, weight, {name: self._totals(function, output, batch) for name, function in self._metrics.items()}

    def _totals(self, function: Function, output: Any, batch: Batch) -> Totals:
        value = function(output, *(batch[name] for name in self._targets))
        if isinstance(value, tuple):
            total, weight = value
            return total, weight
        if value.dim():
            return value.sum(), float(value.numel())
        rows = float(next(iter(batch.values())).shape[0])
        return value * rows, rows
