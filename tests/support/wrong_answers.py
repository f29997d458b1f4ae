"""A provider whose components are right but for one answer of one callback, as their options say."""

CODE = '''
from typing import Any

import torch
from attrs import frozen
from stackwise import (
    AdapterSpec, BatchSpec, BlockOrigin, Component, EmbeddingSpec, HeadSpec, OptimizerSpec, RackSpec, Stack, TaskSpec, TensorSpec,
    TransformSpec, hookimpl, option, stacks,
)
from torch import nn

LEVELS = TensorSpec("batch time", "float32")
HIDDEN = TensorSpec(("batch", "time", 4), "float32")
ANSWERS = {"none": lambda: None, "text": lambda: "odd", "number": lambda: 7, "shape": lambda: torch.zeros(3), "empty": dict}
ANSWERS["nan"] = lambda: float("nan")


CALLS = {}


def at(options, place, right):
    """The right answer, but at the one place; where that has calls that are right, from the call behind them."""
    if options.at != place:
        return right
    CALLS[place] = CALLS.get(place, 0) + 1
    if CALLS[place] <= options.after:
        return right
    if options.answer == "raises":
        raise RuntimeError("an odd day")
    return ANSWERS[options.answer]()


@frozen(kw_only=True)
class Options:
    at: str = option("", doc="callback that answers wrongly")
    answer: str = option("none", doc="what it answers")
    after: int = option(0, doc="calls before the first wrong one")


def with_spec(spec):
    @frozen(kw_only=True)
    class Own(Options):
        def to_spec(self):
            return at(self, "to_spec", spec)
    return Own


EmbeddingOptions = with_spec(EmbeddingSpec(inputs={"levels": LEVELS}, output=HIDDEN))
HeadOptions = with_spec(HeadSpec(input=HIDDEN, outputs={"levels": LEVELS}))
TaskOptions = with_spec(TaskSpec(batch={"levels": LEVELS}, inputs={"levels": LEVELS}, outputs={"levels": LEVELS}))
LoaderOptions = with_spec(BatchSpec(fields={"levels": LEVELS}))
TransformOptions = with_spec(TransformSpec(inputs={"levels": LEVELS}))
AdapterOptions = with_spec(AdapterSpec(input=HIDDEN, output=HIDDEN))
OptimizerOptions = with_spec(OptimizerSpec(state_elements=lambda shape: 0))


@frozen(kw_only=True)
class RackOptions(Options):
    stacks: tuple[Stack, ...] = stacks(doc="blocks")

    def to_spec(self):
        spec = RackSpec(input=HIDDEN, output=HIDDEN, stacks={s.name: s.blocks for s in self.stacks}, residual_outputs=("weight",))
        return at(self, "to_spec", spec)


class Part(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.options = options
        self.spec = type(options)(**({"stacks": options.stacks} if hasattr(options, "stacks") else {})).to_spec()

    def get_spec(self):
        return at(self.options, "get_spec", self.spec)


class Embedding(Part):
    def __init__(self, options):
        super().__init__(options)
        self.linear = nn.Linear(1, 4)

    def forward(self, levels):
        return at(self.options, "forward", self.linear(levels[..., None]))


class Rack(Part):
    to_spec = Part.get_spec

    def __init__(self, options):
        super().__init__(options)
        self.stacks = nn.ModuleDict({s.name: nn.ModuleList(nn.Linear(4, 4) for _ in range(s.blocks)) for s in options.stacks})

    def forward(self, hidden):
        for blocks in self.stacks.values():
            for block in blocks:
                hidden = hidden + block(hidden)
        return at(self.options, "forward", hidden)


class Head(Part):
    def __init__(self, options):
        super().__init__(options)
        self.linear = nn.Linear(4, 1)

    def forward(self, hidden):
        return at(self.options, "forward", {"levels": self.linear(hidden)[..., 0]})


class Adapter(Part):
    def __init__(self, options):
        super().__init__(options)
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden):
        return at(self.options, "forward", self.linear(hidden))


class Task:
    def __init__(self, options):
        self.options, self.spec = options, type(options)().to_spec()

    def get_spec(self):
        return at(self.options, "get_spec", self.spec)

    def prepare(self, batch, moment, generator):
        return at(self.options, "prepare", {"levels": batch["levels"], "targets": batch["levels"] * 2})

    def loss(self, outputs, batch):
        error = outputs["levels"] - batch["targets"]
        total = at(self.options, "total", error.square().sum())
        weight = at(self.options, "weight", error.numel())
        metrics = at(self.options, "metrics", {"size": (error.abs().sum().detach(), error.numel())})
        return at(self.options, "loss", (total, weight, metrics))

    def state_dict(self):
        return at(self.options, "state_dict", {"seen": 1})

    def load_state_dict(self, state):
        at(self.options, "load_state_dict", None)


class Loader:
    def __init__(self, options):
        self.options, self.row, self.spec = options, 0, type(options)().to_spec()

    def get_batch_spec(self):
        return at(self.options, "get_batch_spec", self.spec)

    def take(self, rows, length):
        self.row += rows
        generator = torch.Generator().manual_seed(self.row)
        return at(self.options, "take", {"levels": torch.rand(rows, length, generator=generator)})

    def state_dict(self):
        return at(self.options, "state_dict", {"row": self.row})

    def load_state_dict(self, state):
        at(self.options, "load_state_dict", None)
        self.row = state["row"]

    def fingerprint(self):
        return at(self.options, "fingerprint", {"rows": "endless"})

    def epoch_size(self):
        return at(self.options, "epoch_size", None)


class Transform:
    def __init__(self, options):
        self.options = options

    def __call__(self, batch, moment, generator):
        return at(self.options, "call", dict(batch))

    def state_dict(self):
        return at(self.options, "state_dict", {"seen": 1})

    def load_state_dict(self, state):
        at(self.options, "load_state_dict", None)


class Optimizer(torch.optim.SGD):
    def __init__(self, options, groups):
        super().__init__([{"params": list(g.parameters.items()), "group": at(options, "group", g.name)} for g in groups], lr=0.01)
        self.options = options

    def step(self, closure=None):
        at(self.options, "step", None)
        super().step()


class Reaction:
    def __init__(self, options):
        self.options = options
        self.factor = at(options, "factor", 1.0)

    def watch(self, step, metrics):
        return at(self.options, "watch", None)

    def state_dict(self):
        return at(self.options, "state_dict", {"seen": 1})

    def load_state_dict(self, state):
        at(self.options, "load_state_dict", None)


@frozen(kw_only=True)
class ReactionOptions(Options):
    def envelope(self):
        return at(self, "envelope", (0.5, 1.0))

    def watches(self):
        return at(self, "watches", ("train.loss",))


class Growth:
    def __init__(self, options):
        self.options = options

    @property
    def preserves_function(self):
        return at(self.options, "preserves_function", False)

    def map_blocks(self, request):
        blocks = {(s, i): BlockOrigin(source=(s, 0)) for s, n in request.new_stacks.items() for i in range(n)}
        return at(self.options, "map_blocks", blocks)

    def map_parameters(self, old, new, request):
        return at(self.options, "map_parameters", {})


class Beside(nn.Module):
    def __init__(self, options, weight):
        super().__init__()
        self.options = options
        self.up = nn.Parameter(torch.zeros(weight.shape))

    def forward(self, input):
        return at(self.options, "forward", input @ self.up.T)

    def merged(self, weight):
        return at(self.options, "merged", weight + self.up)


def of(made):
    return lambda options, context, *extra: at(options, "factory", made(options, *extra))


embedding, rack, head, adapter, task, loader = map(of, (Embedding, Rack, Head, Adapter, Task, Loader))
transform, optimizer, reaction, growth, beside = map(of, (Transform, Optimizer, Reaction, Growth, Beside))

KINDS = {
    "embeddings": ("EmbeddingOptions", "embedding"), "racks": ("RackOptions", "rack"), "heads": ("HeadOptions", "head"),
    "tasks": ("TaskOptions", "task"), "loaders": ("LoaderOptions", "loader"), "transforms": ("TransformOptions", "transform"),
    "adapters": ("AdapterOptions", "adapter"), "optimizers": ("OptimizerOptions", "optimizer"),
    "reactions": ("ReactionOptions", "reaction"),
    "growth_operators": ("Options", "growth"), "weight_adapters": ("Options", "beside"),
}


def hook(kind, options, factory):
    def named():
        return [Component(name="one", options=f"fake_odd:{options}", factory=f"fake_odd:{factory}")]
    named.__name__ = f"stackwise_{kind}"
    return hookimpl(named)


for kind, (options, factory) in KINDS.items():
    globals()[f"stackwise_{kind}"] = hook(kind, options, factory)
'''

EVERY = ("none", "text", "number", "shape", "empty", "raises")
MODULE = ("none", "text", "number", "shape", "raises")

CALLBACKS: dict[tuple[str, str], tuple[str, ...]] = {
    **{(kind, "factory"): ("none", "text", "raises") for kind in ("embedding", "rack", "head", "task", "loader", "transform", "adapter")},
    **{(kind, "factory"): ("none", "text", "raises") for kind in ("optimizer", "reaction", "growth", "beside")},
    **{(kind, "to_spec"): ("text", "number", "raises") for kind in ("embedding", "rack", "head", "task", "transform", "adapter")},
    ("loader", "to_spec"): ("text", "raises"),
    ("optimizer", "to_spec"): ("text", "raises"),
    **{(kind, "get_spec"): ("none", "text", "raises") for kind in ("embedding", "rack", "head", "task", "adapter")},
    **{(kind, "forward"): MODULE for kind in ("embedding", "rack")},
    **{(kind, "forward"): ("none", "text", "shape", "raises") for kind in ("adapter", "beside")},
    ("head", "forward"): EVERY,
    ("task", "prepare"): EVERY,
    ("task", "loss"): EVERY,
    ("task", "total"): ("none", "text", "number", "shape", "raises"),
    ("task", "weight"): ("none", "text", "shape", "raises"),
    ("task", "metrics"): ("none", "text", "number", "shape", "raises"),
    ("task", "state_dict"): ("none", "text", "number", "raises"),
    ("task", "load_state_dict"): ("raises",),
    ("loader", "get_batch_spec"): ("none", "text", "raises"),
    ("loader", "take"): EVERY,
    ("loader", "state_dict"): ("none", "text", "number", "raises"),
    ("loader", "load_state_dict"): ("raises",),
    ("loader", "fingerprint"): ("none", "text", "number", "raises"),
    ("transform", "call"): EVERY,
    ("transform", "state_dict"): ("none", "text", "number", "raises"),
    ("transform", "load_state_dict"): ("raises",),
    ("optimizer", "group"): ("none", "text", "number"),
    ("optimizer", "step"): ("raises",),
    ("reaction", "factor"): ("none", "text", "shape", "nan"),
    ("reaction", "watch"): ("number", "shape", "raises"),
    ("reaction", "envelope"): ("none", "text", "number", "raises"),
    ("reaction", "watches"): ("none", "number", "raises"),
    ("reaction", "state_dict"): ("none", "text", "number", "raises"),
    ("reaction", "load_state_dict"): ("raises",),
    ("growth", "preserves_function"): ("none", "text", "raises"),
    ("growth", "map_blocks"): EVERY,
    ("growth", "map_parameters"): ("none", "text", "number", "raises"),
    ("beside", "merged"): ("none", "text", "number", "shape", "raises"),
}
"""Component and callback → the wrong answers that it gives."""
