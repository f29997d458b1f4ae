"""An experiment as declared: frozen classes for what a config says, phase by phase, before any provider is asked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from attrs import Factory, frozen

from stackwise.config.keys import key
from stackwise.config.nodes import Node, split
from stackwise.errors import ConfigError, Position, Problem
from stackwise.host.admission import ProviderList, lists_of
from stackwise.timeline.duration import Duration
from stackwise.timeline.schedules import Constant, Piecewise, Schedule

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


_COUNT = "count"
_SELECTORS = "list of selectors"


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

    every: Duration = key(
        Duration.parse("10%"), rule=_broken_cadence, doc="cadence; `100%` leaves the end, and what else is asked for", example="2e6 tokens"
    )
    keep_last: int = key(2, doc="how many of the newest stay", minimum=1, example="5")
    keep_every: Duration | None = key(None, rule=_broken_cadence, doc="cadence of checkpoints that stay for good", example="25%")
    best: str | None = key(
        None,
        rule=_broken_best,
        form="metric",
        doc="`<evaluation>.<metric>`, and ` (max)` behind it where more is better: the best by it stays too",
        example="heldout.loss",
    )
    at_phases: bool = key(True, doc="before every boundary too", example="false")
    asynchronous: bool = key(False, doc="write in a thread, from a copy in memory", example="true")

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

    allow: tuple[str, ...] | None = key(
        None,
        form="list of provider names",
        absent="all",
        doc="the only providers that may be imported; the core's own always may",
        example="[transformer, optim, data]",
    )
    block: tuple[str, ...] = key((), form="list of provider names", doc="providers that may not", example="[waves]")

    def lists(self) -> tuple[ProviderList, ...]:
        """As discovery takes them."""
        return lists_of("run.providers.{}", self.allow, self.block)


@frozen(kw_only=True)
class RunConfig:
    """The run as a whole."""

    name: str = key(
        rule=_broken_run_name,
        form="name",
        absent="the file's name",
        doc="name of the run, and of its directory `runs/<name>-NNN`",
        example="grow-bytes",
    )
    seed: int = key(0, doc="every random stream derives from it", minimum=0, maximum=2**63 - 1, example="7")
    horizon: Duration = key(
        rule=_broken_length,
        form="duration in steps, tokens, samples or epochs",
        doc="length of the run; tokens are scheduled positions, padding included",
        example=("1200 steps", "2 epochs of web"),
    )
    device: Literal["auto", "cpu", "cuda"] = key("auto", doc="where to train; `auto` takes CUDA where there is one", example="cpu")
    precision: Literal["float32", "bf16"] = key(
        "float32", doc="precision of the forward pass; weights and moments stay float32", example="bf16"
    )
    threads: int | None = key(None, absent="as the machine has", doc="processor threads", minimum=1, example="2")
    read_ahead: int | None = key(
        None,
        absent="2 on CUDA, 0 on a CPU",
        doc="steps whose batches a thread makes ahead; the stream is the same for any number",
        minimum=0,
        example="0",
    )
    workers: int = key(0, doc="processes that read each source; the stream is the same for any number", minimum=0, example="2")
    checkpoint: CheckpointConfig = key(
        factory=CheckpointConfig,
        absent="see below",
        doc="when the state goes to disk, and what of it stays there",
        example="{every: 500 steps}",
    )
    non_finite: Literal["skip", "halt", "rewind"] = key(
        "skip", doc="what steps whose loss or gradient is not finite lead to, beside changing nothing", example="rewind"
    )
    halt_after: int = key(3, doc="steps in a row whose loss or gradient is not finite, after which the run halts", minimum=1, example="5")
    probe: bool = key(
        True,
        doc="whether each change of the model is judged on the last batch, before and after: loss and largest change of an output, "
        "in the log",
        example="false",
    )
    compile: bool = key(False, doc="whether torch compiles the model, block by block", example="true")
    providers: ProvidersConfig = key(
        factory=ProvidersConfig,
        absent="all installed",
        doc="which installed providers may be imported, on top of `--allow-provider`, `--block-provider` and the environment",
        example="{block: [waves]}",
    )


@frozen(kw_only=True)
class DataConfig:
    """What the model sees."""

    sources: Mapping[str, Ref] = key(doc="the loaders", example="{stdlib: {use: data.python-stdlib}}")
    mix: Mapping[str, float | Schedule] = key(
        factory=dict,
        form="source → number or schedule",
        absent="equal weights",
        doc="weight of each source, row by row; only ratios matter",
        example="{a: 3, b: {linear: {from: 0, to: 1}}}",
    )
    batch_size: int | Schedule | None = key(
        None,
        rule=_broken_count,
        form=_COUNT,
        absent="as ready-made batches come",
        doc="rows of a micro-batch; with `step_tokens` the most it may have",
        example="16",
    )
    seq_len: int | Schedule | None = key(
        None,
        rule=_broken_count,
        form=_COUNT,
        absent="as ready-made batches come",
        doc="positions of a row that the model sees",
        example=("128", '{piecewise: {values: {"0%": 64, "50%": 128}}}'),
    )
    accumulate: int | Schedule | None = key(
        None, rule=_broken_count, form=_COUNT, absent="one", doc="micro-batches of one step", example="4"
    )
    step_tokens: int | Schedule | None = key(
        None,
        rule=_broken_count,
        form=_COUNT,
        doc="positions of one step, which splits itself into micro-batches; instead of `accumulate`",
        example="32768",
    )
    rename: Mapping[str, str] = key(
        factory=dict, form="field → field", doc="field the task needs → field the loader delivers", example="{tokens: input_ids}"
    )
    fields: tuple[str, ...] = key(
        (),
        form="list of field names",
        doc="names of the entries of ready-made batches that are tuples, in order",
        example="[images, labels]",
    )
    accept_inexact_resume: bool = key(
        False,
        doc="whether a source given in code may have neither a state nor a length, so that a resume reads it anew from its start and "
        "nobody can tell whether it delivers the same; the log repeats it",
        example="true",
    )
    transforms: tuple[Ref, ...] = key(
        (), doc="changes of a training batch before the task, in order", example="[{use: waves.jitter, amount: 0.1}]"
    )


@frozen(kw_only=True)
class WeightAdapterConfig:
    """Adapters beside some matrices. `select` stands beside the component's own options in the config."""

    part: Ref
    select: tuple[str, ...] = key(
        form=_SELECTORS, doc="the matrices; those of linear maps among what is selected", example='["*.attention.*"]'
    )


@frozen(kw_only=True)
class StartConfig:
    """Weights to begin from."""

    from_: str = key(
        named="from",
        form="path",
        doc="a run that has finished (its final weights), a directory of weights, or a safetensors file with canonical names",
        example="runs/base-001",
    )
    drop: tuple[str, ...] = key(
        (), form=_SELECTORS, doc="what is not taken: it starts anew in the model, and is left in the file", example="[head]"
    )


@frozen(kw_only=True)
class ModelConfig:
    """What the model is."""

    embedding: Ref = key(doc="batch fields → hidden state", example="{use: transformer.token}")
    rack: Ref = key(
        doc="hidden state → hidden state, in named stacks of blocks",
        example="{use: transformer.decoder, width: 64, heads: 4, stacks: [{base: 2}]}",
    )
    head: Ref = key(doc="hidden state → outputs", example="{use: transformer.lm}")
    adapters: Mapping[Literal["embedding-rack", "rack-head"], tuple[Ref, ...]] = key(
        factory=dict,
        form="junction → list of components",
        doc="what stands between the parts, in forward order; junctions are `embedding-rack` and `rack-head`",
        example="{rack-head: [{use: core.project}]}",
    )
    freeze: tuple[str, ...] = key((), form=_SELECTORS, doc="parameters that do not learn", example="[embedding, rack.stacks.base.0-1]")
    frozen_mode: Literal["eval", "train"] = key(
        "eval",
        doc="mode of modules that are wholly frozen: without dropout and with statistics that stand still, or as in training",
        example="train",
    )
    weight_adapters: Mapping[str, WeightAdapterConfig] = key(
        factory=dict,
        form="name → component",
        doc="trained modules beside matrices (LoRA); they live under `weight_adapters.NAME` and no other name changes",
        example="{style: {use: waves.low-rank, select: [rack]}}",
    )
    precision: Mapping[Literal["embedding", "rack", "head"], Literal["float32", "bfloat16", "float16"]] = key(
        factory=dict,
        form="part → `float32`, `bfloat16`, `float16`",
        absent="as built",
        doc="dtype of the parameters of `embedding`, `rack` or `head`; the hidden state is cast at its junctions",
        example="{rack: bfloat16}",
    )
    start: StartConfig | None = key(
        None, doc="weights to begin from instead of drawing them; belongs to the whole run, and no phase may change it"
    )


@frozen(kw_only=True)
class GroupConfig:
    """Parameters with optimizer options of their own."""

    name: str
    select: tuple[str, ...] = key(
        form=_SELECTORS,
        doc="which parameters, frozen ones among them or not; the other keys of a group are options of the optimizer that may follow time",
        example="[embedding]",
    )
    options: Mapping[str, Any] = Factory(dict)
    """The options that differ, as written."""


@frozen(kw_only=True)
class LRScaleConfig:
    """A power law of the learning rate in the size of the model."""

    exponent: float = key(doc="lr · (size / base) ^ exponent", example="-0.5")
    base: float | None = key(
        None,
        rule=_broken_base,
        above=0,
        absent="the size in the first phase that scales by it",
        doc="size at which lr holds as written; required for `parameters`",
        example="256",
    )


@frozen(kw_only=True)
class EMAConfig:
    """An exponential moving average of the weights."""

    decay: float | Schedule = key(
        rule=_broken_decay, form="number in [0, 1) or schedule", doc="share of the average that stays at each step", example="0.999"
    )


@frozen(kw_only=True)
class OptimizerConfig:
    """How the model learns. Its keys but `part` stand beside the component's own options in the config."""

    part: Ref
    groups: tuple[GroupConfig, ...] = key(
        (),
        form="name → map",
        doc="parameters with values of their own; a parameter belongs to the first group that selects it",
        example="{slow: {select: [embedding], lr: 1e-4}}",
    )
    clip: float | None = key(
        None, rule=_broken_clip, above=0, absent="no clipping", doc="largest norm of the whole gradient", example="1.0"
    )
    lr_scaling: Mapping[Literal["width", "depth", "parameters"], LRScaleConfig] = key(
        factory=dict,
        form="size → map",
        doc="every learning rate follows `width`, `depth` (blocks) or `parameters` by a power law",
        example="{width: {exponent: -1}}",
    )
    ema: EMAConfig | None = key(
        None, doc="exponential moving average of the weights, kept beside them through growth", example="{decay: 0.999}"
    )
    reaction: Ref | None = key(
        None,
        doc="answer of every learning rate to the training signal, inside the envelope that the plan states",
        example="{use: waves.brake, above: 10}",
    )


@frozen(kw_only=True)
class EnterConfig:
    """How a phase is entered; never inherited. `moments` may also stand beside the growth operator's own options."""

    growth: Ref | None = key(
        None,
        doc="the operator that says which old block a new one comes from, and what larger tensors take over; needed where blocks are new",
        example="{use: transformer.stack}",
    )
    moments: Literal["copy", "reset"] = key(
        "copy",
        doc="moments of copied parameters, and of all at a change of the optimizer: carried over where the new one keeps the same, or "
        "started anew",
        example="reset",
    )
    rewarm: Duration | None = key(
        None,
        rule=_broken_cadence,
        doc="time in which the learning rate of fresh parameters rises from 0; counted in the phase",
        example="100 steps",
    )
    fresh: tuple[str, ...] = key((), form=_SELECTORS, doc="parameters that start anew, whatever was there", example="[head]")
    weight_adapters: Literal["merge", "drop"] = key(
        "merge",
        doc="what becomes of weight adapters that leave: their matrices take them in, or what they learnt is lost",
        example="drop",
    )


@frozen(kw_only=True)
class EvaluateConfig:
    """One evaluation on fixed data, length and corruption, so that its curve compares across phases."""

    name: str
    every: Duration | None = key(None, rule=_broken_cadence, absent="boundaries and both ends", doc="cadence", example="5%")
    batches: int = key(16, doc="batches each time", minimum=1, example="16")
    batch_size: int | None = key(None, absent="the first phase's", doc="rows of a batch", minimum=1, example="32")
    seq_len: int | None = key(None, absent="the longest of all phases", doc="positions of a row", minimum=1, example="256")
    sources: Mapping[str, Ref] | None = key(
        None,
        absent="the first phase's",
        doc="loaders of its own, in equal shares",
        example='{books: {use: data.text-files, paths: ["books/*.txt"]}}',
    )
    training_rows: bool = key(
        False,
        doc="whether it may read what training reads, where data given in code have no held-out part; the log repeats it",
        example="true",
    )
    weights: Literal["live", "ema"] = key("live", doc="which weights: those that train, or their average", example="ema")
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
