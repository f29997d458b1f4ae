"""The forms in which tensors of a folder stand for ours, in both directions; the table of each family is in `families.py`.

Shapes: N query heads, K key and value heads, H features a head, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from attrs import frozen

from stackwise_providers_transformer.hugging_face.architecture import STACK, Architecture

Tensors = Sequence[torch.Tensor]


class Form(Protocol):
    """What some of their tensors are to some of ours; the same for weights and for biases."""

    @property
    def theirs(self) -> tuple[str, ...]:
        """Their modules, within a block."""
        ...

    def load(self, theirs: Tensors, sizes: Architecture) -> Tensors:
        """Ours from theirs; also for tensors without values."""
        ...

    def store(self, ours: Tensors, sizes: Architecture) -> Tensors:
        """Theirs from ours."""
        ...


@frozen
class Plain:
    """The same tensor."""

    theirs: tuple[str, ...]

    def load(self, theirs: Tensors, sizes: Architecture) -> Tensors:
        """As they are."""
        return theirs

    def store(self, ours: Tensors, sizes: Architecture) -> Tensors:
        """As they are."""
        return ours


@frozen
class Turned:
    """A matrix that stands on its side (the `Conv1D` of GPT-2: inputs × outputs)."""

    theirs: tuple[str, ...]

    def load(self, theirs: Tensors, sizes: Architecture) -> Tensors:
        """Turn matrices."""
        return [each.t() if each.dim() == 2 else each for each in theirs]

    def store(self, ours: Tensors, sizes: Architecture) -> Tensors:
        """Turn them back."""
        return self.load(ours, sizes)


@frozen
class Stacked:
    """Queries, keys and values one below the other, ours in one tensor, theirs in three."""

    theirs: tuple[str, ...]

    def load(self, theirs: Tensors, sizes: Architecture) -> Tensors:
        """Join them."""
        return [torch.cat(tuple(theirs))]

    def store(self, ours: Tensors, sizes: Architecture) -> Tensors:
        """Take them apart."""
        heads, kv_heads, features = (sizes[f"rack.{name}"] for name in ("heads", "kv_heads", "head_size"))
        return torch.split(ours[0], [heads * features, kv_heads * features, kv_heads * features])


@frozen
class ByHead:
    """Queries, keys and values in one tensor, theirs head by head (GPT-NeoX): [N, 3, H, …] for our [3, N, H, …]."""

    theirs: tuple[str, ...]

    def load(self, theirs: Tensors, sizes: Architecture) -> Tensors:
        """All queries, all keys, all values."""
        return [_swapped(theirs[0], (sizes["rack.heads"], 3, sizes["rack.head_size"]))]

    def store(self, ours: Tensors, sizes: Architecture) -> Tensors:
        """Head by head."""
        return [_swapped(ours[0], (3, sizes["rack.heads"], sizes["rack.head_size"]))]


@frozen
class Halves:
    """Two of ours, one below the other in one of theirs."""

    theirs: tuple[str, ...]

    def load(self, theirs: Tensors, sizes: Architecture) -> Tensors:
        """Take them apart."""
        return theirs[0].chunk(2)

    def store(self, ours: Tensors, sizes: Architecture) -> Tensors:
        """Join them."""
        return [torch.cat(tuple(ours))]


def _swapped(tensor: torch.Tensor, sizes: tuple[int, int, int]) -> torch.Tensor:
    return tensor.reshape(*sizes, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)


Entry = tuple[tuple[str, ...], Form]
"""Our modules, and what they are to theirs."""


@frozen(kw_only=True)
class Names:
    """The table of a family.

    Args:
        prefix: what the base model's tensors begin with in a model with a head; folders of the base model alone leave it out.
        block: their path of block `{i}`.
        whole: our parameters or modules outside of blocks → theirs.
        inside: those of a block.
        repeated: their name of a tensor that a folder may hold twice → the one it is the same as.
        passing: ends of names of tensors that a model makes by itself.
    """

    prefix: str
    block: str
    whole: Mapping[str, str]
    inside: tuple[Entry, ...]
    repeated: Mapping[str, str]
    passing: tuple[str, ...] = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias", ".attn.bias", ".attn.masked_bias")

    def entries(self, blocks: int) -> Iterator[Entry]:
        """Our parameters, and theirs, each with its full name; weights and biases, whether there are any or not."""
        for ours, theirs in self.whole.items():
            for kind in _kinds(ours, theirs):
                yield (ours + kind,), Plain((theirs + kind,))
        for i in range(blocks):
            path = self.block.format(i=i)
            for modules, form in self.inside:
                for kind in (".weight", ".bias"):
                    ours_full = tuple(f"rack.stacks.{STACK}.{i}.{module}{kind}" for module in modules)
                    yield ours_full, type(form)(tuple(f"{path}{name}{kind}" for name in form.theirs))  # type: ignore[call-arg]  # every form of the table takes names


def _kinds(ours: str, theirs: str) -> tuple[str, ...]:
    """`.weight` and `.bias` of a module; nothing to add to a parameter that is named whole."""
    whole = ours.rpartition(".")[2] in ("weight", "bias", "types") or theirs.rpartition(".")[2] in ("weight", "bias")
    return ("",) if whole else (".weight", ".bias")


def one(ours: str, theirs: str) -> Entry:
    """An entry of one module that is the same."""
    return (ours,), Plain((theirs,))
