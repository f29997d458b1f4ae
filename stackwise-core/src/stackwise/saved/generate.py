"""Generation: a prompt continued by the model of a run, with the task and the tokens of the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from attrs import evolve, frozen

from stackwise import config
from stackwise.assembly.workshop import Workshop
from stackwise.contracts.generation import Generates, GenerationSettings, HasTextCodec, TextCodec
from stackwise.contracts.protocols import vocabulary_of
from stackwise.contracts.specs import BatchSpec
from stackwise.curriculum.states import TrainingState
from stackwise.errors import ProviderError, UserError
from stackwise.host.discovery import discover
from stackwise.host.registry import blaming
from stackwise.plan import make_plan
from stackwise.planes.model.state import load_named_tensors
from stackwise.saved.export import refuse_unheld
from stackwise.saved.model import SavedModel, declared_at, model_at
from stackwise.storage.checkpoints.store import CheckpointStore
from stackwise.storage.run_directory import CHECKPOINTS, CONFIG, final_weights
from stackwise.storage.weights import read_description, read_weights
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


def generate(run: Path | str, prompt: str | Sequence[int], settings: GenerationSettings, *, seed: int = 0) -> Generated:
    """Continue a prompt with the model of a run: its final weights, or those of its newest whole checkpoint.

    Args:
        run: a run directory; it is only read.
        prompt: text, or token ids.
        settings: how many tokens, and how they are drawn.
        seed: of every draw; the same seed gives the same tokens.

    Raises:
        UserError: no run directory or no weights in it; a task that generates nothing; a prompt of text where no source has a text
            codec, ids outside the vocabulary, or a prompt too long for the model; a setting without effect on the task.
        DataError: the vocabulary of the run is missing or has changed.
        ProviderError: a component that cannot be built, or that does not keep to its contract.
    """
    saved = open_saved(Path(run))
    task = _task(saved)
    codec = _codec(saved) if isinstance(prompt, str) else None
    prompt_ids = tuple(codec.encode(prompt)) if codec is not None and isinstance(prompt, str) else tuple(map(int, prompt))
    settings = evolve(settings, ids=_limit(saved.state) if settings.ids is None else settings.ids)
    _check_ids(prompt_ids, settings.ids)
    generator = torch.Generator().manual_seed(step_seed(stream_key(seed, "generate"), 0))
    with blaming(saved.plan.providers):
        result = task.generate(saved.model, torch.tensor(prompt_ids, dtype=torch.long), settings, generator)
    ids = tuple(result.tolist())
    if ids[: len(prompt_ids)] != prompt_ids or len(ids) != len(prompt_ids) + settings.tokens:
        raise ProviderError(
            f"task '{saved.state.task.id}' gave {len(ids)} ids for a prompt of {len(prompt_ids)} and {settings.tokens} to generate, or "
            "changed the prompt: its generate returns the prompt with that many behind it"
        )
    return Generated(ids=ids, prompt_tokens=len(prompt_ids), text=None if codec is None else codec.decode(ids), step=saved.step)


def open_saved(run: Path) -> SavedModel:
    """The model of a run with its final weights, or those of its newest whole checkpoint.

    Raises:
        UserError: no run directory, or no weights in it.
    """
    if not (run / CONFIG).is_file():
        raise UserError(f"{run} is no run directory: there is no {CONFIG} in it")
    if (final := final_weights(run)) is not None:
        return _finished(run, final)
    checkpoint, skipped = CheckpointStore(run / CHECKPOINTS).newest()
    if checkpoint is None:
        damage = "".join(f"; {each.name} is damaged: {each.reason}" for each in skipped)
        raise UserError(f"{run} holds no weights yet, neither final ones nor a whole checkpoint{damage}: train it first")
    return model_at(checkpoint)


def _finished(run: Path, final: Path) -> SavedModel:
    about, plan = read_description(final), make_plan(config.load(run / CONFIG), discover())
    refuse_unheld(about, final)
    saved = declared_at(plan, about.get("step", plan.schedule.steps), about.get("data", {}))
    load_named_tensors(saved.model.requires_grad_(False), read_weights(final)[0], f"the weights in {final}")
    return saved


def _task(saved: SavedModel) -> Generates:
    part = saved.state.task
    task = Workshop(saved.plan).task(part)
    if not isinstance(task, Generates):
        label = saved.plan.joined[saved.phase.index].drafts.task.label
        raise UserError(
            f"{label} of phase '{saved.phase.name}' generates nothing: a run that is to continue prompts ends with a task that does, "
            "as a causal language model, a sequence to sequence or a diffusion"
        )
    return task


def _codec(saved: SavedModel) -> TextCodec:
    """The text codec of the first source that has one: the sources of a mixture share a vocabulary.

    Raises:
        UserError: no source has one, or their vocabularies differ.
    """
    sources = saved.state.data.sources
    vocabularies = {name: vocabulary for name in sources if (vocabulary := vocabulary_of(saved.fingerprints.get(name))) is not None}
    if len(set(vocabularies.values())) > 1:
        pairs = ", ".join(f"'{name}' {vocabulary}" for name, vocabulary in vocabularies.items())
        raise UserError(f"the sources in force have ids of several vocabularies ({pairs}): give the prompt as ids (--ids)")
    for name, part in sources.items():
        if isinstance(part.options, HasTextCodec):
            codec = part.options.text_codec(saved.fingerprints.get(name, {}))
            if codec is not None:
                return codec
    names = ", ".join(f"'{name}' ({part.id})" for name, part in sources.items())
    raise UserError(f"no source in force says what text its ids stand for: {names}; give the prompt as ids (--ids)")


def _limit(state: TrainingState) -> int | None:
    """The number of ids of the sources in force; None where no source states it."""
    bounds = []
    for part in state.data.sources.values():
        spec = part.options.to_spec() if hasattr(part.options, "to_spec") else None
        fields = spec.fields.values() if isinstance(spec, BatchSpec) else ()
        bounds += [field.bounds[1] for field in fields if "time" in field.dims and field.bounds is not None]
    sizes = [bound for bound in bounds if isinstance(bound, int)]
    return max(sizes, default=None)


def _check_ids(ids: Sequence[int], limit: int | None) -> None:
    unknown = [i for i in ids if i < 0 or (limit is not None and i >= limit)]
    if unknown:
        where = "are not negative" if limit is None else f"lie in [0, {limit})"
        raise UserError(f"prompt: {', '.join(map(str, unknown[:5]))} is no id of the source: ids {where}")
