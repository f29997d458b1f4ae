"""Batches handed from one process to another through shared memory: one segment is written over and over, and grows when it must."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from math import prod
from multiprocessing.shared_memory import SharedMemory

import torch
from attrs import frozen

from stackwise.contracts.protocols import Batch
from stackwise.errors import ProviderError

_ALIGN_BYTES = 64


@frozen
class SharedField:
    """Where one tensor lies in a segment."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset_bytes: int


@frozen
class SharedBatch:
    """A batch in a segment; `segment` is its name when it is a new one."""

    fields: tuple[SharedField, ...]
    segment: str | None


class BatchWriter:
    """The writing end. What was written is overwritten by the next batch."""

    def __init__(self) -> None:
        self._memory: SharedMemory | None = None

    def write(self, batch: Batch) -> SharedBatch:
        """Copy a batch into the segment, or into a new one when it does not fit.

        Raises:
            ProviderError: no mapping of tensors.
        """
        fields, size = _lay_out(batch)
        memory, name = self._memory, None
        if memory is None or memory.size < size:
            self.close()
            memory = self._memory = SharedMemory(create=True, size=size)
            name = memory.name
        for field in fields:
            if prod(field.shape):
                _tensor_at(memory, field).copy_(batch[field.name])
        return SharedBatch(fields, name)

    def close(self) -> None:
        """Let go of the segment."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def abandon(self) -> None:
        """Remove the segment when nobody has read from it."""
        if self._memory is not None:
            with contextlib.suppress(FileNotFoundError):
                self._memory.unlink()


class BatchReader:
    """The reading end. It removes the name of each new segment at once, so that nothing is left behind however either end ends."""

    def __init__(self) -> None:
        self._memory: SharedMemory | None = None

    def read(self, shared: SharedBatch) -> dict[str, torch.Tensor]:
        """A copy of the batch, which stays when the segment is written over."""
        if shared.segment is not None:
            self.close()
            self._memory = SharedMemory(shared.segment)
            self._memory.unlink()
        memory = self._memory
        assert memory is not None
        return {
            field.name: _tensor_at(memory, field).clone() if prod(field.shape) else torch.empty(field.shape, dtype=field.dtype)
            for field in shared.fields
        }

    def close(self) -> None:
        """Let go of the segment."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None


def _lay_out(batch: object) -> tuple[tuple[SharedField, ...], int]:
    if not isinstance(batch, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in batch.values()):
        raise ProviderError(f"a loader delivered a {type(batch).__name__} that is no mapping of field name → tensor")
    fields, size = [], 0
    for name, tensor in batch.items():
        fields.append(SharedField(name, tensor.dtype, tuple(tensor.shape), size))
        size += -(-tensor.numel() * tensor.element_size() // _ALIGN_BYTES) * _ALIGN_BYTES
    return tuple(fields), max(size, 1)


def _tensor_at(memory: SharedMemory, field: SharedField) -> torch.Tensor:
    flat = torch.frombuffer(memory.buf, dtype=field.dtype, count=prod(field.shape), offset=field.offset_bytes)
    return flat.view(field.shape)
