"""Weights to start from: what fits is taken, what does not is listed whole, what is dropped is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stackwise import RackSpec, UserError
from stackwise.errors import SelectorError
from stackwise.planes.model.module import Model
from stackwise.planes.model.start import check_start
from stackwise.planes.model.whole import Fields, Outputs


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
        self.second.weight = self.first.weight


def weights() -> dict[str, torch.Tensor]:
    return {"first.weight": torch.ones(2, 2), "first.bias": torch.zeros(2)}


def test_all_that_fits_is_taken_under_one_name_or_both() -> None:
    assert check_start(weights(), Tied(), ())[1].keys() == weights().keys()
    both = {**weights(), "second.weight": torch.ones(2, 2)}
    assert check_start(both, Tied(), ())[1].keys() == both.keys()


def test_every_difference_is_listed_at_once() -> None:
    wrong = {"first.weight": torch.ones(3, 2), "second.weight": torch.ones(2, 2), "other": torch.ones(1)}
    with pytest.raises(UserError) as refusal:
        check_start(wrong, Tied(), ())
    assert [name for name in ("first.weight", "first.bias", "other") if name not in str(refusal.value)] == []
    torn = {**weights(), "second.weight": torch.zeros(2, 2)}
    with pytest.raises(UserError, match="tied"):
        check_start(torn, Tied(), ())


@pytest.mark.parametrize(("dtype", "taken"), [(torch.bfloat16, True), (torch.float64, True), (torch.int8, False), (torch.bool, False)])
def test_whole_numbers_are_no_weights(dtype: torch.dtype, taken: bool) -> None:
    given = {**weights(), "first.bias": torch.ones(2, dtype=dtype)}
    if taken:
        assert check_start(given, Tied(), ())[1].keys() == given.keys()
    else:
        with pytest.raises(UserError, match=r"first\.bias is"):
            check_start(given, Tied(), ())


def test_what_is_dropped_is_neither_taken_nor_missed() -> None:
    assert check_start({**weights(), "other": torch.ones(1)}, Tied(), ("first.bias", "other"))[1].keys() == {"first.weight"}
    with pytest.raises(SelectorError):
        check_start(weights(), Tied(), ("third",))


def test_a_whole_module_takes_its_own_names_and_those_of_a_run() -> None:
    model = Model(Fields(), nn.Linear(2, 2), Outputs(), declared=RackSpec())
    for inside in ("", "rack."):
        tensors = {f"{inside}weight": torch.ones(2, 2), f"{inside}bias": torch.ones(2)}
        assert check_start(tensors, model, ())[1].keys() == {"rack.weight", "rack.bias"}


def test_a_module_takes_its_first_field_by_its_position() -> None:
    class Named(nn.Linear):
        def forward(self, *, points: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(points)

    class Rest(nn.Linear):
        def forward(self, **fields: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(fields["points"])

    for made, said in ((Named, r"'points' by keyword alone"), (Rest, "names no batch field")):
        with pytest.raises(UserError, match=said):
            Model(Fields(), made(2, 2), Outputs(), declared=RackSpec())
