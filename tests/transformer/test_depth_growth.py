"""Depth growth: the maps of the two operators, and what identity growth keeps."""

from __future__ import annotations

import pytest
import torch
from tiny_walks import VOCAB, base, machine_of
from torch import nn

from stackwise import BlockOrigin, BuildContext, GrowthRequest, PhaseEntered, StepDone
from stackwise_providers_transformer.decoder import Decoder
from stackwise_providers_transformer.growth import build_identity, build_stack
from stackwise_providers_transformer.options import DecoderOptions, GrowthOptions

STACK = build_stack(GrowthOptions(), BuildContext(seed=0))
IDENTITY = build_identity(GrowthOptions(), BuildContext(seed=0))


def _request(old: dict[str, int], new: dict[str, int]) -> GrowthRequest:
    return GrowthRequest(old_stacks=old, new_stacks=new)


def _sources(old: dict[str, int], new: dict[str, int]) -> dict[tuple[str, int], tuple[str, int] | None]:
    return {block: origin.source for block, origin in STACK.map_blocks(_request(old, new)).items()}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [(2, 6, [0, 1, 0, 1, 0, 1]), (3, 6, [0, 1, 2, 0, 1, 2]), (2, 5, [0, 1, 0, 1, 0]), (1, 3, [0, 0, 0]), (2, 2, [0, 1]), (3, 1, [0])],
)
def test_stack_repeats_the_old_blocks_in_order(old: int, new: int, expected: list[int]) -> None:
    assert _sources({"base": old}, {"base": new}) == {("base", i): ("base", source) for i, source in enumerate(expected)}


def test_stack_maps_each_stack_by_itself() -> None:
    assert _sources({"a": 1, "b": 2}, {"a": 2, "b": 2}) == {("a", 0): ("a", 0), ("a", 1): ("a", 0), ("b", 0): ("b", 0), ("b", 1): ("b", 1)}


def test_stack_has_nothing_to_copy_into_a_new_stack() -> None:
    with pytest.raises(ValueError, match=r"'top' is new: deepen 'base' instead, or let 'identity' begin"):
        STACK.map_blocks(_request({"base": 2}, {"base": 2, "top": 1}))


def test_a_stack_that_is_gone_is_in_neither_map() -> None:
    for operator in (STACK, IDENTITY):
        assert set(operator.map_blocks(_request({"a": 1, "b": 2}, {"a": 1}))) == {("a", 0)}


def test_identity_keeps_what_was_there_and_adds_zeroed_blocks() -> None:
    zeroed = BlockOrigin(source=None, zero_residual=True)
    assert IDENTITY.map_blocks(_request({"base": 1}, {"under": 1, "base": 2})) == {
        ("under", 0): zeroed,
        ("base", 0): BlockOrigin(source=("base", 0)),
        ("base", 1): zeroed,
    }


def test_each_operator_says_whether_it_keeps_the_function() -> None:
    assert IDENTITY.preserves_function is True
    assert STACK.preserves_function is False


EVERYTHING = {
    "norm": "layernorm",
    "bias": True,
    "qk_norm": True,
    "kv_heads": 1,
    "mlp": "gelu",
    "positions": "learned",
    "max_positions": 8,
}


@pytest.mark.parametrize("form", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("stacks", [[{"base": 5}], [{"base": 2}, {"top": 2}], [{"under": 1}, {"base": 3}]])
def test_identity_growth_leaves_the_outputs_exactly_as_they_were(stacks: list[dict[str, int]], form: dict[str, object]) -> None:
    torch.manual_seed(0)
    old = Decoder(DecoderOptions(width=16, heads=2, stacks=[{"base": 2}], init_std=0.3, **form))
    new = Decoder(DecoderOptions(width=16, heads=2, stacks=stacks, init_std=0.3, **form))
    for decoder in (old, new):
        for name, parameter in decoder.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter)
    new.norm.load_state_dict(old.norm.state_dict())
    if old.positions is not None and new.positions is not None:
        new.positions.load_state_dict(old.positions.state_dict())
    for (stack, index), origin in IDENTITY.map_blocks(_request(old.to_spec().stacks, new.to_spec().stacks)).items():
        block = new.get_submodule(f"stacks.{stack}.{index}")
        if origin.source is not None:
            block.load_state_dict(old.get_submodule("stacks.{}.{}".format(*origin.source)).state_dict())
        if origin.zero_residual:
            for name in new.to_spec().residual_outputs:
                nn.init.zeros_(block.get_parameter(name))
    hidden = torch.randn(2, 6, 16)
    assert torch.equal(new(hidden), old(hidden))


@pytest.mark.parametrize(("operator", "keeps"), [("identity", True), ("stack", False)])
def test_a_run_grows_a_decoder_with_every_option(operator: str, keeps: bool) -> None:
    rack = {"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": [{"base": 2}], "init_std": 0.3, **EVERYTHING}
    deep = {"until": "100%", "model": {"rack": {"stacks": [{"base": 4}]}}, "enter": {"growth": {"use": f"transformer.{operator}"}}}
    model = {"embedding": {"use": "transformer.token", "vocab": VOCAB}, "rack": rack, "head": {"use": "transformer.lm"}}
    machine = machine_of(base(model=model, phases={"shallow": {"until": "50%"}, "deep": deep}))
    batch = {"tokens": torch.arange(6)[None]}
    outputs: list[torch.Tensor] = []
    for event in machine.train():
        if (isinstance(event, StepDone) and event.step == 5) or (isinstance(event, PhaseEntered) and event.phase == "deep"):
            with torch.no_grad():
                outputs.append(machine.model.model(batch)["logits"])
            biases = [p for name, p in machine.model.model.named_parameters() if "stacks.base.1." in name and name.endswith("output.bias")]
            assert all(bias.any() for bias in biases)
    before, after = outputs
    assert torch.allclose(before, after, rtol=0, atol=1e-6) is keeps
    grown = {name for name, _ in machine.model.model.named_parameters() if "base.3." in name}
    assert {name.rpartition("base.3.")[2] for name in grown} >= {"attention.query_norm.bias", "attention.output.bias", "mlp.down.bias"}
