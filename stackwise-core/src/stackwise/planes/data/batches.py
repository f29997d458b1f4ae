"""Operations on batches: check against a spec, count rows, join."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from stackwise.contracts.protocols import Batch
from stackwise.contracts.specs import BatchSpec
from stackwise.errors import DataError, ProviderError


def check_batch(source: str, batch: Batch, spec: BatchSpec, length: int | None = None, *, values: bool = True) -> None:
    """Check a batch of a source against its spec and the requested `length`.

    Args:
        source: its name.
        batch: as the loader delivered it.
        spec: what the loader says of it.
        length: entries of a row, where it was asked for.
        values: whether to look at the values too, which takes a pass over them.

    Raises:
        ProviderError: a field missing, or of another rank or dtype than declared.
        DataError: values outside the declared bounds, or features that are not finite.
    """
    if not isinstance(batch, Mapping):
        raise ProviderError(f"source '{source}' delivered a {type(batch).__name__}: a batch is a mapping of field name → tensor")
    for name, expected in spec.fields.items():
        if name not in batch:
            raise ProviderError(f"source '{source}' declares the field '{name}' but delivers {sorted(batch)}")
        tensor = batch[name]
        if not isinstance(tensor, torch.Tensor):
            raise ProviderError(f"source '{source}' delivers '{name}' as a {type(tensor).__name__}: every field is a tensor")
        dtype = str(tensor.dtype).removeprefix("torch.")
        if tensor.dim() != len(expected.dims) or expected.dtype not in (dtype, "floating" if tensor.is_floating_point() else "integer"):
            raise ProviderError(f"source '{source}' declares '{name}' as {expected} but delivers {dtype}{list(tensor.shape)}")
        if length is not None and expected.dims[1:2] == ("time",) and tensor.shape[1] != length:
            raise ProviderError(f"source '{source}' was asked for rows of {length} and delivers '{name}' as {list(tensor.shape)}")
        if not values:
            continue
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"source '{source}': '{name}' holds values that are not finite in its first batch")
        if expected.bounds is not None and isinstance(expected.bounds[1], int) and tensor.numel():
            low, high = int(tensor.min()), int(tensor.max())
            if low < expected.bounds[0] or high >= expected.bounds[1]:
                declared = f"{expected.bounds[0]}..{expected.bounds[1] - 1}"
                raise DataError(f"source '{source}': '{name}' holds {low}..{high}, outside its declared range {declared}")


def check_limits(source: str, name: str, tensor: torch.Tensor, limits: tuple[int, int]) -> None:
    """Refuse entries of an integer field outside limits[0] <= v < limits[1].

    Raises:
        DataError: an entry is outside.
    """
    if tensor.numel():
        low, high = (int(bound) for bound in torch.aminmax(tensor))
        refuse_outside(source, name, (low, high + 1), limits)


def refuse_outside(source: str, name: str, values: tuple[int, int], limits: tuple[int, int]) -> None:
    """Refuse a field whose `values` reach outside `limits`; both are half-open ranges.

    Raises:
        DataError: they do.
    """
    if values[0] < limits[0] or values[1] > limits[1]:
        raise DataError(
            f"source '{source}': '{name}' holds values from {values[0]} to {values[1] - 1}, and the model takes {limits[0]} to "
            f"{limits[1] - 1}: mend the data, or give the model the size that they need"
        )


def rows_of(batch: Batch) -> int:
    """Length of the first dimension.

    Raises:
        DataError: the first field has none, or there is no field.
    """
    name, tensor = next(iter(batch.items()), ("", None))
    if tensor is None or not tensor.dim():
        what = "a batch has no field" if tensor is None else f"the field '{name}' is one number, without rows"
        raise DataError(f"{what}: the first dimension of a field is its rows; put a number for the whole batch after the other fields")
    return int(tensor.shape[0])


def copied(batch: Batch) -> Batch:
    """The batch in memory of its own; a pinned batch has that already."""
    return {name: tensor if tensor.is_pinned() else tensor.clone() for name, tensor in batch.items()}


def join_rows(parts: Sequence[tuple[str, Batch]]) -> Batch:
    """Concatenate the rows of several sources, keeping the fields that all of them have.

    Raises:
        DataError: the sources have no field in common.
    """
    first_name, first = parts[0]
    shared = [field for field in first if all(field in batch for _, batch in parts)]
    for name, batch in parts[1:]:
        if not shared:
            raise DataError(
                f"source '{name}' delivers {sorted(batch)}, source '{first_name}' delivers {sorted(first)}: "
                "sources of one mixture share their fields"
            )
    return {field: torch.cat([batch[field] for _, batch in parts]) for field in shared}
