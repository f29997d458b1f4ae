"""The frozen models that tasks compare with, where they lie outside the run: the model of another run, of an export, or of a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stackwise.assembly.described import build_described, load_exported, refuse_unheld
from stackwise.assembly.start import read_folder
from stackwise.assembly.stored import build_stored
from stackwise.contracts.specs import AT_ENTRY
from stackwise.errors import ConfigError, UserError
from stackwise.host.registry import Registry
from stackwise.plan import Plan
from stackwise.planes.model.module import Model
from stackwise.planes.model.state import load_named_tensors
from stackwise.planes.model.whole import names_inside
from stackwise.planes.objective import Loaded
from stackwise.storage.pretrained import is_ours
from stackwise.storage.regular import digest_regular
from stackwise.storage.run_directory import CONFIG, final_weights
from stackwise.storage.weights import read_description, read_weights


def load_reference(registry: Registry, path: str, beside: nn.Module) -> Loaded:
    """The model at a path, its weights in it, and their digest.

    Args:
        registry: the installed components.
        path: a run that has finished, its `final/`, an export, or a folder of a format that a provider knows.
        beside: the model that is trained; weights of a whole module, which no description builds, are taken by a copy of it.

    Raises:
        UserError: there is no such model, or it cannot be built again from files.
        ProviderError: a component or a format fails.
    """
    directory = Path(path)
    if not is_ours(directory):
        stored = read_folder(directory, registry)
        model: nn.Module = build_stored(stored, registry, device="cpu")
        load_named_tensors(model, {**stored.tensors}, f"the weights in {directory}")
        return Loaded(model, digest_of(path))
    weights = _weights(directory)
    about = read_description(weights)
    refuse_unheld(about, weights)
    if about.get("module") is not None and isinstance(beside, Model) and beside.declared is not None:
        model = deepcopy(beside)
        load_named_tensors(model, names_inside(model.rack, read_weights(weights)[0]), f"the weights in {weights}")
        return Loaded(model, digest_of(path))
    return Loaded(load_exported(weights, registry), digest_of(path))


def outline(registry: Registry, path: str, beside: nn.Module) -> nn.Module:
    """The model at a path without its weights, on the meta device, to be priced; a whole module is like the one that is trained.

    Raises:
        UserError: there is no such model, or nothing says how to build it.
        ProviderError: a component or a format fails.
    """
    directory = Path(path)
    if not is_ours(directory):
        return build_stored(read_folder(directory, registry), registry)
    weights = _weights(directory)
    about = read_description(weights)
    return deepcopy(beside) if about.get("module") is not None else build_described(about, weights, registry, torch.device("meta"))


def digest_of(path: str) -> str:
    """The sha256 of the weights at a path: as their description states it, or of all tensor files of a folder.

    Raises:
        UserError: there are none.
    """
    directory = Path(path)
    if is_ours(directory):
        return str(read_description(_weights(directory)).get("sha256"))
    files = sorted(directory.glob("*.safetensors")) or sorted(directory.glob("*.bin"))
    if not files:
        raise UserError(f"there are no weights at {directory}: give a run that has finished, an export, or a folder that a format knows")
    whole = hashlib.sha256()
    for file in files:
        try:
            whole.update(f"{file.name} {digest_regular(file)[0]}\n".encode())
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error}") from None
    return whole.hexdigest()


def vocabularies_of(path: str) -> Mapping[str, Any]:
    """Source → fingerprint of the data that a model was trained on; empty where nothing says it."""
    directory = Path(path)
    about = read_description(_weights(directory)).get("data") if is_ours(directory) else None
    return about if isinstance(about, Mapping) else {}


def references(plan: Plan) -> Iterator[tuple[str, str, str]]:
    """Phase, path and digest of every model outside the run that a phase begins to compare with.

    Raises:
        ConfigError: there is no such model.
    """
    before: str | None = None
    for phase in plan.schedule:
        path = None if phase.state is None else phase.state.reference
        if path is not None and path not in (AT_ENTRY, before):
            try:
                yield phase.name, path, digest_of(path)
            except UserError as error:
                raise ConfigError([plan.experiment.phases[phase.index].problem("task.reference", str(error))]) from None
        before = path


def _weights(directory: Path) -> Path:
    if not (directory / CONFIG).is_file():
        return directory
    if (final := final_weights(directory)) is None:
        raise UserError(
            f"{directory} has no final weights, as it has not finished: finish it by `stackwise resume {directory}`, or compare with a "
            f"checkpoint of it that `stackwise export {directory} DIRECTORY --step STEP` writes"
        )
    return final
