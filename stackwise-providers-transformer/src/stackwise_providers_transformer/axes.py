"""Growth of tensors axis by axis: the map of one dimension is written once, for all tensors that share it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from attrs import frozen

from stackwise import CopyOf

Shapes = Mapping[str, tuple[int, ...]]
"""Canonical name of a parameter → its shape."""


@frozen
class Axis:
    """One dimension of a grown tensor.

    Args:
        index: old position of every new one; -1: none.
        factors: factor on the values at every new position; left out: 1.
        gradient: gradient at every new position in units of that at the old one; left out: 1.
        rest: positions without an old one: as the module draws them, zero, or the mean of the old ones.
    """

    index: tuple[int, ...]
    factors: tuple[float, ...] | None = None
    gradient: tuple[float, ...] | None = None
    rest: Literal["module", "zeros", "mean"] = "module"


def copy_axes(source: str, axes: Mapping[int, Axis]) -> CopyOf:
    """The map of a whole tensor from those of its dimensions; dimensions left out stay as they are.

    Args:
        source: canonical name in the old model.
        axes: dimension → what becomes of it.
    """
    return CopyOf(
        source=source,
        index={dim: axis.index for dim, axis in axes.items()},
        factors={dim: axis.factors for dim, axis in axes.items() if axis.factors is not None},
        gradient={dim: axis.gradient for dim, axis in axes.items() if axis.gradient is not None},
        rest=next((axis.rest for axis in axes.values() if axis.rest != "module"), "module"),
    )


def map_axes(operator: str, can: str, old: Shapes, new: Shapes, axes_of: Callable[[str], Mapping[int, Axis]]) -> dict[str, CopyOf]:
    """The maps of all parameters that are in both models and change.

    Args:
        operator: its name, for messages.
        can: what it can do, for messages.
        old: shapes before.
        new: shapes after.
        axes_of: canonical name → what becomes of its dimensions, those that stay left out.

    Raises:
        ValueError: a shape that the axes do not lead to.
    """
    origins = {}
    for name in new.keys() & old.keys():
        axes = axes_of(name)
        reached = tuple(len(axes[dim].index) if dim in axes else size for dim, size in enumerate(old[name]))
        if reached != new[name]:
            raise ValueError(
                f"{name} goes from {list(old[name])} to {list(new[name])}, and '{operator}' can only {can}: "
                "make other changes in a phase of their own"
            )
        if axes:
            origins[name] = copy_axes(name, axes)
    return {name: origins[name] for name in new if name in origins}


def repeated(old: int, new: int) -> tuple[int, ...]:
    """New position i is a copy of old position i mod `old`."""
    return tuple(i % old for i in range(new))


def uneven_shares(index: Sequence[int]) -> tuple[float, ...]:
    """Shares of the copies of each old position: they add up to 1 and no two are equal, as 1/3 and 2/3.

    Args:
        index: old position of every new one.
    """
    copies, seen, shares = Counter(index), Counter[int](), []
    for position in index:
        seen[position] += 1
        count = copies[position]
        shares.append(2 * seen[position] / (count * (count + 1)))
    return tuple(shares)
