"""Weight adapters: modules beside matrices, which add to a layer's output and can be merged into its matrix."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from stackwise import UserError
from stackwise.errors import SelectorError
from stackwise.planes.model.weight_adapters import WeightAdapters, attach, merge, targets


class LowRank(nn.Module):
    """y + B·A·x, as in LoRA (arXiv 2106.09685, section 4.1)."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(torch.tensor([[1.0, 2.0]])), nn.Parameter(torch.tensor([[3.0], [4.0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.down.T @ self.up.T

    def merged(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.up @ self.down


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner, self.norm = nn.Embedding(3, 2), nn.ModuleDict({"map": nn.Linear(2, 2)}), nn.LayerNorm(2)


def test_targets_are_the_matrices_of_linear_maps() -> None:
    assert targets(Small(), ["*"], "a") == ["inner.map"]
    with pytest.raises(UserError):
        targets(Small(), ["table", "norm"], "a")
    with pytest.raises(SelectorError):
        targets(Small(), ["outer"], "a")


def test_a_tied_matrix_is_refused() -> None:
    model = Small()
    model.inner["other"] = nn.Linear(2, 2)
    model.inner["other"].weight = model.inner["map"].weight
    with pytest.raises(UserError, match="tied"):
        targets(model, ["inner"], "a")


def test_an_adapter_adds_and_merging_gives_the_same_function() -> None:
    model, adapter, x = Small(), LowRank(), torch.tensor([[1.0, -1.0]])
    layer = model.inner["map"]
    plain = layer(x)
    handles = list(attach(model, {("a", "inner.map"): adapter}))
    added = layer(x)
    torch.testing.assert_close(added, plain + torch.tensor([[-3.0, -4.0]]))  # A·x = -1
    for handle in handles:
        handle.remove()
    assert merge(model, {("a", "inner.map"): adapter}) == ("inner.map.weight",)
    torch.testing.assert_close(layer(x), added)


def test_names_repeat_those_of_the_adapted_and_a_copy_calls_its_own() -> None:
    model = Small()
    model.weight_adapters = WeightAdapters({("a", "inner.map"): LowRank()})
    list(attach(model, {("a", "inner.map"): model.get_submodule("weight_adapters.a.inner.map")}))
    twin = deepcopy(model)
    with torch.no_grad():
        twin.get_parameter("weight_adapters.a.inner.map.up").zero_()
    x = torch.ones(1, 2)
    assert torch.equal(twin.inner["map"](x), nn.functional.linear(x, twin.inner["map"].weight, twin.inner["map"].bias))
    assert not torch.equal(twin.inner["map"](x), model.inner["map"](x))
