"""The language-model head.

Shapes: B batch, T time, D width, V vocab.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from stackwise import BuildContext, HeadSpec, LinearOutput
from stackwise_providers_transformer.mlp import ACTIVATIONS
from stackwise_providers_transformer.options import LMOptions, TransformOptions, check_sizes
from stackwise_providers_transformer.projection import Projection

_UNTIED_STD = 0.02


class Transform(nn.Module):
    """norm(activation(dense(x))), which BERT has before its output matrix (arXiv 1810.04805)."""

    def __init__(self, options: TransformOptions, width: int) -> None:
        super().__init__()
        self.dense = Projection(width, width, std=_UNTIED_STD, bias=options.bias)
        self.activation = ACTIVATIONS[options.activation]
        self.norm = nn.LayerNorm(width, eps=options.eps, bias=options.norm_bias)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """x [B, T, D] → [B, T, D]."""
        normed: torch.Tensor = self.norm(self.activation(self.dense(x_BTD)))
        return normed


class LMHead(nn.Module):
    """Logits by one matrix; where it is tied, the assembly of the model sets `weight` to the embedding's parameter.

    Raises:
        UserError: vocabulary or width is unknown.
    """

    def __init__(self, options: LMOptions) -> None:
        super().__init__()
        check_sizes(vocab=options.vocab, width=options.width)
        self.options = options
        self.weight = nn.Parameter(torch.empty(options.vocab, options.width))
        self.bias = nn.Parameter(torch.empty(options.vocab)) if options.bias else None
        self.transform = Transform(options.transform, options.width) if options.transform is not None else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the matrix anew."""
        std = _UNTIED_STD if self.options.init_std is None else self.options.init_std
        if std:
            nn.init.normal_(self.weight, std=std)
        else:
            nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def get_spec(self) -> HeadSpec:
        """Hidden state in, logits out."""
        return self.options.to_spec()

    def forward(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """hidden [B, T, D] → logits [B, T, V]."""
        logits = F.linear(self._transformed(hidden), self.weight, self.bias)
        cap = self.options.cap
        return {"logits": logits if cap is None else cap * torch.tanh(logits / cap)}

    def forward_linear(self, hidden: torch.Tensor) -> dict[str, LinearOutput]:
        """hidden [B, T, D] → logits [B, T, V], said and not made."""
        return {"logits": LinearOutput(self._transformed(hidden), self.weight, self.bias, self.options.cap)}

    def _transformed(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.transform is None:
            return hidden
        transformed: torch.Tensor = self.transform(hidden)
        return transformed


def build_lm(options: LMOptions, context: BuildContext) -> LMHead:
    """The factory of `lm`."""
    return LMHead(options)
