"""Memory of a phase: one training step of it and its evaluations, run on tensors without numbers, every storage counted.

What is counted: weights, gradients, what the optimizer keeps, masters, averages and a reference; what autograd keeps for the backward
pass, and every tensor that comes and goes. What is not: what the process holds before it trains, what loaders keep of their data, the
workspace inside of kernels, a compiler, and the gaps that an allocator leaves.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import torch
from attrs import Factory, define, evolve, frozen
from torch import nn

from stackwise.assembly.allocations import Allocations
from stackwise.assembly.flops import computation
from stackwise.assembly.prepared_shapes import Shapes, prepared_batch
from stackwise.assembly.references import outline
from stackwise.assembly.workshop import Workshop
from stackwise.contracts.protocols import Batch
from stackwise.curriculum.schedule import CompiledPhase
from stackwise.curriculum.states import BatchShape, TrainingState
from stackwise.errors import UserError
from stackwise.machine.added_losses import AddedGradients, factors
from stackwise.machine.evaluation import gradients_if_asked
from stackwise.machine.placement import Placement
from stackwise.machine.recompute import recompute_blocks
from stackwise.plan import EvaluationPlan, Plan
from stackwise.planes.model.plane import ModelPlane
from stackwise.planes.model.transfer import ModelReceipt
from stackwise.planes.objective import Loaded, Objective
from stackwise.planes.optimizer.groups import selection
from stackwise.planes.optimizer.plane import OptimizerPlane


@frozen(kw_only=True)
class PhaseMemory:
    """Bytes of a phase in one process, on the device it trains on, beyond what the process holds before."""

    weights: int
    """Parameters and buffers."""
    gradients: int
    moments: int
    """What the optimizer keeps, that of frozen parameters which trained before included."""
    copies: int
    """Float32 masters of 16-bit parameters, and averages."""
    reference: int
    """The frozen model that the task compares with."""
    activations: int
    """What autograd holds when the loss of one micro-batch is there."""
    step: int
    """The most at once in a training step."""
    evaluation: int
    """The most at once in an evaluation; 0 where there is none."""
    checkpoint: int
    """The copy of the state that a thread writes, where one does."""

    def beside(self, parked: int) -> PhaseMemory:
        """The same with this many more bytes of moments: those of frozen parameters, which are kept for a phase that thaws them."""
        evaluation = self.evaluation + parked if self.evaluation else 0
        return evolve(self, moments=self.moments + parked, step=self.step + parked, evaluation=evaluation)

    @property
    def held(self) -> int:
        """What stays from step to step, gradients not included."""
        return self.weights + self.moments + self.copies + self.reference

    @property
    def peak(self) -> int:
        """The most at once."""
        return max(self.step, self.evaluation) + self.checkpoint


@define
class MemoryCounts:
    """Memory of the phases in their order; a phase that holds and computes what the one before did is not counted again.

    Args:
        plan: priced.
        shop: of the plan.
    """

    plan: Plan
    shop: Workshop
    _same: object = None
    _last: PhaseMemory | str = ""
    _kept: dict[str, int] = Factory(dict)
    """Parameter → bytes of what its optimizer keeps, those that trained in earlier phases included."""
    _optimizer: str = ""

    def of(self, phase: CompiledPhase, plane: ModelPlane, receipt: ModelReceipt) -> PhaseMemory | str:
        """The memory of a phase, or why nobody can tell.

        Args:
            phase: of the plan.
            plane: holds the model of the phase on the meta device.
            receipt: what crossing into the phase did to its parameters.
        """
        state = phase.state
        assert state is not None  # a plan's phases are declared
        if (same := self._holds(phase, state)) == self._same and not receipt.moved:
            return self._last
        carried = self._carried(receipt) if state.optimizer.part.id == self._optimizer else {}
        self._same, self._optimizer, self._kept = same, state.optimizer.part.id, carried
        try:
            rehearsal = _Rehearsal(self.plan, self.shop, phase, state, plane)
            memory = rehearsal.memory()
        except Unknown as unknown:
            self._last = str(unknown)
        except Exception as error:  # whatever the code of a component does with a tensor that has no numbers
            reason = str(error).strip().partition("\n")[0]
            self._last = f"{type(error).__name__}{f': {reason}' if reason else ''}"
        else:
            trained = rehearsal.kept_by_name()
            self._kept |= trained
            self._last = memory.beside(sum(self._kept.values()) - sum(trained.values()))
        return self._last

    def _holds(self, phase: CompiledPhase, state: TrainingState) -> object:
        """What the memory of a phase depends on."""
        optimizer = state.optimizer
        return (
            computation(self.plan, phase, state),
            optimizer.part.structure,
            selection(optimizer),
            optimizer.ema is None,
            state.reference,
            state.model.precision,
            state.model.frozen_mode,
            max((shape for _, shape in state.data.shapes), key=_size),
        )

    def _carried(self, receipt: ModelReceipt) -> dict[str, int]:
        """What was kept before, under the present names."""
        sources = {**receipt.adopted, **{name: origin.source for name, origin in receipt.copied.items()}}
        return {name: self._kept[source] for name, source in sources.items() if source in self._kept}


class Unknown(Exception):
    """The memory cannot be told; the sentence says why."""


class _Rehearsal:
    """The planes of one phase over tensors without numbers."""

    def __init__(self, plan: Plan, shop: Workshop, phase: CompiledPhase, state: TrainingState, plane: ModelPlane) -> None:
        self._plan, self._shop, self._phase, self._state = plan, shop, phase, state
        run = plan.experiment.run
        try:
            self._placement = Placement(run.device, run.precision)
        except UserError as error:
            raise Unknown(str(error)) from None
        self._allocations = Allocations(self._placement.device)
        self._moment = plan.schedule.at(step=phase.start)
        plane.train()
        self._model: nn.Module = self._allocations.model(plane.model)
        if run.parallel.recompute == "blocks":
            recompute_blocks(self._model)
        self._objective = Objective(shop.task, load=self._outside)
        self._objective.enter(state.task, state.auxiliary, state.reference)
        self._objective.apply_values(self._moment.t)
        self._optimizer = OptimizerPlane(shop.optimizer, shop.reaction)
        self._copies_state = run.checkpoint.asynchronous and self._placement.is_cpu

    def kept_by_name(self) -> dict[str, int]:
        """Trained parameter → bytes of what the optimizer keeps for it."""
        entries = self._optimizer.state_by_name()
        return {name: sum(entry.nbytes for entry in each.values() if isinstance(entry, torch.Tensor)) for name, each in entries.items()}

    def memory(self) -> PhaseMemory:
        """Measure."""
        allocations, optimizer = self._allocations, self._optimizer
        batches, questions = self._batches()
        weights = allocations.live
        with allocations:
            self._optimizer.enter(
                self._state.optimizer, dict(self._model.named_parameters()), self._moment.t, buffers=dict(self._model.named_buffers())
            )
            optimizer.apply_values(self._moment.t)
            copies = allocations.live - weights
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's deepcopy asks tensors without numbers where they lie
                self._objective.take_reference(self._model)
            reference = allocations.live - weights - copies
            self._first_update()
            moments = allocations.live - weights - copies - reference
            for tensor in {id(each): each for batch in batches for each in batch.values()}.values():
                allocations.count(tensor)
            held = allocations.begin()
            self._ask(questions)
            activations = self._train(batches) - held
            step = allocations.peak
            judging = [each for each in self._plan.evaluations if self._plan.schedule.evaluates(each.name, self._phase.index)]
            evaluation = max((self._evaluate(each) for each in judging), default=0)
        return PhaseMemory(
            weights=weights,
            gradients=sum(p.numel() * (p.grad_dtype or p.dtype).itemsize for p in optimizer.parameters),
            moments=moments,
            copies=copies,
            reference=reference,
            activations=activations,
            step=step,
            evaluation=evaluation,
            checkpoint=weights + moments + copies if self._copies_state else 0,
        )

    def _batches(self) -> tuple[list[Batch], list[Shapes]]:
        """The largest micro-batch of the phase, twice where a step has several, and what the task asks the model about."""
        shapes = [shape for _, shape in self._state.data.shapes]
        if any(shape.rows is None for shape in shapes):
            raise Unknown("the rows of a batch are not known before the data are read")
        largest = max(shapes, key=_size)
        questions: list[Shapes] = []
        batch = prepared_batch(
            self._plan, self._phase, self._shop, rows=largest.micro_batches[0], length=largest.seq_len, questions=questions
        )
        if batch is None:
            raise Unknown("the shapes of its batches are not known before the data are read")
        return [batch] * min(2, len(largest.micro_batches)), questions

    def _outside(self, path: str, beside: nn.Module) -> Loaded:
        """A model from outside the run, without its numbers."""
        return Loaded(self._allocations.model(outline(self._plan.registry, path, beside)), "")

    def _first_update(self) -> None:
        """Have the optimizer make what it keeps."""
        parameters = self._optimizer.parameters
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter, dtype=parameter.grad_dtype)
        self._optimizer.step(self._moment.t)
        _clear(parameters)

    def _ask(self, questions: Iterable[Shapes]) -> None:
        """Run the forward passes that the task asks for while it prepares a batch."""
        modes = {module: module.training for module in self._model.modules()}
        for shapes in questions:
            batch = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
            with torch.no_grad(), self._placement.forward_context():
                self._model.eval()(batch)
        for module, mode in modes.items():
            module.training = mode

    def _train(self, batches: Sequence[Batch]) -> int:
        """One step; returns the bytes that live when the loss of a micro-batch is there."""
        parameters = self._optimizer.parameters
        beside, live = AddedGradients(parameters), 0
        for batch in batches:
            with self._placement.forward_context():
                judged = self._objective.loss(self._model, batch)
            live = live or self._allocations.live
            if len(batches) == 1:
                pairs, shares = factors(judged.added, 1.0)
                torch.autograd.backward((judged.total, *pairs), (torch.ones_like(judged.total), *shares))
            else:
                with self._allocations.reading(1.0):
                    beside.take(judged.added, 1.0)
                judged.total.backward()  # type: ignore[no-untyped-call]
            del judged
        beside.give(1.0)
        self._optimizer.step(self._moment.t)
        _clear(parameters)
        return live

    def _evaluate(self, declared: EvaluationPlan) -> int:
        """The peak of one batch of an evaluation."""
        shape = declared.state.shape(0)
        batch = prepared_batch(self._plan, self._phase, self._shop, rows=shape.micro_batches[0], length=shape.seq_len, evaluates=True)
        if batch is None:
            raise Unknown(f"the shapes of the batches of evaluation '{declared.name}' are not known before the data are read")
        self._allocations.begin()
        self._model.eval()
        with gradients_if_asked(batch), self._placement.forward_context():
            self._objective.loss(self._model, batch)
        return self._allocations.peak


def _clear(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _size(shape: BatchShape) -> int:
    return (shape.micro_batches[0] or 0) * (shape.seq_len or 1)
