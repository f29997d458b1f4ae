"""A map fills a tensor: by index and factor for weights, by the power of the gradient for moments."""

from __future__ import annotations

import pytest
import torch

from stackwise import Combine, CopyOf
from stackwise.planes.model.parameter_map import fill, fill_moment

OLD = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


def test_a_weight_is_gathered_along_each_dimension_and_scaled() -> None:
    origin = CopyOf(source="w", index={0: (1, 0, 1), 1: (0, 1, 1)}, factors={1: (1.0, 0.5, 0.5)})
    new = torch.empty(3, 3)
    fill(new, {"w": OLD}, origin)
    assert torch.equal(new, torch.tensor([[3.0, 2.0, 2.0], [1.0, 1.0, 1.0], [3.0, 2.0, 2.0]]))


@pytest.mark.parametrize(("rest", "value"), [("module", 7.0), ("zeros", 0.0)])
def test_entries_without_a_source_stay_or_are_zero(rest: str, value: float) -> None:
    new = torch.full((3, 2), 7.0)
    fill(new, {"w": OLD}, CopyOf(source="w", index={0: (0, -1, 1)}, rest=rest))  # type: ignore[arg-type]  # one of the two
    assert torch.equal(new, torch.tensor([[1.0, 2.0], [value, value], [3.0, 4.0]]))


def test_entries_without_a_source_are_the_mean_over_their_dimension() -> None:
    """In one dimension, beside a factor on the old entries, and in two: the mean of means."""
    new = torch.empty(3, 2)
    fill(new, {"w": OLD}, CopyOf(source="w", index={0: (-1, 1, -1)}, factors={0: (1.0, 2.0, 1.0)}, rest="mean"))
    assert torch.equal(new, torch.tensor([[2.0, 3.0], [6.0, 8.0], [2.0, 3.0]]))
    new = torch.empty(3, 3)
    fill(new, {"w": OLD}, CopyOf(source="w", index={0: (0, 1, -1), 1: (0, 1, -1)}, rest="mean"))
    assert torch.equal(new, torch.tensor([[1.0, 2.0, 1.5], [3.0, 4.0, 3.5], [2.0, 3.0, 2.5]]))
    rows = torch.ones(1000, 1, dtype=torch.bfloat16)
    new = torch.empty(1001, 1, dtype=torch.bfloat16)
    fill(new, {"w": rows}, CopyOf(source="w", index={0: (*range(1000), -1)}, rest="mean"))
    assert new[-1] == 1  # summed in 16 bits, 1000 ones make 256


@pytest.mark.parametrize("power", [1, 2])
def test_a_moment_takes_the_power_of_the_gradients_factor(power: int) -> None:
    """Of w = f·v the gradient by v is f times the one by w; a second moment has its square. What is new begins at 0, or at the mean."""
    origin = CopyOf(source="w", index={0: (0, 1, -1)}, factors={0: (9.0, 9.0, 9.0)}, gradient={0: (0.5, 0.5, 1.0)})
    new = torch.empty(3, 2)
    fill_moment(new, {"w": OLD}, origin, power)
    rest = 0.0 if power == 1 else 2.5  # the mean of 1, 2, 3, 4
    assert torch.equal(new, torch.cat([OLD * 0.5**power, torch.full((1, 2), rest)]))


def test_a_combination_is_linear_in_weights_and_first_moments() -> None:
    """Against the einsum of its matrices: half of one tensor, and a projection of another on both sides."""
    left, right = torch.randn(3, 2), torch.randn(4, 2)
    project = {0: tuple(map(tuple, left.tolist())), 1: tuple(map(tuple, right.tolist()))}
    other = torch.randn(3, 4)
    origin = Combine([(CopyOf(source="w", project=project), -2.0), (CopyOf(source="v"), 0.5)])
    for into in (fill, lambda new, old, by: fill_moment(new, old, by, 1)):
        new = torch.empty(3, 4)
        into(new, {"w": OLD, "v": other}, origin)
        torch.testing.assert_close(new, -2 * torch.einsum("ki,lj,ij->kl", left, right, OLD) + 0.5 * other)


def test_a_second_moment_bounds_that_of_any_such_sum_of_gradients() -> None:
    """Of correlated, opposed and independent gradients, and it is reached where they are one."""
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(1000, generator=generator)
    for two in (one, -3 * one, torch.randn(1000, generator=generator), one + 0.1 * torch.randn(1000, generator=generator)):
        new = torch.empty(1)
        origin = Combine([(CopyOf(source="a"), 0.5), (CopyOf(source="b"), -2.0)])
        fill_moment(new, {"a": one.square().mean()[None], "b": two.square().mean()[None]}, origin, 2)
        assert float((0.5 * one - 2 * two).square().mean()) <= float(new) * (1 + 1e-5)
    new = torch.empty(1)  # opposed signs of the factors and of the gradients: the bound is the value
    fill_moment(new, {"a": one.square().mean()[None], "b": (9 * one.square()).mean()[None]}, origin, 2)
    torch.testing.assert_close(new, (0.5 * one + 2 * 3 * one).square().mean()[None])
