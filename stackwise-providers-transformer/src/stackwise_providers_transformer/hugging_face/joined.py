"""Tensors of a model of the library from those of a folder that has them under other names or in pieces, as the matrices of experts.

Which piece belongs where is the library's own table; it is asked name by name, so that each piece is read when it is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from attrs import frozen

from stackwise_providers_transformer.hugging_face.shards import Shards

Place = tuple[int | slice, ...]


@frozen
class Piece:
    """A tensor of a folder, and the part of a parameter that it is: all of it with an empty place."""

    theirs: str
    place: Place = ()


Pieces = Mapping[str, Sequence[Piece]]
"""Name of a parameter → the tensors that it is made of."""


class Joined(Mapping[str, torch.Tensor]):
    """Parameters by name, made of the tensors of a folder when they are asked for.

    Args:
        shards: the folder's.
        pieces: of every parameter.
        shapes: of every parameter.
    """

    def __init__(self, shards: Shards, pieces: Pieces, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shards, self._pieces, self.shapes = shards, pieces, {name: shapes[name] for name in pieces}

    def copy_into(self, name: str, target: torch.Tensor) -> torch.dtype:
        """Write a parameter where it belongs, piece by piece; it is never made by itself."""
        dtypes = []
        for piece in self._pieces[name]:
            part = self._shards[piece.theirs]
            target[piece.place].copy_(part)
            dtypes.append(part.dtype)
        return reduce(torch.promote_types, dtypes)

    def __getitem__(self, name: str) -> torch.Tensor:
        if len(self._pieces[name]) == 1:
            return self._shards[self._pieces[name][0].theirs].view(self.shapes[name])
        parts = [self._shards[piece.theirs] for piece in self._pieces[name]]
        made = torch.empty(self.shapes[name], dtype=reduce(torch.promote_types, (part.dtype for part in parts)))
        for piece, part in zip(self._pieces[name], parts, strict=True):
            made[piece.place].copy_(part)
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)


class Renaming(Mapping[str, torch.Tensor]):
    """Tensors under other names.

    Args:
        tensors: by their old names; their `shapes` are asked where they have them.
        names: new → old.
        folder: that they are of.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], names: Mapping[str, str], folder: Path) -> None:
        self.folder, self._tensors, self._names = folder, tensors, names
        shapes = getattr(tensors, "shapes", None) or {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        self.shapes: dict[str, tuple[int, ...]] = {new: shapes[old] for new, old in names.items()}

    def copy_into(self, name: str, target: torch.Tensor) -> torch.dtype:
        """Write a tensor where it belongs, in the way of those below."""
        if (write := getattr(self._tensors, "copy_into", None)) is not None:
            dtype: torch.dtype = write(self._names[name], target)
            return dtype
        tensor = self[name]
        target.copy_(tensor)
        return tensor.dtype

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def joined(whole: Any, shards: Shards, shapes: Mapping[str, tuple[int, ...]]) -> Joined | None:
    """The parameters of a model of the library, of the tensors of a folder.

    Args:
        whole: the model, on the meta device.
        shards: the folder's.
        shapes: of its parameters, tied ones once, and of its persistent buffers.

    Returns:
        None where a tensor has no place, a place no tensor, or the library computes with tensors more than putting them together.
    """
    loading, tables = import_module("transformers.core_model_loading"), import_module("transformers.conversion_mapping")
    rules = tables.get_model_conversion_mapping(whole)
    converters = [rule for rule in rules if hasattr(rule, "operations")]
    renamings = [rule for rule in rules if not hasattr(rule, "operations")]
    own, rule_of = whole.state_dict(), {pattern: rule for rule in converters for pattern in rule.source_patterns}
    groups: dict[str, dict[str | None, list[str]]] = {}
    for theirs in sorted(shards, key=loading.dot_natural_key):  # experts by number, as the library counts them
        name, pattern = loading.rename_source_key(theirs, renamings, converters, whole.base_model_prefix, own)
        if name not in own and theirs in own:
            name, pattern = theirs, None
        groups.setdefault(name, {}).setdefault(pattern, []).append(theirs)
    if groups.keys() != shapes.keys():
        return None
    pieces = {}
    for name, group in groups.items():
        rule = rule_of.get(next(iter(group)))
        laid = [Piece(theirs) for each in group.values() for theirs in each] if rule is None else _laid(rule, group, shards)
        if laid is None or not _fits(laid, shards, shapes[name]):
            return None
        pieces[name] = laid
    return Joined(shards, pieces, shapes)


def _laid(rule: Any, group: Mapping[str | None, Sequence[str]], shards: Shards) -> list[Piece] | None:
    """Where the tensors of some patterns lie in one parameter: stacked pattern by pattern, and the stacks side by side; None where the
    library does something else with them."""
    operations = [(type(each).__name__, getattr(each, "dim", None)) for each in rule.operations]
    if operations not in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)]):
        return None
    laid, first = [], 0
    side_by_side = len(operations) == 2
    for pattern in rule.source_patterns:
        count = shards.shapes[group[pattern][0]][0]
        for number, theirs in enumerate(group[pattern]):
            laid.append(Piece(theirs, (number, slice(first, first + count)) if side_by_side else (number,)))
        first += count
    return laid


def _fits(pieces: Sequence[Piece], shards: Shards, shape: tuple[int, ...]) -> bool:
    """Whether pieces that do not overlap fill a parameter."""
    whole = torch.empty(shape, device="meta")
    alike = all(whole[piece.place].shape == shards.shapes[piece.theirs] for piece in pieces)
    return alike and sum(whole[piece.place].numel() for piece in pieces) == whole.numel()
