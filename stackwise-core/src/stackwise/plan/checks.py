"""Rules that take more than one key or part to check: one function for each, which yields problems with their places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from stackwise.config import Experiment, PhaseConfig
from stackwise.contracts.components import Built
from stackwise.contracts.selectors import compile_selector
from stackwise.contracts.specs import AT_ENTRY, GIVEN, BatchSpec, EmbeddingSpec, HeadSpec, RackSpec, Spec, TaskSpec, TransformSpec
from stackwise.curriculum.reported import undeclared, unweighed
from stackwise.curriculum.states import DataState
from stackwise.errors import Problem, ProviderError, SelectorError, UserError, did_you_mean
from stackwise.plan.extents import counts
from stackwise.plan.junctions.join import Joined, PhaseDrafts
from stackwise.plan.parts import Draft
from stackwise.timeline.clock import Clock
from stackwise.timeline.schedules import Curve

ROLES = ("embedding", "rack", "head")

Measured = Sequence[tuple[Draft, Joined | None] | None]
"""The tasks of the timeline, each with what it is joined to where that is known; None for a task that has a mistake."""


def crossing_problems(phase: PhaseConfig, first: PhaseConfig) -> Iterator[Problem]:
    """The first phase crosses no boundary, and only it may name weights to start from."""
    if phase.index == 0:
        enter = phase.enter
        idle = {
            "growth": enter.growth is not None,
            "fresh": bool(enter.fresh),
            "rewarm": enter.rewarm is not None,
            "moments": enter.moments == "reset",
            "weight_adapters": enter.weight_adapters == "drop",
        }
        for key in (key for key, declared in idle.items() if declared):
            yield _at(phase, f"enter.{key}", f"the first phase has nothing to grow from: remove `enter.{key}`")
    elif phase.model.start != first.model.start:
        message = "only the run as a whole starts from weights: move it out of the phase; a phase takes over the model before it"
        yield _at(phase, "model.start", message)


def delivered_fields(sources: Sequence[Draft | None], phases: Sequence[PhaseDrafts]) -> frozenset[str] | None:
    """The fields that some source delivers or a transform adds; None if one of them does not say."""
    try:
        specs = [draft and draft.spec for draft in sources]
        added = [spec for drafts in phases for draft in drafts.transforms if isinstance(spec := draft.spec, TransformSpec)]
    except (UserError, ProviderError):
        return None  # unification reports it
    known = [spec for spec in specs if isinstance(spec, BatchSpec)]
    fields = {name for spec in known for name in spec.fields} | {name for spec in added for name in spec.outputs}
    return frozenset(fields) if len(known) == len(specs) else None


def drop_problems(phase: PhaseConfig, delivered: frozenset[str] | None) -> Iterator[Problem]:
    """A field to drop is one that some source of the run delivers. `delivered` is None if a source does not say what it delivers."""
    for name in (name for name in phase.data.drop if delivered is not None and name not in delivered):
        yield _at(phase, "data.drop", f"no source of the run delivers a field '{name}'{did_you_mean(name, delivered or ())}")


def name_problems(phase: PhaseConfig, optimizer: Draft | None) -> Iterator[Problem]:
    """Selectors can be read, and groups set only options that the optimizer has."""
    model = phase.model
    selected = {f"model.weight_adapters.{name}.select": adapter.select for name, adapter in model.weight_adapters.items()}
    selected |= {"model.freeze": model.freeze, "enter.fresh": phase.enter.fresh}
    selected |= {} if model.start is None else {"model.start.drop": model.start.drop}
    selected |= {f"optimizer.groups.{group.name}.select": group.select for group in phase.optimizer.groups}
    for path, selectors in selected.items():
        for selector in selectors:
            try:
                compile_selector(selector)
            except SelectorError as error:
                yield _at(phase, path, str(error))
    if optimizer is None:
        return
    for group in phase.optimizer.groups:
        for name in (name for name in group.options if name not in optimizer.schedules):
            message = f"{optimizer.label} has no option '{name}' that a group may set{did_you_mean(name, optimizer.schedules)}"
            yield _at(phase, f"optimizer.groups.{group.name}.{name}", message)


def watch_problems(phase: PhaseConfig, reaction: Draft | None, evaluations: Sequence[str], tasks: Measured) -> Iterator[Problem]:
    """What a reaction watches will be measured, if the reaction says what it watches."""
    if reaction is None or not hasattr(reaction.options, "watches"):
        return
    path, known = f"{reaction.path}.metric" if hasattr(reaction.options, "metric") else reaction.path, ["train", *evaluations]
    for metric in reaction.watched():
        name = metric.partition(".")[0]
        if name not in known:
            message = f"{reaction.label} watches '{metric}', and there is no evaluation '{name}'{did_you_mean(name, known)}"
            yield _at(phase, path, message)
        elif unknown := _unknown_metric(metric, tasks):
            yield _at(phase, path, f"{reaction.label} watches '{metric}', and {unknown}")


def metric_problems(experiment: Experiment, tasks: Measured) -> Iterator[Problem]:
    """The evaluations will have the metrics by which the best checkpoint is chosen and the run stopped."""
    run = experiment.run
    for path, metric in (("run.checkpoint.best", run.checkpoint.best_metric), ("run.stop.metric", run.stop.watched)):
        if metric is not None and (unknown := _unknown_metric(metric[0], tasks)):
            yield experiment.problem(path, unknown)
    every = {each.name for each in experiment.evaluate if each.every is not None}
    for phase in experiment.phases:
        if phase.stalls is None:
            continue
        name = phase.stalls.stalls.partition(".")[0]
        if unknown := _unknown_metric(phase.stalls.watched[0], tasks):
            yield phase.problem("until.stalls", unknown)
        elif name not in every:
            yield phase.problem("until.stalls", f"evaluation '{name}' runs at boundaries alone, so it never sees a stall: give it `every`")


def time_problems(experiment: Experiment) -> Iterator[Problem]:
    """Where a duration is a time, what a step of each phase takes has to be known; where none is, nothing is asked."""
    declared, names = experiment.run.step_seconds, [phase.name for phase in experiment.phases]
    if not counts(experiment.resolved, "seconds"):
        if declared is not None:
            yield experiment.problem("run.step_seconds", "no duration is a time, so nothing follows it: leave it out")
    elif declared is None:
        message = "a length of time becomes steps when the run begins, which tries some of each phase: say run.step_seconds to plan it now"
        yield experiment.problem("run.horizon", message)
    else:
        for name in (name for name in names if name not in declared):
            yield experiment.problem("run.step_seconds", f"says nothing of phase '{name}': add what a step of it takes")
        for name in (name for name in declared if name not in names):
            yield experiment.problem("run.step_seconds", f"there is no phase '{name}'{did_you_mean(name, names)}")


def _reports(drafts: PhaseDrafts) -> dict[str, tuple[frozenset[str], frozenset[str]] | None]:
    """Role of the model → names of the losses and of the metrics that its part declares; None for a part that does not say."""
    reports: dict[str, tuple[frozenset[str], frozenset[str]] | None] = {}
    for role in ROLES:
        draft: Draft = getattr(drafts, role)
        silent = isinstance(draft.given, Built) and draft.given.spec is None and draft.blocks is None  # only the built part will say
        try:
            spec = None if silent else draft.spec
        except UserError:
            spec = None  # unification reports it
        known = spec if isinstance(spec, EmbeddingSpec | RackSpec | HeadSpec) else None
        reports[role] = None if known is None else (frozenset(known.losses), frozenset(known.metrics))
    return reports


def auxiliary_problems(phase: PhaseConfig, drafts: PhaseDrafts, weights: Mapping[str, Curve]) -> Iterator[Problem]:
    """Each loss that a part of the model adds has a weight, and each weight a loss. No weight falls below zero."""
    for name, curve in weights.items():
        if (least := min(knot.value for knot in curve.knots)) < 0:
            message = f"a weight of {least:g} is below zero: training would make the loss larger"
            yield _at(phase, f"task.auxiliary.{name}", message)
    reports = _reports(drafts)
    losses = [f"{role}.{name}" for role, names in reports.items() if names is not None for name in sorted(names[0])]
    for name in (name for name in losses if name not in phase.task.auxiliary):
        draft: Draft = getattr(drafts, name.partition(".")[0])
        yield _at(phase, "task.auxiliary", f"{draft.label}: {unweighed(name)}")
    for name in (name for name in phase.task.auxiliary if name not in losses):
        if reports.get(name.partition(".")[0], ()) is not None:
            yield _at(phase, f"task.auxiliary.{name}", undeclared(name, losses))


def _unknown_metric(metric: str, tasks: Measured) -> str | None:
    """Why no evaluation will have a metric; None if one may: it is the loss, a task or a part of the model names it, or one of these does
    not name its metrics."""
    name, known, others = metric.partition(".")[2], {"loss"}, dict[str, str]()
    role = name.partition(".")[0]
    for joined in (task[1] for task in tasks if task is not None):
        reports = {} if joined is None else _reports(joined.drafts)
        if role in ROLES and reports.get(role) is None:
            return None
        known.update(f"{part}.{each}" for part, names in reports.items() for group in names or () for each in group)
    for task in tasks:
        spec = None if task is None else task[0].spec
        if task is None or not isinstance(spec, TaskSpec) or spec.metrics is None:
            return None
        batch = None if task[1] is None else task[1].specs()["batch"].fields
        for declared in spec.metrics:
            if isinstance(declared, str):
                known.add(declared)
                continue
            names = {*declared.names.values(), declared.otherwise}
            if batch is None:
                known |= names
                continue
            entry = f"an entry of '{declared.batch_field}'"
            unit = batch[declared.batch_field].unit if declared.batch_field in batch else None
            known.add(here := declared.of(unit))
            why = f"{entry} is one {unit}" if unit is not None else f"the source does not say what {entry} is"
            others |= dict.fromkeys(names, f": {why}, so it is called '{here}'")
    if name in known:
        return None
    return f"no task on the timeline has the metric '{name}'{others.get(name) or did_you_mean(name, known)}"


def coupling_problems(phase: PhaseConfig, task: Draft, data: DataState) -> Iterator[Problem]:
    """A step of a task whose loss couples the rows of a batch is one micro-batch: split into several, it would be another loss."""
    if not isinstance(task.spec, TaskSpec) or task.spec.couples is None:
        return
    for first, shape in data.shapes:
        if (count := len(shape.micro_batches)) < 2:
            continue
        by = "step_tokens" if phase.data.step_tokens is not None else "accumulate"
        fix = f"raise data.batch_size to {shape.rows}" if by == "step_tokens" else "leave data.accumulate out and raise data.batch_size"
        message = f"the loss of {task.label} couples the rows of a batch, and from step {first} on a step is {count} micro-batches, which "
        yield _at(phase, f"data.{by}", f"{message}would be {count} losses of fewer rows: {fix}, or take another task")
        return


def reference_problems(phase: PhaseConfig, task: Draft) -> Iterator[Problem]:
    """A task that needs a model to compare with gets one that is there, and one that compares with none is given none."""
    if not isinstance(task.spec, TaskSpec):
        return
    named = phase.task.reference
    if named is None:
        if task.spec.reference == GIVEN:
            fix = f"name it, task.reference: {{from: <run, export or folder>}}, or {{from: {AT_ENTRY}}}"
            yield _at(phase, "task.reference", f"{task.label} compares with another model: {fix}")
    elif task.spec.reference is None:
        yield _at(phase, "task.reference", f"{task.label} compares with no other model as it is set here: leave the reference out")
    elif named.from_ != AT_ENTRY and not Path(named.from_).is_dir():
        yield _at(phase, "task.reference", f"{named.from_!r} is neither '{AT_ENTRY}' nor a directory of a run, an export or a folder")


def tie_problems(phase: PhaseConfig, head: Spec | None) -> Iterator[Problem]:
    """Tied parameters have one precision, because one parameter has one dtype."""
    precision = phase.model.precision
    for own, canonical in (head.ties if isinstance(head, HeadSpec) else {}).items():
        role = canonical.partition(".")[0]
        of_head, of_other = (precision.get(part, "float32") for part in ("head", role))  # type: ignore[call-overload]  # a role is a key
        if of_head != of_other:
            message = f"head.{own} is tied to {canonical}, and the {role} is held in {of_other} but the head in {of_head}: "
            yield _at(phase, "model.precision", message + "give both one precision, or untie them")


def mix_problems(phase: PhaseConfig, data: DataState, clock: Clock) -> Iterator[Problem]:
    """No weight falls below zero, and every step has a source above zero. The config section has checked constant weights."""
    for name, curve in data.mix.items():
        if (least := min(knot.value for knot in curve.knots)) < 0 and not curve.is_constant:
            message = f"a weight of {least:g} is below zero: only ratios of weights above zero have a meaning"
            yield _at(phase, f"data.mix.{name}", message)
    start, stop, mix = clock.starts[phase.index], clock.starts[phase.index + 1], data.mix.values()
    if len(mix) < 2 or all(curve.is_constant for curve in mix):
        return
    # Curves are straight between their knots, so weights that are all zero begin to be so at a knot or at the start of the phase.
    for step in sorted({start, *(clock.step_at(knot.t) for curve in mix for knot in curve.knots)}):
        if start <= step < stop and not any(curve(clock.t(step)) > 0 for curve in mix):
            message = f"every weight is zero at step {step}: at least one source has a weight above zero at every step"
            yield _at(phase, "data.mix", message)
            return


def _at(phase: PhaseConfig, path: str, message: str) -> Problem:
    return Problem(message, path, phase.locate(path))
