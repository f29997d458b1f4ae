"""The evaluations of a run again, or others, with the model that it has reached."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from stackwise import config
from stackwise.assembly.planning import make_plan
from stackwise.assembly.references import load_reference
from stackwise.assembly.workshop import Workshop
from stackwise.contracts.events import Evaluated
from stackwise.contracts.specs import AT_ENTRY
from stackwise.errors import DataError, UserError, did_you_mean
from stackwise.host.discovery import discover
from stackwise.host.registry import blaming
from stackwise.machine.placement import Placement
from stackwise.plan import EvaluationPlan, Plan
from stackwise.planes.model.state import load_named_tensors, named_tensors
from stackwise.planes.objective import Objective
from stackwise.saved.model import SavedModel, declared_at, model_at
from stackwise.saved.provenance import changed_data
from stackwise.storage.checkpoints.of_run import store_of
from stackwise.storage.run_directory import CONFIG, FINAL, final_weights
from stackwise.storage.tokenizers import read_tokenizers
from stackwise.storage.weights import read_description, read_weights

SECTION = "evaluate"


def evaluate(run: Path, overrides: Sequence[str] = (), only: Collection[str] = ()) -> Iterator[Evaluated]:
    """Each evaluation that the run declares, as `at="exit"` of its last step, with its final weights or those of its newest checkpoint.

    Args:
        run: a run directory; it is only read.
        overrides: `--set` assignments to keys under `evaluate`: an evaluation on other data is another evaluation.
        only: names; all when empty.

    Raises:
        UserError: no run directory or no weights in it; a key that is not under `evaluate`; a name that is not declared; a task that
            compares with a reference model, which is gone.
        DataError: the data are missing, or are not those that the run was trained on.
    """
    for assignment in overrides:
        if not assignment.startswith((f"{SECTION}.", f"{SECTION}=")):
            raise UserError(f"--set {assignment}: the model is trained already, and only keys under '{SECTION}' can still be said")
    saved = _open(run)
    plan = make_plan(config.load(run / CONFIG, overrides), discover(), tokenizers=read_tokenizers(run))
    names = [each.name for each in plan.evaluations]
    for name in only:
        if name not in names:
            raise UserError(f"evaluation '{name}' is not declared{did_you_mean(name, names)}; declared: {', '.join(names) or 'none'}")
    if not names:
        raise UserError(f"{run} declares no evaluation: give one, as --set {SECTION}.test='{{batches: 8, sources: {{…}}}}'")
    with blaming(plan.providers):
        yield from _results(saved, plan, run, only)


def declaration_in(file: Path) -> tuple[str, dict[str, Any]]:
    """Name and declaration of the evaluation on other data that a file describes: what stands under a key of `evaluate`, or a config, of
    whose `data` the sources and the shape of the batch are taken.

    Raises:
        ConfigError: no YAML, or no map.
        UserError: it names no sources.
    """
    written = config.read_file(file).plain()
    declared = written.get("data", written) if isinstance(written, dict) else written
    if not isinstance(declared, dict) or not isinstance(declared.get("sources"), dict):
        raise UserError(f"{file} names no data: write `sources: {{test: {{use: …}}}}`, or give a config with data.sources")
    if declared is not written:
        declared = {key: declared[key] for key in ("sources", "batch_size", "seq_len") if key in declared}
    declared = {"at": ["100%"], **declared}  # it has to serve the last task only
    name = re.sub(r"[^a-z0-9]+", "-", file.stem.lower()).strip("-") or "data"
    return name, declared


def _open(run: Path) -> SavedModel:
    """The model with its final weights, or those of its newest whole checkpoint."""
    if not (run / CONFIG).is_file():
        raise UserError(f"{run} is not a run directory: there is no {CONFIG} in it")
    if (final := final_weights(run)) is not None:
        about, plan = read_description(final), make_plan(config.load(run / CONFIG), discover(), tokenizers=read_tokenizers(run))
        saved = declared_at(plan, about.get("step", plan.schedule.steps), about.get("data", {}))
        load_named_tensors(saved.model.requires_grad_(False), read_weights(final)[0], f"the weights in {final}")
        return saved
    checkpoint, skipped = store_of(run).newest()
    if checkpoint is None:
        damage = "".join(f"; {each.name} is damaged: {each.reason}" for each in skipped)
        raise UserError(f"{run} holds no weights yet, neither final ones nor a whole checkpoint{damage}: train it first")
    return model_at(checkpoint)


def _results(saved: SavedModel, plan: Plan, run: Path, only: Collection[str]) -> Iterator[Evaluated]:
    placement, moment = Placement(plan.experiment.run.device, plan.experiment.run.precision), plan.schedule.at(step=saved.step)
    shop, model = Workshop(plan), saved.model.to(placement.device)
    objective = Objective(shop.task, load=partial(load_reference, plan.registry))
    objective.enter(saved.state.task, saved.state.auxiliary, saved.state.reference)
    objective.apply_values(moment.t)
    if saved.state.reference != AT_ENTRY:
        objective.take_reference(model)
    else:
        raise UserError(f"task {saved.state.task.id} compares with a reference model, and a finished run keeps no weights of it")
    live = {name: tensor.clone() for name, tensor in named_tensors(model).items()}
    chosen = _chosen(plan, saved.state.task.id, only)
    _check_data(saved, plan, chosen, placement)
    for declared in chosen:
        evaluation = shop.evaluation(declared, placement)
        try:
            load_named_tensors(model, _averaged(run) if declared.weights == "ema" else live, "the weights")
            start = perf_counter()
            metrics = evaluation.run(model, objective, placement, moment)
            yield Evaluated(saved.step, saved.phase.name, declared.name, "exit", metrics, perf_counter() - start)
        finally:
            evaluation.data.end()


def _chosen(plan: Plan, task: str, only: Collection[str]) -> list[EvaluationPlan]:
    """The evaluations asked for; without names those that serve the task.

    Raises:
        UserError: one asked for by name does not serve it, or none does.
    """
    chosen = [declared for declared in plan.evaluations if (declared.name in only if only else task not in declared.unserved)]
    refused = [declared.name for declared in (chosen or plan.evaluations) if task in declared.unserved]
    if refused:
        raise UserError(
            f"evaluation '{refused[0]}' does not deliver what task {task} needs, which the run has reached: its instants keep it to other "
            f"phases; declare another, as --set {SECTION}.test='{{at: [100%], batches: 8, sources: {{…}}}}'"
        )
    return chosen


def _averaged(run: Path) -> dict[str, torch.Tensor]:
    place = run / f"{FINAL}-ema"
    if final_weights(run) is None or not place.is_dir():
        raise UserError(
            f"an evaluation asks for averaged weights, and {place} does not hold them: they are there when the run has finished"
        )
    return read_weights(place)[0]


def _check_data(saved: SavedModel, plan: Plan, chosen: Sequence[EvaluationPlan], placement: Placement) -> None:
    """Refuse sources of training that are no longer what was trained on; those of an evaluation alone may be anything.

    Raises:
        DataError: a source that an evaluation shares with training has changed.
    """
    declared = saved.state.data
    if not any(part == declared.sources.get(name) for each in chosen for name, part in each.state.sources.items()):
        return
    data = Workshop(plan).data("train", placement)
    try:
        data.enter(declared, lookahead=plan.lookahead)
        changes = list(changed_data(saved.fingerprints, data.fingerprints()))
    finally:
        data.end()
    if changes:
        raise DataError("the data changed since the run: " + "; ".join(changes) + ": put the data back")
