"""Check the trained weights that a model starts from, and fill it with them one by one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import nn

from stackwise.contracts.growth import CopyOf, Origin
from stackwise.contracts.selectors import select
from stackwise.errors import UserError
from stackwise.planes.model.difference import WEIGHT_ADAPTERS
from stackwise.planes.model.module import Model
from stackwise.planes.model.state import EXTRA_STATE, Tensors, differences, write
from stackwise.planes.model.transfer import Lay, ModelReceipt, keep_whole, put_parameter
from stackwise.planes.model.whole import names_inside


def check_start(tensors: Tensors, model: nn.Module, drop: Sequence[str]) -> tuple[Tensors, Tensors]:
    """Check that weights to start from fit the model, apart from dropped tensors and weight adapters that the weights do not have.

    Args:
        tensors: the weights by name. Where they have the attribute `shapes`, only that is looked at.
        model: the model to fill, already tied.
        drop: selectors of parameters to draw anew and of tensors to ignore.

    Returns:
        The weights under the model's names, and what stands for those to use: each of the right shape, without values where `shapes` was
        looked at.

    Raises:
        SelectorError: a selector that matches nothing, in the weights or in the model.
        UserError: tensors that are missing, left over, of another shape, or different where the model ties them; all are listed.
    """
    if isinstance(model, Model) and model.declared is not None:
        tensors = names_inside(model.rack, tensors)
    own = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name.rpartition(".")[2] != EXTRA_STATE}
    omitted = set(select(drop, dict.fromkeys((*own, *tensors))))
    shapes: Mapping[str, tuple[int, ...]] | None = getattr(tensors, "shapes", None)
    if shapes is None:
        rest = {name: tensor for name, tensor in tensors.items() if name not in omitted}
    else:
        dtypes = {name: tensor.dtype for name, tensor in own.items()}  # those of the folder are its format's to check
        rest = {n: torch.empty(shape, device="meta", dtype=dtypes.get(n)) for n, shape in shapes.items() if n not in omitted}
    if faults := differences(own, rest, omitted | _unknown_adapters(own, rest), dtypes=False):
        raise UserError(
            "the weights of model.start are not this model's; name in `drop` what is to start anew or to be left out:\n  "
            + "\n  ".join(faults)
        )
    return tensors, rest


def fill_start(
    tensors: Tensors,
    names: Collection[str],
    model: nn.Module,
    origins: Mapping[str, Origin],
    *,
    device: torch.device,
    dtype_of: Callable[[str], torch.dtype | None],
    lay: Lay = keep_whole,
) -> ModelReceipt:
    """Write weights to start from into a new model, each as it is read, so that no second model is in memory.

    Args:
        tensors: by name.
        names: of those to use, checked.
        model: the model to fill; its ties are made.
        origins: canonical name → copied from the tensors, or fresh.
        device: where the parameters live.
        dtype_of: declared dtype of a parameter; None: as it was built.
        lay: puts a parameter where it will live, once it has its values.
    """

    def copied_whole(name: str, target: torch.Tensor) -> torch.dtype:
        tensor = tensors[name]
        target.copy_(tensor)
        return tensor.dtype

    copy_into: Callable[[str, torch.Tensor], torch.dtype] = getattr(tensors, "copy_into", copied_whole)
    copied, recast = {}, {}
    aliases: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
    for name, parameter in list(model.named_parameters()):
        parameter.data = parameter.data.to(device, dtype_of(name) or parameter.dtype)
        if isinstance(origin := origins[name], CopyOf):
            dtype = copy_into(origin.source, parameter.data)
            copied[name] = origin
            if dtype != parameter.dtype:
                recast[name] = dtype
        put_parameter(model, aliases[id(parameter)], lay(parameter), instead_of=parameter)
    for name, buffer in model.named_buffers():
        if name in names:
            write(buffer, tensors[name])
    fresh = tuple(name for name in origins if name not in copied)
    return ModelReceipt(copied=copied, fresh=fresh, dropped=tuple(name for name in names if name not in copied), recast=recast)


def _unknown_adapters(own: Mapping[str, torch.Tensor], tensors: Tensors) -> set[str]:
    """Parameters of the adapters that the weights do not have: they keep their initial values."""
    adapters = {name.split(".")[1] for name in tensors if name.startswith(WEIGHT_ADAPTERS)}
    return {name for name in own if name.startswith(WEIGHT_ADAPTERS) and name.split(".")[1] not in adapters}
