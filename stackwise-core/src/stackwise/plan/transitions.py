"""The difference between two declared states: what changes, which block comes from which, what is lost on purpose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import attrs
from attrs import frozen

from stackwise.config import PhaseConfig
from stackwise.contracts.growth import GrowthOperator, ParameterGrowth
from stackwise.contracts.options import Stack
from stackwise.contracts.selectors import covers
from stackwise.curriculum.parts import Part
from stackwise.curriculum.states import ModelState, OptimizerState, TrainingState
from stackwise.curriculum.transitions import Transition
from stackwise.errors import Problem, SelectorError
from stackwise.plan.blocks import BlockMap, Growing, grown_blocks, keeps_every_block, kept_blocks
from stackwise.plan.changes import changes_between
from stackwise.plan.parts import Draft, Drafts

ONE_STACK = (Stack("any", 1),)


@frozen
class Boundary:
    """Two phases that follow each other, and the growth operator between them."""

    before: PhaseConfig
    after: PhaseConfig
    old: TrainingState
    new: TrainingState
    growing: Growing | None
    rack: Draft
    """Of the phase after."""

    @property
    def is_restacked(self) -> bool:
        """Whether the stacks of the rack change, or their order."""
        old, new = self.old.model.stacks, self.new.model.stacks
        return old != new or list(old) != list(new)

    @property
    def leaving(self) -> list[str]:
        """Weight adapters that go away or are replaced."""
        old, new = self.old.model.weight_adapters, self.new.model.weight_adapters
        return [name for name in old if name not in new or old[name].part.structure != new[name].part.structure]

    @property
    def narrowed(self) -> list[str]:
        """Weight adapters that stay, but may leave some of their matrices."""
        old, new = self.old.model.weight_adapters, self.new.model.weight_adapters
        staying = sorted(old.keys() & new.keys() - set(self.leaving))
        return [name for name in staying if not _covers(new[name].select, old[name].select)]


def transition(boundary: Boundary, drafts: Drafts) -> Transition:
    """How a boundary is crossed; problems are collected in `drafts`."""
    old, new, enter = boundary.old.model, boundary.new.model, boundary.after.enter
    operator = boundary.growing.operator(drafts) if boundary.growing is not None else None
    blocks = _block_map(boundary, operator, drafts)
    maps_tensors = isinstance(operator, ParameterGrowth)
    same = _structure(old) == _structure(new)
    lost = (
        bool(enter.fresh)
        or (bool(boundary.leaving or boundary.narrowed) and enter.weight_adapters == "drop")
        or dict(old.precision) != dict(new.precision)
    )
    keeps_blocks = not boundary.is_restacked or (operator is not None and keeps_every_block(old, blocks))
    keeps_outputs = operator is None or bool(operator.preserves_function)
    return Transition(
        changes=changes_between(boundary.before, boundary.after),
        blocks=blocks,
        operator=operator,
        preserves_function=keeps_blocks and keeps_outputs and not lost and (same or (maps_tensors and _only_sizes_differ(old, new))),
        notes=tuple(_notes(boundary)),
        touches_function=old.embedding.id == new.embedding.id
        and (boundary.is_restacked or boundary.growing is not None or lost or not same or _beside(old) != _beside(new)),
    )


def _block_map(boundary: Boundary, operator: GrowthOperator | None, drafts: Drafts) -> BlockMap:
    """Where the blocks come from, where the stacks of one rack change."""
    old, new, growing = boundary.old.model, boundary.new.model, boundary.growing
    if boundary.is_restacked and old.rack.id == new.rack.id:
        if growing is None:
            return kept_blocks(boundary.after, old, new, drafts, boundary.rack)
        if operator is None:
            return {}  # the reason is among the faults
        blocks = grown_blocks(old, new, operator, growing.draft, boundary.rack, drafts)
        growing.check_gate(bool(operator.preserves_function), blocks, drafts)
        return blocks
    if growing is not None and not isinstance(operator, ParameterGrowth):
        growth, why = growing.draft, "the stacks are those of the phase before"
        if boundary.rack.blocks is not None and not boundary.rack.blocks:
            form = f"{{'module': Built({boundary.rack.id}, depth=2), 'blocks': {{'layers': 'depth'}}}}"
            why = f"{boundary.rack.id} is one piece; say which attribute is a list of blocks and which option is its length, model={form}"
        drafts.problems.append(Problem(f"{growth.id} has nothing to grow: {why}", growth.path))
    return {}


# -- what is lost or started anew, in sentences ---------------------------------------------------------------------


def _notes(boundary: Boundary) -> Iterator[str]:
    old, new, enter = boundary.old, boundary.new, boundary.after.enter
    yield from _replaced_parts(old.model, new.model)
    if old.optimizer.part.id != new.optimizer.part.id:
        carried = "moments that the new one keeps as well go on, the others start anew"
        what = "all moments start anew" if enter.moments == "reset" else carried
        yield f"optimizer {old.optimizer.part.id} is replaced by {new.optimizer.part.id}: {what}"
    yield from _endings(old.optimizer, new.optimizer)
    if enter.fresh:
        yield f"start anew: {', '.join(enter.fresh)}"
    if enter.rewarm is not None:
        yield f"the learning rate of fresh parameters rises from 0 over {enter.rewarm} of the phase"
    merges = enter.weight_adapters == "merge"
    if boundary.leaving:
        what = "merged into their matrices" if merges else "dropped, with what they learnt"
        yield f"weight adapters {', '.join(boundary.leaving)} are {what}"
    for name in boundary.narrowed:
        yield f"weight adapters {name} beside matrices that are no longer selected, if any, are {'merged' if merges else 'dropped'}"


def _replaced_parts(old: ModelState, new: ModelState) -> Iterator[str]:
    for role in ("embedding", "rack", "head"):
        if getattr(old, role).id != getattr(new, role).id:
            yield f"{role} {getattr(old, role).id} is replaced by {getattr(new, role).id}: its parameters start anew"
    for junction, adapters in old.adapters.items():
        for was, now in zip_longest(adapters, new.adapters.get(junction, ())[: len(adapters)]):
            if now is None:
                yield f"adapter {was.id} of {junction} goes away, and its parameters with it"
            elif was.id != now.id:
                yield f"adapter {was.id} of {junction} is replaced by {now.id}: its parameters start anew"


def _endings(old: OptimizerState, new: OptimizerState) -> Iterator[str]:
    """What stood beside the optimizer and ends here, in sentences."""
    names = {group.name for group in new.groups}
    gone = ["clip"] if old.clip is not None and new.clip is None else []
    gone += ["ema"] if old.ema is not None and new.ema is None else []
    gone += ["reaction"] if old.reaction is not None and new.reaction is None else []
    gone += ["lr_scaling"] if old.lr_scaling and not new.lr_scaling else []
    gone += [f"groups.{group.name}" for group in old.groups if group.name not in names]
    if old.part.id != new.part.id and gone:
        yield f"a changed `use` replaces the whole optimizer, so these end with it: {', '.join(gone)}; repeat what is to go on"
    if "ema" in gone:
        yield "the averaged weights are lost"
    if old.reaction is not None and (new.reaction is None or new.reaction.structure != old.reaction.structure):
        anew = " and another begins" if new.reaction is not None else ""
        yield f"reaction {old.reaction.id} ends{anew}: its factor on every learning rate is 1 again"


# -- whether two models compute the same ------------------------------------------------------------------------------


def _beside(model: ModelState) -> dict[str, object]:
    """The weight adapters of a state."""
    return {name: (declared.part.structure, declared.select) for name, declared in model.weight_adapters.items()}


def _covers(wider: Sequence[str], narrower: Sequence[str]) -> bool:
    try:
        return all(covers(wider, selector) for selector in narrower)
    except SelectorError:
        return True  # the planner reports a selector that cannot be read


def _structure(model: ModelState) -> list[Any]:
    """The structure of the model without its stacks, for which the growth operator answers."""
    return [tuple(model.adapters), *(_without_stacks(part).structure for part in _parts(model))]


def _parts(model: ModelState) -> list[Part]:
    return [model.embedding, model.rack, model.head, *(part for adapters in model.adapters.values() for part in adapters)]


def _only_sizes_differ(old: ModelState, new: ModelState) -> bool:
    """Whether the parts differ in whole numbers alone: an operator over shapes answers for nothing else."""
    if _structure(old)[0] != _structure(new)[0] or len(_parts(old)) != len(_parts(new)):
        return False
    for before, after in zip(map(_without_stacks, _parts(old)), map(_without_stacks, _parts(new)), strict=True):
        was, now = before.plain_options, after.plain_options
        if (before.id, type(before.given), was.keys()) != (after.id, type(after.given), now.keys()):
            return False
        if not all(was[name] == now[name] or (_is_size(was[name]) and _is_size(now[name])) for name in was):
            return False
    return True


def _is_size(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _without_stacks(part: Part) -> Part:
    if isinstance(part.options, Mapping):
        return attrs.evolve(part, options={key: value for key, value in part.options.items() if key not in part.counts})
    if part.options is None:
        return part
    names = [a.name for a in attrs.fields(type(part.options)) if a.metadata.get("stacks")]
    return attrs.evolve(part, options=attrs.evolve(part.options, **dict.fromkeys(names, ONE_STACK))) if names else part
