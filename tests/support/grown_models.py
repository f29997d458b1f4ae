"""Small language models and what an operator that maps tensors makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from stackwise import CopyOf, GrowthRequest, Model
from stackwise.contracts.growth import ParameterGrowth
from stackwise.planes.model.parameter_map import fill
from stackwise_providers_transformer.decoder import Decoder
from stackwise_providers_transformer.embedding import TokenEmbedding
from stackwise_providers_transformer.head import LMHead
from stackwise_providers_transformer.options import DecoderOptions, LMOptions, TokenOptions

VOCAB = 19
PRECISION = torch.float32

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied": {"tied": False},
    "grouped queries": {"width": 16, "heads": 4, "kv_heads": 2, "qk_norm": True},
    "layernorm and biases": {"norm": "layernorm", "bias": True},
    "untied layernorm and biases": {"norm": "layernorm", "bias": True, "tied": False, "kv_heads": 1, "qk_norm": True},
    "gelu and learned positions": {"mlp": "gelu", "bias": True, "positions": "learned", "max_positions": 9},
}
"""Sets of options that touch every kind of parameter."""


def language_model(*, vocab: int = VOCAB, width: int = 8, tied: bool = True, seed: int = 0, **options: Any) -> Model:
    """A model whose every parameter is random, gains and biases too; evaluation mode."""
    torch.manual_seed(seed)
    rack = Decoder(DecoderOptions(**{"width": width, "heads": 2, "stacks": [{"base": 2}], "init_std": 0.2, **options}))
    model = Model(TokenEmbedding(TokenOptions(vocab=vocab, width=width)), rack, LMHead(LMOptions(vocab=vocab, width=width, tied=tied)))
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            nn.init.normal_(parameter, mean=float("weight" in name), std=0.3)
        elif name in ("embedding.weight", "head.weight", "rack.positions.weight"):
            nn.init.normal_(parameter, std=0.1)
    return model.to(PRECISION).eval()


ASKED = GrowthRequest(old_stacks={}, new_stacks={})


def grow(old: Model, new: Model, operator: ParameterGrowth) -> Mapping[str, CopyOf]:
    """Fill the new model by the operator's maps, all else by name; the maps."""
    before, after = dict(old.named_parameters()), dict(new.named_parameters())
    origins = operator.map_parameters(
        {name: tuple(p.shape) for name, p in before.items()}, {name: tuple(p.shape) for name, p in after.items()}, ASKED
    )
    maps = {name: origin for name, origin in origins.items() if isinstance(origin, CopyOf)}
    with torch.no_grad():
        for name, parameter in after.items():
            fill(parameter, before, maps.get(name) or CopyOf(source=name))
    return maps


def tokens(rows: int = 4, length: int = 9, *, vocab: int = VOCAB, seed: int = 1) -> torch.Tensor:
    """Random token ids."""
    return torch.randint(vocab, (rows, length), generator=torch.Generator().manual_seed(seed))


def logits(model: Model, tokens_BT: torch.Tensor) -> torch.Tensor:
    """[B, T, V]."""
    return model({"tokens": tokens_BT})["logits"]


def loss(model: Model, tokens_BT: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of every next token."""
    return F.cross_entropy(logits(model, tokens_BT)[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten())


def gradients(model: Model, tokens_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of the loss, by canonical name."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss(model, tokens_BT), parameters), strict=True))
