"""The live training state: the planes, which hold what a phase declares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from typing import Any, cast

import attrs
from torch import nn

from stackwise.contracts.protocols import Batch, Observer, Task
from stackwise.curriculum.parts import Part
from stackwise.curriculum.schedule import CompiledPhase, PhaseSchedule
from stackwise.curriculum.states import TrainingState
from stackwise.errors import UserError
from stackwise.machine.hooks import keeping_functions, keeping_hooks
from stackwise.machine.observers import Observers
from stackwise.machine.settings import Settings
from stackwise.planes.data.plane import DataPlane
from stackwise.planes.data.share import WHOLE
from stackwise.planes.model.difference import Boundary, build_steps
from stackwise.planes.model.module import Model, explaining_ties
from stackwise.planes.model.plane import ModelPlane
from stackwise.planes.model.state import load_named_state, named_state
from stackwise.planes.model.transfer import ModelReceipt
from stackwise.planes.objective import Objective
from stackwise.planes.optimizer.moments import MomentsReceipt
from stackwise.planes.optimizer.plane import OptimizerPlane


class LiveState:
    """Owns the planes and the observers, and carries all of them from one declared state to the next.

    Args:
        schedule: the timeline of declared states.
        settings: placement.
        model: a model plane, or a finished module.
        data: a data plane, a loader, or an iterable of batches.
        task: an objective, or a finished task.
        optimizer: an optimizer plane, or a finished optimizer over the model's trainable parameters.
        observers: called with every event.

    Raises:
        UserError: a finished optimizer whose parameters are not the model's trainable ones.
    """

    def __init__(
        self,
        schedule: PhaseSchedule,
        settings: Settings,
        *,
        model: ModelPlane | nn.Module,
        data: DataPlane | Iterable[Batch] | Any,
        task: Objective | Task,
        optimizer: OptimizerPlane | Any,
        observers: Observers | Sequence[Observer],
    ) -> None:
        device = settings.placement.device
        self.placement, self._schedule, self._ranks, self.sharding = settings.placement, schedule, settings.ranks, settings.sharding
        self.model = model if isinstance(model, ModelPlane) else ModelPlane.of(model, device)
        self.data = data if isinstance(data, DataPlane) else DataPlane.of(data, device, settings.seed)
        self.data.share = WHOLE if settings.ranks is None else settings.ranks.share
        self.objective = task if isinstance(task, Objective) else Objective.of(task, settings.auxiliary, settings.reference)
        if not isinstance(optimizer, OptimizerPlane):
            optimizer = OptimizerPlane.of(optimizer, self.model.trainable(), dict(self.model.model.named_parameters()))
        self.optimizer: OptimizerPlane = optimizer
        self.observers = observers if isinstance(observers, Observers) else Observers(observers)
        if self.sharding is not None:
            if any(phase.state is None for phase in schedule):
                raise UserError("a finished model is not divided among processes: declare its parts as Built(callable, options)")
            self.model.lay = self.sharding.lay
        self.phase: CompiledPhase | None = None
        """The phase whose declared state the planes hold; None before the first."""
        self._reference_phase = -1
        self._told_hooks: set[tuple[str, str]] = set()
        racks = [phase.state.model.rack for phase in schedule if phase.state is not None]
        self._fixes_shapes = all(curve.is_constant for rack in racks for curve in rack.curves.values())
        """Whether compiled blocks may be fixed to their shapes: a number in them that follows time would be fixed as well."""

    def apply_values(self, t: float) -> None:
        """Put in force the values of everything that follows time."""
        self.objective.apply_values(t)
        self.model.apply_values(t)
        self.optimizer.apply_values(t)

    def given(self) -> dict[str, object]:
        """What was given in code and may keep something from step to step, by the name that messages begin with."""
        state, model, task = None if self.phase is None else self.phase.state, self.model.model, self.objective.task
        given: dict[str, object] = {}
        if state is None:
            given[""] = model
        elif state.model.rack.given is not None:
            given["rack"] = model.get_submodule("rack")
        for each in getattr(task, "functions", ()):  # of a `Loss`; a task of one's own may pass something on from `prepare` to `loss`
            given[f"the loss {type(each).__name__}"] = each
        if state is None or state.optimizer.part.given is not None:
            given[f"the optimizer {type(self.optimizer.optimizer).__name__}"] = self.optimizer.optimizer
        return given

    def hook_notes(self) -> tuple[str, ...]:
        """A sentence for each hook and function that keeps something of its own, once in a run."""
        functions = keeping_functions(self._functions())
        keeping = [*keeping_hooks(self.model.model, self.optimizer.optimizer), *functions]
        hooks = [each for each in keeping if each not in self._told_hooks]
        self._told_hooks.update(hooks)
        return tuple(
            f"{hook} keeps {kept}, which no checkpoint holds: where it changes and decides what comes, a resume goes on with other "
            "numbers; keep it in a buffer of the module"
            for hook, kept in hooks
        )

    def _functions(self) -> dict[str, object]:
        """What a step calls and was given in code, by the name that messages begin with."""
        loss, *metrics = getattr(self.objective.task, "functions", (None,))
        collates = {f"source '{name}': collate_fn": getattr(each.source, "collate_fn", None) for name, each in self.data.brought().items()}
        return {"the loss": loss, **{f"metric {i + 1}:": each for i, each in enumerate(metrics)}, **collates}

    def moving(self) -> list[Callable[[float], None]]:
        """What to call with the t of every further step of the phase; where nothing follows time, once `apply_values` is enough."""
        return [plane.apply_values for plane in (self.objective, self.model, self.optimizer) if plane.moves]

    def reach(self, boundary: int) -> None:
        """Put in force the model's values at the end of a phase, which lies after its last step: there a gate has fully opened."""
        self.model.apply_values(self._schedule.clock.t(boundary))

    # -- crossing a boundary --------------------------------------------------------------------------------------

    def enter(self, phase: CompiledPhase) -> tuple[ModelReceipt, MomentsReceipt]:
        """Cross into the declared state of a phase: task and data, then the model, then the optimizer over the new parameters.

        Returns:
            What the model plane did to the parameters, and what the optimizer plane did to their moments.
        """
        self.phase, state = phase, phase.state
        if state is None:  # finished objects, which no phase changes
            self._take_reference(phase)
            return ModelReceipt(adopted={name: name for name in self.model.trainable()}), MomentsReceipt()
        with nullcontext() if self.sharding is None else self.sharding.waiting("crosses a boundary"):
            return self._cross(phase, state)

    def _cross(self, phase: CompiledPhase, state: TrainingState) -> tuple[ModelReceipt, MomentsReceipt]:
        if self.sharding is not None and phase.index:
            self.sharding.unwrap(self.model.model)
        self.objective.enter(state.task, state.auxiliary, state.reference)
        self.data.enter(state.data, lookahead=self.objective.lookahead)
        model = self._enter_model(phase, state)
        moments = self._enter_optimizer(phase, state, model if phase.index else None)
        self._take_reference(phase)
        self._get_ready(self._schedule.clock.t(phase.start))
        return model, moments

    def _enter_model(self, phase: CompiledPhase, state: TrainingState) -> ModelReceipt:
        """An averaging optimizer leaves first, so that parameters it will no longer train hold the weights to keep."""
        self.optimizer.leave(state.optimizer)
        return self.model.enter(state.model, Boundary.of(phase), settle=self.optimizer.settle)

    def _enter_optimizer(self, phase: CompiledPhase, state: TrainingState, receipt: ModelReceipt | None) -> MomentsReceipt:
        t = self._schedule.clock.t(phase.start)
        self.model.apply_values(t)
        parameters, buffers = dict(self.model.model.named_parameters()), dict(self.model.model.named_buffers())
        with explaining_ties(self.model.model):
            return self.optimizer.enter(state.optimizer, parameters, t, receipt=receipt, enter=phase.enter, buffers=buffers)

    def _take_reference(self, phase: CompiledPhase) -> None:
        declared = self.objective.task.get_spec().reference is not None
        takes_copy = declared and not (self.keeps_task(phase) and self._keeps_reference(phase))
        with self.optimizer.evaluating() if takes_copy else nullcontext():
            if self.objective.take_reference(self.model.model):
                self._reference_phase = phase.index

    def _keeps_reference(self, phase: CompiledPhase) -> bool:
        before = self._schedule.phases[phase.index - 1].state if phase.index else None
        return before is not None and phase.state is not None and before.reference == phase.state.reference

    def keeps_task(self, phase: CompiledPhase) -> bool:
        """Whether a phase goes on with the task of the one before it."""
        before = self._schedule.phases[phase.index - 1].state if phase.index else None
        return before is not None and phase.state is not None and before.task.structure == phase.state.task.structure

    def _get_ready(self, t: float) -> None:
        """Compile if asked, set training mode and put the values of t in force."""
        self._expect_fields()
        self.placement.wrap(self.model.model, fixed_shapes=self._fixes_shapes and not self.data.brought())
        if self.sharding is not None:
            self.sharding.wrap(self.model.model)
            self._divide_reference()
        self.model.train()
        self.apply_values(t)

    def _divide_reference(self) -> None:
        reference = self.objective.reference
        if self.sharding is not None and reference is not None:
            self.sharding.lay_all(reference)
            self.sharding.wrap(reference, trains=False)

    def rest(self) -> None:
        """Give up what is left gathered after a forward pass without a backward one, where models are divided among processes."""
        if self.sharding is not None:
            self.sharding.rest(self.model.model)
            if self.objective.reference is not None:
                self.sharding.rest(self.objective.reference)

    def _expect_fields(self) -> None:
        """Tell the data which fields are read, where a `Loss` names its targets and a module in code its inputs."""
        model, targets = self.model.model, getattr(self.objective.task, "targets", None)
        if targets is not None and isinstance(model, Model):
            self.data.expect(model.reads | set(targets))

    # -- saved states ---------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """State of every plane and of the observers, by name; live tensors, no copies."""
        reference = self.objective.reference
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "data": self.data.state_dict(),
            "task": self.objective.state_dict(),
            "reference": None if reference is None else {"phase": self._reference_phase, **self._held(reference)},
            "observers": self.observers.state_dict(),
        }

    def restore(self, saved: Mapping[str, Any], step: int) -> None:
        """Build the declared state of the last step before `step` directly, and load what `state` returned then, by name.

        Raises:
            UserError: the saved state is of another declaration; every difference is listed.
            DataError: the saved read positions are of other sources.
        """
        phase = self._schedule.phase_at(max(step - 1, 0))
        if phase.state is not None:
            self._declare(phase, phase.state, self._schedule.clock.t(max(step - 1, 0)), saved)
        self._load(saved)
        self._load_reference(saved["reference"])
        self._divide_reference()

    def _declare(self, phase: CompiledPhase, state: TrainingState, t: float, saved: Mapping[str, Any]) -> None:
        """Build the declared state of a phase from scratch, without walking the phases before it."""
        self.objective.enter(state.task, state.auxiliary, state.reference)
        parked = {name: part for name, part in self._sources_around(phase).items() if name in saved["data"]["sources"]}
        self.data.enter(attrs.evolve(state.data, sources={**parked, **state.data.sources}), lookahead=self.objective.lookahead)
        self.data.enter(state.data, lookahead=self.objective.lookahead)
        self.model.enter(state.model, Boundary.of(phase), restoring=build_steps(self._schedule.phases[: phase.index + 1]))
        parameters, buffers = dict(self.model.model.named_parameters()), dict(self.model.model.named_buffers())
        self.optimizer.enter(state.optimizer, parameters, t, enter=phase.enter, fresh=saved["optimizer"]["fresh"], buffers=buffers)
        self._get_ready(t)
        self.phase = phase

    def _sources_around(self, phase: CompiledPhase) -> dict[str, Part]:
        """Every source of the run: as last declared up to this phase, else as first declared after it."""
        phases = self._schedule.phases
        nearest = (*reversed(phases[phase.index + 1 :]), *phases[: phase.index + 1])
        return {name: part for each in nearest if each.state is not None for name, part in each.state.data.sources.items()}

    def _load(self, saved: Mapping[str, Any]) -> None:
        """Load each owner's part, observers last; all mismatches are reported at once."""
        faults: list[UserError] = []
        if strange := sorted(saved["optimizer"]["parameters"].keys() - saved["model"].keys()):
            faults.append(UserError(f"optimizer state is saved for parameters that the model does not have: {', '.join(strange)}"))
        owners = {"model": self.model, "optimizer": self.optimizer, "data": self.data, "task": self.objective}
        if self._ranks is None or self._ranks.is_first:  # observers are with the files, in one process
            owners["observers"] = self.observers
        for name, owner in owners.items():
            try:
                cast(Any, owner).load_state_dict(saved[name])
            except UserError as error:
                faults.append(error)
        if faults:
            raise faults[0] if len(faults) == 1 else UserError("\n".join(map(str, faults)))

    def _held(self, reference: nn.Module) -> dict[str, Any]:
        """A copy of the model by its values, a model outside the run by path and digest."""
        if (source := self.objective.reference_from) is not None:
            return {"from": source[0], "sha256": source[1]}
        return {"model": named_state(reference)}

    def _load_reference(self, saved: Mapping[str, Any] | None) -> None:
        if saved is None:
            return
        phase = self._schedule.phases[saved["phase"]]
        if "from" in saved:
            self.objective.load_reference(saved["from"], saved["sha256"], self.model.model)
            self._reference_phase = phase.index
            return
        if phase.state is None:
            reference: nn.Module = deepcopy(self.model.model)
        else:
            reference = self.model.another(self._schedule.phases[: phase.index + 1], self._schedule.clock.t(phase.start))
        load_named_state(reference, saved["model"], "the weights of the saved reference")
        self.objective.hold_reference(reference)
        self._reference_phase = phase.index
