"""The declared training state, and the timeline of it: phases compiled to integer steps.

A `PhaseSchedule` is what everything downstream reads: plan, pricing, machine and log share the one object.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from fractions import Fraction
from math import prod
from typing import Any, Literal

import attrs
from attrs import Factory, field, frozen

from stackwise.clock import Clock, compile_clock
from stackwise.contracts import BlockOrigin, Built
from stackwise.errors import ScheduleError
from stackwise.schedules import Curve
from stackwise.time import Duration, Moment
from stackwise.unification import Bridge

UNGATED = Curve.constant(1.0)
"""The gate of a branch that counts in full."""


@frozen(kw_only=True)
class Part:
    """One component as declared: a registered id with options, a `Built` callable, or a finished object.

    `options` holds the structure; what follows time is in `curves`, so two parts with equal `structure` differ in values only.
    """

    kind: str
    id: str
    """`<provider>.<component>`, or a name for messages when the part came as an object."""
    options: Any = None
    """Filled options object, or the mapping of a `Built`."""
    curves: Mapping[str, Curve] = Factory(dict)
    """Every option that may follow time, by name."""
    given: Any = None
    """The `Built` or the finished object; None when the id names a registered component."""

    @property
    def structure(self) -> tuple[Any, ...]:
        """What must be built anew when it changes."""
        if isinstance(self.given, Built):
            return (self.id, self.given.make, _ordered(self.options))
        return (self.id, self.given if self.given is None else id(self.given), self.options)

    @property
    def plain_options(self) -> Mapping[str, Any]:
        """The structure's options by name."""
        if self.options is None or isinstance(self.options, Mapping):
            return self.options or {}
        return {a.name: getattr(self.options, a.name) for a in attrs.fields(type(self.options))}

    def options_at(self, t: float) -> Any:
        """The options with the values in force at t."""
        values = self.values_at(t)
        if isinstance(self.options, Mapping):
            return {**self.options, **values}
        return attrs.evolve(self.options, **values) if values else self.options

    def values_at(self, t: float) -> dict[str, float]:
        """The values in force at t of the options that may follow time."""
        return {name: curve(t) for name, curve in self.curves.items()}


def _ordered(value: Any) -> Any:
    """Nested maps as tuples of items, because the order of stacks has meaning and dict equality ignores it."""
    if isinstance(value, Mapping):
        return tuple((key, _ordered(inner)) for key, inner in value.items())
    return tuple(map(_ordered, value)) if isinstance(value, list | tuple) else value


@frozen(kw_only=True)
class BatchShape:
    """Rows of each micro-batch of one step, and positions of a row."""

    micro_batches: tuple[int | None, ...] = (None,)
    """None: as the one iterable delivers them."""
    seq_len: int | None = None
    """Positions of a row that the model sees; None: the data has no length to cut."""

    @classmethod
    def of(
        cls, *, batch_size: int | None = None, seq_len: int | None = None, accumulate: int = 1, step_tokens: int | None = None
    ) -> BatchShape:
        """The shape of a step, from what a config declares.

        Args:
            batch_size: rows of a micro-batch; with `step_tokens` the most it may have.
            seq_len: positions of a row.
            accumulate: micro-batches of a step.
            step_tokens: positions of a step; it splits itself into micro-batches of nearly equal size.

        Raises:
            ScheduleError: a budget below one row, or without a row length.
        """
        if step_tokens is None:
            return cls(micro_batches=(batch_size,) * accumulate, seq_len=seq_len)
        if seq_len is None:
            raise ScheduleError(f"a budget of {step_tokens} tokens a step needs rows of a known length: declare data.seq_len")
        rows = step_tokens // seq_len
        if rows < 1:
            raise ScheduleError(
                f"a budget of {step_tokens} tokens a step does not hold one row of {seq_len}: raise step_tokens or shorten seq_len"
            )
        count = 1 if batch_size is None else -(-rows // batch_size)
        size, larger = divmod(rows, count)
        return cls(micro_batches=(size + 1,) * larger + (size,) * (count - larger), seq_len=seq_len)

    @property
    def rows(self) -> int | None:
        """Rows of one step."""
        return None if None in self.micro_batches else sum(rows for rows in self.micro_batches if rows is not None)

    @property
    def tokens(self) -> int | None:
        """Scheduled positions of one step, padding included."""
        return None if self.rows is None or self.seq_len is None else self.rows * self.seq_len


@frozen(kw_only=True)
class DataState:
    """What the model sees."""

    sources: Mapping[str, Part]
    mix: Mapping[str, Curve]
    """Source → weight over time; only ratios matter."""
    shapes: tuple[tuple[int, BatchShape], ...] = ((0, BatchShape()),)
    """First step of each stretch of the phase → the shape of its steps."""
    bridges: tuple[Bridge, ...] = ()
    """Lossless differences between sources and task."""
    transforms: tuple[Part, ...] = ()

    def shape(self, step: int) -> BatchShape:
        """The shape of step k."""
        if len(self.shapes) == 1:
            return self.shapes[0][1]
        return self.shapes[max(bisect_right(self.shapes, step, key=lambda stretch: stretch[0]) - 1, 0)][1]


@frozen(kw_only=True)
class WeightAdapterState:
    """Adapters beside some matrices."""

    part: Part
    select: tuple[str, ...]
    """Selectors of the matrices."""


@frozen(kw_only=True)
class ModelState:
    """What the model is."""

    embedding: Part
    rack: Part
    head: Part
    adapters: Mapping[str, tuple[Part, ...]] = Factory(dict)
    """Junction (`embedding-rack`, `rack-head`) → adapters in forward order."""
    freeze: tuple[str, ...] = ()
    stacks: Mapping[str, int] = Factory(dict)
    """Stack name → blocks, in forward order; empty when the rack declares none."""
    bridges: tuple[Bridge, ...] = ()
    """Lossless differences from the task's batch to the head's outputs."""
    weight_adapters: Mapping[str, WeightAdapterState] = Factory(dict)
    precision: Mapping[str, str] = Factory(dict)
    """Role → dtype of its parameters; roles left out hold float32 or what they were built with."""
    frozen_mode: Literal["eval", "train"] = "eval"
    """Mode of modules whose parameters are all frozen: whether their dropout draws and their statistics move."""


@frozen(kw_only=True)
class GroupState:
    """Parameters with values of their own."""

    name: str
    select: tuple[str, ...]
    """Selectors; empty: every trainable parameter that no other group takes."""
    curves: Mapping[str, Curve]


@frozen(kw_only=True)
class LRScale:
    """A power law of the learning rate in the size of the model: lr · (size / base) ^ exponent."""

    by: Literal["width", "depth", "parameters"]
    exponent: float
    base: float
    size: int | None = None
    """Width or depth in this phase; parameters are counted when the model stands."""


@frozen(kw_only=True)
class OptimizerState:
    """How the model learns."""

    part: Part
    groups: tuple[GroupState, ...] = ()
    """The declared groups, most specific first come, then the rest as `default`."""
    clip: float | None = None
    """Largest gradient norm; None: no clipping."""
    lr_scaling: tuple[LRScale, ...] = ()
    """What the size of the model makes of every learning rate."""
    ema: Curve | None = None
    """Decay of the averaged weights; None: no average is kept."""
    reaction: Part | None = None
    """Answer of the learning rate to the training signal."""

    def lr_factor(self, parameters: int) -> float:
        """Factor on every learning rate of a model with so many parameters."""
        return prod(float(((scale.size or parameters) / scale.base) ** scale.exponent) for scale in self.lr_scaling)


@frozen(kw_only=True)
class TrainingState:
    """The complete declaration at an instant: the task and the three planes."""

    task: Part
    data: DataState
    model: ModelState
    optimizer: OptimizerState


@frozen(kw_only=True)
class Enter:
    """How a boundary is crossed; belongs to its phase and is never inherited."""

    growth: Part | None = None
    moments: Literal["copy", "reset"] = "copy"
    """Moments of copied parameters, and of all at a change of the optimizer: carried over, or started anew."""
    fresh: tuple[str, ...] = ()
    """Selectors of parameters that start anew."""
    weight_adapters: Literal["merge", "drop"] = "merge"
    """What becomes of weight adapters that leave: their matrices take them in, or they are lost."""
    rewarm: Curve | None = None
    """Factor on the learning rate of fresh parameters, from 0 to 1 over its first steps."""


@frozen(kw_only=True)
class Change:
    """One key whose declaration differs from the phase before."""

    path: str
    before: str
    after: str


@frozen(kw_only=True)
class Transition:
    """The difference between two declared states, and how it is crossed."""

    changes: tuple[Change, ...]
    blocks: Mapping[tuple[str, int], BlockOrigin] = Factory(dict)
    """Every block of the new rack → its origin, when the stacks change."""
    preserves_function: bool = True
    notes: tuple[str, ...] = ()
    """What is lost or started anew on purpose, in sentences."""
    touches_function: bool = False
    """Whether the boundary builds, grows, swaps or restarts a part of the model that goes on taking the same batches."""


@frozen(kw_only=True)
class CompiledPhase:
    """A named segment [start, stop) of the run with its complete state."""

    name: str
    index: int
    start: int
    stop: int
    state: TrainingState | None = None
    """None: whatever finished objects the machine was given."""
    enter: Enter = Factory(Enter)
    transition: Transition | None = None
    """None for the first phase."""

    @property
    def blocks(self) -> Mapping[tuple[str, int], BlockOrigin]:
        """Origin of every block of the rack, where its stacks change at the begin of the phase."""
        return self.transition.blocks if self.transition is not None else {}

    @property
    def gate(self) -> Curve:
        """The gate on the blocks that the phase grew; open where there is none."""
        growth = self.enter.growth
        return UNGATED if growth is None else growth.curves.get("gate", UNGATED)


@frozen
class PhaseSchedule:
    """The compiled timeline: one clock and the phases on it."""

    clock: Clock
    phases: tuple[CompiledPhase, ...]
    evaluate_at: Mapping[str, tuple[int, ...]] = field(factory=dict)
    """Evaluation name → the steps before which it runs, boundaries and both ends included."""
    save_at: tuple[int, ...] = ()
    """The steps before which the cadence of checkpoints saves the state."""
    keep_at: tuple[int, ...] = ()
    """The steps before which a state is saved that stays for good."""

    @classmethod
    def single(cls, *, steps: int, state: TrainingState | None = None) -> PhaseSchedule:
        """One phase over `steps` steps, for machines made of finished objects.

        Raises:
            ScheduleError: fewer than one step.
        """
        whole = Duration(Fraction(1), "fraction")
        clock = compile_clock(Duration(Fraction(steps), "steps"), ["train"], [whole], [None])
        return cls(clock, (CompiledPhase(name="train", index=0, start=0, stop=steps, state=state),))

    @property
    def steps(self) -> int:
        """T, the number of steps of the run."""
        return self.clock.steps

    def phase_at(self, step: int) -> CompiledPhase:
        """The phase that step k belongs to; the last one for k = T."""
        return self.phases[self.clock.phase_index(step)]

    def at(self, *, step: int | None = None, t: float | None = None) -> Moment:
        """The instant of a step, or of the first step at or after run time t."""
        if step is None:
            if t is None:
                raise TypeError("at() takes a step or a t")
            step = self.clock.step_at(t)
        phase = self.phase_at(step)
        t0, t1 = self.clock.t(phase.start), self.clock.t(phase.stop)
        now = self.clock.t(step)
        return Moment(step, now, phase.name, phase.index, (now - t0) / (t1 - t0), self.clock.tokens(step))

    def moments(self, phase: CompiledPhase, step: int) -> Iterator[Moment]:
        """The instants of a phase from `step` on; what `at` says of each, at a fraction of the cost."""
        return (moment for moment, _ in self.walk(phase, step))

    def walk(self, phase: CompiledPhase, step: int) -> Iterator[tuple[Moment, int]]:
        """The instants of a phase from `step` on, each with the tokens consumed after its step."""
        t0, t1 = self.clock.t(phase.start), self.clock.t(phase.stop)
        width, name, index = t1 - t0, phase.name, phase.index
        for k, t, tokens, after in self.clock.times(step, phase.stop):
            yield Moment(k, t, name, index, (t - t0) / width, tokens), after

    def __iter__(self) -> Iterator[CompiledPhase]:
        return iter(self.phases)
