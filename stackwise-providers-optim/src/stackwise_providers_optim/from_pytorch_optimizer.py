"""Optimizers of the library pytorch-optimizer by name, with group counters kept per parameter."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from attrs import frozen

from stackwise import BuildContext, ParameterGroup, UserError
from stackwise_providers_optim.grouping import TorchGroup
from stackwise_providers_optim.named import check_name, make
from stackwise_providers_optim.options import NamedOptions

EXTRA = "pytorch-optimizer"

UNFIT = {
    **dict.fromkeys(("adalomo", "adammini", "lomo"), "it wants the whole model and not parameters"),
    **dict.fromkeys(("adago", "adamuon", "distributedmuon", "muon", "muonclip", "normuon"), "use optim.muon, which tells matrices apart"),
    **dict.fromkeys(("adahessian", "sophiah"), "it wants the graph of the gradients, which a step no longer has"),
    **dict.fromkeys(("alig", "bsam", "lbfgs"), "it evaluates the loss itself, and a step here has no closure"),
    **dict.fromkeys(
        ("schedulefreeadamw", "schedulefreeradam", "schedulefreesgd"), "use optim.schedule-free, which evaluates at the average"
    ),
    **dict.fromkeys(("adashift", "conda", "scalableshampoo"), "it keeps objects beside tensors and numbers, which no checkpoint can hold"),
    **dict.fromkeys(
        ("emofact", "madgrad", "ranger21", "stablespam"), "it keeps state outside its parameters and groups, which would be lost"
    ),
    **dict.fromkeys(("sara", "spam"), "its state is not shaped by its parameters"),
    "asgd": "it sets its learning rate itself",
    "demo": "it exchanges gradients between processes itself",
    "kron": "it draws from NumPy's generator, which no step seeds, so a resumed run would differ",
    "lorarite": "it steps pairs of low-rank factors only",
    "magma": "it wraps another optimizer",
    "spectralsphere": "it takes matrices only",
}
"""Name → why it cannot train here."""

_COUNTER = "group."
"""Prefix of state entries that hold a counter of the parameter's group."""


@frozen
class _Counters:
    """Moves what an optimizer counts in its groups to the state of their parameters, and back.

    Most optimizers of the library keep their step count in the group. There it would be lost when a phase rebuilds the optimizer, and
    parameters added by growth would inherit it. So each parameter gets its own group, and the group's counters are saved as its state.
    """

    initial: dict[int, TorchGroup]
    """id of a group's parameter → initial entries of the group."""

    def restore(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Before a step."""
        for group in optimizer.param_groups:
            state = optimizer.state.get(group["params"][0], {})
            group.update({key.removeprefix(_COUNTER): value for key, value in state.items() if key.startswith(_COUNTER)})

    def keep(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """After a step."""
        for group in optimizer.param_groups:
            (parameter,) = group["params"]
            initial = self.initial[id(parameter)]
            for key, value in group.items():
                if key not in initial or (key not in _FOLLOWED and _differ(value, initial[key])):
                    optimizer.state[parameter][_COUNTER + key] = value


_FOLLOWED = ("params", "lr", "weight_decay")


def _differ(left: Any, right: Any) -> bool:
    return left is not right and bool(left != right)


def build_pytorch_optimizer(options: NamedOptions, context: BuildContext, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
    """The factory of `pytorch-optimizer`.

    Args:
        options: the name in the library's list, in any case, and arguments of that class.
        context: unused.
        groups: canonical name → parameter, and the values in force.

    Raises:
        UserError: the library is not installed; no such optimizer or argument; one that cannot train here.
    """
    library = _library()
    name = options.name.lower()
    check_name(name, library.get_supported_optimizers(), EXTRA)
    if name in UNFIT:
        raise UserError(f"optimizer.name: {EXTRA}'s '{name}' cannot be used here: {UNFIT[name]}")
    optimizer = make(library.load_optimizer(name), options, groups, alone=True)
    _count_by_parameter(optimizer)
    return optimizer


def _count_by_parameter(optimizer: torch.optim.Optimizer) -> None:
    counters = _Counters({id(group["params"][0]): dict(group) for group in optimizer.param_groups})
    optimizer.register_step_pre_hook(counters.restore)
    optimizer.register_step_post_hook(counters.keep)


def _library() -> Any:
    try:
        return import_module("pytorch_optimizer")
    except ImportError as error:
        raise UserError(
            f"optim.pytorch-optimizer needs the library '{EXTRA}' ({error}): pip install stackwise-providers-optim[{EXTRA}]"
        ) from error
