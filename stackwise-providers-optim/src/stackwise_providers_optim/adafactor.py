"""Adafactor over named parameter groups: torch's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from stackwise import BuildContext, ParameterGroup
from stackwise_providers_optim.grouping import TorchGroup, torch_groups
from stackwise_providers_optim.options import AdafactorOptions

_VECTOR_MOMENTS = {"variance": 2, "step": 0}
_MATRIX_MOMENTS: dict[str, int] = {}
"""Nothing is carried through growth: the factors `row_var` and `col_var` have other shapes than their matrix, so its map does not fit
them, and the step count alone is of no use."""


def build_adafactor(options: AdafactorOptions, context: BuildContext, groups: Sequence[ParameterGroup]) -> torch.optim.Adafactor:
    """The factory of `adafactor`.

    Raises:
        UserError: a group value that Adafactor does not have, or no parameter at all.
    """
    return torch.optim.Adafactor(
        [split for group in torch_groups(options, groups, moments={}) for split in _by_moments(group)],
        beta2_decay=options.beta2_decay,
        eps=(options.eps1, options.eps2),
        d=options.clip_threshold,
    )


def _by_moments(group: TorchGroup) -> Iterator[TorchGroup]:
    """Split a group into matrices and vectors, whose states differ."""
    matrices = [(name, p) for name, p in group["params"] if p.ndim > 1]
    vectors = [(name, p) for name, p in group["params"] if p.ndim <= 1]
    if matrices:
        yield {**group, "params": matrices, "moments": _MATRIX_MOMENTS}
    if vectors:
        yield {**group, "params": vectors, "moments": _VECTOR_MOMENTS}
