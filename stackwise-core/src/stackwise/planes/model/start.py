"""Check the trained weights that a model starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from stackwise.contracts.selectors import select
from stackwise.errors import UserError
from stackwise.planes.model.difference import WEIGHT_ADAPTERS
from stackwise.planes.model.module import Model
from stackwise.planes.model.state import EXTRA_STATE, Tensors, differences
from stackwise.planes.model.whole import names_inside


def check_start(tensors: Tensors, model: nn.Module, drop: Sequence[str]) -> Tensors:
    """Check that weights to start from fit the model, apart from dropped tensors and weight adapters that the weights do not have.

    Args:
        tensors: the weights by name.
        model: the model to fill, already tied.
        drop: selectors of parameters to draw anew and of tensors to ignore.

    Returns:
        The tensors to use.

    Raises:
        SelectorError: a selector that matches nothing, in the weights or in the model.
        UserError: tensors that are missing, left over, of another shape, or different where the model ties them; all are listed.
    """
    if isinstance(model, Model) and model.declared is not None:
        tensors = names_inside(model.rack, tensors)
    own = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name.rpartition(".")[2] != EXTRA_STATE}
    omitted = set(select(drop, dict.fromkeys((*own, *tensors))))
    rest = {name: tensor for name, tensor in tensors.items() if name not in omitted}
    if faults := differences(own, rest, omitted | _unknown_adapters(own, rest), dtypes=False):
        raise UserError(
            "the weights of model.start are not this model's; name in `drop` what is to start anew or to be left out:\n  "
            + "\n  ".join(faults)
        )
    return rest


def _unknown_adapters(own: Mapping[str, torch.Tensor], tensors: Tensors) -> set[str]:
    """Parameters of the adapters that the weights do not have: they keep their initial values."""
    adapters = {name.split(".")[1] for name in tensors if name.startswith(WEIGHT_ADAPTERS)}
    return {name for name in own if name.startswith(WEIGHT_ADAPTERS) and name.split(".")[1] not in adapters}
