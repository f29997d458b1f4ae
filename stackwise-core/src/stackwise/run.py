"""One run from config to final weights; it reads straight down."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import attrs
from attrs import frozen

from stackwise import config
from stackwise.admission import ProviderList
from stackwise.assembly import assemble
from stackwise.checkpoint import save_weights
from stackwise.describe import plan_as_json, providers_as_json
from stackwise.discovery import discover
from stackwise.errors import StackwiseError
from stackwise.machine import TrainingMachine
from stackwise.plan import Plan, make_plan
from stackwise.pricing import price
from stackwise.progress import Progress
from stackwise.registry import fault_of
from stackwise.report import Summary
from stackwise.rundir import RunDirectory


@frozen
class Result:
    """Where the run's files are, and what happened."""

    directory: Path
    summary: Summary


def run(
    path: Path, overrides: Sequence[str] = (), output: Path | None = None, stream: TextIO | None = None, lists: Sequence[ProviderList] = ()
) -> Result:
    """Train what a config declares.

    Args:
        path: the config.
        overrides: `--set` assignments (`run.horizon=4 steps`).
        output: the run directory, which must not exist; `runs/<name>-NNN` when left out.
        stream: where progress goes; standard error when left out.
        lists: allow and block lists of providers, beside those of the environment and the config.

    Raises:
        ConfigError: mistakes in the config.
        DataError: data that cannot be trained on.
        ProviderError: a component that broke its contract.
        TrainingHalted: too many steps in a row were not finite.
    """
    experiment = config.load(path, overrides)
    plan = make_plan(experiment, discover(*lists))
    prices = price(plan)
    machine = assemble(plan)
    directory = RunDirectory.create(output, experiment.run.name)
    directory.write_config(experiment.resolved)
    directory.write_json("plan", plan_as_json(plan, prices))
    summary = Summary()
    progress = Progress(plan.schedule, stream)
    status = "failed"
    try:
        for event in machine.train():
            directory(event)
            summary(event)
            progress(event)
        save_weights(machine.model.model, directory.path / "final", _about(plan, machine))
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    except StackwiseError as error:
        status = f"failed: {error}"
        raise
    except Exception as error:
        fault = fault_of(error, plan.providers)
        status = f"failed: {fault or error}"
        if fault is None:
            raise
        raise fault from error
    finally:
        directory.write_json("status", {"status": status, "steps": machine.step, "data": machine.data.ledger()})
        directory.close()
    return Result(directory.path, summary)


def _about(plan: Plan, machine: TrainingMachine) -> dict[str, Any]:
    state = plan.schedule.phases[-1].state
    assert state is not None  # a plan's phases are declared
    parts = {role: getattr(state.model, role) for role in ("embedding", "rack", "head")}
    return {
        "step": machine.step,
        "parts": {role: {"use": part.id, "options": _plain(part.options_at(1.0))} for role, part in parts.items()},
        "data": machine.data.fingerprints(),
        "providers": providers_as_json(plan),
    }


def _plain(options: Any) -> Any:
    """Options as JSON can hold them; what it cannot is written as text."""
    return attrs.asdict(options) if attrs.has(type(options)) else {key: str(value) for key, value in options.items()} if options else {}
