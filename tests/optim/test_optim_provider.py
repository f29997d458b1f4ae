"""What the optimizer distribution offers."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from typing import Any

import attrs
import pytest
import torch

from stackwise import BuildContext, Component, ParameterGroup, ScheduleWindow
from stackwise_providers_optim import provider

HOOKS = {
    "stackwise_optimizers": ["adamw", "sgd", "muon", "adafactor", "lion", "schedule-free", "torch", "pytorch-optimizer"],
    "stackwise_reactions": ["plateau"],
    "stackwise_schedules": ["cosine-restarts", "inverse-root", "table"],
}
COMPONENTS = [component for hook in HOOKS for component in getattr(provider, hook)()]


def _resolve(reference: str) -> Any:
    module, _, attribute = reference.partition(":")
    return getattr(import_module(module), attribute)


def test_the_hooks_are_the_whole_provider() -> None:
    assert {name for name in vars(provider) if name.startswith("stackwise_")} == set(HOOKS)
    assert {name: [component.name for component in getattr(provider, name)()] for name in HOOKS} == HOOKS


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda component: component.name)
def test_every_option_and_factory_is_there_and_documented(component: Component) -> None:
    options = _resolve(component.options)
    assert callable(_resolve(component.factory))
    assert component.summary
    assert all(attribute.metadata["doc"] for attribute in attrs.fields(options))


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda component: component.name)
def test_every_example_builds(component: Component) -> None:
    options = _resolve(component.options)(**component.example)
    make, context = _resolve(component.factory), BuildContext(seed=0)
    if component.name in HOOKS["stackwise_reactions"]:
        assert make(options, context).factor == 1 and options.envelope() == (0.01, 1.0)
        return
    if component.name in HOOKS["stackwise_schedules"]:
        assert make(options, context).value(1, ScheduleWindow.of_steps(10)) >= 0
        return
    group = ParameterGroup(name="default", parameters={"rack.weight": torch.nn.Parameter(torch.ones(2, 2))})
    assert isinstance(make(options, context, [group]), torch.optim.Optimizer)


def test_listing_and_specs_never_import_torch() -> None:
    modules = "stackwise_providers_optim.provider, stackwise_providers_optim.options, "
    modules += "stackwise_providers_optim.plateau, stackwise_providers_optim.schedules"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
