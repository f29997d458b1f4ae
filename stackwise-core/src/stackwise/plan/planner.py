"""`make_plan`: every name resolved, every option filled, every boundary an integer step, every mistake reported at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from typing import NoReturn

import attrs
from attrs import define, field

from stackwise.config import Experiment, PhaseConfig
from stackwise.contracts.specs import TaskSpec
from stackwise.contracts.tokenizers import Tokenizers
from stackwise.curriculum.schedule import CompiledPhase, PhaseSchedule
from stackwise.curriculum.states import TrainingState
from stackwise.curriculum.transitions import Enter
from stackwise.errors import ConfigError, Problem, ScheduleError, UserError
from stackwise.host.registry import Registry, blaming
from stackwise.plan.blocks import Growing
from stackwise.plan.checks import (
    auxiliary_problems,
    coupling_problems,
    crossing_problems,
    delivered_fields,
    drop_problems,
    metric_problems,
    mix_problems,
    name_problems,
    reference_problems,
    tie_problems,
    time_problems,
    watch_problems,
)
from stackwise.plan.curves import Curves
from stackwise.plan.evaluations import EvaluationPlan, evaluation_plan
from stackwise.plan.extents import DRAFT_STEPS, FlopsOf, counts, draft_clock, extent_of, late_switches, short_last_step
from stackwise.plan.instants import Instants
from stackwise.plan.junctions.join import Joined, PhaseDrafts, join
from stackwise.plan.parallel import division_problems, parallel_problems
from stackwise.plan.parts import Draft, Drafts
from stackwise.plan.provided import ProvidedSchedules
from stackwise.plan.reads import declared_sizes, shortages
from stackwise.plan.record import Plan, providers_of
from stackwise.plan.states import States
from stackwise.plan.transitions import Boundary, transition
from stackwise.plan.vocabularies import make_tokenizers, text_sources, vocabulary_problems
from stackwise.timeline.clock import Clock
from stackwise.timeline.layout import Past, lay_out

PriceSteps = Callable[[Plan], FlopsOf]
"""A plan whose phases are complete, by whatever clock → what each of their steps costs."""


def make_plan(
    experiment: Experiment,
    registry: Registry,
    past: Past | Clock | None = None,
    tokenizers: Tokenizers | None = None,
    price_steps: PriceSteps | None = None,
) -> Plan:
    """Compile an experiment.

    Args:
        experiment: what is declared.
        registry: the components it may name.
        past: the steps already done, if the run resumes; their boundaries stay. A whole clock is used as it is, and no data is counted.
        tokenizers: those that the run has already.
        price_steps: says what steps cost, where a duration counts FLOPs; left out, such a duration is refused.

    Raises:
        ConfigError: every mistake of the config and of the components' options, at once.
        ProviderError: a component that is needed cannot be used.
    """
    known = tokenizers if tokenizers is not None else Tokenizers()
    allowed, flops_of = registry.under(experiment.run.providers.lists()), None
    if price_steps is not None and not isinstance(past, Clock) and counts(experiment.resolved, "flops"):
        draft = make_draft(experiment, registry, known)
        flops_of = None if draft is None else price_steps(draft)
    return _Planner(experiment, allowed, past, known, flops_of).plan()


def make_draft(experiment: Experiment, registry: Registry, tokenizers: Tokenizers | None = None, steps: int = DRAFT_STEPS) -> Plan | None:
    """A plan without evaluations and observers by a clock that gives each phase so many steps, to price it or to try it.

    Returns:
        None where there are mistakes, which `make_plan` names.
    """
    known = tokenizers if tokenizers is not None else Tokenizers()
    return _Planner(experiment, registry.under(experiment.run.providers.lists()), None, known).draft(steps)


@define
class _Phase:
    """One phase during planning; None stands for what has a mistake."""

    config: PhaseConfig
    joined: Joined | None = None
    state: TrainingState | None = None


@define
class _Planner:
    experiment: Experiment
    registry: Registry
    past: Past | Clock | None = None
    tokenizers: Tokenizers = field(factory=Tokenizers)
    flops_of: FlopsOf | None = None
    problems: list[Problem] = field(factory=list)
    drafts: Drafts = field(init=False)
    provided: ProvidedSchedules = field(init=False)
    _joined: dict[tuple[object, ...], Joined] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        counting = not isinstance(self.past, Clock) and counts(self.experiment.resolved, "epochs")
        self.drafts = Drafts(self.registry, counting=counting, tokenizers=self.tokenizers)
        self.provided = ProvidedSchedules(self.drafts)

    def plan(self) -> Plan:
        """Go as far as the config allows, so that one pass finds every mistake; stop only if the next steps cannot be taken."""
        self.problems += self.experiment.problems
        observers = [self.drafts.of("observer", ref) for ref in self.experiment.observers]
        start = self.experiment.phases[0].model.start
        form = self.drafts.of("format", start.format) if start is not None and start.format is not None else None
        phases = self._phases()
        self._check_metrics(phases)
        self.problems += parallel_problems(self.experiment)
        clock = self._clock(phases)
        if clock is None:
            self._stop()
        schedule = self._schedule(clock, phases)
        evaluations = self._evaluations(phases, schedule)
        self._check_vocabularies(phases, evaluations)
        self._check_drops(phases)
        observing = tuple(draft.part(self.drafts.constants(draft)) for draft in observers if draft is not None)
        start_format = None if form is None else form.part(self.drafts.constants(form))
        self._collect(phases[-1].config)
        if self.problems or self.drafts.faults:
            self._stop()
        joined = tuple(phase.joined for phase in phases if phase.joined is not None)
        self.problems += shortages(clock, schedule.phases, joined, self.experiment.phases, [declared_sizes(each) for each in joined])
        if self.problems:
            self._stop()
        parts = [
            *observing,
            *((start_format,) if start_format else ()),
            *(part for each in evaluations for part in each.state.sources.values()),
        ]
        return self._whole(
            Plan(
                experiment=self.experiment,
                registry=self.registry,
                schedule=schedule,
                joined=joined,
                evaluations=evaluations,
                observers=observing,
                start_format=start_format,
                providers=providers_of(self.registry, joined, parts, self.drafts.owners("schedule")),
                tokenizers=self.tokenizers,
            )
        )

    def draft(self, steps: int) -> Plan | None:
        """The plan by a clock of its own, so mistakes about time are left to `plan`; None where there are others."""
        if self.experiment.problems:
            return None
        phases = self._phases()
        try:
            clock = draft_clock(self.experiment.phases, steps)
        except (ConfigError, ScheduleError):
            return None
        schedule = self._schedule(clock, phases)
        joined = tuple(phase.joined for phase in phases if phase.joined is not None and phase.state is not None)
        if self.drafts.faults or len(joined) < len(phases):
            return None
        return self._whole(Plan(experiment=self.experiment, registry=self.registry, schedule=schedule, joined=joined))

    def _whole(self, plan: Plan) -> Plan:
        """The plan with the largest request that a loader will get, and what its schedules read."""
        lookahead = max(_lookahead(joined.drafts.task) for joined in plan.joined)
        declared = [phase.state.data for phase in plan.schedule if phase.state is not None] + [each.state for each in plan.evaluations]
        shapes = [shape for data in declared for _, shape in data.shapes]
        rows = [rows for shape in shapes for rows in shape.micro_batches if rows is not None]
        lengths = [shape.seq_len + lookahead for shape in shapes if shape.seq_len is not None]
        plan = attrs.evolve(plan, max_rows=max(rows, default=None), max_length=max(lengths, default=None), lookahead=lookahead)
        return attrs.evolve(plan, read_by_schedules=self.provided.fingerprints)

    # -- parts and junctions --------------------------------------------------------------------------------------

    def _phases(self) -> list[_Phase]:
        """Every phase with its parts joined, as far as they can be."""
        phases = [_Phase(config) for config in self.experiment.phases]
        drafted = [self._draft(phase.config) for phase in phases]
        self._collect(phases[0].config)
        for phase, drafts in zip(phases, self._with_tokenizers(phases, drafted), strict=True):
            phase.joined = None if drafts is None else self._join(phase.config, drafts)
        return phases

    def _draft(self, phase: PhaseConfig) -> PhaseDrafts | None:
        """The drafts of a phase; None if one that stands at a junction has a mistake."""
        of, model = self.drafts.of, phase.model
        parts = {
            "task": of("task", phase.task.part),
            "embedding": of("embedding", model.embedding),
            "rack": of("rack", model.rack),
            "head": of("head", model.head),
            "optimizer": of("optimizer", phase.optimizer.part),
        }
        sources = {name: of("loader", ref) for name, ref in phase.data.sources.items()}
        transforms = [of("transform", ref) for ref in phase.data.transforms]
        adapters = {junction: [of("adapter", ref) for ref in refs] for junction, refs in model.adapters.items()}
        beside = {name: of("weight-adapter", adapter.part) for name, adapter in model.weight_adapters.items()}
        growth = of("growth", phase.enter.growth) if phase.enter.growth is not None else None
        reaction = of("reaction", phase.optimizer.reaction) if phase.optimizer.reaction is not None else None
        self.problems += crossing_problems(phase, self.experiment.phases[0])
        self.problems += name_problems(phase, parts["optimizer"])
        self._collect(phase)
        needed = [*parts.values(), *sources.values(), *transforms, *beside.values(), *chain.from_iterable(adapters.values())]
        if not sources or any(draft is None for draft in needed):
            return None
        return PhaseDrafts(
            **{role: draft for role, draft in parts.items() if draft is not None},
            sources={name: draft for name, draft in sources.items() if draft is not None},
            transforms=_present(transforms),
            adapters={junction: _present(group) for junction, group in adapters.items()},
            weight_adapters={name: draft for name, draft in beside.items() if draft is not None},
            reaction=reaction,
            growth=growth,
        )

    def _check_metrics(self, phases: Sequence[_Phase]) -> None:
        """Check the names of metrics against the tasks of all phases, which say them by what they are joined to."""
        tasks = [None if (task := self.drafts.of("task", phase.config.task.part)) is None else (task, phase.joined) for phase in phases]
        evaluations = [evaluation.name for evaluation in self.experiment.evaluate]
        self.problems += metric_problems(self.experiment, tasks)
        self.problems += time_problems(self.experiment)
        for phase in phases:
            declared = phase.config.optimizer.reaction
            reaction = None if declared is None else self.drafts.of("reaction", declared)
            self.problems += watch_problems(phase.config, reaction, evaluations, tasks)

    def _join(self, phase: PhaseConfig, drafts: PhaseDrafts) -> Joined:
        """Join the drafts of a phase; phases with the same parts at the junctions are joined once."""
        key = (*map(id, drafts.by_role().values()), tuple(phase.data.rename.items()), phase.data.drop, *map(id, drafts.transforms))
        if key not in self._joined:
            joined = join(drafts, phase.data.rename, phase.data.drop)
            self.problems += [_placed(problem, phase) for problem in joined.problems]
            self._joined[key] = joined
        known = self._joined[key]
        beside = {name: getattr(drafts, name) for name in ("growth", "optimizer", "transforms", "weight_adapters", "reaction")}
        return attrs.evolve(known, drafts=attrs.evolve(known.drafts, **beside))

    def _with_tokenizers(self, phases: Sequence[_Phase], drafted: Sequence[PhaseDrafts | None]) -> Sequence[PhaseDrafts | None]:
        """The drafts, their sources with the tokenizers of the run where epochs are counted in tokens."""
        if not self.drafts.counting:
            return drafted
        declared = [(phase.config, drafts.sources) for phase, drafts in zip(phases, drafted, strict=True) if drafts is not None]
        try:
            with self._blaming_loaders():
                sources = text_sources(self.experiment, declared)
                self.drafts.tokenizers = self.tokenizers = make_tokenizers(sources, self.tokenizers)
                twins = self.drafts.with_tokenizers
                return [None if drafts is None else attrs.evolve(drafts, sources=twins(drafts.sources)) for drafts in drafted]
        except UserError as error:
            self.problems.append(Problem(str(error)))
            return drafted

    def _blaming_loaders(self) -> AbstractContextManager[None]:
        return blaming([provider for name in self.drafts.owners("loader") if (provider := self.registry.provider(name)) is not None])

    # -- time -----------------------------------------------------------------------------------------------------

    def _clock(self, phases: Sequence[_Phase]) -> Clock | None:
        """The compiled clock; None if the timeline does not hold together, with the reason among the problems."""
        if isinstance(self.past, Clock):
            return self.past
        try:
            run = self.experiment.run
            horizon, extents = run.horizon, [extent_of(phase.config, phase.joined, self.flops_of, run.step_seconds) for phase in phases]
            clock = lay_out(horizon, extents, self.past)
            self.problems += late_switches([phase.config for phase in phases], extents, clock)
            shorter = short_last_step(extents, [phase.joined for phase in phases], clock.steps)
            return clock if shorter is extents else lay_out(horizon, shorter, self.past)
        except ConfigError as error:
            self.problems += error.problems
        except ScheduleError as error:
            in_time = any(problem.path.endswith((".until", "run.horizon")) for problem in self.problems)
            apart = self.drafts.counting and any(phase.joined is None for phase in phases)
            uncounted = apart or (self.flops_of is None and counts(self.experiment.resolved, "flops"))
            if not in_time and not (uncounted and (self.problems or self.drafts.faults)):  # what is wrong there is why nothing is counted
                self.problems.append(Problem(str(error), "phases", phases[-1].config.locate("until")))
        return None

    def _schedule(self, clock: Clock, phases: Sequence[_Phase]) -> PhaseSchedule:
        states = States(Curves(clock, self.problems, self.provided), self.drafts, self.problems)
        for phase in phases:
            if phase.joined is not None:
                self.problems += tie_problems(phase.config, phase.joined.drafts.head.spec)
                phase.state = states.of(phase.config, phase.joined)
                self.problems += reference_problems(phase.config, phase.joined.drafts.task)
                self.problems += coupling_problems(phase.config, phase.joined.drafts.task, phase.state.data)
                self.problems += auxiliary_problems(phase.config, phase.joined.drafts, phase.state.auxiliary)
                parallel, drafts = self.experiment.run.parallel, phase.joined.drafts
                self.problems += division_problems(parallel, phase.config, drafts, phase.state.data, phase.state.auxiliary)
        compiled = tuple(self._compile(states, phase, phases[i - 1] if i else None) for i, phase in enumerate(phases))
        instants = Instants(self.experiment, clock, self.problems)
        return PhaseSchedule(
            clock, compiled, evaluate_at=instants.of_evaluations(), save_at=instants.of_saves(), keep_at=instants.of_kept_saves()
        )

    # -- phases and evaluations -----------------------------------------------------------------------------------

    def _compile(self, states: States, phase: _Phase, before: _Phase | None) -> CompiledPhase:
        config, clock = phase.config, states.curves.clock
        start, stop = clock.starts[config.index], clock.starts[config.index + 1]
        growth, crossing = phase.joined.drafts.growth if phase.joined is not None else None, None
        operator = None if growth is None else states.part(config, growth)
        if phase.joined is not None and phase.state is not None:
            self.problems += mix_problems(config, phase.state.data, clock)
            unknown = config.enter.growth is not None and operator is None  # said already; its blocks are no second mistake
            if before is not None and before.state is not None and not unknown:
                growing = None if growth is None or operator is None else Growing(growth, operator, clock.t(start), clock.t(stop))
                boundary = Boundary(before.config, config, before.state, phase.state, growing, phase.joined.drafts.rack)
                crossing = transition(boundary, self.drafts)
                self._collect(config)
        enter = Enter(
            growth=operator,
            moments=config.enter.moments,
            fresh=config.enter.fresh,
            weight_adapters=config.enter.weight_adapters,
            rewarm=states.curves.ramp(config, config.enter.rewarm) if config.enter.rewarm is not None else None,
        )
        return CompiledPhase(
            name=config.name, index=config.index, start=start, stop=stop, state=phase.state, enter=enter, transition=crossing
        )

    def _evaluations(self, phases: Sequence[_Phase], schedule: PhaseSchedule) -> tuple[EvaluationPlan, ...]:
        whole = [(phase.config, phase.joined, phase.state) for phase in phases if phase.joined is not None and phase.state is not None]
        configs, joined, states = zip(*whole, strict=True) if whole else ((), (), ())
        data, moves = [each.data for each in configs], any(each.stalls is not None for each in configs)
        return tuple(
            evaluation_plan(each, states, joined, data, self.drafts, [moves or schedule.evaluates(each.name, own.index) for own in configs])
            for each in (self.experiment.evaluate if whole else ())
        )

    def _check_drops(self, phases: Sequence[_Phase]) -> None:
        """Check the fields to drop against all sources of the run, those of evaluations included, because phases inherit `data.drop`."""
        joined = [phase.joined.drafts for phase in phases if phase.joined is not None]
        if not any(phase.config.data.drop for phase in phases) or len(joined) < len(phases):
            return
        own = [self.drafts.of("loader", ref) for each in self.experiment.evaluate for ref in (each.sources or {}).values()]
        fields = delivered_fields([*(draft for drafts in joined for draft in drafts.sources.values()), *own], joined)
        for phase in phases:
            self.problems += drop_problems(phase.config, fields)

    def _check_vocabularies(self, phases: Sequence[_Phase], evaluations: Sequence[EvaluationPlan]) -> None:
        own = {config.name for config in self.experiment.evaluate if config.sources is not None}
        declared = [(phase.config, phase.state.data.sources) for phase in phases if phase.state is not None]
        evaluated = [(each.name, each.state.sources) for each in evaluations if each.name in own]
        with self._blaming_loaders():
            self.problems += vocabulary_problems(self.experiment, text_sources(self.experiment, declared, evaluated), self.tokenizers)

    # -- mistakes -------------------------------------------------------------------------------------------------

    def _collect(self, phase: PhaseConfig) -> None:
        """Take the problems of the drafts, and place each in the phase or section that names the part."""
        for problem in self.drafts.problems:
            outside = problem.where is None and problem.path.partition(".")[0] in ("evaluate", "observers")
            self.problems.append(self.experiment.problem(problem.path, problem.message) if outside else _placed(problem, phase))
        self.drafts.problems.clear()

    def _stop(self) -> NoReturn:
        """Raise all mistakes of the user at once; without any, the first fault of a provider."""
        if self.problems:
            distinct = {(problem.path, problem.message): problem for problem in reversed(self.problems)}
            raise ConfigError(sorted(distinct.values(), key=_place))
        raise self.drafts.faults[0]


def _present(drafts: Iterable[Draft | None]) -> tuple[Draft, ...]:
    return tuple(draft for draft in drafts if draft is not None)


def _place(problem: Problem) -> tuple[str, int, int]:
    """Reading order."""
    where = problem.where
    return ("", 0, 0) if where is None else (where.source, where.line or 0, where.column or 0)


def _placed(problem: Problem, phase: PhaseConfig) -> Problem:
    return problem if problem.where is not None else attrs.evolve(problem, where=phase.locate(problem.path))


def _lookahead(task: Draft) -> int:
    spec = task.spec
    return spec.lookahead if isinstance(spec, TaskSpec) else 0
