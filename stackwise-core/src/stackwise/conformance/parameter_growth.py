"""Growth operators that map tensor by tensor: a change that they make is looked for among the models of their own provider, and made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any, get_args, get_type_hints

import attrs
import torch
from attrs import frozen
from torch import nn

from stackwise.conformance import bench, partners
from stackwise.conformance.building import artifact_of
from stackwise.conformance.subject import LENGTH, ROWS, SEED, NotApplicable, Subject, must
from stackwise.contracts.growth import Combine, CopyOf, Fresh, GrowthRequest
from stackwise.contracts.options import config_key
from stackwise.contracts.specs import EmbeddingSpec, TensorSpec
from stackwise.errors import UserError
from stackwise.planes.carry import carry
from stackwise.planes.model.module import Model, rack_spec

ROLES = ("embedding", "rack", "head")
EXACT = 1e-5
"""Change of an output, as a share of its size, that rounding explains."""
LARGE = 64
"""What a whole number that the example leaves out is set to."""

FEW = 2
"""What a whole number that a group of options asks for is set to, or the lowest that it may be."""

Shapes = Mapping[str, tuple[int, ...]]
Nodes = Mapping[str, Mapping[str, Any]]
"""Role → key → value, as a config writes them."""


@frozen(kw_only=True)
class Change:
    """A model of the operator's own provider before and after a change that the operator makes, and its map."""

    old: Model
    new: Model
    request: GrowthRequest
    origins: Mapping[str, Any]
    fields: Mapping[str, TensorSpec]
    """What the old model reads."""
    parts: tuple[Mapping[str, Subject], Mapping[str, Subject]]
    """Role → the part of it, before and after."""
    grown: Nodes
    """What the examples of the parts after it say otherwise than those before."""


def check_parameter_map(subject: Subject) -> None:
    """A map by tensor leads from the old shapes to the new ones: names that are there, positions inside, a factor each. Nothing
    that was learnt is left out of a tensor that grows.

    Usual cause: an index of the old size, a position past the end, a factor for every old position instead of every new one; every
    expert a copy of the first.
    """
    change = change_of(subject)
    before, after = _shapes(change.old), _shapes(change.new)
    for name, origin in change.origins.items():
        must(name in after, f"it maps '{name}', and the new model has no such parameter")
        kinds = CopyOf | Combine | Fresh
        must(isinstance(origin, kinds), f"the origin of {name} is a {type(origin).__name__}: a CopyOf, a Combine or a Fresh is expected")
        for term in (origin,) if isinstance(origin, CopyOf) else [term for term, _ in getattr(origin, "terms", ())]:
            must(term.source in before, f"{name} comes from '{term.source}', and the old model has no such parameter")
            _check_dimensions(name, term, before[term.source], after[name], alone=term is origin)
    again = artifact_of(subject).map_parameters(before, after, change.request)
    must(dict(again) == dict(change.origins), "a second call gives another map")


def check_parameter_map_preserves_function(subject: Subject) -> None:
    """An operator by tensor that declares `preserves_function` changes the outputs of a model of its own provider by rounding only.

    Usual cause: copies that are read without sharing out what they add; a tied head that reads with the matrix that was widened.
    """
    change = _preserving_change(subject)
    batch = _batch(change)
    carry(change.old, torch.optim.SGD(change.old.parameters(), lr=0.1), change.new, artifact_of(subject))
    name, off = _largest_change(change, batch)
    must(off <= EXACT, f"it is declared to preserve the function and changes '{name}' by up to {off:.3g}")


def check_gradients_follow_the_map(subject: Subject) -> None:
    """Where an operator by tensor preserves the function, gradients of what it copies are the old ones by its index and `gradient`
    factors, so that moments which are carried over by them are true. What the new model draws by itself, such as a router, is zero
    meanwhile, as no map can know it.

    Usual cause: `gradient` left out where copies share one gradient, or equal to `factors` where it is their inverse.
    """
    change = _preserving_change(subject)
    batch = _batch(change)
    with torch.no_grad():
        for name, parameter in change.new.named_parameters():
            if name not in change.origins and name not in _shapes(change.old):
                parameter.zero_()
    carry(change.old, torch.optim.SGD(change.old.parameters(), lr=0.1), change.new, artifact_of(subject))
    if _largest_change(change, batch)[1] > EXACT:
        raise NotApplicable("it changes the function, which check_parameter_map_preserves_function reports")
    names = tuple(change.old(batch))
    before, after = (_gradients(model, batch, names) for model in (change.old, change.new))
    for name, origin in change.origins.items():
        if not isinstance(origin, CopyOf) or origin.project or name not in after or origin.source not in before:
            continue
        expected, mask = _map_gradient(before[origin.source], origin, after[name].shape)
        off = float(((after[name] - expected) * mask).abs().max()) / max(float(expected.abs().max()), 1e-6)
        must(off <= 1e-3, f"the gradient of {name} differs from what the map says of it by {off:.2g} of its size")


def _preserving_change(subject: Subject) -> Change:
    """A change that the operator makes and says to preserve the function."""
    change = change_of(subject)
    if not artifact_of(subject).preserves_function:
        raise NotApplicable("it declares that it changes the function")
    return change


def _batch(change: Change) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    return {name: partners.draw(field, ROWS, LENGTH, generator) for name, field in change.fields.items()}


def _largest_change(change: Change, batch: Mapping[str, torch.Tensor]) -> tuple[str, float]:
    """The output that changes most, and by how much of its size, at least of 1."""
    with torch.no_grad():
        before, after = (dict(model.eval()(batch)) for model in (change.old, change.new))
    off = {name: float((after[name] - value).abs().max()) / max(1.0, float(value.abs().max())) for name, value in before.items()}
    return max(off.items(), key=lambda each: each[1])


def _gradients(model: Model, batch: Mapping[str, torch.Tensor], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Gradients of Σ output · (fixed random numbers) over the outputs of these names."""
    model.eval().zero_grad()
    generator = torch.Generator().manual_seed(SEED)
    outputs = model(batch)
    read = [(outputs[name] * torch.randn(outputs[name].shape, generator=generator)).sum() for name in names]
    torch.autograd.backward(read)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _map_gradient(gradient: torch.Tensor, origin: CopyOf, shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
    """What the map says of the new gradient, and where it says something."""
    mask = torch.ones(shape)
    for dim, index in origin.index.items():
        gradient = gradient.index_select(dim, torch.tensor([max(i, 0) for i in index]))
        mask = mask * _reshape([float(i >= 0) for i in index], dim, len(shape))
    for dim, factors in origin.gradient.items():
        gradient = gradient * _reshape(factors, dim, len(shape))
    return gradient * mask, mask


def _reshape(values: Sequence[float], dim: int, dims: int) -> torch.Tensor:
    return torch.tensor(values).reshape([-1 if d == dim else 1 for d in range(dims)])


@frozen
class _Found:
    """A change that an operator makes, before its models are built."""

    pair: tuple[Mapping[str, Subject], Mapping[str, Subject]]
    request: GrowthRequest
    origins: Mapping[str, Any]
    grown: Nodes


def change_of(subject: Subject) -> Change:
    """The first change of a model of the same provider that the operator makes tensor by tensor; its models are new at each call.

    Raises:
        NotApplicable: it maps blocks alone, or makes none of those that are tried.
    """
    key = f"change by {subject.id} {subject.example}"
    if key not in subject.searched:
        subject.searched[key] = _search(subject)
    found: _Found = subject.searched[key]
    old, new = found.pair
    fields = bench.with_sizes(old["embedding"].spec(), old["embedding"].sizes())
    assert isinstance(fields, EmbeddingSpec), "check_spec_is_cold looks at the kind of spec"
    models = {"old": _model(old), "new": _model(new)}
    return Change(**models, request=found.request, origins=found.origins, fields=fields.inputs, parts=found.pair, grown=found.grown)


def _search(subject: Subject) -> _Found:
    operator: Any = artifact_of(subject)
    if not hasattr(operator, "map_parameters"):
        raise NotApplicable("it maps whole blocks and has no map_parameters")
    refusals: list[str] = []
    for parts in _models(subject):
        for before, after in _changes(parts):
            pair = _with(parts, before), _with(parts, {role: {**before.get(role, {}), **after.get(role, {})} for role in ROLES})
            try:
                old, new = ({role: _sketch(part) for role, part in each.items()} for each in pair)
                request = _request(old, new)
                operator.map_blocks(request)
                origins = operator.map_parameters(_names(old), _names(new), request)
            except (UserError, ValueError) as error:
                refusals.append(str(error))
                continue
            if origins:
                return _Found(pair, request, origins, after)
    raise NotApplicable(f"it makes no change of a model of its own provider that was tried: {refusals[-1] if refusals else 'none was'}")


@frozen
class Sketch:
    """What an operator is told of a part."""

    shapes: Shapes
    """Of its parameters, by name inside it."""
    options: Mapping[str, Any]
    spec: Any


def _sketch(part: Subject) -> Sketch:
    """The sketch of a part; equal ones are made once.

    Raises:
        UserError: its options refuse one another.
    """
    key = f"sketch of {part.id} {part.example}"
    if key not in part.searched:
        if problems := part.problems(part.example):
            raise UserError("; ".join(map(str, problems)))
        options = part.options()
        module: Any = bench.build_module(part, options=options)
        spec = rack_spec(module) if part.kind == "rack" else module.get_spec()
        part.searched[key] = Sketch(_shapes(module), attrs.asdict(options, recurse=False), spec)
    sketch: Sketch = part.searched[key]
    return sketch


def _names(parts: Mapping[str, Sketch]) -> dict[str, tuple[int, ...]]:
    """Canonical name → shape of each parameter of a model, a tied one under its first name.

    Raises:
        UserError: a head is tied to what this embedding has not.
    """
    ties = {f"head.{own}": other for own, other in parts["head"].spec.ties.items()}
    every = {f"{role}.{name}": shape for role, part in parts.items() for name, shape in part.shapes.items()}
    names = {name: shape for name, shape in every.items() if name not in ties}
    for other in ties.values():
        if other not in names:
            raise UserError(f"a head is tied to {other}, which is not there")
    return names


def _models(subject: Subject) -> Iterator[dict[str, Subject]]:
    """Embedding, rack and head of the operator's provider, as their examples have them, that follow on one another."""
    near = [attrs.evolve(subject, registered=each) for each in subject.registry if each.provider == subject.registered.provider]
    specs: dict[str, Any] = {each.id: bench.with_sizes(each.spec(), each.sizes()) for each in near if each.kind in ROLES}
    for parts in product(*([each for each in near if each.kind == role] for role in ROLES)):
        embedding, rack, head = (specs[each.id] for each in parts)
        if embedding.output.dims == rack.input.dims and rack.output.dims == head.input.dims and not rack.needs:
            yield dict(zip(ROLES, parts, strict=True))


def _changes(parts: Mapping[str, Subject]) -> Iterator[tuple[Nodes, Nodes]]:
    """What the examples say otherwise before, and what they say otherwise again after.

    One whole number twice as large, in every part that has it as a dimension; a group of options that the example leaves out, given; such
    a group before, and a whole number in it twice as large after; at last two whole numbers at once.
    """
    single: dict[str, dict[str, dict[str, int]]] = {}
    for role, part in parts.items():
        options = part.options()
        for attribute in attrs.fields(type(options)):
            value = getattr(options, attribute.name)
            left_out = value is None and "int" in str(attribute.type)
            if type(value) is int or left_out:
                shared = bool(attribute.metadata.get("dimension"))
                key = attribute.name if shared else f"{role}.{attribute.name}"
                single.setdefault(key, {}).setdefault(role, {})[config_key(attribute)] = LARGE if left_out else 2 * value
    yield from (({}, change) for change in single.values())
    for role, part in parts.items():
        for key, group in _groups_left_out(part):
            yield {}, {role: {key: group}}
            for inner, value in group.items():
                if type(value) is int:
                    yield {role: {key: group}}, {role: {key: {**group, inner: 2 * value}}}
    for one, other in combinations(single.values(), 2):
        yield {}, {role: {**one.get(role, {}), **other.get(role, {})} for role in ROLES}


def _groups_left_out(part: Subject) -> Iterator[tuple[str, dict[str, Any]]]:
    """Key and a small value of each option that takes a group of options, and is None in the example."""
    options = part.options()
    types = get_type_hints(type(options))
    for attribute in attrs.fields(type(options)):
        if getattr(options, attribute.name) is not None:
            continue
        for group in (arm for arm in get_args(types[attribute.name]) if isinstance(arm, type) and attrs.has(arm)):
            asked = [inner for inner in attrs.fields(group) if inner.default is attrs.NOTHING]
            if all(get_type_hints(group)[inner.name] is int for inner in asked):
                yield config_key(attribute), {config_key(inner): max(FEW, int(inner.metadata.get("minimum") or 0)) for inner in asked}


def _with(parts: Mapping[str, Subject], nodes: Nodes) -> dict[str, Subject]:
    """The parts, whose examples say these otherwise."""
    made = {}
    for role, part in parts.items():
        component = attrs.evolve(part.registered.component, example={**part.example, **nodes.get(role, {})})
        made[role] = attrs.evolve(part, registered=attrs.evolve(part.registered, component=component))
    return made


def _model(parts: Mapping[str, Subject]) -> Model:
    embedding, rack, head = (bench.build_module(parts[role], options=parts[role].options()) for role in ROLES)
    model = Model(embedding, rack, head)
    with bench.seeded(SEED), torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 8)
    return model


def _request(before: Mapping[str, Sketch], after: Mapping[str, Sketch]) -> GrowthRequest:
    spec = before["rack"].spec
    plain = [{role: part.options for role, part in parts.items()} for parts in (before, after)]
    stacks = dict(spec.stacks)
    outputs = spec.residual_outputs
    return GrowthRequest(old_stacks=stacks, new_stacks=stacks, residual_outputs=outputs, old_options=plain[0], new_options=plain[1])


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _check_dimensions(name: str, origin: CopyOf, before: tuple[int, ...], after: tuple[int, ...], *, alone: bool) -> None:
    """Check the dimensions of one map; what a term of a combination leaves out, another may take."""
    new = {dim: len(positions) for dim, positions in (*origin.project.items(), *origin.index.items())}
    sizes = tuple(new.get(dim, size) for dim, size in enumerate(before))
    must(sizes == after, f"the map of {name} leads from {before} to {sizes}, and the parameter has {after}")
    for dim, index in origin.index.items():
        must(
            all(-1 <= i < before[dim] for i in index), f"{name}: dimension {dim} has {before[dim]} old positions, and {max(index)} is named"
        )
        left_out = set(range(before[dim])) - set(index)
        sentence = (
            f"{name}: dimension {dim} grows from {before[dim]} to {after[dim]}, and old position {min(left_out, default=0)} goes nowhere"
        )
        must(not left_out or after[dim] < before[dim] or not alone, sentence)
    for dim, factors in (*origin.factors.items(), *origin.gradient.items()):
        must(len(factors) == after[dim], f"{name}: dimension {dim} has {after[dim]} positions, and {len(factors)} factors are given")
