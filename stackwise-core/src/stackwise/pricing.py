"""Pricing: what every phase of a plan costs and carries over, found by walking the same planes on the meta device.

No weight exists and no data is read; a model that cannot be built, a selector that matches nothing or a shape that changes
without an operator shows itself here, before the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction

import torch
from attrs import Factory, define, frozen
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from stackwise.assembly import Workshop
from stackwise.config import PhaseConfig
from stackwise.contracts import ParameterGroup
from stackwise.errors import ConfigError, Problem, ProviderError, SelectorError, StackwiseError, UserError
from stackwise.phases import CompiledPhase, Part, TrainingState
from stackwise.plan import Plan
from stackwise.plan.extents import epochs_of
from stackwise.planes.model import ModelPlane
from stackwise.planes.optimizer import group_parameters
from stackwise.planes.transfer import ModelReceipt
from stackwise.schedules import Curve
from stackwise.specs import OptimizerSpec, TaskSpec, TensorSpec


@frozen(kw_only=True)
class SourcePrice:
    """What a phase reads of one source: the declared share of every step, summed; what is delivered lies within one row of it."""

    rows: float
    epochs: float | None
    """None where the source does not say its size before it is read."""


@frozen(kw_only=True)
class PhasePrice:
    """The figures of one phase."""

    name: str
    steps: int
    tokens: int
    stacks: Mapping[str, int]
    parameters: int
    trainable: int
    optimizer_bytes: int | None
    """State kept for the trainable parameters; None for an optimizer that does not say."""
    flops: int | None
    """Forward and backward of every step of the phase; None where the inputs' shapes are unknown."""
    lr: tuple[float, float] | None
    """At the first and the last step."""
    envelope: tuple[float, float] | None
    """Between what the declared reaction may multiply every learning rate; None: there is none."""
    receipt: ModelReceipt
    """What crossing into the phase does to the parameters, by name."""
    sources: Mapping[str, SourcePrice]
    """What is read of each source in the phase."""


def price(plan: Plan) -> tuple[PhasePrice, ...]:
    """The figures of every phase.

    Raises:
        UserError: a selector that matches nothing, a parameter that changes shape without an operator, nothing trainable.
        ProviderError: a component that cannot be built, or whose spec is not true of its shapes.
    """
    shop = Workshop(plan, device="meta")
    plane = ModelPlane(shop.module, device=torch.device("meta"))
    counted = _Counted()
    return tuple(_price_phase(plan, phase, plane, shop, counted) for phase in plan.schedule)


@define
class _Counted:
    """FLOPs of a batch by its shape, for as long as phases compute alike: most change schedules and data only."""

    computes: object = None
    flops: dict[tuple[int | None, int | None], int | None] = Factory(dict)

    def turn_to(self, computes: object) -> None:
        """Forget what another computation cost."""
        if computes != self.computes:
            self.computes, self.flops = computes, {}


def _price_phase(plan: Plan, phase: CompiledPhase, plane: ModelPlane, shop: Workshop, counted: _Counted) -> PhasePrice:
    state = phase.state
    assert state is not None  # a plan's phases are declared
    growth = shop.growth(phase.enter.growth) if phase.enter.growth is not None else None
    clock = plan.schedule.clock
    first, last = clock.t(phase.start), clock.t(phase.stop - 1)
    blocks = phase.transition.blocks if phase.transition is not None else {}
    declared = plan.experiment.phases[phase.index]
    with _placed_at(declared, "model.freeze"):
        receipt = plane.enter(state.model, step=phase.start, blocks=blocks, growth=growth, enter=phase.enter)
    with _placed_at(declared, "optimizer.groups"):
        trainable = plane.trainable()
        frozen = [name for name, _ in plane.model.named_parameters() if name not in trainable]
        groups = group_parameters(state.optimizer, trainable, first, frozen=frozen)
    lr = _lr(state, {group.name for group in groups})
    scale = state.optimizer.lr_factor(sum(p.numel() for p in plane.model.parameters()))
    return PhasePrice(
        name=phase.name,
        steps=phase.stop - phase.start,
        tokens=clock.tokens(phase.stop) - clock.tokens(phase.start),
        stacks=state.model.stacks,
        parameters=sum(p.numel() for p in plane.model.parameters()),
        trainable=sum(p.numel() for p in plane.trainable().values()),
        optimizer_bytes=_optimizer_bytes(plan, phase, groups),
        flops=_flops(plan, phase, plane.model, counted),
        sources=_sources(plan, phase),
        lr=None if lr is None else (scale * lr(first), scale * lr(last)),
        envelope=_envelope(state.optimizer.reaction),
        receipt=receipt,
    )


@contextmanager
def _placed_at(phase: PhaseConfig, path: str) -> Iterator[None]:
    """A selector that matches nothing is told with the place it was written at."""
    try:
        yield
    except SelectorError as error:
        raise ConfigError([Problem(str(error), path, phase.locate(path))]) from None


def _lr(state: TrainingState, taken: set[str]) -> Curve | None:
    """The curve of the parameters that no group takes, of the first group where groups take them all; what the log reports."""
    groups = [group for group in state.optimizer.groups if group.name in taken]
    told = next((group for group in groups if group.name == "default"), groups[0])
    return told.curves.get("lr")


def _envelope(reaction: Part | None) -> tuple[float, float] | None:
    """What the reaction's options say of its factor; a component that does not say may do anything, which the plan says too.

    Raises:
        ProviderError: an answer that is no envelope.
    """
    if reaction is None:
        return None
    if not hasattr(reaction.options, "envelope"):
        return (0.0, float("inf"))
    low, high = reaction.options.envelope()
    if not 0 <= low <= high:
        raise ProviderError(f"reaction {reaction.id} states an envelope from {low} to {high}: a factor goes from low to high, at least 0")
    return (float(low), float(high))


def _optimizer_bytes(plan: Plan, phase: CompiledPhase, groups: list[ParameterGroup]) -> int | None:
    spec = plan.joined[phase.index].drafts.optimizer.spec
    if not isinstance(spec, OptimizerSpec):
        return None
    named = [item for group in groups for item in group.parameters.items()]
    return sum(spec.count(name, tuple(p.shape)) * p.element_size() for name, p in named)


def _flops(plan: Plan, phase: CompiledPhase, model: nn.Module, known: _Counted) -> int | None:
    """FLOPs of all steps of a phase, counted over a forward and backward pass of each batch shape on the meta device."""
    state = phase.state
    if state is None:
        return None
    starts = [*(start for start, _ in state.data.shapes), phase.stop]
    counted: Counter[tuple[int | None, int | None]] = Counter()
    for (start, shape), stop in zip(state.data.shapes, starts[1:], strict=True):
        for rows in shape.micro_batches:
            counted[rows, shape.seq_len] += stop - start
    known.turn_to(_computation(plan, phase, state))
    total = 0
    for (rows, length), times in counted.items():
        if (rows, length) not in known.flops:
            known.flops[rows, length] = _batch_flops(plan, phase, model, {"batch": rows, "time": length})
        flops = known.flops[rows, length]
        if flops is None:
            return None
        total += flops * times
    return total


def _computation(plan: Plan, phase: CompiledPhase, state: TrainingState) -> object:
    """What the cost of a batch depends on beside its shape."""
    joined, model = plan.joined[phase.index], state.model
    parts = [state.task, model.embedding, model.rack, model.head, *(part for group in model.adapters.values() for part in group)]
    return [part.structure for part in parts], list(model.adapters), model.freeze, model.bridges, joined.optional, joined.sizes


def _batch_flops(plan: Plan, phase: CompiledPhase, model: nn.Module, runtime: Mapping[str, int | None]) -> int | None:
    joined, state = plan.joined[phase.index], phase.state
    task = joined.drafts.task.spec
    if state is None or not isinstance(task, TaskSpec):
        return None
    sizes = {**{dim: size for (role, dim), size in joined.sizes.items() if role == "task"}, **runtime}
    offered = {name: spec for name, spec in task.inputs.items() if name not in task.optional or name in joined.optional}
    shapes = {name: _shape(spec, sizes) for name, spec in offered.items()}
    if not shapes or any(shape is None for shape in shapes.values()):
        return None
    batch = {name: torch.zeros(shape or (), dtype=_dtype(task.inputs[name]), device="meta") for name, shape in shapes.items()}
    counter = FlopCounterMode(display=False)
    try:
        with counter:
            outputs = model(batch)
            sum(output.sum() for output in outputs.values() if output.is_floating_point()).backward()
    except StackwiseError:
        raise
    except Exception as error:
        given = ", ".join(f"{name} {list(shape or ())}" for name, shape in shapes.items())
        raise _fault(state.model.rack)(
            f"phase '{phase.name}': the model does not run on shapes {given}: {type(error).__name__}: {error}"
        ) from error
    for parameter in model.parameters():
        parameter.grad = None
    return counter.get_total_flops()


def _sources(plan: Plan, phase: CompiledPhase) -> dict[str, SourcePrice]:
    """The declared shares of every step of a phase, summed by source."""
    state, drafts, clock = phase.state, plan.joined[phase.index].drafts, plan.schedule.clock
    if state is None:
        return {}
    task = drafts.task.spec
    lookahead = task.lookahead if isinstance(task, TaskSpec) else 0
    rows = dict.fromkeys(state.data.sources, 0.0)
    epochs: dict[str, float | None] = dict.fromkeys(state.data.sources, 0.0)
    sizes = {name: draft.epoch_size for name, draft in drafts.sources.items()}
    steady = all(curve.is_constant for curve in state.data.mix.values())
    starts = [*(start for start, _ in state.data.shapes), phase.stop]
    for (start, shape), stop in zip(state.data.shapes, starts[1:], strict=True):
        if shape.rows is None:
            return {}
        shares = _shares(state.data.mix, [clock.t(start)] if steady else [t for _, t, *_ in clock.times(start, stop)])
        for name, share in shares.items():
            read = share * (stop - start) * shape.rows
            rows[name] += read
            part = epochs_of(Fraction(read), shape, sizes[name], lookahead)
            known = epochs[name]
            epochs[name] = None if part is None or known is None else known + float(part)
    return {name: SourcePrice(rows=rows[name], epochs=epochs[name]) for name in rows}


def _shares(mix: Mapping[str, Curve], times: list[float]) -> dict[str, float]:
    """Mean share of each source over some instants."""
    sums = dict.fromkeys(mix, 0.0)
    for t in times:
        weights = {name: curve(t) for name, curve in mix.items()}
        total = sum(weights.values()) or 1.0
        for name, weight in weights.items():
            sums[name] += weight / total
    return {name: value / len(times) for name, value in sums.items()}


def _fault(rack: Part) -> type[UserError] | type[ProviderError]:
    return ProviderError if rack.given is None else UserError


def _shape(spec: TensorSpec, sizes: Mapping[str, int | None]) -> tuple[int, ...] | None:
    shape = [dim if isinstance(dim, int) else sizes.get(dim) for dim in spec.dims]
    return None if any(size is None for size in shape) else tuple(size for size in shape if size is not None)


def _dtype(spec: TensorSpec) -> torch.dtype:
    named = {"floating": torch.float32, "integer": torch.int64}
    dtype = named.get(spec.dtype) or getattr(torch, spec.dtype)
    assert isinstance(dtype, torch.dtype)
    return dtype
