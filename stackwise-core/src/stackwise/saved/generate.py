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
from stackwise.assembly.planning import make_plan
from stackwise.assembly.workshop import Workshop
from stackwise.contracts.answers import calling, expect
from stackwise.contracts.generation import Generates, GeneratesRows, GenerationSettings, HasTextCodec, TextCodec
from stackwise.contracts.protocols import vocabulary_of
from stackwise.contracts.tokenizers import RunTokenizer, Tokenizers
from stackwise.errors import UserError, bytes_asked, lacks_memory
from stackwise.host.discovery import discover
from stackwise.host.provider import Provider
from stackwise.host.registry import Registry, blaming
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


Hear = Callable[[int, str | int], None]
"""Called with the number of a prompt and what was generated behind it: a piece of text, or an id where prompts are ids."""


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
    ears = [Ear(codec, tuple(stop)) for _ in given]
    if stop or hear is not None:
        settings = evolve(settings, hear=_telling(ears, hear, settings.hear))
    results = _continued(source, [torch.tensor(ids, dtype=torch.long) for ids in given], settings, seed)
    made = []
    for prompt, all_ids, ids, ear in zip(prompts, results, given, ears, strict=True):
        text = None if codec is None else str(prompt) + ear.text if stop else codec.decode(all_ids)
        made.append(Generated(ids=all_ids, prompt_tokens=len(ids), text=text, step=source.step))
        if hear is not None and (rest := ear.rest()):
            hear(len(made) - 1, rest)
    return made


class CheckedCodec:
    """A codec whose wrong answers are told as its provider's.

    Args:
        codec: of a loader.
        id: of that loader.
        providers: who may be at fault.

    Raises:
        WrongAnswer: it is not a codec.
    """

    def __init__(self, codec: Any, id: str, providers: Sequence[Provider]) -> None:
        expect(callable(getattr(codec, "encode", None)) and callable(getattr(codec, "decode", None)), codec, "a codec: encode and decode")
        self._codec, self._id, self._providers = codec, id, providers
        self.start: int | None = getattr(codec, "start", None)

    def encode(self, text: str) -> Sequence[int]:
        """Text → ids."""
        with blaming(self._providers), calling(self._id, "encode"):
            ids = self._codec.encode(text)
            expect(not isinstance(ids, str) and all(isinstance(id, int) for id in ids), ids, "whole numbers")
            return tuple(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Ids → text."""
        with blaming(self._providers), calling(self._id, "decode"):
            text = self._codec.decode(ids)
            expect(isinstance(text, str), text, "text")
            return str(text)


class Ear:
    """What was generated behind one prompt, as text.

    Args:
        codec: None where ids are shown as they are.
        stop: texts that end it.
    """

    def __init__(self, codec: TextCodec | None, stop: Sequence[str]) -> None:
        self._codec, self._stop = codec, stop
        self._ids: list[int] = []
        self._given = 0
        self.text = ""
        """So far, cut in front of a text that ended it."""

    def take(self, id: int) -> tuple[str | int, bool]:
        """A further id: the text that it completes, and whether a stop text ends here."""
        if self._codec is None:
            return id, False
        self._ids.append(id)
        whole = self._codec.decode(self._ids)
        ends = [place for text in self._stop if (place := whole.find(text)) >= 0]
        self.text = whole[: min(ends)] if ends else whole
        held = max((len(text) - 1 for text in self._stop), default=0) if not ends else 0
        sure = self.text.rstrip("\ufffd")  # a letter of which some bytes are missing
        upto = max(self._given, len(sure) - held)
        piece, self._given = sure[self._given : upto], upto
        return piece, bool(ends)

    def rest(self) -> str:
        """What was held back, in case it began a text to stop at."""
        piece, self._given = self.text[self._given :], len(self.text)
        return piece


def _telling(ears: Sequence[Ear], hear: Hear | None, also: Callable[[int, int], bool | None] | None) -> Callable[[int, int], bool]:
    def take_id(number: int, id: int) -> bool:
        piece, ends = ears[number].take(id)
        if hear is not None and piece != "":
            hear(number, piece)
        return ends or bool(also is not None and also(number, id))

    return take_id


def _continued(source: TextModel, prompts: Sequence[torch.Tensor], settings: GenerationSettings, seed: int) -> Sequence[tuple[int, ...]]:
    """The prompts with what is generated behind them."""
    key = stream_key(seed, "generate")
    generators = [torch.Generator().manual_seed(step_seed(key, i)) for i in range(len(prompts))]
    at_once = len(prompts) > 1 and isinstance(source.task, GeneratesRows)
    with blaming(source.providers), calling(source.task_id, "generate_rows" if at_once else "generate"):
        try:
            if at_once and isinstance(source.task, GeneratesRows):
                results = source.task.generate_rows(source.model, prompts, settings, generators)
                expect(isinstance(results, Sequence) and len(results) == len(prompts), results, f"a row for each of {len(prompts)} prompts")
                return [_checked(prompt, row, settings) for prompt, row in zip(prompts, results, strict=True)]
            rows = []
            for i, (prompt, generator) in enumerate(zip(prompts, generators, strict=True)):
                own = settings if settings.hear is None else evolve(settings, hear=_numbered(settings.hear, i))
                rows.append(_checked(prompt, source.task.generate(source.model, prompt, own, generator), settings))
            return rows
        except Exception as error:
            if not lacks_memory(error):
                raise
            lengths = f"{max(map(len, prompts)):,} tokens and {settings.tokens:,} behind them"
            raise UserError(f"memory does not suffice for a prompt of {lengths}{bytes_asked(error)}: generate fewer tokens") from error


def _numbered(hear: Callable[[int, int], bool | None], number: int) -> Callable[[int, int], bool | None]:
    return lambda _, id: hear(number, id)


def _checked(prompt: torch.Tensor, row: Any, settings: GenerationSettings) -> tuple[int, ...]:
    """The ids of a prompt and what was generated behind it.

    Raises:
        WrongAnswer: they are not what was asked for.
    """
    expect(isinstance(row, torch.Tensor) and row.dim() == 1 and not row.is_floating_point(), row, "a tensor of ids in one dimension")
    made = len(row) - len(prompt)
    may_end = bool(settings.stop) or settings.hear is not None
    fits = row[: len(prompt)].tolist() == prompt.tolist() and (0 <= made <= settings.tokens if may_end else made == settings.tokens)
    expect(fits, row, f"the prompt of {len(prompt)} ids with {settings.tokens} behind it")
    return tuple(row.tolist())


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
            with blaming(self.providers), calling(self.sources[name], "text_codec"):
                codec = options.text_codec(self.fingerprints.get(name, {})) if isinstance(options, HasTextCodec) else None
                if codec is not None:
                    return CheckedCodec(codec, self.sources[name], self.providers)
        names = ", ".join(f"'{name}' ({loader})" for name, loader in self.sources.items())
        raise UserError(f"no source in force says what text its ids stand for: {names}; give the prompt as ids (--ids)")

    def _codec_of(self, entry: RunTokenizer) -> TextCodec:
        with blaming(self.providers), calling(entry.use, "codec_of"):
            options: Any = self.registry.get("loader", entry.use).load_options()
            return CheckedCodec(options.codec_of(entry.tokenizer), entry.use, self.providers)


Fit = Callable[[object, str, Registry], Any]
"""(task, its id, registry) → the task."""


def open_text_model(path: Path) -> TextModel:
    """A model that continues prompts: the final weights of a run, those of its newest whole checkpoint, or those of an export."""
    return open_model(path, _generating)


def open_model(path: Path, fit: Fit) -> TextModel:
    """The same for any use.

    Args:
        path: a run directory or an export.
        fit: returns the task, or refuses one that is of no use.
    """
    registry = discover()
    if not (path / CONFIG).is_file():
        if not (path / DESCRIPTION).is_file():
            raise UserError(f"{path} is not a run directory, as there is no {CONFIG} in it, and no export, as there is no {DESCRIPTION}")
        return _described(path, registry, dict, fit)
    if (final := final_weights(path)) is not None:
        return _described(final, registry, lambda: _declared_options(path, registry), fit)
    checkpoint, skipped = CheckpointStore(path / CHECKPOINTS).newest()
    if checkpoint is None:
        damage = "".join(f"; {each.name} is damaged: {each.reason}" for each in skipped)
        raise UserError(f"{path} holds no weights yet, neither final ones nor a whole checkpoint{damage}: train it first")
    return _unfinished(model_at(checkpoint), fit)


def _unfinished(saved: SavedModel, fit: Fit) -> TextModel:
    plan, about = saved.plan, describe_run(saved.plan, saved.phase, saved.step, saved.fingerprints)
    sources = saved.state.data.sources
    return TextModel(
        model=saved.model,
        task_id=saved.state.task.id,
        task=fit(Workshop(plan).task(saved.state.task), saved.state.task.id, plan.registry),
        step=saved.step,
        ids=about["ids"],
        sources=about["sources"],
        fingerprints=saved.fingerprints,
        tokenizers=plan.tokenizers,
        registry=plan.registry,
        providers=plan.providers,
        options=lambda: {name: part.options for name, part in sources.items()},
    )


def _described(directory: Path, registry: Registry, options: Callable[[], Mapping[str, Any]], fit: Fit) -> TextModel:
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
        task = fit(build_task(part, registry), part.id, registry)
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
        raise UserError(f"prompt: {', '.join(map(str, unknown[:5]))} is not an id of the source: ids {where}")
