"""Generation: a prompt continued by the model of a run, with the task and the tokens of the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, frozen

from stackwise import config
from stackwise.assembly.described import described_part, description_errors, load_exported
from stackwise.assembly.outside import build_task
from stackwise.assembly.workshop import Workshop
from stackwise.contracts.generation import Generates, GenerationSettings, HasTextCodec, TextCodec
from stackwise.contracts.protocols import vocabulary_of
from stackwise.contracts.tokenizers import RunTokenizer, Tokenizers
from stackwise.errors import ProviderError, UserError, bytes_asked, lacks_memory
from stackwise.host.discovery import discover
from stackwise.host.provider import Provider
from stackwise.host.registry import Registry, blaming
from stackwise.plan import make_plan
from stackwise.planes.model.module import Model
from stackwise.saved.export import describe_run
from stackwise.saved.model import SavedModel, model_at
from stackwise.storage.checkpoints.store import CheckpointStore
from stackwise.storage.run_directory import CHECKPOINTS, CONFIG, final_weights
from stackwise.storage.tokenizers import read_tokenizers
from stackwise.storage.weights import DESCRIPTION, read_description
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
    """Continue a prompt with the model of a run, its final weights or those of its newest whole checkpoint, or with an export.

    Args:
        run: a run directory or an export; it is only read. What the run was trained on is not needed.
        prompt: text, or token ids.
        settings: how many tokens, and how they are drawn.
        seed: of every draw; the same seed gives the same tokens.

    Raises:
        UserError: no run directory or no weights in it; a task that generates nothing; a prompt of text where no source has a text
            codec, ids outside the vocabulary, or a prompt too long for the model; a setting without effect on the task.
        DataError: the vocabulary of the run is missing or has changed.
        ProviderError: a component that cannot be built, or that does not keep to its contract.
    """
    source = open_text_model(Path(run))
    codec = source.codec() if isinstance(prompt, str) else None
    prompt_ids = tuple(codec.encode(prompt)) if codec is not None and isinstance(prompt, str) else tuple(map(int, prompt))
    settings = evolve(settings, ids=source.ids if settings.ids is None else settings.ids)
    _check_ids(prompt_ids, settings.ids)
    generator = torch.Generator().manual_seed(step_seed(stream_key(seed, "generate"), 0))
    with blaming(source.providers):
        try:
            result = source.task.generate(source.model, torch.tensor(prompt_ids, dtype=torch.long), settings, generator)
        except Exception as error:
            if not lacks_memory(error):
                raise
            lengths = f"{len(prompt_ids):,} tokens and {settings.tokens:,} behind them"
            raise UserError(f"memory does not suffice for a prompt of {lengths}{bytes_asked(error)}: generate fewer tokens") from error
    ids = tuple(result.tolist())
    if ids[: len(prompt_ids)] != prompt_ids or len(ids) != len(prompt_ids) + settings.tokens:
        raise ProviderError(
            f"task '{source.task_id}' gave {len(ids)} ids for a prompt of {len(prompt_ids)} and {settings.tokens} to generate, or "
            "changed the prompt: its generate returns the prompt with that many behind it"
        )
    return Generated(ids=ids, prompt_tokens=len(prompt_ids), text=None if codec is None else codec.decode(ids), step=source.step)


@frozen(kw_only=True, eq=False)
class TextModel:
    """A model with all that continuing a prompt takes."""

    model: Model
    task_id: str
    task: Generates
    step: int
    ids: int | None
    """The number of ids that the sources deliver; None where none states it."""
    sources: Mapping[str, str]
    """Sources in force: name → loader."""
    fingerprints: Mapping[str, Any]
    tokenizers: Tokenizers
    registry: Registry
    providers: Sequence[Provider]
    options: Callable[[], Mapping[str, Any]]
    """Options of the loaders of these sources, where they are known."""

    def codec(self) -> TextCodec:
        """The text codec of the first source that has one: the sources of a mixture share a vocabulary.

        Raises:
            UserError: no source has one, or their vocabularies differ.
        """
        named = {name: vocabulary_of(self.fingerprints.get(name)) for name in self.sources}
        vocabularies = {name: vocabulary for name, vocabulary in named.items() if vocabulary is not None}
        if len(set(vocabularies.values())) > 1:
            pairs = ", ".join(f"'{name}' {vocabulary}" for name, vocabulary in vocabularies.items())
            raise UserError(f"the sources in force have ids of several vocabularies ({pairs}): give the prompt as ids (--ids)")
        for vocabulary in vocabularies.values():
            if (entry := self.tokenizers.of_vocabulary(vocabulary)) is not None:
                return self._codec_of(entry)
        for name, options in self.options().items():
            codec = options.text_codec(self.fingerprints.get(name, {})) if isinstance(options, HasTextCodec) else None
            if codec is not None:
                return codec
        names = ", ".join(f"'{name}' ({loader})" for name, loader in self.sources.items())
        raise UserError(f"no source in force says what text its ids stand for: {names}; give the prompt as ids (--ids)")

    def _codec_of(self, entry: RunTokenizer) -> TextCodec:
        with blaming(self.providers):
            options: Any = self.registry.get("loader", entry.use).load_options()
            codec: TextCodec = options.codec_of(entry.tokenizer)
        return codec


def open_text_model(path: Path) -> TextModel:
    """The final weights of a run, those of its newest whole checkpoint, or those of an export."""
    registry = discover()
    if not (path / CONFIG).is_file():
        if not (path / DESCRIPTION).is_file():
            raise UserError(f"{path} is no run directory, as there is no {CONFIG} in it, and no export, as there is no {DESCRIPTION}")
        return _described(path, registry, dict)
    if (final := final_weights(path)) is not None:
        return _described(final, registry, lambda: _declared_options(path, registry))
    checkpoint, skipped = CheckpointStore(path / CHECKPOINTS).newest()
    if checkpoint is None:
        damage = "".join(f"; {each.name} is damaged: {each.reason}" for each in skipped)
        raise UserError(f"{path} holds no weights yet, neither final ones nor a whole checkpoint{damage}: train it first")
    return _unfinished(model_at(checkpoint))


def _unfinished(saved: SavedModel) -> TextModel:
    plan, about = saved.plan, describe_run(saved.plan, saved.phase, saved.step, saved.fingerprints)
    sources = saved.state.data.sources
    return TextModel(
        model=saved.model,
        task_id=saved.state.task.id,
        task=_generating(Workshop(plan).task(saved.state.task), saved.state.task.id, plan.registry),
        step=saved.step,
        ids=about["ids"],
        sources=about["sources"],
        fingerprints=saved.fingerprints,
        tokenizers=plan.tokenizers,
        registry=plan.registry,
        providers=plan.providers,
        options=lambda: {name: part.options for name, part in sources.items()},
    )


def _described(directory: Path, registry: Registry, options: Callable[[], Mapping[str, Any]]) -> TextModel:
    """Weights beside their description, which says all but the text that ids stand for; the tokenizers beside it say that."""
    about = read_description(directory)
    if "task" not in about:
        raise UserError(f"{directory} does not say its task, as an earlier version wrote it: generate by that version")
    with description_errors(directory):
        part = described_part("task", about["task"], registry, directory)
        sources = {str(name): str(loader) for name, loader in about["sources"].items()}
        step, ids, fingerprints = int(about["step"]), about["ids"], dict(about["data"])
    providers = [provider for name in about.get("providers", ()) if (provider := registry.provider(str(name))) is not None]
    with blaming(providers):
        task = _generating(build_task(part, registry), part.id, registry)
    return TextModel(
        model=load_exported(directory, registry).requires_grad_(False),
        task_id=part.id,
        task=task,
        step=step,
        ids=None if ids is None else int(ids),
        sources=sources,
        fingerprints=fingerprints,
        tokenizers=read_tokenizers(directory),
        registry=registry,
        providers=providers,
        options=options,
    )


def _declared_options(run: Path, registry: Registry) -> dict[str, Any]:
    """Source → options of its loader, at the end of a run."""
    plan = make_plan(config.load(run / CONFIG), registry, tokenizers=read_tokenizers(run))
    state = plan.schedule.phases[-1].state
    return {} if state is None else {name: part.options for name, part in state.data.sources.items()}


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
        raise UserError(f"prompt: {', '.join(map(str, unknown[:5]))} is no id of the source: ids {where}")
