"""Trained weights to begin from, held against the model that begins with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from stackwise.contracts.selectors import select
from stackwise.errors import UserError
from stackwise.planes.model.difference import WEIGHT_ADAPTERS
from stackwise.planes.model.state import EXTRA_STATE, Tensors, differences


def check_start(tensors: Tensors, model: nn.Module, drop: Sequence[str]) -> Tensors:
    """Weights to start from are this model's, but for what is dropped on purpose, and for weight adapters that they know nothing of.

    Args:
        tensors: all that was read, by name.
        model: the model to fill; its ties are made.
        drop: selectors of what starts anew, or is left in the file.

    Returns:
        What is taken.

    Raises:
        SelectorError: a selector that matches nothing, in the weights or in the model.
        UserError: tensors that are missing, left over, of another shape, or different where the model ties them; all of them named.
    """
    needed = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name.rpartition(".")[2] != EXTRA_STATE}
    dropped = set(select(drop, dict.fromkeys((*needed, *tensors))))
    given = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    if told := differences(needed, given, dropped | _unknown_adapters(needed, given), dtypes=False):
        raise UserError(
            "the weights of model.start are not this model's; name in `drop` what is to start anew or to be left out:\n  "
            + "\n  ".join(told)
        )
    return given


def _unknown_adapters(needed: Mapping[str, torch.Tensor], given: Tensors) -> set[str]:
    """Names of the weight adapters of which the weights hold nothing: they begin as they are, as beside any base."""
    known = {name.split(".")[1] for name in given if name.startswith(WEIGHT_ADAPTERS)}
    return {name for name in needed if name.startswith(WEIGHT_ADAPTERS) and name.split(".")[1] not in known}
