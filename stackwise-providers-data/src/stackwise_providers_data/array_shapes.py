"""Shapes of arrays of any library, read without importing torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import evolve, frozen

from stackwise import BatchSpec, DataError, TensorSpec


@frozen
class ArrayShape:
    """Sizes of the axes and the torch name of the dtype."""

    sizes: tuple[int, ...]
    dtype: str

    @property
    def is_integer(self) -> bool:
        """Whether entries are whole numbers."""
        return self.dtype.startswith(("int", "uint"))


def array_shapes(arrays: Mapping[str, Any]) -> dict[str, ArrayShape]:
    """Field → shape; lists are measured as whole arrays, their fractions taken for float32.

    Raises:
        DataError: a list that is ragged or holds no numbers, an array without an axis or without rows, fields of unequal numbers of rows.
    """
    shapes = {name: _shape(name, array) for name, array in arrays.items()}
    for name, array in shapes.items():
        if not array.sizes or 0 in array.sizes:
            raise DataError(f"arrays.{name}: a shape of {list(array.sizes)} holds no row: give at least one")
    refuse_unequal("arrays", shapes)
    return shapes


def refuse_unequal(option: str, shapes: Mapping[str, ArrayShape]) -> None:
    """Check that all fields have the same number of rows.

    Raises:
        DataError: the numbers differ.
    """
    rows = {name: array.sizes[0] for name, array in shapes.items()}
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in rows.items())
        raise DataError(f"{option}: the fields have unequal numbers of rows ({counts}): cut them to one number")


def time_fields(named: Sequence[str] | None, shapes: Mapping[str, ArrayShape]) -> frozenset[str]:
    """Fields whose second axis is time: those named, or the integer ones with two axes."""
    if named is not None:
        return frozenset(named)
    return frozenset(name for name, array in shapes.items() if array.is_integer and len(array.sizes) == 2)


def row_spec(shapes: Mapping[str, ArrayShape], time: frozenset[str]) -> BatchSpec:
    """The fields of rows with their own sizes."""
    fields: dict[str, TensorSpec] = {}
    for name, array in shapes.items():
        second: tuple[str | int, ...] = ("time",) if name in time else array.sizes[1:2]
        fields[name] = TensorSpec(("batch", *second, *array.sizes[2:]), array.dtype)
    return BatchSpec(fields=fields)


def with_bounds(spec: BatchSpec, held: Mapping[str, tuple[int, int]]) -> BatchSpec:
    """The spec with what integer fields hold: field → lowest and highest entry."""
    bounds = {name: (low, high + 1) for name, (low, high) in held.items() if spec.fields[name].dtype.startswith(("int", "uint"))}
    return BatchSpec(fields={name: evolve(field, bounds=bounds.get(name, field.bounds)) for name, field in spec.fields.items()})


def is_token_stream(shapes: Mapping[str, ArrayShape]) -> bool:
    """Whether the arrays are one stream: a single field of whole numbers with one axis."""
    return len(shapes) == 1 and all(array.is_integer and len(array.sizes) == 1 for array in shapes.values())


def identity(arrays: Mapping[str, Any]) -> Any:
    """A key that is equal for equal sets of arrays: by the identity of the objects, or for lists by their values."""
    return [(name, array if isinstance(array, list | tuple) else id(array)) for name, array in arrays.items()]


def _shape(name: str, array: Any) -> ArrayShape:
    if isinstance(array, list | tuple):
        return ArrayShape(*_measure(name, array))
    if hasattr(array, "shape") and hasattr(array, "dtype"):
        dtype = str(array.dtype).removeprefix("torch.")
        if not dtype.startswith(("bool", "int", "uint", "float", "bfloat")):
            raise DataError(f"arrays.{name}: entries of dtype {dtype} are not numbers a model could read: give integers, floats or bools")
        return ArrayShape(tuple(array.shape), dtype)
    raise DataError(f"arrays.{name}: a {type(array).__name__} is not an array: give numpy, torch or nested lists")


def _measure(name: str, values: Any) -> tuple[tuple[int, ...], str]:
    level, sizes = list(values), [len(values)]
    while any(isinstance(value, list | tuple) for value in level):
        lengths = {len(value) if isinstance(value, list | tuple) else None for value in level}
        if len(lengths) > 1:
            raise DataError(f"arrays.{name}: its lists are ragged: every list at one depth has the same length")
        sizes.append(len(level[0]))
        level = [entry for value in level for entry in value]
    return tuple(sizes), _list_dtype(name, level)


def _list_dtype(name: str, entries: list[Any]) -> str:
    if not all(isinstance(entry, bool | int | float) for entry in entries):
        raise DataError(f"arrays.{name}: it holds more than numbers")
    if any(isinstance(entry, float) for entry in entries):
        return "float32"
    return "bool" if entries and all(isinstance(entry, bool) for entry in entries) else "int64"
