"""Plans whose durations may count FLOPs: what a step costs is only known where a model can be built."""

from __future__ import annotations

import json

from stackwise import plan
from stackwise.config import Experiment, overridden, refuse_described
from stackwise.contracts.tokenizers import Tokenizers
from stackwise.host.registry import Registry
from stackwise.plan import FlopsOf, Plan
from stackwise.plan.extents import counts
from stackwise.timeline.clock import Clock
from stackwise.timeline.layout import Past

ASSUMED_STEPS = 1000
"""Steps that a run is taken to have if its length is a time, before anything is measured."""


def make_plan(experiment: Experiment, registry: Registry, past: Past | Clock | None = None, tokenizers: Tokenizers | None = None) -> Plan:
    """Compile an experiment; torch is loaded only where a duration counts FLOPs.

    Args:
        experiment: what is declared.
        registry: the components it may name.
        past: the steps already done, if the run resumes; their boundaries stay. A whole clock is used as it is, and no data is counted.
        tokenizers: those that the run has already.

    Raises:
        ConfigError: every mistake of the config and of the components' options, at once; a component that its program alone has.
        ProviderError: a component that is needed cannot be used.
    """
    refuse_described(experiment)
    return plan.make_plan(experiment, registry, past, tokenizers, price_steps)


def price_steps(draft: Plan) -> FlopsOf:
    """What the steps of a plan cost, by its phases and their shapes."""
    from stackwise.assembly.pricing import step_flops  # brings torch, and most plans count in steps or tokens

    return step_flops(draft)


def assuming_times(experiment: Experiment) -> Experiment:
    """An experiment whose length is a time, with some figure for what a step takes: all but its steps can then be checked.

    Others are returned as they are.
    """
    if experiment.run.step_seconds is not None or not counts(experiment.resolved, "seconds"):
        return experiment
    horizon = experiment.run.horizon
    step = float(horizon.value) / ASSUMED_STEPS if horizon.unit == "seconds" else 1.0
    return overridden(experiment, [f"run.step_seconds={json.dumps({phase.name: step for phase in experiment.phases})}"])
