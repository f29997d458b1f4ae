"""What the transformer distribution offers."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from typing import Any

import attrs
import pytest
import torch

from stackwise import BuildContext, Component
from stackwise.config import structure_options
from stackwise_providers_transformer import provider

HOOKS = {
    "stackwise_embeddings": ["token", "patch", "features"],
    "stackwise_racks": ["decoder", "encoder-decoder", "conv", "mlp", "hf"],
    "stackwise_heads": ["lm", "classifier", "regression", "vector", "hf", "hf-classifier"],
    "stackwise_tasks": [
        "causal-lm",
        "masked-lm",
        "mask-diffusion",
        "classification",
        "seq2seq",
        "preference",
        "regression",
        "distill",
        "contrastive",
    ],
    "stackwise_growth_operators": [
        "stack",
        "interleave",
        "middle",
        "identity",
        "blocks",
        "gated",
        "widen-ff",
        "widen",
        "upcycle",
        "add-experts",
        "vocabulary",
    ],
    "stackwise_weight_adapters": ["lora"],
    "stackwise_formats": ["hf", "stack-wise"],
}
LIGHT = (
    "provider",
    "options",
    "masking_options",
    "classification_options",
    "rack_options",
    "pair_options",
    "table_options",
    "growth",
    "wrapped",
    "contrastive_options",
    "distill_options",
)
COMPONENTS = [component for hook in HOOKS for component in getattr(provider, hook)()]


def _resolve(reference: str) -> Any:
    module, _, attribute = reference.partition(":")
    return getattr(import_module(module), attribute)


def test_the_hooks_are_the_whole_provider() -> None:
    assert {name for name in vars(provider) if name.startswith("stackwise_")} == {*HOOKS, "stackwise_starters"}
    assert {name: [component.name for component in getattr(provider, name)()] for name in HOOKS} == HOOKS


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda component: component.name)
def test_every_option_and_factory_is_there_and_documented(component: Component) -> None:
    options = _resolve(component.options)
    assert callable(_resolve(component.factory))
    assert component.summary
    assert all(attribute.metadata["doc"] for attribute in attrs.fields(options))


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda component: component.name)
def test_every_example_builds(component: Component) -> None:
    options, _, problems = structure_options(_resolve(component.options), component.example, component.name)
    assert problems == ()
    beside = [torch.zeros(3, 4)] if component in provider.stackwise_weight_adapters() else []
    assert _resolve(component.factory)(options, BuildContext(seed=0), *beside) is not None


def test_listing_and_specs_never_import_torch() -> None:
    growth = [component.factory for component in provider.stackwise_growth_operators()]
    cold = {reference.partition(":")[0] for reference in [*growth, *(component.options for component in COMPONENTS)]}
    modules = ", ".join([provider.__name__, *sorted(cold)])
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
