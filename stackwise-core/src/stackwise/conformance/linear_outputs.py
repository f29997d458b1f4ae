"""Outputs that a head states as a `LinearOutput` (a product not yet computed), and the tasks that take them in that form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from stackwise.conformance import bench, modules
from stackwise.conformance.subject import SEED, NotApplicable, Subject, must
from stackwise.contracts.outputs import LinearOutput
from stackwise.contracts.protocols import LinearHead
from stackwise.contracts.specs import TaskSpec
from stackwise.planes.objective import Objective

_WIDTH = 5


def check_linear_head_agrees(subject: Subject) -> None:
    """`forward_linear` of a head states the same outputs as `forward` computes.

    Usual cause: a bias, a cap or a norm that one of the two leaves out.
    """
    head = bench.build_module(subject).eval()
    linear: Any = head
    if not isinstance(linear, LinearHead):
        raise NotApplicable("it has no `forward_linear`")
    spec = bench.with_sizes(subject.options().to_spec(), subject.sizes())
    inputs = modules.given_for(spec)
    with bench.seeded(SEED), torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) / 8)
        made = modules.forward(head, spec, inputs)
        said = {name: _made(output) for name, output in linear.forward_linear(**inputs).items()}
    must(said.keys() == made.keys(), f"forward_linear gives {', '.join(said)}, and forward {', '.join(made)}")
    for name, output in made.items():
        must(said[name].shape == output.shape, f"'{name}' is {tuple(said[name].shape)} by forward_linear, {tuple(output.shape)} by forward")
        furthest = float((said[name] - output).abs().max())
        must(furthest <= 1e-5 * max(1.0, float(output.abs().max())), f"'{name}' of forward_linear and forward differ by {furthest:.3g}")


def check_takes_linear_outputs(subject: Subject) -> None:
    """The loss of a `LinearOutput` is the loss of the tensor that it stands for: sum, denominator, metrics and gradients.

    Usual cause: a bias or a cap that the task leaves out; a sum over chunks that forgets the last one.
    """
    spec = bench.boundaries(subject).task
    if not isinstance(spec, TaskSpec) or not spec.linear_outputs:
        raise NotApplicable("its spec names no `linear_outputs`")
    task = bench.task_of(subject)
    batch = bench.prepare(subject, task)
    judged = bench.objective(task, bench.model_around(subject))
    said = {name: _said(tensor) if name in spec.linear_outputs else tensor for name, tensor in bench.outputs(subject, batch).items()}
    made = {name: _made(output) for name, output in said.items()}
    sources = [tensor for output in said.values() for tensor in _sources(output)]
    (found, slopes), (expected, known) = (_judged(judged, outputs, batch, sources) for outputs in (said, made))
    for name, value in expected.items():
        must(name in found, f"{name} is missing for linear outputs")
        close = abs(found[name] - value) <= 1e-4 * max(abs(value), 1e-3)
        must(close, f"{name} is {found[name]:.6g} for linear outputs, and {value:.6g} for the same outputs as tensors")
    for slope, other in zip(slopes, known, strict=True):
        must(float((slope - other).norm()) <= 1e-3 * float(other.norm()) + 1e-6, "gradients differ for linear outputs")


def _said(tensor: Tensor) -> LinearOutput:
    """A product of the shape of a tensor, with bias and cap."""
    generator = Generator().manual_seed(SEED)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator).requires_grad_()
        for shape in ((*tensor.shape[:-1], _WIDTH), (tensor.shape[-1], _WIDTH), (tensor.shape[-1],))
    )
    return LinearOutput(hidden, weight, bias, cap=3.0)


def _made(output: Tensor | LinearOutput) -> Tensor:
    return output.tensor() if isinstance(output, LinearOutput) else output


def _sources(output: Tensor | LinearOutput) -> list[Tensor]:
    if not isinstance(output, LinearOutput):
        return [output]
    return [tensor for tensor in (output.hidden, output.weight, output.bias) if tensor is not None]


def _judged(judged: Objective, outputs: Any, batch: Any, sources: list[Tensor]) -> tuple[dict[str, float], list[Tensor]]:
    total, weight, metrics = judged.judge(outputs, batch)
    slopes = torch.autograd.grad(total, sources, allow_unused=True)
    numbers = {"the loss": float(total.detach()), "its denominator": float(weight)}
    for name, (value, count) in metrics.items():
        numbers |= {f"metric '{name}'": float(value), f"the denominator of '{name}'": float(count)}
    return numbers, [torch.zeros_like(source) if slope is None else slope for source, slope in zip(sources, slopes, strict=True)]
