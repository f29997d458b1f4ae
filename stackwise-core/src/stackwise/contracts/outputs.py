"""Outputs of a head that are not computed yet: a task may need only a part of the matrix product.

Shapes: ... rows, D width, V outputs a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    import torch


@frozen(eq=False)
class LinearOutput:
    """hidden · weightᵀ + bias, with each entry z replaced by cap · tanh(z / cap) if there is a cap; computed only on demand.

    A head returns it (`LinearHead`) to a task that accepts one (`TaskSpec.linear_outputs`), so that a loss over a large
    vocabulary can be summed a few rows at a time. Gradients flow back through `hidden`, `weight` and `bias` as through any tensor.
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
        """The output of some of the rows: that of `hidden[rows]`."""
        return LinearOutput(self.hidden[rows], self.weight, self.bias, self.cap)

    def tensor(self) -> torch.Tensor:
        """The whole output [..., V], equal to the bit to `torch.nn.functional.linear` followed by the cap."""
        rows = self.hidden.reshape(-1, self.hidden.shape[-1])
        product = rows @ self.weight.t() if self.bias is None else self.bias.addmm(rows, self.weight.t())
        entries = product.reshape(self.shape)
        return entries if self.cap is None else self.cap * (entries / self.cap).tanh()
