"""What the training machine yields: plain records of what happened, in order.

Checkpointing, logs, progress bars and trackers consume them; nothing in an event is live.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class RunFacts(NamedTuple):
    """The run whose events an observer is about to get. It is not an event: observers with a `meet` get it once, before the first event."""

    name: str
    """Of the run directory."""
    directory: str
    config: Mapping[str, Any]
    """As it was understood, every `extends` and `--set` applied."""
    plan: Mapping[str, Any]
    """As `plan.json` holds it."""


class RunStarted(NamedTuple):
    """Before the first step, of the run or of what is left of it."""

    steps: int
    device: str
    precision: str
    bridges: tuple[str, ...]
    """Junctions that were bridged, in sentences."""
    step: int = 0
    """The first step to run: not 0 where a run goes on from a checkpoint."""
    providers: tuple[str, ...] = ()
    """Whose code runs: distribution, version, and the sha256 of its Python files."""
    notes: tuple[str, ...] = ()
    """What finished objects bring from an earlier run of the process, and what a resume cannot be sure of, in sentences."""


class PhaseEntered(NamedTuple):
    """A phase began; its transition, when it is not the first, has been applied."""

    step: int
    phase: str
    phase_index: int
    parameters: int
    trainable: int
    adopted: int
    copied: int
    fresh: int
    dropped: int
    moments_kept: int
    moments_copied: int
    moments_dropped: int
    seconds: float
    merged: int = 0
    """Matrices that took in a weight adapter which left."""
    probe_loss_before: float | None = None
    """Loss of the last batch before the boundary; None where the boundary leaves the function alone or models do not compare."""
    probe_loss_after: float | None = None
    probe_change: float | None = None
    """Largest absolute change of any output on that batch."""
    notes: tuple[str, ...] = ()
    """Hooks of the model and the optimizer that keep what no checkpoint holds, in sentences, each once in a run."""


class StepDone(NamedTuple):
    """One optimizer step, or one that was skipped."""

    step: int
    phase: str
    loss: float
    """Mean loss over the step's targets, before the update."""
    grad_norm: float
    """Global L2 norm of the gradient before clipping."""
    lr: float
    tokens: int
    """Scheduled positions consumed after this step."""
    seconds: float
    skipped: bool = False
    """Whether nothing was changed: the step was not finite, or had no target."""
    why: str = ""
    """Why it was skipped."""
    metrics: Mapping[str, float] = {}  # of a record, which nobody writes to
    """What the task reports beside the loss, as means over the step's targets."""
    rates: Mapping[str, float] = {}  # of a record, which nobody writes to
    """Every learning rate by its group and key (`default.lr`, `norms.adamw_lr`), where there are several."""
    flops: float = 0.0
    """Training FLOPs spent after this step, by the plan's prices; 0 where it has none."""


class Evaluated(NamedTuple):
    """A named evaluation ran on its fixed data."""

    step: int
    phase: str
    name: str
    at: str
    """`entry`, `exit` or `cadence`."""
    metrics: Mapping[str, float]
    seconds: float


class Reacted(NamedTuple):
    """The declared reaction to the training signal changed its factor on every learning rate."""

    step: int
    phase: str
    factor_before: float
    factor: float
    why: str


class Stopped(NamedTuple):
    """The run ends before its horizon by its own rule, `run.stop`; the state before step `step` is saved next."""

    step: int
    phase: str
    why: str


class Stalled(NamedTuple):
    """The phase ends before step `step` by its own rule, `until.stalls`: the walk ends here, and the holder of the plan goes on with
    another one, in which the phase has ended."""

    step: int
    phase: str
    why: str


class CheckpointSaved(NamedTuple):
    """The state before step `step` is on its way to disk; written already, unless checkpoints are asynchronous."""

    step: int
    path: str
    seconds: float
    """How long training stood still."""
    reason: str
    """`cadence`, `phase`, `signal`, `stop`, `end`, `moved` where the run directory was, or `branch` where another was branched."""


class CheckpointRefused(NamedTuple):
    """The state before step `step` was not saved, because it is not finite."""

    step: int
    why: str


class ConfigChanged(NamedTuple):
    """From step `step` on, one key of the config is another than before."""

    step: int
    key: str
    before: Any
    after: Any


class Rewound(NamedTuple):
    """Training went back to the checkpoint of step `step`; the data delivered since are passed over."""

    step: int
    halted_at: int
    """The step that would have been next."""
    why: str


class RunFinished(NamedTuple):
    """After the last step, at the horizon or where `Stopped` came before."""

    steps: int
    tokens: int
    seconds: float
    """Training time: steps and transitions, without evaluation."""
    skipped: int
    ledger: Mapping[str, Mapping[str, int]]
    """Source → rows and tokens delivered."""
    without_targets: int = 0
    """Steps that changed nothing because they had no target; `skipped` are those that were not finite."""
    cpu_seconds: float = 0.0
    """Processor time of the same steps and transitions, by all threads of this process: unlike `seconds`, it hardly depends on what
    else the machine does."""


Event = (
    RunStarted
    | PhaseEntered
    | StepDone
    | Evaluated
    | Reacted
    | Stopped
    | Stalled
    | CheckpointSaved
    | CheckpointRefused
    | ConfigChanged
    | Rewound
    | RunFinished
)
