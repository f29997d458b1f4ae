"""The rest of a run that is resumed or branched: planned and checked before anything on disk changes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from stackwise import config
from stackwise.assembly.machine import assemble
from stackwise.assembly.planning import make_plan, price_steps
from stackwise.config import Experiment
from stackwise.contracts.events import ConfigChanged, Stalled
from stackwise.contracts.tokenizers import Tokenizers
from stackwise.errors import UserError
from stackwise.host.discovery import discover
from stackwise.machine.machine import TrainingMachine
from stackwise.machine.observers import Observers
from stackwise.plan import Plan
from stackwise.processes.ranks import Ranks
from stackwise.runs.step_times import recalled_times
from stackwise.saved.provenance import (
    Described,
    changed_files,
    changed_threads,
    changed_versions,
    check_fingerprints,
    check_schedules,
    loading,
    named_config,
)
from stackwise.storage.checkpoints.of_run import store_of
from stackwise.storage.checkpoints.store import Checkpoint, Skipped, step_of
from stackwise.storage.run_directory import CHECKPOINTS, CONFIG, RunDirectory
from stackwise.storage.tokenizers import read_tokenizers
from stackwise.timeline.duration import Duration

_LONG = 1e13
"""FLOPs of a phase that takes a minute or more of a processor, so that the second in which its memory is counted is nothing."""


@frozen
class Declaration:
    """Config, priced plan and tokenizers as a run directory stores them; a priced plan can be built in every phase."""

    config: Mapping[str, Any]
    plan: Mapping[str, Any]
    tokenizers: Tokenizers

    @classmethod
    def of(cls, plan: Plan) -> Declaration:
        """Price a plan."""
        from stackwise.assembly.pricing import price  # a resume without changes prices nothing
        from stackwise.reports.plan_text import plan_as_json

        return cls(named_config(plan), plan_as_json(plan, price(plan, memory_from=_LONG)), plan.tokenizers)

    @property
    def costs(self) -> list[float] | None:
        """FLOPs of each phase; None where the plan does not know."""
        return costs_in(self.plan)

    def write(self, directory: RunDirectory) -> None:
        """Write all of it into a run directory."""
        directory.declare(self.config, self.plan, self.tokenizers)


def costs_in(plan: Mapping[str, Any]) -> list[float] | None:
    """FLOPs of each phase, as `plan.json` says; None where it does not."""
    flops = [phase.get("training_flops") for phase in plan.get("phases", ())]
    return [float(each) for each in flops] if flops and all(flops) else None


@frozen
class Rest:
    """The steps after a checkpoint, or all steps without one."""

    plan: Plan
    checkpoint: Checkpoint | None = None
    saved: Described | None = None
    changes: Sequence[ConfigChanged] = ()
    made_again: Sequence[str] = ()
    """Vocabularies of the checkpoint that the run's directory does not hold any more."""

    @classmethod
    def after(cls, checkpoint: Checkpoint | None, experiment: Experiment, directory: Path) -> Rest:
        """Plan what a config leaves to do after a checkpoint, with the tokenizers that the run's directory holds.

        Raises:
            ConfigError: a mistake in the config, or a change that concerns finished steps.
        """
        registry, tokenizers = discover(), read_tokenizers(directory)
        experiment = recalled_times(experiment, directory)
        if checkpoint is None:
            return cls(make_plan(experiment, registry, tokenizers=tokenizers).with_tokenizers())
        from stackwise.plan.amendments import amend  # a new run amends nothing

        saved = Described.read(checkpoint.about, checkpoint.step)
        plan, changes = amend(config.recalled(saved.config, experiment), experiment, saved.past, registry, tokenizers, price_steps)
        plan = plan.with_tokenizers()
        made = {entry.tokenizer.vocabulary for entry in plan.tokenizers.entries if entry not in tokenizers.entries}
        made_again = sorted(made & {str(print_["vocabulary"]) for print_ in saved.fingerprints.values() if "vocabulary" in print_})
        return cls(plan, checkpoint, saved, changes, made_again)

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
        """Whether a run directory already holds this config and plan, by the same providers."""
        as_before = self.checkpoint is not None and not self.changes and not self.made_again
        return as_before and directory.declares(named_config(self.plan), [provider.provenance() for provider in self.plan.providers])

    def notes(self) -> list[str]:
        """One sentence for each changed version, provider file and number of threads, and for each tokenizer that was gone."""
        if self.saved is None:
            return []
        gone = [
            f"the tokenizer {name} was gone from the run's directory: it is made again, as the checkpoint knew it"
            for name in self.made_again
        ]
        versions, files = changed_versions(self.saved.versions, self.plan), changed_files(self.saved.providers, self.plan)
        return [*versions, *files, *changed_threads(self.saved.threads), *gone]

    def machine(self, ranks: Ranks | None = None, observers: Observers | None = None) -> TrainingMachine:
        """The machine at the step to go on from.

        Args:
            ranks: the processes that train together; their number need not be that of before.
            observers: what gets the events; the observers that the plan declares when left out.

        Raises:
            UserError: incompatible versions, or a state of another declaration.
            DataError: the data changed.
        """
        if self.saved is not None:
            changed_versions(self.saved.versions, self.plan)  # refuses before anything is built; `notes` gives the sentences
        machine = assemble(self.plan, observers=observers, ranks=ranks)
        if self.checkpoint is None or self.saved is None:
            return machine
        try:
            with loading(self.checkpoint, self.plan):
                machine.restore(self.checkpoint.load_state(mapped=machine.settings.sharding is not None))
                if machine.step != self.checkpoint.step:
                    raise ValueError(f"its step is {machine.step}, the checkpoint's {self.checkpoint.step}")
            changed = [change.key for change in self.changes]
            check_fingerprints(self.saved, machine, changed)
            check_schedules(self.saved, self.plan, changed)
        except BaseException:
            machine.data.end()
            raise
        return machine


def setting_of(stalled: Stalled) -> str:
    """The assignment that says where a phase ended because a metric stalled."""
    return f"phases.{stalled.phase}.until.ended={stalled.step} steps"


def newest_in(directory: Path) -> tuple[Checkpoint | None, list[Skipped]]:
    """The newest whole checkpoint of a run and the damaged ones after it; None where nothing was saved yet.

    Raises:
        UserError: all are damaged: beginning anew would overwrite what can perhaps be repaired.
    """
    checkpoint, skipped = store_of(directory).newest()
    if checkpoint is None and skipped:
        reasons = "".join(f"\n  {each.name}: {each.reason}" for each in skipped)
        raise UserError(
            f"{directory} cannot go on, as none of its {len(skipped)} checkpoints is whole: mend them, or remove "
            f"{directory / CHECKPOINTS} to have the run begin anew{reasons}"
        )
    return checkpoint, skipped


def checkpoint_at(directory: Path, at: str) -> tuple[Checkpoint, list[Skipped]]:
    """The checkpoint that `--at` names, for a share the newest whole one up to it, and the damaged ones it skips.

    Raises:
        UserError: there is no such checkpoint.
    """
    store = store_of(directory)
    if re.fullmatch(r"step-\d+", at):
        return store.at(step_of(at)), []
    number = at.removeprefix("step").strip()
    if number.isdecimal():
        return store.at(int(number)), []
    share = Duration.parse(at)
    newest, _ = store.newest()
    if newest is None:
        raise UserError(f"{directory} has no whole checkpoint to branch from")
    limit = Described.read(newest.about, newest.step).past.clock.step_of(share)
    checkpoint, skipped = store.newest(up_to=limit)
    if checkpoint is None:
        damage = "".join(f"; {each.name} is damaged: {each.reason}" for each in skipped)
        steps = ", ".join(str(step_of(name)) for name in store.names())
        raise UserError(
            f"{directory} has no whole checkpoint up to step {limit} ({at}){damage}; there are those of steps {steps}: "
            "run.checkpoint.keep_last and keep_every say which stay"
        )
    return checkpoint, skipped


def config_of(directory: Path) -> Path:
    """A run directory's own config.

    Raises:
        UserError: it is not a run directory.
    """
    if not (directory / CONFIG).is_file():
        raise UserError(f"{directory} is not a run directory: there is no {CONFIG} in it")
    return directory / CONFIG
