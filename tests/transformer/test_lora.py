"""LoRA against the dense matrix W + scale · B·A written by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stackwise import BuildContext, UserError
from stackwise.contracts.protocols import WeightAdapter
from stackwise_providers_transformer.lora import LoRA, build_lora
from stackwise_providers_transformer.lora_options import LoRAOptions


def made(weight: torch.Tensor, **options: object) -> LoRA:
    torch.manual_seed(1)
    return build_lora(LoRAOptions(**options), BuildContext(seed=0), weight)


def matrix(outputs: int = 12, inputs: int = 20) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def learnt(adapter: LoRA) -> LoRA:
    with torch.no_grad():
        adapter.b.copy_(torch.randn(adapter.b.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    return adapter


def test_it_adds_exactly_nothing_at_first() -> None:
    adapter = made(matrix(), rank=4)
    x = torch.randn(3, 5, 20, dtype=torch.float64)
    assert not adapter(x).any() and adapter(x).shape == (3, 5, 12)
    assert torch.equal(adapter.merged(matrix()), matrix())
    adapter(x).square().sum().backward()
    assert sorted(name for name, _ in adapter.named_parameters()) == ["a", "b"]


def test_it_begins_to_learn_at_b() -> None:
    adapter = made(matrix(), rank=4)
    x = torch.randn(30, 20, dtype=torch.float64)
    (F.linear(x, matrix()) + adapter(x)).square().sum().backward()
    assert adapter.b.grad is not None and adapter.b.grad.any()
    assert adapter.a.grad is not None and not adapter.a.grad.any()


@pytest.mark.parametrize(("scaling", "scale"), [("alpha/rank", 6 / 4), ("alpha/sqrt(rank)", 6 / math.sqrt(4))])
def test_it_is_the_dense_matrix_by_hand(scaling: str, scale: float) -> None:
    weight, adapter = matrix(), learnt(made(matrix(), rank=4, alpha=6.0, scaling=scaling))
    dense = weight.clone()
    for o in range(12):
        for i in range(20):
            dense[o, i] += scale * sum(adapter.b[o, r].item() * adapter.a[r, i].item() for r in range(4))
    x = torch.randn(7, 20, dtype=torch.float64)
    torch.testing.assert_close(F.linear(x, weight) + adapter(x), F.linear(x, dense), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(adapter.merged(weight), dense, rtol=1e-12, atol=1e-12)


def test_its_gradients_are_those_of_the_dense_matrix_pulled_back() -> None:
    weight, adapter = matrix(), learnt(made(matrix(), rank=4, alpha=6.0))
    x = torch.randn(7, 20, dtype=torch.float64)
    dense = adapter.merged(weight).detach().requires_grad_()
    F.linear(x, dense).pow(3).sum().backward()
    (F.linear(x, weight) + adapter(x)).pow(3).sum().backward()
    assert dense.grad is not None and adapter.a.grad is not None and adapter.b.grad is not None
    torch.testing.assert_close(adapter.b.grad, 1.5 * dense.grad @ adapter.a.detach().T)
    torch.testing.assert_close(adapter.a.grad, 1.5 * adapter.b.detach().T @ dense.grad)


def test_a_starts_gaussian_with_the_variance_of_one_over_the_inputs() -> None:
    adapter = made(torch.zeros(64, 400), rank=64)
    a = adapter.a.detach()
    assert float(a.var()) == pytest.approx(1 / 400, rel=0.05)  # 25600 draws: one sigma of the variance is 0.9 %
    assert float((a / a.std()).pow(4).mean()) == pytest.approx(3, rel=0.1)


def test_merging_in_a_low_precision_rounds_once() -> None:
    weight = matrix().to(torch.bfloat16)
    adapter = made(weight, rank=4)
    with torch.no_grad():
        adapter.b.normal_()
    assert adapter.a.dtype == adapter.b.dtype == torch.bfloat16
    exact = weight.double() + adapter.scale * adapter.b.double() @ adapter.a.double()
    assert torch.equal(adapter.merged(weight), exact.float().to(torch.bfloat16))


def test_dropout_falls_on_the_inputs_in_training_only_and_follows_time() -> None:
    adapter = learnt(made(matrix(), rank=4, dropout=0.0))
    x = torch.randn(50, 20, dtype=torch.float64)
    still = adapter(x)
    adapter.apply_values({"dropout": 0.5})
    torch.manual_seed(3)
    assert not torch.equal(adapter(x), still)
    adapter.eval()
    assert torch.equal(adapter(x), still)
    adapter.train().apply_values({"dropout": 1.0})
    assert not adapter(x).any()


def test_it_is_built_beside_a_matrix_without_weights() -> None:
    adapter = made(torch.empty(6, 8, device="meta"), rank=2)
    assert {p.device.type for p in adapter.parameters()} == {"meta"}
    assert adapter(torch.empty(3, 8, device="meta")).shape == (3, 6)


def test_it_is_a_weight_adapter_and_an_ordinary_module() -> None:
    adapter: WeightAdapter = made(matrix())
    assert isinstance(adapter, nn.Module)


@pytest.mark.parametrize(
    ("options", "weight", "says"),
    [
        ({"rank": 13}, matrix(), r"rank: 13 is above 12, the rank of a matrix \[12, 20\]"),
        ({}, torch.zeros(5), r"stands beside matrices, and this parameter has the shape \[5\]"),
    ],
)
def test_a_weight_it_cannot_stand_beside_is_refused(options: dict[str, object], weight: torch.Tensor, says: str) -> None:
    with pytest.raises(UserError, match=says):
        made(weight, **options)


@pytest.mark.parametrize(
    ("options", "says"), [({"rank": 0}, "rank"), ({"alpha": 0.0}, "alpha: at 0 nothing"), ({"scaling": "no"}, "scaling")]
)
def test_options_without_a_meaning_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        LoRAOptions(**options)


def test_rows_of_a_matrix_are_those_that_change() -> None:
    weight, adapter = matrix(), learnt(made(matrix(), rank=3, alpha=6.0, rows=(4, 9)))
    dense = weight.clone()
    dense[4:9] += 2.0 * adapter.b @ adapter.a
    x = torch.randn(2, 7, 20, dtype=torch.float64)
    torch.testing.assert_close(F.linear(x, weight) + adapter(x), F.linear(x, dense), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(adapter.merged(weight), dense, rtol=1e-12, atol=1e-12)
    assert adapter.b.shape == (5, 3) and torch.equal(weight, matrix())
    for wrong in ((9, 13), (3, 3), (-1, 4)):
        with pytest.raises(UserError, match="rows"):
            made(matrix(), rank=1, rows=wrong)
