"""Growth operators: maps from new blocks to old ones that are complete, pure, and keep the function where they say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import nn

from stackwise.conformance import bench, partners
from stackwise.conformance.building import artifact_of
from stackwise.conformance.subject import LENGTH, ROWS, SEED, NotApplicable, Subject, must
from stackwise.contracts.growth import BlockOrigin, GrowthRequest
from stackwise.contracts.options import Stack
from stackwise.contracts.specs import RackSpec

OUTPUTS = ("out.weight",)
OLD: Mapping[str, int] = {"base": 2}
CHANGES: tuple[Mapping[str, int], ...] = ({"base": 4}, {"base": 3}, {"base": 2, "top": 1}, {"base": 2})
"""Depths to grow to; an operator makes at least one of them."""

DEEP: tuple[tuple[Mapping[str, int], Mapping[str, int]], ...] = (
    ({"base": 6}, {"base": 12}),
    ({"base": 6}, {"base": 7}),
    ({"base": 5, "top": 8}, {"base": 10, "top": 16}),
    ({"base": 5, "top": 8}, {"base": 7, "top": 8}),
)
"""Changes of deeper racks, of which an operator need make none; those that it makes are looked at as well."""

Map = Mapping[tuple[str, int], BlockOrigin]


@frozen(kw_only=True)
class Change:
    """One change of depth and the operator's map for it."""

    old: Mapping[str, int]
    new: Mapping[str, int]
    origins: Map

    def __str__(self) -> str:
        return f"{_text(self.old)} → {_text(self.new)}"


def check_map_is_complete(subject: Subject) -> None:
    """The map has an origin for every block of the new rack and for no other, and every source is a block of the old one.

    Usual cause: a loop over the old stacks; an index past the end.
    """
    for change in _changes(subject):
        new_blocks = {(stack, i) for stack, blocks in change.new.items() for i in range(blocks)}
        must(
            set(change.origins) == new_blocks, f"for {change} the map differs from its blocks in {sorted(set(change.origins) ^ new_blocks)}"
        )
        for block, origin in change.origins.items():
            must(isinstance(origin, BlockOrigin), f"the origin of {block} is a {type(origin).__name__}, not a BlockOrigin")
            source = origin.source
            known = source is None or (source[0] in change.old and 0 <= source[1] < change.old[source[0]])
            must(known, f"for {change} block {block} comes from {source}, which is not a block of the old rack")


def check_map_is_pure(subject: Subject) -> None:
    """The same request gets the same map, from the same operator and from another one.

    Usual cause: random numbers in the map; a counter that survives the call.
    """
    first = artifact_of(subject)
    for change in _changes(subject):
        for operator in (first, first, artifact_of(subject)):
            again = operator.map_blocks(_request(subject, change.old, change.new))
            must(dict(again) == dict(change.origins), f"for {change} a second call gives another map")


def check_refusals(subject: Subject) -> None:
    """For a change that it cannot make, the operator raises a ValueError whose sentence says which it can make, and no other exception.

    Usual cause: a division by the old depth, or a look-up of a stack that is new.
    """
    operator = artifact_of(subject)
    for old, new in (({"base": 2}, {"base": 1}), ({"base": 3}, {"base": 5}), ({"base": 2}, {"other": 2}), ({}, {"base": 2})):
        try:
            operator.map_blocks(_request(subject, old, new))
        except ValueError as error:
            must(bool(str(error).strip()), f"{_text(old)} → {_text(new)} is refused without a sentence")
        except Exception as error:
            sentence = f"{_text(old)} → {_text(new)} raised {type(error).__name__}: {error}; a change it cannot make is a ValueError"
            must(False, sentence)


def check_function_preserved(subject: Subject) -> None:
    """An operator that declares `preserves_function` changes the outputs of a rack by rounding only.

    Usual cause: a copied block where a new one has to start as the identity (`zero_residual=True`).
    """
    operator = artifact_of(subject)
    must(isinstance(operator.preserves_function, bool), f"preserves_function is {operator.preserves_function!r}: true or false")
    if not operator.preserves_function:
        raise NotApplicable("it declares that it changes the function")
    hidden = torch.randn(ROWS, LENGTH, 4, generator=torch.Generator().manual_seed(SEED))
    for each in _changes(subject):
        before, after = _rack(each.old, seed=1), _rack(each.new, seed=2)
        gate = getattr(subject.options(), "gate", 0.0)
        for (stack, i), origin in each.origins.items():
            block = after.get_submodule(f"stacks.{stack}.{i}")
            if origin.source is not None:
                block.load_state_dict(before.get_submodule("stacks.{}.{}".format(*origin.source)).state_dict())
            _scale(block, 0.0 if origin.zero_residual else float(gate) if origin.gated else 1.0)
        with torch.no_grad():
            change = float((before(hidden) - after(hidden)).abs().max())
        must(
            change <= 1e-6 * (1 + sum(each.new.values())),
            f"{each} is declared to preserve the function and changes it by up to {change:.3g}",
        )


def grown_stacks(subject: Subject) -> Mapping[str, int]:
    """The new stacks of the first change that the operator makes."""
    return _changes(subject)[0].new


def _changes(subject: Subject) -> list[Change]:
    """Every change that the operator makes, and its map; those out of `OLD` come first, and there is one."""
    operator = artifact_of(subject)
    changes: list[Change] = []
    refusals = []
    for old, new in (*((OLD, new) for new in CHANGES), *DEEP):
        try:
            changes.append(Change(old=old, new=new, origins=operator.map_blocks(_request(subject, old, new))))
        except ValueError as error:
            refusals.append(str(error))
    made = bool(changes) and changes[0].old == OLD
    must(made, f"it makes none of {', '.join(map(_text, CHANGES))} out of {_text(OLD)}: {'; '.join(refusals)}")
    return changes


def _request(subject: Subject, old: Mapping[str, int], new: Mapping[str, int]) -> GrowthRequest:
    """With the options of a model of the operator's own provider where it offers one, else with those of a rack of the kit."""
    before, after = (options_with_stacks(subject, stacks) for stacks in (old, new))
    return GrowthRequest(old_stacks=old, new_stacks=new, residual_outputs=OUTPUTS, old_options=before, new_options=after)


def options_with_stacks(subject: Subject, stacks: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Role → options of a part of the operator's provider as its example has them, with these stacks."""
    listed = tuple(Stack(name, blocks) for name, blocks in stacks.items())
    parts: dict[str, dict[str, Any]] = {"embedding": {}, "rack": {"stacks": listed}, "head": {}}
    for registered in subject.registry:
        if registered.kind in parts and registered.provider == subject.registered.provider and len(parts[registered.kind]) < 2:
            options = attrs.evolve(subject, registered=registered).options()
            parts[registered.kind] = attrs.asdict(options, recurse=False)
            parts[registered.kind] |= {a.name: listed for a in attrs.fields(type(options)) if a.metadata.get("stacks")}
    return parts


def _rack(stacks: Mapping[str, int], seed: int) -> nn.Module:
    with bench.seeded(seed):
        return partners.NeutralRack(RackSpec(input=bench.HIDDEN, output=bench.HIDDEN), stacks)


def _scale(block: Any, factor: float) -> None:
    with torch.no_grad():
        block.out.weight.mul_(factor)
        block.out.bias.mul_(factor)


def _text(stacks: Mapping[str, int]) -> str:
    return "{" + ", ".join(f"{name}: {blocks}" for name, blocks in stacks.items()) + "}"
