"""The options of every loader, and the specs they declare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from stackwise import BatchSpec, TensorSpec, UserError, dimension, option
from stackwise_providers_data.array_shapes import ArrayShape, array_shapes, identity, is_token_stream

_HELDOUT_FILES = "share of the files, chosen by a hash of their path, that only evaluations see"


def _bytes() -> BatchSpec:
    return BatchSpec(fields={"tokens": TensorSpec("batch time", "int64", bounds=(0, 256), unit="byte")})


@frozen(kw_only=True)
class StdlibOptions:
    """Bytes of the standard library's sources."""

    heldout: float = option(0.05, doc=_HELDOUT_FILES, minimum=0, maximum=1)
    shuffle: bool = option(True, doc="whether every epoch has a page order of its own")

    def to_spec(self) -> BatchSpec:
        """Rows of byte values."""
        return _bytes()


@frozen(kw_only=True)
class TextFilesOptions:
    """Bytes of files."""

    paths: tuple[str, ...] = option(doc="globs, `**` included, read from the working directory")
    heldout: float = option(0.05, doc=_HELDOUT_FILES, minimum=0, maximum=1)
    shuffle: bool = option(True, doc="whether every epoch has a page order of its own")

    def __attrs_post_init__(self) -> None:
        paths: object = self.paths
        if not isinstance(paths, list | tuple) or not paths or not all(isinstance(path, str) and path for path in paths):
            raise UserError(f"paths: {paths!r} is no list of globs: write [corpus/**/*.txt]")

    def to_spec(self) -> BatchSpec:
        """Rows of byte values."""
        return _bytes()


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
    heldout: float = option(0.0, doc="share at the end of the arrays that only evaluations see", minimum=0, maximum=1)
    shuffle: bool = option(True, doc="whether every epoch has an order of its own")

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.arrays, Mapping) or not self.arrays:
            raise UserError(f"arrays: a {type(self.arrays).__name__} where fields with their arrays belong: write {{tokens: [...]}}")
        if unknown := sorted(set(self.time or ()) - set(self.arrays)):
            raise UserError(f"time: there is no field '{unknown[0]}'; the arrays are {', '.join(map(str, self.arrays))}")

    def shapes(self) -> dict[str, ArrayShape]:
        """Shape and dtype of every array.

        Raises:
            DataError: ragged lists, or arrays without rows.
        """
        return array_shapes(self.arrays)

    def time_fields(self) -> frozenset[str]:
        """Fields whose second axis is time."""
        if self.time is not None:
            return frozenset(self.time)
        return frozenset(name for name, array in self.shapes().items() if array.is_integer and len(array.sizes) == 2)

    def to_spec(self) -> BatchSpec:
        """A stream of token ids, or the fields with their own sizes.

        Raises:
            DataError: ragged lists, or arrays without rows.
        """
        shapes = self.shapes()
        if is_token_stream(shapes):
            return BatchSpec(fields={name: TensorSpec("batch time", "int64", bounds=(0, "vocab")) for name in shapes})
        fields: dict[str, TensorSpec] = {}
        for name, array in shapes.items():
            second: tuple[str | int, ...] = ("time",) if name in self.time_fields() else array.sizes[1:2]
            fields[name] = TensorSpec(("batch", *second, *array.sizes[2:]), array.dtype)
        return BatchSpec(fields=fields)
