"""Export a model as weights and a description of its parts, and load it again in one call.

No import path is ever written or read: the description names component ids, which only installed providers resolve.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from stackwise.assembly.described import build_described, load_exported, refuse_unheld, specs_of
from stackwise.contracts.components import Kind
from stackwise.contracts.options import Stack, config_key
from stackwise.contracts.specs import BatchSpec
from stackwise.curriculum.parts import Part
from stackwise.curriculum.schedule import CompiledPhase
from stackwise.errors import UserError, disk_errors
from stackwise.plan import Plan
from stackwise.planes.model.gates import gated_modules
from stackwise.planes.model.module import Model
from stackwise.planes.model.state import load_named_tensors, named_tensors
from stackwise.planes.model.whole import own_tensors
from stackwise.saved.formats import write_folder
from stackwise.saved.model import left_out, model_at
from stackwise.storage.checkpoints.of_run import store_of
from stackwise.storage.checkpoints.store import Checkpoint
from stackwise.storage.run_directory import CONFIG, final_weights
from stackwise.storage.tokenizers import read_tokenizers
from stackwise.storage.weights import read_description, save_weights

_ROLES: tuple[Kind, ...] = ("embedding", "rack", "head")
_OWN_KEYS = ("format", "sha256", "tensors")
"""Keys that `save_weights` writes itself."""


def describe_model(phase: CompiledPhase, t: float, model: Model, unheld: Sequence[str]) -> dict[str, Any]:
    """What a model is built from, as JSON.

    Args:
        phase: the one that declares it.
        t: the time at which gates and options that follow time are read.
        model: the model itself; its specs are recorded and compared when it is built again.
        unheld: names of states that its weights leave out.
    """
    assert phase.state is not None  # a plan's phases are declared
    state = phase.state.model
    return {
        "task": _as_node(phase.state.task, t),
        "parts": {role: _as_node(getattr(state, role), t) for role in _ROLES},
        "adapters": {junction: [_as_node(part, t) for part in parts] for junction, parts in state.adapters.items()},
        "bridges": [attrs.asdict(bridge) for bridge in state.bridges],
        "weight_adapters": {
            name: {**_as_node(declared.part, t), "select": list(declared.select)} for name, declared in state.weight_adapters.items()
        },
        "gates": _gates(phase, t, model),
        "precision": dict(state.precision),
        "specs": specs_of(model),
        "unheld": list(unheld),
        **({} if model.declared is None else {"module": type(model.rack).__name__}),
    }


def exported_tensors(model: Model) -> dict[str, torch.Tensor]:
    """What a file of weights holds: tensors by canonical name, those of a whole module by the names of its own `state_dict`."""
    tensors = named_tensors(model)
    return tensors if model.declared is None else own_tensors(model.rack, tensors)


def _gates(phase: CompiledPhase, t: float, model: Model) -> dict[str, Any]:
    """The gate's value and the modules it multiplies; empty where the value is 1."""
    modules, value = gated_modules(model.rack_spec, phase.blocks), phase.gate(t)
    return {"value": value, "modules": list(modules)} if modules and torch.tensor(value).item() != 1.0 else {}


def describe_run(plan: Plan, phase: CompiledPhase, step: int, fingerprints: Mapping[str, Any]) -> dict[str, Any]:
    """What a description says of the run that its weights come from.

    Args:
        plan: of the run.
        phase: the one that the weights were trained in last.
        step: of the weights.
        fingerprints: source → what was read.
    """
    assert phase.state is not None  # a plan's phases are declared
    sources = phase.state.data.sources
    return {
        "step": step,
        "data": fingerprints,
        "sources": {name: part.id for name, part in sources.items()},
        "ids": _ids(plan.tokenizers.bind(part.id, part.options) for part in sources.values()),
        "providers": {provider.name: f"{provider.distribution} {provider.version}" for provider in plan.providers},
        "provider_files": {provider.name: provider.file_digest for provider in plan.providers},
    }


def _ids(options: Iterable[Any]) -> int | None:
    """The number of ids that loaders of these options deliver; None where none states it."""
    specs = [each.to_spec() for each in options if hasattr(each, "to_spec")]
    fields = [field for spec in specs if isinstance(spec, BatchSpec) for field in spec.fields.values()]
    bounds = [field.bounds[1] for field in fields if "time" in field.dims and field.bounds is not None]
    return max((bound for bound in bounds if isinstance(bound, int)), default=None)


def export(run: Path, directory: Path, step: int | None = None, form: str | None = None) -> int:
    """Write the weights of a run where `load_exported` finds all it needs, or as a folder of another tool's format.

    The model is built from its description and loaded first, so what is written is known to load.

    Args:
        run: a run directory; it is only read.
        directory: a new directory; its parents are made.
        step: the checkpoint to take; the final weights when left out.
        form: name of an installed format.

    Returns:
        The step of the weights.

    Raises:
        UserError: no run directory, no such weights, or `directory` exists.
        DiskError: the disk refuses; nothing is left behind.
    """
    if not (run / CONFIG).is_file():
        raise UserError(f"{run} is not a run directory: there is no {CONFIG} in it")
    if directory.exists():
        raise UserError(f"{directory} exists already: an export never writes over anything; give another directory, or remove it")
    store = store_of(run)
    if step is not None:
        model, about = _at(store.at(step))
        tokenizers = read_tokenizers(run)
    elif (final := final_weights(run)) is not None:
        model, about = _final(final)
        tokenizers = read_tokenizers(final)
    else:
        steps = ", ".join(str(int(name.removeprefix("step-"))) for name in store.names()) or "none"
        raise UserError(f"{run} has no final weights, as it has not finished: choose a checkpoint with --step (there: {steps})")
    with disk_errors(directory, "nothing of it is left"):
        directory.parent.mkdir(parents=True, exist_ok=True)
    if form is None:
        save_weights(named_tensors(model), directory, about, tokenizers)
    else:
        write_folder(model, about, directory, form, run, tokenizers)
    return int(about["step"])


def _final(directory: Path) -> tuple[Model, dict[str, Any]]:
    model = load_exported(directory)
    return model, {key: value for key, value in read_description(directory).items() if key not in _OWN_KEYS}


def _at(checkpoint: Checkpoint) -> tuple[Model, dict[str, Any]]:
    """The model declared at a checkpoint's step, rebuilt from its description, with the weights to keep."""
    saved = model_at(checkpoint)
    about = describe_model(saved.phase, saved.plan.schedule.clock.t(saved.step), saved.model, left_out(saved))
    model = build_described(about, checkpoint.path, saved.plan.registry)
    load_named_tensors(model, named_tensors(saved.model), f"the weights in {checkpoint.path}")
    about |= describe_run(saved.plan, saved.phase, saved.step, saved.fingerprints)
    refuse_unheld(about, checkpoint.path)
    return model, about


def _as_node(part: Part, t: float) -> dict[str, Any]:
    options = part.options_at(t)
    plain = _as_config(options) if attrs.has(type(options)) or isinstance(options, Mapping) else {}
    return {"use": part.id, "options": plain}


def _as_config(value: Any) -> Any:
    """Options as a config would write them, without those left at None."""
    if isinstance(value, Stack):
        return {value.name: value.blocks}
    if attrs.has(type(value)):
        fields: Iterable[attrs.Attribute[Any]] = attrs.fields(type(value))
        values = [(a, getattr(value, a.name)) for a in fields if a.init]
        return {config_key(a): _as_config(inner) for a, inner in values if not (inner is None and a.default is None)}
    if isinstance(value, Mapping):
        return {str(key): _as_config(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_config(inner) for inner in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
