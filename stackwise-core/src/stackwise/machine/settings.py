"""Settings of a machine: how it trains, not what."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import Factory, frozen

from stackwise.machine.patience import StopRule
from stackwise.machine.placement import Placement


@frozen(kw_only=True)
class Settings:
    """What `TrainingMachine` takes beside its parts; each default suits a run in code."""

    seed: int = 0
    """Each step seeds its streams from (seed, consumer, step)."""
    placement: Placement = Factory(Placement)
    """Device and precision."""
    halt_after: int = 3
    """Non-finite steps in a row after which training halts."""
    probe: bool = False
    """Whether to judge the model on the last batch before and after every boundary that changes it."""
    stop: StopRule | None = None
    """When to end before the horizon, because a metric no longer gets better."""
    bridges: Sequence[str] = ()
    """One sentence for each bridged junction, reported at the start."""
    providers: Sequence[str] = ()
    """Name, version and digest of each provider, reported at the start."""
