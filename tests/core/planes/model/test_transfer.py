"""Names go back to the block that they came from; parameters are adopted, copied or left as drawn, and the receipt says which."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stackwise import BlockOrigin, CopyOf, Fresh, ProviderError, UserError
from stackwise.planes.model.transfer import check_new, load, origins, sources, zero_residuals

CPU = torch.device("cpu")


def layers(count: int, width: int = 2) -> nn.ModuleDict:
    return nn.ModuleDict({"list": nn.ModuleList(nn.Linear(width, 2) for _ in range(count))})


def named(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters(remove_duplicate=False))


@pytest.mark.parametrize(("path", "stack"), [("rack.stacks.{stack}.{index}", "base"), ("rack.{stack}.{index}", "encoder.layers")])
def test_a_name_inside_a_block_goes_to_its_origin(path: str, stack: str) -> None:
    """Also where the name of a stack has dots in it, as the path of a list in a module of one's own has."""
    block = path.format(stack=stack, index=1)
    source = sources(path, {(stack, 0): BlockOrigin(source=(stack, 0)), (stack, 1): BlockOrigin(source=(stack, 0))}, ["head."])
    assert source(f"{block}.out.weight") == f"{path.format(stack=stack, index=0)}.out.weight"
    assert source(f"weight_adapters.a.{block}.out.down") == f"weight_adapters.a.{path.format(stack=stack, index=0)}.out.down"
    assert source("rack.norm.weight") == "rack.norm.weight" and source("head.weight") is None
    assert sources(path, {(stack, 1): BlockOrigin(source=None)})(f"{block}.out.weight") is None


def test_the_same_is_adopted_another_shape_is_copied_and_the_rest_is_as_drawn() -> None:
    old, new = layers(2), layers(3)
    before, drawn = named(old), {name: tensor.clone() for name, tensor in named(new).items()}
    maps = {"list.1.weight": CopyOf(source="list.1.weight", factors={0: (2.0, 2.0)}), "list.1.bias": CopyOf(source="list.0.bias")}
    origin_of = {**origins(before, new, lambda name: name), **maps}
    receipt, after = load(before, new, origin_of, device=CPU), named(new)
    assert after["list.0.weight"] is before["list.0.weight"] and after["list.0.bias"] is before["list.0.bias"]
    assert torch.equal(after["list.1.weight"], 2 * before["list.1.weight"]) and torch.equal(after["list.1.bias"], before["list.0.bias"])
    assert torch.equal(after["list.2.weight"], drawn["list.2.weight"])
    assert set(receipt.adopted) == {"list.0.weight", "list.0.bias"} and set(receipt.copied) == set(maps)
    assert set(receipt.fresh) == {"list.2.weight", "list.2.bias"} and receipt.dropped == ("list.1.bias",)


def test_another_dtype_is_a_copy_that_is_recast() -> None:
    old, new = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    origin_of = origins(named(old), new, lambda name: name)
    receipt = load(named(old), new, origin_of, device=CPU, dtype_of=lambda name: torch.bfloat16)
    assert receipt.recast == {"weight": torch.float32} and new.weight.dtype == torch.bfloat16 and receipt.adopted == {}


def test_a_shape_without_a_map_and_a_parameter_that_nothing_announces_are_refused() -> None:
    with pytest.raises(UserError, match=r"list\.0\.weight"):
        origins(named(layers(1)), layers(1, width=3), lambda name: name)
    origin_of = origins(named(layers(1)), layers(2), lambda name: name)
    with pytest.raises(UserError, match=r"list\.1\.weight"):
        check_new(origin_of, lambda name: name, (), ())
    check_new(origin_of, lambda name: name, {"list.1.weight", "list.1.bias"}, ())
    check_new(origin_of, lambda name: None if name.startswith("list.1.") else name, (), ())
    assert isinstance(origin_of["list.1.bias"], Fresh)


def test_residual_outputs_of_new_blocks_are_zeroed_and_never_those_of_old_ones() -> None:
    model, block = nn.ModuleDict({"rack": layers(2)}), {("list", 1): BlockOrigin(source=None, zero_residual=True)}
    old = model.get_parameter("rack.list.0.weight").clone()
    zero_residuals(model, "rack.{stack}.{index}", ("weight",), block, {"rack.list.1.weight"})
    assert not model.get_parameter("rack.list.1.weight").any() and torch.equal(model.get_parameter("rack.list.0.weight"), old)
    with pytest.raises(ProviderError):
        zero_residuals(model, "rack.{stack}.{index}", ("weight",), block, ())
    with pytest.raises(UserError):
        zero_residuals(model, "rack.{stack}.{index}", (), block, ())
