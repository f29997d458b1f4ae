"""The model of a run or an export with its task and its tokenizers, for any use of it: generation, predictions, other tools' tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from stackwise import config
from stackwise.assembly.described import described_part, description_errors, load_exported
from stackwise.assembly.outside import build_task
from stackwise.assembly.planning import make_plan
from stackwise.assembly.workshop import Workshop
from stackwise.contracts.answers import calling, expect
from stackwise.contracts.generation import Generates, HasTextCodec, TextCodec
from stackwise.contracts.protocols import vocabulary_of
from stackwise.contracts.tokenizers import RunTokenizer, Tokenizers
from stackwise.errors import UserError
from stackwise.host.discovery import discover
from stackwise.host.provider import Provider
from stackwise.host.registry import Registry, blaming
from stackwise.planes.model.module import Model
from stackwise.saved.export import describe_run
from stackwise.saved.model import SavedModel, model_at
from stackwise.storage.checkpoints.of_run import store_of
from stackwise.storage.run_directory import CONFIG, final_weights
from stackwise.storage.tokenizers import read_tokenizers
from stackwise.storage.weights import DESCRIPTION, read_description


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


def open_model(path: Path, fit: Fit) -> TextModel:
    """Open the model of a run or an export, with its task and its tokenizers.

    Args:
        path: a run directory or an export.
        fit: returns the task, or refuses one that cannot do what is asked.
    """
    registry = discover()
    if not (path / CONFIG).is_file():
        if not (path / DESCRIPTION).is_file():
            raise UserError(f"{path} is not a run directory, as there is no {CONFIG} in it, and no export, as there is no {DESCRIPTION}")
        return _described(path, registry, dict, fit)
    if (final := final_weights(path)) is not None:
        return _described(final, registry, lambda: _declared_options(path, registry), fit)
    checkpoint, skipped = store_of(path).newest()
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
        raise UserError(f"{directory} does not name its task, because an earlier version wrote it: generate with that version")
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
        """The id before text that nothing precedes."""
        expect(self.start is None or isinstance(self.start, int), self.start, "as its `start` an id or None")

    def encode(self, text: str) -> Sequence[int]:
        """Text → ids."""
        with blaming(self._providers), calling(self._id, "encode"):
            ids = self._codec.encode(text)
            expect(isinstance(ids, Sequence) and all(isinstance(id, int) for id in ids), ids, "a sequence of ids, whole numbers,")
            return tuple(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Ids → text."""
        with blaming(self._providers), calling(self._id, "decode"):
            text = self._codec.decode(ids)
            expect(isinstance(text, str), text, "text")
            return str(text)
