"""Finds what a model does in its first steps that no checkpoint could hold, before much is trained with it."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from stackwise.errors import UserError

_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


class FirstSteps:
    """Watches the first two steps of a phase.

    Args:
        model: with the parameters that the optimizer knows.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._parameters = {id(parameter) for parameter in model.parameters()}
        self._buffers = {name for name, _ in model.named_buffers()}
        self._empty = {path: set(_empty(module)) for path, module in model.named_modules()}
        """Module → attributes that are None, as a buffer is whose shape is not known yet."""
        self._drawn: dict[str, bytes] | None = None

    def look(self) -> bool:
        """Look at the model after a step, before its update; returns whether this was the last time.

        Raises:
            UserError: it made a parameter that no optimizer knows, or a buffer for which a new model has no place, or it draws from a
                generator of its own, whose place no checkpoint holds.
        """
        if self._drawn is not None:
            self._refuse_drawing(self._drawn)
            return True
        for name, parameter in self._model.named_parameters():
            if id(parameter) not in self._parameters:
                raise UserError(f"{name} was made by the first forward, so no optimizer trains it: make it in the module's constructor")
        for name in (name for name, _ in self._model.named_buffers() if name not in self._buffers):
            path, _, leaf = name.rpartition(".")
            if leaf not in self._empty.get(path, ()):
                raise UserError(
                    f"the buffer {name} was made by the first forward, so a resumed run has no place for it: write "
                    f"self.register_buffer('{leaf}', None) in the constructor, and give it its value by self.{leaf} = … in forward"
                )
        self._drawn = {name: _state(generator) for name, generator in _generators(self._model)}
        return not self._drawn

    def _refuse_drawing(self, before: dict[str, bytes]) -> None:
        for name, generator in _generators(self._model):
            if before.get(name, b"") != _state(generator):
                raise UserError(
                    f"the module draws from {name}, a {type(generator).__name__} of its own, whose place no checkpoint holds, so a resume "
                    "would draw other numbers: draw from torch's, numpy's or Python's own functions, which are seeded and saved with the "
                    "run, or say its place by get_extra_state"
                )


def _empty(module: nn.Module) -> Iterator[str]:
    """Attributes of the object itself that are None; a property may change what it reads, as a spectral norm does."""
    return (name for name in set(dir(module)) - set(dir(type(module))) if getattr(module, name, 0) is None)


def _generators(model: nn.Module) -> Iterator[tuple[str, object]]:
    """Path → generator for those that modules hold as attributes, but for modules that say their own state."""
    for path, module in model.named_modules():
        if type(module).get_extra_state is nn.Module.get_extra_state:
            yield from ((f"{path}.{name}", value) for name, value in vars(module).items() if isinstance(value, _GENERATORS))


def _state(generator: object) -> bytes:
    if isinstance(generator, torch.Generator):
        return bytes(generator.get_state().tolist())
    return pickle.dumps(generator)
