"""The loop of a run: logs and shows every event, saves the state when it is due, obeys signals, and rewinds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from signal import Signals as Signal
from time import monotonic
from typing import Any

from attrs import define, field

from stackwise import config
from stackwise.assembly.machine import assemble
from stackwise.contracts.events import Evaluated, Event, PhaseEntered, Rewound, RunFacts, RunStarted, Stalled, StepDone, Stopped
from stackwise.errors import DiskError, RunStopped, TrainingHalted, UserError
from stackwise.machine.machine import TrainingMachine
from stackwise.plan import Plan
from stackwise.processes.ranks import Ranks
from stackwise.processes.reduction import NOTHING, Wishes
from stackwise.reports.progress import Progress
from stackwise.reports.record import spent_by
from stackwise.reports.summary import Summary
from stackwise.runs.memory import PeakMemory
from stackwise.runs.rest import Declaration, Rest, setting_of
from stackwise.runs.saving import Saving
from stackwise.runs.several import ECHO_S, last_word, worst_of
from stackwise.runs.signals import Signals
from stackwise.saved.provenance import Described, describe, loading, named_config
from stackwise.storage.checkpoints.of_run import store_of
from stackwise.storage.checkpoints.store import Checkpoint, CheckpointStore, step_of
from stackwise.storage.lock import MovedError
from stackwise.storage.run_directory import CHECKPOINTS, PLAN, RunDirectory
from stackwise.timeline.spent import Spent

MAX_REWINDS = 3
"""To the same checkpoint; the next one halts the run."""


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
        reason: why the state to go on from was saved; None for a new run.
    """

    plan: Plan
    machine: TrainingMachine
    directory: RunDirectory
    store: CheckpointStore
    progress: Progress
    parent: Mapping[str, Any] | None = None
    reason: str | None = None
    summary: Summary = field(init=False)
    """Of everything in the logs, earlier processes included."""
    _saving: Saving = field(init=False)
    _memory: PeakMemory = field(init=False)
    _rewinds: dict[int, int] = field(factory=dict, init=False)
    _deadline: float | None = field(default=None, init=False)
    """On the monotonic clock; None where time is not a limit."""
    _stalled: Stalled | None = field(default=None, init=False)
    _stopped_at: int | None = field(default=None, init=False)
    """The step at which the run ended by its own rule."""

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
        """A loop over the checkpoints of its directory; the one it goes on from is never pruned."""
        checkpoint = plan.experiment.run.checkpoint
        others = None if (sharding := machine.settings.sharding) is None else sharding.writers
        keep_last, best = checkpoint.keep_last, checkpoint.best_metric
        store = store_of(directory.path, keep_last=keep_last, best=best, pins={machine.step}, others=others)
        return cls(plan=plan, machine=machine, directory=directory, store=store, progress=progress, parent=parent, reason=reason)

    def __attrs_post_init__(self) -> None:
        self._rewinds |= rewinds_in(self.directory.status())
        self._saving = self._saving_of(self.plan)
        if self.reason is not None:
            self._saving.go_on(self.machine.step, self.reason)
        self.summary = summary_of(self.directory, self.progress)
        phase = self.plan.schedule.phase_at(min(self.machine.step, self.plan.schedule.steps - 1)).name
        self._memory = PeakMemory(self.machine.placement.device, phase, peaks_in(self.directory.status()))
        self.machine.spent = self._spent()
        self.machine.observers.listen(self._hear)
        self.machine.observers.evaluating = self.progress.evaluating
        self.machine.observers.meet(self._facts)

    def train(self) -> None:
        """Run every step that is left; after a rewind a new machine takes over.

        Raises:
            RunStopped: a signal asked for a stop, or the run's own time is up; the state is saved.
            TrainingHalted: too many steps in a row were not finite.
            MovedError: the run directory is elsewhere now; the state is saved there, if it can be found.
            DiskError: a checkpoint could not be written.
        """
        after = self.plan.experiment.run.stop.after_s
        self._deadline = None if after is None else monotonic() + after
        if self.ranks is not None:
            self.ranks.watch.patience_s = self.plan.experiment.run.parallel.patience_s
        with Signals(echo_s=0.0 if self.ranks is None else ECHO_S) as signals:
            while True:
                try:
                    with nullcontext() if self.ranks is None else self.ranks.explaining():
                        self._walk(signals)
                    self.store.wait()
                    if self._stalled is None:
                        return
                    self._end_phase(self._stalled)
                except (MovedError, DiskError) as error:
                    raise self._follow(error) from None
                except TrainingHalted as halted:
                    if self.plan.experiment.run.non_finite != "rewind":
                        raise
                    self._rewind(halted)

    @property
    def ranks(self) -> Ranks | None:
        """The processes that take these steps together, of which this one is the first; None where there is one."""
        return self.machine.settings.ranks

    def _saving_of(self, plan: Plan) -> Saving:
        agree = partial(worst_of, self.machine.settings.sharding)
        return Saving(self.store, plan.experiment.run.checkpoint, plan.schedule, self.about, self.directory.sync, self._alone, agree)

    def _alone(self) -> AbstractContextManager[object]:
        return nullcontext() if self.ranks is None else self.ranks.alone("saves a checkpoint")

    def _own_wishes(self, signals: Signals, *, at_step: bool = True) -> Wishes:
        late = at_step and self._deadline is not None and monotonic() >= self._deadline
        return Wishes(signals.stop or 0, late, at_step and signals.take_save())

    def _wishes(self, signals: Signals, event: Event) -> Wishes:
        """What is asked for after an event; any of several processes may ask, and all learn of it after the same step."""
        at_step, reduction = isinstance(event, StepDone), self.machine.reduction
        if reduction is None:
            return self._own_wishes(signals, at_step=at_step)
        return reduction.wishes if at_step else NOTHING

    def _spent(self) -> Spent | None:
        return spent_by(json.loads((self.directory.path / PLAN).read_bytes()))

    def _facts(self) -> RunFacts:
        """What an observer may know of the run."""
        path = self.directory.path
        return RunFacts(path.resolve().name, str(path), named_config(self.plan), json.loads((path / PLAN).read_bytes()))

    def tell(self, event: Event) -> None:
        """Pass on an event that does not come from the machine."""
        self.machine.observers.tell(event)

    def _hear(self, event: Event) -> None:
        """Log an event, count it and show it."""
        if not isinstance(event, StepDone):
            self._memory(event)
        self.directory(event)
        self.summary(event)
        self.progress(event)

    def _walk(self, signals: Signals) -> None:
        if self.machine.reduction is not None:
            self.machine.reduction.wish = lambda: self._own_wishes(signals)
        self.machine.model.cache_folder = self.directory.path
        events = self.machine.train()
        try:
            for event in events:  # the machine has passed it on already
                for outcome in self._saving.after(event, self.machine):
                    self.tell(outcome)
                if isinstance(event, Stopped):
                    self._stopped_at = event.step
                elif isinstance(event, Stalled):
                    self._stalled = event
                    for outcome in self._saving.now(self.machine, "phase"):
                        self.tell(outcome)
                wishes = self._wishes(signals, event)
                if wishes.time_is_up and isinstance(event, StepDone):
                    self._end_in_time(event)
                if wishes.stop or wishes.save:
                    self._obey(wishes.stop, event)
        finally:
            events.close()  # ends reader threads and processes now, not at garbage collection

    def _obey(self, stop: int, event: Event) -> None:
        """Save after a step; stop, if asked to, at an event where nothing would be lost."""
        if isinstance(event, StepDone):
            for outcome in self._saving.now(self.machine, "signal"):
                self.tell(outcome)
        if not stop or not (isinstance(event, StepDone) or self._lost_nothing(event)):
            return
        self.store.wait()
        saved = f"the state before step {self.machine.step} is saved" if self.machine.step else "no step was done"
        last_word(self.ranks)
        by = Signal(stop)
        raise RunStopped(f"{by.name} came; {saved}; {self._way_on(self.directory.path)}", by=by)

    def _end_in_time(self, event: StepDone) -> None:
        """Save and stop, unless this was the last step."""
        if self.machine.step >= self.plan.schedule.steps:
            return
        why = f"its time is up (run.stop.after: {self.plan.experiment.run.stop.after})"
        self.tell(Stopped(self.machine.step, event.phase, why))
        for outcome in self._saving.now(self.machine, "stop"):
            self.tell(outcome)
        self.store.wait()
        saved = f"the state before step {self.machine.step} is saved"
        last_word(self.ranks)
        raise RunStopped(f"{why}; {saved}; {self._way_on(self.directory.path)}", by=None)

    def _way_on(self, path: Path) -> str:
        """How the reader goes on: a command where a file holds the experiment, else the call in the program that has its parts."""
        if config.names_its_parts(self.plan.experiment):
            return f"go on by: stackwise resume {path}"
        return f"go on in the program that has the parts in code, by: stackwise.run(experiment, output='{path}', resume='must')"

    def _lost_nothing(self, event: Event) -> bool:
        between = isinstance(event, RunStarted | PhaseEntered | Evaluated)
        return between and (self.machine.step == 0 or self._saving.last_step == self.machine.step)

    def _follow(self, error: UserError) -> UserError:
        """Save the state where the run directory is now; the error that ends the run, as nobody who moved it expects it to be written."""
        try:
            self.directory.check_place()
        except MovedError as moved:
            if moved.place is None:
                return moved
            with suppress(DiskError):  # a save that was in flight lost its directory; this one holds more
                self.store.wait()
            if self.machine.settings.sharding is not None:
                return moved  # the others, who hold the rest of the state, do not know
            self.directory.path, self.store.directory = moved.place, moved.place / CHECKPOINTS
            for outcome in self._saving.now(self.machine, "moved"):
                self.tell(outcome)
            self.store.wait()
            saved = f"the state before step {self._saving.last_step} is saved there; {self._way_on(moved.place)}"
            return MovedError(moved.directory, moved.place, saved)
        return error

    def _rewind(self, halted: TrainingHalted) -> None:
        """Go back to the newest good state but read on from here: the data in between are skipped."""
        self.store.wait()
        newest = self._newest_good()
        if newest is None:
            if self.ranks is not None:
                self.ranks.broadcast(None)
            raise halted
        good, state = newest
        self._rewinds[good.step] = self._rewinds.get(good.step, 0) + 1
        if self._rewinds[good.step] > MAX_REWINDS:
            raise TrainingHalted(f"{halted}; {MAX_REWINDS} rewinds to step {good.step} ended alike") from halted
        halt_step, positions = self.machine.step, self.machine.data.state_dict()
        if self.ranks is not None:
            self.ranks.broadcast(good.step)
        self.machine = assemble(self.plan, observers=self.machine.observers, ranks=self.ranks)
        self.machine.spent = self._spent()
        saved = Described.read(good.about, good.step)
        self.machine.restore(state, positions=positions)
        self.store.forget_after(good.step)
        self.directory.cut(good.step)
        self._saving.go_on(good.step, saved.reason)
        self.summary = summary_of(self.directory, self.progress)
        self.write_status("running")  # a process that is killed now has counted this rewind
        self.tell(Rewound(good.step, halt_step, str(halted)))

    def _end_phase(self, stalled: Stalled) -> None:
        """Go on by a plan in which the phase has ended, as a resume would with that setting: the decision is a key of the config."""
        self._stalled = None
        last_word(self.ranks)
        shortened = config.overridden(self.plan.experiment, [setting_of(stalled)])
        rest = Rest.after(self.store.at(stalled.step), shortened, self.directory.path)
        declaration = Declaration.of(rest.plan)
        self.machine = rest.machine(self.ranks, self.machine.observers)
        self.plan = rest.plan
        self.directory.cut(stalled.step)
        declaration.write(self.directory)
        self.machine.spent = self._spent()
        self._saving = self._saving_of(self.plan)
        self._saving.go_on(stalled.step, "phase")
        self.progress.plan(self.plan.schedule, declaration.costs)
        self.summary = summary_of(self.directory, self.progress)
        self.write_status("running")
        for change in rest.changes:
            self.tell(change)

    def _newest_good(self) -> tuple[Checkpoint, Mapping[str, Any]] | None:
        """The newest valid checkpoint not saved in a row of non-finite steps: those changed nothing and would fail again."""
        for step in reversed([step_of(name) for name in self.store.names()]):
            try:
                checkpoint = self.store.at(step)
            except UserError:
                continue
            with loading(checkpoint, self.plan):
                divided = self.machine.settings.sharding is not None
                if step <= self.machine.step and not (state := checkpoint.load_state(mapped=divided))["not_finite_in_a_row"]:
                    return checkpoint, state
        return None

    def write_status(self, status: str) -> None:
        """Say in `status.json` how the run stands."""
        self._memory.read()
        self.summary.peaks = self._memory.peaks
        more: dict[str, Any] = {} if self.parent is None else {"parent": self.parent}
        if self.ranks is not None:
            more |= {"ranks": self.ranks.place.ranks} | ({"job": job} if (job := self.ranks.place.job) else {})
        if self._memory.peaks:
            more["peak_bytes"] = self._memory.peaks
        if self._rewinds:
            more["rewinds"] = {str(step): count for step, count in self._rewinds.items()}
        if self._stopped_at is not None:
            more["stopped_at"] = self._stopped_at
        self.directory.write_status({"status": status, "steps": self.machine.step, "data": self.machine.data.ledger(), **more})

    def about(self) -> Mapping[str, Any]:
        """What a checkpoint of this run says beside the machine's state."""
        return describe(self.plan, self.machine, self.parent)


def rewinds_in(status: Mapping[str, Any]) -> dict[int, int]:
    """Step → rewinds to it so far, earlier processes' included, as `status.json` says."""
    rewinds = status.get("rewinds")
    pairs = rewinds.items() if isinstance(rewinds, dict) else ()
    return {int(step): count for step, count in pairs if step.isdecimal() and len(step) < 20 and type(count) is int}


def peaks_in(status: Mapping[str, Any]) -> dict[str, int]:
    """Phase → most bytes of memory so far, as `status.json` says."""
    peaks = status.get("peak_bytes")
    pairs = peaks.items() if isinstance(peaks, dict) else ()
    return {str(phase): count for phase, count in pairs if type(count) is int and 0 <= count < 2**63}


def summary_of(directory: RunDirectory, progress: Progress) -> Summary:
    """The summary of what the logs hold; what is passed over in them is said."""
    log = directory.log()
    summary = Summary.of(log.events())
    for remark in log.remarks():
        progress.say(f"      {remark}")
    return summary
