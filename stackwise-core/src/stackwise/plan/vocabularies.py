"""The tokenizers of all sources: each is made once, and two different vocabularies are refused before any data is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from attrs import frozen

from stackwise.config import Experiment, PhaseConfig
from stackwise.contracts.answers import WrongAnswer
from stackwise.contracts.tokenizers import RunTokenizer, Tokenizers, made_tokenizer, settings_of, shares_tokenizer
from stackwise.curriculum.parts import Part
from stackwise.errors import DataError, Problem, UserError
from stackwise.plan.parts import Draft


@frozen(kw_only=True)
class TextSource:
    """A source whose options declare a tokenizer."""

    name: str
    use: str
    options: Any
    settings: Mapping[str, Any]
    declared: PhaseConfig | Experiment
    """Knows where it is written: the first phase that declares it, or the experiment for a source of an evaluation."""
    evaluation: str | None = None

    @property
    def path(self) -> str:
        """Its key in the config."""
        return f"data.sources.{self.name}" if self.evaluation is None else f"evaluate.{self.evaluation}.sources.{self.name}"

    @property
    def place(self) -> str:
        """What messages call it."""
        return f"source '{self.name}'" + ("" if self.evaluation is None else f" of evaluation '{self.evaluation}'")

    def shares_with(self, other: TextSource) -> bool:
        """Whether both use one tokenizer."""
        return shares_tokenizer((self.use, self.settings), (other.use, other.settings))


Sources = Mapping[str, "Part | Draft"]


def text_sources(
    experiment: Experiment, phases: Iterable[tuple[PhaseConfig, Sources]], evaluations: Iterable[tuple[str, Sources]] = ()
) -> list[TextSource]:
    """The sources that declare a tokenizer, in the order of the timeline, equal declarations once.

    Args:
        experiment: the config.
        phases: each phase and its sources.
        evaluations: name and own sources of each evaluation.
    """
    places: list[tuple[PhaseConfig | Experiment, str | None, Sources]] = [(phase, None, sources) for phase, sources in phases]
    places += [(experiment, name, sources) for name, sources in evaluations]
    result: list[TextSource] = []
    for declared, evaluation, sources in places:
        for name, part in sources.items():
            source = None if part.given is not None else _text_source(name, part, declared, evaluation)
            if source is not None and not any(_says_the_same(source, other) for other in result):
                result.append(source)
    return result


def _text_source(name: str, part: Part | Draft, declared: PhaseConfig | Experiment, evaluation: str | None) -> TextSource | None:
    settings = settings_of(part.id, part.options)
    if settings is None:
        return None
    return TextSource(name=name, use=part.id, options=part.options, settings=settings, declared=declared, evaluation=evaluation)


def _says_the_same(one: TextSource, other: TextSource) -> bool:
    return (one.path, one.use) == (other.path, other.use) and bool(one.options == other.options)


def make_tokenizers(sources: Sequence[TextSource], known: Tokenizers) -> Tokenizers:
    """Make one tokenizer for each of the settings that sources declare.

    A vocabulary to be learnt is learnt from the training documents of every training source with these settings, in the order of the
    timeline. If only an evaluation has these settings, it is learnt from the documents of the evaluation.

    Args:
        sources: those of all phases, in their order, then those of evaluations.
        known: tokenizers that the run has already; none of them is made again.

    Raises:
        UserError: a file that cannot be read, or data that no vocabulary can be learnt from; the message begins with the source's place.
    """
    tokenizers = known
    for source in sources:
        if tokenizers.find(source.use, source.options) is not None:
            continue
        peers = [other for other in sources if other.shares_with(source) and other.evaluation is None] or [source]
        try:
            tokenizer = made_tokenizer(source.use, source.options, [peer.options for peer in peers])
        except WrongAnswer:
            raise
        except UserError as error:
            raise type(error)(str(source.declared.problem(source.path, str(error)))) from error
        assert tokenizer is not None  # data may be read here
        tokenizers = tokenizers.with_entry(RunTokenizer(use=source.use, settings=source.settings, tokenizer=tokenizer))
    return tokenizers


def vocabulary_problems(experiment: Experiment, sources: Sequence[TextSource], known: Tokenizers) -> Iterator[Problem]:
    """Sources whose vocabularies differ by their settings and files; only equal settings share a vocabulary that is learnt."""
    if experiment.run.vocabularies == "several":
        return
    readable: list[tuple[TextSource, str | None]] = []
    for source in sources:
        try:
            readable.append((source, _vocabulary(source, known)))
        except DataError as error:
            yield source.declared.problem(source.path, str(error))
    for source, vocabulary in readable[1:]:
        first, expected = readable[0]
        if not source.shares_with(first) and (vocabulary is None or vocabulary != expected):
            names = [_as_text(each.settings) if named is None else named for each, named in ((source, vocabulary), readable[0])]
            yield vocabulary_problem(source.declared, source.place, source.path, names[0], first.place, names[1])


def vocabulary_problem(declared: PhaseConfig | Experiment, place: str, path: str, vocabulary: str, first: str, expected: str) -> Problem:
    """Two places whose ids are of two vocabularies.

    Args:
        declared: knows where the path is written.
        place: what the second place is called.
        path: its key in the config.
        vocabulary: its own.
        first: what the first place is called.
        expected: the vocabulary of the first.
    """
    return declared.problem(
        path,
        f"{place} has ids of the vocabulary {vocabulary}, and {first} has ids of {expected}: one id would mean two things to the model. "
        "Give both the same tokenizer (equal settings share one; `tokenizer: {run: …}` takes that of a former run, `{file: …}` any "
        "tokenizer.json), or write `run: {vocabularies: several}` if it is meant",
    )


def _vocabulary(source: TextSource, known: Tokenizers) -> str | None:
    """The vocabulary; None if data has to be read to know it."""
    tokenizer = known.find(source.use, source.options) or made_tokenizer(source.use, source.options, None)
    return None if tokenizer is None else str(tokenizer.vocabulary)


def _as_text(settings: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {_value(value)}" for key, value in settings.items()) + "}"


def _value(value: Any) -> str:
    return _as_text(value) if isinstance(value, Mapping) else str(value)
