"""Pricing: what every phase of a plan costs and carries over, by walking the same planes on the meta device.

No weight is allocated and no data is read. A model that cannot be built, a selector that matches nothing, or a shape that
changes without an operator is reported here, before the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from attrs import define, evolve, field, frozen

from stackwise.assembly.flops import FlopCounts, StepFlops
from stackwise.assembly.kept_states import kept_bytes
from stackwise.assembly.memory import MemoryCounts, PhaseMemory
from stackwise.assembly.stateless import check_stateless
from stackwise.assembly.workshop import Workshop
from stackwise.config import PhaseConfig
from stackwise.contracts.answers import WrongAnswer, calling, expect, is_number
from stackwise.contracts.protocols import ParameterGroup
from stackwise.contracts.specs import OptimizerSpec
from stackwise.curriculum.parts import Part
from stackwise.curriculum.schedule import CompiledPhase
from stackwise.curriculum.states import BatchShape, TrainingState
from stackwise.errors import ConfigError, ProviderError, SelectorError, UserError
from stackwise.host.registry import blaming
from stackwise.plan import Plan
from stackwise.plan.reads import Reads, declared_sizes, reads_of
from stackwise.planes.model.difference import WEIGHT_ADAPTERS, Boundary
from stackwise.planes.model.module import explaining_ties
from stackwise.planes.model.plane import ModelPlane
from stackwise.planes.model.transfer import ModelReceipt
from stackwise.planes.optimizer.groups import group_parameters
from stackwise.planes.optimizer.weight_copies import SIXTEEN_BITS, learning_dtype
from stackwise.timeline.schedules import Curve


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
    """Training FLOPs of all its steps: forward, backward and the optimizer; None where the inputs' shapes are unknown."""
    stretches: tuple[tuple[int, StepFlops | None], ...]
    """First step → what each step costs from there on."""
    lr: tuple[float, float] | None
    """Learning rate at the first and the last step."""
    envelope: tuple[float, float] | None
    """Least and largest factor by which the declared reaction may multiply every learning rate; None without a reaction."""
    receipt: ModelReceipt
    """What crossing into the phase does to the parameters, by name."""
    sources: Mapping[str, Reads]
    """What is read of each source in the phase."""
    optimizer_flops: int | None = None
    """The optimizer's share of `flops`; None where it declares none."""
    recompute_flops: int = 0
    """Not part of `flops`: what is computed again to save memory."""
    kept_bytes: int | None = None
    """The most that `model.cache` keeps on disk; None where nothing is kept, or it is unknown how much."""
    memory: PhaseMemory | str | None = None
    """What the phase takes, or why nobody can tell; None where it was not asked for."""


def step_flops(plan: Plan) -> Callable[[int, BatchShape], int | None]:
    """Index of a phase, shape of a step → training FLOPs of that step; None where they are unknown.

    Args:
        plan: by any clock.

    Raises:
        UserError, ProviderError: as `price` does, when the function is called.
    """
    walk, entered = _Walk.of(plan), -1
    known: dict[tuple[int, BatchShape], int | None] = {}

    def ask(index: int, shape: BatchShape) -> int | None:
        nonlocal walk, entered
        if index < entered:
            walk, entered = _Walk.of(plan), -1
        with blaming(plan.providers):
            while entered < index:
                entered += 1
                walk.enter(plan.schedule.phases[entered], declared_state(plan.schedule.phases[entered]))
            phase = plan.schedule.phases[index]
            flops = walk.step_flops(phase, declared_state(phase), shape)
        return None if flops is None else flops.training

    def of(index: int, shape: BatchShape) -> int | None:
        if (index, shape) not in known:
            known[index, shape] = ask(index, shape)
        return known[index, shape]

    return of


def price(plan: Plan, *, memory_from: float | None = None) -> tuple[PhasePrice, ...]:
    """The figures of every phase.

    Args:
        plan: the compiled experiment.
        memory_from: FLOPs of a phase from which its memory is counted too, which takes as long as pricing or longer; None: never.

    Raises:
        UserError: a selector that matches nothing, a parameter that changes shape without an operator, nothing trainable.
        ProviderError: a component that cannot be built, or whose spec is not true of its shapes.
    """
    walk = _Walk.of(plan)
    parallel = plan.experiment.run.parallel
    with blaming(plan.providers):
        if parallel.shard * (parallel.replicate or 1) > 1:
            check_stateless(plan, walk.shop)
        return tuple(_price_phase(plan, phase, walk, memory_from) for phase in plan.schedule)


@frozen
class _Figures:
    """Figures of a phase that its model and optimizer decide, not its data."""

    parameters: int
    trainable: int
    optimizer_bytes: int | None
    optimizer_flops: int | None
    """FLOPs of the optimizer in a step."""
    groups: frozenset[str]
    """Names of the groups that hold a parameter."""


@define
class _Walk:
    """The model on the meta device, walked through the phases; a phase with the model of the one before builds nothing."""

    plan: Plan
    plane: ModelPlane
    shop: Workshop
    memory: MemoryCounts = field(init=False)
    counts: FlopCounts = field(init=False)
    _model: object = None
    _charged: object = None
    _figures: _Figures | None = None

    def __attrs_post_init__(self) -> None:
        self.counts, self.memory = FlopCounts(self.plan, self.shop), MemoryCounts(self.plan, self.shop)

    @classmethod
    def of(cls, plan: Plan) -> _Walk:
        """Before the first phase."""
        shop = Workshop(plan, device="meta")
        return cls(plan, ModelPlane(shop.module, device=torch.device("meta")), shop)

    def step_flops(self, phase: CompiledPhase, state: TrainingState, shape: BatchShape) -> StepFlops | None:
        """What a step of the phase that was entered last costs."""
        flops = self.counts.of(phase, self.plane.model, shape)
        return None if flops is None else evolve(flops, optimizer=self.figures(phase, state).optimizer_flops)

    def enter(self, phase: CompiledPhase, state: TrainingState) -> ModelReceipt:
        """Cross into a phase."""
        declared = _declared_model(state)
        if phase.enter.growth is None and not phase.enter.fresh and declared == self._model:
            return ModelReceipt(adopted={name: name for name, _ in self.plane.model.named_parameters()})
        self._model, self._charged = declared, None
        config = self.plan.experiment.phases[phase.index]
        with _placed_at(config, "model.freeze", "model" if phase.enter.growth is None else "enter.growth"):
            return self.plane.enter(state.model, Boundary.of(phase))

    def figures(self, phase: CompiledPhase, state: TrainingState) -> _Figures:
        """The figures of the phase that was entered last."""
        charged = state.optimizer.part.structure, [(group.name, group.select) for group in state.optimizer.groups]
        if self._figures is None or charged != self._charged:
            trainable, first = self.plane.trainable(), self.plan.schedule.clock.t(phase.start)
            with _placed_at(self.plan.experiment.phases[phase.index], "optimizer.groups", "optimizer.groups"):
                frozen = [name for name, _ in self.plane.model.named_parameters() if name not in trainable]
                with explaining_ties(self.plane.model):
                    groups = group_parameters(state.optimizer, trainable, first, frozen=frozen)
            self._charged = charged
            self._figures = _Figures(
                parameters=sum(p.numel() for p in self.plane.model.parameters()),
                trainable=sum(p.numel() for p in trainable.values()),
                optimizer_bytes=_optimizer_bytes(self.plan, phase, groups),
                optimizer_flops=_optimizer_flops(self.plan, phase, groups),
                groups=frozenset(group.name for group in groups),
            )
        return self._figures


def _declared_model(state: TrainingState) -> object:
    """What the model is built from; values of options that follow time cost nothing."""
    model = state.model
    adapters = [(junction, part) for junction, parts in model.adapters.items() for part in parts]
    parts = [(role, getattr(model, role)) for role in ("embedding", "rack", "head")] + adapters
    weight_adapters = [(name, declared.select, declared.part.structure) for name, declared in model.weight_adapters.items()]
    return (
        [(role, part.structure, sorted(part.curves)) for role, part in parts],
        weight_adapters,
        model.precision,
        model.freeze,
        model.bridges,
        model.cache,
        model.frozen_mode,
    )


def _price_phase(plan: Plan, phase: CompiledPhase, walk: _Walk, memory_from: float | None) -> PhasePrice:
    state = declared_state(phase)
    clock, joined = plan.schedule.clock, plan.joined[phase.index]
    first, last = clock.t(phase.start), clock.t(phase.stop - 1)
    receipt = walk.enter(phase, state)
    if phase.index:
        _check_enter(plan, phase, receipt)
    figures = walk.figures(phase, state)
    reads = reads_of(phase, joined, clock, declared_sizes(joined))
    starts = [*(start for start, _ in state.data.shapes), phase.stop]
    stretches = tuple((start, walk.step_flops(phase, state, shape)) for start, shape in state.data.shapes)
    costs = [(stop - start, flops) for (start, flops), stop in zip(stretches, starts[1:], strict=True) if flops is not None]
    lr, scale = _lr(state, figures.groups), state.optimizer.lr_factor(figures.parameters)
    flops = None if len(costs) < len(stretches) else sum(steps * flops.training for steps, flops in costs)
    weighs = memory_from is not None and (flops or 0) >= memory_from
    return PhasePrice(
        name=phase.name,
        steps=phase.stop - phase.start,
        tokens=clock.tokens(phase.stop) - clock.tokens(phase.start),
        stacks=state.model.stacks,
        parameters=figures.parameters,
        trainable=figures.trainable,
        optimizer_bytes=figures.optimizer_bytes,
        flops=flops,
        stretches=stretches,
        optimizer_flops=None if figures.optimizer_flops is None else (phase.stop - phase.start) * figures.optimizer_flops,
        recompute_flops=sum(steps * flops.recompute for steps, flops in costs),
        memory=walk.memory.of(phase, walk.plane, receipt) if weighs else None,
        sources=reads,
        kept_bytes=kept_bytes(plan, phase, walk.shop, walk.plane.model, reads),
        lr=None if lr is None else (scale * lr(first), scale * lr(last)),
        envelope=_envelope(state.optimizer.reaction),
        receipt=receipt,
    )


def declared_state(phase: CompiledPhase) -> TrainingState:
    """The state of a phase of a plan, which has one."""
    assert phase.state is not None
    return phase.state


@contextmanager
def _placed_at(phase: PhaseConfig, path: str, other: str) -> Iterator[None]:
    """Report a mistake at its place in the config: a selector at its own key, else at `path`; anything else at `other`."""
    try:
        yield
    except SelectorError as error:
        path = next((key for key, selectors in _selectors(phase).items() if error.selector in selectors), path)
        raise ConfigError([phase.problem(path, str(error))]) from None
    except UserError as error:
        if isinstance(error, ConfigError | WrongAnswer):
            raise
        raise ConfigError([phase.problem(other, str(error))]) from error


def _selectors(phase: PhaseConfig) -> dict[str, tuple[str, ...]]:
    """Config key → its selectors over the model's parameters."""
    adapters = {f"model.weight_adapters.{name}.select": tuple(adapter.select) for name, adapter in phase.model.weight_adapters.items()}
    return {"model.freeze": tuple(phase.model.freeze), "enter.fresh": tuple(phase.enter.fresh), **adapters}


def _check_enter(plan: Plan, phase: CompiledPhase, receipt: ModelReceipt) -> None:
    """Check that every `enter` option of a phase has something to act on.

    Raises:
        ConfigError: one has nothing.
    """
    state, last = phase.state, plan.schedule.phases[phase.index - 1].state
    assert state is not None and last is not None  # a plan's phases are declared
    optimizer_changes = state.optimizer.part.id != last.optimizer.part.id
    adapter_leaves = any(name.startswith(WEIGHT_ADAPTERS) for name in receipt.dropped)
    idle = {
        "rewarm": "no parameter is fresh" if phase.enter.rewarm is not None and not receipt.fresh else "",
        "moments": "no parameter is a copy and the optimizer stays"
        if phase.enter.moments == "reset" and not (receipt.copied or optimizer_changes)
        else "",
        "weight_adapters": "no weight adapter leaves" if phase.enter.weight_adapters == "drop" and not adapter_leaves else "",
    }
    config = plan.experiment.phases[phase.index]
    problems = [
        config.problem(f"enter.{key}", f"it has nothing to act on here, where {why}: leave it out") for key, why in idle.items() if why
    ]
    if problems:
        raise ConfigError(problems)


def _lr(state: TrainingState, names: frozenset[str]) -> Curve | None:
    """The curve that the log reports: of the `default` group, else of the first group that holds a parameter."""
    groups = [group for group in state.optimizer.groups if group.name in names]
    main = next((group for group in groups if group.name == "default"), groups[0])
    return main.curves.get("lr")


def _envelope(reaction: Part | None) -> tuple[float, float] | None:
    """The bounds that the reaction's options state for its factor; if they state none, any factor is possible.

    Raises:
        ProviderError: the bounds are not an envelope.
    """
    if reaction is None:
        return None
    if not hasattr(reaction.options, "envelope"):
        return (0.0, float("inf"))
    with calling(reaction.id, "envelope"):
        stated = reaction.options.envelope()
        pair = isinstance(stated, tuple) and len(stated) == 2 and all(not isinstance(edge, str) for edge in stated)
        expect(pair, stated, "a pair of numbers, the lowest and the highest factor,")
    low, high = stated
    if not 0 <= low <= high:
        raise ProviderError(f"reaction {reaction.id} states an envelope from {low} to {high}: a factor goes from low to high, at least 0")
    return (float(low), float(high))


def _optimizer_bytes(plan: Plan, phase: CompiledPhase, groups: list[ParameterGroup]) -> int | None:
    """Bytes of moments, master copies of 16-bit parameters and the average of the weights, each at least float32."""
    spec, state = plan.joined[phase.index].drafts.optimizer.spec, phase.state
    if not isinstance(spec, OptimizerSpec) or state is None:
        return None
    asked = calling(state.optimizer.part.id, "state_elements" if spec.named_state_elements is None else "named_state_elements")
    total = 0
    for name, parameter in (item for group in groups for item in group.parameters.items()):
        copies = (state.optimizer.ema is not None) + (parameter.dtype in SIXTEEN_BITS)
        with asked:
            kept = spec.count(name, tuple(parameter.shape))
            expect(is_number(kept) and kept >= 0, kept, "a number of state entries")
        total += (kept + copies * parameter.numel()) * learning_dtype(parameter.dtype).itemsize
    return total


def _optimizer_flops(plan: Plan, phase: CompiledPhase, groups: list[ParameterGroup]) -> int | None:
    """FLOPs of a step of the optimizer, and of the average of the weights: a difference, a product and a sum for each."""
    spec, state = plan.joined[phase.index].drafts.optimizer.spec, declared_state(phase)
    if not isinstance(spec, OptimizerSpec) or spec.step_flops is None:
        return None
    asked, total = calling(state.optimizer.part.id, "step_flops"), 0
    for name, parameter in (item for group in groups for item in group.parameters.items()):
        with asked:
            flops = spec.step_flops(name, tuple(parameter.shape))
            expect(is_number(flops) and flops >= 0, flops, "a number of FLOPs")
        total += flops + (3 * parameter.numel() if state.optimizer.ema is not None else 0)
    return total
