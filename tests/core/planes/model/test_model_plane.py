"""The model plane: buffers, ties, maps by tensor, and residual outputs that are zeroed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from stackwise.contracts.growth import BlockOrigin, CopyOf, Fresh
from stackwise.contracts.specs import HeadSpec, RackSpec, TensorSpec
from stackwise.curriculum.parts import Part
from stackwise.curriculum.states import ModelState
from stackwise.errors import ProviderError, UserError
from stackwise.planes.model.difference import Boundary
from stackwise.planes.model.module import Model
from stackwise.planes.model.plane import ModelPlane
from stackwise.timeline.schedules import Curve


class Embed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.weight[tokens]


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        added: torch.Tensor = self.out(torch.tanh(self.inner(hidden)))
        return hidden + added


class Rack(nn.Module):
    def __init__(self, width: int, stacks: Mapping[str, int], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.declared, self.outputs = stacks, outputs
        self.stacks = nn.ModuleDict({name: nn.ModuleList(Block(width) for _ in range(count)) for name, count in stacks.items()})

    def to_spec(self) -> RackSpec:
        return RackSpec(stacks=self.declared, residual_outputs=self.outputs)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for blocks in self.stacks.children():
            for block in blocks.children():
                hidden = block(hidden)
        return hidden


class Head(nn.Module):
    def __init__(self, width: int, tied: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, width))
        self.tied = tied

    def get_spec(self) -> HeadSpec:
        ties = {"weight": "embedding.weight"} if self.tied else {}
        return HeadSpec(outputs={"logits": TensorSpec("batch time vocab")}, ties=ties)

    def forward(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": hidden @ self.weight.t()}


def build(role: str, part: Part, step: int) -> nn.Module:
    made: nn.Module = {"embedding": Embed, "rack": Rack, "head": Head}[role](**part.options)
    return made


def state(base: int = 2, width: int = 4, tied: bool = True, outputs: tuple[str, ...] = ("out.weight",), **options: Any) -> ModelState:
    rack = {"width": width, "stacks": {"base": base}, "outputs": outputs}
    return ModelState(
        embedding=Part(kind="embedding", id="e", options={"width": width}),
        rack=Part(kind="rack", id="r", options=rack),
        head=Part(kind="head", id="h", options={"width": width, "tied": tied}),
        stacks={"base": base},
        **options,
    )


def plane(declared: ModelState) -> ModelPlane:
    torch.manual_seed(0)
    made = ModelPlane(build)
    made.enter(declared)
    return made


def block(index: int) -> tuple[str, int]:
    return ("base", index)


def test_buffers_move_with_their_block() -> None:
    model = plane(state())
    model.model.get_buffer("rack.stacks.base.0.seen").fill_(7)
    model.model.get_buffer("rack.stacks.base.1.seen").fill_(8)
    blocks = {block(0): BlockOrigin(source=None), block(1): BlockOrigin(source=block(0)), block(2): BlockOrigin(source=block(1))}
    receipt = model.enter(state(base=3), Boundary(blocks=blocks))
    assert [float(model.model.get_buffer(f"rack.stacks.base.{i}.seen")) for i in range(3)] == [0, 7, 8]
    assert {name.split(".")[3] for name in receipt.fresh} == {"0"} and not receipt.copied
    moved = {name: old for name, old in receipt.adopted.items() if name != old}
    assert len(moved) == 8 and all(name.replace(".1.", ".0.").replace(".2.", ".1.") == old for name, old in moved.items())


def test_a_block_prepended_moves_the_others_values_and_drops_none() -> None:
    model = plane(state())
    old = {name: p.detach().clone() for name, p in model.model.named_parameters()}
    blocks = {block(0): BlockOrigin(source=None), block(1): BlockOrigin(source=block(0)), block(2): BlockOrigin(source=block(1))}
    receipt = model.enter(state(base=3), Boundary(blocks=blocks))
    for i in (1, 2):
        assert torch.equal(model.model.get_parameter(f"rack.stacks.base.{i}.out.weight"), old[f"rack.stacks.base.{i - 1}.out.weight"])
    assert receipt.dropped == ()


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_identity_block_at_any_place_zeroes_outputs_and_biases_and_nothing_else(place: int) -> None:
    model = plane(state())
    batch = {"tokens": torch.arange(5).view(1, 5)}
    before = model.model(batch)["logits"]
    sources = [0, 1]
    sources.insert(place, -1)
    blocks = {block(i): BlockOrigin(source=None if s < 0 else block(s), zero_residual=s < 0) for i, s in enumerate(sources)}
    model.enter(state(base=3), Boundary(blocks=blocks))
    assert torch.equal(model.model(batch)["logits"], before)
    fresh = model.model.get_submodule(f"rack.stacks.base.{place}")
    assert not fresh.out.weight.any() and not fresh.out.bias.any() and fresh.inner.weight.all()


def test_an_operator_that_zeroes_needs_a_rack_that_says_what() -> None:
    model = plane(state(outputs=()))
    blocks = {
        block(0): BlockOrigin(source=block(0)),
        block(1): BlockOrigin(source=block(1)),
        block(2): BlockOrigin(source=None, zero_residual=True),
    }
    with pytest.raises(UserError, match="names none"):
        model.enter(state(base=3, outputs=()), Boundary(blocks=blocks))


class Widen:
    """Doubles the width of the embedding's vectors by repeating their rows' first entries, and zeroes the head."""

    def map_parameters(self, old: Mapping[str, tuple[int, ...]], new: Mapping[str, tuple[int, ...]], request: object) -> dict[str, Any]:
        grown: dict[str, Any] = {name: Fresh(init="zeros") for name, shape in new.items() if old[name] != shape}
        bias = "rack.stacks.base.0.out.bias"
        return {**grown, bias: CopyOf(source=bias, index={0: (0, 1, 2, 3, 0, 1)}, factors={0: (0.5,) * 6})}


def test_a_map_by_tensor_copies_by_index_and_scale() -> None:
    model = plane(state())
    bias = model.model.get_parameter("rack.stacks.base.0.out.bias").detach().clone()
    receipt = model.enter(state(width=6), Boundary(growth=Widen()))
    grown = model.model.get_parameter("rack.stacks.base.0.out.bias")
    assert torch.equal(grown, bias[[0, 1, 2, 3, 0, 1]] * 0.5)
    assert not model.model.get_parameter("embedding.weight").any()
    assert list(receipt.copied) == ["rack.stacks.base.0.out.bias"] and receipt.adopted == {}


def test_a_shape_that_changes_without_a_map_is_named_with_both_shapes() -> None:
    with pytest.raises(UserError, match=r"embedding\.weight changes its shape from \(5, 4\) to \(5, 6\)"):
        plane(state()).enter(state(width=6))


def test_a_replaced_part_starts_anew_and_the_rest_is_adopted() -> None:
    model = plane(state(tied=False))
    old = dict(model.model.named_parameters())
    before = state(tied=False)
    head = Part(kind="head", id="another", options={"width": 4, "tied": False})
    after = ModelState(embedding=before.embedding, rack=before.rack, head=head, stacks=before.stacks)
    receipt = model.enter(after)
    assert receipt.fresh == ("head.weight",) and receipt.dropped == ("head.weight",)
    assert all(p is old[name] for name, p in model.model.named_parameters() if name != "head.weight")


def test_ties_are_remade_after_every_exchange() -> None:
    model = plane(state())
    assert model.model.head.weight is model.model.embedding.weight
    assert "head.weight" not in model.trainable()
    model.enter(state(base=3), Boundary(blocks={block(i): BlockOrigin(source=block(0)) for i in range(3)}))
    assert model.model.head.weight is model.model.embedding.weight
    assert len(list(model.model.parameters())) == 13


def test_options_that_follow_time_need_a_module_that_takes_them() -> None:
    declared = state()
    rack = Part(kind="rack", id="r", options=declared.rack.options, curves={"dropout": Curve.constant(0.1)})
    with pytest.raises(ProviderError, match=r"options that follow time \(dropout\) but its module has no apply_values"):
        plane(ModelState(embedding=declared.embedding, rack=rack, head=declared.head, stacks=declared.stacks))


def test_a_plain_model_takes_the_fields_its_signatures_name() -> None:
    torch.manual_seed(0)
    model = Model(Embed(4), nn.Identity(), Head(4, tied=False))
    out = model({"tokens": torch.tensor([[1, 2]]), "unused": torch.zeros(1)})
    assert out["logits"].shape == (1, 2, 5)
