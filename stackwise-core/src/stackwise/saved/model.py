"""The model that a checkpoint holds, as it was declared then, with the weights that an evaluation of its step judges."""

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
from stackwise.planes.model.state import load_named_state, load_named_tensors, named_tensors
from stackwise.planes.optimizer.plane import OptimizerPlane
from stackwise.saved.provenance import Described
from stackwise.storage.checkpoints.store import Checkpoint


@frozen(kw_only=True)
class SavedModel:
    """A model and what it was declared by."""

    plan: Plan
    phase: CompiledPhase
    """The one whose last step so far lies before `step`."""
    state: TrainingState
    model: Model
    """On the CPU and in evaluation mode."""
    step: int
    fingerprints: Mapping[str, Any]
    """What the loaders said of their data."""


def model_at(checkpoint: Checkpoint) -> SavedModel:
    """The model of a checkpoint; an optimizer that trains at other points shows the weights to judge.

    Raises:
        UserError: a checkpoint of another format, or weights that are not its model's.
        ProviderError: a component that cannot be built.
    """
    described = Described.read(checkpoint.about, checkpoint.step)
    found = declared_at(make_plan(config.experiment(described.config), discover(), described.past), checkpoint.step, described.fingerprints)
    saved = checkpoint.load_state()
    load_named_state(found.model, saved["model"], f"the weights in {checkpoint.path}")
    if described.trains_elsewhere:
        load_named_tensors(found.model, _to_judge(found, saved["optimizer"]), "the averaged weights")
    found.model.requires_grad_(False)
    return found


def declared_at(plan: Plan, step: int, fingerprints: Mapping[str, Any]) -> SavedModel:
    """The model of a step, to be filled with weights: what follows time is as it is declared then."""
    phase = plan.schedule.phase_at(max(step - 1, 0))
    assert phase.state is not None  # a plan's phases are declared
    plane = ModelPlane(Workshop(plan).module)
    model = plane.another(plan.schedule.phases[: phase.index + 1], plan.schedule.clock.t(step)).eval()
    return SavedModel(plan=plan, phase=phase, state=phase.state, model=model, step=step, fingerprints=fingerprints)


def _to_judge(found: SavedModel, saved: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    shop, phase = Workshop(found.plan), found.phase
    optimizer = OptimizerPlane(shop.optimizer, shop.reaction)
    t = found.plan.schedule.clock.t(found.step)
    parameters, buffers = dict(found.model.named_parameters()), dict(found.model.named_buffers())
    optimizer.enter(found.state.optimizer, parameters, t, enter=phase.enter, fresh=saved["fresh"], buffers=buffers)
    optimizer.load_state_dict(saved)
    with optimizer.evaluating():
        return {name: tensor.clone() for name, tensor in named_tensors(found.model).items()}
