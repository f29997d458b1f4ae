"""What a step of each phase takes, measured before a run whose length is a time; from there on it is a key of its config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from statistics import median

from stackwise import config
from stackwise.assembly.machine import assemble
from stackwise.config import Experiment
from stackwise.contracts.events import ConfigChanged, StepDone
from stackwise.host.discovery import discover
from stackwise.host.registry import blaming
from stackwise.plan import make_draft
from stackwise.plan.extents import counts
from stackwise.processes.ranks import Ranks
from stackwise.runs.agreement import agree_on_the_config, agree_on_the_run
from stackwise.storage.run_directory import CONFIG

KEY = "run.step_seconds"
TRIED, LEFT_OUT = 13, 3
"""Steps of each phase that are tried, and the first of them, which pay for what is made once."""


def timed(experiment: Experiment, ranks: Ranks | None) -> Experiment:
    """The experiment with `run.step_seconds` measured, where a duration is a time and it does not say.

    The steps that are tried change nothing of the run: a machine of its own takes them. Of several processes all take them, and the
    first one's clock counts. A phase is tried in the shape of batch that it begins with.
    """
    if experiment.run.step_seconds is not None or not counts(experiment.resolved, "seconds"):
        return experiment
    draft = make_draft(experiment, discover(), steps=TRIED)
    if draft is None:
        return experiment  # its plan names what is wrong
    times: dict[str, list[float]] = {}
    with blaming(draft.providers):
        agree_on_the_config(ranks, draft)
        machine = assemble(draft, ranks=ranks)
        agree_on_the_run(ranks, draft, machine)
        with closing(machine.train()) as events:
            for event in events:
                if isinstance(event, StepDone):
                    times.setdefault(event.phase, []).append(event.seconds)
    measured = {name: float(f"{median(own[LEFT_OUT:TRIED]):.4g}") for name, own in times.items()}
    return _with_times(experiment, measured if ranks is None else ranks.broadcast(measured))


def recalled_times(experiment: Experiment, directory: Path) -> Experiment:
    """The experiment with the times by which the run in a directory was planned, where it does not say any itself."""
    if experiment.run.step_seconds is not None or not counts(experiment.resolved, "seconds"):
        return experiment
    known = config.load(directory / CONFIG).run.step_seconds
    if known is None:
        return experiment
    names = {phase.name for phase in experiment.phases}
    return _with_times(experiment, {name: seconds for name, seconds in known.items() if name in names})


def decision(before: Experiment, after: Experiment) -> list[ConfigChanged]:
    """The event that says what was measured."""
    return [] if after is before else [ConfigChanged(0, KEY, None, dict(after.run.step_seconds or {}))]


def _with_times(experiment: Experiment, times: Mapping[str, float]) -> Experiment:
    return config.overridden(experiment, [f"{KEY}={json.dumps(times)}"])
