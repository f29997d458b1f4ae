"""One run in several processes: the first writes the files and shows progress, the others take the same steps and are silent."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import TypeVar

from attrs import define, field

from stackwise import config
from stackwise.assembly.machine import assemble
from stackwise.config import ParallelConfig
from stackwise.contracts.events import Stalled, StepDone
from stackwise.errors import EndedTogether, RunStopped, TrainingHalted, UserError, disk_errors
from stackwise.machine.machine import TrainingMachine
from stackwise.plan import Plan
from stackwise.plan.parallel import uneven
from stackwise.processes.ranks import Ranks
from stackwise.processes.reduction import Wishes
from stackwise.runs.rest import Rest, setting_of
from stackwise.runs.saving import Saving
from stackwise.runs.signals import Signals
from stackwise.saved.export import exported_tensors
from stackwise.saved.provenance import loading
from stackwise.storage.checkpoints.beside import StoreBeside
from stackwise.storage.checkpoints.of_run import store_of
from stackwise.storage.run_directory import FINAL, read_status
from stackwise.storage.shared_file import Held, Others, write_shared

T = TypeVar("T")

ECHO_S = 10.0
"""Seconds in which a signal that comes again is the same one: a batch system sends it to every process, and so does torchrun's agent."""


def by_the_first(ranks: Ranks | None, act: Callable[[], T]) -> T:
    """What the first process does or finds, sent to all of them."""
    if ranks is None:
        return act()
    if not ranks.is_first:
        return ranks.broadcast(None)
    with ranks.alone("looks at the files of the run"):
        return ranks.broadcast(act())


def last_word(ranks: Ranks | None) -> None:
    """Wait until every process is here; who fails instead ends all with its own error."""
    if ranks is not None:
        ranks.gather(None)


def check_world(parallel: ParallelConfig, plan: Plan, ranks: Ranks | None) -> list[str]:
    """Hold the processes that were started against the config and against the micro-batches that there are to share.

    Returns:
        Notes for the log.

    Raises:
        UserError: another number than declared, or processes that would never have anything to do.
    """
    count = 1 if ranks is None else ranks.place.ranks
    shard, started = parallel.shard, f"{count} {'process was' if count == 1 else 'processes were'} started"
    if ranks is None and shard > 1 and parallel.replicate is None:
        return [f"run.parallel.shard is {shard}, and one process holds the whole model"]
    if count % shard:
        raise UserError(
            f"run.parallel.shard is {shard}, and {started}: start a multiple of {shard} by `stackwise run --ranks {shard}` or torchrun, or "
            f"say --set run.parallel.shard={count}"
        )
    if parallel.replicate is not None and parallel.replicate * shard != count:
        needed, keys = (
            parallel.replicate * shard,
            "run.parallel.replicate" if shard == 1 else "run.parallel.replicate times run.parallel.shard",
        )
        raise UserError(
            f"{keys} is {needed}, and {started}: start it by `stackwise run --ranks {needed}` or torchrun, or say "
            f"--set run.parallel.replicate={count // shard}"
        )
    if ranks is None:
        return []
    steps = {
        phase.name: {len(shape.micro_batches) for _, shape in phase.state.data.shapes} for phase in plan.schedule if phase.state is not None
    }
    most = max((max(counts) for counts in steps.values()), default=1)
    if most < count:
        raise UserError(
            f"{count} processes share out the micro-batches of a step, and no step has more than {most}: raise data.accumulate (with "
            f"a smaller data.batch_size, the step stays as large), or start {most} {'process' if most == 1 else 'processes'}"
        )
    if shard > 1 and (odd := next((number for counts in steps.values() for number in counts if number % count), None)):
        raise UserError(uneven(odd, count))
    waiting = [name for name, counts in steps.items() if any(number % count for number in counts)]
    return (
        [f"phases {', '.join(waiting)}: micro-batches of a step do not divide by {count} processes, so some wait for others"]
        if waiting
        else []
    )


def run_of_this_command(ranks: Ranks, output: Path | None, name: str) -> Path | None:
    """The run directory that an earlier attempt of the same command began; None in the first attempt, or if it did not get so far."""
    if not ranks.place.attempt:
        return None
    candidates = [output] if output is not None else sorted(Path("runs").glob(f"{name}-*"))
    return next((path for path in candidates if path.is_dir() and read_status(path).get("job") == ranks.place.job), None)


@define(kw_only=True)
class Companion:
    """Trains beside the first process, which keeps the files.

    Args:
        plan: what is trained.
        machine: ready at the step to go on from.
        directory: the run directory, whose checkpoints are read after a rewind.
        ranks: the processes.
    """

    plan: Plan
    machine: TrainingMachine
    directory: Path
    ranks: Ranks
    _store: StoreBeside | None = field(default=None, init=False)
    """Where each process holds a part of the state, all of them save it together."""
    _saving: Saving | None = field(default=None, init=False)

    def train(self) -> None:
        """Take every step that is left.

        Raises:
            EndedTogether: the first process stops the run, at the same step.
        """
        self.ranks.watch.patience_s = self.plan.experiment.run.parallel.patience_s
        if (sharding := self.machine.settings.sharding) is not None:
            self._store = StoreBeside(sharding.writers)
        self._save_from(self.machine.step)
        with nullcontext() if self._store is None else closing(self._store), Signals(echo_s=ECHO_S) as signals:
            while True:
                try:
                    with self.ranks.explaining():
                        stalled = self._walk(signals)
                    if stalled is None:
                        break
                    self._end_phase(stalled)
                except TrainingHalted as halted:
                    if self.plan.experiment.run.non_finite != "rewind":
                        raise
                    self._rewind(halted)
        save_final_beside(self.machine)
        last_word(self.ranks)

    def _save_from(self, step: int) -> None:
        """Save with the first process from the state of a step on, which is on disk unless it is the first."""
        if self._store is not None:
            agree = partial(worst_of, self.machine.settings.sharding)
            checkpoint = self.plan.experiment.run.checkpoint
            self._saving = Saving(self._store, checkpoint, self.plan.schedule, dict, lambda: None, agree=agree)
            if step:
                self._saving.go_on(step, "")

    def _save(self, reason: str) -> None:
        for _ in self._saving.now(self.machine, reason) if self._saving is not None else ():
            pass

    def _walk(self, signals: Signals) -> Stalled | None:
        """Take steps until nothing is left, or a phase ends because a metric stalls."""
        reduction = self.machine.reduction
        assert reduction is not None
        reduction.wish = lambda: Wishes(signals.stop or 0, False, signals.take_save())
        self.machine.model.cache_folder = self.directory
        events, stalled = self.machine.train(), None
        try:
            for event in events:
                for _ in self._saving.after(event, self.machine) if self._saving is not None else ():
                    pass
                if isinstance(event, Stalled):
                    stalled = event
                    self._save("phase")
                elif isinstance(event, StepDone):
                    self._obey(reduction.wishes)
        finally:
            events.close()
        return stalled

    def _obey(self, wishes: Wishes) -> None:
        """Save and stop as the first process does after the same step."""
        late = wishes.time_is_up and self.machine.step < self.plan.schedule.steps
        if late or wishes.stop or wishes.save:
            self._save("stop" if late else "signal")
        if late or wishes.stop:
            last_word(self.ranks)
            raise EndedTogether(128 + wishes.stop if wishes.stop and not late else RunStopped("", by=None).exit_code)

    def _end_phase(self, stalled: Stalled) -> None:
        """Go on by a new plan, once the first process has saved the state at the end of the phase."""
        last_word(self.ranks)
        checkpoint = store_of(self.directory).at(stalled.step)
        rest = Rest.after(checkpoint, config.overridden(self.plan.experiment, [setting_of(stalled)]), self.directory)
        self.machine, self.plan = rest.machine(self.ranks), rest.plan
        self._save_from(stalled.step)

    def _rewind(self, halted: TrainingHalted) -> None:
        """Go back with the first process, which has chosen the checkpoint."""
        step: int | None = self.ranks.broadcast(None)
        if step is None:
            raise halted
        checkpoint = store_of(self.directory).at(step)
        positions = self.machine.data.state_dict()
        self.machine = assemble(self.plan, ranks=self.ranks)
        with loading(checkpoint, self.plan):
            self.machine.restore(checkpoint.load_state(mapped=self.machine.settings.sharding is not None), positions=positions)
        self._save_from(step)


def worst_of(others: Others | None, fault: str | None) -> str | None:
    """What is wrong with a state in any process, or nothing."""
    return fault if others is None else next((each for each in others.gather(fault) if each is not None), None)


def save_final_beside(machine: TrainingMachine) -> None:
    """Write this process's parts of the final weights, where it holds parts."""
    if (sharding := machine.settings.sharding) is None:
        return
    for weights in kept_weights(machine):
        with machine.optimizer.evaluating(weights), disk_errors(Path("the final weights"), "free space or mend the disk, then resume"):
            write_shared(None, Held.of(exported_tensors(machine.model.model), sharding), sharding)


def kept_weights(machine: TrainingMachine) -> dict[str, str]:
    """Which weights a run keeps at its end, each with the name of its directory."""
    return {"live": FINAL} | ({"ema": f"{FINAL}-ema"} if machine.optimizer.average is not None else {})
