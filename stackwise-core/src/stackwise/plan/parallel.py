"""What cannot be divided among processes as it is declared, with the way out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from stackwise.config import Experiment, ParallelConfig, PhaseConfig
from stackwise.contracts.specs import OptimizerSpec, TaskSpec
from stackwise.curriculum.states import DataState
from stackwise.errors import Problem
from stackwise.plan.junctions.join import PhaseDrafts
from stackwise.timeline.schedules import Curve

_WHOLE = "or leave run.parallel.shard out, so that each process holds the whole model"


def parallel_problems(experiment: Experiment) -> Iterator[Problem]:
    """What this version cannot do with several processes, whatever they train."""
    parallel = experiment.run.parallel
    if parallel.offload:
        message = (
            "this version moves no parameters or moments between a GPU and the memory of the processor, and on a processor they lie there "
            "already: leave it out, and say run.parallel.shard or run.parallel.recompute for less memory a process"
        )
        yield experiment.problem("run.parallel.offload", message)
    if parallel.tensor > 1:
        message = (
            f"no rack of this version divides its matrix multiplications among processes, so it is 1, not {parallel.tensor}: say "
            f"run.parallel.shard={parallel.tensor}, which divides every parameter by its rows"
        )
        yield experiment.problem("run.parallel.tensor", message)
    if parallel.shard > 1 and experiment.run.compile:
        yield experiment.problem("run.compile", f"compiled blocks of a divided model are not tried in this version: leave it out, {_WHOLE}")
    if parallel.recompute != "nothing" and experiment.run.compile:
        why = "torch cannot compile blocks that are computed again in the backward pass as they are here"
        yield experiment.problem("run.compile", f"{why}: leave it or run.parallel.recompute out")


def division_problems(
    parallel: ParallelConfig, phase: PhaseConfig, drafts: PhaseDrafts, data: DataState, auxiliary: Mapping[str, Curve]
) -> Iterator[Problem]:
    """What a phase declares that processes which each hold a part of the model cannot do.

    Args:
        parallel: says how many parts there are.
        phase: the config.
        drafts: its components.
        data: the micro-batches of its steps.
        auxiliary: weights of the losses that parts of the model add.
    """
    if parallel.shard == 1:
        return
    if phase.model.cache is not None:
        yield phase.problem("model.cache", f"each process would look for other rows, and compute at another time: leave it out, {_WHOLE}")
    if narrow := sorted({dtype for dtype in phase.model.precision.values() if dtype != "float32"}):
        message = f"parts of parameters are not held in {narrow[0]}: say run.precision: bf16, which computes in sixteen bits, {_WHOLE}"
        yield phase.problem("model.precision", message)
    if weighed := [name for name, weight in auxiliary.items() if not (weight.is_constant and weight(0.0) == 0)]:
        why = "gradients of a divided model are added once a step, and those of this loss have a denominator of their own"
        message = f"{why}: weigh it 0, {_WHOLE}"
        yield phase.problem(f"task.auxiliary.{weighed[0]}", message)
    if isinstance(drafts.task.spec, TaskSpec) and drafts.task.spec.uses_model:
        why = "asks the model while it prepares a batch, and all processes would have to ask alike"
        message = f"{drafts.task.label} {why}: take another, {_WHOLE}"
        yield phase.problem("task.use", message)
    if not (isinstance(spec := drafts.optimizer.spec, OptimizerSpec) and spec.steps_parts):
        message = (
            f"{drafts.optimizer.label} does not say that it steps parts of parameters as it steps whole ones: take one that does, {_WHOLE}"
        )
        yield phase.problem("optimizer.use", message)
    count = parallel.shard * (parallel.replicate or 1)
    if odd := next((len(shape.micro_batches) for _, shape in data.shapes if len(shape.micro_batches) % count), None):
        key = "step_tokens" if phase.data.step_tokens is not None else "accumulate"
        yield phase.problem(f"data.{key}", uneven(odd, count))


def uneven(micro_batches: int, processes: int) -> str:
    """Why a step cannot be shared out among processes which each hold a part of the model."""
    return (
        f"a step has {micro_batches} micro-batches, which {processes} processes cannot share out evenly, and each of them holds a part "
        f"of the model (run.parallel.shard): let data.accumulate be a multiple of {processes}, {_WHOLE}"
    )
