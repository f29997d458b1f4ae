"""FLOPs of a phase: a forward and a backward pass of each batch shape on the meta device, counted by torch."""

from __future__ import annotations

from collections import Counter

import torch
from attrs import Factory, define
from torch.utils.flop_counter import FlopCounterMode

from stackwise.assembly.prepared_shapes import Shapes, prepared_shapes
from stackwise.assembly.workshop import Workshop
from stackwise.contracts.answers import WrongAnswer
from stackwise.contracts.specs import TaskSpec
from stackwise.curriculum.parts import Part
from stackwise.curriculum.schedule import CompiledPhase
from stackwise.curriculum.states import TrainingState
from stackwise.errors import ConfigError, ProviderError, UserError, asks_too_much, bytes_asked
from stackwise.machine.recompute import recompute_blocks
from stackwise.plan import Plan
from stackwise.planes.model.module import Model

Shape = tuple[int | None, int | None]
"""Rows and length of a batch."""


@define
class FlopCounts:
    """FLOPs per batch shape, counted once while phases compute the same: most phases change schedules and data only."""

    plan: Plan
    shop: Workshop
    _computes: object = None
    _flops: dict[Shape, int | None] = Factory(dict)

    def of(self, phase: CompiledPhase, model: Model) -> int | None:
        """FLOPs of all steps of a phase; None where the shapes of its batches are unknown.

        Args:
            phase: of the plan.
            model: as the phase declares it, on the meta device.

        Raises:
            UserError: the model does not run on the batches.
        """
        state = phase.state
        if state is None:
            return None
        if (computes := computation(self.plan, phase, state)) != self._computes:
            self._computes, self._flops = computes, {}
            if self.plan.experiment.run.parallel.recompute == "blocks":
                recompute_blocks(model)
        total = 0
        for shape, steps in _steps_of(phase, state).items():
            if shape not in self._flops:
                self._flops[shape] = self._of_batch(phase, state, model, shape)
            flops = self._flops[shape]
            if flops is None:
                return None
            total += flops * steps
        return total

    def _of_batch(self, phase: CompiledPhase, state: TrainingState, model: Model, shape: Shape) -> int | None:
        drafts = self.plan.joined[phase.index].drafts
        if not isinstance(drafts.task.spec, TaskSpec):
            return None
        questions: list[Shapes] = []
        shapes = prepared_shapes(self.plan, phase, self.shop, rows=shape[0], length=shape[1], questions=questions)
        if shapes is None:
            return None
        try:
            return _count(model, shapes) + sum(_asked(model, question) for question in questions)
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


def _steps_of(phase: CompiledPhase, state: TrainingState) -> Counter[Shape]:
    """Batch shape → micro-batches of it in the phase."""
    starts = [*(start for start, _ in state.data.shapes), phase.stop]
    steps: Counter[Shape] = Counter()
    for (start, shape), stop in zip(state.data.shapes, starts[1:], strict=True):
        for rows in shape.micro_batches:
            steps[rows, shape.seq_len] += stop - start
    return steps


def _count(model: Model, shapes: Shapes) -> int:
    counter = FlopCounterMode(display=False)
    batch = {name: torch.zeros(shape, dtype=dtype, device="meta") for name, (shape, dtype) in shapes.items()}
    with counter:
        outputs = model(batch)
        sum(output.sum() for output in outputs.values() if output.is_floating_point()).backward()
    for parameter in model.parameters():
        parameter.grad = None
    return counter.get_total_flops()


def _asked(model: Model, shapes: Shapes) -> int:
    """FLOPs of one forward pass, as a task asks for it while it prepares a batch."""
    counter = FlopCounterMode(display=False)
    batch = {name: torch.zeros(shape, dtype=dtype, device="meta") for name, (shape, dtype) in shapes.items()}
    with counter, torch.no_grad():
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
