"""Says who made an id that a table or a loss has no place for; it is looked for after the failure alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from torch.nn import functional as F

from stackwise.contracts.protocols import Batch
from stackwise.errors import StackwiseError
from stackwise.planes.data.plane import DataPlane


class _Outside(NamedTuple):
    """An id without a place."""

    id: int
    places: int
    """How many ids there are, from 0."""
    where: str
    """What has no place for it."""


def ids_fault(error: IndexError, batches: Iterable[Batch], data: DataPlane) -> StackwiseError | None:
    """The error for batches that a part of the model or the loss failed on because of an id; None where something else is wrong.

    Args:
        error: of the forward or the loss.
        batches: as the data plane made them, before the task prepared them.
        data: where they come from.
    """
    outside = _outside(error)
    if outside is None:
        return None
    holds = {
        name for batch in batches for name, tensor in batch.items() if not tensor.is_floating_point() and bool((tensor == outside.id).any())
    }
    if not holds:  # the task has made it
        return None
    names = " or ".join(f"'{name}'" for name in sorted(holds))
    sentence = f"{names} holds {outside.id}, and {outside.where} takes 0 to {outside.places - 1}"
    return data.fault_of(sorted(holds), outside.id, f"{sentence}: mend the data, or give the model the size that they need")


def _outside(error: IndexError) -> _Outside | None:
    """The id that torch's embedding or cross-entropy failed on, by the arguments of the call that failed."""
    trace, target = error.__traceback__, re.search(r"Target (-?\d+) is out of bounds", str(error))
    while trace is not None:
        code, arguments = trace.tb_frame.f_code, trace.tb_frame.f_locals
        if code is F.embedding.__code__:
            ids, rows = arguments["input"], int(arguments["weight"].shape[0])
            wrong = ids[(ids < 0) | (ids >= rows)]
            if wrong.numel():
                return _Outside(int(wrong.flatten()[0]), rows, f"the table {list(arguments['weight'].shape)} that it is looked up in")
        if code in (F.cross_entropy.__code__, F.nll_loss.__code__) and target is not None:
            classes = int(arguments["input"].shape[1 if arguments["input"].dim() > 1 else 0])
            return _Outside(int(target[1]), classes, "the loss")
        trace = trace.tb_next
    return None
