"""How a machine trains, beside what it trains."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import Factory, frozen

from stackwise.machine.placement import Placement


@frozen(kw_only=True)
class Settings:
    """Everything that `TrainingMachine` is told beside its parts; each has a default that suits a run in code."""

    seed: int = 0
    """Each step seeds its own streams from (seed, consumer, step)."""
    placement: Placement = Factory(Placement)
    """Device and precision."""
    halt_after: int = 3
    """Steps in a row that may be skipped as not finite before training halts."""
    probe: bool = False
    """Whether every change of the model is judged on the last batch, before and after."""
    bridges: Sequence[str] = ()
    """Junctions that assembly bridged, in sentences, reported at the start."""
    providers: Sequence[str] = ()
    """Whose code the parts are, in words, reported at the start."""
