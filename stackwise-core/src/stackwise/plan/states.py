"""The training state that a phase declares: its drafts, with every schedule compiled to a curve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from attrs import define, field

from stackwise.config import PhaseConfig, parse_option, parse_schedule
from stackwise.contracts.specs import AT_ENTRY, RackSpec, Spec, TaskSpec
from stackwise.curriculum.parts import Part
from stackwise.curriculum.states import DataState, GroupState, LRScale, ModelState, OptimizerState, TrainingState, WeightAdapterState
from stackwise.errors import Problem, ScheduleError
from stackwise.plan.curves import Curves
from stackwise.plan.extents import shapes_in
from stackwise.plan.junctions.join import Joined
from stackwise.plan.parts import Draft, Drafts
from stackwise.timeline.schedules import Curve


@define
class States:
    """Makes the states of the phases, in order.

    Args:
        curves: follows every scheduled key through the phases.
        drafts: says which options of a reaction have no time to follow.
        problems: where mistakes are collected.
    """

    curves: Curves
    drafts: Drafts
    problems: list[Problem]
    _first_sizes: dict[str, float] = field(factory=dict)
    """Width and depth in the first phase that scales by them."""

    def of(self, phase: PhaseConfig, joined: Joined) -> TrainingState:
        """The state of a phase."""
        return TrainingState(
            task=self.part(phase, joined.drafts.task),
            data=self._data(phase, joined),
            model=self._model(phase, joined),
            optimizer=self._optimizer(phase, joined),
            reference=_reference(phase, joined.drafts.task.spec),
            auxiliary={
                name: self.curves.of(phase, f"task.auxiliary.{name}", "auxiliary", weight) for name, weight in phase.task.auxiliary.items()
            },
        )

    def part(self, phase: PhaseConfig, draft: Draft) -> Part:
        """The finished part of a draft, its schedules compiled in the phase."""
        return draft.part(self._compiled(phase, draft))

    def _compiled(self, phase: PhaseConfig, draft: Draft) -> dict[str, Curve]:
        return {name: self.curves.of(phase, f"{draft.path}.{name}", draft.id, schedule) for name, schedule in draft.schedules.items()}

    def _data(self, phase: PhaseConfig, joined: Joined) -> DataState:
        drafts = joined.drafts
        return DataState(
            shapes=shapes_in(self.curves.clock, phase.index),
            sources={name: self.part(phase, draft) for name, draft in drafts.sources.items()},
            mix={name: self._weight(phase, name) for name in drafts.sources},
            bridges=tuple(bridge for bridge in joined.bridges if bridge.junction.startswith("source:")),
            reads=joined.reads,
            transforms=tuple(self.part(phase, draft) for draft in drafts.transforms),
            fields=phase.data.fields,
            accept_inexact_resume=phase.data.accept_inexact_resume,
        )

    def _weight(self, phase: PhaseConfig, source: str) -> Curve:
        path = f"data.mix.{source}"
        if source not in phase.data.mix:
            message = f"source '{source}' has no weight: give it one (0 leaves it out)"
            self.problems.append(Problem(message, "data.mix", phase.locate("data.mix")))
            return Curve.constant(0.0)
        return self.curves.of(phase, path, "mix", phase.data.mix[source])

    def _model(self, phase: PhaseConfig, joined: Joined) -> ModelState:
        drafts, config, spec = joined.drafts, phase.model, joined.drafts.rack.spec
        return ModelState(
            embedding=self.part(phase, drafts.embedding),
            rack=self.part(phase, drafts.rack),
            head=self.part(phase, drafts.head),
            adapters={junction: tuple(self.part(phase, draft) for draft in group) for junction, group in drafts.adapters.items()},
            freeze=config.freeze,
            stacks=spec.stacks if isinstance(spec, RackSpec) else {},
            rack_spec=spec if isinstance(spec, RackSpec) and drafts.rack.blocks is not None else None,
            bridges=tuple(bridge for bridge in joined.bridges if not bridge.junction.startswith("source:")),
            weight_adapters={
                name: WeightAdapterState(part=self.part(phase, draft), select=config.weight_adapters[name].select)
                for name, draft in drafts.weight_adapters.items()
            },
            precision=dict(config.precision.items()),
            frozen_mode=config.frozen_mode,
            cache=config.cache,
        )

    def _optimizer(self, phase: PhaseConfig, joined: Joined) -> OptimizerState:
        draft, config, reaction = joined.drafts.optimizer, phase.optimizer, joined.drafts.reaction
        default = self._compiled(phase, draft)
        groups = [
            GroupState(name=group.name, select=group.select, curves={**default, **self._of_group(phase, draft, group.name, group.options)})
            for group in config.groups
        ]
        return OptimizerState(
            part=draft.part(default),
            groups=(*groups, GroupState(name="default", select=(), curves=default)),
            clip=config.clip,
            lr_scaling=tuple(self._lr_scale(phase, by, joined) for by in config.lr_scaling),
            ema=None if config.ema is None else self.curves.of(phase, "optimizer.ema.decay", "ema", config.ema.decay),
            reaction=None if reaction is None else reaction.part(self.drafts.constants(reaction)),
        )

    def _of_group(self, phase: PhaseConfig, optimizer: Draft, group: str, options: Mapping[str, object]) -> dict[str, Curve]:
        """The curves of the options that a group sets, checked by the rules of the optimizer's own options."""
        curves = {}
        for name in (name for name in options if name in optimizer.schedules):
            path, value = f"optimizer.groups.{group}.{name}", options[name]
            try:
                is_registered = optimizer.registered is not None
                schedule = parse_option(type(optimizer.options), name, value) if is_registered else parse_schedule(value)
            except ScheduleError as error:
                self.problems.append(phase.problem(path, str(error)))
                continue
            curves[name] = self.curves.of(phase, path, optimizer.id, schedule)
        return curves

    def _lr_scale(self, phase: PhaseConfig, by: Literal["width", "depth", "parameters"], joined: Joined) -> LRScale:
        """A power law with its sizes; the width and the depth are known cold, parameters are counted when the model stands."""
        declared, path = phase.optimizer.lr_scaling[by], f"optimizer.lr_scaling.{by}"
        size = _rack_sizes(joined).get(by)
        base = declared.base if declared.base is not None else self._first_sizes.setdefault(by, size) if size is not None else None
        if base is None or (size is None and by != "parameters"):
            message = f"the rack does not say its {by} before it is built: scale by another size"
            if by == "parameters":
                message = "parameters are counted only when the model stands: say at how many lr holds as written (`base`)"
            self.problems.append(Problem(message, path, phase.locate(path)))
        return LRScale(by=by, exponent=declared.exponent, base=base or 1.0, size=size)


def _reference(phase: PhaseConfig, task: Spec | None) -> str | None:
    """What the task compares with; `reference_problems` says where that is missing."""
    if not isinstance(task, TaskSpec) or task.reference is None:
        return None
    return AT_ENTRY if phase.task.reference is None else phase.task.reference.from_


def _rack_sizes(joined: Joined) -> dict[str, int]:
    """Width and depth of the rack, as far as they are known before building."""
    spec = joined.drafts.rack.spec
    sizes = {"depth": sum(spec.stacks.values())} if isinstance(spec, RackSpec) and spec.stacks else {}
    width = joined.sizes.get(("rack", "width")) or joined.drafts.rack.sizes.get("width")
    return sizes if width is None else {**sizes, "width": width}
