"""`make_plan`: every name resolved, every option filled, every boundary an integer step, every mistake reported at once."""

from __future__ import annotations

from typing import Literal, NoReturn

import attrs
from attrs import field, frozen

from stackwise.config import Experiment, PhaseConfig, parse_option, parse_schedule
from stackwise.contracts.selectors import compile_selector
from stackwise.contracts.specs import HeadSpec, RackSpec, TaskSpec
from stackwise.curriculum.bridges import Bridge
from stackwise.curriculum.parts import Part
from stackwise.curriculum.schedule import CompiledPhase, PhaseSchedule
from stackwise.curriculum.states import DataState, GroupState, LRScale, ModelState, OptimizerState, TrainingState, WeightAdapterState
from stackwise.curriculum.transitions import Enter
from stackwise.errors import ConfigError, Problem, ScheduleError, SelectorError, did_you_mean
from stackwise.host.registry import Provider, Registry
from stackwise.plan.curves import Curves
from stackwise.plan.evaluations import EvaluationPlan, evaluation_plan
from stackwise.plan.extents import counts_epochs, extent_of, shapes_in
from stackwise.plan.junctions.join import Joined, PhaseDrafts, join
from stackwise.plan.parts import Draft, Drafts
from stackwise.plan.reads import declared_sizes, shortages
from stackwise.plan.transitions import Growing, transition
from stackwise.timeline.clock import Clock, Past, lay_out
from stackwise.timeline.duration import Duration
from stackwise.timeline.schedules import Constant, Curve, Schedule


@frozen(kw_only=True)
class Plan:
    """The compiled experiment: what run, pricing and the log share."""

    experiment: Experiment
    registry: Registry
    schedule: PhaseSchedule
    joined: tuple[Joined, ...]
    """One a phase: filled drafts, specs and bridges."""
    evaluations: tuple[EvaluationPlan, ...] = ()
    observers: tuple[Part, ...] = ()
    providers: tuple[Provider, ...] = ()
    """The providers that this plan uses."""
    max_rows: int | None = None
    max_length: int | None = None
    """Longest row asked of a loader, lookahead included."""
    lookahead: int = 0
    """Entries a row needs beyond seq_len, the most any task asks."""

    @property
    def bridges(self) -> tuple[Bridge, ...]:
        """Every bridge of every phase, each once."""
        return tuple(dict.fromkeys(bridge for joined in self.joined for bridge in joined.bridges))


def make_plan(experiment: Experiment, registry: Registry, past: Past | None = None) -> Plan:
    """Compile an experiment.

    Args:
        experiment: what is declared.
        registry: the components it may name.
        past: what was run already, when it goes on from a checkpoint: its boundaries stay the steps they were.

    Raises:
        ConfigError: every mistake of the config and of the components' options, at once.
        ProviderError: a component that is needed cannot be used.
    """
    return _Planner(experiment, registry.under(experiment.run.providers.lists()), past).plan()


@attrs.define
class _Planner:
    experiment: Experiment
    registry: Registry
    past: Past | None = None
    problems: list[Problem] = field(factory=list)
    drafts: Drafts = field(init=False)
    _joined: dict[tuple[object, ...], Joined] = field(factory=dict)
    _first_sizes: dict[str, float] = field(factory=dict)
    """Width and depth where they are first asked for."""

    def __attrs_post_init__(self) -> None:
        self.drafts = Drafts(self.registry, counting=counts_epochs(self.experiment.resolved))

    def plan(self) -> Plan:
        """Go as far as the config allows, so that one pass finds every mistake; stop only where nothing can follow."""
        phases = self.experiment.phases
        self.problems += self.experiment.problems
        drafted = [self._draft(phase) for phase in phases]
        observers = [self.drafts.of("observer", ref) for ref in self.experiment.observers]
        self._collect(phases[0])
        found = [None if drafts is None else self._join(phase, drafts) for phase, drafts in zip(phases, drafted, strict=True)]
        clock = self._clock(found)
        if clock is None:
            self._stop()
        curves = Curves(clock, self.problems)
        stated = [None if each is None else self._state(phase, each, curves) for phase, each in zip(phases, found, strict=True)]
        compiled = [self._compile(curves, i, found, stated) for i in range(len(phases))]
        saving = self.experiment.run.checkpoint
        timeline = PhaseSchedule(
            clock,
            tuple(compiled),
            evaluate_at=self._evaluate_at(clock),
            save_at=self._cadence(clock, saving.every, "run.checkpoint.every"),
            keep_at=self._cadence(clock, saving.keep_every, "run.checkpoint.keep_every"),
        )
        joined, states = [j for j in found if j is not None], [s for s in stated if s is not None]
        rename, wanted = phases[0].data.rename, self.experiment.evaluate if states else ()
        evaluations = [evaluation_plan(config, states, joined, rename, self.drafts) for config in wanted]
        observing = tuple(draft.part(self.drafts.settled(draft)) for draft in observers if draft is not None)
        self._collect(phases[-1])
        if self.problems or self.drafts.faults:
            self._stop()
        self.problems += shortages(clock, compiled, joined, phases, [declared_sizes(each) for each in joined])
        if self.problems:
            self._stop()
        lookahead = max(_lookahead(each.drafts.task) for each in joined)
        declared = [state.data for state in states] + [evaluation.state for evaluation in evaluations]
        shapes = [shape for data in declared for _, shape in data.shapes]
        rows = [rows for shape in shapes for rows in shape.micro_batches if rows is not None]
        lengths = [shape.seq_len for shape in shapes if shape.seq_len is not None]
        return Plan(
            experiment=self.experiment,
            registry=self.registry,
            schedule=timeline,
            joined=tuple(joined),
            evaluations=tuple(evaluations),
            observers=observing,
            providers=self._providers(joined, [*observing, *(part for each in evaluations for part in each.state.sources.values())]),
            max_rows=max(rows, default=None),
            max_length=max(lengths) + lookahead if lengths else None,
            lookahead=lookahead,
        )

    # -- parts and junctions --------------------------------------------------------------------------------------

    def _draft(self, phase: PhaseConfig) -> PhaseDrafts | None:
        of = self.drafts.of
        sources = {name: of("loader", ref) for name, ref in phase.data.sources.items()}
        transforms = [of("transform", ref) for ref in phase.data.transforms]
        adapters = {junction: [of("adapter", ref) for ref in refs] for junction, refs in phase.model.adapters.items()}
        single = {
            "task": of("task", phase.task),
            "embedding": of("embedding", phase.model.embedding),
            "rack": of("rack", phase.model.rack),
            "head": of("head", phase.model.head),
            "optimizer": of("optimizer", phase.optimizer.part),
        }
        self._check_names(phase, single["optimizer"])
        growth = of("growth", phase.enter.growth) if phase.enter.growth is not None else None
        beside = {name: of("weight-adapter", adapter.part) for name, adapter in phase.model.weight_adapters.items()}
        reaction = of("reaction", phase.optimizer.reaction) if phase.optimizer.reaction is not None else None
        self._check_crossing(phase, growth)
        self._check_watched(phase, reaction)
        self._collect(phase)
        everything = [*sources.values(), *transforms, *single.values(), *(draft for group in adapters.values() for draft in group)]
        everything += beside.values()
        if not sources or any(draft is None for draft in everything):
            return None
        return PhaseDrafts(
            **{role: draft for role, draft in single.items() if draft is not None},
            sources={name: draft for name, draft in sources.items() if draft is not None},
            transforms=tuple(draft for draft in transforms if draft is not None),
            adapters={junction: tuple(draft for draft in group if draft is not None) for junction, group in adapters.items()},
            weight_adapters={name: draft for name, draft in beside.items() if draft is not None},
            reaction=reaction,
            growth=growth,
        )

    def _check_crossing(self, phase: PhaseConfig, growth: Draft | None) -> None:
        """The first phase crosses nothing, and weights to start from belong to it alone."""
        if phase.index == 0:
            wrong = {
                "growth": growth is not None,
                "fresh": phase.enter.fresh,
                "rewarm": phase.enter.rewarm is not None,
                "moments": phase.enter.moments == "reset",
                "weight_adapters": phase.enter.weight_adapters == "drop",
            }
            for key in (key for key, given in wrong.items() if given):
                message = f"the first phase has nothing to grow from: remove `enter.{key}`"
                self.problems.append(Problem(message, f"enter.{key}", phase.locate(f"enter.{key}")))
        elif phase.model.start != self.experiment.phases[0].model.start:
            message = "only the run as a whole starts from weights: move it out of the phase; a phase takes over the model before it"
            self.problems.append(Problem(message, "model.start", phase.locate("model.start")))

    def _check_watched(self, phase: PhaseConfig, reaction: Draft | None) -> None:
        """A reaction that says what it watches watches something that will be measured."""
        if reaction is None or not hasattr(reaction.options, "watches"):
            return
        known = ["train", *(evaluation.name for evaluation in self.experiment.evaluate)]
        for metric in reaction.options.watches():
            name = metric.partition(".")[0]
            if name not in known:
                path = f"{reaction.path}.metric" if hasattr(reaction.options, "metric") else reaction.path
                message = f"{reaction.label} watches '{metric}', and there is no evaluation '{name}'{did_you_mean(name, known)}"
                self.problems.append(Problem(message, path, phase.locate(path)))

    def _join(self, phase: PhaseConfig, drafts: PhaseDrafts) -> Joined:
        key = (*map(id, drafts.by_role().values()), tuple(phase.data.rename.items()))
        if key not in self._joined:
            found = join(drafts, phase.data.rename)
            self.problems += [_placed(problem, phase) for problem in found.problems]
            self._joined[key] = found
        known = self._joined[key]
        return attrs.evolve(
            known,
            drafts=attrs.evolve(
                known.drafts,
                growth=drafts.growth,
                optimizer=drafts.optimizer,
                transforms=drafts.transforms,
                weight_adapters=drafts.weight_adapters,
                reaction=drafts.reaction,
            ),
        )

    # -- time -----------------------------------------------------------------------------------------------------

    def _clock(self, found: list[Joined | None]) -> Clock | None:
        """The compiled clock; None, with the reason among the problems, where the timeline does not hold together."""
        phases = self.experiment.phases
        try:
            extents = [extent_of(phase, each) for phase, each in zip(phases, found, strict=True)]
            return lay_out(self.experiment.run.horizon, extents, self.past)
        except ConfigError as error:
            self.problems += error.problems
            return None
        except ScheduleError as error:
            if not any(problem.path.endswith((".until", "run.horizon")) for problem in self.problems):
                self.problems.append(Problem(str(error), "phases", phases[-1].locate("until")))
            return None

    def _evaluate_at(self, clock: Clock) -> dict[str, tuple[int, ...]]:
        every = {each.name: self._cadence(clock, each.every, f"evaluate.{each.name}.every") for each in self.experiment.evaluate}
        return {name: tuple(sorted({*clock.starts, *cadence})) for name, cadence in every.items()}

    def _cadence(self, clock: Clock, every: Duration | None, path: str) -> tuple[int, ...]:
        """The steps of a cadence; none, with the reason among the problems, where its measure is not counted."""
        try:
            return clock.every(every) if every is not None else ()
        except ScheduleError as error:
            self.problems.append(self.experiment.problem(path, str(error)))
            return ()

    # -- states ---------------------------------------------------------------------------------------------------

    def _state(self, phase: PhaseConfig, found: Joined, curves: Curves) -> TrainingState:
        drafts = found.drafts
        model = phase.model

        def part(draft: Draft) -> Part:
            return draft.part(
                {name: curves.of(phase, f"{draft.path}.{name}", draft.id, schedule) for name, schedule in draft.schedules.items()}
            )

        spec = drafts.rack.spec
        self._check_ties(phase, drafts.head.spec)
        return TrainingState(
            task=part(drafts.task),
            data=DataState(
                shapes=shapes_in(curves.clock, phase.index),
                sources={name: part(draft) for name, draft in drafts.sources.items()},
                mix={name: self._weight(phase, name, curves) for name in drafts.sources},
                bridges=tuple(bridge for bridge in found.bridges if bridge.junction.startswith("source:")),
                transforms=tuple(part(draft) for draft in drafts.transforms),
                fields=phase.data.fields,
                accept_inexact_resume=phase.data.accept_inexact_resume,
            ),
            model=ModelState(
                embedding=part(drafts.embedding),
                rack=part(drafts.rack),
                head=part(drafts.head),
                adapters={junction: tuple(part(draft) for draft in group) for junction, group in drafts.adapters.items()},
                freeze=model.freeze,
                stacks=spec.stacks if isinstance(spec, RackSpec) else {},
                bridges=tuple(bridge for bridge in found.bridges if not bridge.junction.startswith("source:")),
                weight_adapters={
                    name: WeightAdapterState(part=part(draft), select=model.weight_adapters[name].select)
                    for name, draft in drafts.weight_adapters.items()
                },
                precision=dict(model.precision.items()),
                frozen_mode=model.frozen_mode,
            ),
            optimizer=self._optimizer(phase, found, curves),
        )

    def _check_ties(self, phase: PhaseConfig, head: object) -> None:
        """One parameter has one dtype, so what is tied is held in one precision."""
        precision = phase.model.precision
        for own, canonical in (head.ties if isinstance(head, HeadSpec) else {}).items():
            role = canonical.partition(".")[0]
            here, there = (precision.get(part, "float32") for part in ("head", role))  # type: ignore[call-overload]  # a role is a key
            if here != there:
                message = f"head.{own} is tied to {canonical}, and the {role} is held in {there} but the head in {here}: "
                path = "model.precision"
                self.problems.append(Problem(message + "give both one precision, or untie them", path, phase.locate(path)))

    def _group_schedule(self, phase: PhaseConfig, optimizer: Draft, path: str, name: str, value: object) -> Schedule:
        """What a group sets, under the rules of the optimizer's own option."""
        try:
            return parse_schedule(value) if optimizer.registered is None else parse_option(type(optimizer.options), name, value)
        except ScheduleError as error:
            self.problems.append(phase.problem(path, str(error)))
            return Constant(value=0.0)

    def _weight(self, phase: PhaseConfig, source: str, curves: Curves) -> Curve:
        if source not in phase.data.mix:
            self.problems.append(
                Problem(f"source '{source}' has no weight in data.mix: give one, 0 to leave it out", "data.mix", phase.locate("data.mix"))
            )
            return Curve.constant(0.0)
        return curves.of(phase, f"data.mix.{source}", "mix", parse_schedule(phase.data.mix[source]))

    def _optimizer(self, phase: PhaseConfig, found: Joined, curves: Curves) -> OptimizerState:
        draft, config = found.drafts.optimizer, phase.optimizer
        default = {name: curves.of(phase, f"{draft.path}.{name}", draft.id, schedule) for name, schedule in draft.schedules.items()}
        groups = []
        for group in config.groups:
            base = f"optimizer.groups.{group.name}"
            own = {
                name: curves.of(phase, f"{base}.{name}", draft.id, self._group_schedule(phase, draft, f"{base}.{name}", name, value))
                for name, value in group.options.items()
                if name in draft.schedules
            }
            groups.append(GroupState(name=group.name, select=group.select, curves={**default, **own}))
        groups.append(GroupState(name="default", select=(), curves=default))
        reaction = found.drafts.reaction
        return OptimizerState(
            part=draft.part(default),
            groups=tuple(groups),
            clip=config.clip,
            lr_scaling=tuple(self._lr_scale(phase, by, found) for by in config.lr_scaling),
            ema=None if config.ema is None else curves.of(phase, "optimizer.ema.decay", "ema", parse_schedule(config.ema.decay)),
            reaction=None if reaction is None else reaction.part(self.drafts.settled(reaction)),
        )

    def _lr_scale(self, phase: PhaseConfig, by: Literal["width", "depth", "parameters"], found: Joined) -> LRScale:
        """A power law with its sizes; the width and the depth are known cold, parameters are counted when the model stands."""
        declared, path = phase.optimizer.lr_scaling[by], f"optimizer.lr_scaling.{by}"
        size = _sizes(found).get(by)
        base = declared.base if declared.base is not None else self._first_sizes.setdefault(by, size) if size is not None else None
        if base is None or (size is None and by != "parameters"):
            message = f"the rack does not say its {by} before it is built: scale by another size"
            if by == "parameters":
                message = "parameters are counted only when the model stands: say at how many lr holds as written (`base`)"
            self.problems.append(Problem(message, path, phase.locate(path)))
        return LRScale(by=by, exponent=declared.exponent, base=base or 1.0, size=size)

    def _compile(self, curves: Curves, i: int, found: list[Joined | None], stated: list[TrainingState | None]) -> CompiledPhase:
        clock = curves.clock
        phase, joined, state = self.experiment.phases[i], found[i], stated[i]
        growth = joined.drafts.growth if joined is not None else None
        operator = None if growth is None else growth.part(self._growth_curves(phase, growth, curves))
        before = stated[i - 1] if i else None
        if state is not None:
            self._check_mix(phase, state.data, curves.clock)
        crossing = None
        if joined is not None and state is not None and before is not None:
            last = self.experiment.phases[i - 1]
            window = clock.t(clock.starts[i]), clock.t(clock.starts[i + 1])
            growing = Growing(growth, operator, *window) if growth is not None and operator is not None else None
            crossing = transition(last, phase, before, state, growing, joined.drafts.rack, self.drafts)
            self._collect(phase)
        enter = Enter(
            growth=operator,
            moments=phase.enter.moments,
            fresh=phase.enter.fresh,
            weight_adapters=phase.enter.weight_adapters,
            rewarm=curves.ramp(phase, phase.enter.rewarm) if phase.enter.rewarm is not None else None,
        )
        return CompiledPhase(
            name=phase.name, index=i, start=clock.starts[i], stop=clock.starts[i + 1], state=state, enter=enter, transition=crossing
        )

    def _check_mix(self, phase: PhaseConfig, data: DataState, clock: Clock) -> None:
        """No weight goes below zero, and some source is read at every step: what constant weights say, the config has said."""
        for name, curve in data.mix.items():
            if (least := min(knot.value for knot in curve.knots)) < 0 and not curve.is_constant:
                message = f"a weight of {least:g} is below zero: only ratios of weights above zero have a meaning"
                self.problems.append(Problem(message, f"data.mix.{name}", phase.locate(f"data.mix.{name}")))
        start, stop, mix = clock.starts[phase.index], clock.starts[phase.index + 1], data.mix.values()
        if len(mix) < 2 or all(curve.is_constant for curve in mix):
            return
        # weights that are all zero are so from an instant on at which one of them changes its way, or from the start of the phase
        for step in sorted({start, *(clock.step_at(knot.t) for curve in mix for knot in curve.knots)}):
            if start <= step < stop and not any(curve(clock.t(step)) > 0 for curve in mix):
                message = f"every weight is zero at step {step}: at least one source has a weight above zero at every step"
                self.problems.append(Problem(message, "data.mix", phase.locate("data.mix")))
                return

    def _growth_curves(self, phase: PhaseConfig, growth: Draft, curves: Curves) -> dict[str, Curve]:
        return {name: curves.of(phase, f"{growth.path}.{name}", growth.id, schedule) for name, schedule in growth.schedules.items()}

    # -- mistakes -------------------------------------------------------------------------------------------------

    def _check_names(self, phase: PhaseConfig, optimizer: Draft | None) -> None:
        """Selectors are selectors, and groups set what the optimizer has."""
        model = phase.model
        selected = {f"model.weight_adapters.{name}.select": adapter.select for name, adapter in model.weight_adapters.items()}
        selected |= {"model.freeze": model.freeze, "enter.fresh": phase.enter.fresh}
        selected |= {} if model.start is None else {"model.start.drop": model.start.drop}
        for path, selectors in selected.items():
            for selector in selectors:
                self._check_selector(selector, path, phase)
        for group in phase.optimizer.groups:
            base = f"optimizer.groups.{group.name}"
            for selector in group.select:
                self._check_selector(selector, f"{base}.select", phase)
            for name in group.options.keys() - (optimizer.schedules.keys() if optimizer is not None else group.options.keys()):
                assert optimizer is not None
                hint = did_you_mean(name, optimizer.schedules)
                path = f"{base}.{name}"
                self.problems.append(
                    Problem(f"{optimizer.label} has no option '{name}' that a group may set{hint}", path, phase.locate(path))
                )

    def _check_selector(self, selector: str, path: str, phase: PhaseConfig) -> None:
        try:
            compile_selector(selector)
        except SelectorError as error:
            self.problems.append(Problem(str(error), path, phase.locate(path)))

    def _collect(self, phase: PhaseConfig | None) -> None:
        """Take over what the drafts collected, placed by the phase that asked."""
        self.problems += [_placed(problem, phase) for problem in self.drafts.problems]
        self.drafts.problems.clear()

    def _stop(self) -> NoReturn:
        """Raise what was found: the user's mistakes all at once, else the first provider's fault."""
        if self.problems:
            told = {(problem.path, problem.message): problem for problem in reversed(self.problems)}
            raise ConfigError(sorted(told.values(), key=_place))
        raise self.drafts.faults[0]

    def _providers(self, joined: list[Joined], others: list[Part]) -> tuple[Provider, ...]:
        names: dict[str, None] = {}
        for found in joined:
            own = found.drafts
            drafts = [*own.by_role().values(), own.optimizer, *own.transforms, *own.weight_adapters.values(), own.reaction, own.growth]
            names |= {draft.registered.provider: None for draft in drafts if draft is not None and draft.registered is not None}
        names |= {part.id.partition(".")[0]: None for part in others if part.given is None}
        return tuple(provider for name in names if (provider := self.registry.provider(name)) is not None)


def _sizes(found: Joined) -> dict[str, int]:
    """Width and depth of the rack, as far as they are known before building."""
    spec = found.drafts.rack.spec
    sizes = {"depth": sum(spec.stacks.values())} if isinstance(spec, RackSpec) and spec.stacks else {}
    width = found.sizes.get(("rack", "width")) or found.drafts.rack.sizes.get("width")
    return sizes if width is None else {**sizes, "width": width}


def _place(problem: Problem) -> tuple[str, int, int]:
    """Reading order."""
    where = problem.where
    return ("", 0, 0) if where is None else (where.source, where.line or 0, where.column or 0)


def _placed(problem: Problem, phase: PhaseConfig | None) -> Problem:
    if problem.where is not None or phase is None:
        return problem
    return attrs.evolve(problem, where=phase.locate(problem.path))


def _lookahead(task: Draft) -> int:
    spec = task.spec
    return spec.lookahead if isinstance(spec, TaskSpec) else 0
