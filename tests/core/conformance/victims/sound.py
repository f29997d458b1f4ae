"""The sound components. Shapes: B batch, T time, D width."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from stackwise import BatchSpec, BuildContext, ParameterGroup, StoredModel, UserError


class Folder:
    """A tiny model as JSON."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def example(self) -> Any:
        rack = {"use": "transformer.decoder", "width": 4, "heads": 2, "stacks": [{"base": 1}]}
        return {"embedding": {"use": "transformer.token", "vocab": 5}, "rack": rack, "head": {"use": "transformer.lm"}}

    def recognises(self, folder: Path) -> bool:
        return (folder / "tiny.json").is_file()

    def read(self, folder: Path) -> StoredModel:
        try:
            return self.take(json.loads((folder / "tiny.json").read_text()))
        except ValueError as error:
            raise UserError(f"{folder / 'tiny.json'}: {error}") from None

    def take(self, saved: Any) -> StoredModel:
        return StoredModel(model=self.example(), tensors={name: torch.tensor(values) for name, values in saved.items()})

    def write(self, model: Any, folder: Path, origin: Path | None, tokenizer: Mapping[str, bytes]) -> None:
        saved = {name: parameter.tolist() for name, parameter in model.named_parameters()}
        (folder / "tiny.json").write_text(json.dumps(saved, indent=self.options.indent))


class Embedding(nn.Module):
    def __init__(self, options: Any) -> None:
        super().__init__()
        self.options = options
        self.linear = nn.Linear(1, options.width)

    def get_spec(self) -> Any:
        return self.options.to_spec()

    def forward(self, levels: Tensor) -> Tensor:
        hidden: Tensor = self.linear(levels[..., None])
        return hidden


class Block(nn.Module):
    def __init__(self, options: Any) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(options.width, options.width), nn.Linear(options.width, options.width)
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        added: Tensor = self.dropout(self.out(torch.tanh(self.into(hidden))))
        return hidden + added


class Rack(nn.Module):
    block: type[nn.Module] = Block

    def __init__(self, options: Any) -> None:
        super().__init__()
        self.options = options
        made = {stack.name: nn.ModuleList(self.block(options) for _ in range(stack.blocks)) for stack in options.stacks}
        self.stacks = nn.ModuleDict(made)

    def to_spec(self) -> Any:
        return self.options.to_spec()

    def apply_values(self, values: Mapping[str, float]) -> None:
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = values["dropout"]

    def forward(self, hidden: Tensor, shift: Tensor | None = None) -> Tensor:
        if shift is not None:
            hidden = hidden + shift[..., None]
        for blocks in self.stacks.children():
            for block in blocks.children():
                hidden = block(hidden)
        return hidden


class Head(nn.Module):
    def __init__(self, options: Any) -> None:
        super().__init__()
        self.options = options
        self.linear = nn.Linear(options.width, 1)

    def get_spec(self) -> Any:
        return self.options.to_spec()

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        return {"levels": self.linear(hidden)[..., 0]}


class Adapter(nn.Linear):
    def __init__(self, options: Any) -> None:
        super().__init__(options.narrow, options.wide)
        self.options = options

    def get_spec(self) -> Any:
        return self.options.to_spec()


class LowRank(nn.Module):
    def __init__(self, options: Any, weight: Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(options.rank, weight.shape[1]))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], options.rank))

    def forward(self, input: Tensor) -> Tensor:
        return input @ self.down.T @ self.up.T

    def merged(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


class Task:
    def __init__(self, options: Any) -> None:
        self.options, self.noise = options, options.noise

    def get_spec(self) -> Any:
        return self.options.to_spec()

    def apply_values(self, values: Mapping[str, float]) -> None:
        self.noise = values["noise"]

    def prepare(self, batch: Mapping[str, Tensor], moment: Any, generator: Generator) -> dict[str, Tensor]:
        seen, ahead = batch["levels"][:, :-1], batch["levels"][:, 1:]
        return {"levels": seen + self.noise * torch.randn(seen.shape, generator=generator), "ahead": ahead}

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Any, dict[str, tuple[Tensor, Any]]]:
        error = outputs["levels"].float() - batch["ahead"]
        return error.square().sum(), error.numel(), {"absolute": (error.detach().abs().sum(), error.numel())}


class Optimizer(torch.optim.Optimizer):
    sign = 1.0

    def __init__(self, groups: Any, options: Any) -> None:
        super().__init__(groups, {"lr": options.lr, "momentum": options.momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is ever given
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.move(parameter, group)

    def move(self, parameter: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
        parameter.sub_(state["momentum"], alpha=self.sign * group["lr"])


class Loader:
    def __init__(self, options: Any, context: BuildContext) -> None:
        self.options, self.context = options, context
        self.scale, self.row = options.scale, 0

    def get_batch_spec(self) -> BatchSpec:
        spec: BatchSpec = self.options.to_spec()
        return spec

    def apply_values(self, values: Mapping[str, float]) -> None:
        self.scale = values["scale"]

    def fingerprint(self) -> dict[str, Any]:
        return {"rows": "endless"}

    def take(self, rows: int, length: int) -> dict[str, Tensor]:
        made = torch.stack([self.one(self.row + i, length) for i in range(rows)])
        self.row += rows
        return {"levels": made * self.scale}

    def skip(self, rows: int, length: int) -> None:
        self.row += rows

    def one(self, row: int, length: int) -> Tensor:
        seed = self.context.seed + 2 * row + (self.context.split == "train")
        return torch.rand(length, generator=Generator().manual_seed(seed))

    def state_dict(self) -> dict[str, Any]:
        return {"row": self.row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.row = state["row"]


class Transform:
    def __init__(self, options: Any) -> None:
        self.amount = options.amount

    def apply_values(self, values: Mapping[str, float]) -> None:
        self.amount = values["amount"]

    def __call__(self, batch: Mapping[str, Tensor], moment: Any, generator: Generator) -> dict[str, Tensor]:
        levels = batch["levels"]
        noisy = levels + self.amount * torch.randn(levels.shape, generator=generator)
        return {**batch, "levels": noisy, "noisy": torch.ones(len(levels), dtype=torch.bool)}


class Reaction:
    def __init__(self, options: Any) -> None:
        self.options = options
        self.factor, self.lowest, self.waited = 1.0, float("inf"), 0

    def watch(self, step: int, metrics: Mapping[str, float]) -> str | None:
        if "train.loss" not in metrics:
            return None
        if metrics["train.loss"] < self.lowest:
            self.lowest, self.waited = metrics["train.loss"], 0
            return None
        self.waited += 1
        return self.halved() if self.waited >= self.options.patience else None

    def halved(self) -> str | None:
        before, self.waited = self.factor, 0
        self.factor = max(self.factor / 2, self.options.floor)
        return f"no lower loss for {self.options.patience} steps" if self.factor != before else None

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self.factor, "lowest": self.lowest, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.factor, self.lowest, self.waited = state["factor"], state["lowest"], state["waited"]


class Observer:
    def __init__(self, options: Any) -> None:
        self.path = options.path

    def __call__(self, event: Any) -> None:
        with Path(self.path).open("a", encoding="utf-8") as file:
            print(type(event).__name__, file=file)


# -- right, though few do it so ---------------------------------------------------------------------------------------


class MaskedBlock(nn.TransformerEncoderLayer):
    """Attention over real positions alone; at those of padding it gives what it may."""

    def __init__(self, options: Any) -> None:
        super().__init__(options.width, 2, 8, dropout=options.dropout, batch_first=True)


class Masked(Rack):
    block = MaskedBlock

    def apply_values(self, values: Mapping[str, float]) -> None:
        super().apply_values(values)
        for module in self.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.dropout = values["dropout"]

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        for blocks in self.stacks.children():
            for block in blocks.children():
                hidden = block(hidden, src_key_padding_mask=None if mask is None else ~mask)
        return hidden


class RowMasked(Rack):
    """Leaves whole rows out."""

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(hidden if mask is None else hidden * mask[:, None, None])


class Plain(nn.Module):
    """A rack that leaves its spec to its options."""

    def __init__(self, options: Any) -> None:
        super().__init__()
        self.stacks = Rack(options).stacks

    apply_values = Rack.apply_values
    forward = Rack.forward


class Balanced(Head):
    """Gives one number for the whole batch as well."""

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        levels = super().forward(hidden)["levels"]
        return {"levels": levels, "balance": levels.mean().square()}


class Density(Task):
    """The likelihood of levels well below 1 under a normal distribution: its negative logarithm falls below 0."""

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, Any, dict[str, tuple[Tensor, Any]]]:
        error = outputs["mean"].float() - self.scale * batch["ahead"]
        spread = outputs["log_variance"].float()
        return (spread + error.square() / spread.exp()).sum() / 2, error.numel(), {}

    scale = 0.1


class Accumulating(torch.optim.Adagrad):
    """Sums of squares that begin above 0."""

    def __init__(self, groups: Any, options: Any) -> None:
        super().__init__(groups, lr=options.lr, initial_accumulator_value=0.1)


def build_embedding(options: Any, context: BuildContext) -> Any:
    return Embedding(options)


def build_rack(options: Any, context: BuildContext) -> Any:
    return Rack(options)


def build_head(options: Any, context: BuildContext) -> Any:
    return Head(options)


def build_adapter(options: Any, context: BuildContext) -> Any:
    return Adapter(options)


def build_weight_adapter(options: Any, context: BuildContext, weight: Tensor) -> Any:
    return LowRank(options, weight)


def build_task(options: Any, context: BuildContext) -> Any:
    return Task(options)


def torch_groups(groups: Sequence[ParameterGroup]) -> list[dict[str, Any]]:
    return [{"params": list(group.parameters.items()), "group": group.name, "moments": {"momentum": 1}, **group.values} for group in groups]


def build_optimizer(options: Any, context: BuildContext, groups: Sequence[ParameterGroup]) -> Any:
    return Optimizer(torch_groups(groups), options)


def build_loader(options: Any, context: BuildContext) -> Any:
    return Loader(options, context)


def build_transform(options: Any, context: BuildContext) -> Any:
    return Transform(options)


def build_reaction(options: Any, context: BuildContext) -> Any:
    return Reaction(options)


def build_observer(options: Any, context: BuildContext) -> Any:
    return Observer(options)


def build_format(options: Any, context: BuildContext) -> Any:
    return Folder(options)


def build_masked(options: Any, context: BuildContext) -> Any:
    return Masked(options)


def build_row_masked(options: Any, context: BuildContext) -> Any:
    return RowMasked(options)


def build_plain(options: Any, context: BuildContext) -> Any:
    return Plain(options)


def build_balanced(options: Any, context: BuildContext) -> Any:
    return Balanced(options)


def build_density(options: Any, context: BuildContext) -> Any:
    return Density(options)


def build_accumulating(options: Any, context: BuildContext, groups: Sequence[ParameterGroup]) -> Any:
    return Accumulating([{**group, "moments": {"sum": 2}} for group in torch_groups(groups)], options)
