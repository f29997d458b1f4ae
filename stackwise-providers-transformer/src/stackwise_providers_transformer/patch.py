"""The embedding of images.

Shapes: B batch, T pieces, D width, R rows, C columns, K channels, P edge of a piece.
"""

from __future__ import annotations

import torch
from torch import nn

from stackwise import BuildContext, EmbeddingSpec
from stackwise_providers_transformer.classification_options import PatchOptions
from stackwise_providers_transformer.learned_positions import LearnedPositions
from stackwise_providers_transformer.options import check_sizes
from stackwise_providers_transformer.projection import Projection


class PatchEmbedding(nn.Module):
    """Every piece of P by P pixels through one linear map with a bias, row after row (ViT, arXiv 2010.11929, section 3.1).

    Raises:
        UserError: the size of the image or of the hidden state is unknown.
    """

    def __init__(self, options: PatchOptions) -> None:
        super().__init__()
        check_sizes(rows=options.rows, columns=options.columns, channels=options.channels, width=options.width)
        self.options = options
        self.project = Projection(options.patch**2 * options.channels, options.width, std=options.init_std, bias=True)
        pieces = options.rows // options.patch * (options.columns // options.patch)
        self.positions = LearnedPositions(pieces, options.width, std=options.init_std) if options.positions == "learned" else None

    def get_spec(self) -> EmbeddingSpec:
        """An image in, a position for every piece out."""
        return self.options.to_spec()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """image [B, R, C, K] → hidden [B, T, D] with T = R/P · C/P."""
        batch, edge, channels = len(image), self.options.patch, self.options.channels
        pieces = image.view(batch, image.shape[1] // edge, edge, image.shape[2] // edge, edge, channels)
        hidden_BTD: torch.Tensor = self.project(pieces.transpose(2, 3).reshape(batch, -1, edge * edge * channels))
        return hidden_BTD if self.positions is None else self.positions(hidden_BTD, None)


def build_patch(options: PatchOptions, context: BuildContext) -> PatchEmbedding:
    """The factory of `patch`."""
    return PatchEmbedding(options)
