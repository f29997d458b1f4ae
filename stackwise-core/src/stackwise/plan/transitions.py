"""The difference between two declared states: what changes, which block comes from which, what is lost on purpose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import attrs
from attrs import frozen

from stackwise.config import PhaseConfig
from stackwise.contracts.components import BuildContext, Built
from stackwise.contracts.growth import BlockOrigin, GrowthOperator, GrowthRequest, ParameterGrowth
from stackwise.contracts.options import Stack
from stackwise.contracts.selectors import covers
from stackwise.contracts.specs import RackSpec
from stackwise.curriculum.parts import Part
from stackwise.curriculum.states import ModelState, OptimizerState, TrainingState
from stackwise.curriculum.transitions import Change, Transition
from stackwise.errors import Problem, ProviderError, SelectorError
from stackwise.plan.parts import Draft, Drafts

BlockMap = Mapping[tuple[str, int], BlockOrigin]

ONE_STACK = (Stack("any", 1),)


def changes_between(before: PhaseConfig, after: PhaseConfig) -> tuple[Change, ...]:
    """Every key whose declared value differs, in the order of the config."""
    old, new = _declared(before), _declared(after)
    return tuple(
        Change(path=path, before=old.get(path, "–"), after=new.get(path, "–"))
        for path in dict.fromkeys([*old, *new])
        if old.get(path) != new.get(path)
    )


def _declared(phase: PhaseConfig) -> dict[str, str]:
    """The declared state by dotted key; where a phase ends and how it is entered are no part of it."""
    return {path: value for path, value in _flat(phase.tree.printable()).items() if path.split(".")[0] not in ("until", "enter")}


def _flat(value: Any, path: str = "") -> dict[str, str]:
    if isinstance(value, Mapping):
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{path}.{key}" if path else str(key)).items()}
    if isinstance(value, list):
        return {path: "[" + ", ".join(_compact(entry) for entry in value) + "]"}
    return {path: _compact(value)}


def _compact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_compact(inner)}" for key, inner in value.items())
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@frozen
class Growing:
    """The growth operator of a boundary."""

    draft: Draft
    part: Part
    start: float
    """Run time at the boundary."""
    end: float
    """Run time at the end of the phase that it opens."""


def transition(
    before: PhaseConfig,
    after: PhaseConfig,
    old_state: TrainingState,
    new_state: TrainingState,
    growing: Growing | None,
    rack: Draft,
    drafts: Drafts,
) -> Transition:
    """How the boundary between two phases is crossed; problems are collected in `drafts`."""
    notes = []
    old, new = old_state.model, new_state.model
    growth = growing.draft if growing is not None else None
    for role in ("embedding", "rack", "head"):
        if getattr(old, role).id != getattr(new, role).id:
            notes.append(f"{role} {getattr(old, role).id} is replaced by {getattr(new, role).id}: its parameters start anew")
    for junction, parts in old.adapters.items():
        for there, here in zip_longest(parts, new.adapters.get(junction, ())[: len(parts)]):
            if here is None:
                notes.append(f"adapter {there.id} of {junction} goes away, and its parameters with it")
            elif there.id != here.id:
                notes.append(f"adapter {there.id} of {junction} is replaced by {here.id}: its parameters start anew")
    replaced = old.rack.id != new.rack.id
    if old_state.optimizer.part.id != new_state.optimizer.part.id:
        carried = "moments that the new one keeps as well go on, the others start anew"
        what = "all moments start anew" if after.enter.moments == "reset" else carried
        notes.append(f"optimizer {old_state.optimizer.part.id} is replaced by {new_state.optimizer.part.id}: {what}")
    notes += _ended(old_state.optimizer, new_state.optimizer)
    if after.enter.fresh:
        notes.append(f"start anew: {', '.join(after.enter.fresh)}")
    if after.enter.rewarm is not None:
        notes.append(f"the learning rate of fresh parameters rises from 0 over {after.enter.rewarm} of the phase")
    leaving = [name for name in old.weight_adapters if _adapter(old, name) != _adapter(new, name)]
    if leaving:
        done = "merged into their matrices" if after.enter.weight_adapters == "merge" else "dropped, with what they learnt"
        notes.append(f"weight adapters {', '.join(leaving)} are {done}")
    narrowed = [
        name
        for name in sorted(old.weight_adapters.keys() & new.weight_adapters.keys() - set(leaving))
        if not _covers(new.weight_adapters[name].select, old.weight_adapters[name].select)
    ]
    for name in narrowed:
        done = "merged" if after.enter.weight_adapters == "merge" else "dropped"
        notes.append(f"weight adapters {name} beside matrices that are no longer selected, if any, are {done}")
    operator = _operator(growing, drafts)
    blocks: BlockMap = {}
    reordered = old.stacks != new.stacks or list(old.stacks) != list(new.stacks)
    if reordered and not replaced:
        blocks = _map_blocks(after, old, new, operator, growth, rack, drafts)
        _check_gate(growing, operator is not None and bool(operator.preserves_function), blocks, drafts)
    elif growth is not None and not _maps_tensors(operator):
        drafts.problems.append(Problem(f"{growth.id} has nothing to grow: the stacks are those of the phase before", growth.path))
    kept = not reordered or (operator is not None and _keeps_every_block(old, blocks))
    grown = operator is None or bool(operator.preserves_function)
    same = _structure(old) == _structure(new)
    lost = (
        bool(after.enter.fresh)
        or (bool(leaving or narrowed) and after.enter.weight_adapters == "drop")
        or dict(old.precision) != dict(new.precision)
    )
    preserves = kept and grown and not lost and (same or (_maps_tensors(operator) and _only_sizes_differ(old, new)))
    return Transition(
        changes=changes_between(before, after),
        blocks=blocks,
        preserves_function=preserves,
        notes=tuple(notes),
        touches_function=old.embedding.id == new.embedding.id
        and (reordered or growth is not None or lost or not same or _beside(old) != _beside(new)),
    )


def _ended(old: OptimizerState, new: OptimizerState) -> list[str]:
    """What stood beside the optimizer and does not go on."""
    notes = []
    names = {group.name for group in new.groups}
    gone = ["clip"] if old.clip is not None and new.clip is None else []
    gone += ["ema"] if old.ema is not None and new.ema is None else []
    gone += ["reaction"] if old.reaction is not None and new.reaction is None else []
    gone += ["lr_scaling"] if old.lr_scaling and not new.lr_scaling else []
    gone += [f"groups.{group.name}" for group in old.groups if group.name not in names]
    if old.part.id != new.part.id and gone:
        notes.append(f"a changed `use` replaces the whole optimizer, so these end with it: {', '.join(gone)}; repeat what is to go on")
    if "ema" in gone:
        notes.append("the averaged weights are lost")
    if old.reaction is not None and (new.reaction is None or new.reaction.structure != old.reaction.structure):
        anew = " and another begins" if new.reaction is not None else ""
        notes.append(f"reaction {old.reaction.id} ends{anew}: its factor on every learning rate is 1 again")
    return notes


def _beside(model: ModelState) -> dict[str, object]:
    """The weight adapters of a state."""
    return {name: (declared.part.structure, declared.select) for name, declared in model.weight_adapters.items()}


def _adapter(model: ModelState, name: str) -> object:
    """What must be the same for a weight adapter to stay."""
    declared = model.weight_adapters.get(name)
    return None if declared is None else declared.part.structure


def _covers(wider: Sequence[str], narrower: Sequence[str]) -> bool:
    try:
        return all(covers(wider, selector) for selector in narrower)
    except SelectorError:
        return True  # the planner tells of one that cannot be read


def _check_gate(growing: Growing | None, preserves: bool, blocks: BlockMap, drafts: Drafts) -> None:
    """A gate that keeps the function begins at 0; every gate ends at 1, where it is folded into the weights by being taken away."""
    if growing is None or not any(origin.gated for origin in blocks.values()):
        return
    gate, path = growing.part.curves.get("gate"), f"{growing.draft.path}.gate"
    if gate is None:
        drafts.faults.append(ProviderError(f"{growing.draft.label} gates blocks, but has no option `gate` that may follow time"))
    elif preserves and gate(growing.start) != 0.0:
        message = f"the gate stands at {gate(growing.start):g} where its phase begins, so that the function jumps: let it rise from 0"
        drafts.problems.append(Problem(f"{message}, as in {{linear: {{from: 0, to: 1, over: phase}}}}", path))
    elif abs(gate(growing.end) - 1.0) > 1e-9:
        message = f"the gate stands at {gate(growing.end):g} where its phase ends, and it is taken away there: let it reach 1 in this phase"
        drafts.problems.append(Problem(f"{message}, as in {{linear: {{from: 0, to: 1, over: phase}}}}", path))


def _structure(model: ModelState) -> list[Any]:
    """What the model computes apart from its weights and its stacks, which the growth operator answers for."""
    return [tuple(model.adapters), *(_without_stacks(part).structure for part in _parts(model))]


def _parts(model: ModelState) -> list[Part]:
    return [model.embedding, model.rack, model.head, *(part for adapters in model.adapters.values() for part in adapters)]


def _maps_tensors(operator: object) -> bool:
    return isinstance(operator, ParameterGrowth)


def _only_sizes_differ(old: ModelState, new: ModelState) -> bool:
    """Whether the parts are those they were but for whole numbers, which are all that an operator over shapes answers for."""
    if _structure(old)[0] != _structure(new)[0] or len(_parts(old)) != len(_parts(new)):
        return False
    for before, after in zip(map(_without_stacks, _parts(old)), map(_without_stacks, _parts(new)), strict=True):
        was, now = _options(before), _options(after)
        if (before.id, type(before.given), was.keys()) != (after.id, type(after.given), now.keys()):
            return False
        if not all(was[name] == now[name] or (_is_size(was[name]) and _is_size(now[name])) for name in was):
            return False
    return True


def _options(part: Part) -> Mapping[str, Any]:
    if isinstance(part.options, Mapping):
        return part.options
    return {} if part.options is None else {a.name: getattr(part.options, a.name) for a in attrs.fields(type(part.options))}


def _is_size(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _without_stacks(part: Part) -> Part:
    if isinstance(part.options, Mapping):
        return attrs.evolve(part, options={key: value for key, value in part.options.items() if key != "stacks"})
    if part.options is None:
        return part
    names = [a.name for a in attrs.fields(type(part.options)) if a.metadata.get("stacks")]
    return attrs.evolve(part, options=attrs.evolve(part.options, **dict.fromkeys(names, ONE_STACK))) if names else part


def _keeps_every_block(old: ModelState, blocks: BlockMap) -> bool:
    """Whether the old blocks all go on, each once and in their order, so that only new ones can change the function."""
    sources = [origin.source for origin in blocks.values() if origin.source is not None and not origin.gated and not origin.zero_residual]
    return sources == [(stack, index) for stack, count in old.stacks.items() for index in range(count)]


def _operator(growing: Growing | None, drafts: Drafts) -> GrowthOperator | None:
    if growing is None:
        return None
    growth = growing.draft
    operator: GrowthOperator
    if isinstance(growth.given, Built):
        operator = growth.given.make(**growth.options)
    elif growth.registered is None:
        operator = growth.given
    else:
        try:
            operator = growth.registered.build(growing.part.options_at(0.0), BuildContext(seed=0))
        except ProviderError as error:
            drafts.faults.append(error)
            return None
        except Exception as error:
            drafts.faults.append(ProviderError(f"{growth.label} could not be built: {type(error).__name__}: {error}"))
            return None
    if not hasattr(operator, "map_blocks") or not hasattr(operator, "preserves_function"):
        what = f"{growth.label} is no growth operator: a {type(operator).__name__} without map_blocks or preserves_function"
        drafts.faults.append(ProviderError(what))
        return None
    return operator


def _map_blocks(
    phase: PhaseConfig, old: ModelState, new: ModelState, operator: GrowthOperator | None, growth: Draft | None, rack: Draft, drafts: Drafts
) -> BlockMap:
    targets = [(stack, index) for stack, count in new.stacks.items() for index in range(count)]
    known = {(stack, index) for stack, count in old.stacks.items() for index in range(count)}
    if operator is None and growth is not None:
        return {}  # why there is none is among the faults
    if operator is None:
        if fresh := [target for target in targets if target not in known]:
            names = ", ".join(c.id for c in drafts.registry.of_kind("growth")) or "none installed"
            stack, index = fresh[0]
            drafts.problems.append(
                Problem(
                    f"block {index} of stack '{stack}' is new in phase '{phase.name}', and nothing says where it comes from: "
                    f"declare `enter: {{growth: {{use: ...}}}}` in the phase (operators: {names})",
                    "model.rack.stacks",
                    phase.locate("model.rack.stacks"),
                )
            )
        return {target: BlockOrigin(source=target if target in known else None) for target in targets}
    assert growth is not None
    spec = rack.spec
    outputs = spec.residual_outputs if isinstance(spec, RackSpec) else ()
    try:
        request = GrowthRequest(
            old_stacks=old.stacks,
            new_stacks=new.stacks,
            residual_outputs=outputs,
            old_options={role: getattr(old, role).plain_options for role in ("embedding", "rack", "head")},
            new_options={role: getattr(new, role).plain_options for role in ("embedding", "rack", "head")},
        )
        blocks = operator.map_blocks(request)
    except ValueError as error:
        drafts.problems.append(Problem(f"{growth.id} cannot make this change: {error}", growth.path))
        return {}
    except Exception as error:
        if growth.registered is None:
            raise
        drafts.faults.append(
            ProviderError(f"{growth.label} failed: {type(error).__name__}: {error}; what it cannot do it says as ValueError")
        )
        return {}
    wrong = not hasattr(blocks, "keys") or set(blocks) != set(targets)
    if wrong or any(origin.source is not None and origin.source not in known for origin in blocks.values()):
        drafts.faults.append(
            ProviderError(f"{growth.label} mapped blocks {blocks} where the new rack has {targets}, or from blocks that do not exist")
        )
        return {}
    return {target: blocks[target] for target in targets if target in blocks}
