"""The model of a checkpoint as declared at its step, with the weights that evaluations use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from attrs import frozen

from stackwise import config
from stackwise.assembly.workshop import Workshop
from stackwise.curriculum.schedule import CompiledPhase
from stackwise.curriculum.states import TrainingState
from stackwise.host.discovery import discover
from stackwise.plan import Plan, make_plan
from stackwise.planes.model.module import Model
from stackwise.planes.model.plane import ModelPlane
from stackwise.planes.model.state import load_named_state, load_named_tensors, named_tensors, passing_buffers, unheld
from stackwise.planes.optimizer.plane import OptimizerPlane
from stackwise.saved.provenance import Described, loading
from stackwise.storage.checkpoints.store import Checkpoint
from stackwise.storage.tokenizers import read_tokenizers


@frozen(kw_only=True)
class SavedModel:
    """A model and what it was declared by."""

    plan: Plan
    phase: CompiledPhase
    """The phase of the last step done."""
    state: TrainingState
    model: Model
    """On the CPU and in evaluation mode."""
    step: int
    fingerprints: Mapping[str, Any]
    """Source → fingerprint of its data."""


def model_at(checkpoint: Checkpoint) -> SavedModel:
    """The model of a checkpoint, with averaged weights where the optimizer evaluates at an average.

    Raises:
        UserError: a checkpoint of another format, or weights that are not its model's.
        ProviderError: a component that cannot be built.
    """
    description = Described.read(checkpoint.about, checkpoint.step)
    tokenizers = read_tokenizers(checkpoint.path.parent.parent)
    plan = make_plan(config.experiment(description.config), discover(), description.past.clock, tokenizers)
    saved = declared_at(plan, checkpoint.step, description.fingerprints)
    with loading(checkpoint, plan):
        state = checkpoint.load_state()
        load_named_state(saved.model, state["model"], f"the weights in {checkpoint.path}")
        if description.trains_elsewhere:
            load_named_tensors(saved.model, _averaged_weights(saved, state["optimizer"]), "the averaged weights")
    saved.model.requires_grad_(False)
    return saved


def declared_at(plan: Plan, step: int, fingerprints: Mapping[str, Any]) -> SavedModel:
    """The model declared at a step, to be filled with weights; values that follow time are those of the step."""
    phase = plan.schedule.phase_at(max(step - 1, 0))
    assert phase.state is not None  # a plan's phases are declared
    plane = ModelPlane(Workshop(plan).module)
    model = plane.another(plan.schedule.phases[: phase.index + 1], plan.schedule.clock.t(step)).eval()
    return SavedModel(plan=plan, phase=phase, state=phase.state, model=model, step=step, fingerprints=fingerprints)


def left_out(saved: SavedModel) -> list[str]:
    """Names of the states of a checkpoint's model that a file of weights leaves out."""
    schedule = saved.plan.schedule
    if not passing_buffers(saved.model):
        return unheld(saved.model, saved.model)
    t = schedule.clock.t(max(saved.step - 1, 0))  # of the values in the buffers that follow time
    twin = ModelPlane(Workshop(saved.plan).module).another(schedule.phases[: saved.phase.index + 1], t)
    return unheld(saved.model, twin)


def _averaged_weights(saved: SavedModel, optimizer_state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    shop, phase = Workshop(saved.plan), saved.phase
    optimizer = OptimizerPlane(shop.optimizer, shop.reaction)
    t = saved.plan.schedule.clock.t(saved.step)
    parameters, buffers = dict(saved.model.named_parameters()), dict(saved.model.named_buffers())
    optimizer.enter(saved.state.optimizer, parameters, t, enter=phase.enter, fresh=optimizer_state["fresh"], buffers=buffers)
    optimizer.load_state_dict(optimizer_state)
    with optimizer.evaluating():
        return {name: tensor.clone() for name, tensor in named_tensors(saved.model).items()}
