"""Sums over all processes: the gradients of a step, and beside them one small vector of losses, weights, metrics and wishes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import NamedTuple

import torch
from torch import nn

from stackwise.errors import UserError
from stackwise.planes.shards import is_part
from stackwise.processes.ranks import Ranks

BUCKET_BYTES = 25 * 2**20
"""Bytes of gradients that are added together, as in torch's DistributedDataParallel."""

Pair = tuple[float, float]
"""A sum and its denominator."""


class Wishes(NamedTuple):
    """What a process, or any of them, asks for at the end of a step."""

    stop: int = 0
    """Number of the signal that asks to stop."""
    time_is_up: bool = False
    save: bool = False

    def __bool__(self) -> bool:
        return any(self)


NOTHING = Wishes()


class Sums(NamedTuple):
    """The sums of one step over all processes."""

    total: float
    targets: float
    metrics: dict[str, Pair]
    present: list[bool]
    """For each parameter, whether any process has a gradient for it."""


class Reduction:
    """Adds what every process found in its micro-batches of a step.

    Two exchanges: a vector of numbers from each process, added in the order of the ranks, and the gradients, in buckets. A parameter
    that no process has a gradient for keeps none; where only some have one, the others add zeros.

    Args:
        ranks: the processes.
        wish: what this process asks for, asked once a step.
    """

    def __init__(self, ranks: Ranks, wish: Callable[[], Wishes] = lambda: NOTHING) -> None:
        self._ranks, self.wish = ranks, wish
        self.wishes = NOTHING
        """What any process asked for at the end of the last step."""
        self._names: tuple[str, ...] = ()
        """Metrics that any process has reported so far, in order."""

    def numbers(self, total: float, targets: float, metrics: Mapping[str, Pair], present: Sequence[bool]) -> Sums:
        """Sum the numbers of a step over all processes.

        Args:
            total: the loss, summed over this process's micro-batches.
            targets: its denominator.
            metrics: name → sum and denominator over the same.
            present: for each trainable parameter, in the same order everywhere, whether it has a gradient here.
        """
        rows = self._rows(total, targets, metrics, present)
        stops = [int(stop) for stop in rows[:, 3].tolist() if stop]
        self.wishes = Wishes(stops[0] if stops else 0, bool(rows[:, 4].any()), bool(rows[:, 5].any()))
        column = [_in_order(rows[:, place]) for place in range(6 + 2 * len(self._names))]
        pairs = {name: (column[6 + 2 * place], column[7 + 2 * place]) for place, name in enumerate(self._names)}
        somewhere = rows[:, len(column) :].any(0).tolist()
        return Sums(column[1], column[2], {name: pair for name, pair in pairs.items() if pair[1]}, somewhere)

    def gradients(self, parameters: Sequence[nn.Parameter], present: Sequence[bool]) -> None:
        """Add gradients in place.

        Args:
            parameters: the trainable ones.
            present: for each, whether it has a gradient anywhere.
        """
        gradients = []
        for parameter, somewhere in zip(parameters, present, strict=True):
            if is_part(parameter):  # torch has added them, and put zeros where nobody had one
                parameter.grad = parameter.grad if somewhere else None
            elif somewhere:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter, dtype=parameter.grad_dtype)
                gradients.append(parameter.grad)
        for bucket in buckets(gradients):
            if len(bucket) == 1 and bucket[0].is_contiguous():
                self._ranks.sum(bucket[0])
                continue
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            self._ranks.sum(flat)
            pieces = torch.split(flat, [gradient.numel() for gradient in bucket])
            torch._foreach_copy_(bucket, [piece.view(gradient.shape) for piece, gradient in zip(pieces, bucket, strict=True)])

    def _rows(self, total: float, targets: float, metrics: Mapping[str, Pair], present: Sequence[bool]) -> torch.Tensor:
        """The vectors of all processes. If one reports a metric that others do not know yet, the names are exchanged first."""
        wish = self.wish()
        while True:
            has_news = not metrics.keys() <= set(self._names)
            numbers = [float(has_news), total, targets, wish.stop, wish.time_is_up, wish.save]
            for name in self._names:
                numbers += metrics.get(name, (0.0, 0.0))
            rows = self._ranks.rows(torch.tensor([*numbers, *present], dtype=torch.float64))
            if not rows[:, 0].any():
                return rows
            known = {*self._names, *(name for names in self._ranks.gather(list(metrics)) for name in names)}
            self._names = tuple(sorted(known))


def no_gradient() -> UserError:
    """The error where nothing that is trained has a gradient."""
    return UserError(
        "no trainable parameter has a gradient: the loss does not depend on what is trained; thaw something that it passes through"
    )


def buckets(gradients: Sequence[torch.Tensor], limit: int = BUCKET_BYTES) -> list[list[torch.Tensor]]:
    """Neighbours of one dtype and device, up to `limit` bytes together."""
    groups: list[list[torch.Tensor]] = []
    size = 0
    for gradient in gradients:
        alike = groups and (groups[-1][0].dtype, groups[-1][0].device) == (gradient.dtype, gradient.device)
        if alike and size + gradient.nbytes <= limit:
            groups[-1].append(gradient)
            size += gradient.nbytes
        else:
            groups.append([gradient])
            size = gradient.nbytes
    return groups


def _in_order(column: torch.Tensor) -> float:
    """The sum in the order of the ranks, by Python's own addition; not finite where any number is not."""
    values: list[float] = column.tolist()
    return sum(values) if all(map(isfinite, values)) else float("nan")
