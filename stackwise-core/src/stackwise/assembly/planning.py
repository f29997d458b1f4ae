"""Plans whose durations may count FLOPs: what a step costs is only known where a model can be built."""

from __future__ import annotations

from stackwise import plan
from stackwise.config import Experiment
from stackwise.contracts.tokenizers import Tokenizers
from stackwise.host.registry import Registry
from stackwise.plan import FlopsOf, Plan
from stackwise.timeline.clock import Clock
from stackwise.timeline.layout import Past


def make_plan(experiment: Experiment, registry: Registry, past: Past | Clock | None = None, tokenizers: Tokenizers | None = None) -> Plan:
    """Compile an experiment; torch is loaded only where a duration counts FLOPs.

    Args:
        experiment: what is declared.
        registry: the components it may name.
        past: the steps already done, if the run resumes; their boundaries stay. A whole clock is used as it is, and no data is counted.
        tokenizers: those that the run has already.

    Raises:
        ConfigError: every mistake of the config and of the components' options, at once.
        ProviderError: a component that is needed cannot be used.
    """
    return plan.make_plan(experiment, registry, past, tokenizers, price_steps)


def price_steps(draft: Plan) -> FlopsOf:
    """What the steps of a plan cost, by its phases and their shapes."""
    from stackwise.assembly.pricing import step_flops  # brings torch, and most plans count in steps or tokens

    return step_flops(draft)
