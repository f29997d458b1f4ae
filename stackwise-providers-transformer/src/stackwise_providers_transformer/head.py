"""The language-model head.

Shapes: B batch, T time, D width, V vocab.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from stackwise import BuildContext, HeadSpec
from stackwise_providers_transformer.options import LMOptions, check_sizes

_UNTIED_STD = 0.02


class LMHead(nn.Module):
    """Logits by one matrix without bias; where it is tied, whoever assembles the model sets `weight` to the embedding's parameter.

    Raises:
        UserError: vocabulary or width is unknown.
    """

    def __init__(self, options: LMOptions) -> None:
        super().__init__()
        check_sizes(vocab=options.vocab, width=options.width)
        self.options = options
        self.weight = nn.Parameter(torch.empty(options.vocab, options.width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the matrix anew."""
        std = _UNTIED_STD if self.options.init_std is None else self.options.init_std
        if std:
            nn.init.normal_(self.weight, std=std)
        else:
            nn.init.zeros_(self.weight)

    def get_spec(self) -> HeadSpec:
        """Hidden state in, logits out."""
        return self.options.to_spec()

    def forward(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """hidden [B, T, D] → logits [B, T, V]."""
        return {"logits": F.linear(hidden, self.weight)}


def build_lm(options: LMOptions, context: BuildContext) -> LMHead:
    """The factory of `lm`."""
    return LMHead(options)
