"""Tensors of which each process holds a part (torch's DTensor, split along its first dimension); any other tensor passes through as it is.

Where a sentence says that a part is made whole, every process takes part in it, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def is_part(tensor: Any) -> bool:
    """Whether this process holds a part of a tensor that others hold the rest of."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a part, gathered from all processes."""
    if not is_part(tensor):
        return tensor
    with torch.no_grad():
        gathered: torch.Tensor = tensor.full_tensor()  # type: ignore[attr-defined]  # a DTensor, which plain runs never import
    return gathered.detach()


def own(tensor: torch.Tensor) -> torch.Tensor:
    """The rows that this process holds, in the same memory; of a whole tensor all of them."""
    local: torch.Tensor = tensor.to_local() if is_part(tensor) else tensor  # type: ignore[attr-defined]
    return local


def rows_of(part: Any) -> tuple[int, int]:
    """The first row that this process holds of a part, and the one after its last."""
    dim = next((dim for dim, placement in enumerate(part.placements) if placement.is_shard()), None)
    rows = part.shape[0]
    if dim is None:
        return 0, rows
    size = -(-rows // part.device_mesh.shape[dim])
    start = min(rows, size * part.device_mesh.get_coordinate()[dim])
    return start, min(rows, start + size)


def is_first_copy(part: Any) -> bool:
    """Whether no process before this one holds the same rows."""
    replicas = (dim for dim, placement in enumerate(part.placements) if placement.is_replicate())
    return all(part.device_mesh.get_coordinate()[dim] == 0 for dim in replicas)


def laid_as(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A copy of values at the place of another tensor of the same shape: of a part only the rows that this process holds of it."""
    if not is_part(like):
        return values.detach().to(like.device, copy=True)
    from torch.distributed.tensor import DTensor

    part: Any = like
    start, stop = rows_of(part)
    local = own(values.detach()) if is_part(values) else values.detach()[start:stop]
    local = local.to(part.device, copy=True)
    return DTensor.from_local(
        local,
        part.device_mesh,
        part.placements,
        run_check=False,
        shape=values.shape,
        stride=torch.empty(values.shape, device="meta").stride(),
    )


def put(tensor: torch.Tensor, values: torch.Tensor) -> None:
    """Write values, whole or laid alike, into a tensor in place."""
    if not is_part(tensor):
        tensor.detach().copy_(values)
        return
    start, stop = rows_of(tensor)
    with torch.no_grad():
        own(tensor.detach()).copy_(own(values.detach()) if is_part(values) else values.detach()[start:stop])


def exchange(parameter: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Let a parameter hold other values of its dtype; returns what it held. Those of a part are copied, as others read its memory."""
    if not is_part(parameter):
        held, parameter.data = parameter.data, values
        return held
    held = parameter.detach().clone()
    put(parameter, values)
    return held


def move(model: nn.Module, device: torch.device) -> None:
    """Move a model; parts lie where they live already."""
    if not any(is_part(parameter) for parameter in model.parameters()):
        model.to(device)
        return
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)


@contextmanager
def made_whole(module: nn.Module) -> Iterator[None]:
    """The time in which a small module holds whole parameters, to be read."""
    places = [(each, name, p) for each in module.modules() for name, p in each.named_parameters(recurse=False) if is_part(p)]
    for each, name, parameter in places:
        each._parameters[name] = nn.Parameter(whole(parameter), requires_grad=parameter.requires_grad)
    try:
        yield
    finally:
        for each, name, parameter in places:
            each._parameters[name] = parameter
