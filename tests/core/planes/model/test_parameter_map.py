"""A map fills a tensor: by index and factor for weights, by the power of the gradient for moments."""

from __future__ import annotations

import pytest
import torch

from stackwise import CopyOf
from stackwise.planes.model.parameter_map import fill, fill_moment

OLD = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


def test_a_weight_is_gathered_along_each_dimension_and_scaled() -> None:
    origin = CopyOf(source="w", index={0: (1, 0, 1), 1: (0, 1, 1)}, factors={1: (1.0, 0.5, 0.5)})
    new = torch.empty(3, 3)
    fill(new, OLD, origin)
    assert torch.equal(new, torch.tensor([[3.0, 2.0, 2.0], [1.0, 1.0, 1.0], [3.0, 2.0, 2.0]]))


@pytest.mark.parametrize(("rest", "value"), [("module", 7.0), ("zeros", 0.0)])
def test_entries_without_a_source_stay_or_are_zero(rest: str, value: float) -> None:
    new = torch.full((3, 2), 7.0)
    fill(new, OLD, CopyOf(source="w", index={0: (0, -1, 1)}, rest=rest))  # type: ignore[arg-type]  # one of the two
    assert torch.equal(new, torch.tensor([[1.0, 2.0], [value, value], [3.0, 4.0]]))


def test_entries_without_a_source_are_the_mean_over_their_dimension() -> None:
    """In one dimension, beside a factor on the old entries, and in two: the mean of means."""
    new = torch.empty(3, 2)
    fill(new, OLD, CopyOf(source="w", index={0: (-1, 1, -1)}, factors={0: (1.0, 2.0, 1.0)}, rest="mean"))
    assert torch.equal(new, torch.tensor([[2.0, 3.0], [6.0, 8.0], [2.0, 3.0]]))
    new = torch.empty(3, 3)
    fill(new, OLD, CopyOf(source="w", index={0: (0, 1, -1), 1: (0, 1, -1)}, rest="mean"))
    assert torch.equal(new, torch.tensor([[1.0, 2.0, 1.5], [3.0, 4.0, 3.5], [2.0, 3.0, 2.5]]))
    rows = torch.ones(1000, 1, dtype=torch.bfloat16)
    new = torch.empty(1001, 1, dtype=torch.bfloat16)
    fill(new, rows, CopyOf(source="w", index={0: (*range(1000), -1)}, rest="mean"))
    assert new[-1] == 1  # summed in 16 bits, 1000 ones make 256


@pytest.mark.parametrize("power", [1, 2])
def test_a_moment_takes_the_power_of_the_gradients_factor(power: int) -> None:
    """Of w = f·v the gradient by v is f times the one by w; a second moment has its square. What is new begins at 0, or at the mean."""
    origin = CopyOf(source="w", index={0: (0, 1, -1)}, factors={0: (9.0, 9.0, 9.0)}, gradient={0: (0.5, 0.5, 1.0)})
    new = torch.empty(3, 2)
    fill_moment(new, OLD, origin, power)
    rest = 0.0 if power == 1 else 2.5  # the mean of 1, 2, 3, 4
    assert torch.equal(new, torch.cat([OLD * 0.5**power, torch.full((1, 2), rest)]))
