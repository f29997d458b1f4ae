"""Fill a tensor from old ones as a `CopyOf` or a `Combine` says: the same map for weights and for their moments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch

from stackwise.contracts.growth import Combine, CopyOf, Mapped
from stackwise.planes.shards import is_part, put, whole


def fill(new: torch.Tensor, old: Mapping[str, torch.Tensor], origin: Mapped) -> None:
    """Write a weight's mapped values into `new`, in place; entries without a source stay, become zero or a mean, as the map says.

    Args:
        new: the tensor to fill, of the mapped shape.
        old: the sources by name.
        origin: the map.
    """
    if is_part(new):
        gathered = whole(new)
        fill(gathered, old, origin)
        put(new, gathered)
        return
    if isinstance(origin, Combine):
        total = torch.zeros_like(new)
        for term, factor in origin.terms:
            part = torch.zeros_like(new)
            fill(part, old, term)
            total += factor * part
        new.copy_(total)
        return
    rests: Mapping[str, float | Literal["mean"] | None] = {"module": None, "zeros": 0.0, "mean": "mean"}
    _gather(new, whole(old[origin.source]), origin, origin.factors, origin.project, rest=rests[origin.rest])


def fill_moment(new: torch.Tensor, old: Mapping[str, torch.Tensor], origin: Mapped, power: int, *, magnitude: bool = False) -> None:
    """Write the mapped values of a moment of the gradient's `power` into `new`, in place.

    Of a sum of gradients Σ f·g a first moment is Σ f·m. A second moment is at most (Σ |f|·√v)², the square of the triangle inequality
    in L2, whatever the correlation of the g; that bound is taken, as a second moment which is too small makes a step too large.

    Entries without a source share the step counter of their tensor, so Adam's bias correction is over for them. From a second
    moment of zero their first update would be (1 - beta1) / sqrt(1 - beta2) times the learning rate, 3.16 at (0.9, 0.999):
    they start from the mean of the second moment instead.

    Args:
        new: the moment to fill, of the mapped shape.
        old: the moments of the sources, by the names of these.
        origin: the map.
        power: of the gradient.
        magnitude: whether the moment is never negative though its power is odd (Adamax).
    """
    if is_part(new):
        gathered = whole(new)
        fill_moment(gathered, old, origin, power, magnitude=magnitude)
        put(new, gathered)
        return
    size = magnitude or power % 2 == 0
    if isinstance(origin, Combine):
        total = torch.zeros_like(new)
        for term, factor in origin.terms:
            part = torch.zeros_like(new)
            fill_moment(part, old, term, power, magnitude=magnitude)
            total += (abs(factor) if size else factor) * _root(part, power)
        new.copy_(_raised(total, power))
        return
    source = whole(old[origin.source])
    rest = float(source.mean()) if power % 2 == 0 and any(-1 in index for index in origin.index.values()) else 0.0
    gradient = {dim: tuple(factor**power for factor in factors) for dim, factors in origin.gradient.items()}
    if not origin.project:
        _gather(new, source, origin, gradient, {}, rest=rest)
        return
    project = {dim: tuple(tuple(abs(f) for f in row) for row in rows) if size else rows for dim, rows in origin.project.items()}
    _gather(new, _root(source, power), origin, {}, project, rest=rest ** (1 / power) if rest else 0.0)
    new.copy_(_raised(new, power))
    for dim, scales in gradient.items():
        new.mul_(_along(torch.tensor(scales, device=new.device, dtype=new.dtype), dim, new.dim()))


def _root(moment: torch.Tensor, power: int) -> torch.Tensor:
    return moment if power == 1 else moment.sign() * moment.abs() ** (1 / power)


def _raised(root: torch.Tensor, power: int) -> torch.Tensor:
    return root if power == 1 else root.sign() ** power * root.abs() ** power


def _gather(
    new: torch.Tensor,
    old: torch.Tensor,
    origin: CopyOf,
    factors: Mapping[int, tuple[float, ...]],
    project: Mapping[int, tuple[tuple[float, ...], ...]],
    *,
    rest: float | Literal["mean"] | None,
) -> None:
    values = old
    mask = None
    for dim, positions in origin.index.items():
        places = torch.tensor(positions, device=old.device)
        before, values = values, values.index_select(dim, places.clamp(min=0))
        if -1 in positions:
            has_source = _along(places >= 0, dim, values.dim())
            if rest == "mean":
                mean = before.mean(dim, keepdim=True, dtype=torch.promote_types(old.dtype, torch.float32)).to(old.dtype)
                values = torch.where(has_source, values, mean)
                continue
            mask = has_source if mask is None else mask & has_source
    for dim, rows in project.items():
        matrix = torch.tensor(rows, device=values.device, dtype=torch.promote_types(values.dtype, torch.float32))
        values = torch.tensordot(matrix, values.to(matrix.dtype), dims=([1], [dim])).movedim(0, dim).to(old.dtype)
    for dim, scales in factors.items():
        values = values * _along(torch.tensor(scales, device=values.device, dtype=values.dtype), dim, values.dim())
    if mask is None or rest == "mean":
        new.copy_(values)
    else:
        new.copy_(torch.where(mask, values, new if rest is None else torch.full_like(new, rest)))


def _along(vector: torch.Tensor, dim: int, dims: int) -> torch.Tensor:
    """A vector reshaped to broadcast along one of `dims` dimensions."""
    return vector.view([-1 if i == dim else 1 for i in range(dims)])
