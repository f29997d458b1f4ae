"""Finds what a model does in its first steps that no checkpoint could hold, before much is trained with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from stackwise.errors import UserError
from stackwise.machine.unsaved import plain_attributes
from stackwise.planes.data.randomness import GENERATORS, generator_state


class FirstSteps:
    """Watches the first two steps of a phase.

    Args:
        model: with the parameters that the optimizer knows.
        given: what came in code, by the name that messages begin with.
        check: gives what is saved of the optimizer, and refuses what cannot be.
    """

    def __init__(self, model: nn.Module, given: Mapping[str, object], check: Callable[[], object]) -> None:
        self._model, self._given, self._check = model, given, check
        self._parameters = {id(parameter) for parameter in model.parameters()}
        self._buffers = {name for name, _ in model.named_buffers()}
        self._empty = {path: set(_empty(module)) for path, module in model.named_modules()}
        """Module → attributes that are None, as a buffer is whose shape is not known yet."""
        self._drawn: dict[str, bytes] | None = None
        self._before: dict[str, str] = {}
        self._done = False

    def begin(self) -> None:
        """Before a step."""
        self._before = self._kept() if self._drawn is not None else {}

    def end(self) -> bool:
        """After the update; returns whether this was the last step to look at.

        Raises:
            UserError: what was given in code changed an attribute that no checkpoint holds.
        """
        self._check()
        if self._done:
            now = self._kept()
            for name, value in self._before.items():
                if now.get(name) != value:
                    raise UserError(
                        f"a step changes {name}, a plain attribute that no checkpoint holds, so a resume would go on with other numbers: "
                        "keep it in a buffer of a module, in the `state` or the groups of an optimizer, or say it by state_dict and "
                        "load_state_dict of a loss, by get_extra_state and set_extra_state of a module (None where nothing reads it)"
                    )
        return self._done

    def _kept(self) -> dict[str, str]:
        return {path: told for name, given in self._given.items() for path, told in plain_attributes(name, given).items()}

    def reached(self, total: torch.Tensor) -> None:
        """Look at what a loss depends on.

        Raises:
            UserError: a parameter that no optimizer knows.
        """
        for leaf in _leaves(total):
            if isinstance(leaf, nn.Parameter) and id(leaf) not in self._parameters:
                raise UserError(
                    f"a parameter of shape {list(leaf.shape)} gets a gradient and is none of the model's, so nothing trains or saves it: "
                    "make its module an attribute of the module (a list of modules is an nn.ModuleList), or freeze it"
                )

    def look(self) -> None:
        """Look at the model after a step, before its update.

        Raises:
            UserError: it made a parameter that no optimizer knows, or a buffer for which a new model has no place, or it draws from a
                generator of its own, whose place no checkpoint holds.
        """
        if self._drawn is not None:
            self._refuse_drawing(self._drawn)
            self._done = True
            return
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
        self._drawn = {name: generator_state(generator) for name, generator in _generators(self._model)}

    def _refuse_drawing(self, before: dict[str, bytes]) -> None:
        for name, generator in _generators(self._model):
            if before.get(name, b"") != generator_state(generator):
                raise UserError(
                    f"the module draws from {name}, a {type(generator).__name__} of its own, whose place no checkpoint holds, so a resume "
                    "would draw other numbers: draw from torch's, numpy's or Python's own functions, which are seeded and saved with the "
                    "run, or say its place by get_extra_state"
                )


def _leaves(total: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors that gradients of a sum end in."""
    seen, waiting = set[Any](), [total.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [each for each, _ in node.next_functions]


def _empty(module: nn.Module) -> Iterator[str]:
    """Attributes of the object itself that are None; a property may change what it reads, as a spectral norm does."""
    return (name for name in set(dir(module)) - set(dir(type(module))) if getattr(module, name, 0) is None)


def _generators(model: nn.Module) -> Iterator[tuple[str, object]]:
    """Path → generator for those that modules hold as attributes, but for modules that say their own state."""
    for path, module in model.named_modules():
        if type(module).get_extra_state is nn.Module.get_extra_state:
            yield from ((f"{path}.{name}", value) for name, value in vars(module).items() if isinstance(value, GENERATORS))
