"""Fill a tensor from an old one as a `CopyOf` says: the same map for weights and for their moments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from stackwise.contracts.growth import CopyOf


def fill(new: torch.Tensor, old: torch.Tensor, origin: CopyOf) -> None:
    """Write a weight's mapped values into `new`, in place; entries without a source stay, become zero or a mean, as the map says.

    Args:
        new: the tensor to fill, of the mapped shape.
        old: the source.
        origin: the map.
    """
    rests: Mapping[str, float | Literal["mean"] | None] = {"module": None, "zeros": 0.0, "mean": "mean"}
    _gather(new, old, origin.index, origin.factors, rest=rests[origin.rest])


def fill_moment(new: torch.Tensor, old: torch.Tensor, origin: CopyOf, power: int) -> None:
    """Write the mapped values of a moment of the gradient's `power` into `new`, in place.

    Entries without a source share the step counter of their tensor, so Adam's bias correction is over for them. From a second
    moment of zero their first update would be (1 - beta1) / sqrt(1 - beta2) times the learning rate, 3.16 at (0.9, 0.999):
    they start from the mean of the second moment instead.
    """
    rest = float(old.mean()) if power % 2 == 0 and any(-1 in index for index in origin.index.values()) else 0.0
    gradient = {dim: tuple(factor**power for factor in factors) for dim, factors in origin.gradient.items()}
    _gather(new, old, origin.index, gradient, rest=rest)


def _gather(
    new: torch.Tensor,
    old: torch.Tensor,
    index: Mapping[int, tuple[int, ...]],
    factors: Mapping[int, tuple[float, ...]],
    *,
    rest: float | Literal["mean"] | None,
) -> None:
    values = old
    mask = None
    for dim, positions in index.items():
        places = torch.tensor(positions, device=old.device)
        before, values = values, values.index_select(dim, places.clamp(min=0))
        if -1 in positions:
            has_source = _along(places >= 0, dim, values.dim())
            if rest == "mean":
                mean = before.mean(dim, keepdim=True, dtype=torch.promote_types(old.dtype, torch.float32)).to(old.dtype)
                values = torch.where(has_source, values, mean)
                continue
            mask = has_source if mask is None else mask & has_source
    for dim, scales in factors.items():
        values = values * _along(torch.tensor(scales, device=values.device, dtype=values.dtype), dim, values.dim())
    if mask is None or rest == "mean":
        new.copy_(values)
    else:
        new.copy_(torch.where(mask, values, new if rest is None else torch.full_like(new, rest)))


def _along(vector: torch.Tensor, dim: int, dims: int) -> torch.Tensor:
    """A vector reshaped to broadcast along one of `dims` dimensions."""
    return vector.view([-1 if i == dim else 1 for i in range(dims)])
