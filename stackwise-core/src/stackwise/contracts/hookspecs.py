"""The hooks: what a provider may implement. One hook a kind; signatures and documentation, nothing else.

A provider is a distribution with an entry point in the group `stackwise.providers`. The entry point's name is the provider's
name, its value a light module with functions marked `@hookimpl`:

```toml
[project.entry-points."stackwise.providers"]
demo = "demo"
```

The host calls every hook with no argument, right after it imported the module and before any config is read. Components are only
named there, so nothing heavy is imported. The answer is checked: an iterable of `Component` records, each name once. A hook that
raises or answers otherwise puts its whole provider aside; the others keep working. Assembly calls the factory that a record
names, later, when a config asks for the component.

A complete provider is one module, though its factory usually has a file of its own that may import torch:

```python
from attrs import frozen
from stackwise import Component, hookimpl, option

@frozen(kw_only=True)
class Options:
    gain: float = option(1.0, doc="factor on every level")

def build(options, context):
    def scale(batch, moment, generator):
        return {**batch, "levels": batch["levels"] * options.gain}

    return scale

@hookimpl
def stackwise_transforms():
    yield Component(name="scale", options="demo:Options", factory="demo:build", example={"gain": 0.5})
```

`stackwise new-provider NAME --kind KIND` writes a complete one of each kind; `stackwise.contracts.protocols` says how each kind's
artifact is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pluggy

from stackwise.contracts.components import Component, Kind, Starter

PROJECT = "stackwise"
"""The name under which pluggy keeps the marks of hooks and implementations."""

hookspec = pluggy.HookspecMarker(PROJECT)
"""Marks a hook below; only the core has any."""

hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a provider's function as the implementation of the hook whose name it has."""


@hookspec
def stackwise_embeddings() -> Iterable[Component]:
    """Name the embeddings: batch fields in, hidden state out. The factory is called with (options, context)."""
    return ()


@hookspec
def stackwise_racks() -> Iterable[Component]:
    """Name the racks: named stacks of blocks, hidden state in and out. The factory is called with (options, context)."""
    return ()


@hookspec
def stackwise_heads() -> Iterable[Component]:
    """Name the heads: hidden state in, named outputs out. The factory is called with (options, context)."""
    return ()


@hookspec
def stackwise_tasks() -> Iterable[Component]:
    """Name the tasks: how a batch is prepared, and the loss. The factory is called with (options, context)."""
    return ()


@hookspec
def stackwise_optimizers() -> Iterable[Component]:
    """Name the optimizers. The factory is called with (options, context, groups) and returns a `torch.optim.Optimizer`;
    `groups` are `ParameterGroup` records, whose parameters have names.
    """
    return ()


@hookspec
def stackwise_loaders() -> Iterable[Component]:
    """Name the loaders: deterministic streams with a cursor. The factory is called with (options, context)."""
    return ()


@hookspec
def stackwise_transforms() -> Iterable[Component]:
    """Name the transforms: changes of a batch between loader and task. The factory is called with (options, context)."""
    return ()


@hookspec
def stackwise_adapters() -> Iterable[Component]:
    """Name the adapters: glue at a junction of the model, tensor in, tensor out. The factory is called with (options, context)."""
    return ()


@hookspec
def stackwise_growth_operators() -> Iterable[Component]:
    """Name the growth operators: pure maps from new blocks to old ones. The factory is called with (options, context)."""
    return ()


@hookspec
def stackwise_weight_adapters() -> Iterable[Component]:
    """Name the weight adapters: trainable modules beside frozen matrices (LoRA). The factory is called with (options, context, weight);
    `weight` is the matrix.
    """
    return ()


@hookspec
def stackwise_reactions() -> Iterable[Component]:
    """Name the reactions: declared answers of the learning rate to the training signal. The factory is called with (options, context)."""
    return ()


@hookspec
def stackwise_schedules() -> Iterable[Component]:
    """Name the schedules: numbers that follow time, known before the run. The factory is called with (options, context)."""
    return ()


@hookspec
def stackwise_observers() -> Iterable[Component]:
    """Name the observers: called with every event of a run. The factory is called with (options, context)."""
    return ()


@hookspec
def stackwise_formats() -> Iterable[Component]:
    """Name the formats: folders of other tools read as models, and written. The factory is called with (options, context)."""
    return ()


@hookspec
def stackwise_starters() -> Iterable[Starter]:
    """Name the starters: files that `stackwise init NAME` writes, complete and commented, for a user to change.

    A light module has the texts; they are loaded when one is asked for.

    ```python
    @hookimpl
    def stackwise_starters():
        yield Starter(name="waves", text="demo.starters:WAVES", summary="sine waves of your own", files={"waves.csv": "demo.starters:ROWS"})
    ```
    """
    return ()


STARTERS = "stackwise_starters"

HOOKS: Mapping[str, Kind] = {
    "stackwise_embeddings": "embedding",
    "stackwise_racks": "rack",
    "stackwise_heads": "head",
    "stackwise_tasks": "task",
    "stackwise_optimizers": "optimizer",
    "stackwise_loaders": "loader",
    "stackwise_transforms": "transform",
    "stackwise_adapters": "adapter",
    "stackwise_growth_operators": "growth",
    "stackwise_weight_adapters": "weight-adapter",
    "stackwise_reactions": "reaction",
    "stackwise_schedules": "schedule",
    "stackwise_observers": "observer",
    "stackwise_formats": "format",
}
"""Hook name → the kind of component it names."""
