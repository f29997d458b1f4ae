"""An experiment as declared: frozen classes for what a config says, phase by phase, before any provider is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from attrs import Factory, frozen

from stackwise.config.keys import key
from stackwise.config.nodes import Node, split
from stackwise.config.planes import DataConfig, ModelConfig, OptimizerConfig, Ref, TaskConfig
from stackwise.config.rules import MOST_ROWS, SELECTORS, broken_best, broken_cadence, broken_instants, metric_and_direction
from stackwise.config.run import RunConfig
from stackwise.errors import ConfigError, Position, Problem
from stackwise.timeline.duration import Duration


@frozen(kw_only=True)
class EnterConfig:
    """How a phase is entered; never inherited. `moments` may also stand beside the growth operator's own options."""

    growth: Ref | None = key(
        None,
        doc="growth operator: which old block a new one comes from, and what fills larger tensors",
        example="{use: transformer.stack}",
    )
    moments: Literal["copy", "reset"] = key(
        "copy",
        doc="optimizer moments of copied parameters, and of all of them when the optimizer changes: carried over where the new one has "
        "the same, or reset",
        example="reset",
    )
    rewarm: Duration | None = key(
        None,
        rule=broken_cadence,
        doc="warm-up of the learning rate of fresh parameters, from 0 at the start of the phase",
        example="100 steps",
    )
    fresh: tuple[str, ...] = key((), form=SELECTORS, doc="parameters that are initialised anew, although they exist", example="[head]")
    weight_adapters: Literal["merge", "drop"] = key(
        "merge",
        doc="what happens to weight adapters that the phase removes: merged into their matrices, or dropped",
        example="drop",
    )


@frozen(kw_only=True)
class UntilConfig:
    """A phase that ends when a metric no longer gets better, and at some instant at the latest."""

    stalls: str = key(
        rule=broken_best,
        form="metric",
        doc="`<evaluation>.<metric>`, with ` (max)` where higher is better: the phase ends when it stops improving",
        example="heldout.loss",
    )
    at_most: Duration = key(doc="latest end of the phase, from the start of the run; the plan assumes it", example="60%")
    patience: int = key(5, doc="evaluations in a row without an improvement", minimum=1, maximum=1_000_000, example="3")
    least: float = key(0.0, doc="only a change by more than this is an improvement", minimum=0, example="0.001")
    ended: Duration | None = key(None, doc="where it ended, written by the run; `null` lets the run decide again", example="350 steps")

    @property
    def watched(self) -> tuple[str, Literal["min", "max"]]:
        """The metric that is watched, and which way is better."""
        return metric_and_direction(self.stalls)


@frozen(kw_only=True)
class EvaluateConfig:
    """One evaluation on fixed data, length and corruption, so that its curve compares across phases."""

    name: str
    every: Duration | None = key(None, rule=broken_cadence, absent="boundaries and both ends", doc="cadence", example="5%")
    at: tuple[Duration, ...] | None = key(
        None,
        rule=broken_instants,
        absent="boundaries, both ends, and the cadence",
        doc="evaluate at these instants only; `[100%]` is the end of the run",
        example="[50%, 100%]",
    )
    batches: int = key(
        16, doc="batches of one evaluation; of a loader in code with a length at most one pass", minimum=1, maximum=1_000_000, example="16"
    )
    batch_size: int | None = key(None, absent="the first phase's", doc="rows of a batch", minimum=1, maximum=MOST_ROWS, example="32")
    seq_len: int | None = key(
        None, absent="the longest of all phases", doc="positions of a row", minimum=1, maximum=MOST_ROWS, example="256"
    )
    sources: Mapping[str, Ref] | None = key(
        None,
        absent="the first phase's",
        doc="its own loaders, in equal shares, read whole",
        example='{books: {use: data.text-files, paths: ["books/*.txt"]}}',
    )
    training_rows: bool = key(
        False,
        doc="whether it may read what training reads: data given in code, which have no held-out part, or sources over training's "
        "data; noted in the log",
        example="true",
    )
    weights: Literal["live", "ema"] = key("live", doc="`live`, the weights that train, or `ema`, their average", example="ema")
    task: Mapping[str, float] = key(
        factory=dict,
        form="option → number",
        absent="as at the start of the run",
        doc="fixed values of the task's options that follow time in training",
        example="{mask_rate: 0.15}",
    )


@frozen(kw_only=True, eq=False)
class PhaseConfig:
    """One phase with everything it declares and everything it inherits."""

    name: str
    index: int
    until: Duration
    """Where it ends; of one that may end before, at the latest."""
    task: TaskConfig
    data: DataConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    enter: EnterConfig = Factory(EnterConfig)
    stalls: UntilConfig | None = None
    """How it may end before; None once that is decided."""
    tree: Node
    """The effective config of the phase: task, data, model, optimizer, and its own `until` and `enter`."""
    names: tuple[str, ...]
    """Names of all phases of the run, in order."""

    def declared_in(self, path: str) -> int:
        """Index of the phase that touched a subtree last, -1 when no phase did; for a key that nothing declares, of what surrounds it."""
        return self.tree.nearest(split(self.tree, path)).layer

    def locate(self, path: str) -> Position:
        """Where a key was written, or the nearest key around it that was."""
        return self.tree.nearest(split(self.tree, path)).position

    def written(self, path: str) -> str:
        """The key as it stands in the config: `model.rack` of a delta is `phases.<name>.model.rack`."""
        layer = self.declared_in(path)
        return path if layer < 0 else f"phases.{self.names[layer]}.{path}"

    def problem(self, path: str, message: str) -> Problem:
        """A mistake at a key of this phase, with its place."""
        return Problem(message, self.written(path), self.locate(path))


@frozen(kw_only=True, eq=False)
class Experiment:
    """A whole config, read. Where it has problems, the nodes at fault hold defaults so that reading can go on."""

    run: RunConfig
    phases: tuple[PhaseConfig, ...]
    evaluate: tuple[EvaluateConfig, ...] = ()
    observers: tuple[Ref, ...] = ()
    resolved: Mapping[str, Any] = Factory(dict)
    """The merged config as plain values, objects as short descriptions; for the run directory."""
    problems: tuple[Problem, ...] = ()
    tree: Node
    """The merged config before any phase."""

    def problem(self, path: str, message: str) -> Problem:
        """A mistake at a key outside the phases, with its place."""
        return Problem(message, path, self.tree.nearest(split(self.tree, path)).position)

    def check(self) -> None:
        """Raise every problem at once.

        Raises:
            ConfigError: there is at least one.
        """
        if self.problems:
            raise ConfigError(self.problems)
