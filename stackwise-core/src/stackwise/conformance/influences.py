"""What an output may depend on: its own row, earlier positions, its own document; in evaluation on no random number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stackwise.conformance import bench, partners
from stackwise.conformance.modules import fields_of, forward, given_for
from stackwise.conformance.subject import LENGTH, ROWS, SEED, NotApplicable, Subject, must
from stackwise.contracts.specs import RackSpec

LONG_ROWS = (256, 128, 64)
"""Positions of the longest row that is tried, as many as the rack takes: what is wrong at a distance shows only there."""

MANY = 64
"""Rows of a second, large batch: what depends on the number of rows may show only there."""

TOLERANCE = 1e-4
"""Largest difference, as a share of the largest value, that another order of summation can cause."""

BOUNDARIES: Mapping[str, tuple[tuple[int, int], tuple[bool, ...]]] = {"segments": ((0, 1), (True, False)), "mask": ((1, 0), (True,))}
"""Side input → its values in the first and second half of a row, and which half (later or earlier) must not influence the other.
Padding must not influence real positions; outputs at padding do not matter."""


def check_leaves_its_inputs(subject: Subject) -> None:
    """A forward pass does not change its input tensors: others read them too.

    Usual cause: an operation in place on the input: `hidden += …`, `nn.ReLU(inplace=True)` as the first layer.
    """
    spec, module = _spec(subject), bench.build_module(subject)
    for mode in (True, False):
        inputs = given_for(spec)
        copies = bench.copy_of(inputs)
        with bench.seeded(SEED), torch.no_grad():
            forward(module.train(mode), spec, inputs)
        changed = [name for name, tensor in copies.items() if not bench.same(inputs[name], tensor)]
        must(not changed, f"it changes {', '.join(changed)}, which it was given")


def check_evaluation_is_still(subject: Subject) -> None:
    """In eval mode the same input gives the same output, whatever the random generators hold.

    Usual cause: `F.dropout(x, p)` without `training=self.training`; noise that is added in every mode.
    """
    spec, module = _spec(subject), bench.build_module(subject).eval()
    first, second = (_outputs(module, spec, given_for(spec), seed) for seed in (SEED, SEED + 1))
    must(bench.same(first, second), "two passes in eval mode over the same input differ")


def check_rows_stand_alone(subject: Subject) -> None:
    """A row gives the same output in a batch, small or large, as alone, and in training what stands in the other rows does not matter.

    Usual cause: attention over the wrong dimension (`nn.MultiheadAttention` without `batch_first=True`); statistics over the batch.
    """
    spec, module = _spec(subject), bench.build_module(subject).eval()
    for count, chosen in ((ROWS, range(ROWS)), (MANY, (0, MANY // 2, MANY - 1))):
        inputs = given_for(spec, count)
        whole = _outputs(module, spec, inputs)
        if not bench.same(whole, _outputs(module, spec, inputs, SEED + 1)):
            raise NotApplicable("randomness changes its outputs, which check_evaluation_is_still reports")
        for i in chosen:
            alone = _outputs(module, spec, {name: _row(tensor, fields_of(spec)[name], i) for name, tensor in inputs.items()})
            name, off = _largest_of_row(spec, {n: _row(t, _output_spec(spec, n), i) for n, t in _by_row(spec, whole)}, alone)
            sentence = f"row {i} of '{name}' changes by {off:.2g} of its size when the other {count - 1} rows are not there"
            must(off <= TOLERANCE, sentence)
    _check_rows_in_training(spec, module.train())


def _check_rows_in_training(spec: Any, module: nn.Module) -> None:
    """The first row is the same whatever the others hold: same shapes and same seed draw the same dropout."""
    inputs, others = given_for(spec), given_for(spec, seed=SEED + 1)
    fields = fields_of(spec)
    mixed = {name: _first_row_of(tensor, others[name], fields[name]) for name, tensor in inputs.items()}
    before, again, after = (_outputs(module, spec, each) for each in (inputs, inputs, mixed))
    first, second, third = ({n: _row(t, _output_spec(spec, n), 0) for n, t in _by_row(spec, each)} for each in (before, again, after))
    if not bench.same(first, second):
        return  # what it draws in training does not come from torch's generator alone: nothing can be compared
    name, off = _largest_of_row(spec, first, third)
    must(off <= TOLERANCE, f"in training, row 0 of '{name}' changes by {off:.2g} of its size with what stands in the other rows")


def _by_row(spec: Any, outputs: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Outputs with rows; not one number for the whole batch, such as a loss that balances experts."""
    return [(name, tensor) for name, tensor in outputs.items() if "batch" in _output_spec(spec, name).dims]


def _largest_of_row(spec: Any, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> tuple[str, float]:
    """The output in which two results of one row differ most, and by how much of its size."""
    return max(
        ((name, _difference(tensor, other[name])) for name, tensor in _by_row(spec, one)), key=lambda each: each[1], default=("", 0.0)
    )


def _first_row_of(tensor: Tensor, other: Tensor, field: Any) -> Tensor:
    """The first row of one tensor before the further rows of another."""
    if "batch" not in field.dims:
        return tensor
    dim = field.dims.index("batch")
    return torch.cat([tensor.narrow(dim, 0, 1), other.narrow(dim, 1, other.shape[dim] - 1)], dim)


def check_causal(subject: Subject) -> None:
    """Under causal attention the output at a position depends on that position and earlier ones, and on nothing later: in short rows
    and long ones, in training and in evaluation.

    Usual cause: a mask left out or transposed; a convolution padded on both sides; a norm or a mean over time.
    """
    spec = _rack_spec(subject)
    if "causal" not in spec.attention:
        raise NotApplicable("its spec offers no causal attention")
    options = subject.options("causal")
    rack = bench.build_module(subject, options=options)
    for training, length in ((False, LENGTH), (True, LENGTH), (False, 0)):
        if length:
            off, first = _seen_ahead(rack.train(training), spec, length), length // 2
        else:
            off, first = _seen_far_ahead(subject, spec, options)
        mode = "in training, " if training else ""
        must(off <= TOLERANCE, f"{mode}positions before {first} change by {off:.2g} of their size with what stands at {first} and later")


def _seen_ahead(rack: nn.Module, spec: RackSpec, length: int) -> float:
    """How much the first half of a row changes with the second, as a share of its size; 0 where two equal passes differ."""
    inputs = given_for(spec, length=length)
    other = _other_half(spec, inputs, later=True, length=length)
    before, again, after = (_outputs(rack, spec, each)["hidden"] for each in (inputs, inputs, other))
    time = spec.output.dims.index("time")
    if not bench.same(before, again):
        return 0.0
    return _difference(before.narrow(time, 0, length // 2), after.narrow(time, 0, length // 2))


def _seen_far_ahead(subject: Subject, spec: RackSpec, options: Any) -> tuple[float, int]:
    """The same of the longest row that the rack takes, and where its second half begins."""
    for length in LONG_ROWS:
        try:
            rack = bench.build_module(subject, options=options, max_length=length).eval()
            return _seen_ahead(rack, spec, length), length // 2
        except Exception:  # a rack may have a longest row: then a shorter one is tried
            continue
    return 0.0, 0


def check_boundaries_are_honoured(subject: Subject) -> None:
    """Documents of one row (`segments`) do not influence each other, and padding (`mask`) does not influence real positions.

    Usual cause: the side input is accepted and never used, or attention uses it and a convolution does not.
    """
    spec = _rack_spec(subject)
    names = [name for name in BOUNDARIES if name in spec.side and [dim for dim in spec.side[name].dims if dim != "batch"] == ["time"]]
    if not names:
        raise NotApplicable("its spec takes neither segments nor a mask that say something of every position")
    rack = bench.build_module(subject).eval()
    time = spec.output.dims.index("time")
    for name in names:
        inputs = {**given_for(spec), name: _two_halves(spec, name)}
        before = _outputs(rack, spec, inputs)["hidden"]
        for later in BOUNDARIES[name][1]:
            after = _outputs(rack, spec, _other_half(spec, inputs, later=later))["hidden"]
            start = 0 if later else LENGTH // 2
            off = _difference(before.narrow(time, start, LENGTH // 2), after.narrow(time, start, LENGTH // 2))
            must(off <= TOLERANCE, f"across a boundary that '{name}' draws, outputs change by {off:.2g} of their size")


def _spec(subject: Subject) -> Any:
    return bench.with_sizes(subject.options().to_spec(), subject.sizes())


def _rack_spec(subject: Subject) -> RackSpec:
    spec: RackSpec = _spec(subject)
    if not all("time" in tensor.dims for tensor in (spec.input, spec.output)):
        raise NotApplicable("its hidden state has no time")
    return spec


def _outputs(module: nn.Module, spec: Any, inputs: dict[str, Tensor], seed: int = SEED) -> dict[str, Tensor]:
    with bench.seeded(seed), torch.no_grad():
        result = forward(module, spec, inputs)
        return dict(result) if isinstance(result, Mapping) else {"hidden": result}


def _output_spec(spec: Any, name: str) -> Any:
    return spec.output if hasattr(spec, "output") else spec.outputs[name]


def _row(tensor: Tensor, spec: Any, i: int) -> Tensor:
    """One row of a tensor, as a batch of one."""
    return tensor.narrow(spec.dims.index("batch"), i, 1) if "batch" in spec.dims else tensor


def _other_half(spec: RackSpec, inputs: Mapping[str, Tensor], *, later: bool, length: int = LENGTH) -> dict[str, Tensor]:
    """The same, with another hidden state in the later or the earlier half of the positions."""
    time, first = spec.input.dims.index("time"), length // 2
    other = partners.draw(spec.input, ROWS, length, torch.Generator().manual_seed(SEED + 1))
    halves = [(other if half == later else inputs["hidden"]).narrow(time, half * first, first) for half in (False, True)]
    return {**inputs, "hidden": torch.cat(halves, time)}


def _two_halves(spec: RackSpec, name: str) -> Tensor:
    """A side input that has one value in the first half of every row and another in the second."""
    field = spec.side[name]
    halves = torch.empty(partners.shape_of(field, ROWS, LENGTH), dtype=partners.dtype_of(field))
    for half, value in enumerate(BOUNDARIES[name][0]):
        halves.narrow(field.dims.index("time"), half * (LENGTH // 2), LENGTH // 2).fill_(value)
    return halves


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((one - other).abs().max()) / max(float(one.abs().max()), 1e-6)
