"""A digest of what batches and data sets hold in the open, so that other values of the same size are noticed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import is_lazy
from torch.utils.data import ConcatDataset, Subset, TensorDataset

_SAMPLES = 16
"""Entries of a long list, rows of a large tensor, that are looked at, the first and the last among them."""


def digest_of(batch: object) -> str:
    """A digest of all tensors of a batch, by name or in order."""
    digest = blake2b(digest_size=16)
    entries = batch.items() if isinstance(batch, Mapping) else enumerate(batch) if isinstance(batch, list | tuple) else ()
    for name, tensor in entries:
        if isinstance(tensor, torch.Tensor):
            _add(digest, name, tensor)
    return digest.hexdigest()


def digest_of_some(tensors: Sequence[torch.Tensor]) -> str:
    """A digest of some entries of each tensor, and of whether it trains; tensors without values, as on the meta device, count as equal."""
    digest = blake2b(digest_size=16)
    for i, tensor in enumerate(tensors):
        if tensor.layout == torch.strided and not tensor.is_meta and not is_lazy(tensor):
            _add(digest, f"{i} {tensor.requires_grad}", tensor.detach().flatten()[_some(tensor.numel())])
    return digest.hexdigest()


def sampled_digest(held: object) -> str | None:
    """A digest of some values of a list or of a torch data set over tensors and lists; None for anything else, whose code is not run."""
    digest = blake2b(digest_size=16)
    return digest.hexdigest() if _add_held(digest, held) else None


def own_numbers(held: object) -> dict[str, int | float]:
    """The plain numbers that an object keeps as attributes, such as a count, and how much its lists and maps hold, such as a cache."""
    own = vars(held).items() if hasattr(held, "__dict__") else ()
    numbers = {name: value for name, value in own if type(value) in (int, float)}
    return {**numbers, **{f"the length of {name}": len(value) for name, value in own if type(value) in (list, dict, set)}}


def _add_held(digest: Any, held: object) -> bool:
    if isinstance(held, TensorDataset):
        for i, tensor in enumerate(held.tensors):
            digest.update(str(list(tensor.shape)).encode())
            _add(digest, i, tensor[_some(len(tensor))])
        return True
    if isinstance(held, Subset):
        indices = np.asarray(list(held.indices))
        digest.update(indices.tobytes())
        return _add_held(digest, held.dataset)
    if isinstance(held, ConcatDataset):
        known = [_add_held(digest, part) for part in held.datasets]
        return all(known)
    if isinstance(held, list | tuple):
        for i in _some(len(held)):
            _add_entry(digest, i, held[i])
        return True
    return False


def _add_entry(digest: Any, name: object, entry: object) -> None:
    if isinstance(entry, torch.Tensor):
        _add(digest, name, entry)
    elif isinstance(entry, np.ndarray) and entry.dtype != object:
        digest.update(f"{name} {entry.dtype} {entry.shape}".encode() + np.ascontiguousarray(entry).tobytes())
    elif isinstance(entry, Mapping):
        for key, value in entry.items():
            _add_entry(digest, f"{name}.{key}", value)
    elif isinstance(entry, list | tuple):
        for i in _some(len(entry)):
            _add_entry(digest, f"{name}.{i}", entry[i])
    elif isinstance(entry, str | bytes | int | float | bool | None):
        digest.update(f"{name} {entry!r}".encode(errors="surrogatepass"))


def _add(digest: Any, name: object, tensor: torch.Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
    if tensor.layout == torch.strided and not tensor.is_meta:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def _some(count: int) -> Sequence[int]:
    """Evenly spread indices below a count, the first and the last among them."""
    return range(count) if count <= _SAMPLES else [i * (count - 1) // (_SAMPLES - 1) for i in range(_SAMPLES)]
