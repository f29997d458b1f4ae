"""The hooks: what a provider may implement. One hook a kind; signatures and documentation, nothing else.

A provider is a distribution with an entry point in the group `stackwise.providers`. The entry point's name is the provider's
name, its value a light module with functions marked `@hookimpl`:

```toml
[project.entry-points."stackwise.providers"]
demo = "demo"
```

`stackwise.host.discovery` calls every hook with no argument, right after it imported the module and before any config is read.
Components are only named there, so nothing heavy is imported. The answer is checked: an iterable of `Component` records, each
name once. A hook that raises or answers otherwise puts its whole provider aside; the others keep working. Assembly calls the
factory that a record names, later, when a config asks for the component.

Each example is a complete module `demo`; in a real provider the factory has a file of its own, which may import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pluggy

from stackwise.contracts.components import Component, Kind

PROJECT = "stackwise"
"""The name under which pluggy keeps the marks of hooks and implementations."""

hookspec = pluggy.HookspecMarker(PROJECT)
"""Marks a hook below; only the core has any."""

hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a provider's function as the implementation of the hook whose name it has."""


@hookspec
def stackwise_embeddings() -> Iterable[Component]:
    """Name the embeddings: batch fields in, hidden state out. The factory is called with (options, context).

    ```python
    from attrs import frozen
    from stackwise import Component, EmbeddingSpec, TensorSpec, dimension, hookimpl

    @frozen(kw_only=True)
    class Options:
        width: int = dimension("width", doc="features at each position")

        def to_spec(self):
            return EmbeddingSpec(inputs={"levels": TensorSpec("batch time", "floating")})

    def build(options, context):
        from torch import nn

        class Levels(nn.Module):
            def __init__(self):
                super().__init__()
                self.project = nn.Linear(1, options.width)

            def get_spec(self):
                return options.to_spec()

            def forward(self, levels):
                return self.project(levels[..., None])

        return Levels()

    @hookimpl
    def stackwise_embeddings():
        yield Component(name="levels", options="demo:Options", factory="demo:build", example={"width": 4})
    ```
    """
    return ()


@hookspec
def stackwise_racks() -> Iterable[Component]:
    """Name the racks: named stacks of blocks, hidden state in and out. The factory is called with (options, context).

    ```python
    from attrs import frozen
    from stackwise import Component, RackSpec, Stack, dimension, hookimpl, stacks

    @frozen(kw_only=True)
    class Options:
        width: int = dimension("width", doc="features at each position")
        stacks: tuple[Stack, ...] = stacks(doc="blocks, one linear map each")

        def to_spec(self):
            return RackSpec(stacks={stack.name: stack.blocks for stack in self.stacks})

    def build(options, context):
        from torch import nn

        class Linears(nn.Module):
            def __init__(self):
                super().__init__()
                names = {stack.name: [nn.Linear(options.width, options.width) for _ in range(stack.blocks)] for stack in options.stacks}
                self.stacks = nn.ModuleDict({name: nn.ModuleList(blocks) for name, blocks in names.items()})

            def to_spec(self):
                return options.to_spec()

            def forward(self, hidden):
                for blocks in self.stacks.values():
                    for block in blocks:
                        hidden = hidden + block(hidden)
                return hidden

        return Linears()

    @hookimpl
    def stackwise_racks():
        yield Component(name="linears", options="demo:Options", factory="demo:build", example={"width": 4, "stacks": [{"base": 2}]})
    ```
    """
    return ()


@hookspec
def stackwise_heads() -> Iterable[Component]:
    """Name the heads: hidden state in, named outputs out. The factory is called with (options, context).

    ```python
    from attrs import frozen
    from stackwise import Component, HeadSpec, TensorSpec, dimension, hookimpl

    @frozen(kw_only=True)
    class Options:
        width: int = dimension("width", doc="features at each position")

        def to_spec(self):
            return HeadSpec(outputs={"value": TensorSpec("batch time", "floating")})

    def build(options, context):
        from torch import nn

        class Value(nn.Module):
            def __init__(self):
                super().__init__()
                self.project = nn.Linear(options.width, 1)

            def get_spec(self):
                return options.to_spec()

            def forward(self, hidden):
                return {"value": self.project(hidden)[..., 0]}

        return Value()

    @hookimpl
    def stackwise_heads():
        yield Component(name="value", options="demo:Options", factory="demo:build", example={"width": 4})
    ```
    """
    return ()


@hookspec
def stackwise_tasks() -> Iterable[Component]:
    """Name the tasks: how a batch is prepared, and the loss. The factory is called with (options, context).

    ```python
    from attrs import frozen
    from stackwise import Component, TaskSpec, TensorSpec, hookimpl

    LEVELS = TensorSpec("batch time", "floating")

    @frozen(kw_only=True)
    class Options:
        def to_spec(self):
            return TaskSpec(batch={"levels": LEVELS}, inputs={"levels": LEVELS}, outputs={"value": LEVELS})

    @frozen
    class Denoise:
        options: Options

        def get_spec(self):
            return self.options.to_spec()

        def prepare(self, batch, moment, generator):
            levels = batch["levels"]
            return {"levels": levels + levels.new_empty(levels.shape).normal_(generator=generator), "clean": levels}

        def loss(self, outputs, batch):
            error = (outputs["value"] - batch["clean"]).square()
            return error.sum(), error.numel(), {}

    def build(options, context):
        return Denoise(options)

    @hookimpl
    def stackwise_tasks():
        yield Component(name="denoise", options="demo:Options", factory="demo:build")
    ```
    """
    return ()


@hookspec
def stackwise_optimizers() -> Iterable[Component]:
    """Name the optimizers. The factory is called with (options, context, groups) and returns a `torch.optim.Optimizer`.

    ```python
    from attrs import frozen
    from stackwise import Component, OptimizerSpec, hookimpl, scheduled

    @frozen(kw_only=True)
    class Options:
        lr: float = scheduled(doc="step size", minimum=0)

        def to_spec(self):
            return OptimizerSpec(state_elements=lambda shape: 0)

    def build(options, context, groups):
        from torch.optim import SGD

        return SGD([{"params": list(g.parameters.items()), "group": g.name, **g.values} for g in groups], lr=options.lr)

    @hookimpl
    def stackwise_optimizers():
        yield Component(name="sgd", options="demo:Options", factory="demo:build", example={"lr": 0.1})
    ```
    """
    return ()


@hookspec
def stackwise_loaders() -> Iterable[Component]:
    """Name the loaders: deterministic streams with a cursor. The factory is called with (options, context).

    ```python
    from attrs import frozen
    from stackwise import BatchSpec, Component, TensorSpec, hookimpl, option

    @frozen(kw_only=True)
    class Options:
        period: int = option(8, doc="positions of one wave", minimum=2)

        def to_spec(self):
            return BatchSpec(fields={"levels": TensorSpec("batch time", "float32")})

    class Waves:
        def __init__(self, options):
            self.options, self.row = options, 0

        def get_batch_spec(self):
            return self.options.to_spec()

        def take(self, rows, length):
            import torch

            shift, self.row = torch.arange(self.row, self.row + rows), self.row + rows
            return {"levels": torch.sin((shift[:, None] + torch.arange(length)) * (2 * torch.pi / self.options.period))}

        def state_dict(self):
            return {"row": self.row}

        def load_state_dict(self, state):
            self.row = state["row"]

    def build(options, context):
        return Waves(options)

    @hookimpl
    def stackwise_loaders():
        yield Component(name="waves", options="demo:Options", factory="demo:build", example={"period": 8})
    ```
    """
    return ()


@hookspec
def stackwise_transforms() -> Iterable[Component]:
    """Name the transforms: changes of a batch between loader and task. The factory is called with (options, context).

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
    """
    return ()


@hookspec
def stackwise_adapters() -> Iterable[Component]:
    """Name the adapters: glue at a junction of the model, tensor in, tensor out. The factory is called with (options, context).

    ```python
    from attrs import frozen
    from stackwise import AdapterSpec, Component, TensorSpec, dimension, hookimpl

    @frozen(kw_only=True)
    class Options:
        narrow: int = dimension("narrow", doc="features before")
        wide: int = dimension("wide", doc="features after")

        def to_spec(self):
            return AdapterSpec(input=TensorSpec("batch time narrow"), output=TensorSpec("batch time wide"))

    def build(options, context):
        from torch import nn

        class Widen(nn.Linear):
            def get_spec(self):
                return options.to_spec()

        return Widen(options.narrow, options.wide)

    @hookimpl
    def stackwise_adapters():
        yield Component(name="widen", options="demo:Options", factory="demo:build", example={"narrow": 4, "wide": 8})
    ```
    """
    return ()


@hookspec
def stackwise_growth_operators() -> Iterable[Component]:
    """Name the growth operators: pure maps from new blocks to old ones. The factory is called with (options, context).

    ```python
    from attrs import frozen
    from stackwise import BlockOrigin, Component, hookimpl

    @frozen(kw_only=True)
    class Options:
        pass

    class Cycle:
        preserves_function = False

        def map_blocks(self, request):
            old = request.old_stacks
            return {(s, i): BlockOrigin(source=(s, i % old[s])) for s, blocks in request.new_stacks.items() for i in range(blocks)}

    def build(options, context):
        return Cycle()

    @hookimpl
    def stackwise_growth_operators():
        yield Component(name="cycle", options="demo:Options", factory="demo:build")
    ```
    """
    return ()


@hookspec
def stackwise_weight_adapters() -> Iterable[Component]:
    """Name the weight adapters: trainable glue beside frozen matrices (LoRA). The factory is called with (options, context, weight).

    ```python
    import torch
    from attrs import frozen
    from stackwise import Component, hookimpl, option
    from torch import nn

    @frozen(kw_only=True)
    class Options:
        rank: int = option(2, doc="rank of what is added to the matrix", minimum=1)

    class LowRank(nn.Module):
        def __init__(self, rank, weight):
            super().__init__()
            self.down = nn.Parameter(torch.randn(rank, weight.shape[1]))
            self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))

        def forward(self, input):
            return input @ self.down.T @ self.up.T

        def merged(self, weight):
            return weight + self.up @ self.down

    def build(options, context, weight):
        return LowRank(options.rank, weight)

    @hookimpl
    def stackwise_weight_adapters():
        yield Component(name="low-rank", options="demo:Options", factory="demo:build")
    ```
    """
    return ()


@hookspec
def stackwise_reactions() -> Iterable[Component]:
    """Name the reactions: declared answers of the learning rate to the training signal. The factory is called with (options, context).

    ```python
    from attrs import frozen
    from stackwise import Component, hookimpl, option

    @frozen(kw_only=True)
    class Options:
        above: float = option(10.0, doc="loss from which the learning rate is halved for good")

        def envelope(self):
            return 0.5, 1.0

    class Brake:
        def __init__(self, above):
            self.above, self.factor = above, 1.0

        def watch(self, step, metrics):
            if self.factor < 1 or metrics.get("train.loss", 0.0) <= self.above:
                return None
            self.factor = 0.5
            return f"the loss was above {self.above}"

        def state_dict(self):
            return {"factor": self.factor}

        def load_state_dict(self, state):
            self.factor = state["factor"]

    def build(options, context):
        return Brake(options.above)

    @hookimpl
    def stackwise_reactions():
        yield Component(name="brake", options="demo:Options", factory="demo:build")
    ```
    """
    return ()


@hookspec
def stackwise_observers() -> Iterable[Component]:
    """Name the observers: called with every event of the training machine. The factory is called with (options, context).

    ```python
    from attrs import frozen
    from stackwise import Component, hookimpl, option

    @frozen(kw_only=True)
    class Options:
        path: str = option("events.txt", doc="file that gets one line an event")

    def build(options, context):
        def write(event):
            with open(options.path, "a", encoding="utf-8") as file:
                print(type(event).__name__, file=file)

        return write

    @hookimpl
    def stackwise_observers():
        yield Component(name="names", options="demo:Options", factory="demo:build", example={"path": "events.txt"})
    ```
    """
    return ()


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
    "stackwise_observers": "observer",
}
"""Hook name → the kind of component it names."""
