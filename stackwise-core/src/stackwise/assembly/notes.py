"""What a config accepts, and what it starts without, as sentences for the log."""

from __future__ import annotations

from pathlib import Path

from stackwise.assembly.references import references
from stackwise.assembly.start import start_notes
from stackwise.errors import ConfigError
from stackwise.plan import Plan
from stackwise.planes.data.plane import DataPlane
from stackwise.storage.pretrained import states_left_out


def log_notes(plan: Plan, data: DataPlane) -> list[str]:
    """Notes for the log on what the config accepts.

    Raises:
        ConfigError: the config accepts or names something that no source has.
    """
    inexact = {name: loader.inexact for name, loader in data.brought().items() if loader.inexact is not None}
    phase = plan.experiment.phases[-1]
    problems = []
    if phase.data.accept_inexact_resume and not inexact:
        problems.append(phase.problem("data.accept_inexact_resume", "every source has a state or a length: there is nothing to accept"))
    if phase.data.fields and not data.brought():
        problems.append(phase.problem("data.fields", "no source delivers ready-made batches, whose entries could be named"))
    if problems:
        raise ConfigError(problems)
    reading = [evaluation.name for evaluation in plan.evaluations if evaluation.training_rows]
    start = plan.experiment.phases[0].model.start
    missing = () if start is None else states_left_out(Path(start.from_))
    return [
        *(f"model.start:{note}" for note in start_notes(plan)),
        *(f"model.start:{name}: it changed in training, and files of weights cannot hold it: it begins as it is built" for name in missing),
        *(f"source:{name}: a resume may not be exact, which data.accept_inexact_resume accepts: {why}" for name, why in inexact.items()),
        *(f"reference:{phase}: it compares with {path}, sha256:{digest}" for phase, path, digest in references(plan)),
        *(f"evaluation:{name}: reads rows that training reads, which training_rows accepts" for name in reading),
    ]
