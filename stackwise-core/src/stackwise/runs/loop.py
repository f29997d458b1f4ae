"""The one loop of a run: every event to who listens, the state to disk when it is due, signals obeyed, rewinds made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import define, field

from stackwise.assembly.workshop import assemble
from stackwise.contracts.events import Evaluated, Event, PhaseEntered, Rewound, RunStarted, StepDone
from stackwise.errors import RunStopped, TrainingHalted, UserError
from stackwise.machine.machine import TrainingMachine
from stackwise.plan import Plan
from stackwise.reports.progress import Progress
from stackwise.reports.summary import Summary
from stackwise.runs.saving import Saving
from stackwise.runs.signals import Signals
from stackwise.saved.provenance import Described, describe
from stackwise.storage.checkpoints.store import Checkpoint, CheckpointStore, step_of
from stackwise.storage.run_directory import CHECKPOINTS, RunDirectory

MAX_REWINDS = 3
"""To one checkpoint; after that the run halts."""


@define(kw_only=True)
class RunLoop:
    """Trains a machine to its end inside a run directory.

    Args:
        plan: what is trained.
        machine: ready at the step to go on from.
        directory: where the files are.
        store: the checkpoints of that directory.
        progress: shows every event.
        parent: the checkpoint of another run that this one was branched from.
        reason: why the state to go on from was saved; None: there is none.
    """

    plan: Plan
    machine: TrainingMachine
    directory: RunDirectory
    store: CheckpointStore
    progress: Progress
    parent: Mapping[str, Any] | None = None
    reason: str | None = None
    summary: Summary = field(init=False)
    """Of all that the logs hold, what was done before included."""
    _saving: Saving = field(init=False)
    _rewinds: dict[int, int] = field(factory=dict, init=False)

    @classmethod
    def of(
        cls,
        plan: Plan,
        machine: TrainingMachine,
        directory: RunDirectory,
        progress: Progress,
        parent: Mapping[str, Any] | None = None,
        reason: str | None = None,
    ) -> RunLoop:
        """A loop with the checkpoints of its directory; the one to go on from is never pruned."""
        kept = plan.experiment.run.checkpoint
        store = CheckpointStore(directory.path / CHECKPOINTS, keep_last=kept.keep_last, best=kept.best_metric, pins={machine.step})
        return cls(plan=plan, machine=machine, directory=directory, store=store, progress=progress, parent=parent, reason=reason)

    def __attrs_post_init__(self) -> None:
        self._saving = Saving(self.store, self.plan.experiment.run.checkpoint, self.plan.schedule, self.about, self.directory.sync)
        if self.reason is not None:
            self._saving.go_on(self.machine.step, self.reason)
        self.summary = Summary.of(self.directory.history())
        self.machine.observers.listen(self._hear)

    def train(self) -> None:
        """Run every step that is left; where training is rewound another machine takes over.

        Raises:
            RunStopped: a signal asked for it; the state is saved.
            TrainingHalted: too many steps in a row were not finite.
            DiskError: a checkpoint could not be written.
        """
        with Signals() as signals:
            while True:
                try:
                    self._walk(signals)
                    self.store.wait()
                    return
                except TrainingHalted as halted:
                    if self.plan.experiment.run.non_finite != "rewind":
                        raise
                    self._rewind(halted)

    def tell(self, event: Event) -> None:
        """Let everybody hear an event that is not the machine's own."""
        self.machine.observers.tell(event)

    def _hear(self, event: Event) -> None:
        """Log an event, count it and show it."""
        self.directory(event)
        self.summary(event)
        self.progress(event)

    def _walk(self, signals: Signals) -> None:
        events = self.machine.train()
        try:
            for event in events:  # everybody has heard it already
                for outcome in self._saving.after(event, self.machine):
                    self.tell(outcome)
                if signals.stop is not None or (isinstance(event, StepDone) and signals.take_save()):
                    self._obey(signals, event)
        finally:
            events.close()  # reader threads and processes end here, not when it is collected

    def _obey(self, signals: Signals, event: Event) -> None:
        """Save now, and leave when asked to; between a step and the next an event may come at which there is nothing new to save."""
        if isinstance(event, StepDone):
            for outcome in self._saving.now(self.machine, "signal"):
                self.tell(outcome)
        if signals.stop is None or not (isinstance(event, StepDone) or self._lost_nothing(event)):
            return
        self.store.wait()
        saved = f"the state before step {self.machine.step} is saved" if self.machine.step else "no step was done"
        raise RunStopped(f"{signals.stop.name} came; {saved}; go on by: stackwise resume {self.directory.path}", by=signals.stop)

    def _lost_nothing(self, event: Event) -> bool:
        between = isinstance(event, RunStarted | PhaseEntered | Evaluated)
        return between and (self.machine.step == 0 or self._saving.last_step == self.machine.step)

    def _rewind(self, halted: TrainingHalted) -> None:
        """Back to the newest good state, with the read positions of now: the data in between are passed over."""
        self.store.wait()
        found = self._newest_good()
        if found is None:
            raise halted
        good, state = found
        self._rewinds[good.step] = self._rewinds.get(good.step, 0) + 1
        if self._rewinds[good.step] > MAX_REWINDS:
            raise TrainingHalted(f"{halted}; {MAX_REWINDS} rewinds to step {good.step} ended alike") from halted
        where, positions = self.machine.step, self.machine.data.state_dict()
        self.machine = assemble(self.plan, observers=self.machine.observers)
        saved = Described.read(good.about, good.step)
        self.machine.restore(state, positions=positions)
        self.store.forget_after(good.step)
        self.directory.cut(good.step)
        self._saving.go_on(good.step, saved.reason)
        self.summary = Summary.of(self.directory.history())
        self.tell(Rewound(good.step, where, str(halted)))

    def _newest_good(self) -> tuple[Checkpoint, Mapping[str, Any]] | None:
        """The newest valid checkpoint that was not saved among steps that were not finite: those changed nothing, and lead here again."""
        for step in reversed([step_of(name) for name in self.store.names()]):
            try:
                checkpoint = self.store.at(step)
            except UserError:
                continue
            if step <= self.machine.step and not (state := checkpoint.load_state())["not_finite_in_a_row"]:
                return checkpoint, state
        return None

    def write_status(self, status: str) -> None:
        """Say in `status.json` how the run stands."""
        ledger, parent = self.machine.data.ledger(), {} if self.parent is None else {"parent": self.parent}
        self.directory.write_status({"status": status, "steps": self.machine.step, "data": ledger, **parent})

    def about(self) -> Mapping[str, Any]:
        """What a checkpoint of this run says beside the machine's state."""
        return describe(self.plan, self.machine, self.parent)
