"""A prompt continued token by token.

Shapes: T time, R time of what is read first, V vocab.
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


def continue_prompt(
    model: Forward,
    prompt_T: torch.Tensor,
    settings: GenerationSettings,
    generator: torch.Generator,
    *,
    row_R: torch.Tensor | None = None,
    beside: Mapping[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """The prompt with tokens behind it, each drawn from p(x_t | x_<t); int64 [T + tokens].

    Args:
        model: a model in evaluation mode in which no entry of the continuation sees a later one.
        prompt_T: int64, at least one token.
        settings: how many tokens, and how they are drawn.
        generator: of the CPU.
        row_R: the row that the drawn tokens stand behind; the prompt when left out.
        beside: further fields of the one row, known before its first token is drawn: `prefix` [1], or `source` [1, S].

    Raises:
        UserError: an empty prompt, more positions than the model has, or a setting without effect.
    """
    if settings.steps is not None:
        raise UserError("steps: this model makes one token at a time, so steps have no effect: leave them out")
    if not len(prompt_T):
        raise UserError("prompt: this model continues what is there: give at least one token")
    row_R, beside = prompt_T if row_R is None else row_R, beside or {}
    total = len(row_R) + settings.tokens
    check_prompt(model, prompt_T, max([total - 1, *(field.shape[1] for field in beside.values() if field.dim() > 1)]), settings)
    tokens_T = torch.cat((row_R.long(), row_R.new_zeros(settings.tokens, dtype=torch.long)))
    with _growing_row(model, total - 1, cached=settings.cache) as cached, torch.inference_mode():
        seen = 0
        for place in range(len(row_R), total):
            batch = {"tokens": tokens_T[None, seen:place], **({} if seen else beside)}
            tokens_T[place] = draw(model(batch)["logits"][:, -1], settings, generator)[0]
            seen = place if cached else 0
    return torch.cat((prompt_T.long(), tokens_T[len(row_R) :]))


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
