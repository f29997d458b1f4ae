"""The embedding of tables.

Shapes: B batch, T positions, D width, F numbers, C columns of categories, V ids of all of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from stackwise import BuildContext, EmbeddingSpec
from stackwise_providers_transformer.options import check_sizes
from stackwise_providers_transformer.table_options import FeaturesOptions


class FeaturesEmbedding(nn.Module):
    """A vector for each number, times that number, and one for each id of a category; their sum, or each at a position of its own
    (feature tokenizer, arXiv 2106.11959, section 3.3). Ids below C are the row's own, 0, and those of unknown categories.

    Raises:
        UserError: a number of features, columns or ids, or the width is unknown.
    """

    def __init__(self, options: FeaturesOptions) -> None:
        super().__init__()
        check_sizes(features=options.features, width=options.width)
        self.options = options
        rows = options.features if options.positions == "columns" else 1
        self.numbers = nn.Parameter(torch.empty(options.features, options.width))
        self.bias = nn.Parameter(torch.empty(rows, options.width))
        self.vectors: nn.Parameter | None = None
        if options.categories:
            check_sizes(columns=options.columns, vectors=options.vectors)
            self.vectors = nn.Parameter(torch.empty(options.vectors, options.width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the vectors anew; biases and the vectors of unknown categories start at 0."""
        nn.init.normal_(self.numbers, std=self.options.init_std)
        nn.init.zeros_(self.bias)
        if self.vectors is not None:
            nn.init.normal_(self.vectors, std=self.options.init_std)
            with torch.no_grad():
                self.vectors[: self.options.columns].zero_()

    def get_spec(self) -> EmbeddingSpec:
        """Numbers and ids in, hidden state out."""
        return self.options.to_spec()

    def forward(self, features: torch.Tensor, categories: torch.Tensor | None = None) -> torch.Tensor:
        """features [B, F], categories [B, C] integer → hidden [B, T, D] with T = 1, or F + C."""
        vectors_BCD = None if self.vectors is None or categories is None else F.embedding(categories, self.vectors)
        if self.options.positions == "columns":
            numbers_BFD = features.unsqueeze(-1) * self.numbers + self.bias
            return numbers_BFD if vectors_BCD is None else torch.cat([vectors_BCD, numbers_BFD], dim=1)
        hidden_BD = features @ self.numbers + self.bias
        if vectors_BCD is not None:
            hidden_BD = hidden_BD + vectors_BCD.sum(dim=1)
        return hidden_BD.unsqueeze(1)


def build_features(options: FeaturesOptions, context: BuildContext) -> FeaturesEmbedding:
    """The factory of `features`."""
    return FeaturesEmbedding(options)
