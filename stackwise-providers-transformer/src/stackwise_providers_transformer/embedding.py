"""The token embedding.

Shapes: B batch, T time, D width, V vocab.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from stackwise import BuildContext, EmbeddingSpec
from stackwise_providers_transformer.options import TokenOptions, check_sizes


class TokenEmbedding(nn.Module):
    """One learned vector of D features for each of V token ids, times `scale`, and with token types that of type 0 beside it.

    Raises:
        UserError: vocabulary or width is unknown.
    """

    def __init__(self, options: TokenOptions) -> None:
        super().__init__()
        check_sizes(vocab=options.vocab, width=options.width)
        self.options = options
        self.weight = nn.Parameter(torch.empty(options.vocab, options.width))
        self.types = nn.Parameter(torch.empty(options.types, options.width)) if options.types else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every vector anew."""
        nn.init.normal_(self.weight, std=self.options.init_std)
        if self.types is not None:
            nn.init.normal_(self.types, std=self.options.init_std)

    def get_spec(self) -> EmbeddingSpec:
        """Token ids in, hidden state out."""
        return self.options.to_spec()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [B, T] integer → hidden [B, T, D]."""
        hidden_BTD = F.embedding(tokens, self.weight)
        if self.options.scale != 1:
            hidden_BTD = hidden_BTD * self.options.scale
        return hidden_BTD if self.types is None else hidden_BTD + self.types[0]


def build_token(options: TokenOptions, context: BuildContext) -> TokenEmbedding:
    """The factory of `token`."""
    return TokenEmbedding(options)
