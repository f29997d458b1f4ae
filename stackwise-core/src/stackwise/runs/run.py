"""Begin, resume or branch a run, from config to final weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing, nullcontext, suppress
from functools import partial
from glob import escape
from hashlib import sha256
from html import escape as escape_html
from pathlib import Path
from typing import Literal, TextIO

from attrs import field, frozen

from stackwise import config
from stackwise.assembly.machine import assemble
from stackwise.assembly.planning import make_plan
from stackwise.config import Experiment
from stackwise.errors import RunStopped, UserError
from stackwise.host.discovery import discover
from stackwise.host.registry import blaming
from stackwise.machine.machine import TrainingMachine
from stackwise.plan import Plan
from stackwise.processes.ranks import Ranks, joined
from stackwise.reports.memory_text import memory_sentence
from stackwise.reports.progress import Progress
from stackwise.reports.summary import Summary
from stackwise.runs.agreement import agree_on_the_config, agree_on_the_run
from stackwise.runs.loop import RunLoop, summary_of
from stackwise.runs.rest import Declaration, Rest, checkpoint_at, config_of, costs_in, newest_in
from stackwise.runs.several import Companion, by_the_first, check_world, kept_weights, last_word, run_of_this_command
from stackwise.runs.step_times import decision, timed
from stackwise.saved.export import describe_model, describe_run, exported_tensors
from stackwise.saved.provenance import Origin, describe
from stackwise.storage.checkpoints.beside import StoreBeside
from stackwise.storage.checkpoints.of_run import store_of
from stackwise.storage.checkpoints.store import SET_ASIDE, Checkpoint, Skipped
from stackwise.storage.run_directory import CONFIG, FINISHED, PLAN, RunDirectory, refuse_existing
from stackwise.storage.weights import save_weights

Resume = Literal["never", "auto", "must"]


@frozen
class Result:
    """Where the run's files are, and what happened."""

    directory: Path
    summary: Summary = field(repr=False)
    finished_before: bool = False
    """Whether the run had finished before, so that nothing was left to do."""
    rank: int = 0
    """Of this process; what happened is summed up in the first alone."""

    def _repr_html_(self) -> str:
        """The page of the run, in a frame of its own, where a notebook shows the result."""
        from stackwise.reports.page.render import render_page  # a run is rarely drawn by the process that trained it
        from stackwise.reports.record import read_run

        page = escape_html(render_page([read_run(self.directory)]), quote=True)
        return f'<iframe srcdoc="{page}" title="Report of {escape_html(self.directory.name)}" width="100%" height="900"></iframe>'


def run(
    source: Path | str | Experiment,
    overrides: Sequence[str] = (),
    output: Path | str | None = None,
    stream: TextIO | None = None,
    resume: Resume = "never",
    *,
    quiet: bool = False,
) -> Result:
    """Train what a config declares, into a run directory: with logs, progress, checkpoints and the final weights.

    With `resume="auto"` the same call goes on with an interrupted run. Under torchrun every process makes this call, and the first one
    writes the files.

    Args:
        source: the config, or an experiment written in code.
        overrides: `--set` assignments (`run.horizon=4 steps`) applied to the config.
        output: the run directory, which must not exist unless the run is to go on; `runs/<name>-NNN` when left out.
        stream: where progress goes; standard error when left out.
        resume: whether to go on with the run at `output`, or the newest of this name: `never`, `auto` (if there is one) or `must`.
        quiet: whether to show only what did not go as planned.

    Raises:
        ConfigError: mistakes in the config.
        DataError: data that cannot be trained on.
        ProviderError: a component that broke its contract.
        TrainingHalted: too many steps in a row were not finite.
        RunStopped: a signal asked for a stop, or the run's own time is up.
    """
    with joined() as ranks:
        experiment, place = _read(source, overrides), Path(output) if output is not None else None
        if (existing := by_the_first(ranks, partial(_to_go_on_with, place, experiment, resume, ranks))) is not None:
            return _go_on(existing, experiment, stream, ranks, quiet=quiet)
        declared, experiment = experiment, timed(experiment, ranks)
        rest = Rest(make_plan(experiment, discover()).with_tokenizers(), changes=decision(declared, experiment))
        agree_on_the_config(ranks, rest.plan)
        check_world(experiment.run.parallel, rest.plan, ranks)
        machine = assemble(rest.plan, ranks=ranks)
        agree_on_the_run(ranks, rest.plan, machine)
        if ranks is not None and not ranks.is_first:
            return _accompany(rest, machine, ranks)
        declaration = Declaration.of(rest.plan)
        directory = RunDirectory.create(place, experiment.run.name, declaration.write)
        progress = _progress(rest.plan, stream, quiet=quiet, costs=declaration.costs)
        progress.tell(f"files {directory.path}/")
        if (memory := memory_sentence(declaration.plan)) is not None:
            progress.tell(memory)
        return _train(RunLoop.of(rest.plan, machine, directory, progress), rest, fresh=True)


def resume(directory: Path, overrides: Sequence[str] = (), stream: TextIO | None = None, *, quiet: bool = False) -> Result:
    """Go on with a run from its newest valid checkpoint, by its own config.

    Args:
        directory: the run directory.
        overrides: `--set` assignments for what is still to come.
        stream: where progress goes; standard error when left out.
        quiet: whether to show only what did not go as planned.

    Raises:
        ConfigError: an assignment that would change the declaration of finished steps.
        UserError: no run directory, or another process writes to it.
        DataError: the data changed.
    """
    with joined() as ranks:
        return _go_on(directory, config.load(config_of(directory), overrides), stream, ranks, quiet=quiet)


def branch(
    directory: Path,
    at: str,
    overrides: Sequence[str] = (),
    output: Path | None = None,
    stream: TextIO | None = None,
    *,
    source: Path | None = None,
    quiet: bool = False,
) -> Result:
    """Begin a run in the middle of another, whose past it shares.

    Args:
        directory: the run to branch from; it is only read, and may be running.
        at: a share of it (`85%`), a step (`step 640`), or a checkpoint's name; a share means the newest whole one up to there.
        overrides: `--set` assignments for what is to come.
        output: the new run directory, which must not exist; `runs/<name>-NNN` when left out.
        stream: where progress goes; standard error when left out.
        source: the config of the new run; that of the other when left out.
        quiet: whether to show only what did not go as planned.

    Raises:
        ConfigError: a config or an assignment that would change the past.
        UserError: there is no whole checkpoint there.
    """
    with joined() as ranks:
        experiment = config.load(config_of(directory) if source is None else source, overrides)
        begun = None if ranks is None else by_the_first(ranks, partial(run_of_this_command, ranks, output, experiment.run.name))
        if begun is not None:
            return _go_on(begun, config.load(config_of(begun)), stream, ranks, quiet=quiet)
        checkpoint, skipped = _branched_from(directory, at, ranks)
        rest = Rest.after(checkpoint, experiment, directory)
        agree_on_the_config(ranks, rest.plan)
        check_world(experiment.run.parallel, rest.plan, ranks)
        machine = rest.machine(ranks)
        agree_on_the_run(ranks, rest.plan, machine)
        sharding = machine.settings.sharding
        if ranks is not None and not ranks.is_first:
            if sharding is not None:
                StoreBeside(sharding).save(checkpoint.step, machine.state(), {})
            return _accompany(rest, machine, ranks)
        origin = Origin(
            run=str(directory), step=checkpoint.step, sha256=sha256((checkpoint.path / "manifest.json").read_bytes()).hexdigest()
        )
        declaration, parent, reason = Declaration.of(rest.plan), origin.as_json(), "branch"

        def share_the_past(new: RunDirectory) -> None:
            declaration.write(new)
            new.cut(checkpoint.step, of=directory)
            about = {**describe(rest.plan, machine, parent), "reason": reason}
            store_of(new.path, others=sharding).save(checkpoint.step, machine.state(), about, pin=reason)

        new = RunDirectory.create(output, rest.plan.experiment.run.name, share_the_past)
        progress = _progress(rest.plan, stream, quiet=quiet, costs=declaration.costs)
        _say_skipped(progress, skipped)
        progress.tell(f"branch {new.path} from {directory} at step {checkpoint.step:,} of {rest.plan.schedule.steps:,}")
        return _train(RunLoop.of(rest.plan, machine, new, progress, parent, reason), rest, fresh=True)


def _branched_from(directory: Path, at: str, ranks: Ranks | None) -> tuple[Checkpoint, Sequence[Skipped]]:
    """The checkpoint that `--at` names, as the first process finds it, and the damaged ones that it skips."""
    if ranks is not None and not ranks.is_first:
        return store_of(directory).at(ranks.broadcast(0)), ()
    checkpoint, skipped = checkpoint_at(directory, at)
    if ranks is not None:
        ranks.broadcast(checkpoint.step)
    return checkpoint, skipped


def _accompany(rest: Rest, machine: TrainingMachine, ranks: Ranks) -> Result:
    """What every process but the first does."""
    directory = Path(ranks.broadcast(""))
    with blaming(rest.plan.providers):
        Companion(plan=rest.plan, machine=machine, directory=directory, ranks=ranks).train()
    return Result(directory, Summary(), rank=ranks.place.rank)


def _go_beside(path: Path, experiment: Experiment, ranks: Ranks) -> Result:
    """Resume beside the first process, which says from which checkpoint."""
    step: int | None = ranks.broadcast(None)
    rest = Rest.after(None if step is None else store_of(path).at(step), experiment, path)
    agree_on_the_config(ranks, rest.plan)
    check_world(experiment.run.parallel, rest.plan, ranks)
    if ranks.broadcast(False):
        return Result(path, Summary(), finished_before=True, rank=ranks.place.rank)
    machine = rest.machine(ranks)
    agree_on_the_run(ranks, rest.plan, machine)
    return _accompany(rest, machine, ranks)


def _go_on(path: Path, experiment: Experiment, stream: TextIO | None, ranks: Ranks | None, *, quiet: bool) -> Result:
    """Resume; everything that can be refused is refused before the directory changes."""
    if ranks is not None and not ranks.is_first:
        return _go_beside(path, experiment, ranks)
    directory = RunDirectory.open(path)
    try:
        checkpoint, skipped = newest_in(path)
        if ranks is not None:
            ranks.broadcast(None if checkpoint is None else checkpoint.step)
        rest = Rest.after(checkpoint, experiment, path)
        agree_on_the_config(ranks, rest.plan)
        check_world(experiment.run.parallel, rest.plan, ranks)
        finished = _is_finished(directory, rest)
        if ranks is not None:
            ranks.broadcast(finished)
        if finished:
            summary = summary_of(directory, _progress(rest.plan, stream, quiet=quiet))
            directory.close()
            return Result(path, summary, finished_before=True)
        machine = rest.machine(ranks)
        agree_on_the_run(ranks, rest.plan, machine)
        declaration = None if rest.is_declared_in(directory) else Declaration.of(rest.plan)
        costs = costs_in(json.loads((path / PLAN).read_bytes())) if declaration is None else declaration.costs
        progress = _progress(rest.plan, stream, quiet=quiet, costs=costs)
        _say_skipped(progress, skipped)
        from_ = f"checkpoint {checkpoint.name}" if checkpoint is not None else "the beginning, as there is no checkpoint"
        progress.tell(f"resume {path} at step {rest.step:,} of {rest.plan.schedule.steps:,}, from {from_}")
        if skipped:
            directory.check_place()
            store_of(path).set_aside(skipped)
            progress.say(
                f"      {len(skipped)} damaged: kept beside the others with the ending '{SET_ASIDE}', and of no further use to the run"
            )
        directory.cut(rest.step)
        if declaration is not None:
            declaration.write(directory)
        loop = RunLoop.of(rest.plan, machine, directory, progress, rest.parent, rest.reason)
    except BaseException:
        directory.close()
        raise
    return _train(loop, rest)


def _progress(plan: Plan, stream: TextIO | None, *, quiet: bool, costs: Sequence[float] | None = None) -> Progress:
    return Progress(plan.schedule, stream, quiet=quiet, costs=costs, compiles=bool(plan.experiment.run.compile))


def _is_finished(directory: RunDirectory, rest: Rest) -> bool:
    """Whether nothing is left to train: the horizon is reached, or the same config has stopped the run here."""
    status = directory.status()
    if status.get("status") != FINISHED:
        return False
    return rest.step >= rest.plan.schedule.steps or (status.get("stopped_at") == rest.step and rest.is_declared_in(directory))


def _train(loop: RunLoop, rest: Rest, *, fresh: bool = False) -> Result:
    """Train to the end, write the final weights, and say in `status.json` how it ended.

    A fresh directory in which not one step was done is removed when training fails: nothing is in it that the config does not say.
    """
    status, failed = "failed", False
    try:
        loop.write_status("running")
        if loop.ranks is not None:
            loop.ranks.broadcast(str(loop.directory.path))
        for note in [*rest.notes(), *check_world(loop.plan.experiment.run.parallel, loop.plan, loop.ranks)]:
            loop.progress.say(f"      {note}")
        for change in rest.changes:
            loop.tell(change)
        with blaming(loop.plan.providers):
            loop.train()
            _save_final(loop)
            last_word(loop.ranks)
        status = FINISHED
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    except RunStopped as error:
        status = "stopped by its limit of time" if error.by is None else f"stopped by {error.by.name}"
        raise
    except Exception as error:
        status, failed = f"failed: {error}", True
        raise
    finally:
        _leave(loop, status, discard=failed and fresh and loop.machine.step == rest.step)
    return Result(loop.directory.path, loop.summary)


def _leave(loop: RunLoop, status: str, *, discard: bool) -> None:
    """Write the status, or remove the directory; wait for a save in flight and let others write. After a failed run an error here is
    suppressed, so that the first one is shown."""
    with suppress(UserError) if status != FINISHED else nullcontext(), closing(loop.directory), closing(loop.store):
        if discard:
            loop.store.wait()
            loop.directory.remove()
        else:
            loop.write_status(status)
        loop.machine.observers.leave(status)


def _save_final(loop: RunLoop) -> None:
    """Save the final weights, averaged ones where the optimizer evaluates at an average, and the EMA beside them."""
    machine, plan = loop.machine, loop.plan
    model, optimizer = machine.model.model, machine.optimizer
    if names := machine.model.left_out(plan.schedule.phases):
        loop.progress.say(
            f"      the final weights leave out {', '.join(names)}: states that a file of weights cannot hold; checkpoints do"
        )
    loop.directory.check_place()
    phase, t = plan.schedule.phase_at(machine.step - 1), plan.schedule.at(step=machine.step).t
    for weights, place in kept_weights(machine).items():
        with optimizer.evaluating(weights):
            about = describe_model(phase, t, model, names)
            about |= describe_run(plan, phase, machine.step, machine.data.fingerprints())
            save_weights(exported_tensors(model), loop.directory.path / place, about, plan.tokenizers, machine.settings.sharding)


def _read(source: Path | str | Experiment, overrides: Sequence[str]) -> Experiment:
    if not isinstance(source, Experiment):
        if not isinstance(source, str | Path):
            raise UserError(f"a {type(source).__name__} is no run: give the path of a config, or stackwise.experiment(run=…, data=…, …)")
        return config.load(Path(source), overrides)
    if overrides:
        raise UserError("overrides are laid on a config file: write them into the experiment, which is in code")
    return source


def _to_go_on_with(output: Path | None, experiment: Experiment, resume: Resume, ranks: Ranks | None) -> Path | None:
    """The run directory to go on in; None where a new run begins."""
    if ranks is not None and (begun := run_of_this_command(ranks, output, experiment.run.name)) is not None:
        return begun
    if resume == "never":
        if output is not None:
            refuse_existing(output)
        return None
    experiment.check()
    if (existing := _existing(output, experiment.run.name)) is None and resume == "must":
        where = output if output is not None else f"runs/{experiment.run.name}-NNN"
        raise UserError(f"there is no run at {where} to go on with: leave --resume out to begin one")
    return existing


def _existing(output: Path | None, name: str) -> Path | None:
    """The run to go on with: at `output`, or the newest of this name."""
    if output is not None:
        return output if output.exists() else None
    candidates = [
        path.parent for path in Path("runs").glob(f"{escape(name)}-*/{CONFIG}") if path.parent.name.removeprefix(f"{name}-").isdecimal()
    ]
    return max(candidates, key=lambda path: int(path.name.removeprefix(f"{name}-")), default=None)


def _say_skipped(progress: Progress, skipped: Sequence[Skipped]) -> None:
    for each in skipped:
        progress.say(f"      checkpoint {each.name} is passed over: {each.reason}")
