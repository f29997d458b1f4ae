"""What differs between two declared models: which parts are built anew at a boundary, and which names stand for new tensors there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from attrs import Factory, frozen

from stackwise.contracts.growth import BlockOrigin, GrowthRequest
from stackwise.curriculum.parts import Part
from stackwise.curriculum.schedule import UNGATED, CompiledPhase
from stackwise.curriculum.states import ModelState
from stackwise.curriculum.transitions import Enter
from stackwise.timeline.schedules import Curve

ROLES = ("embedding", "rack", "head")
WEIGHT_ADAPTERS = "weight_adapters."


@frozen(kw_only=True)
class Boundary:
    """How a declared model is entered."""

    step: int = 0
    blocks: Mapping[tuple[str, int], BlockOrigin] = Factory(dict)
    """Origin of every block of the new rack, where its stacks change."""
    growth: object = None
    """The growth operator, asked for a map by tensor if it can give one."""
    gate: Curve = UNGATED
    """Value over time of the gate on blocks that are gated."""
    enter: Enter = Factory(Enter)
    """The phase's own word on how to cross."""

    @classmethod
    def of(cls, phase: CompiledPhase) -> Boundary:
        """The boundary that a phase begins with."""
        growth = phase.transition.operator if phase.transition is not None else None
        return cls(step=phase.start, blocks=phase.blocks, growth=growth, gate=phase.gate, enter=phase.enter)

    def rebuilds(self, before: ModelState | None, after: ModelState) -> bool:
        """Whether anything must be built, attached, moved or cast to cross it."""
        return before is None or bool(self.blocks or self.enter.fresh) or self.growth is not None or _declared(before) != _declared(after)


def parts_of(state: ModelState) -> Iterator[tuple[str, Part]]:
    """Path in the model → part, for all parts but weight adapters."""
    yield from ((role, getattr(state, role)) for role in ROLES)
    for junction, parts in state.adapters.items():
        yield from ((f"adapters.{junction}.{i}", part) for i, part in enumerate(parts))


def goes_on(before: ModelState | None, after: ModelState, path: str) -> bool:
    """Whether the module of a part stays: same structure, same dtype (a part that changes its dtype is built in its own first)."""
    old, new = dict(parts_of(before)) if before is not None else {}, dict(parts_of(after))
    same_dtype = before is not None and before.precision.get(path) == after.precision.get(path)
    return same_dtype and path in old and old[path].structure == new[path].structure


def build_steps(phases: Sequence[CompiledPhase]) -> dict[str, int]:
    """Path of each part → the first step of the phase that built the module which stands at the end of these phases.

    What a constructor draws depends on that step, so a model that is built to resume has the modules of the run that was interrupted.
    """
    steps: dict[str, int] = {}
    before: ModelState | None = None
    for phase in phases:
        if phase.state is None:
            continue
        after = phase.state.model
        if Boundary.of(phase).rebuilds(before, after):
            anew = before is None or bool(phase.enter.fresh)
            steps |= {path: phase.start for path, _ in parts_of(after) if anew or not goes_on(before, after, path)}
            steps[WEIGHT_ADAPTERS] = phase.start  # they are few and small: every crossing builds them anew
        before = after
    return steps


def replaced(before: ModelState | None, after: ModelState) -> tuple[str, ...]:
    """Prefixes of names whose component is another one now."""
    if before is None:
        return ()
    old = {path: part.id for path, part in parts_of(before)}
    parts = [f"{path}." for path, part in parts_of(after) if old.get(path) != part.id]
    beside = [f"{WEIGHT_ADAPTERS}{name}." for name in after.weight_adapters if weight_adapter(before, name) != weight_adapter(after, name)]
    return (*parts, *beside)


def weight_adapter(state: ModelState, name: str) -> object:
    """What must stay the same for a weight adapter to go on; None where none of that name is declared."""
    declared = state.weight_adapters.get(name)
    return None if declared is None else declared.part.structure


def growth_request(before: ModelState, after: ModelState, residual_outputs: Sequence[str]) -> GrowthRequest:
    """What a growth operator is asked."""
    return GrowthRequest(
        old_stacks=before.stacks,
        new_stacks=after.stacks,
        residual_outputs=tuple(residual_outputs),
        old_options={role: getattr(before, role).plain_options for role in ROLES},
        new_options={role: getattr(after, role).plain_options for role in ROLES},
    )


def _declared(state: ModelState) -> tuple[object, ...]:
    beside = [(name, declared.select, declared.part.structure) for name, declared in state.weight_adapters.items()]
    return [(path, part.structure) for path, part in parts_of(state)], beside, dict(state.precision)
