"""Weight adapters: trainable glue beside a frozen matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stackwise.conformance import bench
from stackwise.conformance.subject import SEED, Subject, must


def check_adds_nothing_at_first(subject: Subject) -> None:
    """Fresh, it adds exactly nothing to the output of the layer, and `merged` gives the matrix back.

    Usual cause: both factors drawn at random, where one has to start at zero.
    """
    adapter, weight, inputs = bench.build_module(subject), bench.weight(), _inputs()
    with torch.no_grad():
        added = adapter(inputs)
        must(added.shape == (4, 5), f"for inputs [4, 3] beside a matrix [5, 3] it gives {list(added.shape)}, not [4, 5]")
        must(not bool(added.any()), f"a fresh adapter already adds up to {float(added.abs().max()):.3g}")
        must(torch.equal(merge(adapter, weight), weight), "merged() of a fresh adapter is another matrix")


def check_merged_agrees(subject: Subject) -> None:
    """The merged matrix alone does what matrix and adapter do together; the matrix that was given stays as it was.

    Usual cause: a factor (alpha / rank) in one of the two places only; a transposed product; `weight += …` in place.
    """
    adapter, weight, inputs = _trained_adapter(subject), bench.weight(), _inputs()
    copy = weight.clone()
    with torch.no_grad():
        together, alone = inputs @ weight.T + adapter(inputs), inputs @ merge(adapter, weight).T
    difference = float((together - alone).abs().max())
    must(difference <= 1e-5, f"matrix and adapter together differ from the merged matrix by up to {difference:.3g}")
    must(torch.equal(weight, copy), "merged() changes the matrix that it was given")


def check_every_parameter_learns(subject: Subject) -> None:
    """Every trainable parameter receives a gradient, and the matrix beside it is none of them.

    Usual cause: the matrix registered as a parameter of the adapter.
    """
    adapter = _trained_adapter(subject)
    adapter(_inputs()).square().sum().backward()
    dry = [name for name, parameter in adapter.named_parameters() if parameter.requires_grad and parameter.grad is None]
    must(not dry, f"no gradient reaches {', '.join(dry)}")
    shapes = [name for name, parameter in adapter.named_parameters() if parameter.requires_grad and torch.equal(parameter, bench.weight())]
    must(not shapes, f"'{shapes[0] if shapes else ''}' is the frozen matrix itself")


def merge(adapter: nn.Module, weight: Tensor) -> Tensor:
    """The matrix that gives alone what the given one and the adapter give together."""
    matrix: Tensor = adapter.merged(weight)  # type: ignore[operator]  # check_builds has seen that it has the method
    return matrix


def _trained_adapter(subject: Subject) -> nn.Module:
    """An adapter some steps into training."""
    adapter = bench.build_module(subject)
    with bench.seeded(SEED), torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn_like(parameter) / 4)
    return adapter


def _inputs() -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(SEED))
