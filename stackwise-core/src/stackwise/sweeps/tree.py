"""Which run of a sweep begins in the middle of which other run, and what that saves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from attrs import evolve, frozen

from stackwise import config
from stackwise.assembly.planning import make_plan
from stackwise.assembly.pricing import PhasePrice, price
from stackwise.config.sweep import Point, SweepConfig
from stackwise.host.discovery import discover
from stackwise.plan import Plan
from stackwise.plan.sharing import first_own_step
from stackwise.timeline.spent import Spent

LEAST_SHARED = 0.01
"""A trunk that is a smaller part of a run's steps is not shared: it saves less than its checkpoint, and the wait for it, are worth."""


@frozen
class Job:
    """One run of a sweep, and where it begins."""

    point: Point
    steps: int
    flops: float | None
    """Training FLOPs of its own steps; None where the plan cannot count them."""
    flops_alone: float | None
    """If nothing but the sweep's trunk were shared."""
    seed: int
    parent: str | None = None
    """The run whose first steps it shares."""
    start: int = 0
    """The first step that is its own."""
    saves: tuple[int, ...] = ()
    """Steps at which others begin."""
    instants: tuple[str, ...] = ()
    """`run.checkpoint.at` of its own config, as written there."""

    @property
    def overrides(self) -> tuple[str, ...]:
        """Its own values and the checkpoints that others begin at, as arguments of `--set`."""
        if not self.saves:
            return self.point.overrides
        at = json.dumps([*self.instants, *(f"{step} steps" for step in self.saves)], ensure_ascii=False)
        return (*self.point.overrides, f"run.checkpoint.at={at}")


def jobs_of(sweep: SweepConfig, *, share: bool = True, begin: int = 0) -> tuple[Job, ...]:
    """Every run, each after the one that it begins in.

    Args:
        sweep: the sweep.
        share: whether runs begin in the middle of each other.
        begin: the step of its trunk that all runs begin at.

    Raises:
        ConfigError: a mistake in the config of any run; the message names its settings.
        DataError: a vocabulary that cannot be learnt.
    """
    points, registry = sweep.points(), discover()
    plans = [make_plan(config.load(Path(sweep.config), point.overrides), registry).with_tokenizers() for point in points]
    jobs: list[Job] = []
    for i, (point, plan) in enumerate(zip(points, plans, strict=True)):
        parent, start = _longest(plan, plans[:i], jobs, begin) if share else (None, begin)
        if parent is not None:
            jobs[parent] = evolve(jobs[parent], saves=tuple(sorted({*jobs[parent].saves, start})))
        prices, run = price(plan), plan.experiment.run
        jobs.append(
            Job(
                point,
                steps=plan.schedule.steps,
                flops=_flops(plan, prices, start),
                flops_alone=_flops(plan, prices, begin),
                seed=run.seed,
                parent=None if parent is None else points[parent].name,
                start=start,
                instants=_instants(plan),
            )
        )
    return tuple(jobs)


def _instants(plan: Plan) -> tuple[str, ...]:
    checkpoint = plan.experiment.resolved["run"].get("checkpoint") or {}
    return tuple(checkpoint.get("at") or ())


def _longest(plan: Plan, earlier: Sequence[Plan], jobs: Sequence[Job], begin: int) -> tuple[int | None, int]:
    """The earlier run that shares most first steps with a plan, and how many; more than all have from their trunk. A run can only begin at
    a step that the earlier one trains itself.
    """
    best: tuple[int | None, int] = (None, begin)
    for i, other in enumerate(earlier):
        if other.experiment.run.seed != plan.experiment.run.seed:
            continue
        shared = first_own_step(other, plan)
        worth = shared >= LEAST_SHARED * plan.schedule.steps
        if worth and max(best[1], jobs[i].start) < shared < plan.schedule.steps:
            best = (i, shared)
    return best


def _flops(plan: Plan, prices: Sequence[PhasePrice], start: int) -> float | None:
    """Training FLOPs from a step on."""
    stretches = [(first, None if flops is None else flops.training) for cost in prices for first, flops in cost.stretches]
    spent = Spent.of(stretches)
    return None if spent is None else spent.before(plan.schedule.steps) - spent.before(start)
