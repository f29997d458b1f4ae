"""The model of a folder, built without its weights, so that options and tensors are known to fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from stackwise.assembly.outside import build_module
from stackwise.assembly.start import adapters_of, options_of
from stackwise.config import structure_options
from stackwise.contracts.components import BuildContext, Kind
from stackwise.contracts.formats import StoredModel
from stackwise.curriculum.parts import Part
from stackwise.errors import UserError
from stackwise.host.registry import Registry
from stackwise.planes.model.initialisation import building_on
from stackwise.planes.model.module import Model
from stackwise.planes.model.start import check_start
from stackwise.planes.model.weight_adapters import targets


def stored_format(node: Mapping[str, Any], registry: Registry) -> Part:
    """A format as a config writes it.

    Args:
        node: `use`, and its options.
        registry: the installed components.

    Raises:
        UserError: no such format, or options that it refuses.
    """
    options = {key: value for key, value in node.items() if key != "use"}
    made, _, problems = structure_options(registry.get("format", node["use"]).load_options(), options, "format")
    if problems:
        raise UserError("; ".join(map(str, problems)))
    return Part(kind="format", id=node["use"], options=made)


def build_stored(stored: StoredModel, registry: Registry, device: str = "meta") -> Model:
    """The model of a folder, without its weights.

    Raises:
        UserError: options that a component refuses, or tensors that are not this model's.
    """
    with building_on(torch.device(device)):
        parts: dict[Kind, Any] = {
            role: build_module(Part(kind=role, id=use, options=made), registry, BuildContext(seed=0))
            for role, (use, made) in options_of(stored.model, registry).items()
        }
    model = Model(parts["embedding"], parts["rack"], parts["head"])
    model.wire()
    attached = {}
    for name, (use, options, selectors) in adapters_of(stored.weight_adapters, registry).items():
        part = Part(kind="weight-adapter", id=use, options=options)
        for path in targets(model, selectors, name):
            with building_on(torch.device(device)):
                attached[name, path] = build_module(part, registry, BuildContext(seed=0), model.get_parameter(f"{path}.weight"))
    model.attach(attached)
    check_start(stored.tensors, model, ())
    return model
