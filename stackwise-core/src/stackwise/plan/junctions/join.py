"""One phase's drafts joined at every junction: open options filled, differences bridged, mismatches collected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs
from attrs import Factory, frozen

from stackwise.contracts.specs import BatchSpec, RackSpec, Spec, TaskSpec, TensorSpec, TransformSpec
from stackwise.curriculum.bridges import Bridge
from stackwise.errors import Problem, UserError
from stackwise.plan.junctions.fields import Passage, dropped
from stackwise.plan.junctions.sides import Side
from stackwise.plan.junctions.unify import unify
from stackwise.plan.parts import Draft


@frozen(kw_only=True)
class PhaseDrafts:
    """The drafts of one phase, by role."""

    task: Draft
    embedding: Draft
    rack: Draft
    head: Draft
    optimizer: Draft
    sources: Mapping[str, Draft]
    transforms: tuple[Draft, ...] = ()
    adapters: Mapping[str, tuple[Draft, ...]] = Factory(dict)
    weight_adapters: Mapping[str, Draft] = Factory(dict)
    reaction: Draft | None = None
    growth: Draft | None = None

    def by_role(self) -> dict[str, Draft]:
        """Every draft that stands at a junction, under its unification role."""
        roles = {"task": self.task, "embedding": self.embedding, "rack": self.rack, "head": self.head}
        roles |= {f"source:{name}": draft for name, draft in self.sources.items()}
        roles |= {f"adapter:{junction}:{i}": draft for junction, drafts in self.adapters.items() for i, draft in enumerate(drafts)}
        return roles


@frozen(kw_only=True)
class Joined:
    """Drafts with every option filled, and the outcome of unification."""

    drafts: PhaseDrafts
    bridges: tuple[Bridge, ...]
    problems: tuple[Problem, ...]
    sizes: Mapping[tuple[str, str], int] = Factory(dict)
    optional: frozenset[str] = frozenset()
    """The optional fields of the task that a source delivers."""
    reads: frozenset[str] | None = None
    """The fields that are read, by the names that sources give them; None if the task or a transform does not say."""

    def specs(self) -> dict[str, Any]:
        """The specs at the junctions, for build contexts; `batch` is the first source's."""
        roles = self.drafts.by_role()
        specs: dict[str, Any] = {role: self._solved(role, roles[role].spec) for role in ("task", "embedding", "rack", "head")}
        batches = [self._solved(role, spec) for role, draft in roles.items() if isinstance(spec := draft.spec, BatchSpec)]
        return {**specs, "batch": batches[0] if batches else BatchSpec(fields={})}

    def _solved(self, role: str, spec: Spec | None) -> Any:
        """A spec with sizes in place of the names of its dimensions."""
        if spec is None:
            return None

        def sized(tensor: TensorSpec) -> TensorSpec:
            dims = tuple(self.sizes.get((role, dim), dim) if isinstance(dim, str) else dim for dim in tensor.dims)
            upper = tensor.bounds[1] if tensor.bounds is not None else 0
            bounds = None if tensor.bounds is None else (tensor.bounds[0], self.sizes.get((role, str(upper)), upper))
            return attrs.evolve(tensor, dims=dims, bounds=bounds)

        changes: dict[str, Any] = {}
        for attribute in attrs.fields(type(spec)):
            value = getattr(spec, attribute.name)
            if isinstance(value, TensorSpec):
                changes[attribute.name] = sized(value)
            elif isinstance(value, Mapping) and value and all(isinstance(inner, TensorSpec) for inner in value.values()):
                changes[attribute.name] = {name: sized(inner) for name, inner in value.items()}
        return attrs.evolve(spec, **changes)


def join(drafts: PhaseDrafts, rename: Mapping[str, str], drop: tuple[str, ...] = ()) -> Joined:
    """Unify the specs of a phase and fill what the options leave open.

    Args:
        drafts: of one phase.
        rename: field the task needs → field the loaders deliver.
        drop: fields of the loaders that go no further.
    """
    sides = {}
    problems: list[Problem] = []
    own: dict[str, BatchSpec] = {}
    for role, draft in drafts.by_role().items():
        spec = _spec(draft, problems)
        if spec is not None:
            if isinstance(spec, BatchSpec):
                own[role] = spec
                spec = _transformed(spec, draft, drafts.transforms, rename, problems)
            sides[role] = Side(role=role, label=draft.label, spec=spec, dims=draft.sizes, open=draft.open_sizes, pinned=draft.pinned)
    unified = unify(sides, rename, Passage(drop, _read_before(drafts.transforms)), complete=not problems)
    unseen = [role for role in drafts.by_role() if role.startswith("source:") and role not in sides]
    renames = [Bridge(f"{role}-task", "rename", f"{old} → {new}", "task", new, old, new) for role in unseen for new, old in rename.items()]
    drops = [dropped(role, name) for role in unseen for name in drop]
    attention = _attention(sides)
    filled = {}
    for role, draft in drafts.by_role().items():
        try:
            filled[role] = draft.filled({dim: size for (owner, dim), size in unified.values.items() if owner == role}, attention)
        except UserError as error:
            problems.append(Problem(str(error), draft.path))
            filled[role] = draft
    return Joined(
        drafts=_replace(drafts, filled),
        bridges=(*unified.bridges, *renames, *drops),
        problems=(*problems, *unified.problems, *_made_too_late(drafts.transforms, own, unified.bridges)),
        sizes=unified.values,
        optional=unified.optional,
        reads=unified.reads,
    )


def _attention(sides: Mapping[str, Side]) -> str | None:
    """The attention mode for options that follow the task; None if the rack does not offer it, which unification reports."""
    task, rack = (sides[role].spec if role in sides else None for role in ("task", "rack"))
    wanted = task.attention if isinstance(task, TaskSpec) else None
    offered = rack.attention if isinstance(rack, RackSpec) else ()
    return wanted if not offered or wanted in offered else None


def _read_before(transforms: tuple[Draft, ...]) -> frozenset[str] | None:
    """The fields that transforms read; None if a transform from code does not say, or one has a mistake."""
    mistakes: list[Problem] = []  # `_transformed` reports them
    specs = [(draft, _spec(draft, mistakes)) for draft in transforms]
    if mistakes or any(draft.registered is None and spec is None for draft, spec in specs):
        return None
    return frozenset(name for _, spec in specs if isinstance(spec, TransformSpec) for name in spec.inputs)


def _transformed(
    spec: BatchSpec, source: Draft, transforms: tuple[Draft, ...], rename: Mapping[str, str], problems: list[Problem]
) -> BatchSpec:
    """The fields of a source after its transforms, which see a renamed field under both of its names."""
    renamed = {old: new for new, old in rename.items() if old in spec.fields}
    for transform in transforms:
        change = _spec(transform, problems)
        if isinstance(change, TransformSpec):
            for name in change.inputs.keys() & renamed.keys() if not change.outputs else ():  # without outputs it changes its inputs
                message = f"{transform.label} changes '{name}', but the task reads it as '{renamed[name]}', by data.rename"
                problems.append(Problem(f"{message}: name '{renamed[name]}' in the transform", transform.path))
            for name in change.inputs.keys() - spec.fields.keys() - set(renamed.values()):
                offered = ", ".join(spec.fields) or "nothing"
                message = f"{transform.label} needs the field '{name}', but {source.label} and the transforms before it give {offered}"
                problems.append(Problem(message, transform.path))
            spec = BatchSpec(fields={**spec.fields, **_outputs_beside(change, transform, rename, spec, problems)})
    return spec


def _outputs_beside(
    change: TransformSpec, transform: Draft, rename: Mapping[str, str], spec: BatchSpec, problems: list[Problem]
) -> dict[str, TensorSpec]:
    """What a transform makes, by the names of the source: a renamed field that it reads and changes is still that of the source."""
    outputs = {}
    for name, tensor in change.outputs.items():
        old = rename.get(name)
        if old is None or old not in spec.fields or old == name:
            outputs[name] = tensor
        elif name in change.inputs:
            outputs[old] = tensor
        else:
            fix = f"leave the rename out, or read '{name}' and change it"
            problems.append(Problem(f"{transform.label} makes '{name}', which data.rename makes of '{old}': {fix}", transform.path))
    return outputs


def _made_too_late(transforms: tuple[Draft, ...], sources: Mapping[str, BatchSpec], bridges: Iterable[Bridge]) -> Iterator[Problem]:
    """Fields that a transform makes and a bridge would rename or cast: bridges stand before the transforms, and would do nothing."""
    makers = {name: draft for draft in transforms for name in _outputs(draft)}
    for bridge in bridges:
        source = bridge.junction.removesuffix("-task")
        if source not in sources:
            continue
        if bridge.kind == "rename" and (maker := makers.get(bridge.before)) is not None:
            fix = f"let the transform make '{bridge.after}' itself"
            message = f"{maker.label} makes '{bridge.before}' after fields have got the names that the task reads: {fix}"
            yield Problem(message, maker.path)
        elif bridge.kind == "cast" and bridge.field not in sources[source].fields and (maker := makers.get(bridge.field)) is not None:
            fix = f"let the transform make it {bridge.after}"
            message = f"{maker.label} makes '{bridge.field}' as {bridge.before} after fields have got the dtypes that the task takes: {fix}"
            yield Problem(message, maker.path)


def _outputs(transform: Draft) -> Iterable[str]:
    spec = _spec(transform, [])  # `_transformed` reports its mistakes
    return spec.outputs if isinstance(spec, TransformSpec) else ()


def _spec(draft: Draft, problems: list[Problem]) -> Spec | None:
    try:
        return draft.spec
    except UserError as error:
        problems.append(Problem(str(error), draft.path))
        return None


def _replace(drafts: PhaseDrafts, filled: Mapping[str, Draft]) -> PhaseDrafts:
    return attrs.evolve(
        drafts,
        task=filled["task"],
        embedding=filled["embedding"],
        rack=filled["rack"],
        head=filled["head"],
        sources={name: filled[f"source:{name}"] for name in drafts.sources},
        adapters={
            junction: tuple(filled[f"adapter:{junction}:{i}"] for i in range(len(group))) for junction, group in drafts.adapters.items()
        },
    )
