"""Check that ids of two vocabularies meet in one model only where the config allows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import attrs

from stackwise.assembly.references import references, vocabularies_of
from stackwise.contracts.protocols import vocabulary_of
from stackwise.contracts.selectors import covers
from stackwise.contracts.specs import HeadSpec
from stackwise.errors import ConfigError, UserError
from stackwise.machine.evaluation import Evaluation
from stackwise.plan import Plan
from stackwise.plan.vocabularies import vocabulary_problem
from stackwise.planes.data.plane import DataPlane
from stackwise.storage.run_directory import CONFIG, final_weights
from stackwise.storage.weights import read_description


def check_vocabularies(plan: Plan, data: DataPlane, evaluations: Sequence[Evaluation]) -> None:
    """Compare the vocabularies of all sources, of the evaluations and of the weights to start from.

    Args:
        plan: the compiled experiment.
        data: the training data plane, every source built.
        evaluations: with every source built.

    Raises:
        ConfigError: two differ, and `run.vocabularies` is `one`; every place that differs from the first is named.
    """
    if plan.experiment.run.vocabularies == "several":
        return
    starts = list(_start_vocabularies(plan))
    entries = [*starts, *_source_vocabularies(data, evaluations), *_reference_vocabularies(plan)]
    if not entries:
        return
    (first, _, vocabulary), *others = entries
    different = [(place, path, other) for place, path, other in others if other != vocabulary]
    if different:
        problems = [vocabulary_problem(plan.experiment, *entry, first, vocabulary) for entry in different]
        anew = "; weights that belong to ids start fresh by `model.start: {drop: [embedding, head]}`" if starts else ""
        raise ConfigError([attrs.evolve(problem, message=problem.message + anew) for problem in problems])


_Entry = tuple[str, str, str]
"""Description of a place, its path in the config, and its vocabulary."""


def _source_vocabularies(data: DataPlane, evaluations: Sequence[Evaluation]) -> Iterator[_Entry]:
    for name, vocabulary in data.vocabularies():
        yield f"source '{name}'", f"data.sources.{name}", vocabulary
    for evaluation in evaluations:
        for name, vocabulary in evaluation.data.vocabularies():
            yield f"source '{name}' of evaluation '{evaluation.name}'", f"evaluate.{evaluation.name}.sources.{name}", vocabulary


def _reference_vocabularies(plan: Plan) -> Iterator[_Entry]:
    """Vocabularies that models outside the run were trained on, which tasks compare with."""
    for _, path, _ in references(plan):
        for name, fingerprint in vocabularies_of(path).items():
            if isinstance(fingerprint, Mapping) and (vocabulary := vocabulary_of(fingerprint)) is not None:
                yield f"source '{name}' of {path} (which the task compares with)", "task.reference", vocabulary


def _start_vocabularies(plan: Plan) -> Iterator[_Entry]:
    """Vocabularies that the weights to start from were trained on, where their description says; none if all that knows ids starts anew."""
    start, head = plan.experiment.phases[0].model.start, plan.joined[0].drafts.head.spec
    if start is None:
        return
    tied = isinstance(head, HeadSpec) and bool(head.ties)
    if covers(start.drop, "embedding") and (tied or covers(start.drop, "head")):
        return  # no weights that were trained on ids are taken over
    path = Path(start.from_)
    about: Mapping[str, object] = {}
    with suppress(UserError):
        about = read_description((final_weights(path) if (path / CONFIG).is_file() else path) or path)
    sources = about.get("data")
    for name, fingerprint in sources.items() if isinstance(sources, Mapping) else ():
        vocabulary = vocabulary_of(fingerprint) if isinstance(fingerprint, Mapping) else None
        if vocabulary is not None:
            yield f"source '{name}' of {path} (where the weights come from)", "model.start.from", vocabulary
