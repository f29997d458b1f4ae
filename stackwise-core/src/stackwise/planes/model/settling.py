"""The weights to keep at a boundary, where an optimizer trains at other points than those: what is frozen or merged takes them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import nn

from stackwise.contracts.growth import Fresh, Origin

Settle = Callable[[Iterable[nn.Parameter], Iterable[nn.Parameter]], Mapping[nn.Parameter, torch.Tensor]]
"""(parameters that are about to be frozen or merged, parameters that train on) → the weights to keep of the latter.

It writes the weights to keep into the former. Where the weights in place are those to keep, it does nothing and returns nothing.
"""

KeptCopies = Mapping[tuple[str, str], torch.Tensor]
"""(copy, source) → the values to copy, where they are other ones than the source now holds."""


def settle_nothing(leaving: Iterable[nn.Parameter], staying: Iterable[nn.Parameter]) -> Mapping[nn.Parameter, torch.Tensor]:
    """For optimizers that train the weights to keep."""
    return {}


def settle_sources(origin_of: Mapping[str, Origin], frozen: Collection[str], model: nn.Module, settle: Settle) -> KeptCopies:
    """Let frozen copies hold the weights to keep.

    A source that goes to frozen parameters alone is settled itself, before it is copied. From another one something trains on, at the
    point where it trained, so that only its frozen copies take the weights to keep.

    Args:
        origin_of: name in the new model → where its values come from.
        frozen: names in the new model that do not learn.
        model: the old one.
        settle: of the optimizer.

    Returns:
        (frozen copy, source) where something trains on from the source → the values to copy in place of the source's.
    """
    old = dict(model.named_parameters(remove_duplicate=False))
    names: dict[str, set[str]] = {}
    for name, origin in origin_of.items():
        for source in () if isinstance(origin, Fresh) else origin.sources:
            if source in old:
                names.setdefault(source, set()).add(name)
    copies = {source: targets.intersection(frozen) for source, targets in names.items()}
    alone = [old[source] for source, targets in names.items() if copies[source] == targets]
    shared = {source: copies[source] for source, targets in names.items() if copies[source] and copies[source] != targets}
    kept = settle(alone, [old[source] for source in shared])
    return {(name, source): kept[old[source]] for source, targets in shared.items() if old[source] in kept for name in targets}
