"""A loss function as a task, for whole modules in code: the batch stays as it is, and the function compares output and targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from stackwise.builtin.labels import is_without_labels, label_counts, nothing
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
    that it returns (also as a tensor of one entry) is taken for the mean over the rows of the batch; a tensor of several entries, as of
    `reduction="none"`, is summed over, and each of its entries counts as one; a pair is a sum and its denominator. A mean of
    cross-entropy or of log-likelihood, as torch's functions and modules give it, counts what it is a mean over: the labels that are not
    its `ignore_index`, each by the weight of its class. A mean of a function of your own over anything but rows is to be given as a
    pair, or accumulation would weigh it by rows; where it is not a number because every whole-number label is -100, it has no targets.

    Args:
        function: as those of `torch.nn.functional`, or a loss module without parameters.
        targets: batch fields, in the order of its further arguments.
        metrics: name → a function like it, reported beside the loss and not trained on.

    Raises:
        UserError: a loss with parameters, which no optimizer would train; one that sums, which has no denominator; what is not a function.
    """
    for each in (function, *(metrics or {}).values()):
        _check(each)
    if wrong := [target for target in targets if not isinstance(target, str)]:
        raise UserError(f"a target of a Loss is the name of a field, and {wrong[0]!r:.60} is none: write Loss(function, 'labels')")
    if "loss" in (metrics or {}):
        raise UserError("a metric is named 'loss', which is the name of what is trained on: call it otherwise")
    task = StatefulLossTask if any(_keeps(each) for each in (function, *(metrics or {}).values())) else LossTask
    return Built(task, function=function, targets=targets, metrics=dict(metrics or {}))


def _check(function: Function) -> None:
    """Refuse what cannot be a loss or a metric."""
    if isinstance(function, type) or not callable(function):
        name = getattr(function, "__name__", repr(function))
        raise UserError(f"{name} is not a function of output and targets: give one, or a loss module such as nn.MSELoss()")
    name = type(function).__name__
    if any(True for _ in getattr(function, "parameters", tuple)()):
        raise UserError(f"the loss {name} has parameters, which no optimizer trains: put it into the module")
    if isinstance(function, partial) and "reduction" not in function.keywords:
        _check(function.func)
    if getattr(function, "reduction", None) == "sum" or (isinstance(function, partial) and function.keywords.get("reduction") == "sum"):
        raise UserError(
            f"the loss {name} sums without saying over how much, so micro-batches and evaluations would not compare: write "
            "reduction='none' (the mean over all entries is trained on) or 'mean', or return a pair, the sum and its denominator"
        )


class LossTask:
    """The task of a `Loss`."""

    def __init__(self, function: Function, targets: Sequence[str], metrics: Mapping[str, Function]) -> None:
        self._function, self._metrics = function, dict(metrics)
        self.targets = tuple(targets)
        """The fields that it compares with; others that the module does not read are refused."""

    @property
    def functions(self) -> tuple[Function, ...]:
        """The loss and the metrics."""
        return (self._function, *self._metrics.values())

    def get_spec(self) -> TaskSpec:
        """Nothing is known of the fields before the first batch."""
        return TaskSpec(batch={}, inputs={}, outputs={}, metrics=tuple(self._metrics))

    def prepare(self, batch: Batch, moment: object, generator: torch.Generator) -> Batch:
        """The batch as it is.

        Raises:
            UserError: it lacks a target field.
        """
        if missing := [name for name in self.targets if name not in batch]:
            raise UserError(f"the loss compares with the field '{missing[0]}', and the batch has {', '.join(batch)}: name one of these")
        return batch

    def loss(self, outputs: Mapping[str, torch.Tensor], batch: Batch) -> tuple[torch.Tensor, torch.Tensor | float, Mapping[str, Totals]]:
        """Sum over what the function counts, and how many it counts."""
        output = outputs["output"] if outputs.keys() == {"output"} else outputs
        total, weight = self._totals(self._function, output, batch)
        if not hasattr(total, "backward"):
            raise UserError(f"the loss is {_described(total)}: return a tensor, which gradients flow back from (without .item())")
        if not self._metrics:
            return total, weight, {}
        fixed = {name: value.detach() for name, value in outputs.items() if hasattr(value, "detach")}
        output = fixed["output"] if outputs.keys() == {"output"} else fixed
        return total, weight, {name: self._totals(function, output, batch) for name, function in self._metrics.items()}

    def _totals(self, function: Function, output: Any, batch: Batch) -> Totals:
        try:
            value = function(output, *(batch[name] for name in self.targets))
        except Exception as error:
            fields = {"output": output} if not isinstance(output, Mapping) else output
            error.add_note(f"in a loss or a metric of {_shapes(fields)} and {_shapes({name: batch[name] for name in self.targets})}")
            if not isinstance(output, Mapping) or not isinstance(error, AttributeError | TypeError):
                raise
            name, first = getattr(function, "__name__", type(function).__name__), next(iter(output), "…")
            raise UserError(
                f"the module returns a map of {', '.join(output)}, and {name} fails on it ({type(error).__name__}: {error}): take out what "
                f"it compares, Loss(lambda output, target: {name}(output['{first}'], target), …), or let forward return one tensor"
            ) from error
        if isinstance(value, tuple) and len(value) == 2 and all(_is_one_number(each) for each in value):
            return value
        if hasattr(value, "numel") and value.numel() != 1:
            counts = label_counts(function, self._labels(batch))
            return value.sum(), float(value.numel() if counts is None else counts.sum())
        if not _is_one_number(value):
            name = getattr(function, "__name__", type(function).__name__)
            raise UserError(
                f"the function {name} returns what is {_described(value)}: a loss or a metric is a number, a tensor, or a pair of one "
                "number each, the sum and its denominator"
            )
        rows = self._counted(function, value, batch)
        if not rows:
            return nothing(output), 0.0
        return (value.reshape(()) if hasattr(value, "reshape") else value) * rows, rows

    def _counted(self, function: Function, mean: Any, batch: Batch) -> float:
        """The denominator of a mean."""
        labels = self._labels(batch)
        if (counts := label_counts(function, labels)) is not None:
            return float(counts.sum())
        if is_without_labels(mean, labels):
            return 0.0
        return float(next(iter(batch.values())).shape[0])

    def _labels(self, batch: Batch) -> list[torch.Tensor]:
        return [batch[name] for name in self.targets]


class StatefulLossTask(LossTask):
    """The task of a loss or a metric that keeps something: what its `state_dict` returns goes into every checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """By function, in their order."""
        return {str(index): dict(each.state_dict()) for index, each in self._stateful().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put it back.

        Raises:
            UserError: the state is that of other functions.
        """
        functions = self._stateful()
        if state.keys() != {str(index) for index in functions}:
            raise UserError("the saved state is that of another loss: give the loss and the metrics that the run began with")
        for index, each in functions.items():
            each.load_state_dict(state[str(index)])

    def _stateful(self) -> dict[int, Any]:
        return {index: _holder(each) for index, each in enumerate(self.functions) if _keeps(each)}


def _holder(function: Function) -> Any:
    """The object that a function belongs to."""
    return getattr(function, "__self__", function)


def _keeps(function: Function) -> bool:
    """Whether it keeps something that it can say; torch's own losses hold weights of classes, which stay as they are."""
    holder = _holder(function)
    if not (callable(getattr(holder, "state_dict", None)) and callable(getattr(holder, "load_state_dict", None))):
        return False
    return type(holder).__module__ != "torch.nn.modules.loss" and bool(holder.state_dict())


def _shapes(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"'{name}' {getattr(value, 'dtype', '')} {_described(value)}" for name, value in fields.items())


def _is_one_number(value: Any) -> bool:
    """Whether it is a number, or a tensor of one entry."""
    return isinstance(value, int | float) or (hasattr(value, "numel") and value.numel() == 1)


def _described(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)} ({', '.join(_described(each) for each in value)})"
    return f"a tensor of shape {list(value.shape)}" if hasattr(value, "numel") else f"of type {type(value).__name__}"
