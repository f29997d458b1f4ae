"""The head that classifies rows.

Shapes: B batch, T time, D width, C classes.
"""

from __future__ import annotations

import torch
from torch import nn

from stackwise import BuildContext, HeadSpec
from stackwise_providers_transformer.classification_options import ClassifierOptions
from stackwise_providers_transformer.options import check_sizes
from stackwise_providers_transformer.pooling import pooled
from stackwise_providers_transformer.projection import Projection


class Classifier(nn.Module):
    """One vector for the row, and logits by a linear map with a bias.

    Raises:
        UserError: number of classes or width is unknown.
    """

    def __init__(self, options: ClassifierOptions) -> None:
        super().__init__()
        check_sizes(classes=options.classes, width=options.width)
        self.options = options
        self.output = Projection(options.width, options.classes, std=options.init_std, bias=True)

    def get_spec(self) -> HeadSpec:
        """Hidden state in, one set of logits a row out."""
        return self.options.to_spec()

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """hidden [B, T, D] → logits [B, C]; mask [B, T] bool says which positions are real, all when left out."""
        return {"logits": self.output(pooled(hidden, mask, self.options.pool))}


def build_classifier(options: ClassifierOptions, context: BuildContext) -> Classifier:
    """The factory of `classifier`."""
    return Classifier(options)
