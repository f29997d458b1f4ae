"""The compiled experiment."""

from __future__ import annotations

from attrs import frozen

from stackwise.config import Experiment
from stackwise.curriculum.bridges import Bridge
from stackwise.curriculum.parts import Part
from stackwise.curriculum.schedule import PhaseSchedule
from stackwise.host.provider import Provider
from stackwise.host.registry import Registry
from stackwise.plan.evaluations import EvaluationPlan
from stackwise.plan.junctions.join import Joined


@frozen(kw_only=True)
class Plan:
    """The compiled experiment: what run, pricing and the log share."""

    experiment: Experiment
    registry: Registry
    schedule: PhaseSchedule
    joined: tuple[Joined, ...]
    """One a phase: filled drafts, specs and bridges."""
    evaluations: tuple[EvaluationPlan, ...] = ()
    observers: tuple[Part, ...] = ()
    start_format: Part | None = None
    """Format of the folder that the run begins from, where the config names one."""
    providers: tuple[Provider, ...] = ()
    """The providers that this plan uses."""
    max_rows: int | None = None
    max_length: int | None = None
    """Longest row asked of a loader, lookahead included."""
    lookahead: int = 0
    """Entries a row needs beyond seq_len, the most any task asks."""

    @property
    def bridges(self) -> tuple[Bridge, ...]:
        """Every bridge of every phase, each once."""
        return tuple(dict.fromkeys(bridge for joined in self.joined for bridge in joined.bridges))
