"""The training machine: walks the timeline, trains, evaluates and yields events. It knows no registry, no files and no terminal."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from time import perf_counter, process_time
from typing import Any
from weakref import finalize, ref

import torch
from torch import nn

from stackwise.contracts.events import Evaluated, Event, PhaseEntered, Reacted, RunFinished, RunStarted, Stalled, StepDone, Stopped
from stackwise.contracts.protocols import Batch, Observer, Task
from stackwise.curriculum.schedule import CompiledPhase, PhaseSchedule
from stackwise.errors import DataError, TrainingHalted, UserError
from stackwise.machine.counts import Counts
from stackwise.machine.evaluation import Evaluation
from stackwise.machine.faults import check_surroundings, worker_fault
from stackwise.machine.handed_over import begin, go_on
from stackwise.machine.live import LiveState
from stackwise.machine.observers import Observers
from stackwise.machine.patience import Patience
from stackwise.machine.placement import Placement
from stackwise.machine.probe import Probe, Verdict
from stackwise.machine.settings import Settings
from stackwise.machine.step import Outcome, Step
from stackwise.machine.together import Together
from stackwise.planes.data.plane import DataPlane
from stackwise.planes.data.randomness import seeded
from stackwise.planes.data.sampled_loader import WORKER_ERRORS
from stackwise.planes.model.plane import ModelPlane
from stackwise.planes.model.transfer import ModelReceipt
from stackwise.planes.objective import Objective
from stackwise.planes.optimizer.moments import MomentsReceipt
from stackwise.planes.optimizer.plane import OptimizerPlane
from stackwise.processes.reduction import Reduction
from stackwise.timeline.duration import Moment
from stackwise.timeline.spent import Spent
from stackwise.timeline.streams import step_seed, stream_key

MOST_WITHOUT_TARGETS = 100
"""Steps in a row without a target before training halts, as the data must be wrong."""


class TrainingMachine:
    """Trains along a compiled schedule.

    Args:
        model: a model plane, or a finished `nn.Module` from batch to outputs (`Model(embedding, rack, head)`).
        data: a data plane, a loader, or an iterable of batches.
        task: an objective, or a finished task.
        optimizer: an optimizer plane, or a finished `torch.optim.Optimizer` over the model's trainable parameters.
        schedule: the compiled timeline.
        evaluations: named evaluations; the schedule says when they run.
        observers: called with every event.
        settings: seed, device, precision and more, each with a default.

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
        observers: Observers | Sequence[Observer] = (),
        settings: Settings | None = None,
    ) -> None:
        self.schedule, self.settings = schedule, settings or Settings()
        live = partial(LiveState, schedule, self.settings)
        self.live = live(model=model, data=data, task=task, optimizer=optimizer, observers=observers)
        self.evaluations = {evaluation.name: evaluation for evaluation in evaluations}
        ranks = self.settings.ranks
        self.reduction = None if ranks is None else Reduction(ranks)
        """Adds over the processes of the run; None where there is one."""
        self._together = None if ranks is None else Together(ranks, self.live)
        self._step = Step(self.live, self.settings.seed, self.reduction)
        self._probe = Probe(self.live, self.settings.seed, self.settings.probe)
        self.step = 0
        """The next step to run."""
        self.spent: Spent | None = None
        """Says what the steps so far have cost, where somebody has priced them."""
        self._counts, self._patience, self._stall = Counts(), Patience(self.settings.stop), Patience(key="stall")
        self._begun = False
        self._walks: list[ref[Generator[Event, None, None]]] = []
        finalize(self, _close, self._walks)

    @property
    def placement(self) -> Placement:
        """Device and precision."""
        return self.settings.placement

    @property
    def model(self) -> ModelPlane:
        """The model plane."""
        return self.live.model

    @property
    def data(self) -> DataPlane:
        """The data plane."""
        return self.live.data

    @property
    def objective(self) -> Objective:
        """The task in force."""
        return self.live.objective

    @property
    def optimizer(self) -> OptimizerPlane:
        """The optimizer plane."""
        return self.live.optimizer

    @property
    def observers(self) -> Observers:
        """Everything that gets the events."""
        return self.live.observers

    # -- saved states ---------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that training goes on from, as `restore` takes it.

        Call it after a yielded `StepDone`, or an evaluation right after that, before the next boundary.

        Returns:
            Nested dicts and lists of tensors, texts and numbers (`model` by parameter, `optimizer.parameters` by parameter and entry, …);
            live tensors, no copies.

        Raises:
            UserError: before the first step of a declared model.
        """
        phase = self.schedule.phase_at(max(self.step - 1, 0))
        if phase.state is not None and self.live.phase is not phase:
            raise UserError(f"there is no state of step {self.step} to save: ask for it after a step and before the next boundary")
        return {
            "step": self.step,
            "phase": phase.name,
            "seed": self.settings.seed,
            **self._counts.as_map(),
            **self._patience.state(),
            **self._stall.state(),
            **self.live.state(),
            "last_batch": self._probe.state(self.step),
            "draws": self._step.draws.state_dict(),
        }

    def restore(self, saved: Mapping[str, Any], *, positions: Mapping[str, Any] | None = None) -> None:
        """Load what `state` returned into a new machine of the same declaration.

        The declared state of that step is built directly, without walking the phases before it, and loaded by name.

        Args:
            saved: as `state` returned it. What is still to come may be declared otherwise; what weights, moments and read positions belong
                to may not.
            positions: a data plane's state to read on from, in place of the saved one.

        Raises:
            UserError: the saved state is of another declaration; every difference is listed.
            DataError: the saved read positions are of other sources.
        """
        seed = self.settings.seed
        if self._begun or self.live.phase is not None:
            raise UserError("this machine has trained already: assemble a new one to restore a state into")
        if saved["seed"] != seed:
            raise UserError(f"the saved state is of seed {saved['seed']}, this machine has seed {seed}: its streams are others")
        if saved["step"] > self.schedule.steps:
            raise UserError(f"the saved state is that before step {saved['step']}, and this run has {self.schedule.steps} steps")
        if positions is not None:
            saved = {**saved, "data": {**positions, "transforms": saved["data"]["transforms"]}}
        if "draws" not in saved:
            raise UserError(
                "the saved state does not say where training stood in numpy's and Python's generators ('draws'), as a version before this "
                "one saved it: go on with that version, or begin a new run"
            )
        begin(self.live, self.schedule)  # with what the finished objects hold before they are filled
        self.live.restore(saved, saved["step"])
        self._probe.load_state(saved["last_batch"], self.schedule.at(step=max(saved["step"] - 1, 0)))
        self._step.draws.load_state_dict(saved["draws"])
        self._counts, self.step = Counts.of(saved), saved["step"]
        self._patience.load(saved)
        self._stall = self._stall_of(self.schedule.phase_at(max(self.step - 1, 0)).name)
        self._stall.load(saved)

    # -- training -------------------------------------------------------------------------------------------------

    def train(self) -> Generator[Event, None, None]:
        """Run every step that is left, yielding each event as it happens; observers get it first.

        Raises:
            TrainingHalted: too many steps in a row were not finite.
            DataError: too many steps in a row had no target.
        """
        walk = self._walk()
        self._walks[:] = [ref(walk)]
        for event in walk:
            self.live.observers.tell(event)
            yield event

    def _walk(self) -> Generator[Event, None, None]:
        try:
            yield from self._phases()
        except WORKER_ERRORS as error:
            sources = [name for name, loader in self.live.data.brought().items() if loader.workers]
            if not sources or (fault := worker_fault(error, sources)) is None:
                raise
            raise fault from error
        finally:
            self.live.data.end()

    def _phases(self) -> Iterator[Event]:
        settings = self.settings
        check_surroundings(self.placement.device.type)
        yield RunStarted(
            steps=self.schedule.steps,
            device=str(self.placement.device),
            precision=self.placement.precision,
            bridges=tuple(settings.bridges),
            step=self.step,
            providers=tuple(settings.providers),
            notes=tuple(go_on(self.live) if self.step else begin(self.live, self.schedule)),
        )
        for phase in self.schedule:
            if phase.stop <= self.step:
                continue
            if phase.start == self.step:
                yield from self._cross(phase)
            if self._why is None and self._stall.why is None:
                yield from self._steps(phase)
            if (why := self._why) is not None:
                yield Stopped(self.step, self.schedule.phase_at(max(self.step - 1, 0)).name, why)
                break
            if (why := self._stall.why) is not None and self.step < phase.stop:
                yield Stalled(self.step, phase.name, why)
                return
        else:
            self.live.reach(self.schedule.steps)
            yield from self._evaluate(self.schedule.steps, self.schedule.phases[-1].name, "exit")
        counts, tokens = self._counts, self.schedule.clock.tokens(self.step)
        if counts.without_targets == self.step:
            raise DataError(f"none of the {self.step} steps had a target: look at what the task predicts in these data")
        yield RunFinished(self.step, tokens, counts.seconds, counts.skipped, self.data.ledger(), counts.without_targets, counts.cpu_seconds)

    def _cross(self, phase: CompiledPhase) -> Iterator[Event]:
        """Cross one boundary: evaluate and probe the old phase, carry the planes over, probe and evaluate the new one."""
        if phase.index:
            self.live.reach(phase.start)
            yield from self._evaluate(phase.start, self.schedule.phases[phase.index - 1].name, "exit")
            if self._why is not None:
                return
        self._patience.enter_phase()
        self._stall = self._stall_of(phase.name)
        before = self._probe.before(phase)
        start, cpu_start = perf_counter(), process_time()
        with nullcontext() if self._together is None else self._together.crossing(phase):
            model, moments = self.live.enter(phase)
            self.placement.synchronize()
            if self._together is not None:
                self._together.enter(phase, model, moments)
        seconds = perf_counter() - start
        self._counts.seconds += seconds
        self._counts.cpu_seconds += process_time() - cpu_start
        yield self._entry_event(phase, model, moments, self._probe.after(before), seconds)
        yield from self._evaluate(phase.start, phase.name, "entry")

    def _entry_event(self, phase: CompiledPhase, model: ModelReceipt, moments: MomentsReceipt, verdict: Verdict, seconds: float) -> Event:
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
            probe_loss_before=verdict.loss_before,
            probe_loss_after=verdict.loss_after,
            probe_change=verdict.change,
            seconds=seconds,
            notes=self.live.hook_notes(),
        )

    def _steps(self, phase: CompiledPhase) -> Iterator[Event]:
        due = {step for steps in self.schedule.evaluate_at.values() for step in steps} - {phase.start}
        live, counts = self.live, self._counts
        self._probe.look_out(phase, self.schedule.steps)
        self._step.get_ready()
        if self._together is not None:
            self._together.begin(phase)
        live.data.open(self.schedule.moments(phase, self.step))
        if phase.state is not None:
            live.apply_values(self.schedule.clock.t(self.step))
        moving = live.moving()
        for moment, tokens in self.schedule.walk(phase, self.step):
            start, cpu_start = perf_counter(), process_time()
            for apply_values in moving:
                apply_values(moment.t)
            if moment.step in due:
                yield from self._evaluate(moment.step, phase.name, "cadence")
                if self._why is not None or self._stall.why is not None:
                    return
                start, cpu_start = perf_counter(), process_time()
            outcome = self._train_step(moment)
            self.step += 1
            seconds = perf_counter() - start
            counts.add(outcome, seconds, process_time() - cpu_start)
            loss, norm, why, metrics = outcome
            if live.optimizer.reaction is not None and not why:
                yield from self._react(moment.step, phase.name, {"train.loss": loss})  # before this step's state can be saved
            lr, rates = self._step.rates()
            yield StepDone(moment.step, phase.name, loss, norm, lr, tokens, seconds, why != "", why, metrics, rates, self._spent())
            if why:
                self._check_progress(moment)

    def _spent(self) -> float:
        return 0.0 if self.spent is None else self.spent.before(self.step)

    def _train_step(self, moment: Moment) -> Outcome:
        self._begun = True
        self._step.seed(moment.step)
        with self._step.draws:
            batches = self.live.data.batches(moment)
            if moment.step == self._probe.step:
                self._probe.keep(batches[-1] if self._together is None else self._together.last_batch(batches, moment), moment)
            outcome = self._step.run(batches, moment)
        if self._together is not None:
            self._together.after_step(moment, drew=self._step.draws.has_drawn())
        return outcome

    def _check_progress(self, moment: Moment) -> None:
        """Halt when too many steps in a row have changed nothing."""
        counts, where = self._counts, f"last at step {moment.step} in phase '{moment.phase}'"
        if counts.without_targets_in_a_row >= MOST_WITHOUT_TARGETS:
            raise DataError(
                f"{counts.without_targets_in_a_row} steps in a row had no target, {where}: look at what the task predicts in these data, "
                "or take larger batches"
            )
        if counts.not_finite_in_a_row >= self.settings.halt_after:
            raise TrainingHalted(
                f"loss or gradient was not finite {counts.not_finite_in_a_row} steps in a row, {where}: these steps changed nothing; "
                "lower the learning rate, clip gradients, or look at the data there"
            )

    # -- evaluations and reactions --------------------------------------------------------------------------------

    def _evaluate(self, step: int, phase: str, at: str) -> Iterator[Event]:
        for name, evaluation in self.evaluations.items():
            if step not in self.schedule.evaluate_at.get(name, ()):
                continue
            start = perf_counter()
            with self.optimizer.evaluating(evaluation.weights):
                moment, progress = self.schedule.at(step=step), self.observers.evaluating
                ranks, divided = self.settings.ranks, self.settings.sharding is not None
                metrics = evaluation.run(self.model.model, self.objective, self.placement, moment, progress, ranks, divided=divided)
                self.live.rest()
            yield Evaluated(step, phase, name, at, metrics, perf_counter() - start)
            if at != "entry":  # the model has not trained since the exit evaluation
                named = {f"{name}.{metric}": value for metric, value in metrics.items()}
                for count in (self._patience, self._stall):
                    count.watch(step, named)
                yield from self._react(step, phase, named)

    @property
    def _why(self) -> str | None:
        """Why the run ends before its horizon, by `run.stop` or by its reaction; None while it goes on."""
        return self._patience.why or self.optimizer.stops

    def _stall_of(self, phase: str) -> Patience:
        """A new count for a phase."""
        return Patience(self.settings.stalls.get(phase), "stall")

    def _react(self, step: int, phase: str, metrics: Mapping[str, float]) -> Iterator[Event]:
        """Pass metrics to the declared reaction and report what it did."""
        if self.optimizer.reaction is None:
            return
        with seeded(step_seed(stream_key(self.settings.seed, "reaction", *metrics), step)):
            answer = self.optimizer.watch(step, metrics)
        if answer is not None:
            before, why = answer
            yield Reacted(step, phase, before, self.optimizer.reaction.factor, why)


def _close(walks: Sequence[ref[Generator[Event, None, None]]]) -> None:
    """Close an unfinished walk before the interpreter shuts down."""
    for each in walks:
        if (walk := each()) is not None:
            walk.close()
