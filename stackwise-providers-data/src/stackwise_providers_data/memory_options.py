"""The options of the loader of arrays in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import field, frozen

from stackwise import BatchSpec, EpochSize, Reading, TensorSpec, UserError, dimension, option
from stackwise_providers_data.array_shapes import ArrayShape, array_shapes, identity, is_token_stream, row_spec, time_fields
from stackwise_providers_data.splits import part_for, part_of_split, readings, rows_of


@frozen(kw_only=True)
class MemoryOptions:
    """Arrays that are already in memory.

    Two values are equal when they hold the same array objects: contents are not compared.
    """

    arrays: Any = field(
        eq=identity,
        hash=False,
        repr=lambda arrays: f"{{{', '.join(map(str, arrays))}}}",
        metadata={
            "doc": "field → array (numpy, torch, nested lists): one integer array with one axis is a stream of tokens, all else are rows"
        },
    )
    vocab: int | None = dimension("vocab", doc="number of token ids in a stream; the model's when left out")
    time: tuple[str, ...] | None = option(
        None, doc="fields whose second axis is time, cut to the row's length; the integer ones with two axes when left out"
    )
    heldout: float | None = option(
        None,
        doc="share at the end of the arrays that only evaluations see; nothing when left out",
        minimum=0,
        maximum=1,
    )
    shuffle: bool = option(True, doc="whether every epoch has an order of its own")
    repeat: bool = option(True, doc="whether another epoch follows the first; without, asking for more is an error")

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.arrays, Mapping) or not self.arrays:
            raise UserError(f"arrays: a {type(self.arrays).__name__} where fields with their arrays belong: write {{tokens: [...]}}")
        if unknown := sorted(set(self.time or ()) - set(self.arrays)):
            raise UserError(f"time: there is no field '{unknown[0]}'; the arrays are {', '.join(map(str, self.arrays))}")

    def shapes(self) -> dict[str, ArrayShape]:
        """Shape and dtype of each array.

        Raises:
            DataError: ragged lists, or arrays without rows.
        """
        return array_shapes(self.arrays)

    def time_fields(self) -> frozenset[str]:
        """Fields whose second axis is time."""
        return time_fields(self.time, self.shapes())

    def to_spec(self) -> BatchSpec:
        """A stream of token ids, or the fields with their own sizes.

        Raises:
            DataError: ragged lists, or arrays without rows.
        """
        shapes = self.shapes()
        if is_token_stream(shapes):
            return BatchSpec(fields={name: TensorSpec("batch time", "int64", bounds=(0, "vocab")) for name in shapes})
        if self.vocab is not None:
            raise UserError("vocab: it has an effect on one stream of tokens only, and these are rows: leave it out")
        return row_spec(shapes, self.time_fields())

    def epoch_size(self, split: str) -> EpochSize:
        """Entries of a stream, or rows, of a split.

        Raises:
            DataError: ragged lists, or arrays without rows.
        """
        shapes = self.shapes()
        rows = next(iter(shapes.values())).sizes[0]
        count = len(range(rows)[rows_of(part_of_split(split), rows, self.heldout)])
        return EpochSize(entries=count, repeats=self.repeat) if is_token_stream(shapes) else EpochSize(rows=count, repeats=self.repeat)

    def readings(self, split: str, whole: bool) -> Iterable[Reading]:
        """What is read of each array; the share at its end is held out."""
        part, share = part_for(split, whole, self.heldout), self.heldout or 0.0
        for name, array in self.arrays.items():
            key = repr(array) if isinstance(array, list | tuple) else id(array)  # as two values of these options are compared
            yield from readings([f"the array '{name}'"], part, share, "from the end", key=key)
