"""The loader of arrays in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from stackwise import BuildContext, DataError
from stackwise_providers_data.array_shapes import is_token_stream, with_bounds
from stackwise_providers_data.memory_options import MemoryOptions
from stackwise_providers_data.row_stream import RowStream
from stackwise_providers_data.splits import no_rows, part_of, rows_of
from stackwise_providers_data.token_stream import TokenStream


def build_memory(options: MemoryOptions, context: BuildContext) -> TokenStream | RowStream:
    """The factory of `memory`.

    Raises:
        DataError: ragged or empty arrays, NaN, ids outside the vocabulary, an evaluation without held-out rows.
    """
    shapes = options.shapes()
    tensors = {name: _as_tensor(array, shapes[name].dtype) for name, array in options.arrays.items()}
    for name, tensor in tensors.items():
        _refuse_nan(name, tensor)
    tensors = _of_split(tensors, options.heldout, context)
    fingerprint = _fingerprint(tensors)
    if not is_token_stream(shapes):
        return RowStream(
            tensors,
            with_bounds(options.to_spec(), {name: _held(tensor) for name, tensor in tensors.items()}),
            time=options.time_fields(),
            seed=context.seed,
            shuffle=options.shuffle,
            repeat=options.repeat,
            fingerprint=fingerprint,
        )
    ((name, tokens),) = tensors.items()
    _refuse_outside(name, tokens, options.vocab)
    return TokenStream(
        tokens.numpy(),
        options.to_spec(),
        seed=context.seed,
        page_tokens=context.max_length,
        shuffle=options.shuffle,
        repeat=options.repeat,
        fingerprint=fingerprint,
        name=f"arrays.{name}",
    )


def _as_tensor(array: Any, dtype: str) -> torch.Tensor:
    if isinstance(array, np.ndarray) and not array.flags.writeable:
        array = array.copy()  # torch has no read-only tensors
    return torch.as_tensor(array, dtype=getattr(torch, dtype), device="cpu").detach()


def _of_split(tensors: Mapping[str, torch.Tensor], heldout: float | None, context: BuildContext) -> dict[str, torch.Tensor]:
    total = len(next(iter(tensors.values())))
    rows = rows_of(part_of(context, heldout), total, heldout)
    if not len(range(total)[rows]):
        raise no_rows("arrays", heldout, total, "rows", context.split)
    return {name: tensor[rows] for name, tensor in tensors.items()}


def _refuse_nan(name: str, tensor: torch.Tensor) -> None:
    if tensor.is_floating_point() and bool((broken := tensor.isnan()).any()):
        raise DataError(f"arrays.{name}: row {int(broken.nonzero()[0, 0])} holds NaN: drop or fill it")


def _refuse_outside(name: str, tokens: torch.Tensor, vocab: int | None) -> None:
    low, high = int(tokens.numpy().min()), int(tokens.numpy().max())
    if low < 0 or (vocab is not None and high >= vocab):
        raise DataError(f"arrays.{name}: it holds the id {low if low < 0 else high}; ids lie in [0, {'vocab' if vocab is None else vocab})")


def _held(tensor: torch.Tensor) -> tuple[int, int]:
    """The lowest and the highest entry, where they are whole numbers."""
    return (0, 0) if tensor.is_floating_point() else (int(tensor.numpy().min()), int(tensor.numpy().max()))


def _fingerprint(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        size += tensor.numel() * tensor.element_size()
    return {"rows": len(next(iter(tensors.values()))), "bytes": size, "sha256": digest.hexdigest()}
