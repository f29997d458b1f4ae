"""Copies of weights that are kept beside a model, averages and masters: their dtype, and how they cross a boundary."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from stackwise.planes.model.parameter_map import fill
from stackwise.planes.model.transfer import ModelReceipt

SIXTEEN_BITS = (torch.float16, torch.bfloat16)


def learning_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that a weight of this one learns in: at least float32."""
    return torch.float32 if dtype in SIXTEEN_BITS else dtype


def copy_of(weight: torch.Tensor) -> torch.Tensor:
    """A weight as it is now, in the dtype that it learns in."""
    return weight.detach().to(learning_dtype(weight.dtype), copy=True)


def source_of(name: str, receipt: ModelReceipt) -> str | None:
    """The name before of what a parameter adopted or copied; None for a fresh one."""
    return receipt.copied[name].source if name in receipt.copied else receipt.adopted.get(name)


def carry_copy(name: str, parameter: nn.Parameter, before: Mapping[str, torch.Tensor], receipt: ModelReceipt) -> torch.Tensor | None:
    """The copy beside a parameter after a boundary, where the one before goes on; None where there is none to go on.

    Args:
        name: canonical name of the parameter.
        parameter: after the boundary.
        before: the copies by their names before it.
        receipt: what the boundary did: the copy of an adopted parameter stays, that of a copied one follows the same map.
    """
    origin, old = receipt.copied.get(name), receipt.adopted.get(name)
    if old is not None:
        return before.get(old)
    if origin is None or any(source not in before for source in origin.sources):
        return None
    copy = copy_of(parameter)
    fill(copy, before, origin)
    return copy
