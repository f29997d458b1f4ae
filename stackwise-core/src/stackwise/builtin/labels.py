"""The denominators of torch's mean losses over labels: the labels that are not ignored, each by the weight of its class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IGNORED = -100
"""The label that torch's losses leave out unless they are told another."""

_FUNCTIONS = (F.cross_entropy, F.nll_loss)
_MODULES = (nn.CrossEntropyLoss, nn.NLLLoss)


def label_counts(function: Callable[..., Any], labels: Sequence[Tensor]) -> Tensor | None:
    """How much each label counts in a loss of torch, in the shape of the labels; None for another function, and for labels that are shares.

    Args:
        function: a function or a module of torch, or a `functools.partial` of one.
        labels: its target fields, the first of which holds the classes.
    """
    settings = _settings(function)
    if settings is None or len(labels) != 1 or labels[0].is_floating_point():
        return None
    label, weight = labels[0], settings.get("weight")
    counts: Tensor = label != settings.get("ignore_index", IGNORED)
    if weight is None:
        return counts.to(torch.float32)
    shares: Tensor = weight.to(label.device)[torch.where(counts, label, 0)]
    return torch.where(counts, shares, 0.0)


def is_without_labels(mean: Any, labels: Sequence[Tensor]) -> bool:
    """Whether a mean is not a number because there is nothing to average: every whole-number label is ignored."""
    whole = [label for label in labels if not label.is_floating_point()]
    return bool(whole) and bool(mean != mean) and all(bool((label == IGNORED).all()) for label in whole)


def nothing(output: Any) -> Tensor:
    """A loss of zero over no target; every output gets the gradient zero from it."""
    outputs = output.values() if isinstance(output, Mapping) else (output,)
    zeros = [each.sum() * 0.0 for each in outputs if isinstance(each, Tensor) and each.is_floating_point()]
    return torch.stack(zeros).sum()


def _settings(function: Callable[..., Any]) -> Mapping[str, Any] | None:
    """`weight` and `ignore_index` of a loss of torch."""
    if isinstance(function, partial):
        return dict(function.keywords) if function.func in _FUNCTIONS and not function.args else None
    if function in _FUNCTIONS:
        return {}
    if isinstance(function, _MODULES) and type(function).forward in [each.forward for each in _MODULES]:
        return {"weight": function.weight, "ignore_index": function.ignore_index}
    return None
