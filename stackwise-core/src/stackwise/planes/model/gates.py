"""Gates: residual branches multiplied by a number that follows time, x + α(t)·F(x) (arXiv 2305.02869, section 3.2).

A gate is a forward hook on the modules that own a block's residual outputs, so a rack needs no code for it. It is a tensor, so
that its value can change without recompiling.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from stackwise.contracts.growth import BlockOrigin
from stackwise.contracts.specs import RackSpec
from stackwise.errors import UserError


class Gates:
    """One gate over the residual branches of some blocks.

    Args:
        owners: the modules whose outputs are multiplied.
        value: the initial gate.
        device: of the model.
    """

    def __init__(self, owners: Iterable[nn.Module], value: float, device: torch.device) -> None:
        self._gate = torch.tensor(value, device=device)
        self._value = value
        self._handles: list[RemovableHandle] = [owner.register_forward_hook(self._multiply) for owner in owners]

    def set(self, value: float) -> None:
        """Set the gate from now on."""
        if value != self._value:
            self._gate.fill_(value)
            self._value = value

    def remove(self) -> None:
        """Remove the gate, so that the branches count in full."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _multiply(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output * self._gate.to(output.dtype)


def gated_modules(spec: RackSpec, blocks: Mapping[tuple[str, int], BlockOrigin]) -> tuple[str, ...]:
    """Canonical names of the modules that own the residual outputs of the gated blocks.

    Raises:
        UserError: the rack names no residual outputs, or one that is not the parameter of a module inside the block.
    """
    places = [place for place, origin in blocks.items() if origin.gated]
    if places and not spec.residual_outputs:
        raise UserError("the growth operator gates residual branches of new blocks, but the rack's spec names none: use another")
    owners: dict[str, None] = {}
    for stack, index in places:
        for output in spec.residual_outputs:
            owner = output.rpartition(".")[0]
            if not owner:
                raise UserError(
                    f"the residual output '{output}' belongs to the block itself, where nothing can be gated: use another operator"
                )
            owners[f"rack.{spec.block_path.format(stack=stack, index=index)}.{owner}"] = None
    return tuple(owners)
