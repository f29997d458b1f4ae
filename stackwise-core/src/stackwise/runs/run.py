"""A run from config to final weights, begun, gone on with, or branched from another; it reads straight down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from glob import escape
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TextIO

from attrs import frozen

from stackwise import config
from stackwise.assembly.pricing import price
from stackwise.assembly.workshop import assemble
from stackwise.config import Experiment
from stackwise.contracts.events import ConfigChanged
from stackwise.errors import DiskError, RunStopped, UserError
from stackwise.host.discovery import discover
from stackwise.host.registry import blaming
from stackwise.machine.machine import TrainingMachine
from stackwise.plan import Plan, make_plan
from stackwise.plan.amendments import amend
from stackwise.planes.model.state import named_tensors
from stackwise.reports.plan_text import plan_as_json
from stackwise.reports.progress import Progress
from stackwise.reports.summary import Summary
from stackwise.runs.loop import RunLoop
from stackwise.saved.export import describe_model, made_by
from stackwise.saved.provenance import Described, Origin, changed_files, changed_versions, check_fingerprints, describe, named_config
from stackwise.storage.checkpoints.store import Checkpoint, CheckpointStore, Skipped, step_of
from stackwise.storage.run_directory import CHECKPOINTS, CONFIG, FINAL, FINISHED, RunDirectory, refuse_existing
from stackwise.storage.weights import save_weights
from stackwise.timeline.duration import Duration

Resume = Literal["never", "auto", "must"]


@frozen
class Result:
    """Where the run's files are, and what happened."""

    directory: Path
    summary: Summary
    finished_before: bool = False
    """Whether there was nothing left to do."""


def run(
    path: Path, overrides: Sequence[str] = (), output: Path | None = None, stream: TextIO | None = None, resume: Resume = "never"
) -> Result:
    """Train what a config declares.

    Args:
        path: the config.
        overrides: `--set` assignments (`run.horizon=4 steps`).
        output: the run directory, which must not exist unless the run is to go on; `runs/<name>-NNN` when left out.
        stream: where progress goes; standard error when left out.
        resume: whether to go on with the run at `output`, or the newest of this name: never, where there is one, or always.

    Raises:
        ConfigError: mistakes in the config.
        DataError: data that cannot be trained on.
        ProviderError: a component that broke its contract.
        TrainingHalted: too many steps in a row were not finite.
        RunStopped: a signal asked for it.
    """
    experiment = config.load(path, overrides)
    if resume == "never" and output is not None:
        refuse_existing(output)
    if resume != "never":
        experiment.check()
        if (found := _existing(output, experiment.run.name)) is not None:
            return _go_on(found, experiment, stream)
        if resume == "must":
            where = output if output is not None else f"runs/{experiment.run.name}-NNN"
            raise UserError(f"there is no run at {where} to go on with: leave --resume out to begin one")
    plan = make_plan(experiment, discover())
    machine = assemble(plan)
    declared = _Declaration.of(plan)
    directory = RunDirectory.create(output, experiment.run.name, declared.write)
    return _train(_loop(plan, machine, directory, Progress(plan.schedule, stream)))


def resume(directory: Path, overrides: Sequence[str] = (), stream: TextIO | None = None) -> Result:
    """Go on with a run from its newest valid checkpoint, by its own config.

    Args:
        directory: the run directory.
        overrides: `--set` assignments for what is still to come.
        stream: where progress goes; standard error when left out.

    Raises:
        ConfigError: an assignment that would change what steps that are done were declared by.
        UserError: no run directory, or another process writes there.
        DataError: the data changed.
    """
    return _go_on(directory, config.load(_config_of(directory), overrides), stream)


def branch(directory: Path, at: str, overrides: Sequence[str] = (), output: Path | None = None, stream: TextIO | None = None) -> Result:
    """Begin a run in the middle of another: its past is shared, its future is its own.

    Args:
        directory: the run to branch from; it is only read, and may be running.
        at: a share of it (`85%`), a step (`step 640`), or a checkpoint's name; a share means the newest whole one up to there.
        overrides: `--set` assignments for what is to come.
        output: the new run directory, which must not exist; `runs/<name>-NNN` when left out.
        stream: where progress goes; standard error when left out.

    Raises:
        ConfigError: an assignment that would change the past.
        UserError: there is no whole checkpoint there.
    """
    checkpoint, skipped = _checkpoint_at(CheckpointStore(directory / CHECKPOINTS), at, directory)
    rest = _Rest.after(checkpoint, config.load(_config_of(directory), overrides))
    machine = rest.machine()
    origin = Origin(run=str(directory), step=checkpoint.step, sha256=sha256((checkpoint.path / "manifest.json").read_bytes()).hexdigest())
    declared, parent, reason = _Declaration.of(rest.plan), origin.as_json(), "branch"

    def share_the_past(made: RunDirectory) -> None:
        declared.write(made)
        made.cut(checkpoint.step, of=directory)
        about = {**describe(rest.plan, machine, parent), "reason": reason}
        CheckpointStore(made.path / CHECKPOINTS).save(checkpoint.step, machine.state(), about, pin=reason)

    made = RunDirectory.create(output, rest.plan.experiment.run.name, share_the_past)
    progress = Progress(rest.plan.schedule, stream)
    _tell_skipped(progress, skipped)
    progress.say(f"branch {made.path} from {directory} at step {checkpoint.step:,} of {rest.plan.schedule.steps:,}")
    return _train(_loop(rest.plan, machine, made, progress, parent, reason), rest)


def _go_on(path: Path, experiment: Experiment, stream: TextIO | None) -> Result:
    """Everything that can be refused is, before anything in the directory changes."""
    directory = RunDirectory.open(path)
    try:
        checkpoint, skipped = CheckpointStore(path / CHECKPOINTS).newest()
        if checkpoint is None and skipped:
            raise _none_whole(path, skipped)
        rest = _Rest.after(checkpoint, experiment)
        if directory.status().get("status") == FINISHED and rest.step >= rest.plan.schedule.steps:
            summary = Summary.of(directory.history())
            directory.close()
            return Result(path, summary, finished_before=True)
        machine = rest.machine()
        declared = None if rest.is_declared_in(directory) else _Declaration.of(rest.plan)
        progress = Progress(rest.plan.schedule, stream)
        _tell_skipped(progress, skipped)
        from_ = f"checkpoint {checkpoint.name}" if checkpoint is not None else "the beginning, as there is no checkpoint"
        progress.say(f"resume {path} at step {rest.step:,} of {rest.plan.schedule.steps:,}, from {from_}")
        directory.cut(rest.step)
        if declared is not None:
            declared.write(directory)
        loop = _loop(rest.plan, machine, directory, progress, rest.parent, rest.reason)
    except BaseException:
        directory.close()
        raise
    return _train(loop, rest)


def _tell_skipped(progress: Progress, skipped: Sequence[Skipped]) -> None:
    for each in skipped:
        progress.say(f"      checkpoint {each.name} is passed over: {each.reason}")


def _none_whole(path: Path, skipped: Sequence[Skipped]) -> UserError:
    """To begin anew would write over what may be whole elsewhere, or can be mended."""
    told = "".join(f"\n  {each.name}: {each.reason}" for each in skipped)
    return UserError(
        f"{path} cannot go on, as none of its {len(skipped)} checkpoints is whole: mend them, or remove {path / CHECKPOINTS} "
        f"to have the run begin anew{told}"
    )


@frozen
class _Rest:
    """What is left of a run: planned, and nothing on disk touched."""

    plan: Plan
    checkpoint: Checkpoint | None = None
    saved: Described | None = None
    changes: Sequence[ConfigChanged] = ()

    @classmethod
    def after(cls, checkpoint: Checkpoint | None, experiment: Experiment) -> _Rest:
        """The plan of a config behind what a checkpoint has done."""
        registry = discover()
        if checkpoint is None:
            return cls(make_plan(experiment, registry))
        saved = Described.read(checkpoint.about, checkpoint.step)
        plan, changes = amend(config.experiment(saved.config), experiment, saved.past, registry)
        return cls(plan, checkpoint, saved, changes)

    @property
    def step(self) -> int:
        """The first step that is left."""
        return self.checkpoint.step if self.checkpoint is not None else 0

    @property
    def parent(self) -> Mapping[str, Any] | None:
        """The checkpoint of another run that this one was branched from."""
        return self.saved.parent if self.saved is not None else None

    @property
    def reason(self) -> str | None:
        """Why the checkpoint was saved."""
        return self.saved.reason if self.saved is not None else None

    def is_declared_in(self, directory: RunDirectory) -> bool:
        """Whether a run directory holds this config and its plan already, which nothing has changed since."""
        as_before = self.checkpoint is not None and not self.changes
        return as_before and directory.declares(named_config(self.plan), [provider.provenance() for provider in self.plan.providers])

    def notes(self) -> list[str]:
        """What else is not as it was."""
        if self.saved is None:
            return []
        return [*changed_versions(self.saved.versions, self.plan), *changed_files(self.saved.providers, self.plan)]

    def machine(self) -> TrainingMachine:
        """The machine at the step to go on from."""
        if self.saved is not None:
            changed_versions(self.saved.versions, self.plan)  # refused before anything is built; what it tells comes later
        machine = assemble(self.plan)
        if self.checkpoint is None or self.saved is None:
            return machine
        try:
            with blaming(self.plan.providers):
                machine.restore(self.checkpoint.load_state())
            check_fingerprints(self.saved.fingerprints, machine)
        except BaseException:
            machine.data.end()
            raise
        return machine


@frozen
class _Declaration:
    """Config and plan as a run directory holds them; whoever has one knows that every phase can be built."""

    config: Mapping[str, Any]
    plan: Mapping[str, Any]

    @classmethod
    def of(cls, plan: Plan) -> _Declaration:
        """Price a plan."""
        return cls(named_config(plan), plan_as_json(plan, price(plan)))

    def write(self, directory: RunDirectory) -> None:
        """Into a run directory."""
        directory.declare(self.config, self.plan)


def _loop(
    plan: Plan,
    machine: TrainingMachine,
    directory: RunDirectory,
    progress: Progress,
    parent: Mapping[str, Any] | None = None,
    reason: str | None = None,
) -> RunLoop:
    declared = plan.experiment.run.checkpoint
    store = CheckpointStore(directory.path / CHECKPOINTS, keep_last=declared.keep_last, best=declared.best_metric, pins={machine.step})
    return RunLoop(plan=plan, machine=machine, directory=directory, store=store, progress=progress, parent=parent, reason=reason)


def _train(loop: RunLoop, rest: _Rest | None = None) -> Result:
    """Train to the end, write the final weights, and say in `status.json` how it ended."""
    directory, status = loop.directory, "failed"
    try:
        _write_status(loop, "running")
        for note in rest.notes() if rest is not None else ():
            loop.progress.say(f"      {note}")
        for change in rest.changes if rest is not None else ():
            loop.tell(change)
        with blaming(loop.plan.providers):
            _save_final(loop.train(), loop)
        status = FINISHED
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    except RunStopped as error:
        status = f"stopped by {error.by.name}"
        raise
    except Exception as error:
        status = f"failed: {error}"
        raise
    finally:
        _leave(loop, status)
    return Result(directory.path, loop.summary)


def _leave(loop: RunLoop, status: str) -> None:
    """Say how the run ended, and let go of its directory when the save in flight is on disk, whatever the disk says; where the run did
    not end well that is what is told, not what the disk adds to it."""
    with suppress(DiskError) if status != FINISHED else nullcontext(), closing(loop.directory), closing(loop.store):
        _write_status(loop, status)


def _save_final(machine: TrainingMachine, loop: RunLoop) -> None:
    """The weights to keep; an optimizer that trains at other points shows them."""
    with machine.optimizer.evaluating():
        save_weights(named_tensors(machine.model.model), loop.directory.path / FINAL, _about(loop.plan, machine))
    if machine.optimizer.average is not None:
        with machine.optimizer.evaluating("ema"):
            save_weights(named_tensors(machine.model.model), loop.directory.path / f"{FINAL}-ema", _about(loop.plan, machine))


def _write_status(loop: RunLoop, status: str) -> None:
    ledger, parent = loop.machine.data.ledger(), {} if loop.parent is None else {"parent": loop.parent}
    loop.directory.write_status({"status": status, "steps": loop.machine.step, "data": ledger, **parent})


def _existing(output: Path | None, name: str) -> Path | None:
    """The run to go on with: at `output`, or the newest of this name."""
    if output is not None:
        return output if output.exists() else None
    numbered = [
        path.parent for path in Path("runs").glob(f"{escape(name)}-*/{CONFIG}") if path.parent.name.removeprefix(f"{name}-").isdecimal()
    ]
    return max(numbered, key=lambda path: int(path.name.removeprefix(f"{name}-")), default=None)


def _config_of(directory: Path) -> Path:
    """A run directory's own config.

    Raises:
        UserError: it is no run directory.
    """
    if not (directory / CONFIG).is_file():
        raise UserError(f"{directory} is no run directory: there is no {CONFIG} in it")
    return directory / CONFIG


def _checkpoint_at(store: CheckpointStore, at: str, directory: Path) -> tuple[Checkpoint, list[Skipped]]:
    """The checkpoint that `--at` names; of a share the newest whole one up to there, and those that it passes over.

    Raises:
        UserError: it names none that is there.
    """
    if at in store.names():
        return store.at(step_of(at)), []
    number = at.removeprefix("step").strip()
    if number.isdecimal():
        return store.at(int(number)), []
    share = Duration.parse(at)
    newest, _ = store.newest()
    if newest is None:
        raise UserError(f"{directory} has no whole checkpoint to branch from")
    limit = Described.read(newest.about, newest.step).past.clock.step_of(share)
    found, skipped = store.newest(up_to=limit)
    if found is None:
        damaged = "".join(f"; {each.name} is damaged: {each.reason}" for each in skipped)
        there = ", ".join(str(step_of(name)) for name in store.names())
        raise UserError(
            f"{directory} has no whole checkpoint up to step {limit} ({at}){damaged}; there are those of steps {there}: "
            "run.checkpoint.keep_last and keep_every say which stay"
        )
    return found, skipped


def _about(plan: Plan, machine: TrainingMachine) -> dict[str, Any]:
    about = describe_model(plan.schedule.phases[-1], 1.0, machine.model.model)
    return {"step": machine.step, **about, "data": machine.data.fingerprints(), **made_by(plan)}
