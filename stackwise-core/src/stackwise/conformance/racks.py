"""What only a rack promises: side inputs, names of blocks that growth finds, and the parameters whose zero makes a block the identity."""

from __future__ import annotations

from typing import Any

import attrs
import torch

from stackwise.conformance import bench, partners
from stackwise.conformance.modules import fields_of, forward, given_for
from stackwise.conformance.subject import LENGTH, ROWS, SEED, NotApplicable, Subject, must
from stackwise.contracts.options import Stack
from stackwise.contracts.specs import RackSpec


def check_side_inputs(subject: Subject) -> None:
    """A rack takes every side input of its spec by keyword, alone and together with the others, and gives the same shape.

    Usual cause: a name in the spec that `forward` spells otherwise, or two that exclude each other.
    """
    spec = _spec(subject)
    if not spec.side:
        raise NotApplicable("its spec names no side input")
    generator = torch.Generator().manual_seed(SEED)
    rack = bench.build_module(subject).eval()
    hidden = partners.draw(spec.input, ROWS, LENGTH, generator)
    lowest = {name: _lowest(field) for name, field in spec.side.items()}
    needed = {name: lowest[name] for name in spec.needs}
    with torch.no_grad():
        shape = forward(rack, spec, {"hidden": hidden, **needed}).shape
        for side in ({}, *({name: tensor} for name, tensor in lowest.items()), lowest):
            shape_with = forward(rack, spec, {"hidden": hidden, **needed, **side}).shape
            must(shape_with == shape, f"with {', '.join(side)} the output has shape {tuple(shape_with)}, without it {tuple(shape)}")


def check_blocks_keep_their_names(subject: Subject) -> None:
    """Blocks stand where `block_path` says; a rack with one block more has the same names and shapes for all that were there before.

    Usual cause: blocks kept under another name than `stacks.<stack>.<i>`; a parameter whose size depends on the depth.
    """
    spec, deeper = _spec(subject), _deeper(subject)
    before = bench.build_module(subject)
    after = bench.build_module(subject, options=deeper)
    for stack, blocks in spec.stacks.items():
        for i in range(blocks):
            path = spec.block_path.format(stack=stack, index=i)
            must(
                any(name.startswith(f"{path}.") for name in before.state_dict()),
                f"block {i} of stack '{stack}' has nothing under '{path}.'",
            )
    shapes = {name: tuple(parameter.shape) for name, parameter in after.named_parameters()}
    for name, parameter in before.named_parameters():
        must(name in shapes, f"'{name}' is gone when a stack has one block more, so its weights would be lost")
        must(
            shapes[name] == tuple(parameter.shape),
            f"'{name}' is {tuple(parameter.shape)}, and {shapes[name]} when a stack has one block more",
        )


def check_runs_in_parts(subject: Subject) -> None:
    """A rack with `forward_blocks` makes the same in two parts, cut in front of any block, as in one.

    Usual cause: positions or a norm that both parts add, or neither; a mask that is made of the part's input.
    """
    rack: Any = bench.build_module(subject).eval()
    if not hasattr(rack, "forward_blocks"):
        raise NotApplicable("it has no `forward_blocks`")
    spec = bench.with_sizes(subject.options().to_spec(), subject.sizes())
    given = given_for(spec)
    hidden, side = given["hidden"], {name: tensor for name, tensor in given.items() if name != "hidden"}
    with bench.seeded(SEED), torch.no_grad():
        for parameter in rack.parameters():
            parameter.add_(torch.randn_like(parameter) / 8)
        whole = rack(hidden, **side)
        if not isinstance(whole, torch.Tensor):
            raise NotApplicable("it reports sums beside the hidden state, and runs whole then")
        for cut in range(sum(spec.stacks.values()) + 1):
            parts = rack.forward_blocks(rack.forward_blocks(hidden, 0, cut, **side), cut, None, **side)
            must(parts.shape == whole.shape, f"cut in front of block {cut} it makes {tuple(parts.shape)}, whole {tuple(whole.shape)}")
            furthest = float((parts - whole).abs().max())
            must(furthest <= 1e-5 * max(1.0, float(whole.abs().max())), f"cut in front of block {cut} it differs by {furthest:.3g}")


def check_zero_residual_is_identity(subject: Subject) -> None:
    """With the residual outputs that the spec names at zero, a block hands its input on: growth can insert it unnoticed.

    Usual cause: an output of the block that is not named in `residual_outputs`, or a norm after the sum.
    """
    spec = _spec(subject)
    if not spec.residual_outputs:
        raise NotApplicable("its spec names no residual outputs")
    deeper = bench.build_module(subject, options=_deeper(subject)).eval()
    before = bench.build_module(subject).eval()
    own, weights = deeper.state_dict(), before.state_dict()
    deeper.load_state_dict(
        {name: weights[name] if name in weights and weights[name].shape == own[name].shape else own[name] for name in own}
    )
    for stack, blocks in spec.stacks.items():
        block = spec.block_path.format(stack=stack, index=blocks)
        names = {f"{block}.{output}" for output in spec.residual_outputs}
        sentence = f"the spec names the residual output '{spec.residual_outputs[0]}', but there is no '{block}.{spec.residual_outputs[0]}'"
        must(f"{block}.{spec.residual_outputs[0]}" in dict(deeper.named_parameters()), sentence)
        names |= {f"{name.rpartition('.')[0]}.bias" for name in names}
        with torch.no_grad():
            for name, parameter in deeper.named_parameters():
                if name in names:
                    parameter.zero_()
    generator = torch.Generator().manual_seed(SEED)
    given = {name: partners.draw(field, ROWS, LENGTH, generator) for name, field in fields_of(spec).items()}
    with bench.seeded(SEED), torch.no_grad():
        change = float((forward(before, spec, given) - forward(deeper, spec, given)).abs().max())
    must(change <= 1e-6, f"a block with residual outputs of zero still changes the hidden state, by up to {change:.3g}")


def _spec(subject: Subject) -> RackSpec:
    spec: Any = bench.with_sizes(subject.options().to_spec(), subject.sizes())
    assert isinstance(spec, RackSpec), "check_spec_is_cold looks at the kind of spec"
    return spec


def _deeper(subject: Subject) -> Any:
    """The options with one block more in every stack."""
    options = subject.options()
    for attribute in attrs.fields(type(options)):
        if attribute.metadata.get("stacks"):
            stacks: tuple[Stack, ...] = getattr(options, attribute.name)
            return attrs.evolve(options, **{attribute.name: tuple(Stack(stack.name, stack.blocks + 1) for stack in stacks)})
    raise NotApplicable("it has no option made with `stacks`, so a config cannot make it deeper")


def _lowest(field: Any) -> torch.Tensor:
    """The lowest value of a field everywhere, which obeys its bounds; one where there are none."""
    low = field.bounds[0] if field.bounds is not None else 1 if field.dtype == "bool" else 0
    return torch.full(partners.shape_of(field, ROWS, LENGTH), low, dtype=partners.dtype_of(field))
