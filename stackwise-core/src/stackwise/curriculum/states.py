"""The declared training state: the task and the three planes, complete at an instant."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from math import prod
from typing import Literal

from attrs import Factory, frozen

from stackwise.contracts.specs import RackSpec
from stackwise.curriculum.bridges import Bridge
from stackwise.curriculum.parts import Part
from stackwise.errors import ScheduleError
from stackwise.timeline.schedules import Curve

MOST_MICRO_BATCHES = 65_536
"""Of one step; each is named in the plan."""


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
            ScheduleError: a budget below one row or without a row length, or more micro-batches than a plan can name.
        """
        if accumulate > MOST_MICRO_BATCHES:
            raise ScheduleError(f"a step of {accumulate:,} micro-batches: at most {MOST_MICRO_BATCHES:,}")
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
        if count > MOST_MICRO_BATCHES:
            raise ScheduleError(f"a step of {count:,} micro-batches: at most {MOST_MICRO_BATCHES:,}")
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
    """Lossless differences between sources and task, and the fields that are dropped."""
    reads: frozenset[str] | None = None
    """The fields that task and transforms read, by the names that sources give them; None if one of them does not say."""
    transforms: tuple[Part, ...] = ()
    fields: tuple[str, ...] = ()
    """Names of the entries of ready-made batches that are tuples."""
    accept_inexact_resume: bool = False
    """Whether a source may have neither a state nor a length."""

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
    rack_spec: RackSpec | None = None
    """For a whole module in the place of the rack, the blocks that the config names; None: the rack's module has a spec of its own."""
    bridges: tuple[Bridge, ...] = ()
    """Lossless differences from the task's batch to the head's outputs."""
    weight_adapters: Mapping[str, WeightAdapterState] = Factory(dict)
    precision: Mapping[str, str] = Factory(dict)
    """Role → dtype of its parameters; roles left out hold float32 or what they were built with."""
    frozen_mode: Literal["eval", "train"] = "eval"
    """Mode of modules whose parameters are all frozen: whether their dropout draws and their statistics move."""
    cache: Literal["frozen"] | None = None
    """Whether the hidden states in front of the lowest trained block are kept from epoch to epoch."""


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
    """The declared groups, in their order, and last `default` with all other parameters."""
    clip: float | None = None
    """Largest gradient norm; None: no clipping."""
    lr_scaling: tuple[LRScale, ...] = ()
    """Power laws of every learning rate in the size of the model."""
    ema: Curve | None = None
    """Decay of the averaged weights; None: no average is kept."""
    reaction: Part | None = None
    """Reaction of the learning rate to the training signal."""

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
    reference: str | None = None
    """The frozen model that the task compares with: `phase entry`, or the path of another; None where it compares with none."""
    auxiliary: Mapping[str, Curve] = Factory(dict)
    """Weights of the losses that parts of the model add: `<role>.<name>` → its weight over time."""
