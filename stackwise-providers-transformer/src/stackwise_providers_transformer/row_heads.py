"""Heads over whole rows: the positions of a row become one vector, and a linear map of it the output.

Shapes: B batch, T time, D width, K numbers of the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import nn

from stackwise import BuildContext, HeadSpec
from stackwise_providers_transformer.classification_options import ClassifierOptions
from stackwise_providers_transformer.contrastive_options import VectorOptions
from stackwise_providers_transformer.options import check_sizes
from stackwise_providers_transformer.projection import Projection
from stackwise_providers_transformer.table_options import RegressionHeadOptions


class RowHeadOptions(Protocol):
    """What the options of every head over rows have."""

    @property
    def width(self) -> int: ...

    @property
    def pool(self) -> str: ...

    @property
    def init_std(self) -> float: ...

    def to_spec(self) -> HeadSpec: ...


class RowHead(nn.Module):
    """A linear map of the pooled positions of a row.

    Args:
        options: width, pooling and start of the map.
        output: name of the output.
        size: option → how many numbers the output has.
        bias: whether the map has one.

    Raises:
        UserError: width or size is unknown.
    """

    def __init__(self, options: RowHeadOptions, *, output: str, size: Mapping[str, int], bias: bool) -> None:
        super().__init__()
        check_sizes(**size, width=options.width)
        self.options, self._name = options, output
        (numbers,) = size.values()
        self.output = Projection(options.width, numbers, std=options.init_std, bias=bias)

    def get_spec(self) -> HeadSpec:
        """Hidden state in, one output a row out."""
        return self.options.to_spec()

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """hidden [B, T, D] → the output [B, K] by its name; mask [B, T] bool says which positions are real, all when left out."""
        return {self._name: self.output(pooled(hidden, mask, self.options.pool))}


def pooled(hidden_BTD: torch.Tensor, mask_BT: torch.Tensor | None, pool: str) -> torch.Tensor:
    """hidden [B, T, D] → [B, D]: the `mean` of the real positions, the `first`, or the `last` real one; all are real without a mask."""
    if pool == "first":
        return hidden_BTD[:, 0]
    if mask_BT is None:
        return hidden_BTD.mean(dim=1) if pool == "mean" else hidden_BTD[:, -1]
    if pool == "mean":
        real_BT1 = mask_BT.unsqueeze(-1).to(hidden_BTD.dtype)
        return (hidden_BTD * real_BT1).sum(dim=1) / real_BT1.sum(dim=1).clamp(min=1)
    place_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    last_B = (place_T * mask_BT).argmax(dim=1)
    return hidden_BTD[torch.arange(len(hidden_BTD), device=hidden_BTD.device), last_B]


def build_classifier(options: ClassifierOptions, context: BuildContext) -> RowHead:
    """The factory of `classifier`: a logit for each class."""
    return RowHead(options, output="logits", size={"classes": options.classes}, bias=True)


def build_regression(options: RegressionHeadOptions, context: BuildContext) -> RowHead:
    """The factory of `regression`: a prediction for each target."""
    return RowHead(options, output="prediction", size={"targets": options.targets}, bias=True)


def build_vector(options: VectorOptions, context: BuildContext) -> RowHead:
    """The factory of `vector`: without a bias, which all vectors would share."""
    return RowHead(options, output="vector", size={"vector": options.vector}, bias=False)
