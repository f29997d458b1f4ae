"""Trained weights to begin from, held against the model that begins with them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from stackwise.contracts.selectors import select
from stackwise.errors import UserError
from stackwise.planes.model.transfer import Tensors


def check_start(tensors: Tensors, model: nn.Module, drop: Sequence[str]) -> Tensors:
    """Weights to start from are this model's, but for what is dropped on purpose.

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
    needed = model.state_dict(keep_vars=True)
    asked = set(select(drop, dict.fromkeys((*needed, *tensors))))
    given = {name: tensor for name, tensor in tensors.items() if name not in asked}
    first = {id(tensor): name for name, tensor in reversed(list(needed.items()))}
    wrong = [f"missing in the weights: {name}" for name in first.values() if name not in given and name not in asked]
    wrong += [f"not in the model: {name}" for name in given if name not in needed]
    for name in (name for name in needed if name in given and name not in asked):
        shape, wanted, canonical = tuple(given[name].shape), tuple(needed[name].shape), first[id(needed[name])]
        if shape != wanted:
            wrong.append(f"of another shape: {name} is {list(shape)} in the weights and {list(wanted)} in the model")
        elif canonical in given and not torch.equal(given[name], given[canonical]):
            wrong.append(f"tied in the model, but different in the weights: {name} and {canonical}")
    if wrong:
        raise UserError(
            "the weights of model.start are not this model's; name in `drop` what is to start anew or to be left out:\n  "
            + "\n  ".join(sorted(wrong))
        )
    return given
