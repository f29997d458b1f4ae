"""Outputs of a head that are described, not computed: a task may need less than the whole product.

Shapes: ... rows, D width, V outputs a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    import torch


@frozen(eq=False)
class LinearOutput:
    """hidden · weightᵀ + bias, each entry z bent to cap · tanh(z / cap) where there is a cap; computed only when asked for.

    A head passes it (`LinearHead`) to a task that says it takes one (`TaskSpec.linear_outputs`), so that a loss over a large
    vocabulary is summed a few rows at a time. Gradients flow back through `hidden`, `weight` and `bias` as through any tensor.
    """

    hidden: torch.Tensor
    """[..., D]."""
    weight: torch.Tensor
    """[V, D]."""
    bias: torch.Tensor | None = None
    """[V]."""
    cap: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """That of `tensor()`: [..., V]."""
        return (*self.hidden.shape[:-1], self.weight.shape[0])

    def at(self, rows: torch.Tensor | tuple[int | slice, ...]) -> LinearOutput:
        """The same of some rows alone: `hidden[rows]`."""
        return LinearOutput(self.hidden[rows], self.weight, self.bias, self.cap)

    def tensor(self) -> torch.Tensor:
        """The whole output [..., V], to the bit what `torch.nn.functional.linear` and the cap make of it."""
        rows = self.hidden.reshape(-1, self.hidden.shape[-1])
        product = rows @ self.weight.t() if self.bias is None else self.bias.addmm(rows, self.weight.t())
        entries = product.reshape(self.shape)
        return entries if self.cap is None else self.cap * (entries / self.cap).tanh()
