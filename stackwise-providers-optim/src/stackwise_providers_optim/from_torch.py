"""Any first-order optimizer of torch by its name."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stackwise import BuildContext, ParameterGroup
from stackwise_providers_optim.named import check_name, make
from stackwise_providers_optim.options import NamedOptions

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    made.__name__: made
    for made in (
        torch.optim.Adadelta,
        torch.optim.Adafactor,
        torch.optim.Adagrad,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.Adamax,
        torch.optim.ASGD,
        torch.optim.NAdam,
        torch.optim.RAdam,
        torch.optim.RMSprop,
        torch.optim.Rprop,
        torch.optim.SGD,
    )
}
"""All but those that need a closure (LBFGS), sparse gradients (SparseAdam) or matrices only (Muon)."""


def build_torch(options: NamedOptions, context: BuildContext, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
    """The factory of `torch`.

    Raises:
        UserError: no such optimizer or argument.
    """
    check_name(options.name, OPTIMIZERS, "torch.optim")
    return make(OPTIMIZERS[options.name], options, groups)
