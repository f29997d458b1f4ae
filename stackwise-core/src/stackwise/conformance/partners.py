"""Neutral partners: the simplest modules, task and loader that stand on the other side of any spec.

Shapes: B batch, T time, W partner's width. The dimensions of a spec beside `batch` and `time` are given as numbers here.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Generator, Tensor, nn

from stackwise.conformance.subject import SOURCE
from stackwise.contracts.specs import BatchSpec, EmbeddingSpec, HeadSpec, RackSpec, TaskSpec, TensorSpec
from stackwise.timeline.duration import Moment

WIDTH = 6


def dtype_of(spec: TensorSpec) -> torch.dtype:
    """The torch dtype of a spec; float32 and int64 where any of the kind will do."""
    any_of_kind = {"floating": torch.float32, "integer": torch.int64}
    dtype: torch.dtype = any_of_kind[spec.dtype] if spec.dtype in any_of_kind else getattr(torch, spec.dtype)
    return dtype


def shape_of(spec: TensorSpec, rows: int, length: int) -> tuple[int, ...]:
    """The shape of a sized spec."""
    runtime = {"batch": rows, "time": length, "source": SOURCE}
    return tuple(dim if isinstance(dim, int) else runtime[dim] for dim in spec.dims)


def draw(spec: TensorSpec, rows: int, length: int, generator: Generator) -> Tensor:
    """Random values that obey a sized spec: whole numbers evenly within its bounds, standard normal numbers otherwise."""
    shape, dtype = shape_of(spec, rows, length), dtype_of(spec)
    if dtype == torch.bool:
        return torch.ones(shape, dtype=dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    low, high = (0, WIDTH) if spec.bounds is None else (spec.bounds[0], int(spec.bounds[1]))
    return torch.randint(low, max(high, low + 1), shape, generator=generator).to(dtype)


class Reshaped(nn.Module):
    """A linear map from every dimension of one spec beside batch and time to those of another; time is averaged away or repeated."""

    def __init__(self, before: TensorSpec, after: TensorSpec, *, zero: bool = False) -> None:
        super().__init__()
        self.before, self.after = before, after
        self.linear = nn.Linear(_features(before), _features(after))
        if zero:
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    def forward(self, tensor: Tensor, length: int = 1) -> Tensor:
        """Any shape of the first spec → the second."""
        axes = [i for i, dim in enumerate(self.before.dims) if dim in ("batch", "time")]
        others = [i for i in range(tensor.dim()) if i not in axes]
        flat = tensor.permute(*axes, *others).flatten(len(axes)) if others else tensor[..., None]
        features: Tensor = self.linear(flat.to(self.linear.weight.dtype))
        if "time" in self.before.dims and "time" not in self.after.dims:
            features = features.mean(1)
        if "time" in self.after.dims and "time" not in self.before.dims:
            features = features[:, None].expand(-1, length, -1)
        runtime = [dim for dim in ("batch", "time") if dim in self.after.dims]
        sizes = [dim for dim in self.after.dims if isinstance(dim, int)]
        order: list[str | int] = [*runtime, *(i for i, dim in enumerate(self.after.dims) if isinstance(dim, int))]
        shaped = features.reshape(*features.shape[: len(runtime)], *sizes)
        places = [order.index(dim if isinstance(dim, str) else i) for i, dim in enumerate(self.after.dims)]
        return shaped.permute(*places).to(dtype_of(self.after))


def _features(spec: TensorSpec) -> int:
    return prod(dim for dim in spec.dims if isinstance(dim, int))


class NeutralEmbedding(nn.Module):
    """The sum of a linear map (or a table, for bounded whole numbers) of every field. `extra` are parameters under given names."""

    def __init__(self, spec: EmbeddingSpec, extra: Mapping[str, tuple[int, ...]] | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.tables, self.maps = nn.ModuleDict(), nn.ModuleDict()
        for i, (_, field) in enumerate(spec.inputs.items()):
            runtime = TensorSpec((*(dim for dim in field.dims if isinstance(dim, str)), WIDTH))
            if not dtype_of(field).is_floating_point and field.bounds is not None:
                self.tables[str(i)] = nn.Embedding(int(field.bounds[1]) - field.bounds[0], WIDTH)
                self.maps[str(i)] = Reshaped(runtime, spec.output)
            else:
                self.maps[str(i)] = Reshaped(field, spec.output)
        for name, shape in (extra or {}).items():
            register(self, name, nn.Parameter(torch.randn(shape) / 4))

    def get_spec(self) -> EmbeddingSpec:
        """The spec that it was built with."""
        return self.spec

    def forward(self, **fields: Tensor) -> Tensor:
        """Fields → hidden state."""
        length = max(
            (t.shape[s.dims.index("time")] for n, s in self.spec.inputs.items() if "time" in s.dims for t in [fields[n]]), default=1
        )
        hidden: Tensor | None = None
        for i, (name, field) in enumerate(self.spec.inputs.items()):
            tensor = fields[name]
            if str(i) in self.tables and field.bounds is not None:
                tensor = self.tables[str(i)](tensor.long() - field.bounds[0])
                extra = [d for d, dim in enumerate(field.dims) if isinstance(dim, int)]
                tensor = tensor.mean(extra) if extra else tensor
            part = self.maps[str(i)](tensor, length)
            hidden = part if hidden is None else hidden + part
        assert hidden is not None, "an embedding reads at least one field"
        return hidden


def register(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Put a parameter at a dotted name, with empty modules on the way."""
    *path, leaf = name.split(".")
    for step in path:
        if step not in dict(module.named_children()):
            module.add_module(step, nn.Module())
        module = module.get_submodule(step)
    module.register_parameter(leaf, parameter)


class NeutralBlock(nn.Module):
    """x + out(tanh(into(x))) over the last dimension."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(width, WIDTH), nn.Linear(WIDTH, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """[…, W] → the same."""
        added: Tensor = self.out(torch.tanh(self.into(hidden)))
        return hidden + added


class NeutralRack(nn.Module):
    """Named stacks of residual blocks over the last dimension, then a map where the output differs. Side inputs are taken and ignored."""

    def __init__(self, spec: RackSpec, stacks: Mapping[str, int], extra: Mapping[str, tuple[int, ...]] | None = None) -> None:
        super().__init__()
        self.spec, self._stacks = spec, dict(stacks)
        width = spec.input.dims[-1]
        assert isinstance(width, int), "a neutral rack works on the last dimension of a hidden state"
        lists = {name: nn.ModuleList(NeutralBlock(width) for _ in range(blocks)) for name, blocks in stacks.items()}
        self.stacks = nn.ModuleDict(lists)
        self.last = Reshaped(spec.input, spec.output) if spec.input != spec.output else None
        for name, shape in (extra or {}).items():
            register(self, name, nn.Parameter(torch.randn(shape) / 4))

    def to_spec(self) -> RackSpec:
        """The spec that it was built with, and its stacks."""
        return rack_boundary(self.spec, self._stacks)

    def forward(self, hidden: Tensor, **side: Tensor) -> Tensor:
        """Hidden state in, hidden state out."""
        for blocks in self.stacks.children():
            for block in blocks.children():
                hidden = block(hidden.to(torch.float32))
        return hidden.to(dtype_of(self.spec.output)) if self.last is None else self.last(hidden)


def rack_boundary(spec: RackSpec, stacks: Mapping[str, int]) -> RackSpec:
    """The spec of a neutral rack."""
    return RackSpec(
        input=spec.input, output=spec.output, side=spec.side, attention=spec.attention, stacks=stacks, residual_outputs=("out.weight",)
    )


class NeutralHead(nn.Module):
    """A linear map to every output; with `zero` they are zero at first."""

    def __init__(self, boundary: HeadSpec, zero: bool = False) -> None:
        super().__init__()
        self.spec, self.names = boundary, tuple(boundary.outputs)
        self.maps = nn.ModuleList(Reshaped(boundary.input, output, zero=zero) for output in boundary.outputs.values())

    def get_spec(self) -> HeadSpec:
        """The spec that it was built with."""
        return self.spec

    def forward(self, hidden: Tensor) -> dict[str, Tensor]:
        """Hidden state → outputs by name."""
        return {name: map(hidden) for name, map in zip(self.names, self.maps, strict=True)}


class NeutralTask:
    """Squared distance of every output from 1; the batch is passed on unchanged."""

    def __init__(self, boundary: TaskSpec) -> None:
        self.spec = boundary

    def get_spec(self) -> TaskSpec:
        """The spec that it was built with."""
        return self.spec

    def prepare(self, batch: Mapping[str, Tensor], moment: Moment, generator: Generator) -> dict[str, Tensor]:
        """The same fields."""
        return dict(batch)

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, int, dict[str, tuple[Tensor, int]]]:
        """One sum over all outputs, and their number."""
        errors = [(outputs[name].float() - 1.0).square() for name in self.spec.outputs]
        return torch.stack([error.sum() for error in errors]).sum(), sum(error.numel() for error in errors), {}


class NeutralLoader:
    """Endless random rows of a sized spec; row i is a pure function of i."""

    def __init__(self, boundary: BatchSpec) -> None:
        self.spec, self._row = boundary, 0

    def get_batch_spec(self) -> BatchSpec:
        """The spec that it was built with."""
        return self.spec

    def take(self, rows: int | None, length: int | None) -> dict[str, Tensor]:
        """The next rows."""
        assert rows is not None, "the kit always says how many rows"
        single_rows = [self._one(self._row + i, length or 1) for i in range(rows)]
        self._row += rows
        return {
            name: torch.cat([row[name] for row in single_rows], self.spec.fields[name].dims.index("batch")) for name in self.spec.fields
        }

    def state_dict(self) -> dict[str, Any]:
        """The next row."""
        return {"row": self._row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the next row of the saved stream."""
        self._row = state["row"]

    def _one(self, row: int, length: int) -> dict[str, Tensor]:
        generator = Generator().manual_seed(row)
        return {name: draw(field, 1, length, generator) for name, field in self.spec.fields.items()}
