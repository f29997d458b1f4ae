"""Generation: a prompt continued by the model of a run, with the task and the tokens of the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, frozen

from stackwise.contracts.answers import calling, expect
from stackwise.contracts.generation import Generates, GeneratesRows, GenerationSettings
from stackwise.errors import UserError, bytes_asked, lacks_memory
from stackwise.host.registry import Registry, blaming
from stackwise.saved.task_model import TextModel, open_model
from stackwise.saved.text_pieces import Continuation, Hear, numbered, take_pieces
from stackwise.timeline.streams import step_seed, stream_key


@frozen(kw_only=True)
class Generated:
    """A prompt and what follows it."""

    ids: tuple[int, ...]
    """Token ids, those of the prompt first."""
    prompt_tokens: int
    text: str | None
    """The same as text; None where the prompt was given as ids."""
    step: int
    """The step of the weights."""


def generate(
    run: Path | str,
    prompt: str | Sequence[int],
    settings: GenerationSettings,
    *,
    seed: int = 0,
    stop: Sequence[str] = (),
    hear: Hear | None = None,
) -> Generated:
    """Continue a prompt with the model of a run, its final weights or those of its newest whole checkpoint, or with an export.

    Args:
        run: a run directory or an export; it is only read. What the run was trained on is not needed.
        prompt: text, or token ids.
        settings: how many tokens, how they are drawn, and ids that end them.
        seed: of every draw; the same seed gives the same tokens.
        stop: texts that end the continuation; the text is cut in front of them.
        hear: called with each piece as it is generated.

    Raises:
        UserError: no run directory or no weights in it; a task that generates nothing; a prompt of text where no source has a text
            codec, ids outside the vocabulary, or a prompt too long for the model; a setting without effect on the task.
        DataError: the vocabulary of the run is missing or has changed.
        ProviderError: a component that cannot be built, or that does not keep to its contract.
    """
    return generate_all(run, [prompt], settings, seed=seed, stop=stop, hear=hear)[0]


def generate_all(
    run: Path | str,
    prompts: Sequence[str | Sequence[int]],
    settings: GenerationSettings,
    *,
    seed: int = 0,
    stop: Sequence[str] = (),
    hear: Hear | None = None,
) -> list[Generated]:
    """Continue several prompts; those of one length go through the model together, where the task can.

    Each has draws of its own, so the first gets what `generate` gives it.

    Args:
        run: as in `generate`.
        prompts: texts, or lists of ids.
        settings: for all of them.
        seed: of every draw.
        stop: texts that end a continuation.
        hear: called with each piece as it is generated.

    Raises:
        UserError: as `generate`; texts and ids together; texts to stop at where prompts are ids.
    """
    source, texts = open_text_model(Path(run)), [prompt for prompt in prompts if isinstance(prompt, str)]
    if texts and len(texts) < len(prompts):
        raise UserError("prompts: some are text and some are ids: give one kind")
    if stop and not texts:
        raise UserError("stop: texts end what is generated as text: give ids as `settings.stop` where prompts are ids")
    codec = source.codec() if texts else None
    given = [tuple(codec.encode(each) if codec is not None and isinstance(each, str) else map(int, each)) for each in prompts]
    settings = evolve(settings, ids=source.ids if settings.ids is None else settings.ids)
    for ids in given:
        _check_ids(ids, settings.ids)
    continuations = [Continuation(codec, tuple(stop)) for _ in given]
    if stop or hear is not None:
        settings = evolve(settings, hear=take_pieces(continuations, hear, settings.hear))
    results = _continued(source, [torch.tensor(ids, dtype=torch.long) for ids in given], settings, seed)
    made = []
    for prompt, all_ids, ids, continuation in zip(prompts, results, given, continuations, strict=True):
        text = None if codec is None else str(prompt) + continuation.text if stop else codec.decode(all_ids)
        made.append(Generated(ids=all_ids, prompt_tokens=len(ids), text=text, step=source.step))
        if hear is not None and (rest := continuation.rest()):
            hear(len(made) - 1, rest)
    return made


def _continued(source: TextModel, prompts: Sequence[torch.Tensor], settings: GenerationSettings, seed: int) -> Sequence[tuple[int, ...]]:
    """The prompts with what is generated after them."""
    key = stream_key(seed, "generate")
    generators = [torch.Generator().manual_seed(step_seed(key, i)) for i in range(len(prompts))]
    at_once = len(prompts) > 1 and isinstance(source.task, GeneratesRows)
    with blaming(source.providers), calling(source.task_id, "generate_rows" if at_once else "generate"):
        try:
            if at_once and isinstance(source.task, GeneratesRows):
                results = source.task.generate_rows(source.model, prompts, settings, generators)
                expect(isinstance(results, Sequence) and len(results) == len(prompts), results, f"a row for each of {len(prompts)} prompts")
                return [checked(prompt, row, settings) for prompt, row in zip(prompts, results, strict=True)]
            rows = []
            for i, (prompt, generator) in enumerate(zip(prompts, generators, strict=True)):
                own = settings if settings.hear is None else evolve(settings, hear=numbered(settings.hear, i))
                rows.append(checked(prompt, source.task.generate(source.model, prompt, own, generator), settings))
            return rows
        except Exception as error:
            if not lacks_memory(error):
                raise
            lengths = f"{max(map(len, prompts)):,} tokens and {settings.tokens:,} after them"
            raise UserError(f"not enough memory for a prompt of {lengths}{bytes_asked(error)}: generate fewer tokens") from error


def checked(prompt: torch.Tensor, row: Any, settings: GenerationSettings) -> tuple[int, ...]:
    """The ids of a prompt and what was generated after it.

    Raises:
        WrongAnswer: they are not what was asked for.
    """
    expect(isinstance(row, torch.Tensor) and row.dim() == 1 and not row.is_floating_point(), row, "a tensor of ids in one dimension")
    made = len(row) - len(prompt)
    may_end = bool(settings.stop) or settings.hear is not None
    fits = row[: len(prompt)].tolist() == prompt.tolist() and (0 <= made <= settings.tokens if may_end else made == settings.tokens)
    expect(fits, row, f"the prompt of {len(prompt)} ids with {settings.tokens} after it")
    return tuple(row.tolist())


def open_text_model(path: Path) -> TextModel:
    """A model that continues prompts: the final weights of a run, those of its newest whole checkpoint, or those of an export."""
    return open_model(path, _generating)


def _generating(task: object, id: str, registry: Registry) -> Generates:
    if not isinstance(task, Generates):
        registered = registry.get("task", id)
        raise UserError(
            f"task '{id}' ({registered.distribution} {registered.version}) generates nothing: a run that is to continue prompts ends with "
            "a task that does, as a causal language model, a sequence to sequence or a diffusion"
        )
    return task


def _check_ids(ids: Sequence[int], limit: int | None) -> None:
    unknown = [i for i in ids if i < 0 or (limit is not None and i >= limit)]
    if unknown:
        where = "are not negative" if limit is None else f"lie in [0, {limit})"
        raise UserError(f"prompt: {', '.join(map(str, unknown[:5]))} is not an id of the source: ids {where}")
