"""The run as a whole, as declared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from attrs import frozen

from stackwise.config.keys import key
from stackwise.config.rules import (
    broken_best,
    broken_cadence,
    broken_instants,
    broken_length,
    broken_run_name,
    broken_seconds,
    broken_span,
    metric_and_direction,
    seconds_of,
)
from stackwise.host.admission import ProviderList, lists_of
from stackwise.timeline.duration import Duration


@frozen(kw_only=True)
class CheckpointConfig:
    """When checkpoints are saved, and which are kept."""

    every: Duration = key(
        Duration.parse("10%"),
        rule=broken_cadence,
        doc="how often; `100%` saves at the end, and where the other keys say",
        example="2e6 tokens",
    )
    keep_last: int = key(2, doc="how many of the newest are kept", minimum=1, maximum=1_000_000, example="5")
    keep_every: Duration | None = key(None, rule=broken_cadence, doc="how often one is kept for good", example="25%")
    at: tuple[Duration, ...] = key(
        (), rule=broken_instants, doc="instants at which one is saved and kept for good", example="[60%, 640 steps]"
    )
    best: str | None = key(
        None,
        rule=broken_best,
        form="metric",
        doc="`<evaluation>.<metric>`, with ` (max)` where higher is better: the best one by this metric is kept too",
        example="heldout.loss",
    )
    at_phases: bool = key(True, doc="before every boundary too", example="false")
    asynchronous: bool = key(False, doc="write in a thread, from a copy in memory", example="true")

    @property
    def best_metric(self) -> tuple[str, Literal["min", "max"]] | None:
        """The metric that is watched, and which way is better."""
        return None if self.best is None else metric_and_direction(self.best)


@frozen(kw_only=True)
class StopConfig:
    """When a run ends before its horizon."""

    metric: str | None = key(
        None,
        rule=broken_best,
        form="metric",
        doc="`<evaluation>.<metric>`, with ` (max)` where higher is better: the run ends when it stops improving",
        example="heldout.loss",
    )
    patience: int | None = key(
        None,
        absent="5",
        doc="evaluations in a row without an improvement after which the run ends; the count begins again in each phase",
        minimum=1,
        maximum=1_000_000,
        example="3",
    )
    least: float | None = key(None, absent="0", doc="only a change by more than this is an improvement", minimum=0, example="0.001")
    after: str | None = key(
        None,
        rule=broken_span,
        form="span of time",
        doc="limit of time for one process, from its first step on; then the state is saved and it ends with exit code 5",
        example="11h50m",
    )

    @property
    def watched(self) -> tuple[str, Literal["min", "max"]] | None:
        """The metric that is watched, and which way is better."""
        return None if self.metric is None else metric_and_direction(self.metric)

    @property
    def after_s(self) -> int | None:
        """Seconds of wall clock; None where there is no limit."""
        return None if self.after is None else seconds_of(self.after)


@frozen(kw_only=True)
class ParallelConfig:
    """How the processes of a run divide the work; nothing here changes what is trained."""

    replicate: int | None = key(
        None,
        absent="all processes",
        doc="copies of the model, each in one process or in `shard` of them; all share out the micro-batches of a step, and are held "
        "against those that were started",
        minimum=1,
        maximum=65_536,
        example="2",
    )
    shard: int = key(
        1,
        doc="processes that divide the parameters, gradients and optimizer state of a model among them; with `replicate`, of each copy",
        minimum=1,
        maximum=65_536,
        example="8",
    )
    recompute: Literal["nothing", "blocks"] = key(
        "nothing",
        doc="what the backward pass computes again; `blocks` keep only what enters them, for one more forward pass of each",
        example="blocks",
    )
    offload: bool = key(
        False,
        doc="whether parameters and moments lie in the memory of the processor; this version does not, so it is false",
        example="false",
    )
    tensor: int = key(
        1,
        doc="processes that divide each matrix multiplication of a block; this version does not, so it is 1",
        minimum=1,
        maximum=65_536,
        example="1",
    )
    patience: str = key(
        "60s",
        rule=broken_span,
        form="span of time",
        doc="how long a process waits for another one that does not come, before the run ends and names it",
        example="5m",
    )

    @property
    def patience_s(self) -> int:
        """Seconds that another process is waited for."""
        return seconds_of(self.patience)


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
        rule=broken_run_name,
        form="name",
        absent="the file's name",
        doc="name of the run, and of its directory `runs/<name>-NNN`",
        example="grow-bytes",
    )
    seed: int = key(0, doc="every random stream derives from it", minimum=0, maximum=2**63 - 1, example="7")
    horizon: Duration = key(
        rule=broken_length,
        form="duration in steps, tokens, samples, epochs, training FLOPs or time",
        doc="length of the run; tokens are scheduled positions, padding included; FLOPs those that `stackwise plan` prints; a time "
        "that of its training steps",
        example=("1200 steps", "2 epochs of web", "1e13 flops", "10 minutes"),
    )
    step_seconds: Mapping[str, float] | None = key(
        None,
        rule=broken_seconds,
        form="phase → seconds",
        absent="measured when the run begins",
        doc="what a step of each phase takes, where a duration is a time: written by the run, which plans by it to its end",
        example="{shallow: 0.12, deep: 0.4}",
    )
    device: Literal["auto", "cpu", "cuda"] = key("auto", doc="where to train; `auto` takes CUDA where there is one", example="cpu")
    precision: Literal["float32", "bf16"] = key(
        "float32", doc="precision of the forward pass; weights and moments stay float32", example="bf16"
    )
    threads: int | None = key(None, absent="as the machine has", doc="processor threads", minimum=1, maximum=4096, example="2")
    read_ahead: int | None = key(
        None,
        absent="2 on CUDA, 0 on a CPU",
        doc="steps whose batches a thread makes ahead; the stream is the same for any number",
        minimum=0,
        maximum=10_000,
        example="0",
    )
    workers: int = key(
        0, doc="processes that read each source; the stream is the same for any number", minimum=0, maximum=1024, example="2"
    )
    checkpoint: CheckpointConfig = key(
        factory=CheckpointConfig,
        absent="see below",
        doc="when checkpoints are saved, and which are kept",
        example="{every: 500 steps}",
    )
    stop: StopConfig = key(
        factory=StopConfig,
        absent="at the horizon alone",
        doc="when the run ends before its horizon",
        example="{metric: heldout.loss, patience: 3, after: 11h50m}",
    )
    parallel: ParallelConfig = key(
        factory=ParallelConfig,
        absent="see below",
        doc="how several processes divide the work (`stackwise run --ranks N`, or torchrun)",
        example="{replicate: 2}",
    )
    non_finite: Literal["skip", "halt", "rewind"] = key(
        "skip", doc="what happens after steps whose loss or gradient is not finite; such a step itself changes nothing", example="rewind"
    )
    vocabularies: Literal["one", "several"] = key(
        "one",
        doc="whether token ids of different vocabularies may meet in the model; `several` allows it",
        example="several",
    )
    halt_after: int = key(
        3,
        doc="steps in a row whose loss or gradient is not finite, after which the run halts",
        minimum=1,
        maximum=1_000_000,
        example="5",
    )
    probe: bool = key(
        True,
        doc="whether the model is run on the last batch before and after each change of it; loss and largest change of an output "
        "go to the log",
        example="false",
    )
    compile: bool | Literal["whole"] = key(
        False,
        doc="whether torch compiles the model: block by block, or `whole`, the rack in one graph, with fewer calls and more to compile",
        example="true",
    )
    providers: ProvidersConfig = key(
        factory=ProvidersConfig,
        absent="all installed",
        doc="which installed providers may be imported, on top of `--allow-provider`, `--block-provider` and the environment",
        example="{block: [waves]}",
    )
