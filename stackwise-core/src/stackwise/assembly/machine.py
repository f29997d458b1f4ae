"""Assembly: a plan → planes → the training machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from stackwise.assembly.notes import log_notes
from stackwise.assembly.planning import make_plan
from stackwise.assembly.references import load_reference
from stackwise.assembly.start import read_start
from stackwise.assembly.stateless import check_stateless
from stackwise.assembly.vocabularies import check_vocabularies
from stackwise.assembly.workshop import Workshop, read_first_rows
from stackwise.config import Experiment
from stackwise.contracts.answers import WrongAnswer
from stackwise.errors import ConfigError, UserError
from stackwise.host.discovery import discover
from stackwise.host.registry import Registry, blaming
from stackwise.machine.machine import TrainingMachine
from stackwise.machine.observers import Observers
from stackwise.machine.placement import Placement
from stackwise.machine.settings import Settings, StopRule
from stackwise.plan import Plan
from stackwise.planes.model.difference import Boundary, parts_of
from stackwise.planes.model.plane import ModelPlane
from stackwise.planes.model.state import Tensors
from stackwise.planes.objective import Objective
from stackwise.planes.optimizer.plane import OptimizerPlane
from stackwise.processes.ranks import Ranks


def assemble(
    source: Plan | Experiment,
    registry: Registry | None = None,
    *,
    observers: Observers | None = None,
    ranks: Ranks | None = None,
) -> TrainingMachine:
    """Build the machine of a plan, or of an experiment, which is planned first.

    Args:
        source: a plan, or an experiment.
        registry: the components an experiment may name; discovered when left out.
        observers: those of the machine that this one replaces; when left out, the declared ones are built, in the first process.
        ranks: the processes that train the model together.

    Raises:
        ConfigError: mistakes in the experiment.
        ProviderError: a component that is needed cannot be built.
    """
    if not isinstance(source, Plan | Experiment):
        raise UserError(f"{source!r:.60} is no experiment: give stackwise.load(path), or stackwise.experiment(run=…, data=…, …)")
    plan = source if isinstance(source, Plan) else make_plan(source, registry if registry is not None else discover())
    with blaming(plan.providers):
        return _assemble(plan.with_tokenizers(), observers, ranks)


def _assemble(plan: Plan, observers: Observers | None, ranks: Ranks | None) -> TrainingMachine:
    run = plan.experiment.run
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    recomputes = run.parallel.recompute == "blocks"
    placement, shop = Placement(run.device, run.precision, compiles=run.compile, recomputes=recomputes), Workshop(plan)
    data = shop.data("train", placement)
    read_first_rows(plan, data)
    evaluations = [shop.evaluation(declared, placement) for declared in plan.evaluations]
    check_vocabularies(plan, data, evaluations)
    _check_boundaries(plan)
    if ranks is not None:
        check_stateless(plan, shop)
    sharding = None
    if ranks is not None and run.parallel.shard > 1:
        from stackwise.processes.sharding import Sharding  # FSDP2 takes a while to import, and most runs divide no model

        sharding = Sharding(ranks, run.parallel.shard, placement.device, writes_apart=run.checkpoint.asynchronous)
    heard = () if ranks is not None and not ranks.is_first else plan.observers
    return TrainingMachine(
        model=ModelPlane(shop.module, device=placement.device, start=_start(plan)),
        data=data,
        task=Objective(shop.task, load=partial(load_reference, plan.registry)),
        optimizer=OptimizerPlane(shop.optimizer, shop.reaction),
        schedule=plan.schedule,
        evaluations=evaluations,
        observers=observers if observers is not None else shop.observers(heard),
        settings=Settings(
            seed=run.seed,
            placement=placement,
            halt_after=1 if run.non_finite == "halt" else run.halt_after,
            probe=run.probe,
            ranks=ranks,
            sharding=sharding,
            stop=StopRule.of(run.stop.watched, run.stop.patience, run.stop.least),
            stalls=StopRule.by_phase((phase.name, phase.stalls) for phase in plan.experiment.phases),
            bridges=[*(str(bridge) for bridge in plan.bridges), *log_notes(plan, data)],
            providers=[f"{provider.distribution} {provider.version} sha256:{provider.file_digest}" for provider in plan.providers],
        ),
    )


def _start(plan: Plan) -> Callable[[], tuple[Tensors, Sequence[str]]] | None:
    """A function that reads the weights to start from; None if the config names none."""
    declared = plan.experiment.phases[0].model.start
    return None if declared is None else lambda: (read_start(plan), declared.drop)


def _check_boundaries(plan: Plan) -> None:
    """Cross every boundary on the meta device if a part of the model was given in code, so that the run does not fail at a boundary.

    Raises:
        ConfigError: a boundary cannot be crossed.
    """
    states = [(phase, phase.state.model) for phase in plan.schedule if phase.state is not None]
    if len(states) == 1 or all(part.given is None for _, state in states for _, part in parts_of(state)):
        return
    plane = ModelPlane(Workshop(plan, device="meta").module, device=torch.device("meta"))
    for phase, state in states:
        try:
            plane.enter(state, Boundary.of(phase))
        except (ConfigError, WrongAnswer):
            raise
        except UserError as error:
            path = "model" if phase.enter.growth is None else "enter.growth"
            raise ConfigError([plan.experiment.phases[phase.index].problem(path, str(error))]) from error
