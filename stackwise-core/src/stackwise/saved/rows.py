"""What a task gives for rows, held against its contract."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from stackwise.errors import ProviderError


def checked_rows(what: str, rows: object, count: int) -> dict[str, torch.Tensor]:
    """A map of tensors with an entry for each row.

    Args:
        what: for messages: the method that was called, and of which task.
        rows: what it returned.
        count: of rows.

    Raises:
        ProviderError: something else.
    """
    if not isinstance(rows, Mapping) or not rows:
        raise ProviderError(f"{what} returned {type(rows).__name__}: it returns a map from names to tensors")
    for name, tensor in rows.items():
        if not isinstance(tensor, torch.Tensor) or not tensor.dim() or len(tensor) != count:
            form = list(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise ProviderError(f"{what} returned {form} as '{name}' for {count} rows: it returns an entry for each row")
    return dict(rows)
