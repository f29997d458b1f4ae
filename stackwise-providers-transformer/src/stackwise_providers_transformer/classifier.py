"""The head that classifies rows.

Shapes: B batch, T time, D width, C classes.
"""

from __future__ import annotations

import torch
from torch import nn

from stackwise import BuildContext, HeadSpec
from stackwise_providers_transformer.classification_options import ClassifierOptions
from stackwise_providers_transformer.options import check_sizes
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
        return {"logits": self.output(self._pooled(hidden, mask))}

    def _pooled(self, hidden_BTD: torch.Tensor, mask_BT: torch.Tensor | None) -> torch.Tensor:
        pool = self.options.pool
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


def build_classifier(options: ClassifierOptions, context: BuildContext) -> Classifier:
    """The factory of `classifier`."""
    return Classifier(options)
