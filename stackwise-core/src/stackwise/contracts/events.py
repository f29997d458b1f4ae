"""The events that the training machine yields: plain records of what happened, in order.

Checkpointing, logs, progress bars and trackers consume them. An event holds plain values only, no tensors or other live objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class RunFacts(NamedTuple):
    """The run whose events an observer is about to get. This is not an event: observers with a method `meet` get it once, before the first
    event."""

    name: str
    """Name of the run directory."""
    directory: str
    config: Mapping[str, Any]
    """The resolved config, with every `extends` and `--set` applied."""
    plan: Mapping[str, Any]
    """As `plan.json` holds it."""


class RunStarted(NamedTuple):
    """Before the first step, of the run or of what is left of it."""

    steps: int
    device: str
    precision: str
    bridges: tuple[str, ...]
    """A sentence for each junction that was bridged."""
    step: int = 0
    """The first step to run; above 0 where a run continues from a checkpoint."""
    providers: tuple[str, ...] = ()
    """The providers in use: distribution, version, and the sha256 of its Python files."""
    notes: tuple[str, ...] = ()
    """Sentences on state that finished objects bring from an earlier run of the process, and on what a resume cannot guarantee."""


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
    """Number of matrices into which a weight adapter was merged."""
    probe_loss_before: float | None = None
    """Loss of the old model on the last batch before the boundary; None where the boundary cannot change the function, or the models cannot
    be compared."""
    probe_loss_after: float | None = None
    probe_change: float | None = None
    """Largest absolute change of any output of the model on that batch."""
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
    """Whether the step changed nothing, because loss or gradients were not finite, or there was no target."""
    why: str = ""
    """If it was skipped, the reason."""
    metrics: Mapping[str, float] = {}  # of a record, which nobody writes to
    """The further metrics of the task, as means over the step's targets."""
    rates: Mapping[str, float] = {}  # of a record, which nobody writes to
    """If there are several learning rates: each by its group and key (`default.lr`, `norms.adamw_lr`)."""
    flops: float = 0.0
    """Training FLOPs spent up to and including this step, by the plan; 0 where the plan does not count them."""


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
    """The phase ends before step `step` by its own rule, `until.stalls`. The machine stops here; the run then continues with a new plan in
    which the phase has ended."""

    step: int
    phase: str
    why: str


class CheckpointSaved(NamedTuple):
    """The state before step `step` was saved; with asynchronous checkpoints it may still be being written."""

    step: int
    path: str
    seconds: float
    """How long training was interrupted."""
    reason: str
    """`cadence`, `phase`, `signal`, `stop`, `end`, `moved` where the run directory was, or `branch` where another was branched."""


class CheckpointRefused(NamedTuple):
    """The state before step `step` was not saved, because it is not finite."""

    step: int
    why: str


class ConfigChanged(NamedTuple):
    """From step `step` on, one key of the config has another value."""

    step: int
    key: str
    before: Any
    after: Any


class Rewound(NamedTuple):
    """Training went back to the checkpoint of step `step`; the rows that were delivered since then are not delivered again."""

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
    """Steps that changed nothing because they had no target; `skipped` counts those whose loss or gradients were not finite."""
    cpu_seconds: float = 0.0
    """CPU time of the same steps and transitions, of all threads of this process: unlike `seconds`, it hardly depends on what else
    runs on the machine."""


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
