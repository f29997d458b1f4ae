"""FLOPs of a step: a forward and a backward pass of each of its batches on the meta device, counted by torch.

These are the matrix products of model and loss; elementwise operations of the model are not among them.
"""

from __future__ import annotations

from collections import Counter
from copy import deepcopy

import torch
from attrs import Factory, asdict, define, frozen
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stackwise.assembly.prepared_shapes import Shapes, prepared_shapes
from stackwise.assembly.references import outline
from stackwise.assembly.uncompiled import without_compiler
from stackwise.assembly.workshop import Workshop
from stackwise.contracts.answers import WrongAnswer
from stackwise.contracts.specs import AT_ENTRY, TaskSpec
from stackwise.curriculum.parts import Part
from stackwise.curriculum.schedule import CompiledPhase
from stackwise.curriculum.states import BatchShape, TrainingState
from stackwise.errors import ConfigError, ProviderError, UserError, asks_too_much, bytes_asked
from stackwise.machine.recompute import recomputing
from stackwise.plan import Plan
from stackwise.planes.model.module import Model

Shape = tuple[int | None, int | None]
"""Rows and length of a batch."""


@frozen
class StepFlops:
    """What one step of a phase costs."""

    model: int
    """Forward and backward of every micro-batch, each block computed once; and the forward passes that the task asks for, of the model
    while it prepares a batch, and of the model that it compares with."""
    recompute: int = 0
    """What `run.parallel.recompute` computes a second time; not counted in a budget, since it changes nothing that is trained."""
    optimizer: int | None = None
    """Of the optimizer, by its own declaration; None where it says nothing."""

    @property
    def training(self) -> int:
        """What a budget counts: model and optimizer."""
        return self.model + (self.optimizer or 0)

    def as_json(self) -> dict[str, int | None]:
        """By field, and the sum that a budget counts."""
        return {**asdict(self), "training": self.training}


@define
class FlopCounts:
    """FLOPs per batch shape, counted once while phases compute the same: most phases change schedules and data only."""

    plan: Plan
    shop: Workshop
    _computes: object = None
    _compared: tuple[object, nn.Module | None] = (None, None)
    """The task and the place of what it compares with, and that model."""
    _flops: dict[Shape, tuple[int, int] | None] = Factory(dict)

    def of(self, phase: CompiledPhase, model: Model, shape: BatchShape) -> StepFlops | None:
        """FLOPs of a step of a phase, without the optimizer's; None where the shapes of its batches are unknown.

        Args:
            phase: of the plan.
            model: as the phase declares it, on the meta device.
            shape: of the step.

        Raises:
            UserError: the model does not run on the batches.
        """
        state = phase.state
        if state is None:
            return None
        reference = self._reference(phase, state, model)
        if (computes := (computation(self.plan, phase, state), id(reference))) != self._computes:
            self._computes, self._flops = computes, {}
        once = again = 0
        for rows, count in Counter(shape.micro_batches).items():
            batch = rows, shape.seq_len
            if batch not in self._flops:
                self._flops[batch] = self._of_batch(phase, state, model, batch, reference)
            if (flops := self._flops[batch]) is None:
                return None
            once, again = once + count * flops[0], again + count * flops[1]
        return StepFlops(once, again)

    def _reference(self, phase: CompiledPhase, state: TrainingState, model: Model) -> nn.Module | None:
        """The model that the task compares with: a copy as the model is when the task begins, or one from outside the run."""
        wanted = (state.task.structure, state.reference)
        if wanted != self._compared[0]:
            held: nn.Module | None = None
            if state.reference is not None:
                try:
                    held = deepcopy(model) if state.reference == AT_ENTRY else outline(self.plan.registry, state.reference, model)
                except UserError as error:
                    raise ConfigError([self.plan.experiment.phases[phase.index].problem("task.reference", str(error))]) from None
            self._compared = wanted, held
        return self._compared[1]

    def _of_batch(
        self, phase: CompiledPhase, state: TrainingState, model: Model, shape: Shape, reference: nn.Module | None
    ) -> tuple[int, int] | None:
        """FLOPs of a batch, and those of what is computed again."""
        drafts = self.plan.joined[phase.index].drafts
        if not isinstance(drafts.task.spec, TaskSpec):
            return None
        questions: list[Shapes] = []
        shapes = prepared_shapes(self.plan, phase, self.shop, rows=shape[0], length=shape[1], questions=questions)
        if shapes is None:
            return None
        try:
            once, again = _count(model, shapes), 0
            if self.plan.experiment.run.parallel.recompute == "blocks":
                with recomputing(model):
                    again = _count(model, shapes) - once
            compared = 0 if reference is None else _asked(reference, shapes)
            return once + compared + sum(_asked(model, question) for question in questions), again
        except (ProviderError, ConfigError, WrongAnswer):
            raise
        except UserError as error:
            message = f"the model with {drafts.rack.label} does not run on what {drafts.task.label} makes of a batch: {error}"
            raise ConfigError([self.plan.experiment.phases[phase.index].problem("model.rack", message)]) from error
        except Exception as error:
            sizes = ", ".join(f"{name} {list(size)}" for name, (size, _) in shapes.items())
            if asks_too_much(error):
                raise UserError(
                    f"phase '{phase.name}': no memory holds what the model makes of {sizes}{bytes_asked(error)}: lower batch_size or "
                    "seq_len"
                ) from error
            raise _fault(state.model.rack)(
                f"phase '{phase.name}': the model does not run on shapes {sizes}: {type(error).__name__}: {error}"
            ) from error


def _count(model: Model, shapes: Shapes) -> int:
    counter = FlopCounterMode(display=False)
    batch = {name: torch.zeros(shape, dtype=dtype, device="meta") for name, (shape, dtype) in shapes.items()}
    with without_compiler(), counter:
        outputs = model(batch)
        sum(output.sum() for output in outputs.values() if output.is_floating_point()).backward()
    for parameter in model.parameters():
        parameter.grad = None
    return counter.get_total_flops()


def _asked(model: nn.Module, shapes: Shapes) -> int:
    """FLOPs of one forward pass that a task asks for while it prepares a batch, or of the model that it compares with."""
    counter = FlopCounterMode(display=False)
    batch = {name: torch.zeros(shape, dtype=dtype, device="meta") for name, (shape, dtype) in shapes.items()}
    with without_compiler(), counter, torch.no_grad():
        model(batch)
    return counter.get_total_flops()


def computation(plan: Plan, phase: CompiledPhase, state: TrainingState) -> object:
    """What the cost of a batch depends on beside its shape."""
    joined, model = plan.joined[phase.index], state.model
    parts = [state.task, model.embedding, model.rack, model.head, *(part for group in model.adapters.values() for part in group)]
    weight_adapters = [(name, declared.select, declared.part.structure) for name, declared in model.weight_adapters.items()]
    return (
        [part.structure for part in parts],
        weight_adapters,
        list(model.adapters),
        model.freeze,
        model.bridges,
        joined.optional,
        joined.sizes,
    )


def _fault(rack: Part) -> type[UserError] | type[ProviderError]:
    return ProviderError if rack.given is None else UserError
