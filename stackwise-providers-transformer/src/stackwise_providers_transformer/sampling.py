"""One token id from each row of logits: temperature, top-k and top-p.

Shapes: R rows, V vocab.
"""

from __future__ import annotations

import torch
from attrs import evolve

from stackwise import GenerationSettings, UserError


def limited(settings: GenerationSettings, ids: int) -> GenerationSettings:
    """The settings with no id drawn that is not below `ids`, so that the symbols which a task added never are."""
    return evolve(settings, ids=ids if settings.ids is None else min(ids, settings.ids))


def draw(logits_RV: torch.Tensor, settings: GenerationSettings, generator: torch.Generator) -> torch.Tensor:
    """An id for every row, int64 [R]; the likeliest one at temperature 0.

    Raises:
        UserError: logits that are not numbers.
    """
    logits_RV = logits_RV.double().cpu()
    if settings.ids is not None:
        logits_RV = logits_RV[:, : settings.ids]
    if bool(logits_RV.isnan().any()) or bool((logits_RV == torch.inf).any()):
        raise UserError("the model's logits are not finite: its weights have diverged; take an earlier checkpoint")
    if settings.temperature == 0:
        return logits_RV.argmax(dim=-1)
    chances_RV = chances(logits_RV, temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p)
    return torch.multinomial(chances_RV, 1, generator=generator).squeeze(-1)


def chances(logits_RV: torch.Tensor, *, temperature: float, top_k: int | None, top_p: float | None) -> torch.Tensor:
    """The probabilities that ids are drawn with, [R, V]: softmax(logits / temperature) over the ids that are left.

    Left are the k likeliest (arXiv 1805.04833), and of these, by what they have among them, the fewest likeliest that together
    have at least probability p (arXiv 1904.09751, section 3.1). Of equally likely ids the lower comes first.

    Args:
        logits_RV: float64; -inf for what is never drawn.
        temperature: above 0.
        top_k: k; all when None.
        top_p: p; all when None.
    """
    centred_RV = (logits_RV - logits_RV.amax(dim=-1, keepdim=True)) / temperature  # centred, so that no temperature is too small
    sorted_RV, order_RV = centred_RV.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        sorted_RV[:, top_k:] = -torch.inf
    falling_RV = sorted_RV.softmax(dim=-1)
    if top_p is not None:
        before_RV = falling_RV.cumsum(dim=-1) - falling_RV
        falling_RV = falling_RV.masked_fill(before_RV >= top_p, 0)
        falling_RV = falling_RV / falling_RV.sum(dim=-1, keepdim=True)
    return torch.zeros_like(falling_RV).scatter_(-1, order_RV, falling_RV)
