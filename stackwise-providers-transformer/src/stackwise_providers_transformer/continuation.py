"""A prompt continued token by token.

Shapes: T time, R time of what is read first, V vocab.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from stackwise import GenerationSettings, LinearOutput, Model, UserError
from stackwise_providers_transformer.decoder import Decoder
from stackwise_providers_transformer.embedding import TokenEmbedding
from stackwise_providers_transformer.encoder_decoder import EncoderDecoder
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
    """The prompt with tokens after it, each drawn from p(x_t | x_<t); int64 [T + tokens], shorter where it is ended.

    Args:
        model: a model in evaluation mode in which no entry of the continuation sees a later one.
        prompt_T: int64, at least one token.
        settings: how many tokens, how they are drawn, and what ends them.
        generator: of the CPU.
        row_R: the row that the drawn tokens stand after; the prompt when left out.
        beside: further fields of the one row, known before its first token is drawn: `prefix` [1], or `source` [1, S].

    Raises:
        UserError: an empty prompt, more positions than the model has, or a setting without effect.
    """
    row_R, beside = prompt_T if row_R is None else row_R, beside or {}
    check_length(model, prompt_T, settings, row_R, beside)
    (made_C,) = continued(model, row_R[None], settings, [generator], [0], beside)
    return torch.cat((prompt_T.long(), made_C))


def continue_prompts(
    model: Forward, prompts: Sequence[torch.Tensor], settings: GenerationSettings, generators: Sequence[torch.Generator]
) -> list[torch.Tensor]:
    """What `continue_prompt` gives for each prompt [T]; those of one length go through the model together.

    Raises:
        UserError: as `continue_prompt`.
    """
    alike: dict[int, list[int]] = {}
    for i, prompt_T in enumerate(prompts):
        check_length(model, prompt_T, settings, prompt_T, {})
        alike.setdefault(len(prompt_T), []).append(i)
    made: dict[int, torch.Tensor] = {}
    for numbers in alike.values():
        rows_BR = torch.stack([prompts[i].long() for i in numbers])
        found = continued(model, rows_BR, settings, [generators[i] for i in numbers], numbers, {})
        made.update({i: torch.cat((prompts[i].long(), made_C)) for i, made_C in zip(numbers, found, strict=True)})
    return [made[i] for i in range(len(prompts))]


class ContinuesPrompts:
    """A task whose prompts are beginnings of rows, which are continued token by token."""

    def generate(self, model: Forward, prompt: torch.Tensor, settings: GenerationSettings, generator: torch.Generator) -> torch.Tensor:
        """The prompt [T] continued token by token.

        Raises:
            UserError: an empty prompt, more positions than the model has, or a setting without effect.
        """
        return continue_prompt(model, prompt, settings, generator)

    def generate_rows(
        self, model: Forward, prompts: Sequence[torch.Tensor], settings: GenerationSettings, generators: Sequence[torch.Generator]
    ) -> list[torch.Tensor]:
        """Every prompt [T] continued by its own generator; those of one length together.

        Raises:
            UserError: as `generate`.
        """
        return continue_prompts(model, prompts, settings, generators)


def continued(
    model: Forward,
    rows_BR: torch.Tensor,
    settings: GenerationSettings,
    generators: Sequence[torch.Generator],
    numbers: Sequence[int],
    beside: Mapping[str, torch.Tensor],
) -> list[torch.Tensor]:
    """The tokens drawn after each row, [C] each, C at most `settings.tokens`.

    Args:
        model: as for `continue_prompt`.
        rows_BR: rows of one length.
        settings: how many tokens, how they are drawn, and what ends them.
        generators: one a row.
        numbers: the number that `settings.hear` gets for each row.
        beside: further fields of the rows.
    """
    total, first = rows_BR.shape[1] + settings.tokens, rows_BR.shape[1]
    tokens_BT = torch.cat((rows_BR.long(), rows_BR.new_zeros(len(rows_BR), settings.tokens, dtype=torch.long)), dim=1)
    ends = [total] * len(rows_BR)
    with _growing_rows(model, total - 1, cached=settings.cache) as cached, torch.inference_mode():
        seen = 0
        for place in range(first, total):
            batch = {"tokens": tokens_BT[:, seen:place], **({} if seen else beside)}
            logits_BV = _last_logits(model, batch)
            for row in (row for row, end in enumerate(ends) if end == total):
                id = int(draw(logits_BV[row : row + 1], settings, generators[row])[0])
                tokens_BT[row, place] = id
                heard = settings.hear(numbers[row], id) if settings.hear is not None else None
                if heard or id in settings.stop:
                    ends[row] = place + 1
            if total not in ends:
                break
            seen = place if cached else 0
    return [tokens_T[first:end] for tokens_T, end in zip(tokens_BT, ends, strict=True)]


def _last_logits(model: Forward, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits [B, V] of the last entries; no others are made where the head can leave them."""
    logits = (model(batch, ("logits",)) if isinstance(model, Model) else model(batch))["logits"]
    return logits.at((slice(None), -1)).tensor() if isinstance(logits, LinearOutput) else logits[:, -1]


def check_length(
    model: Forward, prompt_T: torch.Tensor, settings: GenerationSettings, row_R: torch.Tensor, beside: Mapping[str, torch.Tensor]
) -> None:
    """Refuse a prompt that cannot be continued token by token.

    Raises:
        UserError: it is empty, takes more positions than the model has, or a setting has no effect.
    """
    if settings.steps is not None:
        raise UserError("steps: this model makes one token at a time, so steps have no effect: leave them out")
    if not len(prompt_T):
        raise UserError("prompt: this model continues what is there: give at least one token")
    longest = max([len(row_R) + settings.tokens - 1, *(field.shape[1] for field in beside.values() if field.dim() > 1)])
    check_prompt(model, prompt_T, longest, settings)


def check_prompt(model: Forward, prompt_T: torch.Tensor, positions: int, settings: GenerationSettings) -> None:
    """Refuse ids that the model has no vector for, and rows longer than a table of learned positions.

    Raises:
        UserError: there are such ids, or the row is too long.
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
def _growing_rows(model: Forward, positions: int, *, cached: bool) -> Iterator[bool]:
    """Yields whether the model is to be given new tokens only."""
    rack: Any = getattr(model, "rack", None)
    if not cached or not _keeps_places_apart(model) or not (isinstance(rack, Decoder | EncoderDecoder) or _is_continued(rack)):
        yield False
        return
    with rack.caching(positions):
        yield True


def _keeps_places_apart(model: Forward) -> bool:
    """Whether positions interact only in the rack's attention: another embedding, head or adapter might look at the whole row."""
    embedding, head, adapters = (getattr(model, name, None) for name in ("embedding", "head", "adapters"))
    from stackwise_providers_transformer.hugging_face.wrapped_heads import WrappedHead  # training asks no such question

    return isinstance(embedding, TokenEmbedding) and isinstance(head, LMHead | WrappedHead) and not adapters


def _is_continued(rack: Any) -> bool:
    from stackwise_providers_transformer.hugging_face.wrapped import WrappedRack  # training asks no such question

    return isinstance(rack, WrappedRack) and rack.continues
