"""One training step: forward and backward over its batches, then, when everything is finite, clip and update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from math import hypot, isfinite, nan
from typing import Any, NamedTuple

import torch
from torch import nn

from stackwise.contracts.protocols import Batch
from stackwise.errors import UserError
from stackwise.machine.added_losses import AddedGradients, factors
from stackwise.machine.buffers import TrainedBuffers
from stackwise.machine.evaluation import number
from stackwise.machine.faults import memory_fault
from stackwise.machine.first_steps import FirstSteps
from stackwise.machine.ids import ids_fault
from stackwise.machine.live import LiveState
from stackwise.machine.preparing import prepare
from stackwise.planes.data.randomness import OwnDraws, StepSeeds
from stackwise.planes.objective import Judged
from stackwise.processes.reduction import Reduction, no_gradient
from stackwise.timeline.duration import Moment
from stackwise.timeline.streams import stream_key

Metrics = Mapping[str, tuple[Any, Any]]
"""Name → a sum and its denominator."""


class _Own(NamedTuple):
    """What the micro-batches of this process come to."""

    total: float
    targets: float
    metrics: Mapping[str, tuple[float, float]]
    unit: float
    """Factor on the accumulated gradients."""


_BESIDE = "+"
"""Begins the names under which denominators of added losses go round beside the metrics."""

NO_TARGET = "it has no target"
OVERFLOW = "a gradient was too large for float16: the scale of the loss is halved"
"""Why a step is skipped that is not at fault."""


class Outcome(NamedTuple):
    """The outcome of one step."""

    loss: float
    """Mean over the step's targets; nan without targets."""
    grad_norm: float
    skipped: str
    """Why the step changed nothing; empty where it trained."""
    metrics: dict[str, float]
    """What the task reports beside the loss, as means."""


class Step:
    """Trains the live state one step at a time."""

    def __init__(self, live: LiveState, seed: int, reduction: Reduction | None = None) -> None:
        self._live, self._reduction = live, reduction
        self._task_seeds, self._model_seeds = StepSeeds(stream_key(seed, "task")), StepSeeds(stream_key(seed, "model"))
        self.draws = OwnDraws(self._model_seeds(0))
        """What the code of a step draws from without naming a generator of torch."""
        self._generator = torch.Generator()
        self._generators = live.placement.generators()
        self._last_share: tuple[float, torch.Tensor] | None = None
        self._buffers: TrainedBuffers | None = None
        """None for a model without buffers."""
        self._first: FirstSteps | None = None
        """Looks at the first steps of a phase."""
        self._default: Mapping[str, Any] = {}
        """The torch group of the parameters that no declared group takes."""
        self._rates: list[tuple[str, dict[str, Any], str]] = []

    def get_ready(self) -> None:
        """At the start of a phase: find its buffers and learning rates."""
        self.draws.begin()
        model = self._live.model.model
        self._buffers = TrainedBuffers(model) if next(model.buffers(), None) is not None else None
        self._first = FirstSteps(model, self._live.given(), self._live.optimizer.state_dict)
        self._default, self._rates = self._live.optimizer.default_group, _rates(self._live.optimizer.optimizer)

    def rates(self) -> tuple[float, dict[str, float]]:
        """The learning rate of the parameters that no group takes, and where there are several all of them by group and key."""
        several = {name: float(group[key]) for name, group, key in self._rates} if self._rates else {}
        return float(self._default.get("lr", 0.0)), several

    def seed(self, step: int, index: int = 0) -> None:
        """Seed torch's streams of a micro-batch of a step; called before the data of the step are read, which may draw too."""
        self._generator.manual_seed(self._task_seeds(step, index))
        seed = self._model_seeds(step, index)
        for generator in self._generators:
            generator.manual_seed(seed)

    def run(self, batches: Sequence[Batch], moment: Moment) -> Outcome:
        """Forward, backward and, when everything is finite, the update.

        Raises:
            UserError: out of memory; an id that a table or the loss has no place for, a ProviderError where a provider made it.
        """
        try:
            return self._run(batches, moment)
        except IndexError as error:
            if (fault := ids_fault(error, batches, self._live.data)) is None:
                raise
            raise fault from error
        except (RuntimeError, MemoryError) as error:
            if (fault := memory_fault(error, batches, moment)) is None:
                raise
            raise fault from error

    def _run(self, batches: Sequence[Batch], moment: Moment) -> Outcome:
        optimizer, buffers = self._live.optimizer, self._buffers
        if buffers is not None:
            buffers.before_step()
        if self._first is not None:
            self._first.begin()
        loss, targets, metrics = self._backward(batches, moment)
        if self._first is not None:
            self._first.look()
        parameters = optimizer.parameters
        sharding = self._live.sharding
        norm = gradient_norm(parameters) if sharding is None else sharding.norm(parameters)
        if why := self._skip_reason(loss, norm, targets):
            if buffers is not None:
                buffers.put_back()
        else:
            if optimizer.clip is not None and norm > optimizer.clip:
                self._scale(parameters, optimizer.clip / norm)
            with nullcontext() if sharding is None else sharding.stepping():
                optimizer.step(moment.t)
        for parameter in parameters:
            parameter.grad = None
        if self._first is not None and self._first.end():
            self._first = None
        if sharding is not None:
            self._live.rest()
        return Outcome(loss, norm, why, metrics)

    def _skip_reason(self, loss: float, norm: float, targets: float) -> str:
        if not targets:
            return NO_TARGET
        if not isfinite(loss):
            return "its loss is not finite"
        scale, finite = self._live.optimizer.loss_scale, isfinite(norm)
        if scale is not None and scale.watch(finite=finite):  # it falls, so that a later step may fit
            return OVERFLOW
        if not finite:
            return "its gradient is not finite"
        buffer = None if self._buffers is None else self._buffers.not_finite()
        return "" if buffer is None else f"it made the buffer {buffer} not finite"

    def _backward(self, batches: Sequence[Batch], moment: Moment) -> tuple[float, float, dict[str, float]]:
        """Gradients of the mean over all targets of the step; exact under accumulation, as sums and weights are added separately."""
        parameters, scale = self._live.optimizer.parameters, self._live.optimizer.loss_scale
        if len(batches) == 1 and self._reduction is None:
            total, weight, metrics, added = self._forward(batches[0], moment)
            share = self._share(total, weight)
            share = share if scale is None else share * scale.factor
            pairs, shares = factors(added, 1.0 if scale is None else scale.factor) if added else ((), ())
            torch.autograd.backward((total, *pairs), (share, *shares))
            if scale is not None:
                _scale_gradients(parameters, 1.0 / scale.factor)
            targets = float(weight)
            return _ratio(total.item(), targets), targets, _means((metrics,)) if metrics else {}
        totals = targets = 0.0
        unit = 1.0
        """Factor on the accumulated gradients: in float16 the gradients of a sum would overflow, so they are kept near those of a mean."""
        parts: list[Metrics] = []
        beside = AddedGradients(parameters)
        for index, batch in self._live.data.share.indices(batches):
            if index:
                self.seed(moment.step, index)
            if self._live.sharding is not None:
                self._live.sharding.begin(self._live.model.model, last=batch is batches[-1])
            total, weight, metrics, added = self._forward(batch, moment)
            if scale is not None and not parts:
                unit = scale.factor / (float(weight) or 1.0)
            beside.take(added, unit)
            torch.autograd.backward(total, None if scale is None else total.new_full((), unit))
            totals, targets = totals + total.item(), targets + float(weight)
            parts.append(metrics)
        if self._reduction is not None:
            return self._add_up(self._reduction, _Own(totals, targets, _sums(parts), unit), beside)
        _scale_gradients(parameters, _ratio(1.0, targets) / unit)
        beside.give(unit)
        return _ratio(totals, targets), targets, _means(parts)

    def _add_up(self, reduction: Reduction, own: _Own, beside: AddedGradients) -> tuple[float, float, dict[str, float]]:
        """Sums of all processes; gradients are made shares of the means of the whole step before they are added."""
        parameters, losses = self._live.optimizer.parameters, beside.denominators()
        sharding = self._live.sharding
        if sharding is None:
            present = [p.grad is not None or added for p, added in zip(parameters, beside.present(), strict=True)]
        else:
            present = sharding.take_touched(parameters)
        pairs = {**own.metrics, **{_BESIDE + name: (0.0, denominator) for name, denominator in losses.items()}}
        sums = reduction.numbers(own.total, own.targets, pairs, present)
        self._scale(parameters, _ratio(1.0, sums.targets) / own.unit)
        beside.give(own.unit, {name.removeprefix(_BESIDE): pair[1] for name, pair in sums.metrics.items() if name.startswith(_BESIDE)})
        reduction.gradients(parameters, sums.present)
        metrics = {name: pair[0] / pair[1] for name, pair in sums.metrics.items() if not name.startswith(_BESIDE)}
        return _ratio(sums.total, sums.targets), sums.targets, metrics

    def _scale(self, parameters: Sequence[nn.Parameter], factor: float) -> None:
        """Multiply the gradients, or this process's parts of them."""
        if self._live.sharding is None:
            _scale_gradients(parameters, factor)
        else:
            self._live.sharding.scale(parameters, factor)

    def _share(self, total: torch.Tensor, weight: torch.Tensor | float) -> torch.Tensor:
        """1 / weight, which backward takes as the gradient of the sum: the mean's gradient without a division in the graph."""
        if isinstance(weight, torch.Tensor):
            return torch.ones_like(total) / weight
        share = self._last_share
        if share is None or share[0] != weight or share[1].dtype != total.dtype:
            share = self._last_share = (weight, torch.full_like(total, _ratio(1.0, weight), requires_grad=False))
        return share[1]

    def _forward(self, batch: Batch, moment: Moment) -> Judged:
        objective, model, autocast = self._live.objective, self._live.model.model, self._live.placement.autocast
        if autocast is None:
            judged = objective.loss(model, prepare(objective, model, batch, moment, self._generator))
        else:
            with autocast() if objective.uses_model else nullcontext():
                prepared = prepare(objective, model, batch, moment, self._generator)
            with autocast():
                judged = objective.loss(model, prepared)
        if self._first is not None and self._live.sharding is None:  # a divided model computes with tensors put together for it
            self._first.reached(judged.total)
        return judged


def gradient_norm(parameters: Sequence[nn.Parameter]) -> float:
    """Global L2 norm of the gradients; not finite when any of them is not.

    Raises:
        UserError: no parameter has a gradient, as the loss depends on nothing trainable; a gradient is sparse.
    """
    gradients = [gradient for p in parameters if (gradient := p.grad) is not None]
    if not gradients:
        raise no_gradient()
    try:
        norms = torch._foreach_norm(gradients)
    except NotImplementedError:
        shapes = [list(gradient.shape) for gradient in gradients if gradient.is_sparse]
        if not shapes:
            raise
        raise UserError(
            f"the gradient of a parameter of shape {shapes[0]} is sparse, and norms, clipping and accumulation here read dense ones: "
            "build its layer with sparse=False"
        ) from None
    return hypot(*norms) if gradients[0].is_cpu else hypot(*torch.stack(norms).tolist())  # on a GPU each single read would wait for it


def _scale_gradients(parameters: Sequence[nn.Parameter], factor: float) -> None:
    if gradients := [p.grad for p in parameters if p.grad is not None]:
        torch._foreach_mul_(gradients, factor)


def _ratio(total: float, weight: float) -> float:
    """A mean; nan where the step has no target."""
    return total / weight if weight else nan


def _means(parts: Sequence[Metrics]) -> dict[str, float]:
    """Means over the batches of a step; a metric without a denominator is left out."""
    return {name: total / weight for name, (total, weight) in _sums(parts).items() if weight}


def _sums(parts: Sequence[Metrics]) -> dict[str, tuple[float, float]]:
    sums: dict[str, tuple[float, float]] = {}
    for metrics in parts:
        for name, (value, count) in metrics.items():
            total, weight = sums.get(name, (0.0, 0.0))
            sums[name] = (total + number(value), weight + number(count))
    return sums


def _rates(optimizer: torch.optim.Optimizer) -> list[tuple[str, dict[str, Any], str]]:
    """Name, torch group and key of every learning rate; empty where there is only one."""
    groups = optimizer.param_groups
    pairs = [(group.get("group", str(i) if len(groups) > 1 else "default"), group) for i, group in enumerate(groups)]
    rates = {f"{name}.{key}": (group, key) for name, group in pairs for key in group if key == "lr" or key.endswith("_lr")}
    return [(name, *place) for name, place in rates.items()] if len(rates) > 1 else []
