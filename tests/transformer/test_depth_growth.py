"""Depth growth: the maps of the operators against a table written by hand, and what identity and gated growth keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_walks import VOCAB, base, machine_of
from torch import nn

from stackwise import BlockOrigin, BuildContext, GrowthRequest, PhaseEntered, StepDone, UserError
from stackwise_providers_transformer.decoder import Decoder
from stackwise_providers_transformer.depth_growth import (
    build_blocks,
    build_gated,
    build_identity,
    build_interleave,
    build_middle,
    build_stack,
)
from stackwise_providers_transformer.growth_options import (
    BlocksOptions,
    GatedOptions,
    IdentityOptions,
    InterleaveOptions,
    MiddleOptions,
    StackOptions,
)
from stackwise_providers_transformer.options import DecoderOptions

CONTEXT = BuildContext(seed=0)
STACK = build_stack(StackOptions(), CONTEXT)
INTERLEAVE = build_interleave(InterleaveOptions(), CONTEXT)
MIDDLE = build_middle(MiddleOptions(), CONTEXT)
IDENTITY = build_identity(IdentityOptions(), CONTEXT)
GATED = build_gated(GatedOptions(gate=0.0), CONTEXT)
GATED_COPY = build_gated(GatedOptions(gate=0.0, base="copy"), CONTEXT)
EVERY = [STACK, INTERLEAVE, MIDDLE, IDENTITY, GATED, GATED_COPY]

ZEROED = BlockOrigin(source=None, zero_residual=True)


def _request(old: Mapping[str, int], new: Mapping[str, int]) -> GrowthRequest:
    return GrowthRequest(old_stacks=old, new_stacks=new)


def _sources(operator: Any, old: dict[str, int], new: dict[str, int]) -> dict[tuple[str, int], tuple[str, int] | None]:
    return {block: origin.source for block, origin in operator.map_blocks(_request(old, new)).items()}


TABLE = [
    (STACK, 2, 6, [0, 1, 0, 1, 0, 1]),
    (STACK, 3, 6, [0, 1, 2, 0, 1, 2]),
    (STACK, 2, 5, [0, 1, 0, 1, 0]),
    (STACK, 1, 3, [0, 0, 0]),
    (INTERLEAVE, 2, 6, [0, 0, 0, 1, 1, 1]),
    (INTERLEAVE, 3, 6, [0, 0, 1, 1, 2, 2]),
    (INTERLEAVE, 2, 5, [0, 0, 0, 1, 1]),
    (INTERLEAVE, 4, 6, [0, 0, 1, 2, 2, 3]),
    (MIDDLE, 6, 8, [0, 1, 2, 3, 2, 3, 4, 5]),  # three pieces of two: the second again
    (MIDDLE, 8, 10, [0, 1, 2, 3, 2, 3, 4, 5, 6, 7]),  # four pieces of two: the second again
    (MIDDLE, 4, 8, [0, 1, 2, 3, 0, 1, 2, 3]),  # one piece
    (MIDDLE, 1, 2, [0, 0]),
    (MIDDLE, 3, 4, [0, 1, 1, 2]),
    (MIDDLE, 5, 7, [0, 1, 2, 1, 2, 3, 4]),  # two does not divide five: floor((5 - 2) / 2) = 1
]


@pytest.mark.parametrize(("operator", "old", "new", "expected"), TABLE)
def test_a_deeper_stack_copies_by_the_rule(operator: Any, old: int, new: int, expected: list[int]) -> None:
    assert _sources(operator, {"base": old}, {"base": new}) == {("base", i): ("base", source) for i, source in enumerate(expected)}


@pytest.mark.parametrize("operator", EVERY)
@pytest.mark.parametrize(("old", "new"), [(2, 2), (3, 1), (4, 2)])
def test_a_stack_that_does_not_deepen_keeps_its_first_blocks(operator: Any, old: int, new: int) -> None:
    assert _sources(operator, {"base": old}, {"base": new}) == {("base", i): ("base", i) for i in range(new)}


@pytest.mark.parametrize("operator", [STACK, INTERLEAVE, MIDDLE])
def test_each_stack_is_mapped_by_itself(operator: Any) -> None:
    found = _sources(operator, {"a": 1, "b": 2}, {"a": 2, "b": 2})
    assert found == {("a", 0): ("a", 0), ("a", 1): ("a", 0), ("b", 0): ("b", 0), ("b", 1): ("b", 1)}


@pytest.mark.parametrize(("build", "options"), [(build_stack, StackOptions), (build_interleave, InterleaveOptions)])
def test_a_new_stack_copies_its_source_wherever_it_stands(build: Any, options: Any) -> None:
    operator = build(options(source="base"), CONTEXT)
    rule = [0, 1, 2, 0] if build is build_stack else [0, 0, 1, 2]
    for new in ({"under": 4, "base": 3}, {"base": 3, "over": 4}):
        found = _sources(operator, {"base": 3}, new)
        (begun,) = set(new) - {"base"}
        assert list(found) == [(stack, i) for stack, count in new.items() for i in range(count)]
        assert [found[begun, i] for i in range(4)] == [("base", index) for index in rule]
        assert [found["base", i] for i in range(3)] == [("base", i) for i in range(3)]


def test_right_to_left_stacking_grows_in_three_phases() -> None:
    operator = build_stack(StackOptions(source="top"), CONTEXT)
    found = _sources(operator, {"top": 2}, {"middle": 2, "top": 2})
    assert [found["middle", i] for i in range(2)] == [("top", 0), ("top", 1)]
    found = _sources(build_stack(StackOptions(source="middle"), CONTEXT), {"middle": 2, "top": 2}, {"low": 2, "middle": 2, "top": 2})
    assert [found["low", i] for i in range(2)] == [("middle", 0), ("middle", 1)]


@pytest.mark.parametrize(
    ("operator", "old", "new", "says"),
    [
        (STACK, {"base": 2}, {"base": 2, "top": 1}, r"'top' is new: deepen 'base' instead, .* 'source' .* 'identity' begin it"),
        (MIDDLE, {"a": 2, "b": 1}, {"a": 2, "b": 1, "c": 1}, r"'c' is new: deepen 'a' or 'b' instead"),
        (MIDDLE, {"base": 2}, {"base": 5}, r"2 blocks become at most 4: grow to 5 in several phases"),
        (build_stack(StackOptions(source="no"), CONTEXT), {"base": 2}, {"base": 2, "top": 1}, r"no stack 'no' to copy: name 'base'"),
        (build_interleave(InterleaveOptions(source="base"), CONTEXT), {"base": 2}, {"base": 4}, r"'base' has no effect"),
        (GATED_COPY, {"base": 2}, {"base": 2, "top": 1}, r"'top' is new, so there is nothing to copy: deepen 'base', or set 'base: fresh'"),
        (build_gated(GatedOptions(gate=0.5), CONTEXT), {"base": 2}, {"base": 3}, r"gate: it starts at 0.5"),
        (build_gated(GatedOptions(gate=1.0), CONTEXT), {"base": 2}, {"base": 3}, r"gate: it starts at 1, so that the function would jump"),
    ],
)
def test_what_cannot_be_done_is_refused(operator: Any, old: dict[str, int], new: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        operator.map_blocks(_request(old, new))


@pytest.mark.parametrize("operator", [STACK, INTERLEAVE, MIDDLE, IDENTITY, GATED, GATED_COPY])
def test_a_stack_that_is_gone_is_in_no_map(operator: Any) -> None:
    assert set(operator.map_blocks(_request({"a": 1, "b": 2}, {"a": 1}))) == {("a", 0)}


def test_identity_keeps_what_was_there_and_adds_zeroed_blocks() -> None:
    assert IDENTITY.map_blocks(_request({"base": 1}, {"under": 1, "base": 2})) == {
        ("under", 0): ZEROED,
        ("base", 0): BlockOrigin(source=("base", 0)),
        ("base", 1): ZEROED,
    }


def test_identity_at_the_start_pushes_the_old_blocks_up() -> None:
    at_start = build_identity(IdentityOptions(at="start"), CONTEXT)
    assert at_start.map_blocks(_request({"base": 2}, {"base": 3})) == {
        ("base", 0): ZEROED,
        ("base", 1): BlockOrigin(source=("base", 0)),
        ("base", 2): BlockOrigin(source=("base", 1)),
    }


@pytest.mark.parametrize(("operator", "source"), [(GATED, None), (GATED_COPY, ("base", 0))])
def test_new_blocks_are_gated_and_old_ones_are_not(operator: Any, source: tuple[str, int] | None) -> None:
    assert operator.map_blocks(_request({"base": 2}, {"base": 3})) == {
        ("base", 0): BlockOrigin(source=("base", 0)),
        ("base", 1): BlockOrigin(source=("base", 1)),
        ("base", 2): BlockOrigin(source=source, gated=True),
    }


def test_each_operator_says_whether_it_keeps_the_function() -> None:
    assert [operator.preserves_function for operator in EVERY] == [False, False, False, True, True, True]


def brute_force(kind: str, old: Mapping[str, int], new: Mapping[str, int], source: str | None) -> dict[tuple[str, int], Any]:
    """The maps as the papers' tables say them: repetition, neighbours, the middle piece laid out again; block by block."""
    found: dict[tuple[str, int], Any] = {}
    for stack, count in new.items():
        there = stack if stack in old else source
        known = [(there, i) for i in range(old.get(str(there), 0))]
        if stack in old and count <= old[stack]:
            blocks: list[Any] = known[:count]
        elif kind == "stack":
            blocks = (known * count)[:count]
        elif kind == "interleave":
            times, left = divmod(count, len(known))
            blocks = [known[int(i / (count / len(known)) + 1e-9)] for i in range(count)] if left else sorted(known * times)
        elif kind == "middle":
            size = count - len(known)
            pieces = [known[i : i + size] for i in range(0, len(known), size)]
            if len(known) % size:
                low = (len(known) - size) // 2
                pieces = [known[:low], known[low : low + size], known[low + size :]]
                pieces.insert(2, pieces[1])
            else:
                pieces.insert((len(pieces) + 1) // 2, pieces[(len(pieces) + 1) // 2 - 1])
            blocks = [block for piece in pieces for block in piece]
        else:
            blocks = [(stack, i) for i in range(min(count, old.get(stack, 0)))]
            blocks += ["new"] * (count - len(blocks))
        found |= {(stack, i): block for i, block in enumerate(blocks)}
    return found


@given(
    kind=st.sampled_from(["stack", "interleave", "middle", "identity", "gated"]),
    old=st.dictionaries(st.sampled_from("abcd"), st.integers(1, 7), min_size=1),
    new=st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 20), min_size=1),
)
def test_random_stacks_are_mapped_as_the_table_says(kind: str, old: dict[str, int], new: dict[str, int]) -> None:
    source = next(iter(old)) if set(new) - set(old) else None
    if kind == "middle":
        new = {stack: min(count, 2 * old[stack]) for stack, count in new.items() if stack in old} or dict(old)
    operator = {
        "stack": lambda: build_stack(StackOptions(source=source), CONTEXT),
        "interleave": lambda: build_interleave(InterleaveOptions(source=source), CONTEXT),
        "middle": lambda: MIDDLE,
        "identity": lambda: IDENTITY,
        "gated": lambda: GATED,
    }[kind]()
    origins = operator.map_blocks(_request(old, new))
    assert {block: origin.source or "new" for block, origin in origins.items()} == brute_force(kind, old, new, source)
    for origin in origins.values():
        fresh = origin.source is None
        assert (origin.zero_residual, origin.gated) == (fresh and kind == "identity", fresh and kind == "gated")


EVERYTHING = {
    "norm": "layernorm",
    "bias": True,
    "qk_norm": True,
    "kv_heads": 1,
    "mlp": "gelu",
    "positions": "learned",
    "max_positions": 8,
}


def _carried(old: Decoder, new: Decoder, blocks: Mapping[tuple[str, int], BlockOrigin]) -> None:
    """Fill the new rack by the map, written with torch's own state dicts."""
    new.norm.load_state_dict(old.norm.state_dict())
    if old.positions is not None and new.positions is not None:
        new.positions.load_state_dict(old.positions.state_dict())
    for (stack, index), origin in blocks.items():
        block = new.get_submodule(f"stacks.{stack}.{index}")
        if origin.source is not None:
            block.load_state_dict(old.get_submodule("stacks.{}.{}".format(*origin.source)).state_dict())
        if origin.zero_residual:
            for name in new.to_spec().residual_outputs:
                nn.init.zeros_(block.get_parameter(name))


def _gate(rack: Decoder, blocks: Mapping[tuple[str, int], BlockOrigin], gate: float) -> None:
    """Multiply the outputs of the modules that own the residual outputs of gated blocks."""
    owners = {name.rpartition(".")[0] for name in rack.to_spec().residual_outputs}
    for (stack, index), origin in blocks.items():
        for owner in owners if origin.gated else ():
            rack.get_submodule(f"stacks.{stack}.{index}.{owner}").register_forward_hook(lambda _m, _i, output: output * gate)


def _racks(form: dict[str, Any], stacks: list[dict[str, int]]) -> tuple[Decoder, Decoder]:
    torch.manual_seed(0)
    made = [Decoder(DecoderOptions(width=16, heads=2, stacks=each, init_std=0.3, **form)) for each in ([{"base": 2}], stacks)]
    for decoder in made:
        for name, parameter in decoder.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter)
    return made[0], made[1]


@pytest.mark.parametrize("form", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("stacks", [[{"base": 5}], [{"base": 2}, {"top": 2}], [{"under": 1}, {"base": 3}]])
@pytest.mark.parametrize("at", ["end", "start"])
def test_identity_growth_leaves_the_outputs_exactly_as_they_were(stacks: list[dict[str, int]], form: dict[str, Any], at: str) -> None:
    old, new = _racks(form, stacks)
    operator = build_identity(IdentityOptions(at=at), CONTEXT)
    _carried(old, new, operator.map_blocks(_request(old.to_spec().stacks, new.to_spec().stacks)))
    hidden = torch.randn(2, 6, 16)
    assert torch.equal(new(hidden), old(hidden))


@pytest.mark.parametrize("form", [{}, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize(
    ("operator", "stacks"), [(GATED, [{"base": 5}]), (GATED, [{"under": 1}, {"base": 3}, {"top": 1}]), (GATED_COPY, [{"base": 5}])]
)
def test_gated_growth_begins_with_the_outputs_as_they_were(operator: Any, stacks: list[dict[str, int]], form: dict[str, Any]) -> None:
    old, new = _racks(form, stacks)
    blocks = operator.map_blocks(_request(old.to_spec().stacks, new.to_spec().stacks))
    _carried(old, new, blocks)
    hidden = torch.randn(2, 6, 16)
    assert not torch.allclose(new(hidden), old(hidden), atol=1e-2)
    _gate(new, blocks, 0.0)
    assert torch.equal(new(hidden), old(hidden))


@pytest.mark.parametrize(("operator", "keeps"), [("identity", True), ("stack", False), ("interleave", False), ("middle", False)])
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


def _blocks(**map: tuple[int | str, ...]) -> Any:
    return build_blocks(BlocksOptions(map=map), CONTEXT)


def _mapped(operator: Any, old: int, new: int) -> list[tuple[int, bool]]:
    found = operator.map_blocks(_request({"base": old}, {"base": new}))
    return [(found["base", i].source[1], found["base", i].zero_residual) for i in range(new)]


def test_a_map_that_is_written_out_is_followed_block_by_block() -> None:
    solar = _blocks(base=("0-23", "8-31"))
    assert _mapped(solar, 32, 48) == [(i, False) for i in (*range(24), *range(8, 32))] and not solar.preserves_function
    pro = _blocks(base=("0-1", "identity", 2, 3, "identity"))
    assert _mapped(pro, 4, 6) == [(0, False), (1, False), (1, True), (2, False), (3, False), (3, True)] and pro.preserves_function
    assert not _blocks(base=(1, 0)).preserves_function


@pytest.mark.parametrize(
    ("entries", "depths", "words"),
    [
        (("0-1",), (2, 3), "says 2 blocks, and the rack has 3"),
        ((0, 2), (2, 2), "no old block 2"),
        ((0, "identity"), (2, 2), "from 1 on are left out"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(entries: tuple[int | str, ...], depths: tuple[int, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _mapped(_blocks(base=entries), *depths)


@pytest.mark.parametrize("entries", [("identity",), ("3-1",), ("all",), (-1,)])
def test_an_entry_that_is_no_block_is_refused(entries: tuple[int | str, ...]) -> None:
    with pytest.raises(UserError, match=r"map\.base"):
        _blocks(base=entries)


def test_identity_blocks_of_a_map_keep_every_bit_of_the_logits_and_train() -> None:
    machine = machine_of(
        base(
            model={
                "embedding": {"use": "transformer.token", "vocab": VOCAB},
                "rack": {"use": "transformer.decoder", "width": 8, "heads": 2, "stacks": [{"base": 2}]},
                "head": {"use": "transformer.lm"},
            },
            phases={
                "old": {"until": "2 steps"},
                "new": {
                    "model": {
                        "rack": {"stacks": [{"base": 4}]},
                        "freeze": ["embedding", "rack.norm", "rack.stacks.base.0", "rack.stacks.base.2"],
                    },
                    "enter": {"growth": {"use": "transformer.blocks", "map": {"base": [0, "identity", 1, "identity"]}}},
                },
            },
        )
    )
    tokens = torch.arange(8).view(1, 8)
    frozen: dict[str, torch.Tensor] = {}
    expected = torch.empty(0)
    for event in machine.train():
        if isinstance(event, StepDone) and event.step == 1:
            expected = machine.model.model({"tokens": tokens})["logits"].detach()
        if isinstance(event, PhaseEntered) and event.phase == "new":
            model = machine.model.model
            assert torch.equal(model({"tokens": tokens})["logits"], expected)
            frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    after = dict(machine.model.model.named_parameters())
    assert all(torch.equal(after[name], values) for name, values in frozen.items()) and len(frozen) > 8
    assert all(after[f"rack.stacks.base.{i}.mlp.down.weight"].abs().max() > 0 for i in (1, 3))


def test_a_block_keeps_its_kind_or_growth_is_refused() -> None:
    from stackwise_providers_transformer.block_options import WindowOptions

    def grow(before: tuple[bool, ...], after: tuple[bool, ...]) -> object:
        options = [{"rack": {"window": WindowOptions(size=3, blocks=blocks)}} for blocks in (before, after)]
        request = GrowthRequest(old_stacks={"base": 2}, new_stacks={"base": 3}, old_options=options[0], new_options=options[1])
        return _blocks(base=(0, "identity", 1)).map_blocks(request)

    assert grow((True, False), (True, True, False))
    with pytest.raises(ValueError, match=r"window\.blocks"):
        grow((True, False), (True, False))
