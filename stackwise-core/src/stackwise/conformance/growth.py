"""Growth operators: maps from new blocks to old ones that are complete, pure, and keep the function where they say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from stackwise.conformance import bench, partners
from stackwise.conformance.building import artifact_of
from stackwise.conformance.subject import LENGTH, ROWS, SEED, NotApplicable, Subject, must
from stackwise.contracts.growth import BlockOrigin, GrowthRequest
from stackwise.contracts.specs import RackSpec

OUTPUTS = ("out.weight",)
OLD: Mapping[str, int] = {"base": 2}
CHANGES: tuple[Mapping[str, int], ...] = ({"base": 4}, {"base": 3}, {"base": 2, "top": 1}, {"base": 2})
"""Depths to grow to; an operator makes at least one of them."""

Map = Mapping[tuple[str, int], BlockOrigin]


def check_map_is_complete(subject: Subject) -> None:
    """The map has an origin for every block of the new rack and for no other, and every source is a block of the old one.

    Usual cause: a loop over the old stacks; an index past the end.
    """
    for new, origins in _maps(subject).items():
        stacks = dict(new)
        new_blocks = {(stack, i) for stack, blocks in stacks.items() for i in range(blocks)}
        must(set(origins) == new_blocks, f"for {_text(stacks)} the map differs from its blocks in {sorted(set(origins) ^ new_blocks)}")
        for block, origin in origins.items():
            must(isinstance(origin, BlockOrigin), f"the origin of {block} is a {type(origin).__name__}, not a BlockOrigin")
            source = origin.source
            known = source is None or (source[0] in OLD and 0 <= source[1] < OLD[source[0]])
            must(known, f"block {block} comes from {source}, and the old rack has {_text(OLD)}")


def check_map_is_pure(subject: Subject) -> None:
    """The same request gets the same map, from the same operator and from another one.

    Usual cause: random numbers in the map; a counter that survives the call.
    """
    first = artifact_of(subject)
    for new, origins in _maps(subject).items():
        for operator in (first, first, artifact_of(subject)):
            again = operator.map_blocks(_request(dict(new)))
            must(dict(again) == dict(origins), f"for {_text(dict(new))} the map is another the next time it is asked for")


def check_refusals(subject: Subject) -> None:
    """For a change that it cannot make, the operator raises a ValueError whose sentence says which it can make, and no other exception.

    Usual cause: a division by the old depth, or a look-up of a stack that is new.
    """
    operator = artifact_of(subject)
    for old, new in (({"base": 2}, {"base": 1}), ({"base": 3}, {"base": 5}), ({"base": 2}, {"other": 2}), ({}, {"base": 2})):
        try:
            operator.map_blocks(GrowthRequest(old_stacks=old, new_stacks=new, residual_outputs=OUTPUTS))
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
    for new, origins in _maps(subject).items():
        before, after = _rack(OLD, seed=1), _rack(dict(new), seed=2)
        gate = getattr(subject.options(), "gate", 0.0)
        for (stack, i), origin in origins.items():
            block = after.get_submodule(f"stacks.{stack}.{i}")
            if origin.source is not None:
                block.load_state_dict(before.get_submodule("stacks.{}.{}".format(*origin.source)).state_dict())
            _scale(block, 0.0 if origin.zero_residual else float(gate) if origin.gated else 1.0)
        with torch.no_grad():
            change = float((before(hidden) - after(hidden)).abs().max())
        must(change <= 1e-6, f"{_text(OLD)} → {_text(dict(new))} is declared to preserve the function and changes it by up to {change:.3g}")


def grown_stacks(subject: Subject) -> Mapping[str, int]:
    """The new stacks of the first change that the operator makes."""
    return dict(next(iter(_maps(subject))))


def _maps(subject: Subject) -> dict[tuple[tuple[str, int], ...], Map]:
    """New stacks → map, for every change that the operator makes."""
    operator = artifact_of(subject)
    maps: dict[tuple[tuple[str, int], ...], Map] = {}
    refusals = []
    for new in CHANGES:
        try:
            maps[tuple(new.items())] = operator.map_blocks(_request(new))
        except ValueError as error:
            refusals.append(str(error))
    must(bool(maps), f"it makes none of {', '.join(map(_text, CHANGES))} out of {_text(OLD)}: {'; '.join(refusals)}")
    return maps


def _request(new: Mapping[str, int]) -> GrowthRequest:
    return GrowthRequest(old_stacks=OLD, new_stacks=new, residual_outputs=OUTPUTS)


def _rack(stacks: Mapping[str, int], seed: int) -> nn.Module:
    with bench.seeded(seed):
        return partners.NeutralRack(RackSpec(input=bench.HIDDEN, output=bench.HIDDEN), stacks)


def _scale(block: Any, factor: float) -> None:
    with torch.no_grad():
        block.out.weight.mul_(factor)
        block.out.bias.mul_(factor)


def _text(stacks: Mapping[str, int]) -> str:
    return "{" + ", ".join(f"{name}: {blocks}" for name, blocks in stacks.items()) + "}"
