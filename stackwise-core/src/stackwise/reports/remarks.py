"""Remarks on things that a plan may declare but that are probably not meant."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence

from stackwise.assembly.memory import PhaseMemory
from stackwise.assembly.pricing import PhasePrice
from stackwise.curriculum.schedule import CompiledPhase
from stackwise.plan import Plan

MANY_EPOCHS = 1000


def remarks(plan: Plan, prices: Sequence[PhasePrice], memory_bytes: int | None) -> list[str]:
    """The remarks on a plan, a sentence each.

    Args:
        plan: the compiled experiment.
        prices: one for each phase.
        memory_bytes: memory of this machine; None where unknown.
    """
    return [*_memory(prices, memory_bytes), *_epochs(prices), *_idle_phases(plan), *_stale_evaluations(plan)]


def memory_here() -> int | None:
    """Bytes of memory of this machine; None where the system does not say."""
    ask = getattr(os, "sysconf", None)  # not on every system
    try:
        return None if ask is None else ask("SC_PAGE_SIZE") * ask("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _memory(prices: Sequence[PhasePrice], memory_bytes: int | None) -> Iterator[str]:
    for cost in prices:
        if memory_bytes is not None and (cost.optimizer_bytes or 0) > memory_bytes:
            state, memory = (amount / 1e9 for amount in (cost.optimizer_bytes or 0, memory_bytes))
            yield f"phase '{cost.name}': the optimizer state alone takes {state:,.1f} GB, and this machine has {memory:,.1f} GB of memory"
        elif memory_bytes is not None and isinstance(cost.memory, PhaseMemory) and cost.memory.peak > memory_bytes:
            peak, memory = cost.memory.peak / 1e9, memory_bytes / 1e9
            yield f"phase '{cost.name}': its tensors take {peak:,.1f} GB at once, and this machine has {memory:,.1f} GB of memory"


def _epochs(prices: Sequence[PhasePrice]) -> Iterator[str]:
    epochs: dict[str, float] = defaultdict(float)
    for cost in prices:
        for name, read in cost.sources.items():
            epochs[name] += read.epochs or 0.0
    for name, count in epochs.items():
        if count >= MANY_EPOCHS:
            yield f"source '{name}' is read {count:,.0f} times over: the run is long for so little data"


def _idle_phases(plan: Plan) -> Iterator[str]:
    for phase in plan.schedule:
        groups = () if phase.state is None else phase.state.optimizer.groups
        rates = [group.curves["lr"] for group in groups if "lr" in group.curves]
        if rates and all(knot.value == 0 for rate in rates for knot in rate.knots):
            yield f"phase '{phase.name}': every learning rate is 0, so nothing is learnt in it"


def _stale_evaluations(plan: Plan) -> Iterator[str]:
    """An evaluation without sources of its own reads those of the first phase, whatever later ones train on."""
    inherited = [each.name for each in plan.experiment.evaluate if each.sources is None]
    first = plan.schedule.phases[0]
    for name in sorted(_trained_on(first)):
        without = [phase.name for phase in plan.schedule if name not in _trained_on(phase)]
        if inherited and without:
            readers, phases = ", ".join(inherited), ", ".join(f"'{phase}'" for phase in without)
            advice = "`sources` of its own would say what is meant"
            yield f"evaluate {readers}: reads '{name}', which phase {phases} no longer trains on; {advice}"


def _trained_on(phase: CompiledPhase) -> set[str]:
    """The sources whose weight is above zero at some instant of a phase."""
    return set() if phase.state is None else {name for name, curve in phase.state.data.mix.items() if any(k.value for k in curve.knots)}
