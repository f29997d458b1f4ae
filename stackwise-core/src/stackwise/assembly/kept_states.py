"""What a phase with `model.cache: frozen` keeps on disk, and why it might never be read again."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

import torch

from stackwise.assembly.prepared_shapes import draws_inputs, prepared_shapes
from stackwise.assembly.workshop import Workshop
from stackwise.contracts.specs import TaskSpec, TransformSpec
from stackwise.curriculum.schedule import CompiledPhase
from stackwise.errors import ConfigError, UserError
from stackwise.plan import Plan
from stackwise.plan.reads import Reads
from stackwise.planes.model.frozen_prefix import FrozenPrefix
from stackwise.planes.model.module import Model


def kept_bytes(plan: Plan, phase: CompiledPhase, shop: Workshop, model: Model, reads: Mapping[str, Reads]) -> int | None:
    """The most that the kept hidden states of a phase take; None where nothing is kept, or the shapes of its rows are unknown.

    Args:
        plan: of the phase.
        phase: one with a declared state.
        shop: builds the task.
        model: as the phase declares it, on the meta device.
        reads: what the phase reads of each source.

    Raises:
        ConfigError: what enters the lowest trained block changes from step to step, or no row comes twice.
    """
    state, prefix = phase.state, model.prefix
    if state is None or not isinstance(prefix, FrozenPrefix):
        return None
    if why := _in_vain(plan, phase, reads):
        raise _problem(plan, phase, why)
    shape = state.data.shape(phase.start)
    rows, length = shape.micro_batches[0], shape.seq_len
    if not isinstance(plan.joined[phase.index].drafts.task.spec, TaskSpec):
        return None
    if draws_inputs(plan, phase, shop, rows=rows, length=length, fields=model.reads):
        task = plan.joined[phase.index].drafts.task.label
        raise _problem(
            plan, phase, f"{task} makes other inputs of the same rows at every step (masks, spans), so no hidden state is of use twice"
        )
    shapes = prepared_shapes(plan, phase, shop, rows=rows, length=length)
    if shapes is None:
        return None
    try:
        kept, dtype = prefix.measured({name: torch.zeros(size, dtype=kind, device="meta") for name, (size, kind) in shapes.items()})
    except UserError as error:
        raise ConfigError([plan.experiment.phases[phase.index].problem("model.cache", str(error))]) from error
    distinct = sum(read.rows if not read.epochs else min(read.rows, read.rows / read.epochs) for read in reads.values())
    return ceil(distinct) * torch.Size(kept).numel() * dtype.itemsize


def _in_vain(plan: Plan, phase: CompiledPhase, reads: Mapping[str, Reads]) -> str:
    """Why no row comes a second time as it was; empty where that is not known."""
    assert phase.state is not None  # a plan's phases are declared
    changing = [
        draft.label
        for draft in plan.joined[phase.index].drafts.transforms
        if not (isinstance(draft.spec, TransformSpec) and draft.spec.prepares)
    ]
    if changing:
        return f"{changing[0]} changes the rows anew at every step"
    before = plan.schedule.phases[phase.index - 1].state if phase.index else None
    first = before is None or before.model.cache is None
    if first and reads and all(read.epochs is not None and read.epochs <= 1 for read in reads.values()):
        return f"phase '{phase.name}' reads no row a second time"
    return ""


def _problem(plan: Plan, phase: CompiledPhase, why: str) -> ConfigError:
    return ConfigError([plan.experiment.phases[phase.index].problem("model.cache", f"{why}: leave it out")])
