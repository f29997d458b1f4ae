"""Gradients of the losses that parts of the model add to the task's: each the mean over its own denominator in the whole step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from attrs import define, field
from torch import nn

from stackwise.planes.objective import Added


def factors(added: Sequence[Added], scale: float) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Pairs to go backward from, and the gradient to start each with: weight · scale / denominator at its sum.

    A loss with weight 0 or nothing trainable behind it is left out; one without a denominator adds nothing.
    """
    pairs = [each.pair for each in _trained(added)]
    return pairs, [_at_sum(each.pair, each.weight * scale / each.pair[1].detach()) for each in _trained(added)]


def _trained(added: Sequence[Added]) -> Iterator[Added]:
    return (each for each in added if each.weight and each.pair.requires_grad)


def _at_sum(pair: torch.Tensor, factor: torch.Tensor | float) -> torch.Tensor:
    start = torch.zeros_like(pair)
    start[0] = factor
    return start.nan_to_num(0.0, 0.0, 0.0)  # x / 0


@define
class AddedGradients:
    """Gradients of added losses over the micro-batches of a step, kept apart until each denominator is complete.

    Because the share of a loss against that of the task is known only then, each goes backward on its own: with `accumulate`, every
    weighed loss costs one more backward pass a micro-batch.
    """

    parameters: Sequence[nn.Parameter]
    _gradients: dict[str, list[torch.Tensor | None]] = field(factory=dict)
    _factors: dict[str, tuple[float, float]] = field(factory=dict)
    """Weight and denominator."""

    def take(self, added: Sequence[Added], unit: float) -> None:
        """Add one micro-batch, whose graph stays for the loss of the task; gradients are multiplied by `unit`."""
        for name, pair, weight in _trained(added):
            start = _at_sum(pair, unit)
            new = torch.autograd.grad(pair, self.parameters, start, retain_graph=True, allow_unused=True)
            old = self._gradients.get(name)
            self._gradients[name] = list(new) if old is None else [_plus(a, b) for a, b in zip(old, new, strict=True)]
            self._factors[name] = weight, self._factors.get(name, (weight, 0.0))[1] + float(pair[1].detach())

    def denominators(self) -> dict[str, float]:
        """Name → denominator over the micro-batches so far."""
        return {name: denominator for name, (_, denominator) in self._factors.items()}

    def present(self) -> list[bool]:
        """For each parameter, whether any of the losses has a gradient for it."""
        columns = zip(*self._gradients.values(), strict=True) if self._gradients else [()] * len(self.parameters)
        return [any(gradient is not None for gradient in column) for column in columns]

    def give(self, unit: float, denominators: Mapping[str, float] | None = None) -> None:
        """Add to the gradients of the parameters, as means times weights; over other denominators where other processes add to them."""
        for name, gradients in self._gradients.items():
            weight, own = self._factors[name]
            denominator = own if denominators is None else denominators.get(name, 0.0)
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                if gradient is not None and denominator:
                    parameter.grad = _plus(parameter.grad, gradient * (weight / denominator / unit))


def _plus(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    return other if one is None else one if other is None else one + other
