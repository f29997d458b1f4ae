"""Masked tokens after a prompt, unmasked a few at a time by a diffusion model.

Shapes: T time, V vocab, R places that a step unmasks.
"""

from __future__ import annotations

import torch

from stackwise import GenerationSettings, UserError
from stackwise_providers_transformer.continuation import Forward, check_prompt
from stackwise_providers_transformer.sampling import draw, limited


def unmask(
    model: Forward, prompt_T: torch.Tensor, settings: GenerationSettings, generator: torch.Generator, *, mask_id: int, ids: int
) -> torch.Tensor:
    """The prompt with tokens after it, int64 [T + tokens] (arXiv 2406.07524, section 3.2; arXiv 2502.09992, section 2.4).

    The masked places are unmasked in a random order, in `steps` parts that differ by one place at most: those of a part are drawn from
    one forward pass, each from its own distribution. What is shown stays as it is. With as many steps as tokens every token is drawn
    given all that are shown, and the text follows the model's any-order distribution.

    Args:
        model: a bidirectional model in evaluation mode.
        prompt_T: int64; may be empty.
        settings: how many tokens and steps, and how tokens are drawn.
        generator: of the CPU.
        mask_id: the mask symbol, which is never drawn.
        ids: only ids below are drawn.

    Raises:
        UserError: more steps than tokens, more positions than the model has, or a setting without effect.
    """
    steps = settings.tokens if settings.steps is None else settings.steps
    if steps > settings.tokens:
        raise UserError(
            f"steps: {steps} steps for {settings.tokens} tokens: each step unmasks one at least; take {settings.tokens} or fewer"
        )
    if not settings.cache:
        raise UserError(
            "cache: a diffusion model keeps nothing between its steps, so there is no cache to switch off: leave the setting out"
        )
    if settings.stop or settings.hear is not None:
        raise UserError(
            "stop: a diffusion model fills in its tokens in no order, so no token can end them or be reported as it comes: leave it out"
        )
    total = len(prompt_T) + settings.tokens
    check_prompt(model, prompt_T, total, settings)
    if bool((prompt_T == mask_id).any()):
        raise UserError(f"prompt: id {mask_id} is the mask symbol, which says that a token is not known: leave it out")
    settings = limited(settings, ids)
    tokens_T = torch.cat((prompt_T.long(), torch.full((settings.tokens,), mask_id)))
    order = len(prompt_T) + torch.randperm(settings.tokens, generator=generator)
    with torch.inference_mode():
        for places_R in order.tensor_split(steps):
            logits_1TV = model({"tokens": tokens_T[None]})["logits"]
            tokens_T[places_R] = draw(without(logits_1TV[0, places_R], mask_id), settings, generator)
    return tokens_T


def without(logits: torch.Tensor, id: int) -> torch.Tensor:
    """logits [..., V] with that of one id at -inf."""
    allowed = torch.arange(logits.shape[-1], device=logits.device) != id
    return logits.masked_fill(~allowed, -torch.inf)
