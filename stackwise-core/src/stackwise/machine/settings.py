"""Settings of a machine: how it trains, not what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import Factory, frozen
from torch import nn

from stackwise.machine.placement import Placement
from stackwise.processes.ranks import Ranks

if TYPE_CHECKING:  # FSDP2 takes a while to import, and most runs divide no model
    from stackwise.processes.sharding import Sharding


@frozen(kw_only=True)
class StopRule:
    """Training ends once a metric has not been better for some evaluations in a row."""

    metric: str
    """`<evaluation>.<metric>`."""
    more: bool = False
    """Whether more of it is better."""
    patience: int = 5
    """Evaluations in a row without a better figure, after which training ends."""
    least: float = 0.0
    """A figure is better only if it is so by more than this, in the unit of the metric."""

    @classmethod
    def of(cls, watched: tuple[str, str] | None, patience: int | None, least: float | None) -> StopRule | None:
        """The rule of a config: a metric with `min` or `max`, and what else it says; None without a metric."""
        if watched is None:
            return None
        said: dict[str, Any] = {"patience": patience, "least": least}
        more = {key: value for key, value in said.items() if value is not None}
        return cls(metric=watched[0], more=watched[1] == "max", **more)

    @classmethod
    def by_phase(cls, declared: Iterable[tuple[str, Any]]) -> dict[str, StopRule]:
        """The rules of the phases that have one, from what a config says of each: `watched`, `patience` and `least`, or None."""
        rules = ((name, cls.of(said.watched, said.patience, said.least)) for name, said in declared if said is not None)
        return {name: rule for name, rule in rules if rule is not None}


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
    stalls: Mapping[str, StopRule] = Factory(dict)
    """Phase → when to end it before its last step."""
    ranks: Ranks | None = None
    """The processes that train this model together; None where there is one."""
    sharding: Sharding | None = None
    """Divides the model among the processes; None where each holds the whole of it."""
    auxiliary: Mapping[str, float] = Factory(dict)
    """Weights of the losses that parts of the model add to a finished task's: `<role>.<name>` → weight."""
    reference: nn.Module | None = None
    """The frozen model that a finished task compares with, where its spec says `given`."""
    bridges: Sequence[str] = ()
    """One sentence for each bridged junction, reported at the start."""
    providers: Sequence[str] = ()
    """Name, version and digest of each provider, reported at the start."""
