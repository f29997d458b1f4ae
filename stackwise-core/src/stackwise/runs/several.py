"""One run in several processes: the first writes the files and shows progress, the others take the same steps and are silent."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import torch
from attrs import define

import stackwise
from stackwise import config
from stackwise.assembly.machine import assemble
from stackwise.config import ParallelConfig
from stackwise.contracts.events import Stalled, StepDone
from stackwise.errors import EndedTogether, RunStopped, TrainingHalted, UserError
from stackwise.machine.machine import TrainingMachine
from stackwise.plan import Plan
from stackwise.processes.ranks import Ranks
from stackwise.processes.reduction import Wishes
from stackwise.runs.rest import Rest, setting_of
from stackwise.runs.signals import Signals
from stackwise.saved.clock import clock_as_json
from stackwise.saved.provenance import loading, named_config
from stackwise.storage.checkpoints.store import CheckpointStore
from stackwise.storage.run_directory import CHECKPOINTS, read_status

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
    if parallel.replicate is not None and parallel.replicate != count:
        raise UserError(
            f"run.parallel.replicate is {parallel.replicate}, and {count} {'process was' if count == 1 else 'processes were'} started: "
            f"start it by `stackwise run --ranks {parallel.replicate}` or torchrun, or say --set run.parallel.replicate={count}"
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
    uneven = [name for name, counts in steps.items() if any(number % count for number in counts)]
    return (
        [f"phases {', '.join(uneven)}: micro-batches of a step do not divide by {count} processes, so some wait for others"]
        if uneven
        else []
    )


def agree_on_the_run(ranks: Ranks, plan: Plan, machine: TrainingMachine) -> None:
    """Before the first step: the same config, plan, providers, data and libraries everywhere.

    Raises:
        UserError: a process has something else; rank, host and item are named.
    """
    resolved, schedule = named_config(plan), plan.schedule
    items: dict[str, Any] = {
        "version of StackWise": stackwise.__version__,
        "version of torch": torch.__version__,
        "version of Python": platform.python_version(),
        "byte order": sys.byteorder,
        **{f"provider '{provider.name}'": f"{provider.version} {provider.file_digest}" for provider in plan.providers},
        **{f"config at {key}": _text(value) for key, value in resolved.items()},
        "plan": _text([clock_as_json(schedule.clock), sorted(map(str, schedule.evaluate_at.items())), list(schedule.save_at)]),
        "step to go on from": machine.step,
        **{f"source '{name}'": _text(print_) for name, print_ in machine.data.fingerprints().items()},
        "tokenizers": ", ".join(str(entry.tokenizer.vocabulary) for entry in plan.tokenizers.entries),
    }
    ranks.agree({name: str(value) for name, value in items.items()}, "before the first step")


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

    def train(self) -> None:
        """Take every step that is left.

        Raises:
            EndedTogether: the first process stops the run, at the same step.
        """
        self.ranks.watch.patience_s = self.plan.experiment.run.parallel.patience_s
        with Signals(echo_s=ECHO_S) as signals:
            while True:
                try:
                    stalled = self._walk(signals)
                    if stalled is None:
                        break
                    self._end_phase(stalled)
                except TrainingHalted as halted:
                    if self.plan.experiment.run.non_finite != "rewind":
                        raise
                    self._rewind(halted)
        last_word(self.ranks)

    def _walk(self, signals: Signals) -> Stalled | None:
        """Take steps until nothing is left, or a phase ends because a metric stalls."""
        reduction = self.machine.reduction
        assert reduction is not None
        reduction.wish = lambda: Wishes(signals.stop or 0, False, signals.take_save())
        self.machine.model.cache_folder = self.directory
        events, stalled = self.machine.train(), None
        try:
            for event in events:
                stalled = event if isinstance(event, Stalled) else stalled
                wishes = reduction.wishes
                last = self.machine.step >= self.plan.schedule.steps
                if isinstance(event, StepDone) and (wishes.stop or (wishes.time_is_up and not last)):
                    last_word(self.ranks)
                    raise EndedTogether(128 + wishes.stop if wishes.stop else RunStopped("", by=None).exit_code)
        finally:
            events.close()
        return stalled

    def _end_phase(self, stalled: Stalled) -> None:
        """Go on by a new plan, once the first process has saved the state at the end of the phase."""
        last_word(self.ranks)
        checkpoint = CheckpointStore(self.directory / CHECKPOINTS).at(stalled.step)
        rest = Rest.after(checkpoint, config.overridden(self.plan.experiment, [setting_of(stalled)]), self.directory)
        self.machine, self.plan = rest.machine(self.ranks), rest.plan

    def _rewind(self, halted: TrainingHalted) -> None:
        """Go back with the first process, which has chosen the checkpoint."""
        step: int | None = self.ranks.broadcast(None)
        if step is None:
            raise halted
        checkpoint = CheckpointStore(self.directory / CHECKPOINTS).at(step)
        positions = self.machine.data.state_dict()
        self.machine = assemble(self.plan, ranks=self.ranks)
        with loading(checkpoint, self.plan):
            self.machine.restore(checkpoint.load_state(), positions=positions)


def _text(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= 200 else f"{text[:160]}… ({_digest(text)})"


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=12).hexdigest()
