"""The training machine: walks the timeline and yields what happens. It knows no registry, no files and no terminal."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from math import hypot, isfinite, nan
from time import perf_counter
from typing import Any, NoReturn
from warnings import warn
from weakref import finalize, ref

import attrs
import torch
from torch import nn

from stackwise.contracts.events import Evaluated, Event, PhaseEntered, Reacted, RunFinished, RunStarted, StepDone
from stackwise.contracts.protocols import Batch, Observer, Stateful, Task
from stackwise.curriculum.parts import Part
from stackwise.curriculum.schedule import CompiledPhase, PhaseSchedule
from stackwise.errors import TrainingHalted, UserError
from stackwise.machine.evaluation import Evaluation
from stackwise.machine.placement import Placement
from stackwise.machine.probe import Judged, Verdict, compare, judge
from stackwise.planes.data.plane import DataPlane
from stackwise.planes.data.randomness import seed_others
from stackwise.planes.model.module import load_named_tensors, named_tensors
from stackwise.planes.model.plane import ModelPlane
from stackwise.planes.model.transfer import ModelReceipt
from stackwise.planes.objective import Objective, check_loss
from stackwise.planes.optimizer.moments import MomentsReceipt
from stackwise.planes.optimizer.plane import OptimizerPlane
from stackwise.timeline.duration import Moment
from stackwise.timeline.streams import step_seed, stream_key


class TrainingMachine:
    """Trains along a compiled schedule.

    Args:
        model: a model plane, or a finished `nn.Module` from batch to outputs (`Model(embedding, rack, head)`).
        data: a data plane, a loader, or an iterable of batches.
        task: an objective, or a finished task.
        optimizer: an optimizer plane, or a finished `torch.optim.Optimizer` over the model's trainable parameters.
        schedule: the compiled timeline.
        evaluations: named evaluations; when they run is in the schedule.
        placement: device and precision; `Placement()` when left out.
        grow: builds the growth operator of a declared part.
        probe: whether every change of the model is judged on the last batch, before and after.
        seed: the run's seed; each step seeds its own streams from (seed, consumer, step).
        halt_after: steps in a row that may be skipped as not finite before training halts.
        bridges: junctions that assembly bridged, in sentences, reported at the start.
        providers: whose code the parts are, in words, reported at the start.
        observers: called with every event.

    Raises:
        UserError: a finished optimizer whose parameters are not the model's trainable ones.
    """

    def __init__(
        self,
        *,
        model: ModelPlane | nn.Module,
        data: DataPlane | Iterable[Batch] | Any,
        task: Objective | Task,
        optimizer: OptimizerPlane | torch.optim.Optimizer,
        schedule: PhaseSchedule,
        evaluations: Sequence[Evaluation] = (),
        placement: Placement | None = None,
        grow: Callable[[Any], object] | None = None,
        probe: bool = False,
        seed: int = 0,
        halt_after: int = 3,
        bridges: Sequence[str] = (),
        providers: Sequence[str] = (),
        observers: Sequence[Observer] = (),
    ) -> None:
        self.placement = placement or Placement()
        self.schedule = schedule
        self.model = model if isinstance(model, ModelPlane) else ModelPlane.of(model, self.placement.device)
        self.data = data if isinstance(data, DataPlane) else DataPlane.of(data, self.placement.device, seed)
        self.objective = task if isinstance(task, Objective) else Objective.of(task)
        self.optimizer = optimizer if isinstance(optimizer, OptimizerPlane) else OptimizerPlane.of(optimizer, self.model.trainable())
        self.evaluations = {evaluation.name: evaluation for evaluation in evaluations}
        self._grow, self._bridges, self._providers, self._halt_after = grow, tuple(bridges), tuple(providers), halt_after
        self._seed, self._probe = seed, probe
        self._last_batch: tuple[Batch, Moment] | None = None
        self._probed_step = self._reference_phase = -1
        self._task_key, self._model_key = stream_key(seed, "task"), stream_key(seed, "model")
        self._generator = torch.Generator()
        self._not_finite_in_a_row = self._skipped = 0
        self._seconds = 0.0
        self._last_share: tuple[float, torch.Tensor] | None = None
        self._generators = self.placement.generators()
        self._declared_observers = tuple(observers)
        self._observers = list(observers)
        self._checked_task: object = None
        self.step = 0
        """The next step to run."""
        self._entered_phase: CompiledPhase | None = None
        self._walks: list[ref[Generator[Event, None, None]]] = []
        finalize(self, _close, self._walks)

    def state(self) -> dict[str, Any]:
        """Everything that training goes on from, between the steps of `train`: what `restore` takes.

        To be asked when a `StepDone` has been yielded, or an evaluation right after it, before a boundary is crossed.

        Returns:
            Nested dicts and lists of tensors, texts and numbers (`model` by parameter, `optimizer.parameters` by parameter and entry, …);
            the live tensors and no copies.

        Raises:
            UserError: before the first step of a declared model, when there is nothing yet.
        """
        phase = self.schedule.phase_at(max(self.step - 1, 0))
        if phase.state is not None and self._entered_phase is not phase:
            raise UserError(f"there is no state of step {self.step} to save: ask for it after a step and before the next boundary")
        return {
            "step": self.step,
            "phase": phase.name,
            "seed": self._seed,
            "skipped": self._skipped,
            "not_finite_in_a_row": self._not_finite_in_a_row,
            "seconds": self._seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "data": self.data.state_dict(),
            "task": self.objective.state_dict(),
            "reference": self._reference_state(),
            "last_batch": self._last_batch_state(),
            "observers": {key: deepcopy(observer.state_dict()) for key, observer in self._stateful_observers().items()},
        }

    def _reference_state(self) -> dict[str, Any] | None:
        """The frozen copy that the task compares with, and the phase it was taken in, whose declaration rebuilds it."""
        reference = self.objective.reference
        return None if reference is None else {"phase": self._reference_phase, "model": named_tensors(reference)}

    def _last_batch_state(self) -> dict[str, Any] | None:
        """At a boundary the batch that will judge the model on both sides of it."""
        if self._last_batch is None or self._last_batch[1].step != self.step - 1:
            return None
        batch, moment = self._last_batch
        return {"batch": dict(batch), "moment": list(moment)}

    def restore(self, saved: Mapping[str, Any], *, positions: Mapping[str, Any] | None = None) -> None:
        """Go to the state that `state` returned, in a machine of the same declaration that has not trained.

        The declared state of that step is built as it stands, without walking the phases before it, and everything is loaded by name.

        Args:
            saved: as `state` returned it.
            positions: a data plane's state, to read on from there instead of from where the saved one was.

        Raises:
            UserError: the saved state is not this machine's; every difference that was found.
            DataError: the saved read positions are not of the declared sources.
        """
        if self._entered_phase is not None:
            raise UserError("this machine has trained already: assemble a new one to restore a state into")
        if saved["seed"] != self._seed:
            raise UserError(f"the saved state is of seed {saved['seed']}, this machine has seed {self._seed}: its streams are others")
        if positions is not None:
            saved = {**saved, "data": {**positions, "transforms": saved["data"]["transforms"]}}
        phase = self.schedule.phase_at(max(saved["step"] - 1, 0))
        if phase.state is not None:
            self._declare(phase, saved["step"], saved["data"]["sources"], saved["optimizer"]["fresh"])
        self._load(saved)
        self._load_reference(saved["reference"])
        if (last := saved["last_batch"]) is not None:
            batch = {name: tensor.to(self.placement.device) for name, tensor in last["batch"].items()}
            self._last_batch = batch, Moment(*last["moment"])
        self._skipped, self._not_finite_in_a_row = saved["skipped"], saved["not_finite_in_a_row"]
        self._seconds, self.step = saved["seconds"], saved["step"]

    def _stateful_observers(self) -> dict[str, Stateful]:
        """By their place among the declared ones, those that were dropped included."""
        declared: Sequence[object] = self._declared_observers
        return {str(i): observer for i, observer in enumerate(declared) if isinstance(observer, Stateful)}

    def _declare(self, phase: CompiledPhase, step: int, sources: Iterable[str], fresh: Sequence[str]) -> None:
        """Build the declared state of a phase from nothing, with what follows time as the last step before `step` left it."""
        state, t = phase.state, self.schedule.clock.t(max(step - 1, 0))
        assert state is not None
        self.objective.enter(state.task)
        parked = {name: part for name, part in self._sources_around(phase).items() if name in sources}
        self.data.enter(attrs.evolve(state.data, sources={**parked, **state.data.sources}), lookahead=self.objective.lookahead)
        self.data.enter(state.data, lookahead=self.objective.lookahead)
        self.model.enter(state.model, step=phase.start, blocks=phase.blocks, gate=phase.gate, restoring=True)
        self.placement.wrap(self.model.model)
        self.optimizer.enter(state.optimizer, dict(self.model.model.named_parameters()), t, enter=phase.enter, fresh=fresh)
        self.model.train()
        self._apply_values(t)
        self._entered_phase = phase

    def _sources_around(self, phase: CompiledPhase) -> dict[str, Part]:
        """Every source of the run as declared when it was read last before the end of a phase; later ones as when first read."""
        phases = self.schedule.phases
        nearest = (*reversed(phases[phase.index + 1 :]), *phases[: phase.index + 1])
        return {name: part for each in nearest if each.state is not None for name, part in each.state.data.sources.items()}

    def _load_reference(self, saved: Mapping[str, Any] | None) -> None:
        if saved is None:
            return
        phase = self.schedule.phases[saved["phase"]]
        if phase.state is None:
            reference: nn.Module = deepcopy(self.model.model)
        else:
            reference = self.model.another(phase, self.schedule.clock.t(phase.start))
        if differences := load_named_tensors(reference, saved["model"]):
            raise UserError("the saved reference is not the declared model's:\n  " + "\n  ".join(differences))
        self.objective.hold_reference(reference)
        self._reference_phase = phase.index

    def _load(self, saved: Mapping[str, Any]) -> None:
        """Hand each owner its part; what does not fit is told at once."""
        observers = self._stateful_observers()
        faults: list[UserError] = []
        if strange := sorted(saved["optimizer"]["parameters"].keys() - saved["model"].keys()):
            faults.append(UserError(f"optimizer state is saved for parameters that the model does not have: {', '.join(strange)}"))
        if saved["observers"].keys() != observers.keys():
            faults.append(UserError(f"observers with state are saved as {sorted(saved['observers'])}, declared are {sorted(observers)}"))
        for owner, name in ((self.model, "model"), (self.optimizer, "optimizer"), (self.data, "data"), (self.objective, "task")):
            try:
                owner.load_state_dict(saved[name])
            except UserError as error:
                faults.append(error)
        if faults:
            raise faults[0] if len(faults) == 1 else UserError("\n".join(map(str, faults)))
        for key, observer in observers.items():
            observer.load_state_dict(saved["observers"][key])

    def train(self) -> Iterator[Event]:
        """Run every step that is left, yielding each event as it happens; declared observers hear it first.

        Raises:
            TrainingHalted: too many steps in a row were not finite.
        """
        walk = self._walk()
        self._walks[:] = [ref(walk)]
        for event in walk:
            if self._observers:
                for observer in tuple(self._observers):
                    self._tell(observer, event)
            yield event

    def _tell(self, observer: Observer, event: Event) -> None:
        """An observer that raises is dropped with a warning, and the run goes on."""
        try:
            observer(event)
        except Exception as error:
            self._observers.remove(observer)
            told = f"observer {observer!r} raised {type(error).__name__}: {error}; it is dropped and the run goes on"
            warn(told, RuntimeWarning, stacklevel=3)

    def _walk(self) -> Generator[Event, None, None]:
        try:
            yield from self._phases()
        finally:
            self.data.end()

    def _phases(self) -> Iterator[Event]:
        where = str(self.placement.device), self.placement.precision
        yield RunStarted(self.schedule.steps, *where, self._bridges, self.step, self._providers)
        for phase in self.schedule:
            if phase.stop <= self.step:
                continue
            if phase.start == self.step:
                yield from self._cross(phase)
            yield from self._steps(phase)
        self._reach(self.schedule.steps)
        yield from self._evaluate(self.schedule.steps, self.schedule.phases[-1].name, "exit")
        yield RunFinished(self.step, self.schedule.clock.tokens(self.step), self._seconds, self._skipped, self.data.ledger())

    def _cross(self, phase: CompiledPhase) -> Iterator[Event]:
        """One boundary: leave the phase before, carry the planes over, enter the next."""
        if phase.index:
            self._reach(phase.start)
            yield from self._evaluate(phase.start, self.schedule.phases[phase.index - 1].name, "exit")
        before = self._judged() if self._is_probed(phase) else None
        started = perf_counter()
        model, moments = self._enter(phase)
        self.placement.synchronize()
        seconds = perf_counter() - started
        self._seconds += seconds
        verdict = compare(before, self._judged()) if before is not None else None
        yield self._entered(phase, model, moments, verdict, seconds)
        yield from self._evaluate(phase.start, phase.name, "entry")

    def _reach(self, boundary: int) -> None:
        """Put in force what the model follows at the end of a phase, which lies after its last step: a gate stands open there."""
        self.model.apply_values(self.schedule.clock.t(boundary))

    def _is_probed(self, phase: CompiledPhase) -> bool:
        """Whether the boundary changes what the model computes, between models that both take the last batch and one task."""
        if not self._probe or self._last_batch is None or phase.state is None or phase.transition is None:
            return False
        return self._keeps_task(phase) and phase.transition.touches_function

    def _keeps_task(self, phase: CompiledPhase) -> bool:
        last = self.schedule.phases[phase.index - 1].state if phase.index else None
        return last is not None and phase.state is not None and last.task.structure == phase.state.task.structure

    def _judged(self) -> Judged:
        assert self._last_batch is not None  # `_is_probed` has seen it
        batch, moment = self._last_batch
        with self.optimizer.evaluating():
            return judge(batch, self.model.model, self.objective, self.placement, moment, self._seed)

    def _enter(self, phase: CompiledPhase) -> tuple[ModelReceipt, MomentsReceipt]:
        state, t = phase.state, self.schedule.clock.t(phase.start)
        self._entered_phase = phase
        if state is None:
            self._take_reference(phase)
            return ModelReceipt(adopted={name: name for name in self.model.trainable()}), MomentsReceipt()
        self.objective.enter(state.task)
        self.data.enter(state.data, lookahead=self.objective.lookahead)
        growth = self._grow(phase.enter.growth) if self._grow is not None and phase.enter.growth is not None else None
        self.optimizer.leave(state.optimizer)
        receipt = self.model.enter(
            state.model,
            step=phase.start,
            blocks=phase.blocks,
            growth=growth,
            gate=phase.gate,
            enter=phase.enter,
            settle=self.optimizer.settle,
        )
        self.model.apply_values(t)
        parameters = dict(self.model.model.named_parameters())
        moments = self.optimizer.enter(state.optimizer, parameters, t, receipt=receipt if phase.index else None, enter=phase.enter)
        self._take_reference(phase)
        self.placement.wrap(self.model.model)
        self.model.train()
        self._apply_values(t)
        return receipt, moments

    def _take_reference(self, phase: CompiledPhase) -> None:
        due = self.objective.task.get_spec().reference is not None and not self._keeps_task(phase)
        with self.optimizer.evaluating() if due else nullcontext():
            taken = self.objective.take_reference(self.model.model)
        if taken:
            self._reference_phase = phase.index

    def _entered(
        self, phase: CompiledPhase, model: ModelReceipt, moments: MomentsReceipt, verdict: Verdict | None, seconds: float
    ) -> PhaseEntered:
        parameters = list(self.model.model.parameters())
        return PhaseEntered(
            step=phase.start,
            phase=phase.name,
            phase_index=phase.index,
            parameters=sum(p.numel() for p in parameters),
            trainable=sum(p.numel() for p in parameters if p.requires_grad),
            adopted=len(model.adopted),
            copied=len(model.copied),
            fresh=len(model.fresh),
            dropped=len(model.dropped),
            merged=len(model.merged),
            moments_kept=moments.kept,
            moments_copied=moments.copied,
            moments_dropped=moments.dropped,
            probe_loss_before=verdict.loss_before if verdict is not None else None,
            probe_loss_after=verdict.loss_after if verdict is not None else None,
            probe_change=verdict.change if verdict is not None else None,
            seconds=seconds,
        )

    def _steps(self, phase: CompiledPhase) -> Iterator[Event]:
        due = {step for steps in self.schedule.evaluate_at.values() for step in steps} - {phase.start}
        moving = phase.state is not None
        if self._probe and phase.stop < self.schedule.steps:
            self._probed_step = phase.stop - 1
        self.data.open(self.schedule.moments(phase, self.step))
        for moment, tokens in self.schedule.walk(phase, self.step):
            started = perf_counter()
            if moving:
                self._apply_values(moment.t)
            if moment.step in due:
                yield from self._evaluate(moment.step, phase.name, "cadence")
                started = perf_counter()
            loss, norm = self._train_step(moment)
            finite = isfinite(loss) and isfinite(norm)
            self._not_finite_in_a_row = 0 if finite else self._not_finite_in_a_row + 1
            self._skipped += not finite
            self.step += 1
            seconds = perf_counter() - started
            self._seconds += seconds
            done = StepDone(moment.step, phase.name, loss, norm, self.optimizer.lr, tokens, seconds, not finite)
            if self.optimizer.reaction is not None and finite:
                yield from self._react(moment.step, phase.name, {"train.loss": loss})  # before the state of this step may be saved
            yield done
            if self._not_finite_in_a_row >= self._halt_after:
                self._halt(moment)

    def _apply_values(self, t: float) -> None:
        self.objective.apply_values(t)
        self.model.apply_values(t)
        self.optimizer.apply_values(t)

    def _train_step(self, moment: Moment) -> tuple[float, float]:
        """Forward, backward and, when everything is finite, the update. Returns mean loss and gradient norm."""
        self._seed_streams(moment.step)
        batches = self.data.batches(moment)
        if moment.step == self._probed_step:
            self._last_batch = {name: tensor.clone() for name, tensor in batches[-1].items()}, moment
        loss = self._backward(batches, moment)
        parameters = self.optimizer.parameters
        norm = gradient_norm(parameters)
        if isfinite(loss) and isfinite(norm):
            if self.optimizer.clip is not None and norm > self.optimizer.clip:
                _scale_gradients(parameters, self.optimizer.clip / norm)
            self.optimizer.step(moment.t)
        for parameter in parameters:
            parameter.grad = None
        return loss, norm

    def _backward(self, batches: Sequence[Batch], moment: Moment) -> float:
        """Gradients of the mean over all targets of the step, exact under accumulation because sums and weights are kept apart."""
        if len(batches) == 1:
            total, weight = self._forward(batches[0], moment)
            torch.autograd.backward(total, self._share(total, weight))
            return _ratio(total.item(), float(weight))
        totals = weights = 0.0
        for batch in batches:
            total, weight = self._forward(batch, moment)
            torch.autograd.backward(total)
            totals, weights = totals + total.item(), weights + float(weight)
        _scale_gradients(self.optimizer.parameters, _ratio(1.0, weights))
        return _ratio(totals, weights)

    def _share(self, total: torch.Tensor, weight: torch.Tensor | float) -> torch.Tensor:
        """1 / weight as the gradient of the sum: the gradient of the mean without a division in the graph."""
        if isinstance(weight, torch.Tensor):
            return torch.ones_like(total) / weight
        share = self._last_share
        if share is None or share[0] != weight or share[1].dtype != total.dtype:
            share = self._last_share = (weight, torch.full_like(total, _ratio(1.0, weight), requires_grad=False))
        return share[1]

    def _forward(self, batch: Batch, moment: Moment) -> tuple[torch.Tensor, torch.Tensor | float]:
        task = self.objective.task
        prepared = task.prepare(batch, moment, self._generator)
        with self.placement.forward_context():
            result = self.objective.loss(self.model.model, prepared)
        if self._checked_task is not task:
            check_loss(task, result)
            self._checked_task = task
        return result[0], result[1]

    def _seed_streams(self, step: int) -> None:
        self._generator.manual_seed(step_seed(self._task_key, step))
        seed = step_seed(self._model_key, step)
        seed_others(seed)
        for generator in self._generators:
            generator.manual_seed(seed)

    def _halt(self, moment: Moment) -> NoReturn:
        raise TrainingHalted(
            f"loss or gradient was not finite {self._not_finite_in_a_row} steps in a row, last at step {moment.step} in phase "
            f"'{moment.phase}': these steps changed nothing; lower the learning rate, clip gradients, or look at the data there"
        )

    def _evaluate(self, step: int, phase: str, at: str) -> Iterator[Event]:
        for name, evaluation in self.evaluations.items():
            if step not in self.schedule.evaluate_at.get(name, ()):
                continue
            started = perf_counter()
            with self.optimizer.evaluating(evaluation.weights):
                metrics = evaluation.run(self.model.model, self.objective, self.placement, self.schedule.at(step=step))
            yield Evaluated(step, phase, name, at, metrics, perf_counter() - started)
            if at != "entry":  # the same instant as the exit before it, seen by a model that has not trained since
                yield from self._react(step, phase, {f"{name}.{metric}": value for metric, value in metrics.items()})

    def _react(self, step: int, phase: str, metrics: Mapping[str, float]) -> Iterator[Event]:
        """Show the declared reaction what was measured; what it does is an event."""
        done = self.optimizer.watch(step, metrics)
        if done is not None and self.optimizer.reaction is not None:
            before, why = done
            yield Reacted(step, phase, before, self.optimizer.reaction.factor, why)


def _close(walks: Sequence[ref[Generator[Event, None, None]]]) -> None:
    """End a walk that was left half-walked, before the interpreter takes its modules apart."""
    for each in walks:
        if (walk := each()) is not None:
            walk.close()


def _ratio(total: float, weight: float) -> float:
    """A mean; not finite when a step has no target, so that the step is skipped and counted."""
    return total / weight if weight else nan


def gradient_norm(parameters: Sequence[nn.Parameter]) -> float:
    """Global L2 norm of the gradients; not finite when any of them is not.

    Raises:
        UserError: no parameter has a gradient: the loss does not depend on anything trainable.
    """
    gradients = [gradient for p in parameters if (gradient := p.grad) is not None]
    if not gradients:
        raise UserError(
            "no trainable parameter has a gradient: the loss does not depend on what is trained; thaw something that it passes through"
        )
    norms = torch._foreach_norm(gradients)
    if gradients[0].is_cpu:  # reading one by one is cheaper than a kernel that stacks them; a device would wait at each
        return hypot(*[norm.item() for norm in norms])
    return hypot(*torch.stack(norms).tolist())


def _scale_gradients(parameters: Sequence[nn.Parameter], factor: float) -> None:
    torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], factor)
