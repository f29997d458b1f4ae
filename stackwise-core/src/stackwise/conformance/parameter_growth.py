"""Growth operators that map tensor by tensor: a change that they make is looked for among the models of their own provider, and made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any

import attrs
import torch
from attrs import frozen

from stackwise.conformance import bench, partners
from stackwise.conformance.building import artifact_of
from stackwise.conformance.subject import LENGTH, ROWS, SEED, NotApplicable, Subject, must
from stackwise.contracts.growth import Combine, CopyOf, Fresh, GrowthRequest
from stackwise.contracts.specs import EmbeddingSpec, TensorSpec
from stackwise.errors import UserError
from stackwise.planes.carry import carry
from stackwise.planes.model.module import Model, rack_spec

ROLES = ("embedding", "rack", "head")
EXACT = 1e-5
"""Change of an output, as a share of its size, that rounding explains."""
LARGE = 64
"""What a whole number that the example leaves out is set to."""

Shapes = Mapping[str, tuple[int, ...]]
Changes = Mapping[str, Mapping[str, int]]
"""Role → option → value."""


@frozen(kw_only=True)
class Change:
    """A model of the operator's own provider before and after a change that the operator makes, and its map."""

    old: Model
    new: Model
    request: GrowthRequest
    origins: Mapping[str, Any]
    fields: Mapping[str, TensorSpec]
    """What the old model reads."""


def check_parameter_map(subject: Subject) -> None:
    """A map by tensor leads from the old shapes to the new ones: names that are there, positions inside, a factor each. Nothing
    that was learnt is left out of a tensor that grows.

    Usual cause: an index of the old size, a position past the end, a factor for every old position instead of every new one; every
    expert a copy of the first.
    """
    change = _change(subject)
    before, after = _shapes(change.old), _shapes(change.new)
    for name, origin in change.origins.items():
        must(name in after, f"it maps '{name}', and the new model has no such parameter")
        kinds = CopyOf | Combine | Fresh
        must(isinstance(origin, kinds), f"the origin of {name} is a {type(origin).__name__}: a CopyOf, a Combine or a Fresh is expected")
        for term in (origin,) if isinstance(origin, CopyOf) else [term for term, _ in getattr(origin, "terms", ())]:
            must(term.source in before, f"{name} comes from '{term.source}', and the old model has no such parameter")
            _check_dimensions(name, term, before[term.source], after[name], alone=term is origin)
    again = artifact_of(subject).map_parameters(before, after, change.request)
    must(dict(again) == dict(change.origins), "the map is another the next time it is asked for")


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
    factors, so that moments which are carried over by them are true.

    Usual cause: `gradient` left out where copies share one gradient, or equal to `factors` where it is their inverse.
    """
    change = _preserving_change(subject)
    batch = _batch(change)
    carry(change.old, torch.optim.SGD(change.old.parameters(), lr=0.1), change.new, artifact_of(subject))
    if _largest_change(change, batch)[1] > EXACT:
        raise NotApplicable("it changes the function, which check_parameter_map_preserves_function reports")
    before, after = (_gradients(model, batch) for model in (change.old, change.new))
    for name, origin in change.origins.items():
        if not isinstance(origin, CopyOf) or origin.project or name not in after or origin.source not in before:
            continue
        expected, mask = _map_gradient(before[origin.source], origin, after[name].shape)
        off = float(((after[name] - expected) * mask).abs().max()) / max(float(expected.abs().max()), 1e-6)
        must(off <= 1e-3, f"the gradient of {name} differs from what the map says of it by {off:.2g} of its size")


def _preserving_change(subject: Subject) -> Change:
    """A change that the operator makes and says to preserve the function."""
    change = _change(subject)
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


def _gradients(model: Model, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gradients of Σ output · (fixed random numbers)."""
    model.eval().zero_grad()
    generator = torch.Generator().manual_seed(SEED)
    outputs = model(batch)
    read = [(outputs[name] * torch.randn(outputs[name].shape, generator=generator)).sum() for name in outputs]
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


def _change(subject: Subject) -> Change:
    """The first change of a model of the same provider that the operator makes tensor by tensor.

    Raises:
        NotApplicable: it maps blocks alone, or makes none of those that are tried.
    """
    operator: Any = artifact_of(subject)
    if not hasattr(operator, "map_parameters"):
        raise NotApplicable("it maps whole blocks and has no map_parameters")
    refusals: list[str] = []
    for parts in _models(subject):
        try:
            old, options = _model(parts, {}), _options(parts, {})
        except AttributeError as error:  # the head is tied to a parameter that this embedding has not
            refusals.append(str(error))
            continue
        for changes in _changes(parts):
            try:
                new, after = _model(parts, changes), _options(parts, changes)
                request = _request(old, options, after)
                operator.map_blocks(request)
                origins = operator.map_parameters(_shapes(old), _shapes(new), request)
            except (UserError, ValueError) as error:
                refusals.append(str(error))
                continue
            if origins:
                fields = bench.with_sizes(parts["embedding"].spec(), parts["embedding"].sizes())
                assert isinstance(fields, EmbeddingSpec), "check_spec_is_cold looks at the kind of spec"
                return Change(old=old, new=new, request=request, origins=origins, fields=fields.inputs)
    raise NotApplicable(f"it makes no change of a model of its own provider that was tried: {refusals[-1] if refusals else 'none was'}")


def _models(subject: Subject) -> Iterator[dict[str, Subject]]:
    """Embedding, rack and head of the operator's provider, as their examples have them, that follow on one another."""
    near = [attrs.evolve(subject, registered=each) for each in subject.registry if each.provider == subject.registered.provider]
    for parts in product(*([each for each in near if each.kind == role] for role in ROLES)):
        by_role = dict(zip(ROLES, parts, strict=True))
        specs: list[Any] = [bench.with_sizes(each.spec(), each.sizes()) for each in parts]
        embedding, rack, head = specs
        if embedding.output.dims == rack.input.dims and rack.output.dims == head.input.dims and not rack.needs:
            yield by_role


def _changes(parts: Mapping[str, Subject]) -> Iterator[Changes]:
    """One whole number twice as large, in every part that has it as a dimension; then two of them at once."""
    single: dict[str, dict[str, dict[str, int]]] = {}
    for role, part in parts.items():
        options = part.options()
        for attribute in attrs.fields(type(options)):
            value = getattr(options, attribute.name)
            left_out = value is None and "int" in str(attribute.type)
            if type(value) is int or left_out:
                shared = bool(attribute.metadata.get("dimension"))
                key = attribute.name if shared else f"{role}.{attribute.name}"
                single.setdefault(key, {}).setdefault(role, {})[attribute.name] = LARGE if left_out else 2 * value
    yield from single.values()
    for one, other in combinations(single.values(), 2):
        yield {role: {**one.get(role, {}), **other.get(role, {})} for role in ROLES}


def _options(parts: Mapping[str, Subject], changes: Changes) -> dict[str, Any]:
    return {role: attrs.evolve(part.options(), **changes.get(role, {})) for role, part in parts.items()}


def _model(parts: Mapping[str, Subject], changes: Changes) -> Model:
    options = _options(parts, changes)
    embedding, rack, head = (bench.build_module(parts[role], options=options[role]) for role in ROLES)
    model = Model(embedding, rack, head)
    with bench.seeded(SEED), torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 8)
    return model


def _request(old: Model, before: Mapping[str, Any], after: Mapping[str, Any]) -> GrowthRequest:
    spec = rack_spec(old.rack)
    plain = [{role: attrs.asdict(options, recurse=False) for role, options in each.items()} for each in (before, after)]
    stacks = dict(spec.stacks)
    outputs = spec.residual_outputs
    return GrowthRequest(old_stacks=stacks, new_stacks=stacks, residual_outputs=outputs, old_options=plain[0], new_options=plain[1])


def _shapes(model: Model) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _check_dimensions(name: str, origin: CopyOf, before: tuple[int, ...], after: tuple[int, ...], *, alone: bool) -> None:
    """Of one map; what a term of a combination leaves out, another may take."""
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
