"""Placement: device and precision, decided in one place."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from stackwise.errors import UserError
from stackwise.machine.recompute import recompute_blocks
from stackwise.planes.model.module import Model

_VARIANTS = 64
"""Graphs that one block may compile to along a timeline: training or evaluating, frozen or not, gated, at several lengths. Beyond
torch's default limit of 8 the block would run uncompiled."""


class Placement:
    """Where tensors live and in which precision the model computes.

    Args:
        device: `auto` (CUDA when there is one), `cpu`, or `cuda`.
        precision: `float32`, or `bf16` (autocast: parameters and optimizer state stay float32).
        compiles: whether torch compiles the model: block by block, or `whole`, the rack in one graph.
        recomputes: whether blocks are computed again in the backward pass, and keep only what enters them.

    Raises:
        UserError: `cuda` without a CUDA device.
    """

    def __init__(
        self,
        device: Literal["auto", "cpu", "cuda"] | str = "auto",
        precision: Literal["float32", "bf16"] | str = "float32",
        *,
        compiles: bool | Literal["whole"] = False,
        recomputes: bool = False,
    ) -> None:
        available = torch.cuda.is_available()
        if device == "cuda" and not available:
            raise UserError("run.device is cuda, but torch finds no CUDA device here: use auto or cpu")
        self.device = torch.device("cuda" if device != "cpu" and available else "cpu")
        self.precision = precision
        self.is_cpu = self.device.type == "cpu"
        self.compiles, self.recomputes = compiles, recomputes
        self.autocast = partial(torch.autocast, self.device.type, dtype=torch.bfloat16) if precision == "bf16" else None
        """Makes the context of a forward pass; None where none is needed."""

    def forward_context(self) -> AbstractContextManager[Any]:
        """The context of every forward pass."""
        return nullcontext() if self.autocast is None else self.autocast()

    def wrap(self, model: nn.Module, *, fixed_shapes: bool = True) -> None:
        """Have blocks computed again, and compile what is not compiled yet: every block of the rack on its own, or the rack as one where
        that is asked for or it names no blocks.

        Modules are compiled in place, so names stay. Blocks of one shape share a graph; gates and other hooks are part of it.

        Args:
            model: in place.
            fixed_shapes: whether each shape gets a graph of its own, whatever came before it, so that a resume computes to the bit what
                the run did. torch else makes one for all shapes when it meets the second, and for all values of a number in a block.
        """
        if self.recomputes:
            recompute_blocks(model)
        if not self.compiles or not isinstance(model, Model):
            return
        from torch._dynamo import config  # seconds to import, and most runs do not compile

        config.skip_nnmodule_hook_guards = False  # else adding or removing a gate would not recompile
        config.recompile_limit = max(config.recompile_limit, _VARIANTS)
        spec = model.rack_spec
        paths = [spec.block_path.format(stack=stack, index=i) for stack, count in spec.stacks.items() for i in range(count)]
        whole = self.compiles == "whole" and model.prefix is None  # a frozen prefix calls the blocks one by one
        blocks = [] if whole else [model.rack.get_submodule(path) for path in paths]
        for module in blocks or [model.rack]:
            if module._compiled_call_impl is None:
                module.compile(dynamic=False if fixed_shapes else None)

    def generators(self) -> tuple[torch.Generator, ...]:
        """The process-wide generators that dropout draws from on this device."""
        if self.is_cpu:
            return (torch.default_generator,)
        return (torch.default_generator, torch.cuda.default_generators[self.device.index or torch.cuda.current_device()])

    def synchronize(self) -> None:
        """Wait for the device, so that timings cover finished work."""
        if not self.is_cpu:
            torch.cuda.synchronize(self.device)
