"""Export a model as weights and a description of its parts, and load it again in one call.

No import path is ever written or read: the description names component ids, which only installed providers resolve.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from stackwise.assembly.workshop import build_module
from stackwise.config import structure_options
from stackwise.contracts.components import BuildContext, Kind
from stackwise.contracts.options import Stack, config_key
from stackwise.contracts.specs import BatchSpec
from stackwise.curriculum.bridges import Bridge
from stackwise.curriculum.parts import Part
from stackwise.curriculum.schedule import CompiledPhase
from stackwise.curriculum.states import ModelState, WeightAdapterState
from stackwise.errors import UserError, disk_errors
from stackwise.host.discovery import discover
from stackwise.host.registry import Registry
from stackwise.plan import Plan
from stackwise.planes.model.gates import Gates, gated_modules
from stackwise.planes.model.module import Model
from stackwise.planes.model.plane import ModelPlane
from stackwise.planes.model.state import load_named_tensors, named_tensors
from stackwise.planes.model.whole import own_tensors
from stackwise.saved.formats import write_folder
from stackwise.saved.model import left_out, model_at
from stackwise.storage.checkpoints.store import Checkpoint, CheckpointStore
from stackwise.storage.run_directory import CHECKPOINTS, CONFIG, final_weights
from stackwise.storage.tokenizers import read_tokenizers
from stackwise.storage.weights import DESCRIPTION, WEIGHTS, read_description, read_weights, save_weights
from stackwise.timeline.schedules import Constant, Curve

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
        "specs": _specs(model),
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


def load_exported(directory: Path | str, registry: Registry | None = None) -> Model:
    """Build the model that a directory of weights describes, and load its weights strictly by name.

    Args:
        directory: made by `stackwise export`, or a run's `final/`.
        registry: the components it may name; those installed when left out.

    Returns:
        The model on the CPU, in evaluation mode: `model(batch) → outputs by name`.

    Raises:
        UserError: no such directory, a damaged one, an unknown component, or weights that are not this model's.
        ProviderError: a component that cannot be built.
    """
    directory = Path(directory)
    about = read_description(directory)
    refuse_unheld(about, directory)
    if (module := about.get("module")) is not None:
        raise UserError(
            f"{directory} holds a whole module, {module}, which no provider builds: load_file({str(directory / WEIGHTS)!r}) of "
            "safetensors.torch gives its tensors by its own names, for load_state_dict of a module that you build"
        )
    model = _build(about, directory, registry)
    load_named_tensors(model, read_weights(directory)[0], f"the weights in {directory}")
    return model.eval()


def refuse_unheld(about: Mapping[str, Any], place: Path) -> None:
    """Refuse weights that leave out states of the model's modules.

    Raises:
        UserError: the description names such states; all of them are listed.
    """
    if names := about.get("unheld"):
        raise UserError(
            f"the weights of {place} are not the whole model: {', '.join(map(str, names))} changed in training, and a file of weights "
            "holds parameters and persistent buffers: make them persistent buffers, or go on from a checkpoint, which holds them"
        )


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
        raise UserError(f"{run} is no run directory: there is no {CONFIG} in it")
    if directory.exists():
        raise UserError(f"{directory} exists already: an export never writes over anything; give another directory, or remove it")
    store = CheckpointStore(run / CHECKPOINTS)
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
    model = _build(about, checkpoint.path, saved.plan.registry)
    load_named_tensors(model, named_tensors(saved.model), f"the weights in {checkpoint.path}")
    about |= describe_run(saved.plan, saved.phase, saved.step, saved.fingerprints)
    refuse_unheld(about, checkpoint.path)
    return model, about


def _build(about: Mapping[str, Any], directory: Path, registry: Registry | None) -> Model:
    """The model of a description, with initial weights: a model plane enters the described state."""
    with description_errors(directory):
        adapters, weight_adapters = dict(about.get("adapters", {})), dict(about.get("weight_adapters", {}))
        nodes = [
            *(about["parts"][role] for role in _ROLES),
            *(node for entries in adapters.values() for node in entries),
            *weight_adapters.values(),
        ]
        components = registry if registry is not None else discover(allow={str(node["use"]).partition(".")[0] for node in nodes})
        state = ModelState(
            embedding=described_part("embedding", about["parts"]["embedding"], components, directory),
            rack=described_part("rack", about["parts"]["rack"], components, directory),
            head=described_part("head", about["parts"]["head"], components, directory),
            adapters={
                str(j): tuple(described_part("adapter", node, components, directory) for node in entries) for j, entries in adapters.items()
            },
            bridges=tuple(Bridge(**bridge) for bridge in about.get("bridges", [])),
            weight_adapters={
                name: WeightAdapterState(part=described_part("weight-adapter", node, components, directory), select=tuple(node["select"]))
                for name, node in weight_adapters.items()
            },
            precision={role: str(about["precision"][role]) for role in _ROLES if role in about.get("precision", {})},
        )
        gates = about.get("gates", {})
        gate, gate_paths = float(gates.get("value", 1.0)), [str(path) for path in gates.get("modules", ())]
    parts = {role: getattr(state, role) for role in _ROLES}
    context = BuildContext(seed=0, specs={role: part.options.to_spec() for role, part in parts.items() if hasattr(part.options, "to_spec")})
    plane = ModelPlane(lambda path, part, step, *extra: build_module(part, components, context, *extra))
    plane.enter(state)
    plane.apply_values(0.0)
    if gate_paths:
        with description_errors(directory):
            Gates([plane.model.get_submodule(path) for path in gate_paths], gate, torch.device("cpu"))
    if (recorded := about.get("specs")) is not None and recorded != (specs := _specs(plane.model)):
        changes = [f"{role} was {recorded.get(role)}, is {specs.get(role)}" for role in specs if recorded.get(role) != specs.get(role)]
        raise UserError(
            f"the model in {directory} was made by {_provider_names(about)}, and what is installed builds another: " + "; ".join(changes)
        )
    return plane.model


def described_part(kind: Kind, node: Mapping[str, Any], registry: Registry, directory: Path) -> Part:
    """A registered component with its options checked."""
    use = str(node["use"])
    component = registry.get(kind, use)
    options, schedules, problems = structure_options(component.load_options(), node["options"], use)
    if problems:
        raise UserError(f"{directory / DESCRIPTION}: " + "; ".join(map(str, problems)))
    values = {name: schedule.value for name, schedule in schedules.items() if isinstance(schedule, Constant)}
    curves = {name: Curve.constant(value) for name, value in values.items()}
    return Part(kind=kind, id=use, options=attrs.evolve(options, **values), curves=curves)


def _specs(model: nn.Module) -> dict[str, dict[str, str]]:
    """The spec of each part that has one, as text."""
    specs: dict[str, dict[str, str]] = {}
    for role in _ROLES:
        part = getattr(model, role, None)
        ask = getattr(part, "to_spec" if role == "rack" else "get_spec", None)
        if ask is not None:
            spec = ask()
            specs[role] = {a.name: _words(getattr(spec, a.name)) for a in attrs.fields(type(spec))}
    return specs


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(inner)}" for name, inner in value.items())
    return ", ".join(map(_words, value)) if isinstance(value, list | tuple) else str(value)


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


@contextmanager
def description_errors(directory: Path) -> Iterator[None]:
    """A description that cannot be read is the user's error, not our bug: somebody changed the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{directory / DESCRIPTION} does not describe a model: {type(error).__name__}: {error}") from None


def _provider_names(about: Mapping[str, Any]) -> str:
    return ", ".join(map(str, about.get("providers", {}).values())) or "unknown versions"
