"""A prompt continued token by token by a causal model.

Shapes: T time, V vocab.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from stackwise import GenerationSettings, UserError
from stackwise_providers_transformer.decoder import Decoder
from stackwise_providers_transformer.embedding import TokenEmbedding
from stackwise_providers_transformer.head import LMHead
from stackwise_providers_transformer.sampling import draw

Forward = Callable[[dict[str, torch.Tensor]], Mapping[str, torch.Tensor]]


def continue_prompt(model: Forward, prompt_T: torch.Tensor, settings: GenerationSettings, generator: torch.Generator) -> torch.Tensor:
    """The prompt with tokens behind it, each drawn from p(x_t | x_<t); int64 [T + tokens].

    Args:
        model: a causal model in evaluation mode.
        prompt_T: int64, at least one token.
        settings: how many tokens, and how they are drawn.
        generator: of the CPU.

    Raises:
        UserError: an empty prompt, more positions than the model has, or a setting without effect.
    """
    if settings.steps is not None:
        raise UserError("steps: a causal model makes one token at a time, so steps have no effect: leave them out")
    if not len(prompt_T):
        raise UserError("prompt: a causal model continues what is there: give at least one token")
    total = len(prompt_T) + settings.tokens
    check_prompt(model, prompt_T, total - 1, settings)
    tokens_T = torch.cat((prompt_T.long(), prompt_T.new_zeros(settings.tokens, dtype=torch.long)))
    with _growing_row(model, total - 1, cached=settings.cache) as cached, torch.inference_mode():
        seen = 0
        for place in range(len(prompt_T), total):
            logits_1TV = model({"tokens": tokens_T[None, seen:place]})["logits"]
            tokens_T[place] = draw(logits_1TV[:, -1], settings, generator)[0]
            seen = place if cached else 0
    return tokens_T


def check_prompt(model: Forward, prompt_T: torch.Tensor, positions: int, settings: GenerationSettings) -> None:
    """Refuse ids that the model has no vector for, and rows longer than a table of learned positions.

    Raises:
        UserError: so it is.
    """
    vocab, longest = _option(model, "embedding", "vocab"), _option(model, "rack", "max_positions")
    if vocab is not None and bool((prompt_T >= vocab).any()):
        raise UserError(f"prompt: id {int(prompt_T.max())} is none of the {vocab} that the model knows: ids lie in [0, {vocab})")
    if longest is not None and positions > longest:
        raise UserError(
            f"a prompt of {len(prompt_T)} tokens and {settings.tokens} to generate take {positions} positions, and the model has learned "
            f"{longest}: shorten the prompt or generate fewer tokens"
        )


def _option(model: Forward, role: str, name: str) -> int | None:
    """An option of a part; None where the model has no such part or the part no such option."""
    found: int | None = getattr(getattr(getattr(model, role, None), "options", None), name, None)
    return found


@contextmanager
def _growing_row(model: Forward, positions: int, *, cached: bool) -> Iterator[bool]:
    """Yields whether the model is to be given new tokens only."""
    rack: Any = getattr(model, "rack", None)
    if not cached or not _keeps_places_apart(model) or not isinstance(rack, Decoder):
        yield False
        return
    with rack.caching(positions):
        yield True


def _keeps_places_apart(model: Forward) -> bool:
    """Whether places meet in the rack's attention alone: another embedding, head or adapter might look at the whole row."""
    embedding, head, adapters = (getattr(model, name, None) for name in ("embedding", "head", "adapters"))
    return isinstance(embedding, TokenEmbedding) and isinstance(head, LMHead) and not adapters
