"""Evaluations: each reads fixed data, its own or that of training, and the data must serve the task of every phase that it judges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import attrs
from attrs import Factory, frozen

from stackwise.config import DataConfig, EvaluateConfig
from stackwise.contracts.components import Built
from stackwise.contracts.protocols import Loader
from stackwise.contracts.specs import BatchSpec, TaskSpec, TransformSpec
from stackwise.curriculum.bridges import Bridge
from stackwise.curriculum.states import BatchShape, DataState, TrainingState
from stackwise.errors import Problem, did_you_mean
from stackwise.plan.junctions.join import Joined, join
from stackwise.plan.overlaps import overlap
from stackwise.plan.parts import Draft, Drafts
from stackwise.timeline.schedules import Curve


@frozen(kw_only=True)
class EvaluationPlan:
    """One named evaluation with its own fixed data."""

    name: str
    state: DataState
    batches: int
    values: Mapping[str, Mapping[str, float]] = Factory(dict)
    """Task id → fixed values of its options that follow time in training."""
    weights: str = "live"
    training_rows: bool = False
    """Whether it reads rows that training reads."""
    lookahead: int = 0
    """The most positions beyond its length that a task of the phases in which it runs asks for."""
    unserved: frozenset[str] = frozenset()
    """Ids of tasks of phases in which it never runs, and whose fields its sources do not deliver."""


def evaluation_plan(
    config: EvaluateConfig,
    states: Sequence[TrainingState],
    joined: Sequence[Joined],
    data: Sequence[DataConfig],
    drafts: Drafts,
    runs_in: Sequence[bool],
) -> EvaluationPlan:
    """The data of one evaluation, the same at every instant; problems are collected in `drafts`.

    Args:
        config: what was declared.
        states: the states of all phases; what the evaluation leaves out is taken from the first, or the longest.
        joined: the joined drafts of all phases.
        data: that of all phases. Of the first one that it judges the `rename` is followed where an own source has the field. A field goes
            no further where all that it judges drop it: the one evaluation serves the tasks of all of these.
        drafts: makes the drafts of own sources.
        runs_in: whether it runs in a phase or at one of its edges, and so must serve the phase's task.
    """
    judged = [i for i, runs in enumerate(runs_in) if runs] or range(len(states))  # instants that are mistaken are in no phase
    here, given = [data[i] for i in judged], dict(joined[0].drafts.sources)
    state = _inherited(config, states, joined[0].drafts.transforms, here)
    if config.sources is None:
        _check_inherited(config, states[0].data, drafts)
        problems = {i: list(_unserved_task(config, joined[0], each.drafts.task, data[0].rename)) for i, each in enumerate(joined) if i}
    else:
        given = own = {name: draft for name, ref in config.sources.items() if (draft := drafts.of("loader", ref)) is not None}
        drafts.problems += _unshareable(config, own, [part.given for each in states for part in each.data.sources.values()])
        joins = _joins(own, joined, data, here[0].rename)
        problems = {i: [_moved(problem, config.name) for problem in each.problems] for i, each in enumerate(joins)}
        state = _with_own(state, [joins[i] for i in judged], here, drafts)
    drafts.problems += dict.fromkeys(problem for i in judged for problem in problems.get(i, ()))
    unserved = {states[i].task.id for i, found in problems.items() if found} - {states[i].task.id for i in judged}
    if config.weights == "ema" and any(states[i].optimizer.ema is None for i in judged):
        message = "asks for averaged weights, and not every phase that it judges keeps an average: declare optimizer.ema for the whole run"
        drafts.problems.append(Problem(message, f"evaluate.{config.name}.weights"))
    return EvaluationPlan(
        name=config.name,
        state=state,
        batches=min(config.batches, _most_batches(given) or config.batches),
        values=_task_values(config, states, drafts),
        weights=config.weights,
        training_rows=_reads_training_rows(config, given, states[0].data, joined, drafts),
        lookahead=max((spec.lookahead for i in judged if isinstance(spec := joined[i].drafts.task.spec, TaskSpec)), default=0),
        unserved=frozenset(unserved),
    )


def _inherited(
    config: EvaluateConfig, states: Sequence[TrainingState], transforms: Sequence[Draft], data: Sequence[DataConfig]
) -> DataState:
    """The data of the first phase, standing still, in the evaluation's own shape; `data` are those of the phases that it judges."""
    base = states[0].data
    shapes = [shape for state in states for _, shape in state.data.shapes]
    lengths = [shape.seq_len for shape in shapes if shape.seq_len is not None]
    rows = config.batch_size if config.batch_size is not None else shapes[0].micro_batches[0]
    length = config.seq_len if config.seq_len is not None else max(lengths, default=None)
    return attrs.evolve(
        base,
        mix={name: Curve.constant(curve(0.0)) for name, curve in base.mix.items()},
        shapes=((0, BatchShape(micro_batches=(rows,), seq_len=length)),),
        transforms=tuple(part for part, draft in zip(base.transforms, transforms, strict=True) if _prepares(draft)),
        bridges=_dropped_everywhere(base.bridges, data),
        accept_inexact_resume=True,  # it begins anew each time
    )


def _reads_training_rows(
    config: EvaluateConfig, given: Mapping[str, Draft], base: DataState, joined: Sequence[Joined], drafts: Drafts
) -> bool:
    """Whether it reads rows that training reads; that it does without saying so, or says so and does not, is a problem."""
    on_training = config.sources is None and any(part.given is not None for part in base.sources.values())
    if not on_training and (shared := overlap(config, given, joined)) is not None:
        on_training = True
        refused = config.training_rows or any(problem.path == shared.path for problem in drafts.problems)
        drafts.problems += [] if refused else [shared]
    if config.training_rows and not on_training:
        message = "it reads no training rows: it has sources of its own, or those of training have a held-out part; leave this out"
        drafts.problems.append(Problem(message, f"evaluate.{config.name}.training_rows"))
    return on_training


def _dropped_everywhere(bridges: Sequence[Bridge], data: Sequence[DataConfig]) -> tuple[Bridge, ...]:
    return tuple(bridge for bridge in bridges if bridge.kind != "drop" or all(bridge.field in phase.drop for phase in data))


def _most_batches(sources: Mapping[str, Draft]) -> int | None:
    """How many batches the only source holds, where it is ready-made: read on from its start, some rows would count twice."""
    sizes = [draft.epoch_size for draft in sources.values() if draft.given is not None]
    size = sizes[0] if len(sources) == len(sizes) == 1 else None
    return size.batches or None if size is not None else None


def _task_values(config: EvaluateConfig, states: Sequence[TrainingState], drafts: Drafts) -> dict[str, dict[str, float]]:
    """Task id → its values where it first stands on the timeline, those given for the evaluation in their place."""
    values: dict[str, dict[str, float]] = {}
    for state in states:
        values.setdefault(state.task.id, {name: curve.knots[0].value for name, curve in state.task.curves.items()})
    known = {name for own in values.values() for name in own}
    for name in config.task.keys() - known:
        message = f"no task on the timeline has an option '{name}' that may follow time{did_you_mean(name, known)}"
        drafts.problems.append(Problem(message, f"evaluate.{config.name}.task.{name}"))
    return {id: {name: config.task.get(name, value) for name, value in own.items()} for id, own in values.items()}


def _prepares(transform: Draft) -> bool:
    spec = transform.spec
    return isinstance(spec, TransformSpec) and spec.prepares


def _check_inherited(config: EvaluateConfig, base: DataState, drafts: Drafts) -> None:
    """Refuse training sources from code that an evaluation cannot share: only a registered loader has held-out rows, and a finished stream
    has one read position, which training moves."""
    for name, part in base.sources.items():
        if part.given is None:
            continue
        if not isinstance(part.given, Built) and _keeps_its_place(part.given):
            message = (
                f"evaluation '{config.name}' would read on in the finished object of training source '{name}': "
                "give it `sources` of its own, or give training a Built(callable, options)"
            )
        elif not config.training_rows:
            message = (
                f"evaluation '{config.name}' would read the training rows of source '{name}', which is given in code and has no held-out "
                f"part: give it `sources` of its own, or say `training_rows: true`"
            )
        else:
            continue
        drafts.problems.append(Problem(message, f"evaluate.{config.name}"))


def _unshareable(config: EvaluateConfig, own: Mapping[str, Draft], trained: Sequence[object]) -> Iterator[Problem]:
    """Own sources from code that cannot be read again and again, or not beside training."""
    for name, draft in own.items():
        if any(draft.given is given for given in trained) and _keeps_its_place(draft.given):
            message = f"the {draft.id} that training reads keeps one place, which both would move: give another object, made alike"
            yield Problem(message, f"evaluate.{config.name}.sources.{name}")
        if hasattr(draft.given, "__next__"):
            message = f"a {draft.id} is read once, and an evaluation reads the same each time: give a list, or what can start over"
            yield Problem(message, f"evaluate.{config.name}.sources.{name}")


def _unserved_task(config: EvaluateConfig, joined: Joined, task: Draft, rename: Mapping[str, str]) -> Iterator[Problem]:
    """What the first phase's sources, which the evaluation reads throughout, do not deliver of a later phase's needs."""
    first, needs = joined.drafts, task.spec
    transforms = [spec for draft in first.transforms if isinstance(spec := draft.spec, TransformSpec)]
    if len(transforms) < len(first.transforms) or not isinstance(needs, TaskSpec):
        return
    made = {name for spec in transforms if spec.prepares for name in spec.outputs}
    for name, source in first.sources.items():
        if isinstance(source.spec, BatchSpec) and (
            missing := {rename.get(need, need) for need in needs.batch} - {*source.spec.fields, *made}
        ):
            fields = ", ".join(f"'{field}'" for field in sorted(missing))
            message = (
                f"it reads the sources of the first phase throughout, and source '{name}' does not deliver {fields}, which the task "
                f"'{task.id}' of a later phase needs: give the evaluation `sources` of its own that deliver what every task needs, list "
                "with `at` the instants of the phases that it serves, or leave it out"
            )
            yield Problem(message, f"evaluate.{config.name}")


def _keeps_its_place(given: object) -> bool:
    """Whether a finished object has one read position."""
    return not isinstance(given, Built | None) and (isinstance(given, Loader) or hasattr(given, "__next__") or hasattr(given, "state_dict"))


def _joins(own: Mapping[str, Draft], joined: Sequence[Joined], data: Sequence[DataConfig], rename: Mapping[str, str]) -> list[Joined]:
    """Own sources joined to the task of each phase."""
    fields = [set(spec.fields) if isinstance(spec := draft.spec, BatchSpec) else set() for draft in own.values()]
    known = {need: field for need, field in rename.items() if all(field in delivered for delivered in fields)}
    return [join(attrs.evolve(each.drafts, sources=own), known, phase.drop) for each, phase in zip(joined, data, strict=True)]


def _moved(problem: Problem, name: str) -> Problem:
    """A problem of own sources, at their place in the config."""
    path, place = problem.path, f"evaluate.{name}.sources"
    if not path.startswith("data."):
        return problem
    inside = path.removeprefix("data.sources.") if path.startswith("data.sources.") else ""
    return attrs.evolve(problem, path=f"{place}.{inside}" if inside else place)


def _with_own(state: DataState, joins: Sequence[Joined], data: Sequence[DataConfig], drafts: Drafts) -> DataState:
    """The data of own sources: their options filled, the bridges to the first task, and what any of the tasks reads."""
    sources = {name: draft.part(drafts.constants(draft)) for name, draft in joins[0].drafts.sources.items()}
    bridges = [bridge for bridge in joins[0].bridges if bridge.junction.startswith("source:")]
    reads = [each.reads for each in joins if each.reads is not None]
    return attrs.evolve(
        state,
        sources=sources,
        bridges=_dropped_everywhere(bridges, data),
        reads=frozenset().union(*reads) if len(reads) == len(joins) else None,
        mix=dict.fromkeys(sources, Curve.constant(1.0)),
    )
