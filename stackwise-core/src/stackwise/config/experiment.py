"""An experiment as declared: frozen classes for what a config says, phase by phase, before any provider is asked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from attrs import Factory, field, frozen

from stackwise.admission import ProviderList, lists_of
from stackwise.config.nodes import Node, split
from stackwise.errors import ConfigError, Position, Problem
from stackwise.options import option
from stackwise.schedules import Constant, Piecewise, Schedule
from stackwise.time import Duration

_BEST = re.compile(r"[A-Za-z0-9_-]+\.[^\s.]+( \((min|max)\))?\Z")
_RUN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}\Z")


@frozen(kw_only=True)
class Ref:
    """A component as named in a config: a registered id with options, or an object given in code.

    Neither `use` nor `given` is set where the config has a mistake that is among the experiment's problems.
    """

    use: str | None = None
    """`<provider>.<component>`."""
    options: Mapping[str, Any] = Factory(dict)
    """The component's own options as written (for a `Built`: its options, and what phases changed), without the core's keys."""
    given: Any = None
    """A `Built` or a finished object."""
    path: str = ""
    """Where it stands in the phase's tree (`model.rack`)."""


def _broken_length(value: Duration) -> str | None:
    if value.unit == "fraction" or value.value <= 0:
        return f"a horizon of {value} is no length: give it in steps, tokens, samples or epochs, above zero"
    return None


def _broken_run_name(value: str) -> str | None:
    if not _RUN_NAME.match(value):
        return f"{value[:40]!r} cannot name a run: letters, digits, '.', '_' and '-', not starting with a dot, at most 100 of them"
    return None


def _broken_cadence(value: Duration | None) -> str | None:
    return None if value is None or value.value > 0 else f"a cadence of {value} never moves on: give it above zero"


def _broken_clip(value: float | None) -> str | None:
    return None if value is None or value > 0 else f"a largest gradient norm of {value:g} stops all learning: give it above zero"


def _broken_count(value: int | Schedule | None) -> str | None:
    if isinstance(value, Piecewise):
        counts, instants = list(value.values.values()), list(value.values)
        if any(count < 1 or count != int(count) for count in counts):
            return "every value is a whole number of at least 1"
        if not instants or Duration.parse(instants[0]).value != 0:
            return "the first value holds from the start of the window: give one at 0%"
        return None
    if value is None or isinstance(value, int):
        return None if value is None or value >= 1 else f"{value} is below the minimum of 1"
    if isinstance(value, Constant):
        return f"{value.value:g} is not a whole number"
    return "a count is a whole number, or a piecewise schedule of whole numbers"


def _counted(doc: str) -> dict[str, Any]:
    return {"rule": _broken_count, "doc": doc}


def _broken_base(value: float | None) -> str | None:
    return None if value is None or value > 0 else f"a size of {value:g} is none: give it above zero"


def _broken_decay(value: float | Schedule) -> str | None:
    if isinstance(value, int | float) and not 0 <= value < 1:
        return f"a decay of {value:g} is no share of an average that still moves: give it at least 0 and below 1"
    return None


def _broken_best(value: str | None) -> str | None:
    if value is None or _BEST.match(value):
        return None
    return f"{value!r} is no metric: write `<evaluation>.<metric>`, and ` (max)` behind it where more is better"


@frozen(kw_only=True)
class CheckpointConfig:
    """When a run's state goes to disk, and which of it stays there."""

    every: Duration = field(default=Duration.parse("10%"), metadata={"rule": _broken_cadence, "doc": "cadence; 100%: only at the end"})
    keep_last: int = option(2, doc="how many of the newest stay", minimum=1)
    keep_every: Duration | None = field(
        default=None, metadata={"rule": _broken_cadence, "doc": "cadence of checkpoints that stay for good"}
    )
    best: str | None = field(
        default=None, metadata={"rule": _broken_best, "doc": "`<evaluation>.<metric>`, ` (max)` behind it: the best by it stays as well"}
    )
    at_phases: bool = option(True, doc="before every boundary too")
    asynchronous: bool = option(False, doc="write in a thread from a copy in memory")

    @property
    def best_metric(self) -> tuple[str, Literal["min", "max"]] | None:
        """The metric that is watched, and which way is better."""
        if self.best is None:
            return None
        name, _, direction = self.best.partition(" ")
        return name, "max" if direction == "(max)" else "min"


@frozen(kw_only=True)
class ProvidersConfig:
    """Which installed providers may be imported for this run."""

    allow: tuple[str, ...] | None = field(default=None, metadata={"doc": "names of the only providers to import; left out: all"})
    block: tuple[str, ...] = field(default=(), metadata={"doc": "names of providers not to import"})

    def lists(self) -> tuple[ProviderList, ...]:
        """As discovery takes them."""
        return lists_of("run.providers.{}", self.allow, self.block)


@frozen(kw_only=True)
class RunConfig:
    """The run as a whole."""

    name: str = field(metadata={"rule": _broken_run_name, "doc": "name of the run and of its directory"})
    seed: int = option(0, doc="every random stream derives from it", minimum=0, maximum=2**63 - 1)
    horizon: Duration = field(metadata={"rule": _broken_length, "doc": "length of the run: steps, tokens, samples or epochs"})
    device: Literal["auto", "cpu", "cuda"] = option("auto", doc="where to train")
    precision: Literal["float32", "bf16"] = option("float32", doc="precision of the forward pass")
    threads: int | None = option(None, doc="processor threads; left out: as the machine has", minimum=1)
    read_ahead: int | None = option(None, doc="steps whose batches a thread makes ahead; left out: 2 on CUDA, 0 on a CPU", minimum=0)
    workers: int = option(0, doc="processes that read each source; 0: the thread reads", minimum=0)
    probe: bool = option(True, doc="whether each change of the model is judged on the last batch, before and after")
    compile: bool = option(False, doc="whether torch compiles the model, block by block")
    checkpoint: CheckpointConfig = field(factory=CheckpointConfig, metadata={"doc": "when the state goes to disk, and what stays there"})
    non_finite: Literal["skip", "halt", "rewind"] = option(
        "skip", doc="what a step without a finite loss and gradient leads to, beside changing nothing"
    )
    halt_after: int = option(3, doc="steps in a row without a finite loss and gradient after which the run halts", minimum=1)
    providers: ProvidersConfig = field(factory=ProvidersConfig, metadata={"doc": "which installed providers may be imported"})


@frozen(kw_only=True)
class DataConfig:
    """What the model sees."""

    sources: Mapping[str, Ref] = field(metadata={"doc": "name → loader"})
    mix: Mapping[str, float | Schedule] = field(default=Factory(dict), metadata={"doc": "source → weight; equal weights when left out"})
    batch_size: int | Schedule | None = field(default=None, metadata=_counted("rows of a micro-batch, at most with step_tokens"))
    seq_len: int | Schedule | None = field(default=None, metadata=_counted("positions of a row that the model sees"))
    accumulate: int | Schedule | None = field(default=None, metadata=_counted("micro-batches of one step; 1 when left out"))
    step_tokens: int | Schedule | None = field(
        default=None, metadata=_counted("positions of one step, which splits itself; not with accumulate")
    )
    rename: Mapping[str, str] = field(default=Factory(dict), metadata={"doc": "field the task needs → field the loader delivers"})
    transforms: tuple[Ref, ...] = field(default=(), metadata={"doc": "changes of a batch between loader and task, in order"})


@frozen(kw_only=True)
class WeightAdapterConfig:
    """Adapters beside some matrices. `select` stands beside the component's own options in the config."""

    part: Ref
    select: tuple[str, ...]
    """Selectors."""


@frozen(kw_only=True)
class StartConfig:
    """Weights to begin from."""

    from_: str = field(
        alias="from_", metadata={"key": "from", "doc": "a run directory, a directory of exported weights, or a safetensors file"}
    )
    drop: tuple[str, ...] = field(default=(), metadata={"doc": "selectors of what is not taken: it starts anew, or is left in the file"})


@frozen(kw_only=True)
class ModelConfig:
    """What the model is."""

    embedding: Ref = field(metadata={"doc": "batch fields → hidden state"})
    rack: Ref = field(metadata={"doc": "hidden state → hidden state, in named stacks of blocks"})
    head: Ref = field(metadata={"doc": "hidden state → outputs"})
    adapters: Mapping[Literal["embedding-rack", "rack-head"], tuple[Ref, ...]] = field(
        default=Factory(dict), metadata={"doc": "junction → adapters in forward order"}
    )
    freeze: tuple[str, ...] = field(default=(), metadata={"doc": "selectors of parameters that do not learn"})
    frozen_mode: Literal["eval", "train"] = option(
        "eval", doc="mode of modules that are wholly frozen: without dropout and with statistics that stand still, or as in training"
    )
    weight_adapters: Mapping[str, WeightAdapterConfig] = field(
        default=Factory(dict), metadata={"doc": "name → trained modules beside the matrices that `select` chooses (LoRA)"}
    )
    precision: Mapping[Literal["embedding", "rack", "head"], Literal["float32", "bfloat16", "float16"]] = field(
        default=Factory(dict), metadata={"doc": "part → dtype of its parameters; the hidden state is cast at its junctions"}
    )
    start: StartConfig | None = field(default=None, metadata={"doc": "weights to begin from, instead of drawing them"})


@frozen(kw_only=True)
class GroupConfig:
    """Parameters with optimizer options of their own."""

    name: str
    select: tuple[str, ...]
    """Selectors."""
    options: Mapping[str, Any] = Factory(dict)
    """The options that differ, as written."""


@frozen(kw_only=True)
class LRScaleConfig:
    """A power law of the learning rate in the size of the model."""

    exponent: float = field(metadata={"doc": "lr · (size / base) ^ exponent"})
    base: float | None = field(
        default=None, metadata={"rule": _broken_base, "doc": "size at which lr holds as written; left out: that of the first phase"}
    )


@frozen(kw_only=True)
class EMAConfig:
    """An exponential moving average of the weights."""

    decay: float | Schedule = field(metadata={"rule": _broken_decay, "doc": "share of the average that stays at each step"})


@frozen(kw_only=True)
class OptimizerConfig:
    """How the model learns. Its keys but `part` stand beside the component's own options in the config."""

    part: Ref
    groups: tuple[GroupConfig, ...] = ()
    clip: float | None = field(default=None, metadata={"rule": _broken_clip, "doc": "largest gradient norm; left out: no clipping"})
    lr_scaling: Mapping[Literal["width", "depth", "parameters"], LRScaleConfig] = field(
        default=Factory(dict), metadata={"doc": "size of the model → power law that every learning rate follows"}
    )
    ema: EMAConfig | None = field(default=None, metadata={"doc": "average of the weights to keep beside them"})
    reaction: Ref | None = field(default=None, metadata={"doc": "answer of every learning rate to the training signal"})


@frozen(kw_only=True)
class EnterConfig:
    """How a phase is entered; never inherited. `moments` may also stand beside the growth operator's own options."""

    growth: Ref | None = field(default=None, metadata={"doc": "operator that says where new blocks and larger tensors come from"})
    moments: Literal["copy", "reset"] = option(
        "copy", doc="moments of copied parameters, and of all at a change of the optimizer: carried over, or started anew"
    )
    rewarm: Duration | None = field(
        default=None, metadata={"rule": _broken_cadence, "doc": "time in which the learning rate of fresh parameters rises from 0"}
    )
    fresh: tuple[str, ...] = field(default=(), metadata={"doc": "selectors of parameters that start anew"})
    weight_adapters: Literal["merge", "drop"] = option(
        "merge", doc="weight adapters that leave: their matrices take them in, or they are lost"
    )


@frozen(kw_only=True)
class EvaluateConfig:
    """One evaluation on fixed data, length and corruption, so that its curve compares across phases."""

    name: str
    every: Duration | None = field(
        default=None, metadata={"rule": _broken_cadence, "doc": "cadence; left out: at boundaries and both ends"}
    )
    batches: int = option(16, doc="batches each time", minimum=1)
    batch_size: int | None = option(None, doc="rows of a batch; left out: as in training", minimum=1)
    seq_len: int | None = option(None, doc="positions of a row; left out: as in training", minimum=1)
    sources: Mapping[str, Ref] | None = field(default=None, metadata={"doc": "name → loader; left out: as in training"})
    weights: Literal["live", "ema"] = option("live", doc="which weights: those that train, or their average")
    task: Mapping[str, float] = field(
        default=Factory(dict),
        metadata={"doc": "task option that may follow time → fixed value; left out: as at the start"},
    )


@frozen(kw_only=True, eq=False)
class PhaseConfig:
    """One phase with everything it declares and everything it inherits."""

    name: str
    index: int
    until: Duration
    task: Ref
    data: DataConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    enter: EnterConfig = Factory(EnterConfig)
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

    def check(self) -> None:
        """Raise every problem at once.

        Raises:
            ConfigError: there is at least one.
        """
        if self.problems:
            raise ConfigError(self.problems)
