"""Products of parameters of which `make test` runs a part that covers them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

import pytest


def covered(*axes: Sequence[Any], together: int = 2, ids: Sequence[Sequence[str]] | None = None) -> list[Any]:
    """Every combination; rare are those that bring no values together that others do not.

    Args:
        axes: the values of each parameter.
        together: how many parameters have to meet in all their values: 2 for every pair of values, 1 for every value.
        ids: the name of each value.
    """
    everything = list(product(*(range(len(axis)) for axis in axes)))
    left = {some for each in everything for some in met(each, together)}
    waiting, chosen = list(everything), set()
    while left:
        best = max(waiting, key=lambda each: len(left & met(each, together)))
        left -= met(best, together)
        chosen.add(best)
        waiting.remove(best)
    return [
        pytest.param(
            *(axis[i] for axis, i in zip(axes, each, strict=True)),
            marks=() if each in chosen else pytest.mark.rare,
            id="-".join((ids[axis][i] if ids else str(axes[axis][i])) for axis, i in enumerate(each)),
        )
        for each in everything
    ]


Met = frozenset[tuple[int, int]]
"""(number of a parameter, number of its value), several at once."""


def met(each: tuple[int, ...], together: int) -> set[Met]:
    """What one combination brings together."""
    return {frozenset(some) for some in combinations(enumerate(each), together)}
