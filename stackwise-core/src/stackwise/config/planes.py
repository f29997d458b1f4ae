"""The three planes as declared: what the model sees, what it is, how it learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from attrs import Factory, frozen

from stackwise.config.keys import key
from stackwise.config.rules import COUNT, SELECTORS, broken_base, broken_clip, broken_count, broken_decay
from stackwise.timeline.schedules import Schedule


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
    blocks: Mapping[str, str] | None = None
    """Of a whole module in the place of the rack: path of a list of blocks → the option that says how many; else None."""


@frozen(kw_only=True)
class ReferenceConfig:
    """The frozen model that a task compares with."""

    from_: str = key(
        named="from",
        form="`phase entry` or path",
        doc="`phase entry`, the model as it is when the task first applies; or a run that has finished, an export, or a folder of a "
        "format that a provider knows",
        example="runs/teacher-001",
    )


@frozen(kw_only=True)
class TaskConfig:
    """The objective. Its keys but `part` stand beside the component's own options in the config."""

    part: Ref
    auxiliary: Mapping[str, Schedule] = key(
        factory=dict,
        form="`<role>.<loss>` → number or schedule",
        doc="weights of the losses that embedding, rack and head add to the task's; each of them needs one, 0 leaves it out",
        example="{rack.balance: 0.01}",
    )
    reference: ReferenceConfig | None = key(
        None,
        form="map, or its `from` alone",
        absent="the model at phase entry, or none, as the task needs",
        doc="the frozen model that the task compares with",
        example="{from: runs/teacher-001}",
    )


@frozen(kw_only=True)
class DataConfig:
    """What the model sees."""

    sources: Mapping[str, Ref] = key(doc="the loaders", example="{stdlib: {use: data.python-stdlib}}")
    mix: Mapping[str, Schedule] = key(
        factory=dict,
        form="source → number or schedule",
        absent="equal weights",
        doc="weight of each source, row by row; only ratios matter",
        example="{a: 3, b: {linear: {from: 0, to: 1}}}",
    )
    batch_size: int | Schedule | None = key(
        None,
        rule=broken_count,
        form=COUNT,
        absent="as ready-made batches come",
        doc="rows of a micro-batch; with `step_tokens` the most it may have",
        example="16",
    )
    seq_len: int | Schedule | None = key(
        None,
        rule=broken_count,
        form=COUNT,
        absent="as ready-made batches come",
        doc="positions of a row that the model sees",
        example=("128", '{piecewise: {values: {"0%": 64, "50%": 128}}}'),
    )
    accumulate: int | Schedule | None = key(None, rule=broken_count, form=COUNT, absent="one", doc="micro-batches of one step", example="4")
    step_tokens: int | Schedule | None = key(
        None,
        rule=broken_count,
        form=COUNT,
        doc="positions of one step, which splits itself into micro-batches; instead of `accumulate`",
        example="32768",
    )
    rename: Mapping[str, str] = key(
        factory=dict, form="field → field", doc="field the task needs → field the loader delivers", example="{tokens: input_ids}"
    )
    drop: tuple[str, ...] = key(
        (),
        form="list of field names",
        doc="fields of the loader that the task must not read; a field that is neither read nor dropped is an error",
        example="[label]",
    )
    fields: tuple[str, ...] = key(
        (),
        form="list of field names",
        doc="names of the entries of batches that are tuples, in order",
        example="[images, labels]",
    )
    accept_inexact_resume: bool = key(
        False,
        doc="whether a source given in code may have neither a state nor a length: a resume then reads it from its start, and "
        "nothing can check that it delivers the same; noted in the log",
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
        form=SELECTORS, doc="the matrices; those of linear maps among what is selected", example='["*.attention.*"]'
    )


@frozen(kw_only=True)
class StartConfig:
    """Weights to begin from."""

    from_: str = key(
        named="from",
        form="path",
        doc="a run that has finished (its final weights), a directory of weights, a safetensors file with canonical names, or a folder "
        "of a format that a provider knows",
        example="runs/base-001",
    )
    format: Ref | None = key(
        None,
        absent="the one that recognises the folder",
        doc="format of the folder, a component",
        example="{use: transformer.hf}",
    )
    differs: tuple[str, ...] = key(
        (),
        form="list of `<part>.<option>`",
        doc="options of the model that are meant to differ from those of the folder; any other difference is refused",
        example="[rack.rotary]",
    )
    drop: tuple[str, ...] = key(
        (), form=SELECTORS, doc="parameters that are not taken from the weights; the model initialises them", example="[head]"
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
    module: Ref | None = key(
        None,
        form="module or `Built`, in code",
        doc="one module from batch fields to outputs, in the place of embedding, rack and head; its parameters are named "
        "`rack.<its own name>` here, and by their own names in files of weights",
    )
    blocks: Mapping[str, str] = key(
        factory=dict,
        form="attribute → option",
        doc="the lists of blocks of `module` (`nn.ModuleList`, `nn.Sequential`) that can grow, in forward order → the option of its "
        "`Built` that says how many there are",
        example="{encoder.layers: depth}",
    )
    adapters: Mapping[Literal["embedding-rack", "rack-head"], tuple[Ref, ...]] = key(
        factory=dict,
        form="junction → list of components",
        doc="modules between the parts, in forward order; junctions are `embedding-rack` and `rack-head`",
        example="{rack-head: [{use: core.project}]}",
    )
    freeze: tuple[str, ...] = key((), form=SELECTORS, doc="parameters that do not learn", example="[embedding, rack.stacks.base.0-1]")
    frozen_mode: Literal["eval", "train"] = key(
        "eval",
        doc="mode of modules whose parameters are all frozen: `eval` (no dropout, fixed running statistics), or as in training",
        example="train",
    )
    cache: Literal["frozen"] | None = key(
        None,
        absent="nothing is kept",
        doc="`frozen`: the output of the frozen blocks at the start of the rack is computed once for each row, and kept on disk",
        example="frozen",
    )
    weight_adapters: Mapping[str, WeightAdapterConfig] = key(
        factory=dict,
        form="name → component",
        doc="trained modules beside matrices (LoRA); their parameters are named `weight_adapters.NAME…`, other names stay",
        example="{style: {use: waves.low-rank, select: [rack]}}",
    )
    precision: Mapping[Literal["embedding", "rack", "head"], Literal["float32", "bfloat16", "float16"]] = key(
        factory=dict,
        form="part → `float32`, `bfloat16`, `float16`",
        absent="as built",
        doc="dtype of the parameters of `embedding`, `rack` or `head`; the hidden state is cast between them",
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
        form=SELECTORS,
        doc="the parameters of the group, frozen or not; its other keys are options of the optimizer that may follow time",
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
        rule=broken_base,
        above=0,
        absent="the size in the first phase that scales by it",
        doc="size at which lr holds as written; required for `parameters`",
        example="256",
    )


@frozen(kw_only=True)
class EMAConfig:
    """An exponential moving average of the weights."""

    decay: Schedule = key(
        rule=broken_decay, form="number in [0, 1) or schedule", doc="share of the average that stays at each step", example="0.999"
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
    clip: float | None = key(None, rule=broken_clip, above=0, absent="no clipping", doc="largest norm of the whole gradient", example="1.0")
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
        doc="a factor on every learning rate that reacts to training, within the bounds that the plan states",
        example="{use: waves.brake, above: 10}",
    )
