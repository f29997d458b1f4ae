"""Activation checkpointing: a block keeps only what enters it, and is computed again when the backward pass comes to it.

Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost (arXiv 1604.06174), by torch's own `checkpoint`. The second computation
draws from torch's generators what the first one drew, so the gradients are the same to the bit.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from stackwise.errors import UserError
from stackwise.planes.model.module import Model


def recompute_blocks(model: nn.Module) -> None:
    """Have every block of the rack computed again in the backward pass; names stay, and a block for which that is so already stays.

    Raises:
        UserError: the model names no blocks.
    """
    blocks = list(_blocks(model))
    if not blocks:
        raise UserError("run.parallel.recompute: the model names no blocks that could be computed again: leave it out")
    for path, block in blocks:
        if not isinstance(block.forward, Recomputed):
            block.forward = Recomputed(path, block)  # of this object: its class stays as it is


@contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """A while in which every block of the rack is computed again, as `recompute_blocks` has it for good."""
    recompute_blocks(model)
    try:
        yield
    finally:
        for _, block in _blocks(model):
            forward = block.__dict__.pop("forward")
            if forward.original != block.forward:
                block.forward = forward.original


def _blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if not isinstance(model, Model):
        return
    spec = model.rack_spec
    for stack, count in spec.stacks.items():
        for index in range(count):
            path = spec.block_path.format(stack=stack, index=index)
            yield path, model.rack.get_submodule(path)


class Recomputed:
    """The forward of one block.

    Args:
        path: of the block in the rack.
        block: whose forward it is.
    """

    def __init__(self, path: str, block: nn.Module) -> None:
        self._path, self._block, self.original = path, block, block.forward
        functools.update_wrapper(self, block.forward, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the block; where gradients are recorded, only its inputs are kept."""
        if not torch.is_grad_enabled():
            return self.original(*args, **kwargs)
        return checkpoint(self.original, *args, use_reentrant=False, context_fn=self._contexts, **kwargs)

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        buffers = dict(self._block.named_buffers())
        versions = {name: buffer._version for name, buffer in buffers.items()}
        return nullcontext(), self._again(buffers, versions)

    @contextmanager
    def _again(self, buffers: dict[str, torch.Tensor], versions: dict[str, int]) -> Iterator[None]:
        """The second computation, which starts from the buffers of the first."""
        now = dict(self._block.named_buffers())
        for name, buffer in buffers.items():
            if now.get(name) is not buffer or buffer._version != versions[name]:
                raise UserError(
                    f"run.parallel.recompute: rack.{self._path} changes its buffer {name} in forward, and a second forward would change it "
                    "again: leave recompute out, or take a block without such statistics"
                )
        yield
