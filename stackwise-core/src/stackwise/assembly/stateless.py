"""Finds tasks and transforms that keep a state from batch to batch, in every phase, before several processes take the first step."""

from __future__ import annotations

from collections.abc import Iterator

from stackwise.assembly.workshop import Workshop
from stackwise.contracts.protocols import Stateful
from stackwise.errors import ConfigError, Problem
from stackwise.plan import Plan


def check_stateless(plan: Plan, shop: Workshop) -> None:
    """Refuse tasks and transforms with a state of the rows they saw, of which each of several processes would see a part.

    Args:
        plan: of several processes.
        shop: builds the parts to look at.

    Raises:
        ConfigError: every such part, with its phase.
    """
    if problems := list(_stateful(plan, shop)):
        raise ConfigError(problems)


def _stateful(plan: Plan, shop: Workshop) -> Iterator[Problem]:
    seen: set[int] = set()
    for phase in plan.schedule:
        if phase.state is None:
            continue
        parts = [
            ("task", phase.state.task, shop.task),
            *(("data.transforms", part, shop.transform) for part in phase.state.data.transforms),
        ]
        for path, part, build in parts:
            if id(part) not in seen and isinstance(built := build(part), Stateful):
                why = "keeps a state from batch to batch, and each of several processes would see a part of the batches only"
                message = f"{type(built).__name__} {why}: train in one process, or use one without state_dict"
                yield plan.experiment.phases[phase.index].problem(path, message)
            seen.add(id(part))
