"""Weight averaging: an exponential moving average of what was ever trained, which follows growth by the same maps as the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from stackwise.errors import UserError
from stackwise.planes.model.transfer import ModelReceipt
from stackwise.planes.optimizer.weight_copies import carry_copy, copy_of, source_of


class WeightAverage:
    """avg ← decay·avg + (1 − decay)·weight after every step (Polyak and Juditsky 1992; constant decay as in arXiv 1706.03762).

    A fresh parameter begins its average at its own first value. So does a matrix that took in a weight adapter, because it is
    another matrix now. An adopted parameter keeps its average, a copied one copies it.
    """

    def __init__(self) -> None:
        self._average: dict[str, torch.Tensor] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self._model: Mapping[str, nn.Parameter] = {}

    def enter(self, parameters: Mapping[str, nn.Parameter], receipt: ModelReceipt) -> None:
        """Follow the model across a boundary.

        Args:
            parameters: every parameter of the model in place by canonical name, frozen ones included.
            receipt: what the boundary did to them.
        """
        before, self._average, self._model = self._average, {}, parameters
        for name, parameter in parameters.items():
            merged = source_of(name, receipt) in receipt.merged
            average = None if merged else carry_copy(name, parameter, before, receipt)
            if average is not None:
                self._average[name] = average
            elif merged or parameter.requires_grad:
                self._average[name] = copy_of(parameter)
        self._parameters = {name: parameters[name] for name in self._average}

    def update(self, decay: float) -> None:
        """Take in the weights as they are."""
        averages = list(self._average.values())
        weights = [p.detach().to(average.dtype) for p, average in zip(self._parameters.values(), averages, strict=True)]
        torch._foreach_lerp_(averages, weights, 1.0 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model with averaged weights; its own come back afterwards."""
        own = {name: parameter.data for name, parameter in self._parameters.items()}
        for name, parameter in self._parameters.items():
            parameter.data = self._average[name].to(parameter.dtype)
        try:
            yield
        finally:
            for name, parameter in self._parameters.items():
                parameter.data = own[name]

    def state_by_name(self) -> dict[str, torch.Tensor]:
        """The averages by canonical name."""
        return dict(self._average)

    def load_state_by_name(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore what `state_by_name` returned, for the model in place.

        Raises:
            UserError: averages of other names or shapes.
        """
        wrong = [name for name, average in state.items() if name not in self._model or self._model[name].shape != average.shape]
        if wrong or self._average.keys() - state.keys():
            raise UserError(f"saved averages are not of this model: {', '.join([*wrong, *(self._average.keys() - state.keys())][:5])}")
        self._parameters = {name: p for name, p in self._model.items() if name in state}  # frozen ones that once trained too
        self._average = {name: state[name].to(parameter.device, copy=True) for name, parameter in self._parameters.items()}
