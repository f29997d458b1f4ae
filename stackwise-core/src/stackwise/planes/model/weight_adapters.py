"""Weight adapters: small trained modules beside matrices (LoRA), attached without renaming anything.

An adapter lives at `weight_adapters.<name>.<path of its module>` in the model, so no other name changes. A forward hook adds its
output to that of the module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from stackwise.contracts.answers import expect
from stackwise.contracts.selectors import select
from stackwise.errors import UserError
from stackwise.planes.shards import made_whole, put, whole

Attached = Mapping[tuple[str, str], nn.Module]
"""(adapter name, path of the adapted module) → the adapter."""


def targets(model: nn.Module, selectors: Sequence[str], name: str) -> list[str]:
    """Paths of the linear maps whose matrices the selectors match.

    Raises:
        UserError: a selector that matches nothing, or no matrix of a linear map; a matrix tied to another parameter, which merging
            would change as well.
    """
    parameters = {n: p for n, p in model.named_parameters() if not n.startswith("weight_adapters.")}
    selection = select(selectors, parameters)
    _check_untied(model, selection, name)
    paths = [path for n in selection if _is_linear(model, path := n.removesuffix(".weight"), n, parameters[n])]
    if not paths:
        raise UserError(
            f"model.weight_adapters.{name} selects {', '.join(selection[:3])}, and none of these is the matrix of a linear map: "
            "select parameters named `weight` of two dimensions outside embeddings"
        )
    return paths


def _check_untied(model: nn.Module, selection: Sequence[str], adapter: str) -> None:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for name in selection:
        first, *others = names[id(model.get_parameter(name))]
        linear = next((n for n in (first, *others) if _is_linear(model, n.removesuffix(".weight"), n, model.get_parameter(n))), None)
        if others and linear is not None:
            raise UserError(
                f"model.weight_adapters.{adapter} selects {name}, and {first} and {', '.join(others)} are one tied matrix: what is merged "
                "into the one would change the other; untie them, or select others"
            )


def _is_linear(model: nn.Module, path: str, name: str, parameter: nn.Parameter) -> bool:
    return name.endswith(".weight") and parameter.dim() == 2 and isinstance(model.get_submodule(path), nn.Linear)


class WeightAdapters(nn.Module):
    """All adapters of a model, in nested modules that repeat the names of the adapted ones."""

    def __init__(self, attached: Attached) -> None:
        super().__init__()
        for (name, path), adapter in attached.items():
            place: nn.Module = self
            for segment in (name, *path.split(".")[:-1]):
                if segment not in place._modules:
                    place.add_module(segment, nn.Module())
                place = place.get_submodule(segment)
            place.add_module(path.rpartition(".")[2], adapter)


class _AddOutput:
    """A forward hook that adds an adapter's output; an object and no closure, so that a deep copy calls its own adapter."""

    def __init__(self, adapter: nn.Module) -> None:
        self.adapter = adapter

    def __call__(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        delta: torch.Tensor = self.adapter(inputs[0])
        return output + delta


def attach(model: nn.Module, attached: Attached) -> Iterator[RemovableHandle]:
    """Hook every adapter to its module; yields the handles."""
    for (_, path), adapter in attached.items():
        yield model.get_submodule(path).register_forward_hook(_AddOutput(adapter))


def merge(model: nn.Module, leaving: Attached) -> tuple[str, ...]:
    """Merge the adapters that leave into their matrices; returns the names of the matrices."""
    matrices: dict[str, None] = {}
    with torch.no_grad():
        for (_, path), adapter in leaving.items():
            weight = model.get_parameter(f"{path}.weight")
            with made_whole(adapter):
                merged: Any = adapter.merged(whole(weight))  # type: ignore[operator]  # the contract of weight adapters
            expect(isinstance(merged, torch.Tensor) and merged.shape == weight.shape, merged, f"a matrix of shape {list(weight.shape)}")
            put(weight, merged)
            matrices[f"{path}.weight"] = None
    return tuple(matrices)
