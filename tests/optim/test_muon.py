"""Muon against torch's own and the definition; AdamW for the rest against torch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_parameters import CONTEXT, SHAPES, give_gradients, group_of, named

from stackwise import UserError
from stackwise_providers_optim.muon import Muon, build_muon
from stackwise_providers_optim.newton_schulz import COEFFICIENTS, orthogonalize
from stackwise_providers_optim.options import MuonOptions

HIDDEN = [name for name, shape in SHAPES.items() if name.startswith("rack.") and len(shape) == 2]
DECAYS = ["head.weight"]
ROUND = {name: tuple(32 if size > 7 else 16 for size in shape) for name, shape in SHAPES.items()}
"""Sizes at which a batched product in bfloat16 rounds as the single one does."""


def by_rule(optimizer: Muon) -> dict[str, list[str]]:
    rules: dict[str, list[str]] = {"muon": [], "adamw": []}
    for group in optimizer.param_groups:
        rules[group["rule"]] += group["param_names"]
    return rules


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("scale", "theirs"), [("original", "original"), ("match-rms-adamw", "match_rms_adamw")])
def test_matrices_are_stepped_as_by_torch_and_the_rest_as_by_adamw(scale: str, theirs: str, nesterov: bool) -> None:
    mine, yours = named(ROUND), named(ROUND)
    options = MuonOptions(
        lr=0.03,
        weight_decay=0.2,
        momentum=0.9,
        nesterov=nesterov,
        scale=scale,
        precision="bfloat16",
        adamw_lr=0.01,
        adamw_weight_decay=0.3,
        adamw_beta1=0.8,
        adamw_beta2=0.97,
        adamw_eps=1e-6,
    )
    ours = build_muon(options, CONTEXT, [group_of(mine)])
    muon = torch.optim.Muon(
        [yours[name] for name in HIDDEN], lr=0.03, weight_decay=0.2, momentum=0.9, nesterov=nesterov, adjust_lr_fn=theirs
    )
    rest = [{"params": [p], "weight_decay": 0.3 if name in DECAYS else 0.0} for name, p in yours.items() if name not in HIDDEN]
    adamw = torch.optim.AdamW(rest, lr=0.01, betas=(0.8, 0.97), eps=1e-6)
    for step in range(25):
        give_gradients(mine, step)
        give_gradients(yours, step)
        ours.step()
        muon.step()
        adamw.step()
        for name, parameter in mine.items():
            torch.testing.assert_close(parameter, yours[name], rtol=1e-6, atol=1e-6)


def test_in_float32_it_is_the_definition() -> None:
    """m ← μm + (1−μ)g, Nesterov, five steps of the quintic on the normalised matrix, in double precision, matrix by matrix."""
    mine = named()
    theirs = {name: mine[name].detach().double() for name in HIDDEN}
    momentum = {name: torch.zeros_like(x) for name, x in theirs.items()}
    optimizer = build_muon(MuonOptions(lr=0.02, weight_decay=0.1), CONTEXT, [group_of(mine)])
    a, b, c = 3.4445, -4.7750, 2.0315
    for step in range(20):
        give_gradients(mine, step)
        optimizer.step()
        for name, x in theirs.items():
            gradient = mine[name].grad.double()
            momentum[name] = 0.95 * momentum[name] + 0.05 * gradient
            ahead = 0.95 * momentum[name] + 0.05 * gradient
            values = torch.linalg.svd(ahead / ahead.norm())
            singular = values.S
            for _ in range(5):
                singular = a * singular + b * singular**3 + c * singular**5
            k = len(singular)
            update = values.U[:, :k] @ torch.diag(singular) @ values.Vh[:k]
            theirs[name] = x - 0.02 * 0.1 * x - 0.02 * max(1.0, x.shape[0] / x.shape[1]) ** 0.5 * update
            torch.testing.assert_close(mine[name].detach().double(), theirs[name], rtol=1e-5, atol=2e-6)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6), st.integers(0, 2**31))
def test_a_batch_gives_what_each_matrix_gives_alone(shapes: list[tuple[int, int]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrices = [torch.randn(shape, generator=generator) for shape in shapes]
    together = orthogonalize(matrices, 5, torch.float32)
    for matrix, result in zip(matrices, together, strict=True):
        (alone,) = orthogonalize([matrix], 5, torch.float32)
        assert result.shape == matrix.shape
        torch.testing.assert_close(result, alone, rtol=1e-4, atol=1e-4)


def test_singular_values_come_near_one() -> None:
    """The quintic's five steps bring every singular value from 1e-3 up into about [0.7, 1.2]."""
    spread = torch.diag(torch.logspace(-2, 0, 12, dtype=torch.float64))
    left, right = (torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(i)))[0] for i in (1, 2))
    (result,) = orthogonalize([left @ spread @ right], 5, torch.float64)
    values = torch.linalg.svdvals(result)
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3
    assert sum(COEFFICIENTS) == pytest.approx(0.701)


def test_matrices_of_the_rack_are_muons_and_everything_else_is_adamws() -> None:
    rules = by_rule(build_muon(MuonOptions(), CONTEXT, [group_of(named())]))
    assert sorted(rules["muon"]) == sorted(HIDDEN)
    assert sorted(rules["adamw"]) == sorted(SHAPES.keys() - set(HIDDEN))


def test_selectors_name_other_matrices() -> None:
    shapes = {**SHAPES, "rack.conv.weight": (4, 3, 5)}
    parameters = named(shapes)
    optimizer = build_muon(MuonOptions(matrices=("rack.conv", "head.weight")), CONTEXT, [group_of(parameters)])
    assert sorted(by_rule(optimizer)["muon"]) == ["head.weight", "rack.conv.weight"]
    reference = named({"rack.flat.weight": (4, 15)})
    flat = build_muon(MuonOptions(), CONTEXT, [group_of(reference)])
    with torch.no_grad():
        reference["rack.flat.weight"].copy_(parameters["rack.conv.weight"].flatten(1))
    for step in range(3):
        give_gradients(parameters, step)
        reference["rack.flat.weight"].grad = parameters["rack.conv.weight"].grad.flatten(1)
        optimizer.step()
        flat.step()
    torch.testing.assert_close(parameters["rack.conv.weight"].flatten(1), reference["rack.flat.weight"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("matrices", "said"),
    [
        (("rack.stcks",), "'rack.stcks' matches no parameter"),
        (("*.bias",), r"optimizer\.matrices: rack\.stacks\.base\.0\.in\.bias has the shape \[8\]"),
    ],
)
def test_selectors_that_cannot_be(matrices: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build_muon(MuonOptions(matrices=matrices), CONTEXT, [group_of(named())])
    with pytest.raises(UserError, match="matrices: an empty list"):
        MuonOptions(matrices=())


def test_only_matrices_and_no_matrix_at_all() -> None:
    parameters = named()
    hidden = {name: parameters[name] for name in HIDDEN}
    assert by_rule(build_muon(MuonOptions(), CONTEXT, [group_of(hidden)]))["adamw"] == []
    rest = {name: p for name, p in parameters.items() if name not in HIDDEN}
    assert by_rule(build_muon(MuonOptions(), CONTEXT, [group_of(rest)]))["muon"] == []
    with pytest.raises(UserError, match="no parameter is left to train"):
        build_muon(MuonOptions(), CONTEXT, [])


def test_state_is_counted_by_name() -> None:
    spec = MuonOptions(matrices=("head.weight",)).to_spec()
    assert (spec.count("head.weight", (10, 6)), spec.count("rack.x", (10, 6))) == (60, 121)
    assert MuonOptions().to_spec() == MuonOptions(lr=1).to_spec() != spec
