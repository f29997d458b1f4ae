"""What the data distribution offers."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from typing import Any

import attrs
import pytest

from stackwise import BuildContext, Component
from stackwise_providers_data import provider

HOOKS = {
    "stackwise_loaders": ["python-stdlib", "text-files", "jsonl", "hf-dataset", "parquet", "csv", "array-files", "memory"],
    "stackwise_transforms": ["token-noise", "truncate", "feature-noise"],
}
COMPONENTS = [component for hook in HOOKS for component in getattr(provider, hook)()]
LOADERS = provider.stackwise_loaders()


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


@pytest.mark.parametrize("component", LOADERS, ids=lambda component: component.name)
def test_every_loader_example_builds(component: Component) -> None:
    if component.name == "hf-dataset":
        pytest.importorskip("datasets")
    if component.name == "parquet":
        pytest.importorskip("pyarrow")
    options = _resolve(component.options)(**component.example)
    for split in ("train", "final"):
        loader = _resolve(component.factory)(options, BuildContext(seed=0, split=split, max_length=9))
        assert loader.take(2, 9)["tokens"].shape == (2, 9)
        assert loader.get_batch_spec() == options.to_spec()
        assert (loader.epoch_size().entries or loader.epoch_size().rows) > 0


def test_listing_and_specs_never_import_torch() -> None:
    options = {component.options.partition(":")[0] for component in COMPONENTS}
    modules = ", ".join(["stackwise_providers_data.provider", *sorted(options)])
    code = f"import sys, {modules}; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False False"


def test_a_reader_process_imports_nothing_of_how_runs_are_planned() -> None:
    code = (
        "import sys, stackwise.planes.data.readers.child\n"
        "from stackwise import BuildContext\n"
        "from stackwise.host.discovery import build_loader\n"
        "from stackwise_providers_data.memory_options import MemoryOptions\n"
        "options = MemoryOptions(arrays={'tokens': list(range(16))}, vocab=16)\n"
        "loader = build_loader('data.memory', options, BuildContext(seed=1, split='train', max_length=4))\n"
        "assert loader.take(1, 4)['tokens'].shape == (1, 4)\n"
        "print([name for name in ('config', 'plan', 'assembly', 'machine', 'runs') if 'stackwise.' + name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "[]", done.stderr
