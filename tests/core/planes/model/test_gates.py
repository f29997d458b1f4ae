"""Gates: x + α·F(x), where a hook multiplies what a block's residual outputs make."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stackwise import BlockOrigin, RackSpec, UserError
from stackwise.planes.model.gates import Gates, gated_modules

CPU = torch.device("cpu")
NEW = {("base", 0): BlockOrigin(source=("base", 0)), ("base", 1): BlockOrigin(source=None, gated=True)}


def test_a_gate_multiplies_until_it_is_taken_away() -> None:
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    plain = layer(x)
    gates = Gates([layer], 0.0, CPU)
    assert torch.equal(layer(x), torch.zeros(1, 2))
    gates.set(0.25)
    torch.testing.assert_close(layer(x), 0.25 * plain)
    gates.remove()
    assert torch.equal(layer(x), plain)


def test_a_gate_scales_the_gradient_and_keeps_the_dtype() -> None:
    layer = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    Gates([layer], 0.5, CPU)
    output = layer(torch.ones(1, 1, dtype=torch.bfloat16))
    output.sum().backward()
    assert output.dtype == torch.bfloat16 and layer.weight.grad is not None and float(layer.weight.grad) == 0.5


def test_the_owners_of_residual_outputs_of_gated_blocks_are_gated() -> None:
    spec = RackSpec(residual_outputs=("attention.out.weight", "mlp.weight"), block_path="{stack}.{index}")
    assert gated_modules(spec, NEW) == ("rack.base.1.attention.out", "rack.base.1.mlp")
    assert gated_modules(RackSpec(), {place: BlockOrigin(source=place) for place in NEW}) == ()


@pytest.mark.parametrize("outputs", [(), ("weight",)])
def test_a_block_without_an_owner_of_its_output_cannot_be_gated(outputs: tuple[str, ...]) -> None:
    with pytest.raises(UserError):
        gated_modules(RackSpec(residual_outputs=outputs), NEW)
