"""Weight averaging: an exponential moving average of what was ever trained, which follows growth by the same maps as the weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import torch
from torch import nn

from stackwise.errors import UserError
from stackwise.planes.model.transfer import ModelReceipt
from stackwise.planes.optimizer.weight_copies import carry_copy, copy_of, source_of
from stackwise.planes.shards import exchange, laid_as

STATISTICS = (".running_mean", ".running_var")
"""End the names of the running statistics of torch's norm layers."""


class WeightAverage:
    """avg ← decay·avg + (1 − decay)·weight after every step (Polyak and Juditsky 1992; constant decay as in arXiv 1706.03762).

    A fresh parameter begins its average at its own first value. So does a matrix that took in a weight adapter, because it is
    another matrix now. An adopted parameter keeps its average, a copied one copies it.

    The running statistics of norm layers are averaged with the weights: those of the live weights belong to other activations.
    """

    def __init__(self) -> None:
        self._average: dict[str, torch.Tensor] = {}
        self._weights: dict[str, torch.Tensor] = {}
        """What is averaged, by name."""
        self._model: dict[str, torch.Tensor] = {}

    def enter(
        self, parameters: Mapping[str, nn.Parameter], receipt: ModelReceipt, buffers: Mapping[str, torch.Tensor] = MappingProxyType({})
    ) -> None:
        """Follow the model across a boundary.

        Args:
            parameters: every parameter of the model in place by canonical name, frozen ones included.
            receipt: what the boundary did to them.
            buffers: those of the model by name, of which the running statistics of norm layers are averaged.
        """
        statistics = {name: buffer for name, buffer in buffers.items() if name.endswith(STATISTICS)}
        before, self._average, self._model = self._average, {}, {**parameters, **statistics}
        for name, parameter in parameters.items():
            merged = source_of(name, receipt) in receipt.merged
            average = None if merged else carry_copy(name, parameter, before, receipt)
            if average is not None:
                self._average[name] = average
            elif merged or parameter.requires_grad:
                self._average[name] = copy_of(parameter)
        for name, source in _statistics_before(statistics, parameters, receipt).items():
            old = before.get(source)
            goes_on = old is not None and old.shape == statistics[name].shape
            self._average[name] = old.clone() if old is not None and goes_on else copy_of(statistics[name])
        self._weights = {name: self._model[name] for name in self._average}

    def update(self, decay: float) -> None:
        """Take in the weights as they are."""
        averages = list(self._average.values())
        weights = [weight.detach().to(average.dtype) for weight, average in zip(self._weights.values(), averages, strict=True)]
        torch._foreach_lerp_(averages, weights, 1.0 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model with averaged weights and statistics; its own come back afterwards."""
        own = {name: exchange(weight, self._average[name].to(weight.dtype)) for name, weight in self._weights.items()}
        try:
            yield
        finally:
            for name, weight in self._weights.items():
                exchange(weight, own[name])

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
        self._weights = {name: weight for name, weight in self._model.items() if name in state}  # frozen ones that once trained too
        self._average = {name: laid_as(state[name], weight) for name, weight in self._weights.items()}


def _statistics_before(statistics: Iterable[str], parameters: Iterable[str], receipt: ModelReceipt) -> dict[str, str]:
    """Name of a running statistic → its name before: where the parameters of its layer were. Layers without any keep theirs while
    nothing moves, and begin anew (an empty name) where something does."""
    layers = {_layer(name): _layer(source_of(name, receipt) or "") for name in parameters}
    stay = not receipt.moved
    before = {}
    for name in statistics:
        layer, leaf = _layer(name), name.rpartition(".")[2]
        before_layer = layers.get(layer, layer if stay else "")
        before[name] = f"{before_layer}.{leaf}" if before_layer else ""
    return before


def _layer(name: str) -> str:
    return name.rpartition(".")[0]
