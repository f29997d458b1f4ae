"""A model from the description beside its weights, as `stackwise export` and the end of a run write it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from stackwise.assembly.outside import build_module
from stackwise.config import structure_options
from stackwise.contracts.components import BuildContext, Kind
from stackwise.curriculum.bridges import Bridge
from stackwise.curriculum.parts import Part
from stackwise.curriculum.states import ModelState, WeightAdapterState
from stackwise.errors import UserError
from stackwise.host.discovery import discover
from stackwise.host.registry import Registry
from stackwise.planes.model.gates import Gates
from stackwise.planes.model.initialisation import building_on
from stackwise.planes.model.module import Model
from stackwise.planes.model.plane import ModelPlane
from stackwise.planes.model.state import load_named_tensors
from stackwise.storage.weights import DESCRIPTION, WEIGHTS, read_description, read_weights
from stackwise.timeline.schedules import Constant, Curve

_ROLES: tuple[Kind, ...] = ("embedding", "rack", "head")


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
    model = build_described(about, directory, registry)
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


def build_described(about: Mapping[str, Any], directory: Path, registry: Registry | None, device: torch.device | None = None) -> Model:
    """The model of a description, with initial weights: a model plane enters the described state. On the CPU unless a device is given."""
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
    device = torch.device("cpu") if device is None else device

    def build(path: str, part: Part, step: int, *extra: object) -> nn.Module:
        with building_on(device):
            return build_module(part, components, context, *extra)

    plane = ModelPlane(build, device=device)
    plane.enter(state)
    plane.apply_values(0.0)
    if gate_paths:
        with description_errors(directory):
            Gates([plane.model.get_submodule(path) for path in gate_paths], gate, device)
    if (recorded := about.get("specs")) is not None and recorded != (specs := specs_of(plane.model)):
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


@contextmanager
def description_errors(directory: Path) -> Iterator[None]:
    """A description that cannot be read is the user's error, not our bug: somebody changed the file."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{directory / DESCRIPTION} does not describe a model: {type(error).__name__}: {error}") from None


def specs_of(model: nn.Module) -> dict[str, dict[str, str]]:
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


def _provider_names(about: Mapping[str, Any]) -> str:
    return ", ".join(map(str, about.get("providers", {}).values())) or "unknown versions"
