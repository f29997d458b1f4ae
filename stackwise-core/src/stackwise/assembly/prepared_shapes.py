"""Fields, shapes and dtypes of a prepared batch, found by letting the task prepare a dummy one.

So a source whose fields the task cannot use, or rows that get longer or shorter than `seq_len`, are found before the run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from stackwise.assembly.workshop import Workshop
from stackwise.contracts.answers import WrongAnswer, calling, expect
from stackwise.contracts.components import Built
from stackwise.contracts.protocols import PreparesEvaluations
from stackwise.contracts.specs import BatchSpec, TaskSpec, TensorSpec
from stackwise.curriculum.schedule import CompiledPhase
from stackwise.errors import ConfigError, DataError, ProviderError, UserError
from stackwise.host.registry import blaming
from stackwise.plan import Plan
from stackwise.plan.junctions.join import Joined

Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Field → shape and dtype."""

MOST_ENTRIES = 2**22
"""Entries that a field of the dummy batch may have; a larger batch gets the shapes that the spec declares."""

LARGE_BATCH = 2**25
"""The same limit where the batch itself is wanted, not only its shapes."""


def prepared_shapes(
    plan: Plan, phase: CompiledPhase, shop: Workshop, *, rows: int | None, length: int | None, questions: list[Shapes] | None = None
) -> Shapes | None:
    """Shapes and dtypes of the batch fields that embedding, rack and head take.

    Args:
        plan: of the phase.
        phase: one with a declared state.
        shop: builds the task.
        rows: of the micro-batch.
        length: seq_len.
        questions: takes the shapes of every batch that a task with `uses_model` asks the model about.

    Returns:
        Those of the prepared batch, or of the task's spec where the task is a finished object, a source does not state its fields, the
        batch is large, or the task rejects the dummy values; None where a size is unknown.

    Raises:
        ConfigError: the task refuses the batch.
        ProviderError: the task cannot prepare a batch of its own spec, or returns none of the fields it declares for the model.
    """
    joined = plan.joined[phase.index]
    task = joined.drafts.task.spec
    assert isinstance(task, TaskSpec)  # a task without a spec is not priced
    offered = {name: spec for name, spec in task.inputs.items() if name not in task.optional or name in joined.optional}
    sizes = {dim: size for (role, dim), size in joined.sizes.items() if role == "task"}
    declared = _shapes(offered, {**sizes, "batch": rows, "time": length, "source": length})
    delivered, inputs = _delivered(joined, task, rows, length)
    if declared is None or delivered is None or not _can_try(joined, delivered):
        return declared
    batch = {name: _empty(inputs[name], *delivered[name]) for name in inputs}
    try:
        prepared = _prepare(plan, phase, shop, batch, model=Asked(task, sizes, questions) if task.uses_model else None)
    except DataError:  # the task rejects the dummy values
        return declared
    shapes = {name: (tuple(prepared[name].shape), prepared[name].dtype) for name in offered if name in prepared}
    if not shapes:
        declares, gives = ", ".join(sorted(offered)), ", ".join(sorted(prepared)) or "nothing"
        raise ProviderError(f"{joined.drafts.task.label} declares {declares} for the model, and its prepare gives {gives}")
    return shapes


def prepared_batch(
    plan: Plan,
    phase: CompiledPhase,
    shop: Workshop,
    *,
    rows: int | None,
    length: int | None,
    evaluates: bool = False,
    questions: list[Shapes] | None = None,
) -> Mapping[str, torch.Tensor] | None:
    """A dummy batch as the task prepares it, all of its fields included; None where a size is unknown or the task rejects the values.

    Args:
        plan: of the phase.
        phase: one with a declared state.
        shop: builds the task.
        rows: of the micro-batch.
        length: seq_len.
        evaluates: whether it is prepared for an evaluation, which some tasks do otherwise.
        questions: takes the shapes of every batch that a task with `uses_model` asks the model about.

    Raises:
        ConfigError: the task refuses the batch.
    """
    joined = plan.joined[phase.index]
    task = joined.drafts.task.spec
    if not isinstance(task, TaskSpec):
        return None
    delivered, inputs = _delivered(joined, task, rows, length)
    if delivered is None or not _can_try(joined, delivered, LARGE_BATCH):
        return None
    batch = {name: _empty(inputs[name], *delivered[name]) for name in inputs}
    sizes = {dim: size for (role, dim), size in joined.sizes.items() if role == "task"}
    try:
        return _prepare(plan, phase, shop, batch, model=Asked(task, sizes, questions) if task.uses_model else None, evaluates=evaluates)
    except DataError:  # the task rejects the dummy values
        return None


def _delivered(joined: Joined, task: TaskSpec, rows: int | None, length: int | None) -> tuple[Shapes | None, dict[str, TensorSpec]]:
    """The shapes of what the sources deliver, None where a size is unknown, and the specs."""
    sizes = {dim: size for (role, dim), size in joined.sizes.items() if role == "task"}
    inputs = {**task.batch, **{name: spec for name, spec in task.optional.items() if name in joined.optional}}
    return _shapes(inputs, {**sizes, "batch": rows, "time": None if length is None else length + task.lookahead}), inputs


class Asked:
    """Stands in for the model where none is built: its outputs are zero, and it notes what it is asked.

    Args:
        task: names the outputs.
        sizes: of its dimensions.
        questions: takes the shapes of every batch.
    """

    def __init__(self, task: TaskSpec, sizes: Mapping[str, int], questions: list[Shapes] | None) -> None:
        self._task, self._sizes, self._questions = task, sizes, questions

    def __call__(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        known: dict[str, int | None] = {**self._sizes}
        for name, spec in self._task.inputs.items():
            if name in batch:
                known |= {dim: size for dim, size in zip(spec.dims, batch[name].shape, strict=False) if dim in ("batch", "time")}
        if self._questions is not None:
            asked = {name: tensor for name, tensor in batch.items() if name in self._task.inputs}
            self._questions.append({name: (tuple(tensor.shape), tensor.dtype) for name, tensor in asked.items()})
        shapes = _shapes(self._task.outputs, known)
        if shapes is None:
            raise DataError("the sizes of the model's outputs are not known before it is built")
        return {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}


def draws_inputs(
    plan: Plan, phase: CompiledPhase, shop: Workshop, *, rows: int | None, length: int | None, fields: Collection[str]
) -> bool:
    """Whether the task makes other inputs of the same rows at another step; False where it cannot be tried.

    Args:
        plan: of the phase.
        phase: one with a declared state.
        shop: builds the task.
        rows: of the micro-batch.
        length: seq_len.
        fields: that embedding and rack read.
    """
    joined = plan.joined[phase.index]
    task = joined.drafts.task.spec
    assert isinstance(task, TaskSpec)  # a task without a spec is not priced
    delivered, inputs = _delivered(joined, task, rows, length)
    if task.uses_model:
        return True
    if delivered is None or not _can_try(joined, delivered):
        return False
    made = []
    for seed in range(2):
        batch = {name: _empty(inputs[name], *delivered[name]) for name in inputs}
        try:
            made.append(_prepare(plan, phase, shop, batch, seed=seed))
        except DataError:  # the task rejects the dummy values
            return False
    return any(name in made[0] and not torch.equal(made[0][name], made[1][name]) for name in fields)


def _prepare(
    plan: Plan,
    phase: CompiledPhase,
    shop: Workshop,
    batch: dict[str, torch.Tensor],
    *,
    seed: int = 0,
    model: Asked | None = None,
    evaluates: bool = False,
) -> Mapping[str, torch.Tensor]:
    assert phase.state is not None  # a plan's phases are declared
    drafts, moment = plan.joined[phase.index].drafts, plan.schedule.at(step=phase.start)
    try:
        with torch.random.fork_rng(devices=[]), blaming(plan.providers):
            task = shop.task(phase.state.task)
            asked = {} if model is None else {"model": model}
            make = task.prepare_evaluation if evaluates and isinstance(task, PreparesEvaluations) else task.prepare
            with calling(phase.state.task.id, "prepare"):
                drawn = torch.Generator().manual_seed(seed)
                prepared: Mapping[str, torch.Tensor] = make(batch, moment, drawn, **asked)
                expect(isinstance(prepared, Mapping), prepared, "a map of field name to tensor")
            return prepared
    except (ConfigError, DataError, WrongAnswer):
        raise
    except UserError as error:
        sources = ", ".join(draft.label for draft in drafts.sources.values())
        message = f"{drafts.task.label} does not work on what {sources} delivers: {error}"
        raise ConfigError([plan.experiment.phases[phase.index].problem("task", message)]) from error


def _can_try(joined: Joined, delivered: Shapes, most: int = MOST_ENTRIES) -> bool:
    """Whether all fields that reach the task are known and small, and the task is built by this plan and no finished object."""
    task, sources = joined.drafts.task, joined.drafts.sources.values()
    finished = task.given is not None and not isinstance(task.given, Built)
    small = all(torch.Size(shape).numel() <= most for shape, _ in delivered.values())
    return not finished and small and all(isinstance(source.spec, BatchSpec) for source in sources)


def _shapes(specs: Mapping[str, TensorSpec], sizes: Mapping[str, int | None]) -> Shapes | None:
    """The shapes of specs; None where a size is unknown."""
    shapes: Shapes = {}
    for name, spec in specs.items():
        shape = [dim if isinstance(dim, int) else sizes.get(dim) for dim in spec.dims]
        if any(size is None for size in shape):
            return None
        shapes[name] = tuple(size for size in shape if size is not None), _dtype(spec)
    return shapes or None


def _dtype(spec: TensorSpec) -> torch.dtype:
    dtypes = {"floating": torch.float32, "integer": torch.int64}
    dtype = dtypes.get(spec.dtype) or getattr(torch, spec.dtype)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _empty(spec: TensorSpec, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A dummy field at its lowest value; a mask is all true."""
    lowest = True if dtype is torch.bool else 0 if spec.bounds is None else spec.bounds[0]
    return torch.full(shape, lowest, dtype=dtype)
